//! Servers in front of the gateway: one that names its clients (MX-20), and one that delivers by LMTP
//! (MX-15).

use anyhow::Result;
use shared::backend::Identity;
use shared::config::MxKind;
use tests::gateway_node::Settings;
use tests::sink::{Answer, Manners, Sink};

use super::*;

const XCLIENT: &str = "XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT";

/// A node that believes this host, and its owner, which is told clients.
async fn trusting(max_per_address: usize) -> Result<(Sink, GatewayNode)> {
    let mut manners = Manners::default();
    manners.keywords.push(XCLIENT);
    let old = Sink::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.identity = Identity::Xclient);
    let mut settings = Settings { max_per_address, ..Settings::default() };
    settings.rules.trusted_networks = vec!["127.0.0.0/8".parse()?];
    let node = GatewayNode::start_with([backend], settings)?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

#[tokio::test]
async fn whom_a_trusted_server_names_is_the_client_for_the_trace_and_for_the_owner() -> Result<()> {
    let (old, node) = trusting(1000).await?;
    let mut client = node.connect().await?;
    good(&mut client, "EHLO edge.example.org").await?;
    let named = "XCLIENT NAME=mail.example.net HELO=helo.example.net PROTO=ESMTP PORT=4711 \
                 DESTADDR=192.0.2.1 DESTPORT=25 ADDR=198.51.100.7";
    let again = client.command(named).await?;
    assert_eq!((again.code, again.lines[0].as_str()), (220, "mx.example.org ESMTP"));
    assert_eq!(client.send(SENDER, &[ANN], &smtp::message("x")).await?.code, 250);
    let text = old.messages()[0].text();
    let trace = "Received: from helo.example.net (mail.example.net [198.51.100.7])\r\n";
    assert!(text.starts_with(trace), "{text}");
    assert_eq!(
        old.heard("XCLIENT"),
        [
            "XCLIENT NAME=[TEMPUNAVAIL] HELO=helo.example.net PROTO=ESMTP PORT=4711 DESTADDR=192.0.2.1 \
          DESTPORT=25 ADDR=198.51.100.7"
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_client_behind_a_trusted_server_has_the_places_of_its_own_address() -> Result<()> {
    let (_old, node) = trusting(1).await?;
    let mut first = node.connect().await?;
    assert_eq!(first.command("XCLIENT ADDR=198.51.100.7").await?.code, 220);
    // The server's own place is free again.
    let mut second = node.connect().await?;
    assert_eq!(second.greeting.code, 220);
    let refused = second.command("XCLIENT ADDR=198.51.100.7").await?;
    assert_eq!(refused.to_string(), "421 4.7.0 Too many connections from your address");
    assert!(second.conversation.closed().await?.is_empty());
    drop(first);
    Ok(())
}

#[tokio::test]
async fn nobody_else_is_believed() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = node.connect().await?;
    let offered = good(&mut client, "EHLO client.example.com").await?;
    assert!(!offered.lines.iter().any(|line| line.starts_with("XCLIENT")), "{offered}");
    let refused = client.command("XCLIENT ADDR=198.51.100.7").await?;
    assert!(refused.to_string().starts_with("550 5.7.0 "), "{refused}");
    assert_eq!(client.send(SENDER, &[ANN], &smtp::message("x")).await?.code, 250);
    assert!(old.messages()[0].text().contains("[127.0.0.1]"));
    Ok(())
}

/// A node that speaks LMTP, with two owners.
async fn lmtp(old: Manners, new: Manners) -> Result<(Sink, Sink, GatewayNode)> {
    let (old, new) = (Sink::start("old", old).await?, Sink::start("new", new).await?);
    let settings = Settings { kind: MxKind::Lmtp, ..Settings::default() };
    let node = GatewayNode::start_with([old.configured(), new.configured()], settings)?;
    populate(&node);
    Ok((old, new, node))
}

async fn lmtp_envelope(node: &GatewayNode, to: &[&str]) -> Result<Smtp> {
    let mut client = node.connect().await?;
    good(&mut client, "LHLO filter.example.org").await?;
    good(&mut client, &format!("MAIL FROM:<{SENDER}>")).await?;
    for to in to {
        good(&mut client, &format!("RCPT TO:<{to}>")).await?;
    }
    Ok(client)
}

#[tokio::test]
async fn lmtp_has_a_reply_for_each_recipient_of_every_owner() -> Result<()> {
    let (old, new, node) = lmtp(Manners::default(), Manners::lmtp()).await?;
    let mut client = lmtp_envelope(&node, &[ANN, NED, ANN]).await?;
    let reply = message(&mut client).await?;
    assert_eq!(reply.code, 250, "{reply}");
    for _ in 0..2 {
        assert_eq!(client.reply().await?.code, 250);
    }
    // Nothing is left over: the next reply is the next command's.
    assert_eq!(client.command("NOOP").await?.to_string(), "250 2.0.0 Ok");
    assert_eq!((old.messages().len(), new.messages().len()), (1, 1));
    let text = old.messages()[0].text();
    assert!(text.contains(" with LMTP id "), "{text}");
    Ok(())
}

#[tokio::test]
async fn lmtp_refuses_each_recipient_of_a_message_that_nobody_takes() -> Result<()> {
    let spam = || Manners::default().but("(verdict)", Answer::Say("554 5.7.1 spam"));
    let (_old, _new, node) = lmtp(spam(), spam()).await?;
    let mut client = lmtp_envelope(&node, &[ANN, NED]).await?;
    let reply = message(&mut client).await?;
    assert_eq!(reply.code, 554, "{reply}");
    assert_eq!(client.reply().await?.code, 554);
    assert_eq!(client.command("NOOP").await?.to_string(), "250 2.0.0 Ok");
    Ok(())
}
