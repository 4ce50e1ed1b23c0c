//! TLS on both legs: STARTTLS forgets, injections end the connection, nothing is downgraded.

use std::sync::Arc;

use anyhow::Result;
use shared::backend::BackendTls;
use tests::gateway_node::Settings;
use tests::sink::{Manners, Sink};
use tests::test_ca::{TestCa, server_name};

use super::*;

const MX: &str = "mx.example.org";
const OWNER: &str = "old.internal";

async fn with_starttls(ca: &TestCa) -> Result<(Sink, GatewayNode)> {
    let old = Sink::start("old", Manners::default()).await?;
    let tls = Some(Arc::clone(ca.issue(MX)?.acceptor()?.config()));
    let node =
        GatewayNode::start_with([old.configured()], Settings { tls, ..Settings::default() })?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

/// A node whose owner is reached by STARTTLS under that name.
async fn to_owner(ca: &TestCa, manners: Manners, name: &str) -> Result<(Sink, GatewayNode)> {
    let old = Sink::start("old", manners).await?;
    let (config, name) = (Arc::clone(ca.connector()?.config()), server_name(name)?);
    let backend = old.configured_as(|endpoint| endpoint.tls = BackendTls::StartTls(config, name));
    let node = GatewayNode::start([backend])?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

async fn refused(node: &GatewayNode) -> Result<()> {
    let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
    assert!(reply.to_string().starts_with("451 4.4.1 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn a_client_secures_its_session() -> Result<()> {
    let ca = TestCa::new()?;
    let (old, node) = with_starttls(&ca).await?;
    let mut client = node.connect().await?;
    let offered = good(&mut client, "EHLO c").await?;
    assert!(offered.lines.contains(&"STARTTLS".to_owned()), "{offered}");
    client.start_tls(&ca.connector()?, MX).await?;
    let offered = good(&mut client, "EHLO c").await?;
    assert!(!offered.lines.contains(&"STARTTLS".to_owned()), "{offered}");
    good(&mut client, "MAIL FROM:<>").await?;
    good(&mut client, "RCPT TO:<ann@example.org>").await?;
    assert_eq!(message(&mut client).await?.code, 250);
    let text = old.messages()[0].text();
    assert!(text.contains(" with ESMTPS id ") && text.contains("(using TLSv1.3 "), "{text}");
    Ok(())
}

#[tokio::test]
async fn what_was_said_in_the_clear_is_forgotten() -> Result<()> {
    let ca = TestCa::new()?;
    let (_old, node) = with_starttls(&ca).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    assert_eq!(client.command("STARTTLS").await?.code, 220);
    client.conversation.start_tls(&ca.connector()?, MX).await?;
    assert_eq!(client.command("DATA").await?.code, 503);
    assert_eq!(client.command("MAIL FROM:<>").await?.code, 503);
    good(&mut client, "EHLO c").await?;
    good(&mut client, "MAIL FROM:<>").await?;
    assert_eq!(client.command("DATA").await?.code, 554);
    Ok(())
}

#[tokio::test]
async fn commands_injected_before_the_handshake_end_the_session() -> Result<()> {
    let ca = TestCa::new()?;
    let (old, node) = with_starttls(&ca).await?;
    let mut client = node.connect().await?;
    good(&mut client, "EHLO c").await?;
    client.conversation.send(b"STARTTLS\r\nMAIL FROM:<evil@example.com>\r\n").await?;
    assert_eq!(client.conversation.closed().await?, Vec::<String>::new());
    assert!(old.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn an_owner_is_secured_before_anything_is_told_it() -> Result<()> {
    let ca = TestCa::new()?;
    let tls = Some(ca.issue(OWNER)?.acceptor()?);
    let (old, node) = to_owner(&ca, Manners { tls, ..Manners::default() }, OWNER).await?;
    let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
    assert_eq!(reply.code, 250, "{reply}");
    let connection = &old.connections()[0];
    assert!(connection.secured);
    let verbs: Vec<&str> = connection.lines.iter().map(|line| &line[..4]).collect();
    assert_eq!(verbs, ["EHLO", "STAR", "EHLO", "MAIL", "RCPT", "DATA"]);
    Ok(())
}

#[tokio::test]
async fn an_owner_that_offers_no_starttls_gets_nothing() -> Result<()> {
    let ca = TestCa::new()?;
    let (old, node) = to_owner(&ca, Manners::default(), OWNER).await?;
    refused(&node).await?;
    assert!(old.heard("MAIL").is_empty());
    Ok(())
}

#[tokio::test]
async fn an_owner_with_anothers_certificate_gets_nothing() -> Result<()> {
    let (ca, other) = (TestCa::new()?, TestCa::new()?);
    for acceptor in [ca.issue("new.internal")?.acceptor()?, other.issue(OWNER)?.acceptor()?] {
        let manners = Manners { tls: Some(acceptor), ..Manners::default() };
        let (old, node) = to_owner(&ca, manners, OWNER).await?;
        refused(&node).await?;
        assert!(old.heard("MAIL").is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn replies_injected_before_the_handshake_end_the_connection() -> Result<()> {
    let ca = TestCa::new()?;
    let tls = Some(ca.issue(OWNER)?.acceptor()?);
    let manners = Manners { tls, injected: "250 2.0.0 injected\r\n", ..Manners::default() };
    let (old, node) = to_owner(&ca, manners, OWNER).await?;
    refused(&node).await?;
    assert!(old.heard("MAIL").is_empty());
    Ok(())
}
