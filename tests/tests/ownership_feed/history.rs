//! A table that went back in time: a restored dump, a standby that lagged. What was served by changes that
//! are lost is held until an operator decides, and never silently returned (OWN-16).

use shared::ownership::{Refusal, Work};
use sqlx::PgPool;
use tests::patience::until;
use tests::table::{Engine, Table};

use super::node::{Node, fill, outdated, run};
use super::on_both_stores;

fn held(account: &str) -> Refusal {
    Refusal::Held { account: account.into() }
}

on_both_stores! {
    lost_flips_and_holds_are_disputed
    every_name_that_a_lost_change_led_elsewhere_is_held
    what_an_operator_decides_about_a_disputed_name_stands
    a_deletion_before_the_start_is_remembered
    a_change_made_in_the_new_history_is_no_dispute
}

/// Ann is flipped, Gil gets a row at new, Kim one at the default, Eve's domain appears, Joe is held.
const LOST_FLIPS: &str = "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org';
    INSERT INTO accounts (account, owner) VALUES ('kim@example.org', 'old');
    UPDATE accounts SET state = 'held' WHERE account = 'joe@strict.example';
    INSERT INTO accounts (account, owner) VALUES ('gil@example.org', 'new');
    INSERT INTO domains (domain) VALUES ('elsewhere.example');
    INSERT INTO accounts (account, owner) VALUES ('eve@elsewhere.example', 'new');";

async fn lost_flips_and_holds_are_disputed(table: Table) {
    fill(&table);
    table.flip("bob@example.org", "new").unwrap();
    let nodes = [Node::start(&table, "a").await, Node::start(&table, "b").await];
    let backup = table.back_up().unwrap();
    run(&table, LOST_FLIPS);
    let epoch: u64 = run(&table, "SELECT epoch FROM clock;").parse().unwrap();
    for node in &nodes {
        node.serves("gil@example.org", "new").await;
        node.serves("eve@elsewhere.example", "new").await;
        node.refuses("joe@strict.example", &held("joe@strict.example")).await;
    }
    let lost = nodes[0].enter("ann@example.org", Work::Session);
    let kept = nodes[0].enter("bob@example.org", Work::Session);
    table.restore(&backup, "").unwrap();
    outdated(&lost).await;
    for node in &nodes {
        for account in ["ann@example.org", "gil@example.org", "eve@elsewhere.example"] {
            node.refuses(account, &held(account)).await;
        }
        // Its mover believes that nobody serves it.
        node.refuses("joe@strict.example", &held("joe@strict.example")).await;
        node.serves("bob@example.org", "new").await;
        node.serves("kim@example.org", "old").await;
    }
    assert_eq!(
        disputes(&table),
        "ann@example.org|old\neve@elsewhere.example|new\ngil@example.org|new\njoe@strict.example|old"
    );
    let once = "SELECT count(*) FROM changes WHERE via = 'dispute' AND name = 'ann@example.org';";
    assert_eq!(run(&table, once), "1", "two nodes, one dispute");
    assert!(!kept.is_outdated(), "where both histories agree, work goes on");
    let raised: u64 = run(&table, "SELECT max(epoch) FROM changes;").parse().unwrap();
    assert!(raised > epoch, "numbers that were seen are not given again");
    // The operator decides.
    run(
        &table,
        "UPDATE accounts SET owner = 'new', state = 'active' WHERE account = 'ann@example.org';",
    );
    nodes[1].serves("ann@example.org", "new").await;
}

/// Held without end and without a holder: with their owners.
fn disputes(table: &Table) -> String {
    run(
        table,
        "SELECT account, owner FROM accounts WHERE disputed LIKE 'history lost: %' AND state = 'held' \
         AND hold_until IS NULL AND hold_token IS NULL ORDER BY account;",
    )
}

