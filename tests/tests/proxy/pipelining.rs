//! Octets that come before their turn, on either leg (LOG-9).

use anyhow::Result;
use tests::login_backend::{Manners, Verdict};

use crate::alone;

fn saying(octets: &'static str) -> Manners {
    Manners { verdict: Verdict::Say(octets), ..Manners::default() }
}

fn asking() -> Manners {
    Manners { verdict: Verdict::Ask, ..Manners::default() }
}

#[tokio::test]
async fn what_is_pipelined_behind_a_login_reaches_the_backend_in_order_and_once() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = node.connect().await?;
    client.send(b"a LOGIN ann@example.org secret\r\nb SELECT INBOX\r\nc NOOP\r\n").await?;
    client.expect("a OK").await?;
    client.expect("b OK done at old").await?;
    client.expect("c OK done at old").await?;
    let lines = &old.connections()[0].lines;
    assert_eq!(lines[1..], ["b SELECT INBOX", "c NOOP"]);
    Ok(())
}

#[tokio::test]
async fn what_comes_while_a_login_is_under_way_waits_for_its_verdict() -> Result<()> {
    let (mut old, node) = alone(asking()).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let asked = old.asked().await?;
    // More than is kept: the rest waits in the socket.
    let many = 10_000;
    let pipelined: String = (0..many).map(|number| format!("n{number} NOOP\r\n")).collect();
    assert!(pipelined.len() > shared::wire::MAX_UNREAD);
    client.send(pipelined.as_bytes()).await?;
    assert!(asked.say("TAG OK [CAPABILITY IMAP4rev1] in\r\n"));
    client.expect("a OK").await?;
    for number in 0..many {
        client.expect(&format!("n{number} OK done at old")).await?;
    }
    assert_eq!(old.connections()[0].lines.len(), 1 + many);
    Ok(())
}

#[tokio::test]
async fn what_is_pipelined_behind_a_failed_login_is_ours_to_answer() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = node.connect().await?;
    client
        .send(
            b"a LOGIN ann@example.org wrong\r\nb SELECT INBOX\r\nc NOOP\r\n\
              d LOGIN ann@example.org secret\r\ne NOOP\r\n",
        )
        .await?;
    client.expect("a NO [AUTHENTICATIONFAILED]").await?;
    client.expect("b BAD").await?;
    client.expect("c OK NOOP completed.").await?;
    client.expect("d OK").await?;
    client.expect("e OK done at old").await?;
    let connections = old.connections();
    assert_eq!(connections[0].lines.len(), 1);
    assert_eq!(connections[1].lines[1..], ["e NOOP"]);
    Ok(())
}

#[tokio::test]
async fn what_a_backend_says_behind_its_yes_follows_ours_in_order() -> Result<()> {
    let (_old, node) =
        alone(saying("TAG OK [CAPABILITY IMAP4rev1] in\r\n* OK [ALERT] mind\r\n* OK more\r\n"))
            .await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    client.expect("a OK [CAPABILITY IMAP4rev1] Logged in").await?;
    client.expect("* OK [ALERT] mind").await?;
    client.expect("* OK more").await?;
    Ok(())
}

#[tokio::test]
async fn a_backend_that_does_not_tell_its_capabilities_is_asked_and_loses_no_word() -> Result<()> {
    let (_old, node) = alone(saying("TAG OK in\r\n* OK [ALERT] mind\r\n")).await?;
    let mut client = node.connect().await?;
    client.send(b"a LOGIN ann@example.org secret\r\nb NOOP\r\n").await?;
    client.expect("a OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN] Logged in").await?;
    client.expect("* OK [ALERT] mind").await?;
    client.expect("b OK done at old").await?;
    Ok(())
}

#[tokio::test]
async fn a_literal_behind_a_login_is_not_looked_into() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = node.connect().await?;
    client
        .send(b"a LOGIN {15+}\r\nann@example.org {6+}\r\nsecret\r\nb X {9}\r\nc LOGOUT\r\n")
        .await?;
    client.expect("a OK").await?;
    client.expect("b OK done at old").await?;
    client.expect("* BYE").await?;
    assert_eq!(old.connections()[0].lines[1..], ["b X {9}", "c LOGOUT"]);
    Ok(())
}
