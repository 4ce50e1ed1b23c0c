//! The ownership table in SQLite: one host, both services on one file.
//!
//! What the services write (`nodes`, `busy`) lives in a second file beside it, so that a service never
//! locks the file in which an operator's shell is about to flip an account.

mod dispute;
mod unknown;

use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::ConnectOptions;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use tokio::time::sleep;

use super::rows::{
    self, AccountsRow, AliasesRow, ChangeRow, CursorRow, DomainsRow, PAGE, RemovedRow, accounts,
    flipped_at, number, oldest, signed,
};
use super::{Cursor, Grant, Node, Page, Report, Snapshot, Spooled, StoreError};
use crate::config::OwnershipConfig;
use crate::ownership::Epoch;
use crate::ownership::map::Tables;
use crate::ownership::schema::{self, Apply, SchemaError};
use crate::ownership::table::expire_sqlite;

/// How often the file is asked whether somebody has written to it. A flip is seen within this.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for another writer's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// `flipped_at` in seconds of the Unix epoch; NULL where it is no time.
macro_rules! seconds {
    () => {
        "CAST(strftime('%s', flipped_at) AS INTEGER)"
    };
}

/// All accounts.
const ACCOUNTS: &str = accounts!(seconds!());
/// The changes after a cursor, at most a page, and whether it is still there.
const CHANGES: &str = concat!(
    "WITH here AS (SELECT (SELECT id FROM database) = $6 AND ($4 IS NULL OR EXISTS \
       (SELECT 1 FROM changes WHERE epoch = $1 AND kind = $2 AND name = $3 \
        AND CAST(nonce AS text) = $4)) AS intact) \
     SELECT here.intact, 1 AS granted, c.*, ",
    flipped_at!(seconds!()),
    " FROM here LEFT JOIN (SELECT epoch, kind, name, \
       CAST(nonce AS text) AS nonce, deleted, new_owner, new_state, new_account, new_login, \
       new_default_owner, new_subaddress_delimiter FROM changes \
       WHERE (epoch, kind, name) > ($1, $2, $3) ORDER BY epoch, kind, name LIMIT $5) c \
     ON true ORDER BY c.epoch, c.kind, c.name"
);
/// What remains of a node that leaves mail behind.
const STOP: &str = "UPDATE nodes SET stopped_at = strftime('%Y-%m-%d %H:%M:%f', 'now'), spooled = $4, \
     spool_oldest = strftime('%Y-%m-%d %H:%M:%f', $5, 'unixepoch'), \
     lease_until = min(lease_until, strftime('%Y-%m-%d %H:%M:%f', 'now', '-0.001 seconds')) \
     WHERE node = $1 AND service = $2 AND incarnation = $3";

/// A spool was adopted: who had it has stopped for good, or may come back without it.
const ADOPTED: [&str; 2] = [
    "DELETE FROM nodes WHERE stopped_at IS NOT NULL AND substr(incarnation, 1, length($1) + 1) = $1 || '/' \
     AND lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "UPDATE nodes SET spooled = 0, spool_oldest = NULL \
     WHERE substr(incarnation, 1, length($1) + 1) = $1 || '/' \
     AND lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now')",
];

/// The ownership table in SQLite.
#[derive(Debug)]
pub struct SqliteStore {
    table: SqlitePool,
    nodes: SqlitePool,
    file: PathBuf,
    /// The file that is open, whatever its name leads to later.
    inode: (u64, u64),
    node: Node,
}

/// Asks the file whether another connection has written to it.
#[derive(Debug)]
pub struct Watch {
    file: PathBuf,
    connection: Option<SqliteConnection>,
    version: Option<i64>,
}

