//! Backends that are slow, silent, out of order or hostile: each is a bounded, honest refusal, and the
//! client may go on.

use std::time::Duration;

use anyhow::Result;
use shared::backend::{Backend, Host};
use tests::login_backend::{LoginBackend, Manners, Then, Verdict};
use tests::login_node::{LoginNode, Settings};

use crate::alone;

/// Short, where it must be waited for.
const SHORT: Duration = Duration::from_millis(300);

async fn refused(node: &LoginNode) -> Result<String> {
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let said = client.line().await?;
    client.say("b NOOP").await?;
    client.expect("b OK NOOP completed.").await?;
    Ok(said)
}

fn at(backend: Backend) -> Result<LoginNode> {
    let node = LoginNode::start([backend])?;
    node.set_owner("ann", "old");
    Ok(node)
}

/// What a client hears of a backend with such manners, and that the connection there is closed.
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
async fn a_backend_that_is_not_there_is_unavailable() -> Result<()> {
    let gone = LoginBackend::start("old", Manners::default()).await?.configured_as(|endpoint| {
        // Nothing listens on the port of a socket that was only bound.
        endpoint.hosts = vec![Host::new("127.0.0.1", 1)];
    });
    assert!(refused(&at(gone)?).await?.starts_with("a NO [UNAVAILABLE]"));
    let nowhere = LoginBackend::start("old", Manners::default())
        .await?
        .configured_as(|endpoint| endpoint.hosts = vec![Host::new("no-such-host.invalid", 143)]);
    assert!(refused(&at(nowhere)?).await?.starts_with("a NO [UNAVAILABLE]"));
    Ok(())
}

#[tokio::test]
async fn a_backend_that_says_nothing_is_unavailable() -> Result<()> {
    for manners in [
        Manners { greeting: "", then: Then::Hang, ..Manners::default() },
        Manners { greeting: "* OK rea", then: Then::Hang, ..Manners::default() },
        Manners { then: Then::Hang, ..Manners::default() },
        Manners { verdict: Verdict::Say("* OK wait\r\n"), ..Manners::default() },
    ] {
        let old = LoginBackend::start("old", manners).await?;
        let node = at(old.configured_as(|endpoint| endpoint.reply_timeout = SHORT))?;
        assert!(refused(&node).await?.starts_with("a NO [UNAVAILABLE]"));
        old.until("the attempt is closed", |all| all[0].closed).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_speaks_and_never_comes_to_the_point_is_cut_off() -> Result<()> {
    for manners in [
        Manners { greeting: "", then: Then::Flood("x"), ..Manners::default() },
        Manners { greeting: "", then: Then::Flood("* OK hello\r\n"), ..Manners::default() },
        Manners { then: Then::Flood("* OK still\r\n"), ..Manners::default() },
        Manners { verdict: Verdict::Flood("x"), ..Manners::default() },
        Manners { verdict: Verdict::Flood("* NO soon\r\n"), ..Manners::default() },
        Manners { verdict: Verdict::Flood("* X {8000}\r\n"), ..Manners::default() },
    ] {
        let said = heard_of(manners).await?;
        assert!(
            said.starts_with("a NO [UNAVAILABLE]") || said.starts_with("a NO [SERVERBUG]"),
            "{said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_attempt_has_one_deadline_for_everything() -> Result<()> {
    let old =
        LoginBackend::start("old", Manners { then: Then::Hang, ..Manners::default() }).await?;
    let mut settings = Settings::default();
    settings.rules.attach_timeout = SHORT;
    let node = LoginNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    assert!(refused(&node).await?.starts_with("a NO [UNAVAILABLE]"));
    old.until("the attempt is closed", |all| all[0].closed).await?;
    Ok(())
}

#[tokio::test]
async fn a_backend_that_takes_us_for_logged_in_or_says_goodbye_is_not_joined() -> Result<()> {
    let greeted = |greeting| Manners { greeting, ..Manners::default() };
    let preauth = heard_of(greeted("* PREAUTH [CAPABILITY CAPS] root\r\n")).await?;
    assert!(preauth.starts_with("a NO [SERVERBUG]"), "{preauth}");
    let bye = heard_of(greeted("* BYE too many\r\n")).await?;
    assert!(bye.starts_with("a NO [UNAVAILABLE]"), "{bye}");
    let http = heard_of(greeted("HTTP/1.1 400 Bad Request\r\n")).await?;
    assert!(http.starts_with("a NO [SERVERBUG]"), "{http}");
    Ok(())
}

#[tokio::test]
async fn each_refusal_of_a_backend_is_passed_on_by_its_cause() -> Result<()> {
    for (verdict, expected) in [
        ("TAG NO [AUTHENTICATIONFAILED] no\r\n", "[AUTHENTICATIONFAILED]"),
        ("TAG NO no\r\n", "[AUTHENTICATIONFAILED]"),
        ("TAG NO [UNAVAILABLE] later\r\n", "[UNAVAILABLE]"),
        ("TAG BAD [UNAVAILABLE] later\r\n", "[UNAVAILABLE]"),
        ("TAG NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded\r\n", "[LIMIT]"),
        ("TAG NO [LIMIT] too many\r\n", "[LIMIT]"),
        ("TAG NO [SERVERBUG] oops\r\n", "[SERVERBUG]"),
        ("TAG BAD what\r\n", "[SERVERBUG]"),
        ("* BYE going\r\n", "[UNAVAILABLE]"),
        ("+ more\r\n", "[SERVERBUG]"),
        ("OTHER OK in\r\n", "[SERVERBUG]"),
        ("TAGOK in\r\n", "[SERVERBUG]"),
        ("TAG YES in\r\n", "[SERVERBUG]"),
        ("\r\n", "[SERVERBUG]"),
        ("TAG OK in\r\nC NO\r\n", "[SERVERBUG]"),
    ] {
        let manners = Manners { verdict: Verdict::Say(verdict), ..Manners::default() };
        let (old, node) = alone(manners).await?;
        let said = refused(&node).await?;
        assert!(said.starts_with(&format!("a NO {expected}")), "{verdict:?}: {said}");
        old.until("the attempt is closed", |all| all[0].closed).await?;
    }
    Ok(())
}

/// Some servers say no to the mechanism before they have seen a password.
#[tokio::test]
async fn a_no_before_the_password_is_no_wrong_password() -> Result<()> {
    let manners = Manners {
        capabilities: "IMAP4rev1 AUTH=PLAIN",
        then: Then::Flood("L NO what\r\n"),
        ..Manners::default()
    };
    let said = heard_of(manners).await?;
    assert!(said.starts_with("a NO [SERVERBUG]"), "{said}");
    Ok(())
}
