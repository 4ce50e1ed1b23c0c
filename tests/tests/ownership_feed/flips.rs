//! One statement in the operator's shell, and what becomes of look-ups and running work on the nodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shared::ownership::{FlippedAt, Owner, Refusal, Work};
use sqlx::PgPool;
use tests::patience::until;
use tests::postgres::Server;
use tests::table::{Engine, Table};

use super::node::{NEVER, Node, Settings, fill, outdated, run};

super::on_both_stores! {
    a_flip_in_plain_sql_reaches_every_node
    a_row_with_an_unknown_owner_is_refused_and_not_guessed
    a_moved_alias_ends_the_session_that_came_by_it_and_no_other
    a_row_that_appears_ends_what_lived_by_the_default
    a_new_default_owner_moves_only_accounts_without_a_row
    a_deleted_row_ends_what_it_had_routed
    a_held_account_is_served_by_nobody
    when_an_account_was_flipped_is_known_from_the_snapshot_and_from_the_feed
    a_row_of_an_account_that_lived_elsewhere_by_default_is_a_flip
}

/// Nobody polls here: the database's own word must wake them.
async fn a_flip_in_plain_sql_reaches_every_node(table: Table) {
    fill(&table);
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        nodes.push(Settings { poll_interval: NEVER, ..Settings::new(&table, name) }.start().await);
    }
    for to in ["new", "old", "new"] {
        let sessions: Vec<_> =
            nodes.iter().map(|node| node.enter("ann@example.org", Work::Session)).collect();
        let others: Vec<_> =
            nodes.iter().map(|node| node.enter("bob@example.org", Work::Session)).collect();
        table.flip("ann@example.org", to).unwrap();
        for (node, session) in nodes.iter().zip(&sessions) {
            outdated(session).await;
            // Marked after the map had it: a login from now on is routed anew.
            assert_eq!(node.owner("ann@example.org"), to);
            assert!(!node.ownership.still_stands(session));
        }
        assert!(nodes.iter().zip(&others).all(|(node, other)| node.ownership.still_stands(other)));
    }
}

async fn a_row_with_an_unknown_owner_is_refused_and_not_guessed(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    let session = node.enter("ann@example.org", Work::Session);
    table.flip("ann@example.org", "elsewhere").unwrap();
    outdated(&session).await;
    let unknown =
        Refusal::UnknownBackend { account: "ann@example.org".into(), owner: "elsewhere".into() };
    assert_eq!(node.look_up("ann@example.org").unwrap_err(), unknown);
    assert_eq!(node.look_up("lee@example.org").unwrap_err(), unknown, "by its alias, too");
    table.flip("ann@example.org", "new").unwrap();
    node.serves("ann@example.org", "new").await;
}

async fn a_moved_alias_ends_the_session_that_came_by_it_and_no_other(table: Table) {
    fill(&table);
    table.flip("bob@example.org", "new").unwrap();
    let node = Node::start(&table, "a").await;
    let by_alias = node.enter("lee@example.org", Work::Session);
    let by_name = node.enter("ann@example.org", Work::Session);
    let of_the_other = node.enter("bob@example.org", Work::Session);
    assert_eq!(node.owner("lee@example.org"), "old");
    run(&table, "UPDATE aliases SET account = 'bob@example.org' WHERE alias = 'lee@example.org';");
    outdated(&by_alias).await;
    assert_eq!(node.owner("lee@example.org"), "new");
    assert!(!by_name.is_outdated() && !of_the_other.is_outdated());
    let by_alias = node.enter("lee@example.org", Work::Session);
    run(&table, "DELETE FROM aliases WHERE alias = 'lee@example.org';");
    outdated(&by_alias).await;
    assert!(!node.look_up("lee@example.org").unwrap().known, "it lives by the default now");
    assert!(!by_name.is_outdated() && !of_the_other.is_outdated());
}

async fn a_row_that_appears_ends_what_lived_by_the_default(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    let session = node.enter("eve@example.org", Work::Session);
    let detail = node.enter("eve+x@example.org", Work::Delivery);
    let other = node.enter("fay@example.org", Work::Session);
    assert!(!node.look_up("eve@example.org").unwrap().known);
    run(&table, "INSERT INTO accounts (account, owner) VALUES ('eve@example.org', 'new');");
    outdated(&session).await;
    outdated(&detail).await;
    assert_eq!(node.owner("eve@example.org"), "new");
    assert_eq!(node.owner("eve+x@example.org"), "new");
    assert!(!other.is_outdated());
}

