//! TLS on both legs, and plaintext where TLS must begin (study of STARTTLS injection).

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use shared::backend::BackendTls;
use tests::conversation::Conversation;
use tests::imap::Imap;
use tests::login_backend::{LoginBackend, Manners, Tls};
use tests::login_node::{LoginNode, Settings};
use tests::test_ca::{TestCa, server_name};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::alone;

const HOST: &str = "localhost";

fn to_backend(ca: &TestCa, implicit: bool) -> Result<BackendTls> {
    let (config, name) = (Arc::clone(ca.connector()?.config()), server_name(HOST)?);
    Ok(if implicit {
        BackendTls::Implicit(config, name)
    } else {
        BackendTls::StartTls(config, name)
    })
}

/// A node whose clients speak TLS, with a backend that does not.
async fn client_side(ca: &TestCa, implicit_tls: bool) -> Result<(LoginBackend, LoginNode)> {
    let old = LoginBackend::start("old", Manners::default()).await?;
    let tls = Some(Arc::clone(ca.issue(HOST)?.acceptor()?.config()));
    let settings = Settings { tls, implicit_tls, proxied: !implicit_tls, ..Settings::default() };
    let node = LoginNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

/// A client from another host, which must use STARTTLS.
async fn remote(node: &LoginNode) -> Result<Conversation> {
    let mut client = Conversation::connect(node.address).await?;
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 143\r\n").await?;
    let greeting = client.expect("* OK [CAPABILITY ").await?;
    assert!(greeting.contains("STARTTLS LOGINDISABLED"), "{greeting}");
    Ok(client)
}

#[tokio::test]
async fn a_client_logs_in_over_implicit_tls() -> Result<()> {
    let ca = TestCa::new()?;
    let (_old, node) = client_side(&ca, true).await?;
    let mut client = Imap::connect_tls(node.address, &ca.connector()?, HOST).await?;
    assert!(client.greeting.contains("AUTH=PLAIN") && !client.greeting.contains("STARTTLS"));
    client.log_in("ann@example.org", "secret").await?;
    assert_eq!(client.command("NOOP").await?.tagged, "OK done at old");
    Ok(())
}

#[tokio::test]
async fn after_starttls_a_client_logs_in_and_is_offered_no_second_one() -> Result<()> {
    let ca = TestCa::new()?;
    let (_old, node) = client_side(&ca, false).await?;
    let mut client = remote(&node).await?;
    client.say("a STARTTLS").await?;
    client.expect("a OK").await?;
    client.start_tls(&ca.connector()?, HOST).await?;
    client.say("b CAPABILITY").await?;
    let offered = client.expect("* CAPABILITY").await?;
    assert!(offered.contains("AUTH=PLAIN") && !offered.contains("STARTTLS"), "{offered}");
    client.expect("b OK").await?;
    client.say("c LOGIN ann@example.org secret").await?;
    client.expect("* CAPABILITY").await?;
    client.expect("c OK").await?;
    Ok(())
}

#[tokio::test]
async fn what_a_client_says_in_the_clear_behind_starttls_ends_the_connection() -> Result<()> {
    let ca = TestCa::new()?;
    let (old, node) = client_side(&ca, false).await?;
    let mut client = remote(&node).await?;
    client.send(b"a STARTTLS\r\nb LOGIN mallory@example.org stolen\r\n").await?;
    client.expect("a OK").await?;
    assert!(client.closed().await?.is_empty());
    assert!(old.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_backend_is_logged_in_to_over_tls() -> Result<()> {
    let ca = TestCa::new()?;
    for implicit in [true, false] {
        let acceptor = ca.issue(HOST)?.acceptor()?;
        let tls = if implicit { Tls::Implicit(acceptor) } else { Tls::StartTls(acceptor) };
        let capabilities = "IMAP4rev1 STARTTLS SASL-IR AUTH=PLAIN";
        let manners = Manners { tls: Some(tls), capabilities, ..Manners::default() };
        let old = LoginBackend::start("old", manners).await?;
        let tls = to_backend(&ca, implicit)?;
        let node = LoginNode::start([old.configured_as(|endpoint| endpoint.tls = tls)])?;
        node.set_owner("ann", "old");
        let mut client = node.log_in("ann").await?;
        client.say("a NOOP").await?;
        client.expect("a OK done at old").await?;
        let connection = &old.connections()[0];
        assert!(connection.secured && connection.logged_in);
        if !implicit {
            assert_eq!(connection.lines[..2], ["S STARTTLS", "C CAPABILITY"]);
        }
        node.set_owner("ann", "old");
        assert!(client.closed().await?.is_empty());
    }
    Ok(())
}

/// What is injected between the OK and the handshake must neither be taken for TLS's nor for the server's.
#[tokio::test]
async fn what_a_backend_says_in_the_clear_behind_starttls_ends_the_attempt() -> Result<()> {
    let ca = TestCa::new()?;
    for injected in
        ["* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n", "L OK in\r\n", "* PREAUTH\r\nL OK in\r\n"]
    {
        let manners = Manners {
            tls: Some(Tls::StartTls(ca.issue(HOST)?.acceptor()?)),
            capabilities: "IMAP4rev1 STARTTLS SASL-IR AUTH=PLAIN",
            injected,
            ..Manners::default()
        };
        let old = LoginBackend::start("old", manners).await?;
        let tls = to_backend(&ca, false)?;
        let node = LoginNode::start([old.configured_as(|endpoint| endpoint.tls = tls)])?;
        node.set_owner("ann", "old");
        let mut client = node.connect().await?;
        client.say("a LOGIN ann@example.org secret").await?;
        client.expect("a NO [UNAVAILABLE]").await?;
        let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
        assert_eq!(connections[0].lines, ["S STARTTLS"], "no password was said");
    }
    Ok(())
}

#[tokio::test]
async fn there_is_no_downgrade_from_starttls() -> Result<()> {
    let ca = TestCa::new()?;
    let old = LoginBackend::start("old", Manners::default()).await?;
    let tls = to_backend(&ca, false)?;
    let node = LoginNode::start([old.configured_as(|endpoint| endpoint.tls = tls)])?;
    node.set_owner("ann", "old");
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    client.expect("a NO [SERVERBUG]").await?;
    assert!(old.connections()[0].lines.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_backend_that_cannot_prove_its_name_gets_no_password() -> Result<()> {
    let (ca, other) = (TestCa::new()?, TestCa::new()?);
    let manners = |issuer: &TestCa, name: &str| -> Result<Manners> {
        let tls = Some(Tls::Implicit(issuer.issue(name)?.acceptor()?));
        Ok(Manners { tls, ..Manners::default() })
    };
    for manners in [manners(&other, HOST)?, manners(&ca, "elsewhere.example")?] {
        let old = LoginBackend::start("old", manners).await?;
        let tls = to_backend(&ca, true)?;
        let node = LoginNode::start([old.configured_as(|endpoint| endpoint.tls = tls)])?;
        node.set_owner("ann", "old");
        let mut client = node.connect().await?;
        client.say("a LOGIN ann@example.org secret").await?;
        client.expect("a NO [UNAVAILABLE]").await?;
        assert!(old.connections()[0].logins.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_never_shakes_hands_does_not_delay_a_stop() -> Result<()> {
    let ca = TestCa::new()?;
    let (_old, node) = client_side(&ca, true).await?;
    let mut silent = Conversation::connect(node.address).await?;
    let talking = || (node.lifecycle.tasks() > 1).then_some(());
    tests::patience::until("the connection to be accepted", talking).await?;
    node.lifecycle.stop().cancel();
    assert!(silent.closed().await?.is_empty());
    Ok(())
}

/// Without an endpoint there is nothing to log in to; the row is right and the configuration is not.
#[tokio::test]
async fn a_backend_without_imap_is_a_fault_of_ours() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    drop(node);
    let mut backend = old.configured();
    backend.imap = None;
    let node = LoginNode::start([backend])?;
    node.set_owner("ann", "old");
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    client.expect("a NO [SERVERBUG]").await?;
    Ok(())
}

/// What stands before `backend` as it starts again: the first connection is closed at once, the second one
/// gets through.
async fn starting_again(backend: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        drop(listener.accept().await?);
        let (mut front, _) = listener.accept().await?;
        let mut back = TcpStream::connect(backend).await?;
        copy_bidirectional(&mut front, &mut back).await
    });
    Ok(address)
}

#[tokio::test]
async fn a_backend_that_starts_again_has_a_second_chance() -> Result<()> {
    let ca = TestCa::new()?;
    let tls = Some(Tls::Implicit(ca.issue(HOST)?.acceptor()?));
    let old = LoginBackend::start("old", Manners { tls, ..Manners::default() }).await?;
    let (port, to_backend) = (starting_again(old.address).await?.port(), to_backend(&ca, true)?);
    let node = LoginNode::start([old.configured_as(|endpoint| {
        endpoint.hosts[0].port = port;
        endpoint.tls = to_backend;
    })])?;
    node.set_owner("ann", "old");
    let mut client = node.log_in("ann").await?;
    client.say("a NOOP").await?;
    client.expect("a OK done at old").await?;
    Ok(())
}