/// More rows: aliases of Ann's, who is at old, and of Bob's, who is at new.
fn fill_aliases(table: &Table) {
    fill(table);
    run(
        table,
        "UPDATE accounts SET owner = 'new' WHERE account = 'bob@example.org';
         INSERT INTO accounts (account, owner) VALUES ('gus@example.org', 'old');
         INSERT INTO aliases (alias, account) VALUES
           ('info@example.org', 'ann@example.org'), ('kit@example.org', 'ann@example.org'),
           ('ned@example.org', 'joe@strict.example'), ('pat@example.org', 'bob@example.org'),
           ('sam@example.org', 'bob@example.org');",
    );
}

async fn every_name_that_a_lost_change_led_elsewhere_is_held(table: Table) {
    fill_aliases(&table);
    let nodes = [Node::start(&table, "a").await, Node::start(&table, "b").await];
    let backup = table.back_up().unwrap();
    run(
        &table,
        "UPDATE aliases SET account = 'bob@example.org' WHERE alias = 'info@example.org';
         INSERT INTO aliases (alias, account) VALUES ('web@example.org', 'bob@example.org'),
           ('web@strict.example', 'bob@example.org'), ('web', 'bob@example.org'),
           ('tom@example.org', 'ann@example.org');
         UPDATE aliases SET account = 'ann@example.org' WHERE alias = 'ned@example.org';
         DELETE FROM aliases WHERE alias = 'kit@example.org';
         INSERT INTO accounts (account, owner) VALUES ('kit@example.org', 'new');
         DELETE FROM aliases WHERE alias = 'pat@example.org';
         DELETE FROM accounts WHERE account = 'gus@example.org';
         INSERT INTO accounts (account, owner) VALUES ('zoe@strict.example', 'old');",
    );
    let led_elsewhere = [
        ("info@example.org", "new"),
        ("kit@example.org", "new"),
        // By its deletion it fell to the domain's default.
        ("pat@example.org", "old"),
        ("web", "new"),
        ("web@example.org", "new"),
        // Without default they would be refused for good.
        ("web@strict.example", "new"),
        ("zoe@strict.example", "old"),
    ];
    for node in &nodes {
        for (name, owner) in led_elsewhere {
            node.serves(name, owner).await;
        }
    }
    let lost = nodes[0].enter("info@example.org", Work::Session);
    let kept = nodes[0].enter("sam@example.org", Work::Session);
    table.restore(&backup, "").unwrap();
    outdated(&lost).await;
    for node in &nodes {
        for (name, _) in led_elsewhere {
            node.refuses(name, &held(name)).await;
        }
        for (name, owner) in [
            ("ann@example.org", "old"),
            ("bob@example.org", "new"),
            ("gus@example.org", "old"),
            ("lee@example.org", "old"),
            ("ned@example.org", "old"),
            ("sam@example.org", "new"),
            ("tom@example.org", "old"),
        ] {
            node.serves(name, owner).await;
        }
    }
    assert!(!kept.is_outdated(), "where both histories agree, work goes on");
    assert_eq!(
        disputes(&table),
        led_elsewhere.map(|(name, owner)| format!("{name}|{owner}")).join("\n")
    );
    let audit = "SELECT kind, op, old_account, new_owner, new_state FROM changes \
                 WHERE via = 'dispute' AND name = 'info@example.org' ORDER BY epoch;";
    assert_eq!(run(&table, audit), "alias|delete|ann@example.org||\naccount|insert||new|held");
    let reason = "SELECT disputed LIKE '%served it at new%, as an alias of bob@example.org,%' \
                  AND disputed LIKE '%; it was an alias of ann@example.org' \
                  FROM accounts WHERE account = 'info@example.org';";
    assert!(
        ["t", "1"].contains(&&*run(&table, reason)),
        "{}",
        run(&table, "SELECT disputed FROM accounts;")
    );
}

