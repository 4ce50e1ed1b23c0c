//! Backends that are slow, silent, out of order or hostile, and TLS that does not begin as it should.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use shared::backend::{Backend, BackendTls};
use tests::conversation::Conversation;
use tests::login_backend::{Connection, LoginBackend, Manners, Then, Tls, Verdict};
use tests::login_node::{LoginNode, Settings};
use tests::test_ca::{TestCa, server_name};

use super::{manners, offering, saying, settings, try_in, xoauth2};
use crate::alone;

const HOST: &str = "localhost";
/// Short, where it must be waited for.
const SHORT: Duration = Duration::from_millis(300);

fn at(backend: Backend) -> Result<LoginNode> {
    let node = LoginNode::start_with([backend], settings())?;
    node.set_owner("ann", "old");
    Ok(node)
}

/// What a client hears, which may go on afterwards.
async fn refused(node: &LoginNode) -> Result<String> {
    let mut client = node.connect().await?;
    try_in(&mut client, "ann@example.org", "secret").await?;
    let said = client.line().await?;
    client.say("NOOP").await?;
    client.expect("+OK").await?;
    Ok(said)
}

/// What a client hears of a backend with such manners, and that the connection there is closed.
async fn heard_of(manners: Manners) -> Result<(String, Connection)> {
    let (old, node) = alone(manners).await?;
    let said = refused(&node).await?;
    let mut connections = old.until("the attempt is closed", |all| all[0].closed).await?;
    assert_eq!(connections.len(), 1, "one attempt, one connection");
    assert_eq!(node.ownership.registry().counts(), (0, 0));
    Ok((said, connections.remove(0)))
}

