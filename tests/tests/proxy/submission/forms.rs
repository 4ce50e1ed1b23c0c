//! What a backend is told of the client, and in the form that it takes (FWD-1, FWD-2, LOG-7).

use std::net::SocketAddr;

use anyhow::Result;
use shared::backend::Identity;
use tests::login_backend::{Manners, Verdict};

use super::*;

const POSTFIX: &str =
    "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT, AUTH PLAIN";
const DOVECOT: &str =
    "AUTH PLAIN, XCLIENT ADDR PORT PROTO HELO LOGIN SESSION TTL TIMEOUT CLIENT-TRANSPORT";

fn listing(capabilities: &'static str) -> Manners {
    Manners { capabilities, ..manners() }
}

/// What a backend hears of a client that comes from 192.0.2.7 with that name.
async fn told(manners: Manners, identity: Identity, helo: &str) -> Result<Vec<String>> {
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.identity = identity);
    let mut settings = Settings { proxied: true, ..settings() };
    settings.rules.allow_plaintext = true;
    let node = LoginNode::start_with([backend], settings)?;
    node.set_owner("ann", "old");
    let mut client = Conversation::connect(node.address).await?;
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 587\r\n").await?;
    client.expect("220").await?;
    client.say(helo).await?;
    while client.line().await?.starts_with("250-") {}
    client.say(&plain("ann", "secret")).await?;
    client.expect(YES).await?;
    let connection = old.connections()[0].clone();
    let proxied_for = Some(SocketAddr::from(([192, 0, 2, 7], 40000)));
    let expected = proxied_for.filter(|_| identity == Identity::Proxy);
    assert_eq!(connection.proxied_for, expected);
    Ok(connection.lines)
}

#[tokio::test]
async fn postfix_is_told_what_it_knows_and_is_greeted_again() -> Result<()> {
    let lines = told(listing(POSTFIX), Identity::Xclient, "EHLO Desktop.example.net").await?;
    let xclient = "XCLIENT NAME=[TEMPUNAVAIL] REVERSE_NAME=[TEMPUNAVAIL] HELO=desktop.example.net \
                   PROTO=ESMTP PORT=40000 DESTADDR=192.0.2.1 DESTPORT=587 ADDR=192.0.2.7";
    let ehlo = "EHLO desktop.example.net";
    assert_eq!(lines[..3], [ehlo, xclient, ehlo]);
    assert!(lines[3].starts_with("AUTH PLAIN ") && lines.len() == 4, "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn dovecot_is_told_of_the_session_besides() -> Result<()> {
    let lines = told(listing(DOVECOT), Identity::Xclient, "EHLO [192.168.1.23]").await?;
    let (before, session) = lines[1].split_once("SESSION=").unwrap();
    let (session, after) = session.split_once(' ').unwrap();
    assert_eq!(before, "XCLIENT ");
    assert!((1..=64).contains(&session.len()), "{session}");
    assert_eq!(after, "TTL=5 CLIENT-TRANSPORT=insecure PROTO=ESMTP PORT=40000 ADDR=192.0.2.7");
    // A name that is no host name is not said for the client; ours is.
    assert_eq!((&*lines[0], &*lines[2]), ("EHLO localhost", "EHLO localhost"));
    Ok(())
}

#[tokio::test]
async fn xclient_is_said_only_where_it_is_offered_and_configured() -> Result<()> {
    for (capabilities, identity) in [
        ("AUTH PLAIN", Identity::Xclient),
        ("XCLIENT NAME HELO, AUTH PLAIN", Identity::Xclient),
        (POSTFIX, Identity::None),
    ] {
        let lines = told(listing(capabilities), identity, "HELO scanner").await?;
        assert_eq!(lines[0], "EHLO scanner");
        assert!(lines[1].starts_with("AUTH PLAIN ") && lines.len() == 2, "{lines:?}");
    }
    let proxied = Manners { proxied: true, ..listing(POSTFIX) };
    let lines = told(proxied, Identity::Proxy, "EHLO ДИМА-ПК").await?;
    assert_eq!((&*lines[0], lines.len()), ("EHLO localhost", 2));
    Ok(())
}

#[tokio::test]
async fn a_password_goes_by_login_where_there_is_nothing_else() -> Result<()> {
    for capabilities in ["AUTH LOGIN", "AUTH=LOGIN"] {
        let (old, node) = alone(listing(capabilities)).await?;
        log_in(&node, "ann").await?;
        let connection = &old.connections()[0];
        assert_eq!(connection.lines[1..], ["AUTH LOGIN YW5uQGV4YW1wbGUub3Jn", "c2VjcmV0"]);
        assert_eq!(connection.logins[0].password, "secret");
    }
    Ok(())
}

#[tokio::test]
async fn a_long_response_goes_in_two_steps() -> Result<()> {
    for (octets, steps) in [(300, 1), (400, 2), (16 * 1024, 2)] {
        let (mut old, node) = alone(Manners { verdict: Verdict::Ask, ..manners() }).await?;
        let mut client = come(&node).await?;
        let password = "p".repeat(octets);
        client.say(&plain("ann", &password)).await?;
        let asked = old.asked().await?;
        assert_eq!(asked.login.password, password);
        asked.say("235 in\r\n");
        client.expect(YES).await?;
        let lines = &old.connections()[0].lines;
        assert_eq!(lines.len(), 1 + steps, "{octets}");
        assert!(lines[1].len() + 2 <= 512 && (steps == 1 || lines[1] == "AUTH PLAIN"));
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_takes_no_passwords_is_a_fault_of_ours() -> Result<()> {
    for capabilities in ["SIZE 1", "AUTH GSSAPI XOAUTH2"] {
        let (old, node) = alone(listing(capabilities)).await?;
        assert_eq!(refused(&node).await?, BROKEN);
        assert_eq!(old.connections()[0].lines.len(), 1, "no secret was said");
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_xclient_is_a_fault_of_ours() -> Result<()> {
    // As a server that has already let somebody in, it says no to it.
    let manners = Manners {
        greeting: "220 x\r\n250-x\r\n250-XCLIENT ADDR\r\n250 AUTH PLAIN\r\n550 5.7.0 no\r\n",
        ..manners()
    };
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.identity = Identity::Xclient);
    let node = LoginNode::start_with([backend], settings())?;
    node.set_owner("ann", "old");
    assert_eq!(refused(&node).await?, BROKEN);
    let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
    assert!(connections[0].logins.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_backend_is_asked_what_it_can() -> Result<()> {
    let old = LoginBackend::start("old", listing("SIZE 5, auth PLAIN SCRAM-SHA-1, DSN")).await?;
    let backend = old.configured();
    let endpoint = backend.submission.as_ref().unwrap();
    let until = tokio::time::Instant::now() + tests::patience::PATIENCE;
    let abilities = login_proxy::backend::submission::probe(endpoint, until).await?;
    assert_eq!(abilities.capabilities.join(", "), "SIZE 5, DSN, HELP");
    assert_eq!(abilities.mechanisms, Mechanisms::of_words(["PLAIN", "SCRAM-SHA-1"]));
    let connections = old.until("it is left", |all| all[0].closed).await?;
    assert_eq!(connections[0].lines, ["EHLO [127.0.0.1]", "QUIT"]);
    Ok(())
}
