//! Random histories of a table, of two nodes that follow it and of what runs there, with a real table and
//! real feeds. Whatever happens in whatever order: when the table calls a change settled, nothing runs any
//! more that a live node had begun before it (P5), nothing at all runs while a hold is fenced (P6), and what
//! a backend has let in is joined only at the owner of the node's own copy (P4).
//!
//! Changes between two steps of one node are `ownership/interleavings.rs`'s business; this is about what the
//! nodes say of themselves, and what a mover may conclude from it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sqlx::SqlitePool;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::{Feed, Poll};
use crate::backend::{Backend, BackendName};
use crate::config::OwnershipConfig;
use crate::ownership::store::{Node, Store};
use crate::ownership::table::Table;
use crate::ownership::{Name, Owner, Ownership, Registration, Work};

const ACCOUNTS: [&str; 3] = ["ann@example.org", "bob@example.org", "cat@example.org"];
const NODES: [&str; 2] = ["one", "two"];
const OWNERS: [&str; 2] = ["old", "new"];
const ACTOR: &str = "model";

#[derive(Debug, Clone)]
enum Act {
    /// The plain update.
    Move {
        account: usize,
        owner: usize,
    },
    /// A mover's steps; each may be refused.
    Hold(usize),
    Fence(usize),
    FlipHeld {
        account: usize,
        owner: usize,
    },
    Release(usize),
    /// A node reads and reports.
    Poll(usize),
    /// Work begins, at whatever owner the node's copy names.
    Enter {
        node: usize,
        account: usize,
        work: Work,
    },
    /// The nth work's backend says yes: it goes on, or is given up because its row has changed.
    Yes {
        node: usize,
        nth: usize,
    },
    /// The nth work ends by itself.
    Leave {
        node: usize,
        nth: usize,
    },
    /// Whatever was marked ends.
    Notice(usize),
    /// The node stands still until its lease in the table is over.
    Freeze(usize),
    /// It goes on: it looks at its lease before anything else.
    Thaw(usize),
}

/// Something that a node does at an owner.
struct Running {
    account: usize,
    owner: Owner,
    registration: Registration,
}

struct NodeAtWork {
    feed: Feed,
    ownership: Arc<Ownership>,
    running: Vec<Running>,
    frozen: bool,
    /// Its lease in the table is over. It is fenced by that alone; what still runs there is marked, and ends
    /// as soon as the node notices.
    lapsed: bool,
}

struct World {
    table: Table,
    nodes: Vec<NodeAtWork>,
    tokens: [Option<String>; ACCOUNTS.len()],
    _directory: TempDir,
}

fn backend(name: &str) -> BackendName {
    BackendName::parse(name).unwrap()
}

