//! A change of owner at any moment of a login or a session (P4, P5).

use anyhow::Result;
use shared::ownership::map::AccountRow;

use super::{LATER, asking, manners, set, try_in};
use crate::Stage;

const YES: &str = "+OK in\r\n";

#[tokio::test]
async fn flip_during_authentication_never_joins_the_old_owner() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), manners()).await?;
    let mut client = node.connect().await?;
    try_in(&mut client, "ann@example.org", "secret").await?;
    let asked = old.asked().await?;
    node.set_owner("ann", "new");
    client.expect("+OK Logged in.").await?;
    client.say("STAT").await?;
    client.expect("+OK done at new").await?;
    node.applied().await?;
    old.until("the former owner's connection is closed", |all| all[0].closed).await?;
    assert!(!asked.say(YES), "its yes comes too late for anybody");
    assert_eq!((old.sessions(), new.sessions()), (0, 1));
    Ok(())
}

#[tokio::test]
async fn a_former_owners_no_does_not_count() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), manners()).await?;
    let mut client = node.connect().await?;
    try_in(&mut client, "ann@example.org", "secret").await?;
    let asked = old.asked().await?;
    node.set_owner("ann", "new");
    asked.say("-ERR [AUTH] moved\r\n");
    client.expect("+OK Logged in.").await?;
    assert_eq!(new.sessions(), 1);
    Ok(())
}

#[tokio::test]
async fn a_hold_during_authentication_joins_nobody() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), manners()).await?;
    let mut client = node.connect().await?;
    try_in(&mut client, "ann@example.org", "secret").await?;
    let asked = old.asked().await?;
    node.set("ann", AccountRow { owner: "old".into(), held: true, login: true, flipped: None });
    client.expect(LATER).await?;
    node.applied().await?;
    assert!(!asked.say(YES) || old.sessions() == 0);
    old.until("the attempt is closed", |all| all[0].closed).await?;
    assert_eq!(new.sessions(), 0);
    Ok(())
}

#[tokio::test]
async fn a_yes_that_comes_after_the_lease_does_not_count() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), asking()).await?;
    let mut client = node.connect().await?;
    try_in(&mut client, "ann@example.org", "secret").await?;
    let asked = old.asked().await?;
    node.ownership.lease().end();
    asked.say(YES);
    client.expect(LATER).await?;
    old.until("the attempt is closed unjoined", |all| all[0].closed).await?;
    assert!(new.connections().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_flip_ends_the_joined_session_on_both_legs_with_a_plain_close() -> Result<()> {
    let Stage { old, new: _new, node } = set().await?;
    let (mut ann, mut bob) = (node.log_in("ann").await?, node.log_in("bob").await?);
    node.set_owner("ann", "new");
    // No word of ours: nobody knows whether the backend was inside a message.
    assert!(ann.closed().await?.is_empty());
    node.applied().await?;
    let connections = old.until("it is closed there", |all| all[0].closed).await?;
    assert!(!connections[1].closed);
    bob.say("STAT").await?;
    bob.expect("+OK done at old").await?;
    let mut again = node.log_in("ann").await?;
    again.say("STAT").await?;
    again.expect("+OK done at new").await?;
    Ok(())
}
