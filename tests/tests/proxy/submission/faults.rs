//! Backends that are slow, silent, out of order or hostile: each is a bounded, honest refusal, and the
//! client may go on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use shared::backend::BackendTls;
use tests::login_backend::{Manners, Then, Tls, Verdict};
use tests::test_ca::{TestCa, server_name};

use super::*;

/// Short, where it must be waited for.
const SHORT: Duration = Duration::from_millis(300);

async fn heard_of(manners: Manners) -> Result<String> {
    let (old, node) = alone(manners).await?;
    let said = refused(&node).await?;
    let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
    assert!(!connections[0].logged_in);
    assert_eq!(connections.len(), 1, "one attempt, one connection");
    assert_eq!(node.ownership.registry().counts(), (0, 0));
    Ok(said)
}

#[tokio::test]
async fn a_backend_that_is_not_there_or_says_nothing_is_unavailable() -> Result<()> {
    for manners in [
        Manners { greeting: "", then: Then::Hang, ..manners() },
        Manners { greeting: "220 rea", then: Then::Hang, ..manners() },
        Manners { greeting: "220-ready\r\n", then: Then::Hang, ..manners() },
        Manners { then: Then::Hang, ..manners() },
        Manners { verdict: Verdict::Say(""), ..manners() },
        Manners { verdict: Verdict::Say("235-wait\r\n"), ..manners() },
    ] {
        let old = LoginBackend::start("old", manners).await?;
        let backend = old.configured_as(|endpoint| endpoint.reply_timeout = SHORT);
        let node = LoginNode::start_with([backend], settings())?;
        node.set_owner("ann", "old");
        assert_eq!(refused(&node).await?, LATER);
        old.until("the attempt is closed", |all| all[0].closed).await?;
    }
    let old = LoginBackend::start("old", manners()).await?;
    let backend = old.configured_as(|endpoint| endpoint.hosts[0].port = 1);
    let node = LoginNode::start_with([backend], settings())?;
    node.set_owner("ann", "old");
    assert_eq!(refused(&node).await?, LATER);
    Ok(())
}

