//! A message that comes again because its sender did not hear the reply is delivered once (SPL-8); one that its
//! sender means to send twice is delivered twice.

use std::time::Duration;

use anyhow::Result;
use sha2::{Digest, Sha256};
use shared::config::MxKind;
use tests::gateway_node::Settings;
use tests::node::{Node, Options, by_lmtp};
use tests::patience::until;
use tests::place::Place;
use tests::ports;
use tests::sink::{Answer, Manners, Sink};
use tests::table::{Engine, Table};
use tests::test_ca::TestCa;

use super::*;

const TEXT: &str = "Message-ID: <1@example.com>\r\nSubject: once\r\n\r\nhello\r\n";
const FULL: &str = "452 4.2.2 Quota";

/// A client that has sent a whole message and not read the reply.
async fn say(node: &GatewayNode, to: &[&str]) -> Result<Smtp> {
    let mut client = envelope(node, to).await?;
    good(&mut client, "DATA").await?;
    client.conversation.send(format!("{TEXT}.\r\n").as_bytes()).await?;
    Ok(client)
}

/// The same message from a client that waits for the reply and takes its leave.
async fn send_again(node: &GatewayNode, to: &[&str]) -> Result<String> {
    let mut client = say(node, to).await?;
    let reply = client.reply().await?;
    assert_eq!(client.command("QUIT").await?.code, 221);
    Ok(reply.to_string())
}

/// The reply that a client gets which goes without a word behind it: it may not have heard.
async fn send_again_and_leave(node: &GatewayNode) -> Result<String> {
    Ok(say(node, &[ANN]).await?.reply().await?.to_string())
}

async fn until_known(node: &GatewayNode, count: usize) -> Result<()> {
    until("it is remembered", || (node.fingerprints.len() == count).then_some(())).await
}

/// Sends to ann from a client that goes away without its reply, and waits until that is known.
async fn send_unheard(node: &GatewayNode) -> Result<()> {
    drop(say(node, &[ANN]).await?);
    until_known(node, 1).await
}

#[tokio::test]
async fn a_retry_after_a_lost_reply_is_answered_and_not_delivered_again() -> Result<()> {
    let (mut old, node) = alone(Manners::default().but("(verdict)", Answer::Ask)).await?;
    let client = say(&node, &[ANN]).await?;
    let asked = old.asked().await?;
    drop(client);
    until("the client is missed", || (node.fingerprints.in_hand() == 1).then_some(())).await?;
    assert!(asked.say("250 2.0.0 Ok"));
    until_known(&node, 1).await?;
    for reply in [send_again_and_leave(&node).await?, send_again(&node, &[ANN]).await?] {
        assert!(reply.starts_with("250 2.0.0 Ok, already delivered as "), "{reply}");
    }
    assert_eq!((old.messages().len(), node.fingerprints.in_hand()), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_without_a_word_may_not_have_heard() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = say(&node, &[ANN]).await?;
    assert_eq!(client.reply().await?.code, 250);
    drop(client);
    until_known(&node, 1).await?;
    assert!(send_again(&node, &[ANN]).await?.contains("already delivered"));
    assert_eq!(old.messages().len(), 1);
    Ok(())
}

#[tokio::test]
async fn who_has_heard_and_sends_the_same_again_means_it() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    for farewell in ["QUIT", "RSET", "NOOP", "MAIL FROM:<x@example.com>"] {
        let before = old.messages().len();
        for _ in 0..2 {
            let mut client = say(&node, &[ANN]).await?;
            let reply = client.reply().await?.to_string();
            assert!(reply.starts_with("250 2.0.0 Ok, delivered as "), "{farewell}: {reply}");
            client.command(farewell).await?;
        }
        assert_eq!(old.messages().len(), before + 2, "{farewell}");
    }
    node.shut_down(Duration::from_secs(5)).await;
    assert!(node.fingerprints.is_empty());
    Ok(())
}

#[tokio::test]
async fn who_has_heard_that_it_came_before_and_sends_the_same_again_means_it() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut gone = say(&node, &[ANN]).await?;
    gone.reply().await?;
    drop(gone);
    tests::patience::until("it is remembered", || (node.fingerprints.len() == 1).then_some(()))
        .await?;
    for (words, count) in [("already delivered", 1), ("delivered as", 2), ("delivered as", 3)] {
        let mut client = say(&node, &[ANN]).await?;
        let reply = client.reply().await?.to_string();
        assert!(reply.contains(words), "{reply}");
        client.command("QUIT").await?;
        drop(client);
        old.until("it is there", |old| old.messages().len() >= count).await?;
        tests::patience::until("it is forgotten", || node.fingerprints.is_empty().then_some(()))
            .await?;
    }
    assert_eq!(old.messages().len(), 3);
    Ok(())
}

