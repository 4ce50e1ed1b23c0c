//! A node in this process: a view of the ownership table and the feed that keeps it.

use std::sync::Arc;
use std::time::Duration;

use shared::backend::{Backend, BackendName, Backends};
use shared::config::OwnershipConfig;
use shared::ownership::feed::Feed;
use shared::ownership::store::{self, Store};
use shared::ownership::{Name, Owner, Ownership, Refusal, Registration, Work};
use tests::patience::{PATIENCE, until};
use tests::postgres::Server;
use tests::table::Table;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// So seldom that what is seen was not found by polling.
pub const NEVER: Duration = Duration::from_secs(3600);

/// What a node starts with.
pub struct Settings {
    pub name: &'static str,
    pub url: String,
    pub listen_url: Option<String>,
    pub incarnation: String,
    pub poll_interval: Duration,
    pub max_staleness: Duration,
}

/// A node that follows a table.
pub struct Node {
    pub ownership: Arc<Ownership>,
    pub stop: CancellationToken,
    feed: JoinHandle<Feed>,
}

impl Settings {
    pub fn new(table: &Table, name: &'static str) -> Self {
        Self {
            name,
            url: table.url(),
            listen_url: None,
            incarnation: format!("state-of-{name}/1"),
            poll_interval: Duration::from_millis(100),
            max_staleness: Duration::from_secs(300),
        }
    }

    /// Starts it and waits until it serves.
    pub async fn start(self) -> Node {
        timeout(PATIENCE, self.start_when_it_may()).await.expect("the node does not start")
    }

    /// Starts it and waits as long as it takes.
    pub async fn start_when_it_may(self) -> Node {
        self.start_unless(&CancellationToken::new()).await.expect("nobody stops it")
    }

    /// Starts it, unless it is stopped before it serves.
    pub async fn start_unless(self, stopped: &CancellationToken) -> Option<Node> {
        let config = OwnershipConfig {
            url: self.url,
            listen_url: self.listen_url,
            max_staleness: self.max_staleness,
            poll_interval: self.poll_interval,
            apply_schema: false,
        };
        let node = store::Node {
            name: self.name.into(),
            service: "login-proxy",
            incarnation: self.incarnation.into(),
            backends: r#"{"old":"1","new":"2"}"#.into(),
        };
        let ownership = Ownership::new(backends());
        let store = Store::open(&config, node).await.unwrap();
        let (view, staleness) = (Arc::clone(&ownership), config.max_staleness);
        let mut feed = Feed::start(store, view, staleness, config.poll_interval, stopped).await?;
        let stop = CancellationToken::new();
        let end = stop.clone();
        let feed = tokio::spawn(async move {
            Box::pin(feed.run(end)).await;
            feed
        });
        Some(Node { ownership, stop, feed })
    }
}

impl Node {
    pub async fn start(table: &Table, name: &'static str) -> Self {
        Settings::new(table, name).start().await
    }

    /// Stops it cleanly and waits for that.
    pub async fn stop(self) {
        self.stop_following().await.leave().await;
    }

    /// Stops it as it is stopped while tasks are left.
    pub async fn stop_following(mut self) -> Feed {
        self.stop.cancel();
        (&mut self.feed).await.unwrap()
    }

    pub fn look_up(&self, name: &str) -> Result<Owner, Refusal> {
        self.ownership.look_up(&login(name))
    }

    /// The owner's name, or the refusal as it is called.
    pub fn owner(&self, name: &str) -> String {
        match self.look_up(name) {
            Ok(owner) => owner.backend.name.to_string(),
            Err(refusal) => format!("{refusal:?}"),
        }
    }

    pub fn enter(&self, name: &str, work: Work) -> Registration {
        self.ownership.enter(&login(name), work).unwrap_or_else(|e| panic!("{name}: {e}")).1
    }

    /// Waits until a look-up of `name` has an answer like that.
    pub async fn comes_to(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Result<Owner, Refusal>) -> bool,
    ) {
        let asked = until(what, || wanted(&self.look_up(name)).then_some(())).await;
        asked.unwrap_or_else(|error| panic!("{error}; {name} is at {}", self.owner(name)));
    }

    pub async fn serves(&self, name: &str, owner: &str) {
        let at = |found: &Result<Owner, Refusal>| {
            found.as_ref().is_ok_and(|found| found.backend.name.as_str() == owner)
        };
        self.comes_to(name, &format!("{name} to be at {owner}"), at).await;
    }

    pub async fn is_stale(&self, name: &str) {
        self.refuses(name, &Refusal::Stale).await;
    }

    pub async fn refuses(&self, name: &str, refusal: &Refusal) {
        let refused = |found: &Result<Owner, Refusal>| found.as_ref().err() == Some(refusal);
        self.comes_to(name, &format!("{refusal:?}"), refused).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits until a change has gone over what `work` read.
pub async fn outdated(work: &Registration) {
    timeout(PATIENCE, work.outdated()).await.expect("the work was not marked");
}

/// Runs statements in the operator's shell.
pub fn run(table: &Table, statements: &str) -> String {
    table.sql(statements).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Fills a table: a domain that lives at old, one without default, three accounts and an alias.
pub fn fill(table: &Table) {
    run(
        table,
        "INSERT INTO domains (domain, default_owner) VALUES ('example.org', 'old'), \
           ('strict.example', NULL); \
         INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'old'), \
           ('bob@example.org', 'old'), ('joe@strict.example', 'old'); \
         INSERT INTO aliases (alias, account) VALUES ('lee@example.org', 'ann@example.org');",
    );
}

/// The name of a table's database on its server.
pub fn database(table: &Table) -> String {
    let url = table.url();
    let (_, rest) = url.split_once("localhost/").expect("a Postgres URL");
    rest.split('?').next().unwrap_or_default().to_owned()
}

/// Ends all other connections to a database of the shared server.
pub fn disconnect_all(database: &str) {
    let end = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}'"
    );
    Server::shared().psql("postgres", &end).unwrap();
}

fn login(name: &str) -> Name {
    Name::of_login(name.as_bytes()).unwrap()
}

fn backends() -> Backends {
    ["old", "new"].map(|name| Backend::new(BackendName::parse(name).unwrap())).into_iter().collect()
}
