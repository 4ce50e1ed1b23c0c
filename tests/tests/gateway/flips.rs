//! Changes of the table while a message is on its way: it ends up with the owner of then, and no former
//! owner's yes counts.

use anyhow::Result;
use tests::sink::{Answer, Manners, Sink};

use super::*;

#[tokio::test]
async fn flip_between_rcpt_and_data_delivers_to_the_new_owner() -> Result<()> {
    let stage = Stage::set().await?;
    let mut client = stage.envelope(&[ANN]).await?;
    stage.node.set_owner("ann", "new");
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(stage.new.recipients(), [ANN]);
    assert!(stage.old.heard("DATA").is_empty() && stage.old.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn flip_of_one_recipient_leaves_the_others_with_their_owner() -> Result<()> {
    let stage = Stage::set().await?;
    let mut client = stage.envelope(&[ANN, BEN, NED]).await?;
    stage.node.set_owner("ann", "new");
    assert_eq!(message(&mut client).await?.code, 250);
    // On the transaction at old ann was accepted, which cannot be taken back: it never got the data.
    assert_eq!(stage.old.recipients(), [BEN]);
    assert_eq!(stage.new.recipients(), [ANN, NED]);
    Ok(())
}

#[tokio::test]
async fn a_new_owner_that_does_not_know_the_account_decides() -> Result<()> {
    let refusal = Answer::Say("550 5.1.1 unknown");
    let new = Manners::default().but("RCPT TO:<ann@", refusal);
    let stage = Stage::set_with(Manners::default(), new).await?;
    let mut client = stage.envelope(&[ANN]).await?;
    stage.node.set_owner("ann", "new");
    let reply = message(&mut client).await?;
    assert_eq!(reply.to_string(), "550 5.1.1 <ann@example.org>: no such recipient");
    assert!(stage.old.messages().is_empty() && stage.new.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_change_that_keeps_the_owner_keeps_the_transaction() -> Result<()> {
    let stage = Stage::set().await?;
    let mut client = stage.envelope(&[ANN]).await?;
    stage.node.set_owner("ann", "old");
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!((stage.old.connections().len(), stage.old.heard("RCPT").len()), (1, 1));
    Ok(())
}

#[tokio::test]
async fn flip_between_the_last_octet_and_the_owners_yes_makes_it_void() -> Result<()> {
    for manners in [Manners::default(), Manners::lmtp()] {
        let manners = manners.but("(verdict)", Answer::Ask);
        let mut stage = Stage::set_with(manners, Manners::default()).await?;
        let mut client = stage.envelope(&[ANN]).await?;
        say_message(&mut client).await?;
        let asked = stage.old.asked().await?;
        stage.node.set_owner("ann", "new");
        // The connection is closed before the flip counts as applied, so nobody hears a late yes.
        stage.node.applied().await?;
        stage.old.until("it is hung up on", |old| old.connections()[0].closed).await?;
        asked.say("250 2.0.0 Too late");
        let reply = client.reply().await?;
        assert!(reply.to_string().starts_with("451 4."), "{reply}");
        assert!(stage.new.messages().is_empty(), "the sender keeps it and comes again");
        assert!(stage.send(&[ANN]).await?.is_positive());
        assert_eq!(stage.new.recipients(), [ANN]);
    }
    Ok(())
}

#[tokio::test]
async fn a_yes_that_arrives_after_the_lease_has_ended_does_not_count() -> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::Ask);
    let mut stage = Stage::set_with(manners, Manners::default()).await?;
    let mut client = stage.envelope(&[ANN]).await?;
    say_message(&mut client).await?;
    let asked = stage.old.asked().await?;
    // Nobody has noticed yet that it ended: the yes itself must be compared with it.
    stage.node.ownership.lease().end();
    assert!(asked.say("250 2.0.0 Ok"));
    let reply = client.reply().await?;
    assert!(reply.to_string().starts_with("451 4."), "{reply}");
    Ok(())
}

#[tokio::test]
async fn the_end_of_the_lease_ends_what_is_being_delivered() -> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::Ask);
    let mut stage = Stage::set_with(manners, Manners::default()).await?;
    let mut client = stage.envelope(&[ANN]).await?;
    say_message(&mut client).await?;
    let _asked = stage.old.asked().await?;
    stage.node.end_lease();
    assert!(client.reply().await?.to_string().starts_with("451 4."));
    stage.old.until("it is hung up on", |old| old.connections()[0].closed).await
}

#[tokio::test]
async fn flip_while_the_message_is_being_sent_closes_the_connection() -> Result<()> {
    let manners = Manners::default().but("(content)", Answer::Hang);
    let stage = Stage::set_with(manners, Manners::default()).await?;
    let mut client = stage.envelope(&[ANN]).await?;
    good(&mut client, "DATA").await?;
    let line = format!("{}\r\n", "x".repeat(998));
    client.conversation.send(line.repeat(20_000).as_bytes()).await?;
    client.conversation.send(b".\r\n").await?;
    stage.node.delivering().await?;
    stage.node.set_owner("ann", "new");
    stage.node.applied().await?;
    assert!(client.reply().await?.to_string().starts_with("451 4."));
    Ok(())
}

