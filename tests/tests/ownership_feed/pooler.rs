//! A pooler between a node and the database: each transaction may get another connection, and what a
//! session was told or has prepared is not there the next time.

use shared::ownership::Work;
use tests::patience::until;
use tests::pooler::Pooler;
use tests::postgres::Server;
use tests::table::{Engine, Table};

use super::node::{NEVER, Settings, database, fill, outdated, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flip_is_seen_through_a_pooler_with_a_direct_connection_for_listen() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    let pooler = Pooler::start(Server::shared(), "").unwrap();
    let settings = |name, poll_interval| Settings {
        url: pooler.url(&database(&table)),
        listen_url: Some(table.url()),
        poll_interval,
        ..Settings::new(&table, name)
    };
    let told = settings("told", NEVER).start().await;
    let polls = settings("polls", Settings::new(&table, "").poll_interval).start().await;
    for to in ["new", "old", "new"] {
        let session = told.enter("ann@example.org", Work::Session);
        table.flip("ann@example.org", to).unwrap();
        outdated(&session).await;
        told.serves("ann@example.org", to).await;
        polls.serves("ann@example.org", to).await;
        drop(session);
        table.settled("ann@example.org").await.unwrap();
    }
    let listens = "SELECT listen FROM nodes WHERE node = 'polls';";
    until("notifications", || (run(&table, listens) == "t").then_some(())).await.unwrap();
    run(&table, "SELECT hold('bob@example.org', interval '0.1 s');");
    polls.serves("bob@example.org", "old").await;
    told.stop().await;
    polls.stop().await;
    assert_eq!(run(&table, "SELECT count(*) FROM nodes;"), "0", "{}", pooler.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_when_its_notifications_are_swallowed() {
    let table = Table::create(Engine::Postgres).unwrap();
    fill(&table);
    // It lets pass what it does not understand, and LISTEN is for a session that ends at once.
    for settings in ["", "ignore_startup_parameters = options"] {
        let pooler = Pooler::start(Server::shared(), settings).unwrap();
        let url = pooler.url(&database(&table));
        let listen_url = Some(url.clone());
        let node = Settings { url, listen_url, ..Settings::new(&table, "a") }.start().await;
        for to in ["new", "old"] {
            let session = node.enter("ann@example.org", Work::Session);
            table.flip("ann@example.org", to).unwrap();
            outdated(&session).await;
            drop(session);
            table.settled("ann@example.org").await.unwrap();
        }
        // Longer than it tries to hear itself.
        for _ in 0..40 {
            let row = "SELECT lease_until, listen FROM nodes;";
            let before = run(&table, row);
            until("another lease", || (run(&table, row) != before).then_some(())).await.unwrap();
            assert!(before.ends_with("|f"), "{before}");
        }
        node.stop().await;
    }
}
