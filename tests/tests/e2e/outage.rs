//! The database is away, or does not say everything: routing goes on from memory while the lease runs, and
//! then everything is refused for now (P2, DESIGN §2a).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tests::lab::{ACCOUNTS, Lab};
use tests::node::Node;
use tests::patience::until;
use tests::smtp::{self, message};
use tests::table::{Engine, Table};

use crate::{ANN, BOB, CAT};

/// Mail and logins of some accounts without a pause, until told to stop.
struct Load {
    go_on: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<Result<(), String>>,
}

impl Load {
    fn on(node: &Arc<Node>, accounts: &[&'static str]) -> Self {
        let go_on = Arc::new(AtomicBool::new(true));
        let done = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for &account in accounts {
            let (node, go_on, done) = (Arc::clone(node), Arc::clone(&go_on), Arc::clone(&done));
            tasks.spawn(async move {
                while go_on.load(Ordering::Relaxed) {
                    let sent =
                        node.send(account, "load").await.map_err(|error| format!("{error:#}"))?;
                    if sent.code != 250 {
                        return Err(format!("{account}: {sent}"));
                    }
                    node.owner_seen_by_login(account)
                        .await
                        .map_err(|error| format!("{error:#}"))?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        Self { go_on, done, tasks }
    }

    /// Waits until so many more rounds have gone well, or one has not.
    async fn more(&self, rounds: usize) {
        let from = self.done.load(Ordering::Relaxed);
        until("rounds of load", || {
            (self.done.load(Ordering::Relaxed) >= from + rounds).then_some(())
        })
        .await
        .unwrap();
    }

    /// Ends it; every round must have gone well.
    async fn stop(mut self) {
        self.go_on.store(false, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_database_that_stops_and_starts_again_is_not_noticed_by_mail_and_logins() {
    let lab = Lab::with_table(Table::on_own_server().unwrap()).await.unwrap();
    let node = Arc::new(lab.node("node1").await.unwrap());
    let load = Load::on(&node, &[BOB, CAT]);
    load.more(3).await;
    let server = lab.table.server().unwrap();
    server.stop().unwrap();
    load.more(10).await;
    server.resume().unwrap();
    lab.table.flip(ANN, "new").unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "new");
    load.more(3).await;
    load.stop().await;
}

/// Waits until look-ups say that the table is stale, then asserts what everybody is told.
async fn everything_is_refused_for_now(node: &Node) {
    // The end of the lease is an event of the services': they say it in their logs.
    for service in [&node.gateway, &node.proxy].into_iter().flatten() {
        service.logged(&["was not read within its lease"]).await.unwrap();
    }
    for account in [ANN, "nobody@example.org"] {
        let reply = node.recipient(account).await.unwrap();
        assert_eq!(reply.code, 451, "{account}: {reply}");
        let (_, response) = node.login(account).await.unwrap();
        assert!(response.tagged.starts_with("NO [UNAVAILABLE]"), "{account}: {response:?}");
    }
}

/// Waits until the node serves again.
async fn served_again(lab: &Lab, node: &Node, owner: &str) {
    lab.table.flip(ANN, owner).unwrap();
    lab.table.settled(ANN).await.unwrap();
    // The table may be read again before the lease is.
    let mut refused = 0;
    while let Err(error) = node.owner_seen_by_login(ANN).await {
        refused += 1;
        assert!(refused < 100, "{error:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), owner);
    let text = message("again");
    let reply = smtp::send(node.smtp(), "sender@example.com", &[ANN], &text).await.unwrap();
    assert_eq!(reply.code, 250, "{reply}");
}

#[tokio::test]
async fn past_the_lease_everything_is_refused_for_now_without_postgres() {
    let lab = Lab::with_table(Table::on_own_server().unwrap()).await.unwrap();
    let mut options = lab.options("node1");
    options.ownership = "max_staleness = \"2s\"\npoll_interval = \"200ms\"".to_owned();
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let mut open = node.log_in(ANN).await.unwrap();
    let server = lab.table.server().unwrap();
    server.stop().unwrap();
    open.ended().await.unwrap();
    everything_is_refused_for_now(&node).await;
    server.resume().unwrap();
    served_again(&lab, &node, "new").await;
}

#[tokio::test]
async fn past_the_lease_everything_is_refused_for_now_while_sqlite_is_locked() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let mut options = lab.options("node1");
    options.ownership = "max_staleness = \"2s\"\npoll_interval = \"200ms\"".to_owned();
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let mut open = node.log_in(ANN).await.unwrap();
    let nodes = lab.table.file().with_file_name("ownership-nodes.db");
    let (release, released) = std::sync::mpsc::channel::<()>();
    let lock = std::thread::spawn(move || {
        // The shell keeps the lock until its input ends, which is when this process lets go of the pipe.
        tests::table::with_lock(&nodes, released)
    });
    open.ended().await.unwrap();
    everything_is_refused_for_now(&node).await;
    release.send(()).unwrap();
    lock.join().unwrap().unwrap();
    served_again(&lab, &node, "new").await;
}

#[tokio::test]
async fn a_change_whose_notification_is_lost_is_found_by_the_poll() {
    let lab = Lab::start(Engine::Postgres).await.unwrap();
    // Notifications stay in their database, and this node listens in another.
    let other = Table::create(Engine::Postgres).unwrap();
    let mut options = lab.options("node1");
    options.ownership = format!("listen_url = \"{}\"", other.url());
    let node = Node::start(&options, &lab.ca).await.unwrap();
    let mut open = node.log_in(ANN).await.unwrap();
    lab.table.flip(ANN, "new").unwrap();
    open.ended().await.unwrap();
    lab.table.settled(ANN).await.unwrap();
    assert_eq!(lab.table.sql("SELECT bool_or(listen) FROM nodes;").unwrap(), "f");
    assert_eq!(node.owner_seen_by_login(ANN).await.unwrap(), "new");
    assert_eq!(node.send(ANN, "found").await.unwrap().code, 250);
    assert_eq!(lab.new.inbox(ANN).len(), 1);
}

#[tokio::test]
async fn a_node_that_crashed_serves_at_once_and_knows_what_changed_meanwhile() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let (node, mut other) = (lab.node("node1").await.unwrap(), lab.node("node2").await.unwrap());
    other.crash().unwrap();
    for account in ACCOUNTS {
        lab.table.flip(account, "new").unwrap();
    }
    // Its lease still runs; its state directory says that it is the same node.
    other.resume().await.unwrap();
    for account in ACCOUNTS {
        lab.table.settled(account).await.unwrap();
        for node in [&node, &other] {
            assert_eq!(node.owner_seen_by_login(account).await.unwrap(), "new");
        }
    }
}
