//! A database that is away, read-only, or does not answer: routing goes on from memory while the lease
//! runs, then everything is refused, then it goes on without a restart (P2).

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shared::ownership::{Name, Refusal, Work};
use sqlx::PgPool;
use tests::patience::until;
use tests::place::Place;
use tests::table::{Engine, Table};
use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::node::{Settings, database, disconnect_all, fill, outdated, run};

const SHORT: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_database_is_outlived_for_the_lease_and_not_longer() {
    let table = Table::on_own_server().unwrap();
    fill(&table);
    let node = Settings { max_staleness: SHORT, ..Settings::new(&table, "a") }.start().await;
    for _ in 0..2 {
        let session = node.enter("ann@example.org", Work::Session);
        let delivery = node.enter("bob@example.org", Work::Delivery);
        table.server().unwrap().stop().unwrap();
        assert_eq!(node.owner("ann@example.org"), "old", "from memory");
        drop(node.enter("ann@example.org", Work::Session));
        assert!(!session.is_outdated());
        outdated(&session).await;
        outdated(&delivery).await;
        for name in ["ann@example.org", "eve@example.org", "nobody@elsewhere.example"] {
            assert_eq!(node.look_up(name).unwrap_err(), Refusal::Stale, "{name}");
        }
        let name = Name::of_login(b"ann@example.org").unwrap();
        assert_eq!(node.ownership.enter(&name, Work::Session).unwrap_err(), Refusal::Stale);
        assert!(!node.ownership.still_stands(&delivery));
        table.server().unwrap().resume().unwrap();
        node.serves("ann@example.org", "old").await;
        let anew = node.enter("ann@example.org", Work::Session);
        table.flip("bob@example.org", "new").unwrap();
        node.serves("bob@example.org", "new").await;
        assert!(node.ownership.still_stands(&anew));
        assert!(!node.ownership.still_stands(&delivery), "what was marked stays marked");
        table.flip("bob@example.org", "old").unwrap();
        node.serves("bob@example.org", "old").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_database_grants_no_lease() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Settings { max_staleness: SHORT, ..Settings::new(&table, "a") }.start().await;
    let database = database(&table);
    let server = tests::postgres::Server::shared();
    let session = node.enter("ann@example.org", Work::Session);
    server
        .psql(
            "postgres",
            &format!("ALTER DATABASE {database} SET default_transaction_read_only = on"),
        )
        .unwrap();
    disconnect_all(&database);
    assert_eq!(run(&table, "SHOW transaction_read_only"), "on");
    outdated(&session).await;
    node.is_stale("ann@example.org").await;
    server
        .psql("postgres", &format!("ALTER DATABASE {database} RESET default_transaction_read_only"))
        .unwrap();
    disconnect_all(&database);
    node.serves("ann@example.org", "old").await;
}

/// A failover between the commit of the lease and the reading of the changes: the new primary has the
/// node's row as it was before. A trigger that takes each new lease back does the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_database_does_not_have_does_not_count() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Settings { max_staleness: SHORT, ..Settings::new(&table, "a") }.start().await;
    let session = node.enter("ann@example.org", Work::Session);
    run(
        &table,
        "CREATE FUNCTION take_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           UPDATE nodes SET lease_until = OLD.lease_until WHERE node = NEW.node; RETURN NULL; END $$; \
         CREATE TRIGGER take_back AFTER UPDATE OF lease_until ON nodes FOR EACH ROW \
           WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION take_back();",
    );
    outdated(&session).await;
    node.is_stale("ann@example.org").await;
    run(&table, "DROP TRIGGER take_back ON nodes;");
    node.serves("ann@example.org", "old").await;
}

/// What is there to read is read, whatever else fails: a flip must not wait for the end of a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_is_seen_while_no_lease_can_be_had() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Settings::new(&table, "a").start().await;
    let session = node.enter("ann@example.org", Work::Session);
    let pool = PgPool::connect(&table.url()).await.unwrap();
    let mut blocker = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE nodes IN EXCLUSIVE MODE").execute(&mut *blocker).await.unwrap();
    table.flip("ann@example.org", "new").unwrap();
    outdated(&session).await;
    node.serves("ann@example.org", "new").await;
    drop(session);
    blocker.rollback().await.unwrap();
    table.settled("ann@example.org").await.unwrap();
}

/// Nobody waits for a node without its row, so it must not first finish what it was about to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_node_stops_even_if_nothing_can_be_read() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let node = Settings::new(&table, "a").start().await;
    let session = node.enter("ann@example.org", Work::Session);
    let pool = PgPool::connect(&table.url()).await.unwrap();
    let mut blocker = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE changes IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *blocker)
        .await
        .unwrap();
    run(&table, "UPDATE nodes SET forgotten = true WHERE node = 'a';");
    outdated(&session).await;
    node.is_stale("ann@example.org").await;
    blocker.rollback().await.unwrap();
    node.serves("ann@example.org", "old").await;
}

/// A host that vanished: its connections never say anything again. TCP gives up after a quarter of an
/// hour, which is longer than the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_never_answer_are_left() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let way = Way::to(tests::postgres::Server::shared().socket());
    let url = format!(
        "postgres://postgres@localhost/{}?host={}",
        database(&table),
        way.place.path().display()
    );
    let node = Settings { url, ..Settings::new(&table, "a") }.start().await;
    let pool = PgPool::connect(&table.url()).await.unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '%UPDATE nodes%';";
    // More often than a pool has connections, each time in the middle of a statement.
    for to in ["new", "old", "new", "old"] {
        let mut blocker = pool.begin().await.unwrap();
        sqlx::query("SELECT * FROM nodes FOR UPDATE").execute(&mut *blocker).await.unwrap();
        until("the node to renew its lease", || (run(&table, waits) != "0").then_some(()))
            .await
            .unwrap();
        way.freeze();
        blocker.rollback().await.unwrap();
        table.flip("ann@example.org", to).unwrap();
        node.serves("ann@example.org", to).await;
    }
}

/// A way to a Postgres server on which connections can be frozen.
struct Way {
    place: Place,
    frozen: Arc<Mutex<CancellationToken>>,
}

impl Way {
    fn to(socket: std::path::PathBuf) -> Self {
        let place = Place::new().unwrap();
        let frozen = Arc::new(Mutex::new(CancellationToken::new()));
        let listener = UnixListener::bind(place.join(".s.PGSQL.5432")).unwrap();
        tokio::spawn(Self::accept(listener, socket.join(".s.PGSQL.5432"), Arc::clone(&frozen)));
        Self { place, frozen }
    }

    async fn accept(
        listener: UnixListener,
        server: impl AsRef<Path>,
        frozen: Arc<Mutex<CancellationToken>>,
    ) {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = UnixStream::connect(server.as_ref()).await.unwrap();
            let frozen = frozen.lock().unwrap().clone();
            tokio::spawn(async move {
                let copied = copy_bidirectional(&mut client, &mut server);
                if frozen.run_until_cancelled(copied).await.is_none() {
                    std::future::pending::<()>().await;
                }
            });
        }
    }

    /// Connections that are there say nothing any more; new ones work.
    fn freeze(&self) {
        let mut frozen = self.frozen.lock().unwrap();
        frozen.cancel();
        *frozen = CancellationToken::new();
    }
}
