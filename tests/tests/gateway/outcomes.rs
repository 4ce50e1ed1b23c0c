//! One reply for what the owners said (the table of `mx_gateway::outcome`).

use anyhow::Result;
use tests::sink::{Answer, Manners};

use super::*;

/// The reply to a message for ann and ben at old and ned at new, when they say that at its end.
async fn outcome(old: Manners, new: Manners) -> Result<String> {
    let stage = Stage::set_with(old, new).await?;
    Ok(stage.send(&[ANN, BEN, NED]).await?.to_string())
}

fn verdict(line: &'static str) -> Manners {
    Manners::default().but("(verdict)", Answer::Say(line))
}

fn lmtp(ann: &'static str, ben: &'static str) -> Manners {
    Manners::lmtp()
        .but("(verdict) <ann@", Answer::Say(ann))
        .but("(verdict) <ben@", Answer::Say(ben))
}

const YES: &str = "250 2.0.0 Ok";
const FULL: &str = "452 4.2.2 Quota on sink.internal";
const SPAM: &str = "554 5.7.1 Blocked by sink.internal";

#[tokio::test]
async fn yes_from_all_owners_is_yes() -> Result<()> {
    assert!(outcome(verdict(YES), verdict(YES)).await?.starts_with("250 2.0.0 "));
    assert!(outcome(lmtp(YES, YES), verdict(YES)).await?.starts_with("250 2.0.0 "));
    Ok(())
}

#[tokio::test]
async fn a_temporary_refusal_of_one_owner_is_the_senders() -> Result<()> {
    for (old, new) in [
        (verdict(YES), verdict(FULL)),
        (verdict(FULL), verdict(SPAM)),
        (lmtp(YES, FULL), verdict(YES)),
        (lmtp(SPAM, FULL), verdict(SPAM)),
    ] {
        let reply = outcome(old, new).await?;
        assert!(reply.starts_with("452 4.2.2 ") && !reply.contains("internal"), "{reply}");
    }
    Ok(())
}

#[tokio::test]
async fn permanent_refusals_by_all_are_permanent() -> Result<()> {
    for (old, new) in [(verdict(SPAM), verdict(SPAM)), (lmtp(SPAM, SPAM), verdict(SPAM))] {
        let reply = outcome(old, new).await?;
        assert!(reply.starts_with("554 5.7.1 ") && !reply.contains("internal"), "{reply}");
    }
    Ok(())
}

#[tokio::test]
async fn a_permanent_refusal_by_some_is_told_and_not_tried_again() -> Result<()> {
    for (old, new) in [(verdict(YES), verdict(SPAM)), (lmtp(YES, SPAM), verdict(YES))] {
        let reply = outcome(old, new).await?;
        assert!(reply.starts_with("554 5.7.1 ") && reply.contains("other recipients"), "{reply}");
    }
    Ok(())
}

