//! A table that went back in time: a restored dump, a standby that lagged. What was served by changes that
//! are lost is held until an operator decides, and never silently returned (OWN-16).

use shared::ownership::{Refusal, Work};
use sqlx::PgPool;
use tests::patience::until;
use tests::postgres::Server;
use tests::table::{Engine, Table};

use super::node::{Node, database, fill, outdated, run};

fn held(account: &str) -> Refusal {
    Refusal::Held { account: account.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_dump_is_noticed_and_lost_flips_are_disputed() {
    let table = Table::create(Engine::Postgres).unwrap();
    let (server, name) = (Server::shared(), database(&table));
    fill(&table);
    table.flip("bob@example.org", "new").unwrap();
    let nodes = [Node::start(&table, "a").await, Node::start(&table, "b").await];
    let dump = server.dump(&name).unwrap();
    lose_changes(&table);
    let epoch: u64 = run(&table, "SELECT epoch FROM clock").parse().unwrap();
    for node in &nodes {
        node.serves("gil@example.org", "new").await;
        node.serves("eve@elsewhere.example", "new").await;
    }
    let lost = nodes[0].enter("ann@example.org", Work::Session);
    let kept = nodes[0].enter("bob@example.org", Work::Session);
    server
        .psql("postgres", &format!("DROP DATABASE {name} WITH (FORCE); "))
        .and_then(|_| server.psql("postgres", &format!("CREATE DATABASE {name}")))
        .and_then(|_| server.psql(&name, &dump))
        .unwrap();
    outdated(&lost).await;
    assert_disputed(&table, &nodes).await;
    assert!(!kept.is_outdated(), "where both histories agree, work goes on");
    let raised: u64 = run(&table, "SELECT epoch FROM clock").parse().unwrap();
    assert!(raised > epoch, "numbers that were seen are not given again");
    // The operator decides.
    table
        .sql(
            "UPDATE accounts SET owner = 'new', state = 'active' WHERE account = 'ann@example.org'",
        )
        .unwrap();
    nodes[1].serves("ann@example.org", "new").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_file_is_noticed_and_lost_flips_are_disputed() {
    let table = Table::create(Engine::Sqlite).unwrap();
    fill(&table);
    table.flip("bob@example.org", "new").unwrap();
    let nodes = [Node::start(&table, "a").await, Node::start(&table, "b").await];
    let backup = table.file().with_file_name("backup.db");
    run(&table, &format!(".backup {}", backup.display()));
    lose_changes(&table);
    for node in &nodes {
        node.serves("gil@example.org", "new").await;
        node.serves("eve@elsewhere.example", "new").await;
    }
    let lost = nodes[0].enter("ann@example.org", Work::Session);
    let kept = nodes[0].enter("bob@example.org", Work::Session);
    run(&table, &format!(".restore {}", backup.display()));
    outdated(&lost).await;
    assert_disputed(&table, &nodes).await;
    assert!(!kept.is_outdated(), "where both histories agree, work goes on");
    assert_eq!(run(&table, "SELECT coalesce(actor, via, 'none') FROM caller;"), "none");
    run(
        &table,
        "UPDATE accounts SET owner = 'new', state = 'active' WHERE account = 'ann@example.org';",
    );
    nodes[1].serves("ann@example.org", "new").await;
}

/// Ann is flipped, Gil gets a row at new, Kim one at the default, Eve's domain appears, Joe is held.
fn lose_changes(table: &Table) {
    for statement in [
        "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org';",
        "INSERT INTO accounts (account, owner) VALUES ('kim@example.org', 'old');",
        "UPDATE accounts SET state = 'held' WHERE account = 'joe@strict.example';",
        "INSERT INTO accounts (account, owner) VALUES ('gil@example.org', 'new');",
        "INSERT INTO domains (domain) VALUES ('elsewhere.example');",
        "INSERT INTO accounts (account, owner) VALUES ('eve@elsewhere.example', 'new');",
    ] {
        run(table, statement);
    }
}

async fn assert_disputed(table: &Table, nodes: &[Node]) {
    for node in nodes {
        for account in ["ann@example.org", "gil@example.org", "eve@elsewhere.example"] {
            node.refuses(account, &held(account)).await;
        }
        node.serves("joe@strict.example", "old").await;
        node.serves("bob@example.org", "new").await;
        node.serves("kim@example.org", "old").await;
    }
    let disputes = "SELECT account, owner, state FROM accounts WHERE disputed LIKE 'history lost: %' \
                    AND hold_until IS NULL AND hold_token IS NULL ORDER BY account;";
    assert_eq!(
        run(table, disputes),
        "ann@example.org|old|held\neve@elsewhere.example|new|held\ngil@example.org|new|held"
    );
    let once = "SELECT count(*) FROM changes WHERE via = 'dispute' AND name = 'ann@example.org';";
    assert_eq!(run(table, once), "1", "two nodes, one dispute");
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