impl World {
    async fn new(template: &std::path::Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(template).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), directory.path().join(file.file_name())).unwrap();
        }
        let url = format!("sqlite:{}", directory.path().join("ownership.db").display());
        let mut nodes = Vec::new();
        for name in NODES {
            nodes.push(NodeAtWork::start(name, &url).await);
        }
        let table = Table::open(&url).await.unwrap();
        Self { table, nodes, tokens: Default::default(), _directory: directory }
    }

    async fn act(&mut self, act: Act) {
        let Self { table, nodes, tokens, .. } = self;
        match act {
            // What is held is not moved in passing.
            Act::Move { account, owner } => {
                let accounts = [ACCOUNTS[account].to_owned()];
                let _ = table.flip(&accounts, &backend(OWNERS[owner]), ACTOR).await;
            }
            Act::Hold(account) => {
                let lease = Duration::from_mins(5);
                if let Ok(hold) = table.hold(ACCOUNTS[account], lease, ACTOR).await {
                    tokens[account] = Some(hold.token);
                }
            }
            Act::Fence(account) => {
                if let Some(token) = &tokens[account] {
                    let _ = table.fence(ACCOUNTS[account], token, ACTOR).await;
                }
            }
            Act::FlipHeld { account, owner } => {
                if let Some(token) = &tokens[account] {
                    let owner = backend(OWNERS[owner]);
                    let _ = table.flip_held(ACCOUNTS[account], &owner, token, ACTOR).await;
                }
            }
            Act::Release(account) => {
                if let Some(token) = &tokens[account] {
                    let _ = table.release(ACCOUNTS[account], token, ACTOR).await;
                }
            }
            Act::Freeze(node) => {
                (nodes[node].frozen, nodes[node].lapsed) = (true, true);
                let over = "UPDATE nodes.nodes SET lease_until = '2000-01-01' WHERE node = $1";
                sqlx::query(over).bind(NODES[node]).execute(pool_of(table)).await.unwrap();
            }
            Act::Thaw(node) if nodes[node].frozen => {
                nodes[node].frozen = false;
                nodes[node].ownership.stop_serving();
            }
            Act::Thaw(_) => {}
            Act::Poll(node)
            | Act::Enter { node, .. }
            | Act::Yes { node, .. }
            | Act::Leave { node, .. }
            | Act::Notice(node) => {
                if !nodes[node].frozen {
                    nodes[node].act(act).await;
                }
            }
        }
    }

    /// What may be concluded from a settled change.
    async fn assert_settled_means_settled(&self) -> Result<(), TestCaseError> {
        for node in self.nodes.iter().filter(|node| node.lapsed && !node.frozen) {
            prop_assert!(node.running.iter().all(|r| r.registration.is_outdated()));
        }
        for (number, account) in ACCOUNTS.into_iter().enumerate() {
            let settling = self.table.settling(account).await.unwrap().unwrap();
            if !settling.settled {
                continue;
            }
            let state = "SELECT state = 'held' FROM accounts WHERE account = $1";
            let state = sqlx::query_scalar(state).bind(account);
            let held: bool = state.fetch_one(pool_of(&self.table)).await.unwrap();
            for (node, at_work) in NODES.iter().zip(&self.nodes).filter(|(_, node)| !node.lapsed) {
                let mut at_work = at_work.running.iter().filter(|r| r.account == number);
                let left =
                    at_work.find(|r| held || r.owner.backend.name.as_str() != settling.owner);
                prop_assert!(
                    left.is_none(),
                    "{account} has settled (held: {held}, owner {}) and node {node} works at {}",
                    settling.owner,
                    left.map_or("", |r| r.owner.backend.name.as_str())
                );
            }
        }
        Ok(())
    }

    /// Once everybody has done what is to be done, everything settles.
    async fn come_to_rest(&mut self) -> Result<(), TestCaseError> {
        for node in 0..NODES.len() {
            for act in [Act::Thaw(node), Act::Poll(node), Act::Notice(node), Act::Poll(node)] {
                self.act(act).await;
            }
        }
        for account in ACCOUNTS {
            let settling = self.table.settling(account).await.unwrap().unwrap();
            prop_assert!(settling.settled, "{settling:?}");
        }
        Ok(())
    }
}

