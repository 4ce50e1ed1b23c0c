//! The ownership table in a database: the only place with SQL.
//!
//! Two stores with the same tables: Postgres for any number of nodes, SQLite for one host. Both are read
//! by the feed alone; routing never comes here.

mod postgres;
mod rows;
mod sqlite;

pub(super) use sqlite::{file_of, make_file, nodes_file};

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::Epoch;
use super::map::{Change, Claim, Tables};
use super::registry::Busy;
use super::spool::Spooled;
use super::unknown::Sighting;
use crate::config::OwnershipConfig;

/// Names without a row that each service of a node keeps in the table.
const UNKNOWN_ROWS: i64 = 10_000;
/// How long a name stays there that does not come again.
const UNKNOWN_DAYS: i32 = 90;

/// The ownership table in a database.
#[derive(Debug)]
pub enum Store {
    /// Any number of nodes.
    Postgres(Box<postgres::PostgresStore>),
    /// One host, both services on one file.
    Sqlite(sqlite::SqliteStore),
}

/// Who reads: one row of `nodes`.
#[derive(Debug, Clone)]
pub struct Node {
    /// The node's name.
    pub name: Box<str>,
    /// `mx-gateway` or `login-proxy`.
    pub service: &'static str,
    /// Which process: `STATE-DIRECTORY/PROCESS`, the second part made anew at each start. A row of the
    /// same state directory is taken over at once, another's only when its lease has ended.
    pub incarnation: Box<str>,
    /// What this node knows of each backend.
    pub backends: Known,
}

/// What a node knows of each backend, as JSON: name → digest of its addresses. It is written to the table
/// with each lease, so that a difference between nodes is seen.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<ArcSwap<String>>);

impl Known {
    /// From the next lease on.
    pub fn set(&self, json: String) {
        self.0.store(Arc::new(json));
    }

    /// The JSON of now.
    pub(super) fn now(&self) -> Arc<String> {
        self.0.load_full()
    }
}

impl<T: Into<String>> From<T> for Known {
    fn from(json: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(json.into())))
    }
}

/// The last change that was read, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The database's id: another one under the same name is no continuation.
    pub database: String,
    /// Its number.
    pub epoch: Epoch,
    /// Its kind, as in the table.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Made at random with it; `None` when no change was ever read.
    pub nonce: Option<String>,
}

/// The whole table, and the last change that is in it.
#[derive(Debug)]
pub struct Snapshot {
    /// All rows.
    pub tables: Tables,
    /// Where to go on reading.
    pub cursor: Cursor,
}

/// Some changes after a cursor.
#[derive(Debug)]
pub struct Page {
    /// The changes in their order.
    pub changes: Vec<(Epoch, Change)>,
    /// The last of them.
    pub cursor: Cursor,
    /// There are more.
    pub more: bool,
}

/// Why the database did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or is away.
    #[error("{0}")]
    Database(#[from] sqlx::Error),
    /// No answer in time.
    #[error("the database did not answer in time")]
    Timeout,
    /// The database is read-only: a standby, or a demoted primary. It grants no lease.
    #[error("the database is read-only (a standby?), so it grants no lease")]
    ReadOnly,
    /// The database does not know the lease that it has just granted: it went back in time between.
    #[error("the database does not know the lease it has just granted (a failover?)")]
    LeaseLost,
    /// Another lease of this node's was granted meanwhile, one that was given up. The next poll asks anew.
    #[error("a lease that this node has given up was granted after all")]
    Overtaken,
    /// This node's row was deleted.
    #[error("this node's row in the table `nodes` is gone")]
    Gone,
    /// An operator said that this node would not come back.
    #[error("this node was forgotten (mailshift node forget) while it ran")]
    Forgotten,
    /// A process with another state directory has this node's name, and its lease runs.
    #[error(
        "another process serves under this node's name; give each node a name of its own (node.name), or \
         wait until its lease ends"
    )]
    NameTaken,
    /// SQLite: there is another file under the name of the one that is open.
    #[error(
        "the ownership file was replaced while it was in use: stop the services, remove its -wal and -shm \
         files, start them (or restore with the shell's .restore)"
    )]
    FileReplaced,
    /// A row that this version cannot read.
    #[error("cannot read change {epoch}: {what}")]
    Unreadable {
        /// Which.
        epoch: Epoch,
        /// Why.
        what: &'static str,
    },
    /// The last change that was read is not there any more: the table went back in time.
    #[error("the table lost changes that were read from it")]
    HistoryLost,
    /// The schema is not the one this version knows.
    #[error(transparent)]
    Schema(#[from] super::schema::SchemaError),
}

/// A lease as the database wrote it: when it ends by its clock, in microseconds of the epoch.
#[derive(Debug)]
pub(super) struct Grant(i64);

/// What differs from the last report in what still runs.
#[derive(Debug, Default)]
pub(super) struct Report<'a> {
    /// Nothing that was reported before counts.
    pub(super) afresh: bool,
    /// New or different.
    pub(super) changed: Vec<&'a Busy>,
    /// Accounts that have drained.
    pub(super) drained: Vec<&'a str>,
    /// What is on the node's own disk.
    pub(super) spooled: Spooled,
}

