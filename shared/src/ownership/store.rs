//! The ownership table in a database: the only place with SQL.
//!
//! Two stores with the same tables: Postgres for any number of nodes, SQLite for one host. Both are read
//! by the feed alone; routing never comes here.

mod postgres;
mod rows;
mod sqlite;

pub(super) use sqlite::{file_of, make_file, nodes_file};

use std::time::Duration;

use super::Epoch;
use super::map::{Change, Tables};
use super::registry::Busy;
use crate::config::OwnershipConfig;

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
    /// Made anew at each start.
    pub incarnation: Box<str>,
    /// What this node knows of each backend, as JSON: name → digest of its addresses.
    pub backends: String,
}

/// The last change that was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
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
    /// False when the cursor's change is not in the table any more.
    pub intact: bool,
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
    /// This node's row is gone or belongs to a younger process of the same name.
    #[error("another process has taken this node's name in the table")]
    Replaced,
    /// A row that this version cannot read.
    #[error("cannot read change {epoch}: {what}")]
    Unreadable {
        /// Which.
        epoch: Epoch,
        /// Why.
        what: &'static str,
    },
    /// The table went back in time while it was read.
    #[error("the table lost changes while it was read")]
    HistoryLost,
    /// The schema is not the one this version knows.
    #[error(transparent)]
    Schema(#[from] super::schema::SchemaError),
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

    /// Writes this node's row, before anything is loaded.
    pub(super) async fn enter(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.enter().await,
            Self::Sqlite(store) => store.enter().await,
        }
    }

    /// Takes this node's row out: a clean stop.
    pub(super) async fn leave(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.leave().await,
            Self::Sqlite(store) => store.leave().await,
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
    pub(super) async fn renew_lease(&self, length: Duration) -> Result<(), StoreError> {
        match self {
            Self::Postgres(store) => store.renew_lease(length).await,
            Self::Sqlite(store) => store.renew_lease(length).await,
        }
    }

    /// Reads the changes after `cursor`, at most 10,000 of them.
    pub(super) async fn changes_after(&self, cursor: &Cursor) -> Result<Page, StoreError> {
        match self {
            Self::Postgres(store) => store.changes_after(cursor).await,
            Self::Sqlite(store) => store.changes_after(cursor).await,
        }
    }

    /// Writes how far this node is and what still runs; false when `cursor`'s change is gone.
    pub(super) async fn report(&self, cursor: &Cursor, busy: &[Busy]) -> Result<bool, StoreError> {
        match self {
            Self::Postgres(store) => store.report(cursor, busy).await,
            Self::Sqlite(store) => store.report(cursor, busy).await,
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
