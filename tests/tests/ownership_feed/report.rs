//! What a node writes about itself, when it comes late and when it is much (P5).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shared::ownership::{Registration, Work};
use tests::patience::until;
use tests::place::Place;
use tests::postgres::Server;
use tests::table::{Engine, Table};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::node::{Node, Settings, database, fill, outdated, run};

/// As many as a bulk flip may leave behind.
const MANY: usize = 100_000;

/// Keeps in `reports` under which lease each report counted.
const LOG_REPORTS: &str = "CREATE TABLE reports (lease timestamptz); \
     CREATE FUNCTION log_report() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
       INSERT INTO reports VALUES (NEW.lease_until); RETURN NULL; END $$; \
     CREATE TRIGGER log_report AFTER UPDATE OF seen_epoch ON nodes FOR EACH ROW \
       EXECUTE FUNCTION log_report();";

/// Waits until a statement prints that.
async fn comes_to(table: &Table, statement: &str, wanted: &str) {
    let asked = until(wanted, || (run(table, statement) == wanted).then_some(())).await;
    asked.unwrap_or_else(|error| panic!("{error}; it is {:?}", run(table, statement)));
}

/// A statement that the node has given up may still be carried out, whenever the server gets to it. What
/// it says is old: that nothing runs for an account for which a newer one has said that something does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_comes_late_does_not_undo_a_newer_one() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    run(&table, LOG_REPORTS);
    let way = SlowWay::to(&Server::shared().socket());
    let host = way.place.path().display();
    let url = format!("postgres://postgres@localhost/{}?host={host}", database(&table));
    let node = Settings { url, ..Settings::new(&table, "a") }.start().await;
    let first = node.enter("ann@example.org", Work::Session);
    table.flip("ann@example.org", "new").unwrap();
    outdated(&first).await;
    comes_to(&table, "SELECT account FROM busy;", "ann@example.org").await;
    way.delays.store(true, Ordering::Relaxed);
    drop(first);
    until("a delayed report", || (!way.delays.load(Ordering::Relaxed)).then_some(()))
        .await
        .unwrap();
    run(
        &table,
        "CREATE TABLE given_up AS SELECT lease_until AS lease FROM nodes; DELETE FROM reports;",
    );
    let second = node.enter("ann@example.org", Work::Session);
    table.flip("ann@example.org", "old").unwrap();
    outdated(&second).await;
    let seen = "SELECT seen_epoch = (SELECT epoch FROM clock), \
                (SELECT string_agg(account, ' ') FROM busy) FROM nodes;";
    comes_to(&table, seen, "t|ann@example.org").await;
    // Whoever has asked for the poll after the one that was given up: only another lease keeps them apart.
    let old = "SELECT count(*) FROM reports JOIN given_up USING (lease);";
    assert_eq!(run(&table, old), "0");
    way.delivered.cancel();
    way.carried_out.cancelled().await;
    // What is undone stays so, since the next report says only what is new. A report that begins anew, as a
    // node under load may send it, says for a moment that nothing was seen.
    comes_to(&table, seen, "t|ann@example.org").await;
    // The next report says only what is new. A fresh one may come here, too, so this is waited for.
    table.flip("bob@example.org", "new").unwrap();
    table.settled("bob@example.org").await.unwrap();
    let status = "SELECT settled, busy FROM flip_status WHERE account = 'ann@example.org';";
    comes_to(&table, status, "f|a/login-proxy").await;
    drop(second);
    table.settled("ann@example.org").await.unwrap();
}

/// A way to a Postgres server on which one report is delayed.
struct SlowWay {
    place: Place,
    /// The next report is to be delayed; none is from then on.
    delays: Arc<AtomicBool>,
    /// It may go on.
    delivered: CancellationToken,
    /// The server has answered it.
    carried_out: CancellationToken,
}

impl SlowWay {
    fn to(socket: &Path) -> Self {
        let way = Self {
            place: Place::new().unwrap(),
            delays: Arc::default(),
            delivered: CancellationToken::new(),
            carried_out: CancellationToken::new(),
        };
        let listener = UnixListener::bind(way.place.join(".s.PGSQL.5432")).unwrap();
        let server = socket.join(".s.PGSQL.5432");
        let (delays, delivered) = (Arc::clone(&way.delays), way.delivered.clone());
        let carried_out = way.carried_out.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = UnixStream::connect(&server).await.unwrap();
                let (delays, delivered) = (Arc::clone(&delays), delivered.clone());
                tokio::spawn(Self::carry(client, server, delays, delivered, carried_out.clone()));
            }
        });
        way
    }

    /// Carries what both say. A report is prepared first; what executes it is the next thing said.
    async fn carry(
        client: UnixStream,
        server: UnixStream,
        delays: Arc<AtomicBool>,
        delivered: CancellationToken,
        carried_out: CancellationToken,
    ) {
        const REPORT: &[u8] = b"SET seen_epoch = $4";
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let answers = tokio::spawn(async move {
            // The client may have gone.
            let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
            from_server
        });
        let (mut octets, mut next) = (vec![0; 65_536], false);
        while let Ok(length @ 1..) = from_client.read(&mut octets).await {
            if next && delays.swap(false, Ordering::Relaxed) {
                delivered.cancelled().await;
                to_server.write_all(&octets[..length]).await.unwrap();
                // Nobody but this has asked for anything here.
                to_server.shutdown().await.unwrap();
                let mut from_server = answers.await.unwrap();
                let _ = from_server.read_to_end(&mut Vec::new()).await;
                carried_out.cancel();
                return;
            }
            next = octets[..length].windows(REPORT.len()).any(|part| part == REPORT);
            if to_server.write_all(&octets[..length]).await.is_err() {
                return;
            }
        }
    }
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