#[tokio::test]
async fn a_goodbye_that_was_said_in_advance_counts_when_it_is_answered() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    for _ in 0..2 {
        let mut client = envelope(&node, &[ANN]).await?;
        good(&mut client, "DATA").await?;
        client.conversation.send(format!("{TEXT}.\r\nQUIT\r\n").as_bytes()).await?;
        assert_eq!(client.reply().await?.code, 250);
        assert_eq!(client.reply().await?.code, 221);
        client.conversation.closed().await?;
    }
    assert_eq!((old.messages().len(), node.fingerprints.len()), (2, 0));
    Ok(())
}

#[tokio::test]
async fn a_goodbye_from_a_client_that_did_not_wait_for_the_reply_is_none() -> Result<()> {
    let (mut old, node) = alone(Manners::default().but("(verdict)", Answer::Ask)).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    good(&mut client, "DATA").await?;
    client.conversation.send(format!("{TEXT}.\r\nQUIT\r\n").as_bytes()).await?;
    let asked = old.asked().await?;
    drop(client);
    until("the client is missed", || (node.fingerprints.in_hand() == 1).then_some(())).await?;
    assert!(asked.say("250 2.0.0 Ok"));
    until_known(&node, 1).await?;
    assert!(send_again(&node, &[ANN]).await?.contains("already delivered"));
    Ok(())
}

#[tokio::test]
async fn a_retry_of_a_message_that_some_have_goes_to_the_others_only() -> Result<()> {
    let new = Manners::default().but("(verdict)", Answer::Once(FULL));
    let stage = Stage::set_with(Manners::default(), new).await?;
    let reply = send_again(&stage.node, &[ANN, NED]).await?;
    assert!(reply.starts_with("452 4.2.2 "), "{reply}");
    let reply = send_again(&stage.node, &[ANN, NED]).await?;
    assert!(reply.starts_with("250 2.0.0 "), "{reply}");
    assert_eq!((stage.old.messages().len(), stage.new.messages().len()), (1, 2));
    Ok(())
}

#[tokio::test]
async fn a_retry_while_the_message_is_in_hand_is_put_off() -> Result<()> {
    for verdict in ["250 2.0.0 Ok", FULL] {
        let (mut old, node) = alone(Manners::default().but("(verdict)", Answer::Ask)).await?;
        let client = say(&node, &[ANN]).await?;
        let asked = old.asked().await?;
        drop(client);
        until("the client is missed", || (node.fingerprints.in_hand() == 1).then_some(())).await?;
        let reply = send_again(&node, &[ANN, BEN]).await?;
        assert!(reply.starts_with("451 4.4.5 "), "{reply}");
        assert_eq!(old.messages().len(), 1, "nobody gets anything by it");
        assert!(asked.say(verdict));
        until("it is settled", || (node.fingerprints.in_hand() == 0).then_some(())).await?;
        let mut client = say(&node, &[ANN]).await?;
        if verdict == FULL {
            assert!(old.asked().await?.say("250 2.0.0 Ok"), "who has not got it gets it now");
        }
        assert_eq!(client.reply().await?.code, 250);
        assert_eq!(old.messages().len(), if verdict == FULL { 2 } else { 1 });
    }
    Ok(())
}

#[tokio::test]
async fn another_sender_recipient_or_content_is_another_message() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    send_unheard(&node).await?;
    let other = TEXT.replace("hello", "hullo");
    for (from, to, text) in
        [("x@example.com", ANN, TEXT), (SENDER, BEN, TEXT), (SENDER, ANN, &other)]
    {
        let reply = smtp::send(node.address, from, &[to], text).await?.to_string();
        assert!(reply.contains("Ok, delivered as"), "{reply}");
    }
    assert_eq!(old.messages().len(), 4);
    let reply = smtp::send(node.address, SENDER, &["ann@EXAMPLE.org", BEN], &other).await?;
    assert_eq!((reply.code, old.messages().len()), (250, 5));
    assert_eq!(old.messages()[4].to, [BEN], "ann has it");
    Ok(())
}