/// A [`Claim`] by a change that is lost.
#[derive(Debug)]
pub(super) struct Dispute<'a> {
    /// The name, and where it was.
    pub(super) claim: &'a Claim,
    /// The newest of its changes that is not in the table any more.
    pub(super) change: Epoch,
    /// What became of it.
    pub(super) outcome: Disputed,
}

/// What became of a [`Dispute`].
#[derive(Debug)]
pub(super) enum Disputed {
    /// The name is held until an operator decides.
    Held,
    /// It could not be held: the database's words.
    Refused(String),
}

/// Tells that there may be something to read.
#[derive(Debug)]
pub enum Waker {
    /// LISTEN.
    Postgres(postgres::Listener),
    /// `PRAGMA data_version`.
    Sqlite(sqlite::Watch),
}

impl Store {
    /// Opens the database and brings its schema up to date where configured.
    ///
    /// # Errors
    ///
    /// A [`StoreError`]; a newer schema is one.
    pub async fn open(config: &OwnershipConfig, node: Node) -> Result<Self, StoreError> {
        Ok(if config.url.starts_with("sqlite:") {
            Self::Sqlite(sqlite::SqliteStore::open(config, node).await?)
        } else {
            Self::Postgres(Box::new(postgres::PostgresStore::open(config, node).await?))
        })
    }

    /// Writes this node's row, before anything is loaded. Refused while another process has its name.
    pub(super) async fn enter(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.enter().await,
            Self::Sqlite(store) => store.enter().await,
        }
    }

    /// Takes this node's row out: a clean stop. Where it leaves mail behind, the row stays to say so, without
    /// a lease.
    pub(super) async fn leave(&self, spooled: Spooled) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.leave(spooled).await,
            Self::Sqlite(store) => store.leave(spooled).await,
        }
    }

    /// Reads everything from one consistent snapshot.
    pub(super) async fn load(&self) -> Result<Snapshot, StoreError> {
        match self {
            Self::Postgres(store) => store.load().await,
            Self::Sqlite(store) => store.load().await,
        }
    }

    /// Commits that this node may serve for `length` from now, by the database's clock.
    pub(super) async fn renew_lease(&self, length: Duration) -> Result<Grant, StoreError> {
        match self {
            Self::Postgres(store) => store.renew_lease(length).await,
            Self::Sqlite(store) => store.renew_lease(length).await,
        }
    }

    /// Reads the changes after `cursor`, at most 10,000 of them, in one statement that also makes sure that
    /// `cursor`'s change and `grant` are there.
    pub(super) async fn changes_after(
        &self,
        cursor: &Cursor,
        grant: Option<&Grant>,
    ) -> Result<Page, StoreError> {
        match self {
            Self::Postgres(store) => store.changes_after(cursor, grant).await,
            Self::Sqlite(store) => store.changes_after(cursor).await,
        }
    }

    /// Writes how far this node is and what still runs, where `cursor`'s change still is and `grant` is the
    /// node's newest lease.
    pub(super) async fn report(
        &self,
        cursor: &Cursor,
        grant: &Grant,
        report: &Report<'_>,
    ) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.report(cursor, grant, report).await,
            Self::Sqlite(store) => store.report(cursor, report).await,
        }
    }

    /// Says that nothing is left in the spools of the processes with these state directories. A node that has
    /// stopped goes with that.
    pub(super) async fn report_adopted(&self, state_dirs: &[Box<str>]) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.report_adopted(state_dirs).await,
            Self::Sqlite(store) => store.report_adopted(state_dirs).await,
        }
    }

    /// Adds to the names without a row that this node was asked for.
    pub(super) async fn report_unknown(&self, sightings: &[Sighting]) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.report_unknown(sightings).await,
            Self::Sqlite(store) => store.report_unknown(sightings).await,
        }
    }

    /// Ends the holds whose lease is over, by the database's clock. Returns how many.
    pub(super) async fn expire_holds(&self) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(store) => store.expire_holds().await,
            Self::Sqlite(store) => store.expire_holds().await,
        }
    }

    /// Of `claims`, holds the names of which a change is not in the table any more; for each of those what
    /// became of it. One that was disputed since is left as it is.
    pub(super) async fn dispute<'a>(
        &self,
        claims: &'a [Claim],
    ) -> Result<Vec<Dispute<'a>>, StoreError> {
        match self {
            Self::Postgres(store) => store.dispute(claims).await,
            Self::Sqlite(store) => store.dispute(claims).await,
        }
    }

    /// Leaves connections that do not answer and makes new ones.
    pub(super) fn reconnect(&self) {
        match self {
            Self::Postgres(store) => store.reconnect(),
            Self::Sqlite(_) => {}
        }
    }

    /// Makes sure that numbers given from now on are above `epoch`.
    pub(super) async fn raise_clock(&self, epoch: Epoch) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.raise_clock(epoch).await,
            Self::Sqlite(store) => store.raise_clock(epoch).await,
        }
    }

    /// What wakes the feed between polls.
    pub(super) fn waker(&self) -> Waker {
        match self {
            Self::Postgres(store) => Waker::Postgres(store.listener()),
            Self::Sqlite(store) => Waker::Sqlite(store.watch()),
        }
    }
}

impl Waker {
    /// Waits until there may be something to read.
    pub(super) async fn told(&mut self) {
        match self {
            Self::Postgres(listener) => listener.told().await,
            Self::Sqlite(watch) => watch.told().await,
        }
    }
}