impl NodeAtWork {
    async fn start(name: &str, url: &str) -> Self {
        let backends = OWNERS.map(|owner| Backend::new(backend(owner)));
        let ownership = Ownership::new(backends.into_iter().collect());
        let config = OwnershipConfig {
            url: url.to_owned(),
            listen_url: None,
            max_staleness: Duration::from_mins(5),
            poll_interval: Duration::from_secs(1),
            apply_schema: false,
        };
        let node = Node {
            name: name.into(),
            service: "login-proxy",
            incarnation: format!("{name}/1").into(),
            backends: r#"{"old":"1","new":"2"}"#.to_owned().into(),
        };
        let store = Store::open(&config, node).await.unwrap();
        let (staleness, interval) = (config.max_staleness, config.poll_interval);
        let stop = CancellationToken::new();
        let feed =
            Feed::start(store, Arc::clone(&ownership), staleness, interval, &stop).await.unwrap();
        Self { feed, ownership, running: Vec::new(), frozen: false, lapsed: false }
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Poll(_) => {
                self.feed.poll(Poll::Interval).await.unwrap();
                self.lapsed = false;
            }
            Act::Enter { account, work, .. } => {
                let name = Name::of_login(ACCOUNTS[account].as_bytes()).unwrap();
                if let Ok((owner, registration)) = self.ownership.enter(&name, work) {
                    self.running.push(Running { account, owner, registration });
                }
            }
            Act::Yes { nth, .. } if nth < self.running.len() => {
                let Running { account, owner, registration } = &self.running[nth];
                if self.ownership.still_stands(registration) {
                    let name = Name::of_login(ACCOUNTS[*account].as_bytes()).unwrap();
                    let now = self.ownership.look_up(&name).unwrap();
                    assert_eq!(now.backend.name, owner.backend.name, "joined at a former owner");
                } else {
                    self.running.swap_remove(nth);
                }
            }
            Act::Leave { nth, .. } if nth < self.running.len() => {
                self.running.swap_remove(nth);
            }
            Act::Notice(_) => self.running.retain(|r| !r.registration.is_outdated()),
            _ => {}
        }
    }
}

/// A table with the accounts at `old`, to be copied: making one takes longer than all that is done with it.
async fn template() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("ownership.db").display());
    let table = Table::create(&url).await.unwrap();
    table.apply_schema().await.unwrap();
    let pool = pool_of(&table);
    sqlx::query("INSERT INTO domains (domain) VALUES ('example.org')").execute(pool).await.unwrap();
    for account in ACCOUNTS {
        let row = sqlx::query("INSERT INTO accounts (account, owner) VALUES ($1, 'old')");
        row.bind(account).execute(pool).await.unwrap();
    }
    // Nothing is left outside the files then.
    pool.close().await;
    directory
}

fn pool_of(table: &Table) -> &SqlitePool {
    match table {
        Table::Sqlite { pool, .. } => pool,
        Table::Postgres(_) => panic!("the model's table is a file"),
    }
}

fn any_act() -> impl Strategy<Value = Act> {
    let (account, owner, node) = (0..ACCOUNTS.len(), 0..OWNERS.len(), 0..NODES.len());
    let work = prop_oneof![Just(Work::Session), Just(Work::Delivery)];
    let nth = 0_usize..6;
    prop_oneof![
        3 => (account.clone(), owner.clone()).prop_map(|(account, owner)| Act::Move { account, owner }),
        3 => account.clone().prop_map(Act::Hold),
        3 => account.clone().prop_map(Act::Fence),
        2 => (account.clone(), owner).prop_map(|(account, owner)| Act::FlipHeld { account, owner }),
        1 => account.clone().prop_map(Act::Release),
        6 => node.clone().prop_map(Act::Poll),
        8 => (node.clone(), account, work)
            .prop_map(|(node, account, work)| Act::Enter { node, account, work }),
        3 => (node.clone(), nth.clone()).prop_map(|(node, nth)| Act::Yes { node, nth }),
        1 => (node.clone(), nth).prop_map(|(node, nth)| Act::Leave { node, nth }),
        4 => node.clone().prop_map(Act::Notice),
        1 => node.clone().prop_map(Act::Freeze),
        2 => node.prop_map(Act::Thaw),
    ]
}

#[test]
fn settled_means_settled_in_every_history() {
    let runtime = Runtime::new().unwrap();
    let template = runtime.block_on(template());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(100));
    let histories = prop::collection::vec(any_act(), 1..50);
    let lived = runner.run(&histories, |acts| {
        runtime.block_on(async {
            let mut world = World::new(template.path()).await;
            for act in acts {
                world.act(act).await;
                world.assert_settled_means_settled().await?;
            }
            world.come_to_rest().await
        })
    });
    lived.unwrap();
}
