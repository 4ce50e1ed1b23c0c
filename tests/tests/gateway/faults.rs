//! Owners that hang up, hang or talk nonsense, and senders that leave: nothing is lost, little is doubled.

use std::time::Duration;

use anyhow::Result;
use tests::gateway_node::Settings;
use tests::sink::{Answer, Manners, Sink};

use super::*;

#[tokio::test]
async fn a_kept_connection_serves_the_next_message() -> Result<()> {
    let stage = Stage::set().await?;
    for _ in 0..3 {
        assert_eq!(stage.send(&[ANN]).await?.code, 250);
    }
    assert_eq!((stage.old.connections().len(), stage.old.messages().len()), (1, 3));
    Ok(())
}

#[tokio::test]
async fn a_kept_connection_that_fails_is_replaced_and_nobody_notices() -> Result<()> {
    for fault in [
        Answer::CloseOnce,
        Answer::Once("421 4.4.2 Idle for too long"),
        Answer::Once("452 4.3.2 Too many messages on this connection"),
        Answer::Once("what?"),
    ] {
        for moment in ["MAIL FROM:<second@", "RCPT TO:<ben@"] {
            let (old, node) = alone(Manners::default().but(moment, fault)).await?;
            for (sender, to) in [("first@example.com", ANN), ("second@example.com", BEN)] {
                let reply = smtp::send(node.address, sender, &[to], &smtp::message("x")).await?;
                assert_eq!(reply.code, 250, "{moment} {fault:?}: {reply}");
            }
            assert_eq!((old.connections().len(), old.messages().len()), (2, 2));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_on_which_an_owner_refused_many_is_not_kept() -> Result<()> {
    let refusal = Answer::Say("550 5.1.1 unknown");
    let (old, node) = alone(Manners::default().but("RCPT TO:<gone", refusal)).await?;
    node.set_domain(Some("old"));
    for _ in 0..2 {
        let mut client = envelope(&node, &[ANN]).await?;
        for number in 0..8 {
            client.command(&format!("RCPT TO:<gone{number}@example.org>")).await?;
        }
        assert_eq!(message(&mut client).await?.code, 250);
    }
    assert_eq!(old.connections().len(), 2);
    Ok(())
}

#[tokio::test]
async fn an_owner_that_gave_up_before_data_is_asked_anew() -> Result<()> {
    for fault in [
        Answer::CloseOnce,
        Answer::Once("421 4.4.2 You took too long"),
        Answer::Once("221 2.0.0 Bye"),
        Answer::Once("453 4.3.2 The transaction took too long"),
        Answer::Once("250 2.0.0 What?"),
    ] {
        let (old, node) = alone(Manners::default().but("DATA", fault)).await?;
        let mut client = envelope(&node, &[ANN, BEN]).await?;
        assert_eq!(message(&mut client).await?.code, 250, "{fault:?}");
        assert_eq!((old.connections().len(), old.recipients()), (2, vec![ANN.into(), BEN.into()]));
    }
    Ok(())
}

#[tokio::test]
async fn an_owner_that_hangs_up_among_recipients_gets_each_once() -> Result<()> {
    for fault in [Answer::CloseOnce, Answer::Once("421 4.7.0 Too many errors")] {
        let (old, node) = alone(Manners::default().but("RCPT TO:<ben@", fault)).await?;
        let mut client = envelope(&node, &[ANN, BEN]).await?;
        assert_eq!(message(&mut client).await?.code, 250, "{fault:?}");
        assert_eq!((old.messages().len(), old.recipients()), (1, vec![ANN.into(), BEN.into()]));
    }
    Ok(())
}

#[tokio::test]
async fn an_owner_that_hangs_up_within_the_message_has_not_got_it() -> Result<()> {
    let (old, node) = alone(Manners::default().but("(content)", Answer::CloseOnce)).await?;
    let first = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
    assert!(first.to_string().starts_with("451 4.4.1 "), "{first}");
    assert_eq!(smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?.code, 250);
    assert_eq!(old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn an_owner_that_never_answers_is_given_up() -> Result<()> {
    for moment in ["(greeting)", "EHLO", "MAIL", "RCPT", "DATA", "(content)", "(verdict)"] {
        let old = Sink::start("old", Manners::default().but(moment, Answer::Hang)).await?;
        let short = Duration::from_millis(100);
        let mut settings = Settings::default();
        settings.rules.delivery_timeout = short;
        let backend = old.configured_as(|endpoint| endpoint.reply_timeout = short);
        let node = GatewayNode::start_with([backend], settings)?;
        node.set_owner("ann", "old");
        let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
        assert!(reply.to_string().starts_with("451 4.4.1 "), "{moment}: {reply}");
        node.until_deliveries(0).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_message_that_was_given_up_does_not_arrive_later() -> Result<()> {
    let manners = Manners::default().but("(content)", Answer::Pause);
    let mut old = Sink::start("old", manners).await?;
    let mut settings = Settings::default();
    settings.rules.delivery_timeout = Duration::from_millis(100);
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_owner("ann", "old");
    // More than the owner's socket takes, less than ours keeps.
    let content = format!("{}\r\n", "x".repeat(998)).repeat(500);
    let reply = smtp::send(node.address, SENDER, &[ANN], &content).await?;
    assert!(reply.to_string().starts_with("451 4.4.1 "), "{reply}");
    assert!(old.asked().await?.say(""), "it reads on");
    old.until("it is hung up on", |old| old.connections()[0].closed).await?;
    assert!(old.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn an_owner_that_answers_a_recipient_too_late_is_hung_up_on_and_not_asked_again() -> Result<()>
{
    let manners = Manners::default().but("RCPT TO:<ben@", Answer::Ask);
    let mut old = Sink::start("old", manners).await?;
    let settings = Settings { ask_timeout: Duration::from_millis(100), ..Settings::default() };
    let node = GatewayNode::start_with([old.configured()], settings)?;
    node.set_domain(Some("old"));
    let mut client = envelope(&node, &[ANN]).await?;
    for to in [BEN, NED] {
        let reply = client.command(&format!("RCPT TO:<{to}>")).await?;
        assert!(reply.to_string().starts_with("451 4.4.1 "), "{to}: {reply}");
    }
    let late = old.asked().await?;
    old.until("it is hung up on", |old| old.connections()[0].closed).await?;
    assert!(!late.say("250 2.1.5 Ok") && old.connections().len() == 1);
    // Who was accepted before is asked anew.
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn an_owner_that_talks_without_end_is_given_up() -> Result<()> {
    const ENDLESS: &str = "250-x\r\n250-x\r\n250-x\r\n250-x\r\n250-x\r\n250-x\r\n250-x\r\n250-x";
    let many: &'static str = Box::leak(format!("{ENDLESS}\r\n").repeat(100).into_boxed_str());
    let long: &'static str = Box::leak(format!("250 {}", "x".repeat(13 * 1024)).into_boxed_str());
    for talk in [many, long] {
        let (_old, node) = alone(Manners::default().but("RCPT", Answer::Say(talk))).await?;
        let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
        assert!(reply.to_string().starts_with("451 4.4.1 "), "{reply}");
    }
    Ok(())
}

#[tokio::test]
async fn a_sender_that_leaves_after_the_dot_does_not_stop_the_delivery() -> Result<()> {
    let (mut old, node) = alone(Manners::default().but("(verdict)", Answer::Ask)).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    say_message(&mut client).await?;
    let asked = old.asked().await?;
    drop(client);
    assert!(asked.say("250 2.0.0 Ok"), "the gateway still listens");
    node.until_deliveries(0).await?;
    old.until("the verdict was said", |old| !old.messages()[0].verdicts.is_empty()).await?;
    assert_eq!(old.recipients(), [ANN]);
    Ok(())
}

#[tokio::test]
async fn a_sender_that_leaves_within_the_message_has_sent_none() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    good(&mut client, "DATA").await?;
    client.conversation.send(b"Subject: x\r\n\r\nhalf a mess").await?;
    drop(client);
    old.until("the transaction ends", |old| {
        old.connections()[0].closed || old.heard("RSET").len() == 1
    })
    .await?;
    assert!(old.heard("DATA").is_empty() && old.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_is_reset_leaves_a_connection_for_the_next() -> Result<()> {
    let (old, node) = alone(Manners::default()).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    good(&mut client, "RSET").await?;
    good(&mut client, "MAIL FROM:<>").await?;
    good(&mut client, "RCPT TO:<ben@example.org>").await?;
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!((old.connections().len(), old.recipients()), (1, vec![BEN.into()]));
    Ok(())
}

#[tokio::test]
async fn a_connection_on_which_nobody_was_accepted_is_kept() -> Result<()> {
    let refusal = Answer::Say("550 5.1.1 unknown");
    let old = Manners::default().but("RCPT TO:<ann@", refusal);
    let stage = Stage::set_with(old, Manners::default()).await?;
    let mut client = stage.envelope(&[NED]).await?;
    assert_eq!(client.command("RCPT TO:<ann@example.org>").await?.code, 550);
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(stage.send(&[BEN]).await?.code, 250);
    assert_eq!((stage.old.connections().len(), stage.old.heard("RSET").len()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn an_owner_that_hangs_up_at_rset_is_connected_to_anew() -> Result<()> {
    let (old, node) = alone(Manners::default().but("RSET", Answer::Close)).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    good(&mut client, "RSET").await?;
    good(&mut client, "MAIL FROM:<>").await?;
    good(&mut client, "RCPT TO:<ben@example.org>").await?;
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!((old.connections().len(), old.recipients()), (2, vec![BEN.into()]));
    Ok(())
}

#[tokio::test]
async fn nonsense_from_one_client_is_nobody_elses() -> Result<()> {
    let stage = Stage::set().await?;
    let mut broken = stage.envelope(&[ANN]).await?;
    broken.conversation.send(&[0xff; 100_000]).await.ok();
    assert_eq!(stage.send(&[ANN, NED]).await?.code, 250);
    Ok(())
}
