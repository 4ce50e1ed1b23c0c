//! What a node writes about itself, when it comes late and when it is much (P5).

use shared::ownership::{Registration, Work};
use sqlx::PgPool;
use tests::patience::until;
use tests::table::{Engine, Table};

use super::node::{Node, fill, outdated, run};

/// As many as a bulk flip may leave behind.
const MANY: usize = 100_000;

/// Waits until a statement prints that.
async fn comes_to(table: &Table, statement: &str, wanted: &str) {
    let asked = until(wanted, || (run(table, statement) == wanted).then_some(())).await;
    asked.unwrap_or_else(|error| panic!("{error}; it is {:?}", run(table, statement)));
}

/// A statement that the node has given up may still be carried out, whenever the server gets to it. What
/// it says is old: that nothing runs for an account for which a newer one has said that something does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_comes_late_does_not_undo_a_newer_one() {
    const LATE: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                        AND query LIKE '%seen_epoch = $4%' AND wait_event = 'advisory';";
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Node::start(&table, "a").await;
    let first = node.enter("ann@example.org", Work::Session);
    table.flip("ann@example.org", "new").unwrap();
    outdated(&first).await;
    comes_to(&table, "SELECT account FROM busy;", "ann@example.org").await;
    // From here on the first report waits as long as this lock is held, before it looks at the row.
    let pool = PgPool::connect(&table.url()).await.unwrap();
    let mut gate = pool.acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(1)").execute(&mut *gate).await.unwrap();
    run(
        &table,
        "CREATE SEQUENCE reports; \
         CREATE FUNCTION delay_the_first() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ \
           BEGIN IF nextval('reports') = 1 THEN PERFORM pg_advisory_lock_shared(1); END IF; \
           RETURN NULL; END $$; \
         CREATE TRIGGER delay BEFORE UPDATE OF seen_epoch ON nodes FOR EACH STATEMENT \
           EXECUTE FUNCTION delay_the_first();",
    );
    drop(first);
    comes_to(&table, LATE, "1").await;
    let second = node.enter("ann@example.org", Work::Session);
    table.flip("ann@example.org", "old").unwrap();
    outdated(&second).await;
    let seen = "SELECT seen_epoch = (SELECT epoch FROM clock) FROM nodes;";
    comes_to(&table, seen, "t").await;
    assert_eq!(run(&table, LATE), "1", "the first one is not through yet");
    sqlx::query("SELECT pg_advisory_unlock(1)").execute(&mut *gate).await.unwrap();
    comes_to(&table, LATE, "0").await;
    // The next report says only what is new.
    table.flip("bob@example.org", "new").unwrap();
    table.settled("bob@example.org").await.unwrap();
    assert_eq!(table.flip_status("ann@example.org", "settled, busy").unwrap(), "f|a/login-proxy");
    drop(second);
    table.settled("ann@example.org").await.unwrap();
}

/// A lease that was asked for and given up may be granted after a newer one: nothing is lost by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_comes_late_is_no_lost_history() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Node::start(&table, "a").await;
    let kept = node.enter("bob@example.org", Work::Session);
    let epoch = run(&table, "SELECT epoch FROM clock;");
    // Each report finds another lease than the one its poll was granted.
    run(
        &table,
        "CREATE SEQUENCE reports; \
         CREATE FUNCTION count_report() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           PERFORM nextval('reports'); RETURN NULL; END $$; \
         CREATE TRIGGER count_report BEFORE UPDATE OF seen_epoch ON nodes FOR EACH STATEMENT \
           EXECUTE FUNCTION count_report(); \
         CREATE FUNCTION overtake() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           UPDATE nodes SET lease_until = lease_until + interval '1 s' WHERE node = NEW.node; \
           RETURN NULL; END $$; \
         CREATE TRIGGER overtake AFTER UPDATE OF lease_until ON nodes FOR EACH ROW \
           WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION overtake();",
    );
    until("another lease", || {
        let leases =
            "SELECT count(*) FROM nodes WHERE lease_until > clock_timestamp() + '310.5 s';";
        (run(&table, leases) == "1").then_some(())
    })
    .await
    .unwrap();
    table.flip("ann@example.org", "new").unwrap();
    comes_to(&table, "SELECT last_value >= 2 FROM reports;", "t").await;
    assert_eq!(table.flip_status("ann@example.org", "settled").unwrap(), "f");
    run(&table, "DROP TRIGGER overtake ON nodes;");
    table.settled("ann@example.org").await.unwrap();
    assert_eq!(
        run(&table, &format!("SELECT epoch - {epoch} FROM clock;")),
        "1",
        "nobody raised the clock"
    );
    assert!(!kept.is_outdated());
}

/// A bulk flip of a domain, and the whole of it once more by a node that has to enter anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_busy_accounts_are_reported_and_reported_afresh() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Node::start(&table, "a").await;
    let sessions: Vec<Registration> = (0..MANY)
        .map(|number| node.enter(&format!("u{number}@example.org"), Work::Session))
        .collect();
    run(&table, "UPDATE domains SET default_owner = 'new' WHERE domain = 'example.org';");
    let reported = "SELECT seen_epoch = (SELECT epoch FROM clock), \
                    (SELECT count(*) FROM busy) FROM nodes;";
    comes_to(&table, reported, "t|100000").await;
    // One that nobody has, which only a fresh report takes out.
    run(
        &table,
        "INSERT INTO busy (node, service, account, epoch) \
           VALUES ('a', 'login-proxy', 'ghost@example.org', 1); \
         UPDATE nodes SET forgotten = true;",
    );
    comes_to(&table, reported, "t|100000").await;
    drop(sessions);
    comes_to(&table, reported, "t|0").await;
}
