//! How clients speak: in groups, too early, too much, not at all; and when the service stops.

use std::time::Duration;

use anyhow::Result;
use tests::conversation::Conversation;
use tests::gateway_node::Settings;
use tests::sink::{Answer, Manners, Sink};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn a_whole_transaction_comes_in_two_groups() -> Result<()> {
    let stage = Stage::set().await?;
    let mut client = stage.node.connect().await?;
    let group = format!(
        "EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<{ANN}>\r\nRCPT TO:<x@elsewhere.example>\r\n\
         RCPT TO:<{NED}>\r\nDATA\r\n"
    );
    client.conversation.send(group.as_bytes()).await?;
    for expected in [250, 250, 250, 550, 250, 354] {
        assert_eq!(client.reply().await?.code, expected);
    }
    client.conversation.send(b"Subject: x\r\n\r\n.\r\nQUIT\r\n").await?;
    assert_eq!(client.reply().await?.code, 250);
    assert_eq!(client.reply().await?.code, 221);
    client.conversation.closed().await?;
    assert_eq!(
        (stage.old.recipients(), stage.new.recipients()),
        (vec![ANN.into()], vec![NED.into()])
    );
    Ok(())
}

#[tokio::test]
async fn an_answer_waits_for_no_later_one() -> Result<()> {
    let manners = Manners::default().but("RCPT TO:<ben@", Answer::Ask).but("RSET", Answer::Ask);
    let (mut old, node) = alone(manners).await?;
    let mut client = node.connect().await?;
    good(&mut client, "EHLO c").await?;
    let group = format!("MAIL FROM:<>\r\nRCPT TO:<{ANN}>\r\nRCPT TO:<{BEN}>\r\nRSET\r\nNOOP\r\n");
    client.conversation.send(group.as_bytes()).await?;
    let asked = old.asked().await?;
    for _ in 0..2 {
        assert_eq!(client.reply().await?.code, 250);
    }
    assert!(asked.say("250 2.1.5 Ok"));
    let asked = old.asked().await?;
    for _ in 0..2 {
        assert_eq!(client.reply().await?.code, 250);
    }
    assert!(asked.say("250 2.0.0 Ok"));
    assert_eq!(client.reply().await?.code, 250);
    Ok(())
}

#[tokio::test]
async fn several_messages_come_on_one_connection() -> Result<()> {
    let stage = Stage::set().await?;
    let mut client = stage.node.connect().await?;
    for _ in 0..3 {
        assert_eq!(client.send(SENDER, &[ANN, NED], &smtp::message("x")).await?.code, 250);
    }
    assert_eq!((stage.old.messages().len(), stage.new.messages().len()), (3, 3));
    Ok(())
}

#[tokio::test]
async fn a_client_that_does_not_wait_for_354_is_sent_away() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    client.conversation.send(b"DATA\r\nSubject: x\r\n\r\n.\r\nQUIT\r\n").await?;
    assert!(client.reply().await?.to_string().starts_with("554 5.5.0 "));
    client.conversation.closed().await?;
    assert!(old.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_client_that_speaks_before_the_greeting_is_sent_away() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    // The header of the PROXY protocol and what the client says come in one segment.
    let settings = Settings { proxied: true, ..Settings::default() };
    let node = GatewayNode::start_with([old.configured()], settings)?;
    let mut socket = TcpStream::connect(node.address).await?;
    socket.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 25\r\nEHLO c\r\n").await?;
    let mut said = String::new();
    socket.read_to_string(&mut said).await?;
    assert_eq!(said, "554 5.5.0 Wait for the greeting\r\n");
    Ok(())
}

#[tokio::test]
async fn another_protocols_client_is_cut_off() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = node.connect().await?.conversation;
    let post = "POST / HTTP/1.1\r\nHost: mx\r\n\r\nEHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\n";
    client.send(post.as_bytes()).await?;
    let said = client.closed().await?;
    assert_eq!(said, ["521 5.5.1 This is SMTP"]);
    assert!(old.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_silent_client_is_sent_away() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let mut settings = Settings::default();
    settings.rules.command_timeout = Duration::from_millis(50);
    settings.rules.data_timeout = Duration::from_millis(50);
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    let mut client = Conversation::connect(node.address).await?;
    client.expect("220 ").await?;
    client.expect("421 4.4.2 ").await?;
    client.closed().await?;
    let mut client = node.connect().await?;
    client
        .conversation
        .send(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n")
        .await?;
    while client.reply().await?.code != 354 {}
    client.conversation.expect("421 4.4.2 ").await?;
    client.conversation.closed().await?;
    assert!(old.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_stop_lets_the_message_in_hand_finish() -> Result<()> {
    let (mut old, node) = alone(Manners::default().but("(verdict)", Answer::Ask)).await?;
    let mut idle = node.connect().await?;
    let mut receiving = envelope(&node, &[ANN]).await?;
    good(&mut receiving, "DATA").await?;
    let mut delivering = envelope(&node, &[BEN]).await?;
    say_message(&mut delivering).await?;
    let first = old.asked().await?;

    let stopping = node.shut_down(tests::patience::PATIENCE);
    let clients = async {
        idle.conversation.expect("421 4.3.2 ").await?;
        receiving.conversation.send(b"Subject: x\r\n\r\nhello\r\n.\r\n").await?;
        let second = old.asked().await?;
        for asked in [first, second] {
            assert!(asked.say("250 2.0.0 Ok"));
        }
        for client in [&mut receiving, &mut delivering] {
            assert_eq!(client.reply().await?.code, 250);
            client.conversation.expect("421 4.3.2 ").await?;
            client.conversation.closed().await?;
        }
        anyhow::Ok(())
    };
    let (left, clients) = tokio::join!(stopping, clients);
    clients?;
    assert_eq!(left, 0);
    Ok(())
}

#[tokio::test]
async fn a_client_that_talks_on_is_stopped_too() -> Result<()> {
    let (_old, node) = alone(Manners::default()).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    node.lifecycle.stop().cancel();
    client.conversation.send("RSET\r\nMAIL FROM:<>\r\n".repeat(20).as_bytes()).await.ok();
    let said = client.conversation.closed().await?;
    assert!(said.last().is_some_and(|line| line.starts_with("421 4.3.2 ")), "{said:?}");
    assert!(said.len() <= 2, "{said:?}");
    Ok(())
}

#[tokio::test]
async fn the_end_of_the_grace_leaves_messages_with_their_senders() -> Result<()> {
    let (mut old, node) = alone(Manners::default().but("(verdict)", Answer::Ask)).await?;
    let mut receiving = envelope(&node, &[ANN]).await?;
    good(&mut receiving, "DATA").await?;
    let mut delivering = envelope(&node, &[BEN]).await?;
    say_message(&mut delivering).await?;
    let _asked = old.asked().await?;
    let left = node.shut_down(Duration::from_millis(50)).await;
    assert!(delivering.reply().await?.to_string().starts_with("451 4."));
    receiving.conversation.expect("421 4.3.2 ").await?;
    assert_eq!(left, 0);
    Ok(())
}
