//! TLS on both legs: capabilities are told again, and what is said in the clear behind STARTTLS ends it all.

use std::sync::Arc;

use anyhow::Result;
use shared::backend::BackendTls;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, PASSWORD, Tls};
use tests::login_node::{LoginNode, Settings};
use tests::test_ca::{TestCa, server_name};

use super::{BROKEN, LATER, at, connect, good, is_at, listed, log_in, plain, settings};

const HOST: &str = "localhost";
const LIST: &str = "\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"\r\n\"STARTTLS\"";

fn to_backend(ca: &TestCa) -> Result<BackendTls> {
    Ok(BackendTls::StartTls(Arc::clone(ca.connector()?.config()), server_name(HOST)?))
}

/// A client from another host, which must use STARTTLS, and its backend.
async fn remote(ca: &TestCa) -> Result<(LoginBackend, LoginNode, Conversation)> {
    let old = LoginBackend::start("old", good()).await?;
    let tls = Some(Arc::clone(ca.issue(HOST)?.acceptor()?.config()));
    let settings = Settings { tls, proxied: true, ..settings() };
    let node = LoginNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    let mut client = Conversation::connect(node.address).await?;
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 4190\r\n").await?;
    let offered = listed(&mut client).await?;
    assert!(offered.contains(&"\"SASL\" \"\"".to_owned()), "{offered:?}");
    assert!(offered.contains(&"\"STARTTLS\"".to_owned()), "{offered:?}");
    Ok((old, node, client))
}

#[tokio::test]
async fn after_starttls_a_client_is_told_unasked_what_is_to_be_had_now() -> Result<()> {
    let ca = TestCa::new()?;
    let (_old, _node, mut client) = remote(&ca).await?;
    client.say("STARTTLS").await?;
    client.expect("OK").await?;
    client.start_tls(&ca.connector()?, HOST).await?;
    let offered = listed(&mut client).await?;
    assert!(offered.contains(&"\"SASL\" \"PLAIN\"".to_owned()), "{offered:?}");
    assert!(!offered.contains(&"\"STARTTLS\"".to_owned()), "{offered:?}");
    client.say(&plain("ann", PASSWORD)).await?;
    client.expect("OK \"Logged in.\"").await?;
    is_at(&mut client, "old").await
}

#[tokio::test]
async fn what_a_client_says_in_the_clear_behind_starttls_ends_the_connection() -> Result<()> {
    let ca = TestCa::new()?;
    let (old, _node, mut client) = remote(&ca).await?;
    client.send(format!("STARTTLS\r\n{}\r\n", plain("mallory", "stolen")).as_bytes()).await?;
    client.expect("OK").await?;
    assert!(client.closed().await?.is_empty());
    assert!(old.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_backend_is_logged_in_to_behind_its_fresh_capabilities() -> Result<()> {
    let ca = TestCa::new()?;
    let tls = Some(Tls::StartTls(ca.issue(HOST)?.acceptor()?));
    // What it lists in the clear is nothing that one could log in with.
    let greeting = "\"SASL\" \"\"\r\n\"STARTTLS\"\r\nOK \"ready\"\r\n";
    let manners = Manners { tls, greeting, capabilities: LIST, ..good() };
    let old = LoginBackend::start("old", manners).await?;
    let tls = to_backend(&ca)?;
    let node = at(old.configured_as(|endpoint| endpoint.tls = tls))?;
    let mut client = log_in(&node, "ann").await?;
    is_at(&mut client, "old").await?;
    let connection = &old.connections()[0];
    assert!(connection.secured && connection.logged_in);
    assert_eq!(connection.lines[0], "STARTTLS");
    assert!(connection.lines[1].starts_with("AUTHENTICATE"), "{:?}", connection.lines);
    node.set_owner("ann", "old");
    assert!(client.closed().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn what_a_backend_says_in_the_clear_behind_starttls_ends_the_attempt() -> Result<()> {
    let ca = TestCa::new()?;
    for injected in ["\"SASL\" \"PLAIN\"\r\nOK\r\n", "OK \"in\"\r\n", "\""] {
        let tls = Some(Tls::StartTls(ca.issue(HOST)?.acceptor()?));
        let manners = Manners { tls, capabilities: LIST, injected, ..good() };
        let old = LoginBackend::start("old", manners).await?;
        let tls = to_backend(&ca)?;
        let node = at(old.configured_as(|endpoint| endpoint.tls = tls))?;
        let mut client = connect(&node).await?;
        client.say(&plain("ann", PASSWORD)).await?;
        client.expect(LATER).await?;
        let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
        assert_eq!(connections[0].lines, ["STARTTLS"], "no password was said");
    }
    Ok(())
}

#[tokio::test]
async fn there_is_no_downgrade_from_starttls() -> Result<()> {
    let ca = TestCa::new()?;
    let old = LoginBackend::start("old", good()).await?;
    let tls = to_backend(&ca)?;
    let node = at(old.configured_as(|endpoint| endpoint.tls = tls))?;
    let mut client = connect(&node).await?;
    client.say(&plain("ann", PASSWORD)).await?;
    client.expect(BROKEN).await?;
    assert!(old.connections()[0].lines.is_empty());
    Ok(())
}