#[tokio::test]
async fn what_a_former_owner_has_not_received_yet_it_never_gets() -> Result<()> {
    let cuts: [fn(&GatewayNode); 3] = [
        |node| _ = node.set_owner("ann", "new"),
        |node| _ = node.hold("ann", "old"),
        |node| node.end_lease(),
    ];
    for cut in cuts {
        let manners = Manners::default().but("(content)", Answer::Pause);
        let mut stage = Stage::set_with(manners, Manners::default()).await?;
        let mut client = stage.envelope(&[ANN]).await?;
        good(&mut client, "DATA").await?;
        // More than the owner's socket takes, less than ours keeps: all of it is sent and not received.
        let line = format!("{}\r\n", "x".repeat(998));
        client.conversation.send(line.repeat(200).as_bytes()).await?;
        client.conversation.send(b".\r\n").await?;
        let paused = stage.old.asked().await?;
        cut(&stage.node);
        stage.node.applied().await?;
        assert!(paused.say(""), "it reads on");
        stage.old.until("it is hung up on", |old| old.connections()[0].closed).await?;
        assert!(stage.old.messages().is_empty());
        assert!(client.reply().await?.to_string().starts_with("451 4."));
    }
    Ok(())
}

#[tokio::test]
async fn a_flip_waits_for_no_other_owner() -> Result<()> {
    let old = Manners::default().but("(verdict)", Answer::Ask);
    let new = Manners::default().but("(verdict)", Answer::Ask);
    let mut stage = Stage::set_with(old, new).await?;
    let mut client = stage.envelope(&[ANN, NED]).await?;
    say_message(&mut client).await?;
    let (of_old, of_new) = (stage.old.asked().await?, stage.new.asked().await?);
    assert!(of_new.say("250 2.0.0 Ok"));
    stage.node.until_deliveries(1).await?;
    // ned's verdict is recorded: a change waits for nothing, and takes nothing back.
    stage.node.set_owner("ned", "old");
    assert!(stage.node.ownership.registry().busy().is_empty());
    assert!(of_old.say("250 2.0.0 Ok"));
    assert_eq!(client.reply().await?.code, 250);
    Ok(())
}

#[tokio::test]
async fn a_change_of_another_account_disturbs_nobody() -> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::Ask);
    let mut stage = Stage::set_with(manners, Manners::default()).await?;
    let mut client = stage.envelope(&[ANN]).await?;
    say_message(&mut client).await?;
    let asked = stage.old.asked().await?;
    stage.node.set_owner("ben", "new");
    stage.node.set_owner("nobody", "new");
    assert!(asked.say("250 2.0.0 Ok"));
    assert_eq!(client.reply().await?.code, 250);
    Ok(())
}

#[tokio::test]
async fn an_alias_that_moves_to_another_account_moves_the_message() -> Result<()> {
    let stage = Stage::set().await?;
    stage.node.set_alias("info@example.org", "ann");
    let mut client = stage.envelope(&["info@example.org"]).await?;
    stage.node.set_alias("info@example.org", "ned");
    assert_eq!(message(&mut client).await?.code, 250);
    assert_eq!(stage.new.recipients(), ["info@example.org"]);
    assert!(stage.old.messages().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_row_that_appears_ends_a_delivery_by_the_domains_default() -> Result<()> {
    let manners = Manners::default().but("(verdict)", Answer::Ask);
    let mut stage = Stage::set_with(manners, Manners::default()).await?;
    stage.node.set_domain(Some("old"));
    let mut client = stage.envelope(&["eve@example.org"]).await?;
    say_message(&mut client).await?;
    let _asked = stage.old.asked().await?;
    stage.node.set_owner("eve", "new");
    stage.node.applied().await?;
    assert!(client.reply().await?.to_string().starts_with("451 4."));
    Ok(())
}

#[tokio::test]
async fn hold_between_rcpt_and_data_leaves_the_message_with_its_sender() -> Result<()> {
    let stage = Stage::set().await?;
    let mut client = stage.envelope(&[ANN]).await?;
    stage.node.hold("ann", "old");
    let reply = message(&mut client).await?;
    assert!(reply.to_string().starts_with("451 4.3.2 "), "{reply}");
    assert!(stage.old.heard("DATA").is_empty());
    Ok(())
}

#[tokio::test]
async fn flips_while_many_messages_come_lose_none() -> Result<()> {
    let stage = Stage::set().await?;
    let flipping = async {
        for round in 0..200 {
            stage.node.set_owner("ann", if round % 2 == 0 { "new" } else { "old" });
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let sending = async {
        let mut accepted = Vec::new();
        for number in 0..100 {
            let id = format!("number-{number}-");
            loop {
                let mut client = stage.envelope(&[ANN]).await?;
                good(&mut client, "DATA").await?;
                client.conversation.send(format!("Subject: {id}\r\n\r\n.\r\n").as_bytes()).await?;
                let reply = client.reply().await?;
                if reply.is_positive() {
                    break accepted.push(id);
                }
                assert_eq!(reply.code / 100, 4, "{reply}");
            }
        }
        anyhow::Ok(accepted)
    };
    let (accepted, ()) = tokio::join!(sending, flipping);
    let texts: Vec<String> =
        [&stage.old, &stage.new].iter().flat_map(|s| s.messages()).map(|m| m.text()).collect();
    for id in accepted? {
        assert!(texts.iter().any(|text| text.contains(&id)), "{id} is lost");
    }
    Ok(())
}

#[tokio::test]
async fn a_verdict_that_came_before_the_flip_of_another_recipient_is_known() -> Result<()> {
    let manners = Manners::lmtp().but("(verdict) <ben@", Answer::Ask);
    let old = Sink::start("old", manners).await?;
    let new = Sink::start("new", Manners::lmtp()).await?;
    let mut stage =
        Stage { node: GatewayNode::start([old.configured(), new.configured()])?, old, new };
    populate(&stage.node);
    let mut client = stage.envelope(&[ANN, BEN]).await?;
    say_message(&mut client).await?;
    let _asked = stage.old.asked().await?;
    stage.node.set_owner("ben", "new");
    stage.node.applied().await?;
    let reply = client.reply().await?;
    assert!(reply.to_string().starts_with("451 4."), "ann has it, ben has not: {reply}");
    Ok(())
}
