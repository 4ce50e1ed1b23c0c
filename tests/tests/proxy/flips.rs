//! A change of owner at any moment of a login or a session (P4, P5, KIK-1, KIK-3).

use anyhow::Result;
use shared::ownership::map::AccountRow;
use tests::login_backend::{Manners, Verdict};

use crate::Stage;

const YES: &str = "TAG OK [CAPABILITY IMAP4rev1] in\r\n";

fn asking() -> Manners {
    Manners { verdict: Verdict::Ask, ..Manners::default() }
}

#[tokio::test]
async fn flip_during_authentication_never_joins_the_old_owner() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), Manners::default()).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let asked = old.asked().await?;
    node.set_owner("ann", "new");
    client.expect("a OK").await?;
    client.say("b NOOP").await?;
    client.expect("b OK done at new").await?;
    node.applied().await?;
    old.until("the former owner's connection is closed", |all| all[0].closed).await?;
    assert!(!asked.say(YES), "its yes comes too late for anybody");
    assert_eq!((old.sessions(), new.sessions()), (0, 1));
    Ok(())
}

#[tokio::test]
async fn a_former_owners_no_does_not_count() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), Manners::default()).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let asked = old.asked().await?;
    // The former owner has disabled the account already, and says so in the same moment.
    node.set_owner("ann", "new");
    asked.say("TAG NO [AUTHENTICATIONFAILED] moved\r\n");
    client.expect("a OK").await?;
    assert_eq!(new.sessions(), 1);
    Ok(())
}

/// The yes and the flip race. Whoever wins, the former owner has no session once the flip is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_that_races_with_the_yes_leaves_no_session_behind() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), Manners::default()).await?;
    let node = std::sync::Arc::new(node);
    for round in 0..100 {
        node.set_owner("ann", "old");
        let mut client = node.connect().await?;
        client.say("a LOGIN ann@example.org secret").await?;
        let asked = old.asked().await?;
        let flipping = std::sync::Arc::clone(&node);
        let flip = tokio::task::spawn_blocking(move || {
            for _ in 0..round * 20 {
                std::hint::spin_loop();
            }
            flipping.set_owner("ann", "new");
        });
        asked.say(YES);
        flip.await?;
        node.applied().await?;
        old.until("every session at the former owner ends", |all| all.iter().all(|c| c.closed))
            .await?;
        // Joined to the new owner, or joined to the former one and ended: never anything else.
        let lines = client_hears(&mut client).await?;
        assert!(lines.starts_with("a OK") || lines.is_empty(), "{lines}");
        drop(client);
        new.until("the client's own end", |all| all.iter().all(|c| c.closed)).await?;
    }
    Ok(())
}

async fn client_hears(client: &mut tests::conversation::Conversation) -> Result<String> {
    Ok(client.next_line().await?.unwrap_or_default())
}

#[tokio::test]
async fn an_account_that_never_rests_is_unavailable_in_the_end() -> Result<()> {
    let Stage { mut old, mut new, node } = Stage::set_with(asking(), asking()).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    for round in 0..8 {
        let (here, next) = if round % 2 == 0 { (&mut old, "new") } else { (&mut new, "old") };
        let asked = here.asked().await?;
        node.set_owner("ann", next);
        drop(asked);
    }
    client.expect("a NO [UNAVAILABLE]").await?;
    node.applied().await?;
    // The client may try again once the account rests.
    client.say("b LOGIN ann@example.org secret").await?;
    old.asked().await?.say(YES);
    client.expect("b OK").await?;
    Ok(())
}

#[tokio::test]
async fn a_hold_during_authentication_joins_nobody() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), Manners::default()).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let asked = old.asked().await?;
    node.set("ann", AccountRow { owner: "old".into(), held: true, login: true, flipped: None });
    client.expect("a NO [UNAVAILABLE]").await?;
    node.applied().await?;
    assert!(!asked.say(YES) || old.sessions() == 0);
    old.until("the attempt is closed", |all| all[0].closed).await?;
    assert_eq!(new.sessions(), 0);
    Ok(())
}