#[tokio::test]
async fn a_backend_that_says_nothing_is_unavailable() -> Result<()> {
    for manners in [
        Manners { greeting: "", then: Then::Hang, ..manners() },
        Manners { greeting: "+OK rea", then: Then::Hang, ..manners() },
        Manners { then: Then::Hang, ..manners() },
        Manners { capabilities: "TOP\r\nand so on, until\r\n.\r\n+", ..saying("") },
        saying(""),
        saying("+O"),
    ] {
        let old = LoginBackend::start("old", manners).await?;
        let node = at(old.configured_as(|endpoint| endpoint.reply_timeout = SHORT))?;
        let said = refused(&node).await?;
        assert!(said.starts_with("-ERR [SYS/TEMP]") || said.starts_with("-ERR [SYS/PERM]"));
        old.until("the attempt is closed", |all| all[0].closed).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_speaks_and_never_comes_to_the_point_is_cut_off() -> Result<()> {
    for manners in [
        Manners { greeting: "", then: Then::Flood("x"), ..manners() },
        Manners { greeting: "", then: Then::Flood("+OK hello\r\n"), ..manners() },
        Manners { then: Then::Flood("+OK still\r\n"), ..manners() },
        Manners { then: Then::Flood("X\r\n"), ..manners() },
        Manners { verdict: Verdict::Flood("x"), ..manners() },
        Manners { verdict: Verdict::Flood("+ \r\n"), ..manners() },
    ] {
        let (said, connection) = heard_of(manners).await?;
        assert!(said.starts_with("-ERR [SYS/TEMP]") || said.starts_with("-ERR [SYS/PERM]"));
        assert!(!connection.logged_in);
    }
    Ok(())
}

#[tokio::test]
async fn a_greeting_that_is_a_refusal_counts_by_its_code() -> Result<()> {
    for (greeting, expected) in [
        ("-ERR [SYS/TEMP] later\r\n", "-ERR [SYS/TEMP]"),
        ("-ERR [IN-USE] Maximum number of connections exceeded\r\n", "-ERR [IN-USE]"),
        ("-ERR [SYS/PERM] never\r\n", "-ERR [SYS/PERM]"),
        ("-ERR going down\r\n", "-ERR [SYS/TEMP]"),
        ("-ERR [AUTH] not you\r\n", "-ERR [SYS/PERM]"),
        ("+ what\r\n", "-ERR [SYS/PERM]"),
        ("* OK IMAP4rev1\r\n", "-ERR [SYS/PERM]"),
        ("HTTP/1.1 400 Bad Request\r\n", "-ERR [SYS/PERM]"),
    ] {
        let (said, connection) = heard_of(Manners { greeting, ..manners() }).await?;
        assert!(said.starts_with(expected), "{greeting:?}: {said}");
        assert!(connection.lines.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn each_refusal_of_a_backend_is_passed_on_by_its_cause() -> Result<()> {
    for (verdict, expected) in [
        ("-ERR [AUTH] Authentication failed.\r\n", "[AUTH]"),
        ("-ERR Invalid login\r\n", "[AUTH]"),
        ("-ERR\r\n", "[AUTH]"),
        ("-ERR [SYS/TEMP] later\r\n", "[SYS/TEMP]"),
        ("-ERR [LOGIN-DELAY] minimum is 60\r\n", "[SYS/TEMP]"),
        ("-ERR [IN-USE] locked\r\n", "[IN-USE]"),
        ("-ERR [SYS/TEMP] Maximum number of connections from user+IP exceeded\r\n", "[IN-USE]"),
        ("-ERR [SYS/PERM] never\r\n", "[SYS/PERM]"),
        ("-ERR [REFERRAL/pop://ann@elsewhere.example] go\r\n", "[SYS/PERM]"),
        ("+ bW9yZQ==\r\n", "[SYS/PERM]"),
        ("+ not base64!\r\n", "[SYS/PERM]"),
        ("OK in\r\n", "[SYS/PERM]"),
        ("+OKAY\r\n", "[SYS/PERM]"),
        ("\r\n", "[SYS/PERM]"),
    ] {
        let (said, _) = heard_of(saying(verdict)).await?;
        assert!(said.starts_with(&format!("-ERR {expected}")), "{verdict:?}: {said}");
    }
    Ok(())
}

/// Without tags, a word too many would be taken for the answer to the next command: here, for the yes.
#[tokio::test]
async fn a_backend_that_speaks_out_of_turn_gets_no_password() -> Result<()> {
    for manners in [
        Manners { greeting: "+OK ready\r\n+OK in\r\n", ..manners() },
        Manners { capabilities: "USER\r\n.\r\n+OK in\r\n+OK in", ..manners() },
    ] {
        let (said, connection) = heard_of(manners).await?;
        assert!(said.starts_with("-ERR [SYS/PERM]"), "{said}");
        assert!(connection.logins.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_challenge_that_is_not_base64_reaches_no_client() -> Result<()> {
    let (_old, node) = offering("SASL XOAUTH2", Verdict::Say("+ enter your code!\r\n")).await?;
    let mut client = node.connect().await?;
    client.say(&format!("AUTH XOAUTH2 {}", xoauth2("t"))).await?;
    client.expect("-ERR [SYS/PERM]").await?;
    Ok(())
}

fn to_backend(ca: &TestCa, implicit: bool) -> Result<BackendTls> {
    let (config, name) = (Arc::clone(ca.connector()?.config()), server_name(HOST)?);
    Ok(if implicit {
        BackendTls::Implicit(config, name)
    } else {
        BackendTls::StartTls(config, name)
    })
}

#[tokio::test]
async fn a_backend_is_logged_in_to_over_tls() -> Result<()> {
    let ca = TestCa::new()?;
    for implicit in [true, false] {
        let acceptor = ca.issue(HOST)?.acceptor()?;
        let tls = if implicit { Tls::Implicit(acceptor) } else { Tls::StartTls(acceptor) };
        let old = LoginBackend::start("old", Manners { tls: Some(tls), ..manners() }).await?;
        let tls = to_backend(&ca, implicit)?;
        let node = at(old.configured_as(|endpoint| endpoint.tls = tls))?;
        let mut client = node.log_in("ann").await?;
        client.say("STAT").await?;
        client.expect("+OK done at old").await?;
        let connection = &old.connections()[0];
        assert!(connection.secured && connection.logged_in);
        let before = if implicit { &["CAPA"][..] } else { &["STLS", "CAPA"] };
        assert_eq!(connection.lines[..before.len()], *before);
    }
    Ok(())
}

#[tokio::test]
async fn there_is_no_downgrade_from_starttls() -> Result<()> {
    let ca = TestCa::new()?;
    let old = LoginBackend::start("old", manners()).await?;
    let tls = to_backend(&ca, false)?;
    let node = at(old.configured_as(|endpoint| endpoint.tls = tls))?;
    assert!(refused(&node).await?.starts_with("-ERR [SYS/PERM]"));
    assert_eq!(old.connections()[0].lines, ["STLS"]);
    Ok(())
}

#[tokio::test]
async fn what_a_backend_says_in_the_clear_behind_starttls_ends_the_attempt() -> Result<()> {
    let ca = TestCa::new()?;
    for injected in ["+OK\r\n", "+OK list\r\nSASL PLAIN\r\n.\r\n+OK in\r\n"] {
        let tls = Some(Tls::StartTls(ca.issue(HOST)?.acceptor()?));
        let old = LoginBackend::start("old", Manners { tls, injected, ..manners() }).await?;
        let tls = to_backend(&ca, false)?;
        let node = at(old.configured_as(|endpoint| endpoint.tls = tls))?;
        assert!(refused(&node).await?.starts_with("-ERR [SYS/TEMP]"));
        let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
        assert_eq!(connections[0].lines, ["STLS"], "no password was said");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_client_says_in_the_clear_behind_starttls_ends_the_connection() -> Result<()> {
    let ca = TestCa::new()?;
    let old = LoginBackend::start("old", manners()).await?;
    let tls = Some(Arc::clone(ca.issue(HOST)?.acceptor()?.config()));
    let settings = Settings { tls, proxied: true, ..settings() };
    let node = LoginNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    let mut client = Conversation::connect(node.address).await?;
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 110\r\n").await?;
    client.expect("+OK").await?;
    client.send(b"STLS\r\nUSER mallory@example.org\r\nPASS stolen\r\n").await?;
    client.expect("+OK Begin").await?;
    assert!(client.closed().await?.is_empty());
    assert!(old.connections().is_empty());
    Ok(())
}
