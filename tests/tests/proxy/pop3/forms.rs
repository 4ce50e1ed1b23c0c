//! What a backend is told, in the form that it takes: AUTH or USER, in one step or two, XCLIENT, PROXY.

use std::net::SocketAddr;

use anyhow::Result;
use login_proxy::backend::Abilities;
use shared::backend::Identity;
use shared::sasl::{Mechanisms, encode_base64};
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{LoginNode, Settings};

use super::{asking, manners, offering, settings, try_in, xoauth2};
use crate::alone;

#[tokio::test]
async fn a_password_goes_by_plain_or_by_user_or_by_login() -> Result<()> {
    for (capabilities, lines) in [
        ("TOP, USER, SASL PLAIN LOGIN", &["AUTH PLAIN AGFubkBleGFtcGxlLm9yZwBzZWNyZXQ="][..]),
        ("sasl login plain", &["AUTH PLAIN AGFubkBleGFtcGxlLm9yZwBzZWNyZXQ="]),
        ("TOP, USER, SASL LOGIN", &["USER ann@example.org", "PASS secret"]),
        ("TOP, USER", &["USER ann@example.org", "PASS secret"]),
        // A server that does not know CAPA.
        ("", &["USER ann@example.org", "PASS secret"]),
        ("TOP, SASL LOGIN", &["AUTH LOGIN YW5uQGV4YW1wbGUub3Jn", "c2VjcmV0"]),
    ] {
        let (old, node) = alone(Manners { capabilities, ..manners() }).await?;
        node.log_in("ann").await?;
        let said = &old.connections()[0].lines;
        assert_eq!(said[0], "CAPA");
        assert_eq!(said[1..], *lines, "{capabilities:?}");
    }
    Ok(())
}

/// RFC 5034 §4: an AUTH command of at most 255 octets may have the response.
#[tokio::test]
async fn a_response_that_does_not_fit_its_command_comes_in_a_second_step() -> Result<()> {
    // "\0ann@example.org\0" is 17 octets; 180 of them are 240 of base64, and 183 would be 244 beside 13.
    for (password, one_step) in [(1, true), (163, true), (164, false), (4000, false)] {
        let (mut old, node) = alone(asking()).await?;
        let mut client = node.connect().await?;
        let password = "p".repeat(password);
        try_in(&mut client, "ann@example.org", &password).await?;
        let asked = old.asked().await?;
        assert_eq!(asked.login.password, password);
        asked.say("+OK in\r\n");
        client.expect("+OK Logged in.").await?;
        let auth = &old.connections()[0].lines[1];
        assert!(auth.len() + 2 <= 255, "{}", auth.len());
        assert_eq!(auth != "AUTH PLAIN", one_step, "{} octets", password.len());
    }
    Ok(())
}

#[tokio::test]
async fn a_long_token_comes_in_one_line_and_goes_in_two_steps() -> Result<()> {
    let (mut old, node) = offering("SASL XOAUTH2", Verdict::Ask).await?;
    let token = "t".repeat(16 * 1024 - 100);
    let mut client = node.connect().await?;
    client.say(&format!("AUTH XOAUTH2 {}", xoauth2(&token))).await?;
    let asked = old.asked().await?;
    assert_eq!((&*asked.login.authcid, &*asked.login.password), ("ann@example.org", &*token));
    asked.say("+OK in\r\n");
    client.expect("+OK Logged in.").await?;
    assert_eq!(old.connections()[0].lines[1..], ["AUTH XOAUTH2".to_owned(), xoauth2(&token)]);
    Ok(())
}

#[tokio::test]
async fn the_reason_why_a_token_is_refused_reaches_the_client_and_its_answer_the_backend()
-> Result<()> {
    let verdict = Verdict::Challenge("+ eyJzdGF0dXMiOiI0MDEifQ==\r\n", "-ERR [AUTH] expired\r\n");
    for (answer, at_backend) in [("", ""), ("AQ==", "AQ=="), ("*", "*"), ("!", "*")] {
        let (old, node) = offering("SASL XOAUTH2", verdict).await?;
        let mut client = node.connect().await?;
        client.say(&format!("AUTH XOAUTH2 {}", xoauth2("expired"))).await?;
        client.expect("+ eyJzdGF0dXMiOiI0MDEifQ==").await?;
        client.say(answer).await?;
        let said = client.line().await?;
        let expected = match at_backend {
            "*" => "-ERR Authentication exchange cancelled.",
            _ => "-ERR [AUTH] Authentication failed.",
        };
        assert_eq!(said, expected, "{answer:?}");
        client.say("NOOP").await?;
        client.expect("+OK").await?;
        let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
        assert_eq!(connections[0].lines.last().map(String::as_str), Some(at_backend));
    }
    Ok(())
}

/// Only its two ends can take part in SCRAM (RFC 5802), so every word goes through as it is.
#[tokio::test]
async fn scram_is_relayed_to_a_backend_that_offers_it() -> Result<()> {
    let base64 =
        |text: &str| String::from_utf8_lossy(encode_base64(text.as_bytes()).expose()).into_owned();
    let first = base64("n,,n=ann@example.org,r=nonce");
    // r=nonceNONCE,s=c2FsdA==,i=4096
    let challenge = "+ cj1ub25jZU5PTkNFLHM9YzJGc2RBPT0saT00MDk2";
    let verdict =
        Verdict::Challenge("+ cj1ub25jZU5PTkNFLHM9YzJGc2RBPT0saT00MDk2\r\n", "+OK in\r\n");
    let (old, node) = offering("SASL PLAIN SCRAM-SHA-256", verdict).await?;
    let mut client = node.connect().await?;
    client.say(&format!("AUTH SCRAM-SHA-256 {first}")).await?;
    client.expect(challenge).await?;
    let last = base64("c=biws,r=nonceNONCE,p=cHJvb2Y=");
    client.say(&last).await?;
    client.expect("+OK Logged in.").await?;
    let lines = &old.connections()[0].lines;
    assert_eq!(lines[1..], [format!("AUTH SCRAM-SHA-256 {first}"), last]);
    Ok(())
}

