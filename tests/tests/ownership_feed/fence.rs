//! What a fence can ask the table: how far each node is, and what still runs there (P5, P6).

use shared::ownership::{Refusal, Work};
use tests::patience::until;
use tests::table::{Engine, Table};

use super::node::{Node, Settings, fill, outdated, run};

super::on_both_stores! {
    marked_work_is_busy_until_it_is_dropped
    seen_epoch_follows_the_changes
    a_hold_whose_holder_has_died_expires
    a_clean_stop_takes_the_row_out
}

/// Statements on the services' own tables, which SQLite has in a second file.
fn nodes(table: &Table, statement: &str) -> String {
    if table.url().starts_with("sqlite:") {
        let file = table.file().with_file_name("ownership-nodes.db");
        return tests::table::sqlite3(&[], &file, statement).unwrap().trim_end().to_owned();
    }
    run(table, statement)
}

async fn comes_to(table: &Table, statement: &str, wanted: &str) {
    let asked = until(wanted, || (nodes(table, statement) == wanted).then_some(())).await;
    asked.unwrap_or_else(|error| panic!("{error}; it is {:?}", nodes(table, statement)));
}

async fn marked_work_is_busy_until_it_is_dropped(table: Table) {
    const BUSY: &str = "SELECT account, sessions, deliveries FROM busy ORDER BY account;";
    fill(&table);
    let node = Node::start(&table, "a").await;
    let sessions = [
        node.enter("ann@example.org", Work::Session),
        node.enter("lee@example.org", Work::Session),
    ];
    let delivery = node.enter("ann@example.org", Work::Delivery);
    let of_bob = node.enter("bob@example.org", Work::Session);
    assert_eq!(nodes(&table, BUSY), "", "nothing waits for anything");
    run(&table, "UPDATE accounts SET owner = 'new';");
    comes_to(&table, BUSY, "ann@example.org|2|1\nbob@example.org|1|0").await;
    let [first, second] = sessions;
    drop(first);
    comes_to(&table, BUSY, "ann@example.org|1|1\nbob@example.org|1|0").await;
    drop((second, of_bob));
    comes_to(&table, BUSY, "ann@example.org|0|1").await;
    // Work of after the flip is nobody's business.
    let anew = node.enter("ann@example.org", Work::Session);
    drop(delivery);
    table.settled("ann@example.org").await.unwrap();
    assert_eq!(nodes(&table, BUSY), "");
    assert!(!anew.is_outdated());
    // A second change before the first has drained: one row, which waits for the newest.
    table.flip("ann@example.org", "old").unwrap();
    outdated(&anew).await;
    table.flip("ann@example.org", "new").unwrap();
    let epoch = run(&table, "SELECT epoch FROM accounts WHERE account = 'ann@example.org';");
    comes_to(&table, "SELECT account, epoch FROM busy;", &format!("ann@example.org|{epoch}")).await;
    drop(anew);
    comes_to(&table, BUSY, "").await;
}

async fn seen_epoch_follows_the_changes(table: Table) {
    fill(&table);
    let _nodes = (Node::start(&table, "a").await, Node::start(&table, "b").await);
    for to in ["new", "old"] {
        table.flip("ann@example.org", to).unwrap();
        let epoch = run(&table, "SELECT epoch FROM clock;");
        let seen = "SELECT node, seen_epoch FROM nodes ORDER BY node;";
        comes_to(&table, seen, &format!("a|{epoch}\nb|{epoch}")).await;
    }
}

async fn a_hold_whose_holder_has_died_expires(table: Table) {
    fill(&table);
    let node = Node::start(&table, "a").await;
    let session = node.enter("ann@example.org", Work::Session);
    run(&table, "UPDATE accounts SET state = 'held' WHERE account = 'bob@example.org';");
    if table.url().starts_with("sqlite:") {
        run(
            &table,
            "UPDATE accounts SET state = 'held', hold_token = 't', \
             hold_until = strftime('%Y-%m-%d %H:%M:%f', 'now', '+0.5 seconds') \
             WHERE account = 'ann@example.org';",
        );
    } else {
        run(&table, "SELECT hold('ann@example.org', interval '0.5 s');");
    }
    outdated(&session).await;
    node.serves("ann@example.org", "old").await;
    let last = "SELECT old_state, new_state, via FROM changes WHERE name = 'ann@example.org' \
                ORDER BY epoch DESC LIMIT 2;";
    assert_eq!(
        run(&table, last).lines().next().unwrap(),
        "held|active|expire_holds",
        "a committed change ended it, no node's own opinion"
    );
    assert_eq!(
        node.look_up("bob@example.org").unwrap_err(),
        Refusal::Held { account: "bob@example.org".into() },
        "a hold by hand ends by hand"
    );
    if table.url().starts_with("sqlite:") {
        assert_eq!(run(&table, "SELECT coalesce(actor, via, 'none') FROM caller;"), "none");
    }
}

