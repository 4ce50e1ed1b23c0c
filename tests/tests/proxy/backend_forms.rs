//! What a backend is told, in the form that it takes: SASL-IR or not, LOGIN only, ID, PROXY (FWD-1).

use std::net::SocketAddr;

use anyhow::Result;
use shared::backend::Identity;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{LoginNode, Settings};

use crate::alone;

fn listing(capabilities: &'static str) -> Manners {
    Manners { capabilities, ..Manners::default() }
}

#[tokio::test]
async fn a_response_comes_with_its_command_only_where_that_is_offered() -> Result<()> {
    for (capabilities, lines) in [
        (
            "IMAP4rev1 SASL-IR AUTH=PLAIN",
            &["L AUTHENTICATE PLAIN AGFubkBleGFtcGxlLm9yZwBzZWNyZXQ="][..],
        ),
        ("IMAP4rev1 AUTH=PLAIN", &["L AUTHENTICATE PLAIN", "AGFubkBleGFtcGxlLm9yZwBzZWNyZXQ="]),
        ("IMAP4rev1", &["L LOGIN \"ann@example.org\" \"secret\""]),
    ] {
        let (old, node) = alone(listing(capabilities)).await?;
        node.log_in("ann").await?;
        assert_eq!(old.connections()[0].lines, lines);
    }
    Ok(())
}

#[tokio::test]
async fn a_password_that_cannot_be_quoted_is_a_literal() -> Result<()> {
    for capabilities in ["IMAP4rev1", "IMAP4rev1 LITERAL+", "IMAP4rev1 LITERAL-"] {
        let manners = Manners { verdict: Verdict::Ask, ..listing(capabilities) };
        let (mut old, node) = alone(manners).await?;
        let mut client = node.connect().await?;
        client.say("a LOGIN ann@example.org \"q\\\"u\\\\o\"").await?;
        let asked = old.asked().await?;
        assert_eq!(asked.login.password, "q\"u\\o");
        asked.say("TAG OK in\r\n");
        client.expect("a OK").await?;
        let announced = if capabilities == "IMAP4rev1" { "{5}" } else { "{5+}" };
        let expected = format!("L LOGIN \"ann@example.org\" {announced}");
        assert_eq!(old.connections()[0].lines[0], expected, "{capabilities}");
    }
    Ok(())
}

#[tokio::test]
async fn a_long_token_goes_in_two_steps() -> Result<()> {
    let (mut old, node) = alone(Manners { verdict: Verdict::Ask, ..Manners::default() }).await?;
    let mut client = node.connect().await?;
    let password = "p".repeat(4000);
    client.say(&format!("a LOGIN ann@example.org {password}")).await?;
    let asked = old.asked().await?;
    assert_eq!(asked.login.password, password);
    asked.say("TAG OK [CAPABILITY IMAP4rev1] in\r\n");
    client.expect("a OK").await?;
    assert_eq!(old.connections()[0].lines[0], "L AUTHENTICATE PLAIN");
    Ok(())
}

#[tokio::test]
async fn a_backend_that_takes_no_passwords_is_a_fault_of_ours() -> Result<()> {
    for (capabilities, login) in [
        ("IMAP4rev1 LOGINDISABLED", "LOGIN ann@example.org secret"),
        // LOGIN cannot say as whom an administrator acts.
        ("IMAP4rev1", "AUTHENTICATE PLAIN YW5uQGV4YW1wbGUub3JnAGFkbWluAHNlY3JldA=="),
    ] {
        let (old, node) = alone(listing(capabilities)).await?;
        let mut client = node.connect().await?;
        client.say(&format!("a {login}")).await?;
        client.expect("a NO [SERVERBUG]").await?;
        assert!(old.connections()[0].lines.is_empty(), "no secret was said");
    }
    Ok(())
}

async fn told(manners: Manners, identity: Identity, client_says: &str) -> Result<Vec<String>> {
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.identity = identity);
    let settings = Settings { proxied: true, ..Settings::default() };
    let mut settings = settings;
    settings.rules.allow_plaintext = true;
    let node = LoginNode::start_with([backend], settings)?;
    node.set_owner("ann", "old");
    let mut client = Conversation::connect(node.address).await?;
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 143\r\n").await?;
    client.expect("* OK").await?;
    client.send(client_says.as_bytes()).await?;
    client.say("a LOGIN ann@example.org secret").await?;
    while !client.line().await?.starts_with("a OK") {}
    let connection = old.connections()[0].clone();
    assert_eq!(connection.proxied_for.is_some(), identity == Identity::Proxy);
    let proxied_for = Some(SocketAddr::from(([192, 0, 2, 7], 40000)));
    assert!(connection.proxied_for.is_none() || connection.proxied_for == proxied_for);
    Ok(connection.lines)
}

#[tokio::test]
async fn dovecot_is_told_who_the_client_is_in_the_first_id() -> Result<()> {
    let lines = told(
        Manners::default(),
        Identity::DovecotId,
        "i ID (\"name\" \"Outlook\" \"x-originating-ip\" \"203.0.113.9\" \"os\" NIL)\r\n",
    )
    .await?;
    let (before, session) = lines[0].split_once("\"x-session-id\" \"").unwrap();
    let (session, after) = session.split_once('"').unwrap();
    assert_eq!(before, "I ID (");
    assert!((1..=64).contains(&session.len()), "{session}");
    assert_eq!(
        after,
        " \"x-originating-ip\" \"192.0.2.7\" \"x-originating-port\" \"40000\" \
         \"x-connected-ip\" \"192.0.2.1\" \"x-connected-port\" \"143\" \"x-proxy-ttl\" \"5\" \
         \"name\" \"Outlook\")"
    );
    assert!(lines[1].starts_with("L AUTHENTICATE PLAIN "));
    assert_eq!(lines.len(), 2, "one ID and no more");
    Ok(())
}

#[tokio::test]
async fn a_backend_that_does_not_list_id_is_told_nothing() -> Result<()> {
    for (manners, identity) in [
        (listing("IMAP4rev1 SASL-IR AUTH=PLAIN"), Identity::DovecotId),
        (Manners::default(), Identity::None),
    ] {
        let lines = told(manners, identity, "").await?;
        assert!(lines[0].starts_with("L AUTHENTICATE PLAIN "), "{lines:?}");
    }
    Ok(())
}

#[tokio::test]
async fn capabilities_are_asked_for_where_the_greeting_has_none() -> Result<()> {
    let manners = Manners { greeting: "* OK hello\r\n", ..Manners::default() };
    let lines = told(manners, Identity::DovecotId, "").await?;
    assert_eq!(lines[0], "C CAPABILITY");
    assert!(lines[1].starts_with("I ID ("), "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client_before_anything_else() -> Result<()> {
    let manners = Manners { proxied: true, ..Manners::default() };
    let lines = told(manners, Identity::Proxy, "").await?;
    assert!(lines[0].starts_with("L AUTHENTICATE PLAIN "), "{lines:?}");
    Ok(())
}