#[tokio::test]
async fn an_owner_without_a_verdict_keeps_the_message_with_its_sender() -> Result<()> {
    for lost in [Answer::Close, Answer::CloseWith("421 4.3.2 Going down")] {
        for old in [Manners::default(), Manners::lmtp()] {
            let reply = outcome(old.but("(verdict)", lost), verdict(YES)).await?;
            assert!(reply.starts_with("451 4.4.1 "), "{reply}");
        }
    }
    let reply =
        outcome(Manners::lmtp().but("(verdict) <ben@", Answer::Close), verdict(SPAM)).await?;
    assert!(reply.starts_with("451 4.4.1 "), "{reply}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_verdict_is_no_yes() -> Result<()> {
    for odd in ["354 Go ahead", "hello", "25", "999 what", "250-never ends\r\n550 but differs"] {
        let reply = outcome(verdict(odd), verdict(YES)).await?;
        assert!(reply.starts_with("451 4."), "{odd}: {reply}");
    }
    Ok(())
}

#[tokio::test]
async fn a_farewell_is_no_verdict_and_no_yes() -> Result<()> {
    for farewell in ["221 2.0.0 Bye", "421 4.3.2 Going down"] {
        for answer in [Answer::Say(farewell), Answer::CloseWith(farewell)] {
            for moment in ["(greeting)", "EHLO", "MAIL", "RCPT", "DATA", "(verdict)"] {
                let (old, node) = alone(Manners::default().but(moment, answer)).await?;
                let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x"))
                    .await?
                    .to_string();
                assert!(reply.starts_with("451 4.4.1 "), "{moment} {farewell}: {reply}");
                assert_eq!(old.messages().len(), usize::from(moment == "(verdict)"));
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn data_that_is_refused_is_a_verdict_and_the_connection_is_reset() -> Result<()> {
    let refusal = Answer::Once("554 5.7.0 No");
    let (old, node) = alone(Manners::default().but("DATA", refusal)).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    let reply = message(&mut client).await?;
    assert!(reply.to_string().starts_with("554 5.7.0 "), "{reply}");
    good(&mut client, "MAIL FROM:<>").await?;
    good(&mut client, "RCPT TO:<ben@example.org>").await?;
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!((old.connections().len(), old.heard("RSET").len()), (1, 1));
    assert_eq!(old.recipients(), [BEN]);
    Ok(())
}

#[tokio::test]
async fn data_that_is_refused_for_now_twice_is_refused_for_now() -> Result<()> {
    let refusal = Answer::Say("451 4.3.0 No");
    let (old, node) = alone(Manners::default().but("DATA", refusal)).await?;
    let mut client = envelope(&node, &[ANN]).await?;
    let reply = message(&mut client).await?;
    assert!(reply.to_string().starts_with("451 4.3.0 "), "{reply}");
    assert_eq!(old.heard("DATA").len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_sender_that_an_owner_refuses_is_refused_for_its_recipients_only() -> Result<()> {
    let old =
        Manners::default().but("MAIL", Answer::Say("550 5.1.8 Bad sender, says sink.internal"));
    let stage = Stage::set_with(old, Manners::default()).await?;
    let mut client = stage.envelope(&[NED]).await?;
    for to in [ANN, BEN] {
        let reply = client.command(&format!("RCPT TO:<{to}>")).await?.to_string();
        assert!(reply.starts_with("550 5.1.8 ") && !reply.contains("internal"), "{reply}");
    }
    assert_eq!(stage.old.heard("MAIL").len(), 1, "asked once");
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(stage.new.recipients(), [NED]);
    Ok(())
}

#[tokio::test]
async fn an_owners_quarrel_with_us_is_not_the_recipients() -> Result<()> {
    for (moment, line) in [
        ("MAIL", "530 5.7.0 Must issue STARTTLS first"),
        ("RCPT", "503 5.5.1 What?"),
        ("RCPT", "354 What?"),
        ("(greeting)", "554 5.7.1 Go away"),
        ("(greeting)", "220-never ends\r\n250 but differs"),
        ("EHLO", "421 4.3.2 Not now"),
    ] {
        let (_old, node) = alone(Manners::default().but(moment, Answer::Say(line))).await?;
        let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?;
        assert!(reply.to_string().starts_with("451 4."), "{moment} {line}: {reply}");
    }
    Ok(())
}

#[tokio::test]
async fn an_owners_temporary_refusal_of_a_recipient_is_passed_on() -> Result<()> {
    let greylist = Answer::Say("450 4.7.1 Greylisted by sink.internal");
    let (_old, node) = alone(Manners::default().but("RCPT", greylist)).await?;
    let reply = smtp::send(node.address, SENDER, &[ANN], &smtp::message("x")).await?.to_string();
    assert!(reply.starts_with("450 4.7.1 ") && !reply.contains("internal"), "{reply}");
    Ok(())
}

#[tokio::test]
async fn a_declared_size_that_an_owner_does_not_take_is_refused_before_it_is_asked() -> Result<()> {
    let small = Manners { keywords: vec!["SIZE 1000"], ..Manners::default() };
    let stage = Stage::set_with(small, Manners::default()).await?;
    let mut client = stage.node.connect().await?;
    good(&mut client, "EHLO c").await?;
    good(&mut client, "MAIL FROM:<> SIZE=1001").await?;
    for to in [ANN, BEN] {
        let reply = client.command(&format!("RCPT TO:<{to}>")).await?;
        assert!(reply.to_string().starts_with("552 5.3.4 "), "{reply}");
    }
    good(&mut client, "RCPT TO:<ned@example.org>").await?;
    assert_eq!(message(&mut client).await?.code, 250);
    assert!(stage.old.heard("MAIL").is_empty());
    assert_eq!(stage.new.recipients(), [NED]);
    Ok(())
}

#[tokio::test]
async fn what_mail_declared_is_declared_to_the_owner_that_knows_it() -> Result<()> {
    let plain = Manners { keywords: Vec::new(), ..Manners::default() };
    let stage = Stage::set_with(Manners::default(), plain).await?;
    let mut client = stage.node.connect().await?;
    good(&mut client, "EHLO c").await?;
    good(&mut client, "MAIL FROM:<a@b.example> SIZE=30 BODY=8BITMIME").await?;
    for to in [ANN, NED] {
        good(&mut client, &format!("RCPT TO:<{to}>")).await?;
    }
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(stage.old.heard("MAIL"), ["MAIL FROM:<a@b.example> SIZE=30 BODY=8BITMIME"]);
    assert_eq!(stage.new.heard("MAIL"), ["MAIL FROM:<a@b.example>"]);
    Ok(())
}