async fn a_clean_stop_takes_the_row_out(table: Table) {
    fill(&table);
    let (stays, goes) = (Node::start(&table, "stays").await, Node::start(&table, "goes").await);
    let (ownership, session) =
        (std::sync::Arc::clone(&goes.ownership), goes.enter("ann@example.org", Work::Session));
    goes.stop().await;
    assert_eq!(nodes(&table, "SELECT node FROM nodes;"), "stays");
    assert!(session.is_outdated() && !ownership.lease().is_valid());
    assert_eq!(stays.owner("ann@example.org"), "old");
}

/// Work that did not end may still send something, so no fence may pass before the lease has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stays_in_the_table_until_its_work_has_ended() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Node::start(&table, "a").await;
    let session = node.enter("ann@example.org", Work::Session);
    let feed = node.stop_following().await;
    assert!(session.is_outdated());
    table.flip("ann@example.org", "new").unwrap();
    let settled = table.flip_status("ann@example.org", "settled, waiting").unwrap();
    assert_eq!(settled, "f|a/login-proxy");
    drop(session);
    feed.leave().await;
    table.settled("ann@example.org").await.unwrap();
    assert_eq!(run(&table, "SELECT count(*) FROM nodes;"), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_stopped_while_it_loads_takes_its_row_out() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let pool = sqlx::PgPool::connect(&table.url()).await.unwrap();
    let mut blocker = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *blocker)
        .await
        .unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let (settings, stopped) = (Settings::new(&table, "a"), stop.clone());
    let start = tokio::spawn(async move { settings.start_unless(&stopped).await.is_none() });
    comes_to(&table, "SELECT count(*) FROM nodes;", "1").await;
    stop.cancel();
    assert!(start.await.unwrap(), "it does not serve");
    assert_eq!(run(&table, "SELECT count(*) FROM nodes;"), "0");
    blocker.rollback().await.unwrap();
}

/// Otherwise changes that the load has not seen could be pruned before the first poll asks for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_row_is_written_before_the_load_and_counts_as_lapsed_until_the_first_poll() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let pool = sqlx::PgPool::connect(&table.url()).await.unwrap();
    let mut blocker = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *blocker)
        .await
        .unwrap();
    let settings = Settings::new(&table, "a");
    let start = tokio::spawn(settings.start());
    let row = "SELECT seen_epoch, lease_until <= clock_timestamp() FROM nodes;";
    comes_to(&table, row, "0|t").await;
    assert!(!start.is_finished());
    blocker.rollback().await.unwrap();
    let node = start.await.unwrap();
    assert_eq!(node.owner("ann@example.org"), "old");
    comes_to(&table, "SELECT lease_until > clock_timestamp() FROM nodes;", "t").await;
}

/// OWN-19: a forgotten `BEGIN; UPDATE` in a shell keeps the clock locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_transaction_does_not_keep_a_node_from_its_polls() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Node::start(&table, "a").await;
    run(&table, "SELECT hold('ann@example.org', interval '0.1 s');");
    let pool = sqlx::PgPool::connect(&table.url()).await.unwrap();
    let mut idle = pool.begin().await.unwrap();
    sqlx::query("UPDATE accounts SET owner = 'new' WHERE account = 'bob@example.org'")
        .execute(&mut *idle)
        .await
        .unwrap();
    // The node wants to end the hold by now and waits for the clock. Its lease goes on meanwhile.
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '%expire_holds%';";
    comes_to(&table, waits, "1").await;
    let renewed = "SELECT lease_until FROM nodes;";
    for _ in 0..3 {
        let before = run(&table, renewed);
        until("another lease", || (run(&table, renewed) != before).then_some(())).await.unwrap();
        assert_eq!(run(&table, waits), "1");
    }
    assert_eq!(node.owner("bob@example.org"), "old", "nothing is committed yet");
    idle.commit().await.unwrap();
    node.serves("bob@example.org", "new").await;
    node.serves("ann@example.org", "old").await;
}