impl SqliteStore {
    pub(super) async fn open(config: &OwnershipConfig, node: Node) -> Result<Self, StoreError> {
        let file = file_of(&config.url);
        if !file.exists() {
            return Err(SchemaError::Missing.into());
        }
        make_file(&nodes_file(&file)).map_err(sqlx::Error::Io)?;
        let pool = |file: &Path| {
            SqlitePoolOptions::new()
                // One reads, one waits for another writer's lock.
                .max_connections(2)
                .acquire_timeout(BUSY_TIMEOUT)
                .connect_lazy_with(options(file))
        };
        let inode = inode(&file)?;
        let (table, nodes) = (pool(&file), pool(&nodes_file(&file)));
        let store = Self { table, nodes, file, inode, node };
        let apply = Apply::by_service(config.apply_schema);
        schema::prepare_sqlite(&store.table, &store.nodes, &store.file, apply).await?;
        Ok(store)
    }

    pub(super) async fn enter(&self) -> Result<(), StoreError> {
        let entered = sqlx::query(
            "INSERT INTO nodes (node, service, incarnation, version, backends, lease_until, \
             seen_epoch) VALUES ($1, $2, $3, $4, $5, strftime('%Y-%m-%d %H:%M:%f', 'now'), 0) \
             ON CONFLICT (node, service) DO UPDATE SET incarnation = excluded.incarnation, \
             version = excluded.version, backends = excluded.backends, forgotten = 0, stopped_at = NULL, \
             started_at = strftime('%Y-%m-%d %H:%M:%f', 'now'), seen_epoch = 0 \
             WHERE nodes.forgotten OR nodes.lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now') \
             OR substr(nodes.incarnation, 1, instr(nodes.incarnation || '/', '/')) \
              = substr(excluded.incarnation, 1, instr(excluded.incarnation || '/', '/'))",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(&*self.node.backends.now())
        .execute(&self.nodes)
        .await?;
        if entered.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NameTaken) }
    }

    /// Why this node's row was not there to be written to; `None` when it is.
    async fn evicted(&self) -> Result<Option<StoreError>, StoreError> {
        let row = sqlx::query_as(
            "SELECT incarnation = $3, forgotten FROM nodes WHERE node = $1 AND service = $2",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .fetch_optional(&self.nodes)
        .await?;
        Ok(rows::evicted(row))
    }

    pub(super) async fn leave(&self, spooled: Spooled) -> Result<(), StoreError> {
        let leave = if spooled.messages == 0 {
            "DELETE FROM nodes WHERE node = $1 AND service = $2 AND incarnation = $3"
        } else {
            STOP
        };
        let mut transaction = self.nodes.begin_with("BEGIN IMMEDIATE").await?;
        for statement in [
            "DELETE FROM busy WHERE node = $1 AND service = $2 AND EXISTS (SELECT 1 FROM nodes \
             WHERE node = $1 AND service = $2 AND incarnation = $3)",
            leave,
        ] {
            let mut query = sqlx::query(statement)
                .bind(&*self.node.name)
                .bind(self.node.service)
                .bind(&*self.node.incarnation);
            if statement == STOP {
                query = query.bind(signed(spooled.messages)).bind(oldest(spooled));
            }
            query.execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    pub(super) async fn report_adopted(&self, state_dirs: &[Box<str>]) -> Result<(), StoreError> {
        let mut transaction = self.nodes.begin_with("BEGIN IMMEDIATE").await?;
        for state_dir in state_dirs {
            for statement in ADOPTED {
                sqlx::query(statement).bind(&**state_dir).execute(&mut *transaction).await?;
            }
        }
        Ok(transaction.commit().await?)
    }

    /// One read transaction: everything it reads is of one moment.
    pub(super) async fn load(&self) -> Result<Snapshot, StoreError> {
        let mut transaction = self.table.begin().await?;
        let database: String =
            sqlx::query_scalar(rows::DATABASE).fetch_one(&mut *transaction).await?;
        let newest: Option<CursorRow> =
            sqlx::query_as(rows::NEWEST).fetch_optional(&mut *transaction).await?;
        let accounts: i64 =
            sqlx::query_scalar(rows::COUNT_ACCOUNTS).fetch_one(&mut *transaction).await?;
        let aliases: i64 =
            sqlx::query_scalar(rows::COUNT_ALIASES).fetch_one(&mut *transaction).await?;
        let mut tables = Tables::with_capacity(number(accounts), number(aliases));
        let mut removed =
            sqlx::query_as(rows::REMOVED).bind(RemovedRow::limit()).fetch(&mut *transaction);
        while let Some(row) = removed.try_next().await? {
            RemovedRow::put(row, &mut tables);
        }
        drop(removed);
        let mut domains = sqlx::query_as(rows::DOMAINS).fetch(&mut *transaction);
        while let Some(row) = domains.try_next().await? {
            DomainsRow::put(row, &mut tables);
        }
        drop(domains);
        let mut accounts = sqlx::query_as(ACCOUNTS).fetch(&mut *transaction);
        while let Some(row) = accounts.try_next().await? {
            AccountsRow::put(row, &mut tables);
        }
        drop(accounts);
        let mut aliases = sqlx::query_as(rows::ALIASES).fetch(&mut *transaction);
        while let Some(row) = aliases.try_next().await? {
            AliasesRow::put(row, &mut tables);
        }
        drop(aliases);
        transaction.commit().await?;
        Ok(Snapshot { tables, cursor: CursorRow::cursor(newest, database) })
    }

    pub(super) async fn renew_lease(&self, length: Duration) -> Result<Grant, StoreError> {
        let renewed = sqlx::query(
            "UPDATE nodes SET lease_until = strftime('%Y-%m-%d %H:%M:%f', 'now', $4), listen = 1, backends = $5, \
             updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now') \
             WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(format!("+{:.3} seconds", length.as_secs_f64()))
        .bind(&*self.node.backends.now())
        .execute(&self.nodes)
        .await?;
        if renewed.rows_affected() == 1 {
            return Ok(Grant(0));
        }
        Err(self.evicted().await?.unwrap_or(StoreError::LeaseLost))
    }

    pub(super) async fn changes_after(&self, cursor: &Cursor) -> Result<Page, StoreError> {
        if inode(&self.file)? != self.inode {
            return Err(StoreError::FileReplaced);
        }
        let rows: Vec<ChangeRow> = sqlx::query_as(CHANGES)
            .bind(signed(cursor.epoch))
            .bind(&cursor.kind)
            .bind(&cursor.name)
            .bind(&cursor.nonce)
            .bind(PAGE)
            .bind(&cursor.database)
            .fetch_all(&self.table)
            .await?;
        rows::page_of(rows, cursor)
    }

    /// Needs no lease to be matched, as in Postgres: what was given up cannot be carried out later. The
    /// transaction holds the file's only write lock from its beginning, and it commits only if it was
    /// awaited until then; one that still commits keeps the next lease, and so the next report, waiting.
    pub(super) async fn report(
        &self,
        cursor: &Cursor,
        report: &Report<'_>,
    ) -> Result<(), StoreError> {
        let here: bool = sqlx::query_scalar(
            "SELECT (SELECT id FROM database) = $5 AND ($4 IS NULL OR EXISTS (SELECT 1 FROM changes \
             WHERE epoch = $1 AND kind = $2 AND name = $3 AND CAST(nonce AS text) = $4))",
        )
        .bind(signed(cursor.epoch))
        .bind(&cursor.kind)
        .bind(&cursor.name)
        .bind(&cursor.nonce)
        .bind(&cursor.database)
        .fetch_one(&self.table)
        .await?;
        if !here {
            return Err(StoreError::HistoryLost);
        }
        let mut transaction = self.nodes.begin_with("BEGIN IMMEDIATE").await?;
        let seen = sqlx::query(
            "UPDATE nodes SET seen_epoch = $4, updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now'), \
             spooled = $5, spool_oldest = strftime('%Y-%m-%d %H:%M:%f', $6, 'unixepoch') \
             WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(signed(cursor.epoch))
        .bind(signed(report.spooled.messages))
        .bind(oldest(report.spooled))
        .execute(&mut *transaction)
        .await?;
        if seen.rows_affected() == 0 {
            transaction.rollback().await?;
            return Err(self.evicted().await?.unwrap_or(StoreError::HistoryLost));
        }
        if report.afresh {
            sqlx::query("DELETE FROM busy WHERE node = $1 AND service = $2")
                .bind(&*self.node.name)
                .bind(self.node.service)
                .execute(&mut *transaction)
                .await?;
        }
        for account in &report.drained {
            sqlx::query("DELETE FROM busy WHERE node = $1 AND service = $2 AND account = $3")
                .bind(&*self.node.name)
                .bind(self.node.service)
                .bind(*account)
                .execute(&mut *transaction)
                .await?;
        }
        for b in &report.changed {
            sqlx::query(
                "INSERT OR REPLACE INTO busy (node, service, account, epoch, sessions, deliveries) \
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(&*b.account)
            .bind(signed(b.epoch))
            .bind(b.sessions)
            .bind(b.deliveries)
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }

    pub(super) async fn expire_holds(&self) -> Result<u64, StoreError> {
        Ok(expire_sqlite(&self.table, &self.signature()).await?)
    }

    fn signature(&self) -> String {
        format!("{}/{}", self.node.name, self.node.service)
    }

    pub(super) async fn raise_clock(&self, epoch: Epoch) -> Result<(), StoreError> {
        sqlx::query("UPDATE clock SET epoch = $1 WHERE epoch < $1")
            .bind(signed(epoch))
            .execute(&self.table)
            .await?;
        Ok(())
    }

    pub(super) fn watch(&self) -> Watch {
        Watch { file: self.file.clone(), connection: None, version: None }
    }
}

impl Watch {
    /// Returns when another connection has committed, or when that cannot be told for a moment.
    pub(super) async fn told(&mut self) {
        loop {
            sleep(LOOK_EVERY).await;
            let before = self.version;
            match self.look().await {
                Ok(version) => self.version = Some(version),
                Err(error) => {
                    tracing::debug!(%error, "cannot watch the ownership file");
                    self.connection = None;
                    self.version = None;
                }
            }
            // The first look of a connection has nothing to compare with: something may have happened.
            if self.version.is_some() && self.version != before {
                return;
            }
        }
    }

    /// `PRAGMA data_version` changes when another connection has committed. It counts per connection, so
    /// it needs one of its own.
    async fn look(&mut self) -> Result<i64, sqlx::Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => self.connection.insert(options(&self.file).connect().await?),
        };
        sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await
    }
}

/// Which file a name leads to.
fn inode(file: &Path) -> Result<(u64, u64), StoreError> {
    let file = fs::metadata(file).map_err(sqlx::Error::Io)?;
    Ok((file.dev(), file.ino()))
}

/// The file in a `sqlite:` URL.
pub(in crate::ownership) fn file_of(url: &str) -> PathBuf {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    // Both sqlite:/path and sqlite:///path are in use.
    let path = path.strip_prefix("//").unwrap_or(path);
    PathBuf::from(path)
}

/// `ownership.db` → `ownership-nodes.db`.
pub(in crate::ownership) fn nodes_file(file: &Path) -> PathBuf {
    let mut name = file.file_stem().unwrap_or_default().to_owned();
    name.push("-nodes.db");
    file.with_file_name(name)
}

/// Makes an empty file where there is none, writable by its group: an operator's shell is another user's.
/// SQLite itself would make it 0644, and gives its `-wal` and `-shm` files the same mode.
pub(in crate::ownership) fn make_file(file: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o660).open(file) {
        // Whatever the umask is.
        Ok(made) => made.set_permissions(Permissions::from_mode(0o660)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        // A flip that was committed must survive a power cut.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false)
        .disable_statement_logging()
}