#[tokio::test]
async fn credentials_that_a_backend_takes_in_no_form_are_a_fault_of_ours() -> Result<()> {
    for (capabilities, login) in [
        ("TOP, UIDL", "AUTH PLAIN AGFubkBleGFtcGxlLm9yZwBzZWNyZXQ="),
        // USER cannot say as whom an administrator acts.
        ("USER", "AUTH PLAIN YW5uQGV4YW1wbGUub3JnAGFkbWluAHNlY3JldA=="),
        // "se\rcret": PASS has no way to say that.
        ("USER", "AUTH PLAIN AGFubkBleGFtcGxlLm9yZwBzZQ1jcmV0"),
        ("USER", "AUTH PLAIN AGFubkBleGFtcGxlLm9yZwBzZQpRVUlU"),
        ("USER, SASL PLAIN", &format!("AUTH XOAUTH2 {}", xoauth2("t"))),
    ] {
        let (old, node) = offering(capabilities, Verdict::ByPassword).await?;
        let mut client = node.connect().await?;
        client.say(login).await?;
        client.expect("-ERR [SYS/PERM]").await?;
        assert_eq!(old.connections()[0].lines, ["CAPA"], "no secret was said");
    }
    Ok(())
}

/// What a backend hears of a client from elsewhere.
async fn told(manners: Manners, identity: Identity) -> Result<Vec<String>> {
    let old = LoginBackend::start("old", manners).await?;
    let backend = old.configured_as(|endpoint| endpoint.identity = identity);
    let mut settings = Settings { proxied: true, ..settings() };
    settings.rules.allow_plaintext = true;
    let node = LoginNode::start_with([backend], settings)?;
    node.set_owner("ann", "old");
    let mut client = Conversation::connect(node.address).await?;
    client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 110\r\n").await?;
    client.expect("+OK").await?;
    try_in(&mut client, "ann@example.org", "secret").await?;
    client.expect("+OK Logged in.").await?;
    let connection = old.connections()[0].clone();
    let proxied_for = Some(SocketAddr::from(([192, 0, 2, 7], 40000)));
    assert_eq!(connection.proxied_for, proxied_for.filter(|_| identity == Identity::Proxy));
    Ok(connection.lines)
}

#[tokio::test]
async fn a_backend_that_offers_xclient_is_told_who_the_client_is_before_the_login() -> Result<()> {
    let trusting = Manners { greeting: "+OK [XCLIENT] Dovecot ready.\r\n", ..manners() };
    let lines = told(trusting, Identity::Xclient).await?;
    let (before, session) = lines[0].split_once(" SESSION=").unwrap();
    let (session, after) = session.split_once(' ').unwrap();
    assert_eq!(before, "XCLIENT ADDR=192.0.2.7 PORT=40000");
    assert!((1..=64).contains(&session.len()), "{session}");
    assert_eq!(after, "TTL=5 CLIENT-TRANSPORT=insecure DESTADDR=192.0.2.1 DESTPORT=110");
    assert_eq!(lines[1], "CAPA");
    assert!(lines[2].starts_with("AUTH PLAIN ") && lines.len() == 3, "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn a_backend_that_does_not_offer_xclient_is_told_nothing() -> Result<()> {
    let greeted = |greeting| Manners { greeting, ..manners() };
    for (greeting, identity) in [
        ("+OK Dovecot ready.\r\n", Identity::Xclient),
        ("+OK no [XCLIENT] here\r\n", Identity::Xclient),
        ("+OK\r\n", Identity::Xclient),
        ("+OK [XCLIENT] Dovecot ready.\r\n", Identity::None),
    ] {
        assert_eq!(told(greeted(greeting), identity).await?[0], "CAPA", "{greeting:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_is_asked_what_it_can_without_a_login() -> Result<()> {
    let lines = |abilities: &Abilities| abilities.capabilities.join(", ");
    for (capabilities, listed, mechanisms) in [
        (
            "CAPA, TOP, USER, STLS, SASL XOAUTH2, EXPIRE 30",
            "CAPA, TOP, EXPIRE 30",
            "PLAIN LOGIN XOAUTH2",
        ),
        ("top, sasl plain, x", "top, x", "PLAIN"),
        ("", "", "PLAIN LOGIN"),
        ("TOP", "TOP", ""),
    ] {
        let old = LoginBackend::start("old", Manners { capabilities, ..manners() }).await?;
        let backend = old.configured();
        let until = tokio::time::Instant::now() + tests::patience::PATIENCE;
        let endpoint = backend.pop3.as_ref().expect("a POP3 endpoint");
        let abilities = login_proxy::backend::pop3::probe(endpoint, until).await?;
        assert_eq!(lines(&abilities), listed);
        assert_eq!(abilities.mechanisms, Mechanisms::of_words(mechanisms.split(' ')));
        let connections = old.until("it is closed", |all| all[0].closed).await?;
        assert_eq!(connections[0].lines, ["CAPA", "QUIT"]);
    }
    Ok(())
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client_before_anything_else() -> Result<()> {
    let lines = told(Manners { proxied: true, ..manners() }, Identity::Proxy).await?;
    assert_eq!(lines[0], "CAPA");
    Ok(())
}