async fn a_new_default_owner_moves_only_accounts_without_a_row(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    let with_row = node.enter("ann@example.org", Work::Session);
    let without_row = node.enter("eve@example.org", Work::Session);
    let elsewhere = node.enter("joe@strict.example", Work::Session);
    run(&table, "UPDATE domains SET default_owner = 'new' WHERE domain = 'example.org';");
    outdated(&without_row).await;
    assert_eq!(node.owner("eve@example.org"), "new");
    assert_eq!(node.owner("ann@example.org"), "old");
    assert!(!with_row.is_outdated() && !elsewhere.is_outdated());
}

async fn a_deleted_row_ends_what_it_had_routed(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    let to_the_default = node.enter("bob@example.org", Work::Session);
    let to_nowhere = node.enter("joe@strict.example", Work::Session);
    run(&table, "DELETE FROM accounts WHERE account IN ('bob@example.org', 'joe@strict.example');");
    outdated(&to_the_default).await;
    outdated(&to_nowhere).await;
    assert!(!node.look_up("bob@example.org").unwrap().known);
    assert_eq!(node.look_up("joe@strict.example").unwrap_err(), Refusal::NoSuchAccount);
    let anew = node.enter("bob@example.org", Work::Session);
    table.flip("ann@example.org", "new").unwrap();
    node.serves("ann@example.org", "new").await;
    assert!(!anew.is_outdated(), "what entered after the delete is not ended by it");
}

async fn a_held_account_is_served_by_nobody(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    let session = node.enter("lee@example.org", Work::Session);
    run(&table, "UPDATE accounts SET state = 'held' WHERE account = 'ann@example.org';");
    outdated(&session).await;
    let held = Refusal::Held { account: "ann@example.org".into() };
    assert_eq!(node.look_up("ann@example.org").unwrap_err(), held);
    assert_eq!(node.look_up("lee@example.org").unwrap_err(), held);
    run(&table, "UPDATE accounts SET state = 'active' WHERE account = 'ann@example.org';");
    node.serves("lee@example.org", "old").await;
}

/// As the node has it, in seconds of the Unix epoch.
fn flipped(node: &Node, account: &str) -> Option<u32> {
    node.look_up(account).unwrap().flipped.map(FlippedAt::seconds)
}

/// As the table has it.
fn flipped_in(table: &Table, account: &str) -> Option<u32> {
    let seconds = if table.url().starts_with("sqlite:") {
        "unixepoch(flipped_at)"
    } else {
        "floor(extract(epoch FROM flipped_at))"
    };
    run(table, &format!("SELECT {seconds} FROM accounts WHERE account = '{account}';")).parse().ok()
}

async fn when_an_account_was_flipped_is_known_from_the_snapshot_and_from_the_feed(table: Table) {
    fill(&table);
    table.flip("bob@example.org", "new").unwrap();
    let node = Node::start(&table, "a").await;
    let bob = flipped(&node, "bob@example.org");
    assert!(bob.is_some() && bob == flipped_in(&table, "bob@example.org"), "{bob:?}");
    assert_eq!(flipped(&node, "ann@example.org"), None);
    table.flip("ann@example.org", "new").unwrap();
    node.serves("ann@example.org", "new").await;
    let ann = flipped(&node, "ann@example.org");
    assert!(ann.is_some() && ann == flipped_in(&table, "ann@example.org"), "{ann:?}");
    assert_eq!(flipped(&node, "lee@example.org"), ann, "by its alias, too");
    // A hold is no flip, and what becomes of others is none of this one.
    for state in ["held", "active"] {
        let update = "UPDATE accounts SET state =";
        run(&table, &format!("{update} '{state}' WHERE account = 'bob@example.org';"));
    }
    node.serves("bob@example.org", "new").await;
    assert_eq!(flipped(&node, "bob@example.org"), bob);
    assert_eq!(flipped(&node, "eve@example.org"), None, "it has no row");
}

