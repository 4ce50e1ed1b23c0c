//! Mechanisms other than PLAIN: relayed, or translated into what the backend takes (LOG-5..7).

use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use login_proxy::offer::Offer;
use shared::sasl::{Mechanism, Mechanisms};
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{LoginNode, Settings};

const XOAUTH2: &str = "user=ann@example.org\x01auth=Bearer t0ken\x01\x01";

fn manners(capabilities: &'static str, verdict: &'static str) -> Manners {
    Manners { capabilities, verdict: Verdict::Say(verdict), ..Manners::default() }
}

/// A node that offers everything and waits for holds, and `ann` at its only backend.
async fn node(manners: Manners) -> Result<(LoginBackend, LoginNode)> {
    let old = LoginBackend::start("old", manners).await?;
    let offer = Offer {
        capabilities: ["IMAP4rev1".into(), "SASL-IR".into()].into(),
        mechanisms: Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str)),
    };
    let mut settings = Settings { offer: Some(offer), ..Settings::default() };
    settings.rules.hold_wait = Duration::from_hours(1);
    let node = LoginNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    Ok((old, node))
}

async fn begin(node: &LoginNode, mechanism: &str, response: &str) -> Result<Conversation> {
    let mut client = node.connect().await?;
    let response = STANDARD.encode(response);
    client.say(&format!("a AUTHENTICATE {mechanism} {response}")).await?;
    Ok(client)
}

fn said(backend: &LoginBackend) -> Vec<(String, String)> {
    let connections = backend.connections();
    let logins = connections.iter().flat_map(|c| &c.logins);
    logins.map(|login| (login.authcid.clone(), login.password.clone())).collect()
}

#[tokio::test]
async fn a_token_goes_on_as_it_came() -> Result<()> {
    for (mechanism, response) in [
        ("XOAUTH2", XOAUTH2),
        ("OAUTHBEARER", "n,a=ann@example.org,\x01port=143\x01auth=Bearer t0ken\x01\x01"),
    ] {
        let manners = manners("IMAP4rev1 SASL-IR AUTH=XOAUTH2 AUTH=OAUTHBEARER", "TAG OK in\r\n");
        let (old, node) = node(manners).await?;
        let mut client = begin(&node, mechanism, response).await?;
        client.expect("a OK").await?;
        assert_eq!(said(&old), [(mechanism.to_owned(), response.to_owned())]);
    }
    Ok(())
}

#[tokio::test]
async fn a_token_is_written_in_the_form_that_the_backend_takes() -> Result<()> {
    let (old, node) = node(manners("IMAP4rev1 SASL-IR AUTH=OAUTHBEARER", "TAG OK in\r\n")).await?;
    let mut client = begin(&node, "XOAUTH2", XOAUTH2).await?;
    client.expect("a OK").await?;
    let written = "n,a=ann@example.org,\x01auth=Bearer t0ken\x01\x01";
    assert_eq!(said(&old), [("OAUTHBEARER".to_owned(), written.to_owned())]);
    Ok(())
}

#[tokio::test]
async fn a_failed_tokens_explanation_reaches_the_client_and_its_answer_the_backend() -> Result<()> {
    for answer in ["", "\x01"] {
        let manners = Manners {
            challenges: &["{\"status\":\"401\"}"],
            ..manners("IMAP4rev1 SASL-IR AUTH=XOAUTH2", "TAG NO [AUTHENTICATIONFAILED] no\r\n")
        };
        let (old, node) = node(manners).await?;
        let mut client = begin(&node, "XOAUTH2", XOAUTH2).await?;
        client.expect(&format!("+ {}", STANDARD.encode("{\"status\":\"401\"}"))).await?;
        client.say(&STANDARD.encode(answer)).await?;
        client.expect("a NO [AUTHENTICATIONFAILED]").await?;
        assert_eq!(said(&old)[0].1, format!("{XOAUTH2}|{answer}"));
        client.say("b NOOP").await?;
        client.expect("b OK").await?;
    }
    Ok(())
}

#[tokio::test]
async fn scram_is_relayed_message_by_message() -> Result<()> {
    let manners = Manners {
        challenges: &["r=abcdef,s=c2FsdA==,i=4096", "v=c2lnbmF0dXJl"],
        ..manners("IMAP4rev1 SASL-IR AUTH=SCRAM-SHA-256 AUTH=PLAIN", "TAG OK in\r\n")
    };
    let (old, node) = node(manners).await?;
    let mut client = begin(&node, "SCRAM-SHA-256", "n,,n=ann@example.org,r=abc").await?;
    client.expect(&format!("+ {}", STANDARD.encode("r=abcdef,s=c2FsdA==,i=4096"))).await?;
    client.say(&STANDARD.encode("c=biws,r=abcdef,p=cHJvb2Y=")).await?;
    client.expect(&format!("+ {}", STANDARD.encode("v=c2lnbmF0dXJl"))).await?;
    client.say("").await?;
    client.expect("a OK").await?;
    let words = "n,,n=ann@example.org,r=abc|c=biws,r=abcdef,p=cHJvb2Y=|";
    assert_eq!(said(&old), [("SCRAM-SHA-256".to_owned(), words.to_owned())]);
    Ok(())
}

#[tokio::test]
async fn a_client_that_gives_up_in_the_middle_leaves_the_backend_and_may_try_again() -> Result<()> {
    let manners = Manners {
        challenges: &["r=abcdef,s=c2FsdA==,i=4096"],
        ..manners("IMAP4rev1 SASL-IR AUTH=SCRAM-SHA-256", "TAG OK in\r\n")
    };
    let (old, node) = node(manners).await?;
    let mut client = begin(&node, "SCRAM-SHA-256", "n,,n=ann@example.org,r=abc").await?;
    client.expect("+ ").await?;
    client.say("*").await?;
    client.expect("a BAD").await?;
    let seen = old.until("it is left", |all| all[0].closed).await?;
    assert_eq!(seen[0].lines.last().map(String::as_str), Some("*"));
    client.say("b NOOP").await?;
    client.expect("b OK").await?;
    Ok(())
}

#[tokio::test]
async fn a_hold_during_scram_is_not_waited_out_and_never_goes_on_at_the_new_owner() -> Result<()> {
    let manners = Manners {
        challenges: &["r=abcdef,s=c2FsdA==,i=4096"],
        ..manners("IMAP4rev1 SASL-IR AUTH=SCRAM-SHA-256", "TAG OK in\r\n")
    };
    let (old, node) = node(manners).await?;
    let mut client = begin(&node, "SCRAM-SHA-256", "n,,n=ann@example.org,r=abc").await?;
    client.expect("+ ").await?;
    node.hold("ann", "old");
    client.expect("a NO [UNAVAILABLE]").await?;
    old.until("it is left", |all| all[0].closed).await?;
    Ok(())
}

#[tokio::test]
async fn login_is_two_prompts_and_the_backend_gets_plain() -> Result<()> {
    let (old, node) = node(Manners::default()).await?;
    let mut client = node.connect().await?;
    client.say("a AUTHENTICATE LOGIN").await?;
    client.expect("+ VXNlcm5hbWU6").await?;
    client.say(&STANDARD.encode("ann@example.org")).await?;
    client.expect("+ UGFzc3dvcmQ6").await?;
    client.say(&STANDARD.encode("secret")).await?;
    client.expect("a OK").await?;
    let seen = old.connections();
    assert!(seen[0].lines.iter().any(|line| line.contains("AUTHENTICATE PLAIN")));
    Ok(())
}