#[tokio::test]
async fn a_flip_ends_idle_sessions_on_both_legs_with_a_plain_close() -> Result<()> {
    let Stage { old, new: _new, node } = Stage::set().await?;
    let mut ann = node.log_in("ann").await?;
    let mut ann_too = node.log_in("ann").await?;
    let mut bob = node.log_in("bob").await?;
    let epoch = node.set_owner("ann", "new");
    // No word of ours: nobody knows whether the backend was inside a literal.
    assert!(ann.closed().await?.is_empty() && ann_too.closed().await?.is_empty());
    node.applied().await?;
    let connections =
        old.until("both are closed there", |all| all[0].closed && all[1].closed).await?;
    assert!(!connections[2].closed);
    assert_eq!(node.ownership.registry().counts(), (1, 0), "bob's is left, epoch {epoch}");
    bob.say("a NOOP").await?;
    bob.expect("a OK done at old").await?;
    let mut again = node.log_in("ann").await?;
    again.say("a NOOP").await?;
    again.expect("a OK done at new").await?;
    Ok(())
}

#[tokio::test]
async fn a_flip_finds_sessions_that_came_by_another_name() -> Result<()> {
    let Stage { old, new: _new, node } = Stage::set().await?;
    node.ownership.map().set_default_domain(Some(shared::address::Domain::parse("example.org")?));
    node.set_alias("lee@old.example", "ann");
    for name in ["lee@old.example", "ann", "ANN@EXAMPLE.ORG"] {
        let mut client = node.connect().await?;
        client.say(&format!("a LOGIN {name} secret")).await?;
        client.expect("a OK").await?;
        node.set_owner("ann", "old");
        assert!(client.closed().await?.is_empty(), "{name}");
    }
    // And an alias that is led elsewhere takes its sessions with it.
    let mut client = node.connect().await?;
    client.say("a LOGIN lee@old.example secret").await?;
    client.expect("a OK").await?;
    node.set_alias("lee@old.example", "bob");
    assert!(client.closed().await?.is_empty());
    node.applied().await?;
    assert_eq!(old.until("all are closed", |all| all.iter().all(|c| c.closed)).await?.len(), 4);
    Ok(())
}

#[tokio::test]
async fn an_account_that_gets_a_row_leaves_its_domains_default() -> Result<()> {
    let Stage { old: _old, new: _new, node } = Stage::set().await?;
    node.set_domain(Some("old"));
    let mut client = node.log_in("eve").await?;
    node.set_owner("eve", "new");
    assert!(client.closed().await?.is_empty());
    let mut client = node.log_in("eve").await?;
    client.say("a NOOP").await?;
    client.expect("a OK done at new").await?;
    Ok(())
}

/// Nothing has marked the attempt: the comparison after the yes is what stops it.
#[tokio::test]
async fn a_yes_that_comes_after_the_lease_does_not_count() -> Result<()> {
    let Stage { mut old, new, node } = Stage::set_with(asking(), asking()).await?;
    let mut client = node.connect().await?;
    client.say("a LOGIN ann@example.org secret").await?;
    let asked = old.asked().await?;
    node.ownership.lease().end();
    asked.say(YES);
    client.expect("a NO [UNAVAILABLE]").await?;
    old.until("the attempt is closed unjoined", |all| all[0].closed).await?;
    assert_eq!(new.connections().len(), 0);
    Ok(())
}

#[tokio::test]
async fn the_end_of_the_lease_ends_every_session() -> Result<()> {
    let Stage { old, new: _new, node } = Stage::set().await?;
    let mut ann = node.log_in("ann").await?;
    let mut bob = node.log_in("bob").await?;
    node.ownership.lease().end();
    node.ownership.registry().mark_all();
    assert!(ann.closed().await?.is_empty() && bob.closed().await?.is_empty());
    node.applied().await?;
    old.until("all are closed", |all| all.iter().all(|c| c.closed)).await?;
    Ok(())
}

#[tokio::test]
async fn a_session_counts_as_busy_until_both_legs_are_closed() -> Result<()> {
    let Stage { old, new: _new, node } = Stage::set().await?;
    let _ann = node.log_in("ann").await?;
    node.set_owner("ann", "new");
    // `applied` is asked of the registry alone; that it is right is seen at the backend at once.
    node.applied().await?;
    assert_eq!(node.ownership.registry().counts(), (0, 0));
    old.until("it is closed there", |all| all[0].closed).await?;
    Ok(())
}