async fn a_row_of_an_account_that_lived_elsewhere_by_default_is_a_flip(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    run(
        &table,
        "INSERT INTO accounts (account, owner) VALUES ('eve@example.org', 'new'); \
         INSERT INTO accounts (account, owner) VALUES ('fay@example.org', 'old');",
    );
    let has_row = |found: &Result<Owner, Refusal>| found.as_ref().is_ok_and(|owner| owner.known);
    node.comes_to("fay@example.org", "fay to have a row", has_row).await;
    let eve = flipped(&node, "eve@example.org");
    assert!(eve.is_some() && eve == flipped_in(&table, "eve@example.org"), "{eve:?}");
    assert_eq!(flipped(&node, "fay@example.org"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_update_is_one_change_beside_single_ones() {
    const ACCOUNTS: usize = 100_000;
    let table = Table::create(Engine::Postgres).unwrap();
    run(
        &table,
        "INSERT INTO domains (domain) VALUES ('example.org'); \
         INSERT INTO accounts (account, owner) \
           SELECT 'user' || n || '@example.org', 'old' FROM generate_series(0, 99999) n; \
         INSERT INTO accounts (account, owner) \
           SELECT 'single' || n || '@example.org', 'old' FROM generate_series(0, 9) n;",
    );
    let node = Node::start(&table, "a").await;
    let session = node.enter("user99999@example.org", Work::Session);
    let pool = PgPool::connect(&table.url()).await.unwrap();
    let done = AtomicBool::new(false);
    let single = async {
        let mut flips = 0;
        while !done.load(Ordering::Relaxed) || flips % 20 != 0 {
            let flip = "UPDATE accounts SET owner = $1 WHERE account = $2";
            let flipped = sqlx::query(flip)
                .bind(if flips % 20 < 10 { "new" } else { "old" })
                .bind(format!("single{}@example.org", flips % 10))
                .execute(&pool)
                .await;
            if let Err(error) = flipped {
                // On a slow machine the bulk update keeps the clock for longer than anybody waits for it;
                // that is said, and is no deadlock.
                let code = error.as_database_error().and_then(|error| error.code());
                assert_eq!(code.as_deref(), Some("55P03"), "{error}");
                continue;
            }
            flips += 1;
        }
        flips
    };
    let bulk = async {
        sqlx::query("UPDATE accounts SET owner = 'new' WHERE account LIKE 'user%'")
            .execute(&pool)
            .await
            .expect("a bulk update beside single updates");
        done.store(true, Ordering::Relaxed);
    };
    let (flips, ()) = tokio::join!(single, bulk);
    assert!(flips > 0);
    outdated(&session).await;
    until("all accounts at new", || {
        let at_new = |n: usize| node.owner(&format!("user{n}@example.org")) == "new";
        (0..ACCOUNTS).all(at_new).then_some(())
    })
    .await
    .unwrap();
    for n in 0..10 {
        node.serves(&format!("single{n}@example.org"), "old").await;
    }
    let epochs = "SELECT count(DISTINCT epoch), count(*) FROM changes \
                  WHERE name LIKE 'user%' AND new_owner = 'new'";
    assert_eq!(run(&table, epochs), "1|100000");
}

/// Notifications belong to a database: one that listens in another hears nothing of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_notification_is_made_good_by_the_poll() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let elsewhere = Server::shared().create_database().unwrap().url;
    let deaf = Settings { listen_url: Some(elsewhere), ..Settings::new(&table, "deaf") };
    let deaf = deaf.start().await;
    let hearing = Node::start(&table, "hearing").await;
    let listen = "SELECT string_agg(node || ' ' || listen, ', ' ORDER BY node) FROM nodes";
    until("one node to hear", || (run(&table, listen) == "deaf false, hearing true").then_some(()))
        .await
        .unwrap();
    let session = deaf.enter("ann@example.org", Work::Session);
    table.flip("ann@example.org", "new").unwrap();
    outdated(&session).await;
    assert_eq!(deaf.owner("ann@example.org"), "new");
    hearing.serves("ann@example.org", "new").await;
    // Longer than its proof takes: it goes on knowing that it is deaf.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(run(&table, listen), "deaf false, hearing true");
}