#[tokio::test]
async fn a_backend_that_speaks_and_never_comes_to_the_point_is_cut_off() -> Result<()> {
    for manners in [
        Manners { greeting: "", then: Then::Flood("x"), ..manners() },
        Manners { greeting: "", then: Then::Flood("220-ready\r\n"), ..manners() },
        Manners { then: Then::Flood("250-SIZE 1\r\n"), ..manners() },
        Manners { verdict: Verdict::Flood("235-in\r\n"), ..manners() },
        Manners { verdict: Verdict::Flood("x"), ..manners() },
    ] {
        let said = heard_of(manners).await?;
        assert!(said == LATER || said == BROKEN, "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_greeting_that_is_a_no_or_none_is_not_joined() -> Result<()> {
    for (greeting, expected) in [
        ("421 4.3.2 closing\r\n", LATER),
        ("450 4.7.1 not now\r\n", LATER),
        ("554 5.7.1 go away\r\n", BROKEN),
        ("354 go on\r\n", BROKEN),
        ("* OK ready\r\n", BROKEN),
        ("220-ready\r\n250 ready\r\n", BROKEN),
        ("HTTP/1.1 400 Bad Request\r\n", BROKEN),
    ] {
        assert_eq!(heard_of(Manners { greeting, ..manners() }).await?, expected, "{greeting:?}");
    }
    Ok(())
}

#[tokio::test]
async fn each_refusal_of_a_backend_is_passed_on_by_its_cause() -> Result<()> {
    for (verdict, expected) in [
        ("535 5.7.8 no\r\n", WRONG),
        ("535 no\r\n", WRONG),
        ("535-5.7.8 no\r\n535 5.7.8 really\r\n", WRONG),
        ("525 5.7.13 disabled\r\n", WRONG),
        ("454 4.7.0 later\r\n", LATER),
        ("421 4.3.2 closing\r\n", LATER),
        ("450 later\r\n", LATER),
        ("534 5.7.9 too weak\r\n", BROKEN),
        ("538 5.7.11 TLS\r\n", BROKEN),
        ("530 5.7.0 STARTTLS\r\n", BROKEN),
        ("503 5.5.1 what\r\n", BROKEN),
        ("250 Ok\r\n", BROKEN),
        ("535-a\r\n454 b\r\n", BROKEN),
        ("yes\r\n", BROKEN),
        ("\r\n", BROKEN),
        // More than PLAIN has, a no in disguise, and what is no challenge at all.
        ("334 \r\n", BROKEN),
        ("334 5.7.8 Second factor required.\r\n", WRONG),
        ("334 Password:\r\n", BROKEN),
    ] {
        let said = heard_of(Manners { verdict: Verdict::Say(verdict), ..manners() }).await?;
        assert_eq!(said, expected, "{verdict:?}");
    }
    Ok(())
}

#[tokio::test]
async fn too_many_sessions_are_told_with_421_and_the_connection_ends() -> Result<()> {
    let verdict = "421 4.7.0 Maximum number of connections from user+IP exceeded\r\n";
    let (_old, node) = alone(Manners { verdict: Verdict::Say(verdict), ..manners() }).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", "secret")).await?;
    assert_eq!(client.closed().await?, ["421 4.7.0 Too many connections of this user"]);
    Ok(())
}

/// A long response goes in two steps, so that a no may come to the first.
#[tokio::test]
async fn a_no_before_the_password_is_no_wrong_password() -> Result<()> {
    let then = Then::Flood("250 AUTH PLAIN\r\n535 5.7.8 what\r\n");
    let (old, node) = alone(Manners { then, greeting: "220 x\r\n250-x\r\n", ..manners() }).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", &"p".repeat(500))).await?;
    client.expect(BROKEN).await?;
    old.until("the attempt is closed", |all| all[0].closed).await?;
    Ok(())
}

async fn over_starttls(ca: &TestCa, manners: Manners) -> Result<(LoginBackend, LoginNode)> {
    let old = LoginBackend::start("old", manners).await?;
    let (config, name) = (Arc::clone(ca.connector()?.config()), server_name("localhost")?);
    let tls = BackendTls::StartTls(config, name);
    let backend = old.configured_as(|endpoint| endpoint.tls = tls);
    let node = LoginNode::start_with([backend], settings())?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

#[tokio::test]
async fn a_backend_is_greeted_again_after_starttls() -> Result<()> {
    let ca = TestCa::new()?;
    let tls = Some(Tls::StartTls(ca.issue("localhost")?.acceptor()?));
    let capabilities = "STARTTLS, AUTH PLAIN";
    let (old, node) = over_starttls(&ca, Manners { tls, capabilities, ..manners() }).await?;
    let mut client = log_in(&node, "ann").await?;
    client.say("NOOP").await?;
    client.expect("250 2.0.0 done at old").await?;
    let connection = &old.connections()[0];
    assert!(connection.secured);
    let ehlo = "EHLO client.example.org";
    assert_eq!(connection.lines[..3], [ehlo, "STARTTLS", ehlo]);
    Ok(())
}

#[tokio::test]
async fn there_is_no_downgrade_from_starttls() -> Result<()> {
    let ca = TestCa::new()?;
    let (old, node) = over_starttls(&ca, manners()).await?;
    assert_eq!(refused(&node).await?, BROKEN);
    assert_eq!(old.connections()[0].lines, ["EHLO client.example.org"]);
    Ok(())
}

#[tokio::test]
async fn what_a_backend_says_in_the_clear_behind_starttls_ends_the_attempt() -> Result<()> {
    let ca = TestCa::new()?;
    for injected in ["250 AUTH PLAIN\r\n", "235 in\r\n"] {
        let tls = Some(Tls::StartTls(ca.issue("localhost")?.acceptor()?));
        let capabilities = "STARTTLS, AUTH PLAIN";
        let manners = Manners { tls, capabilities, injected, ..manners() };
        let (old, node) = over_starttls(&ca, manners).await?;
        assert_eq!(refused(&node).await?, LATER);
        let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
        assert_eq!(connections[0].lines.len(), 2, "no password was said: {connections:?}");
    }
    Ok(())
}
