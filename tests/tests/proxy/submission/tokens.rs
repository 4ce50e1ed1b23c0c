//! Exchanges that only the client and its backend can have: tokens and SCRAM (LOG-5, LOG-6).

use anyhow::Result;
use tests::login_backend::{Manners, Verdict};

use super::*;

const FAILURE: &str = "eyJzdGF0dXMiOiI0MDEifQ==";

fn taking(capabilities: &'static str) -> Manners {
    Manners { capabilities, verdict: Verdict::Ask, ..manners() }
}

fn xoauth2(token: &str) -> String {
    STANDARD.encode(format!("user=ann@{DOMAIN}\x01auth=Bearer {token}\x01\x01"))
}

#[tokio::test]
async fn a_tokens_failure_is_relayed_and_answered_by_the_client() -> Result<()> {
    for (mechanism, answer) in [("XOAUTH2", ""), ("OAUTHBEARER", "AQ==")] {
        let (mut old, node) = alone(taking("AUTH XOAUTH2 OAUTHBEARER")).await?;
        let mut client = come(&node).await?;
        let response = match mechanism {
            "XOAUTH2" => xoauth2("t"),
            _ => STANDARD.encode(format!("n,a=ann@{DOMAIN},\x01auth=Bearer t\x01\x01")),
        };
        client.say(&format!("AUTH {mechanism} {response}")).await?;
        old.asked().await?.say(&format!("334 {FAILURE}\r\n"));
        client.expect(&format!("334 {FAILURE}")).await?;
        client.say(answer).await?;
        let asked = old.asked().await?;
        assert_eq!(asked.login.password, answer);
        asked.say("535 5.7.8 expired\r\n");
        client.expect(WRONG).await?;
        // The client comes with a new token, on a new connection.
        client.say(&format!("AUTH XOAUTH2 {}", xoauth2("u"))).await?;
        old.asked().await?.say("235 in\r\n");
        client.expect(YES).await?;
        assert_eq!(old.connections().len(), 2);
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_gives_up_has_its_exchange_given_up_at_the_backend() -> Result<()> {
    let (mut old, node) = alone(taking("AUTH XOAUTH2")).await?;
    let mut client = come(&node).await?;
    client.say(&format!("AUTH XOAUTH2 {}", xoauth2("t"))).await?;
    old.asked().await?.say(&format!("334 {FAILURE}\r\n"));
    client.expect("334").await?;
    client.say("*").await?;
    client.expect("501 5.7.0 Authentication exchange cancelled").await?;
    let connections = old.until("the attempt is closed", |all| all[0].closed).await?;
    assert_eq!(connections[0].lines.last().map(String::as_str), Some("*"));
    Ok(())
}

#[tokio::test]
async fn a_challenge_that_is_none_is_never_relayed() -> Result<()> {
    for (challenge, expected) in [
        ("334 5.7.8 Second factor required.\r\n", WRONG),
        ("334 4.7.0 Not now.\r\n", LATER),
        ("334 {\"status\":\"401\"}\r\n", BROKEN),
    ] {
        let (mut old, node) = alone(taking("AUTH XOAUTH2")).await?;
        let mut client = come(&node).await?;
        client.say(&format!("AUTH XOAUTH2 {}", xoauth2("t"))).await?;
        old.asked().await?.say(challenge);
        client.expect(expected).await?;
        old.until("the attempt is closed", |all| all[0].closed).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_long_token_comes_inline_and_goes_on_in_two_steps() -> Result<()> {
    let (mut old, node) = alone(taking("AUTH XOAUTH2")).await?;
    let mut client = come(&node).await?;
    let response = xoauth2(&"t".repeat(15 * 1024));
    client.say(&format!("AUTH XOAUTH2 {response}")).await?;
    old.asked().await?.say("235 in\r\n");
    client.expect(YES).await?;
    assert_eq!(old.connections()[0].lines[1..], ["AUTH XOAUTH2".to_owned(), response]);
    Ok(())
}

#[tokio::test]
async fn a_token_is_given_in_the_form_that_the_backend_takes() -> Result<()> {
    let (mut old, node) = alone(taking("AUTH OAUTHBEARER")).await?;
    let mut client = come(&node).await?;
    client.say(&format!("AUTH XOAUTH2 {}", xoauth2("t"))).await?;
    let asked = old.asked().await?;
    assert_eq!(asked.login.password, "n,a=ann@example.org,\x01auth=Bearer t\x01\x01");
    asked.say("235 in\r\n");
    client.expect(YES).await?;
    Ok(())
}

#[tokio::test]
async fn scram_is_relayed_to_its_end() -> Result<()> {
    let (mut old, node) = alone(taking("AUTH SCRAM-SHA-256")).await?;
    let mut client = come(&node).await?;
    let first = STANDARD.encode("n,,n=ann@example.org,r=nonce");
    client.say("AUTH SCRAM-SHA-256").await?;
    client.expect("334 ").await?;
    client.say(&first).await?;
    // Longer than the text of a reply that would be shown to anybody.
    let challenge = STANDARD.encode("r=nonce".repeat(100));
    old.asked().await?.say(&format!("334 {challenge}\r\n"));
    client.expect(&format!("334 {challenge}")).await?;
    client.say("Yz1iaXdz").await?;
    let asked = old.asked().await?;
    assert_eq!(asked.login.password, "Yz1iaXdz");
    asked.say("334 dj1zaWduYXR1cmU=\r\n");
    client.expect("334 dj1zaWduYXR1cmU=").await?;
    client.say("").await?;
    old.asked().await?.say("235 in\r\n");
    client.expect(YES).await?;
    assert_eq!(old.connections()[0].lines[1], format!("AUTH SCRAM-SHA-256 {first}"));
    Ok(())
}