async fn what_an_operator_decides_about_a_disputed_name_stands(table: Table) {
    fill_aliases(&table);
    let nodes = [Node::start(&table, "a").await, Node::start(&table, "b").await];
    let backup = table.back_up().unwrap();
    run(&table, "UPDATE aliases SET account = 'bob@example.org' WHERE alias = 'info@example.org';");
    for node in &nodes {
        node.serves("info@example.org", "new").await;
    }
    table.restore(&backup, "").unwrap();
    for node in &nodes {
        node.refuses("info@example.org", &held("info@example.org")).await;
    }
    // An alias again, as in the lost history.
    run(
        &table,
        "BEGIN;
         UPDATE accounts SET owner = 'old', state = 'active' WHERE account = 'info@example.org';
         DELETE FROM accounts WHERE account = 'info@example.org';
         INSERT INTO aliases (alias, account) VALUES ('info@example.org', 'bob@example.org');
         COMMIT;",
    );
    for node in &nodes {
        node.serves("info@example.org", "new").await;
    }
    assert_eq!(disputes(&table), "");
}

async fn a_deletion_before_the_start_is_remembered(table: Table) {
    fill_aliases(&table);
    let backup = table.back_up().unwrap();
    run(&table, "DELETE FROM aliases WHERE alias = 'pat@example.org';");
    let node = Node::start(&table, "a").await;
    node.serves("pat@example.org", "old").await;
    table.restore(&backup, "").unwrap();
    node.refuses("pat@example.org", &held("pat@example.org")).await;
}

async fn a_change_made_in_the_new_history_is_no_dispute(table: Table) {
    fill_aliases(&table);
    let node = Node::start(&table, "a").await;
    let backup = table.back_up().unwrap();
    run(
        &table,
        "UPDATE accounts SET owner = 'new' WHERE account = 'gus@example.org';
         INSERT INTO accounts (account, owner) VALUES ('kim@example.org', 'new');",
    );
    node.serves("kim@example.org", "new").await;
    // Under the same numbers.
    table
        .restore(
            &backup,
            "UPDATE accounts SET owner = 'old' WHERE account = 'bob@example.org';
             UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org';
             DELETE FROM aliases WHERE alias = 'pat@example.org';
             UPDATE aliases SET account = 'ann@example.org' WHERE alias = 'ned@example.org';
             INSERT INTO accounts (account, owner) VALUES ('fay@example.org', 'new');",
        )
        .unwrap();
    for name in ["gus@example.org", "kim@example.org"] {
        node.refuses(name, &held(name)).await;
    }
    for (name, owner) in [
        ("ann@example.org", "new"),
        ("bob@example.org", "old"),
        ("fay@example.org", "new"),
        ("info@example.org", "new"),
        ("ned@example.org", "new"),
        ("pat@example.org", "old"),
        ("sam@example.org", "old"),
    ] {
        node.serves(name, owner).await;
    }
    assert_eq!(disputes(&table), "gus@example.org|old\nkim@example.org|new");
}

/// The number is there, but it is another change: only its nonce tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_new_is_served_between_the_loss_and_the_reload() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Node::start(&table, "a").await;
    let session = node.enter("ann@example.org", Work::Session);
    let other = node.enter("bob@example.org", Work::Session);
    // Whoever wants to raise the clock waits for this.
    let pool = PgPool::connect(&table.url()).await.unwrap();
    let mut clock = pool.begin().await.unwrap();
    sqlx::query("SELECT epoch FROM clock FOR UPDATE").execute(&mut *clock).await.unwrap();
    run(
        &table,
        "SET session_replication_role = replica; \
         UPDATE changes SET nonce = nonce + 1 WHERE epoch = (SELECT max(epoch) FROM changes); \
         UPDATE accounts SET owner = 'new', epoch = 1 WHERE account = 'bob@example.org';",
    );
    node.is_stale("ann@example.org").await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '%raise_clock%';";
    until("the node to wait for the clock", || (run(&table, waits) == "1").then_some(()))
        .await
        .unwrap();
    assert_eq!(node.look_up("ann@example.org").unwrap_err(), Refusal::Stale);
    assert!(!node.ownership.still_stands(&session), "no verdict counts meanwhile");
    assert!(!session.is_outdated(), "but its lease runs, and nobody has said that ann moved");
    clock.rollback().await.unwrap();
    node.serves("ann@example.org", "old").await;
    outdated(&other).await;
    assert!(node.ownership.still_stands(&session), "its rows are the same in both histories");
}