#[tokio::test]
async fn who_has_a_message_does_not_get_it_again_at_another_owner() -> Result<()> {
    let stage = Stage::set().await?;
    send_unheard(&stage.node).await?;
    stage.node.set_owner("ann", "new");
    stage.node.applied().await?;
    assert!(send_again(&stage.node, &[ANN]).await?.contains("already delivered"));
    assert!(stage.new.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn after_its_time_a_message_is_delivered_as_if_it_were_new() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    send_unheard(&node).await?;
    node.fingerprints.keep_for(Duration::from_millis(1));
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(send_again(&node, &[ANN]).await?.contains("Ok, delivered as"));
    node.fingerprints.keep_for(Duration::ZERO);
    drop(say(&node, &[ANN]).await?);
    old.until("it has come", |old| old.messages().len() == 3).await?;
    assert!(send_again(&node, &[ANN]).await?.contains("Ok, delivered as"));
    assert_eq!(old.messages().len(), 4);
    Ok(())
}

#[tokio::test]
async fn with_lmtp_each_recipient_is_known_by_itself() -> Result<()> {
    let old = Sink::start("old", Manners::default()).await?;
    let settings = Settings { kind: MxKind::Lmtp, ..Settings::default() };
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    node.set_owner("ben", "old");
    let say = async |to: &[&str]| {
        let mut client = node.connect().await?;
        good(&mut client, "LHLO client.example.com").await?;
        good(&mut client, &format!("MAIL FROM:<{SENDER}>")).await?;
        for to in to {
            good(&mut client, &format!("RCPT TO:<{to}>")).await?;
        }
        good(&mut client, "DATA").await?;
        client.conversation.send(format!("{TEXT}.\r\n").as_bytes()).await?;
        anyhow::Ok(client)
    };
    drop(say(&[ANN]).await?);
    until_known(&node, 1).await?;
    let mut client = say(&[ANN, BEN]).await?;
    for _ in 0..2 {
        assert_eq!(client.reply().await?.code, 250);
    }
    assert_eq!(old.recipients(), [ANN, BEN]);
    let mut client = say(&[ANN, ANN]).await?;
    for _ in 0..2 {
        assert!(client.reply().await?.to_string().contains("already delivered"));
    }
    assert_eq!(old.messages().len(), 2);
    Ok(())
}

#[tokio::test]
async fn what_is_kept_for_a_held_account_is_not_kept_twice() -> Result<()> {
    let (old, place) = (Sink::start("old", Manners::default()).await?, Place::new()?);
    let start = || {
        let settings = Settings::default();
        GatewayNode::start_with_spool([old.configured()], settings, place.path())
    };
    let node = start().await?;
    node.hold("ann", "old");
    send_unheard(&node).await?;
    assert!(send_again_and_leave(&node).await?.contains("already delivered"));
    assert_eq!(node.queue.as_ref().map(|queue| queue.len()), Some(1));
    node.set_owner("ann", "old");
    old.until("it has come", |old| old.messages().len() == 1).await?;
    assert!(send_again(&node, &[ANN]).await?.contains("already delivered"));
    assert_eq!(old.messages().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_process_that_was_killed_has_left_what_it_knew_to_the_next() -> Result<()> {
    let table = Table::create(Engine::Sqlite)?;
    table.sql(&format!(
        "INSERT INTO domains (domain) VALUES ('example.org');
         INSERT INTO accounts (account, owner) VALUES ('{ANN}', 'old');"
    ))?;
    let old = Sink::start("old", Manners::lmtp()).await?;
    let backend = by_lmtp("old", old.address, ports::reserve_one()?);
    let options = Options {
        name: "node1".to_owned(),
        url: table.url(),
        backends: backend.replace("\"xclient\"", "\"none\""),
        ..Options::default()
    };
    let ca = TestCa::new()?;
    let mut node = Node::start(&options, &ca).await?;
    let text = smtp::message("once");
    let reply = smtp::send(node.smtp(), SENDER, &[ANN], &text).await?;
    assert_eq!(reply.code, 250);
    let file = node.directory().join("state/mx-gateway/spool/fingerprints");
    until("it is written down", || {
        std::fs::read_to_string(&file).ok().filter(|text| text.lines().count() == 2)
    })
    .await?;
    node.crash()?;
    node.resume().await?;
    let reply = smtp::send(node.smtp(), SENDER, &[ANN], &text).await?.to_string();
    assert!(reply.starts_with("250 2.0.0 Ok, already delivered as "), "{reply}");
    assert_eq!(old.messages().len(), 1);
    node.stop()
}

#[tokio::test]
async fn every_delivery_of_a_message_carries_the_same_id_in_front_of_it() -> Result<()> {
    let new = Manners::default().but("(verdict)", Answer::Once(FULL));
    let stage = Stage::set_with(Manners::default(), new).await?;
    send_again(&stage.node, &[ANN, NED]).await?;
    send_again(&stage.node, &[ANN, NED]).await?;
    let mut expected = String::from("\r\nMailshift-Delivery-Id: ");
    let digest = Sha256::digest(TEXT);
    digest[..16].iter().for_each(|octet| expected += &format!("{octet:02x}"));
    expected += "\r\n";
    let copies = [stage.old.messages(), stage.new.messages()].concat();
    assert_eq!(copies.len(), 3);
    for copy in copies {
        let text = copy.text();
        let (ours, message) = text.split_at(text.len() - TEXT.len());
        assert!(ours.ends_with(&expected) && message == TEXT, "{text}");
    }
    Ok(())
}
