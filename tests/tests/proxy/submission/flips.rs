//! A change of owner at any moment of a login or a session (P4, P5, KIK-1). A message that is being sent is
//! answered first, or it would come twice.

use std::time::Duration;

use anyhow::Result;
use shared::ownership::map::AccountRow;
use tests::login_backend::{Connection, Manners, Verdict};

use super::*;

/// Longer than any moment that a session of another protocol would be taken for quiet in.
const LONG: Duration = Duration::from_millis(300);

fn asking() -> Manners {
    Manners { verdict: Verdict::Ask, ..manners() }
}

#[tokio::test]
async fn flip_during_authentication_never_joins_the_old_owner() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set(asking(), manners()).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", "secret")).await?;
    let asked = old.asked().await?;
    node.set_owner("ann", "new");
    client.expect(YES).await?;
    client.say("NOOP").await?;
    client.expect("250 2.0.0 done at new").await?;
    node.applied().await?;
    old.until("the former owner's connection is closed", |all| all[0].closed).await?;
    assert!(!asked.say("235 in\r\n"), "its yes comes too late for anybody");
    assert_eq!((old.sessions(), new.sessions()), (0, 1));
    Ok(())
}

#[tokio::test]
async fn a_former_owners_no_does_not_count() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set(asking(), manners()).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", "secret")).await?;
    let asked = old.asked().await?;
    node.set_owner("ann", "new");
    asked.say("535 5.7.8 moved\r\n");
    client.expect(YES).await?;
    assert_eq!(new.sessions(), 1);
    Ok(())
}

#[tokio::test]
async fn a_hold_during_authentication_joins_nobody() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set(asking(), manners()).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", "secret")).await?;
    let _asked = old.asked().await?;
    node.set("ann", AccountRow { owner: "old".into(), held: true, login: true, flipped: None });
    client.expect(LATER).await?;
    node.applied().await?;
    assert_eq!((old.sessions(), new.sessions()), (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_flip_ends_a_quiet_session_with_a_plain_close() -> Result<()> {
    let Stage { old, new: _new, node } = Stage::set(manners(), manners()).await?;
    let mut silent = log_in(&node, "ann").await?;
    let mut busy = log_in(&node, "ann").await?;
    let mut other = log_in(&node, "bob").await?;
    busy.say("MAIL FROM:<a@b.example>").await?;
    busy.expect("250").await?;
    node.set_owner("ann", "new");
    assert!(silent.closed().await?.is_empty() && busy.closed().await?.is_empty());
    node.applied().await?;
    old.until("both are closed there", |all| all[0].closed && all[1].closed).await?;
    other.say("NOOP").await?;
    other.expect("250 2.0.0 done at old").await?;
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_being_sent_is_answered_before_the_session_ends() -> Result<()> {
    let Stage { mut old, new: _new, node } = Stage::set(asking(), manners()).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", "secret")).await?;
    old.asked().await?.say("235 in\r\n");
    client.expect(YES).await?;
    client.say("DATA").await?;
    client.expect("354").await?;
    client.say("Subject: a").await?;
    let begun = |all: &[Connection]| all[0].lines.last().is_some_and(|line| line == "Subject: a");
    old.until("the message has begun", begun).await?;
    node.set_owner("ann", "new");
    // Neither a client that hesitates nor a backend that thinks is quiet.
    tokio::time::sleep(LONG).await;
    client.send(b"\r\nbody\r\n.\r\n").await?;
    let asked = old.asked().await?;
    tokio::time::sleep(LONG).await;
    assert!(asked.say("250 2.0.0 taken\r\n"));
    client.expect("250 2.0.0 taken").await?;
    assert!(client.closed().await?.is_empty());
    node.applied().await?;
    let connections = old.until("it is closed there", |all| all[0].closed).await?;
    assert_eq!(connections[0].lines.last().map(String::as_str), Some("."));
    Ok(())
}

#[tokio::test]
async fn a_message_without_end_is_not_waited_for() -> Result<()> {
    let mut short = settings();
    short.rules.data_grace = LONG;
    let Stage { old, new: _new, node } = Stage::set_with(manners(), manners(), short).await?;
    let mut client = log_in(&node, "ann").await?;
    client.say("DATA").await?;
    client.expect("354").await?;
    client.say("Subject: a").await?;
    node.set_owner("ann", "new");
    assert!(client.closed().await?.is_empty());
    node.applied().await?;
    old.until("it is closed there", |all| all[0].closed).await?;
    Ok(())
}

/// A client in the middle of a message that would be waited for nearly for ever.
async fn sending() -> Result<(Stage, Conversation)> {
    let mut patient = settings();
    patient.rules.data_grace = Duration::from_hours(1);
    let stage = Stage::set_with(manners(), manners(), patient).await?;
    let mut client = log_in(&stage.node, "ann").await?;
    client.say("DATA").await?;
    client.expect("354").await?;
    client.say("Subject: a").await?;
    let begun = |all: &[Connection]| all[0].lines.last().is_some_and(|line| line == "Subject: a");
    stage.old.until("the message has begun", begun).await?;
    Ok((stage, client))
}

#[tokio::test]
async fn a_hold_does_not_wait_long_for_a_message() -> Result<()> {
    let (Stage { node, .. }, mut client) = sending().await?;
    node.set("ann", AccountRow { owner: "old".into(), held: true, login: true, flipped: None });
    assert!(client.closed().await?.is_empty());
    node.applied().await?;
    Ok(())
}

/// Fences do not wait for a node whose lease has ended, so nothing may go on there.
#[tokio::test]
async fn a_message_does_not_outlive_the_lease() -> Result<()> {
    let (Stage { node, .. }, mut client) = sending().await?;
    node.set_owner("ann", "new");
    tokio::time::sleep(LONG).await;
    node.ownership.lease().end();
    node.ownership.registry().mark_all();
    assert!(client.closed().await?.is_empty());
    node.applied().await?;
    Ok(())
}

#[tokio::test]
async fn a_yes_that_comes_after_the_lease_does_not_count() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set(asking(), asking()).await?;
    let mut client = come(&node).await?;
    client.say(&plain("ann", "secret")).await?;
    let asked = old.asked().await?;
    node.ownership.lease().end();
    asked.say("235 in\r\n");
    client.expect(LATER).await?;
    old.until("the attempt is closed unjoined", |all| all[0].closed).await?;
    assert_eq!(new.connections().len(), 0);
    Ok(())
}
