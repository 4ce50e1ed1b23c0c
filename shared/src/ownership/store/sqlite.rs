//! The ownership table in SQLite: one host, both services on one file.
//!
//! What the services write (`nodes`, `busy`) lives in a second file beside it, so that a service never
//! locks the file in which an operator's shell is about to flip an account.

use std::fs::{OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
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
    self, AccountsRow, AliasesRow, ChangeRow, CursorRow, DomainsRow, PAGE, number, signed,
};
use super::{Cursor, Node, Page, Snapshot, StoreError};
use crate::config::OwnershipConfig;
use crate::ownership::map::Tables;
use crate::ownership::registry::Busy;
use crate::ownership::{Epoch, schema};

/// How often the file is asked whether somebody has written to it. A flip is seen within this.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for another writer's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The ownership table in SQLite.
#[derive(Debug)]
pub struct SqliteStore {
    table: SqlitePool,
    nodes: SqlitePool,
    file: PathBuf,
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
        make_file(&file).and_then(|()| make_file(&nodes_file(&file))).map_err(sqlx::Error::Io)?;
        let pool = |file: &Path| {
            SqlitePoolOptions::new()
                .max_connections(1)
                .acquire_timeout(BUSY_TIMEOUT)
                .connect_lazy_with(options(file))
        };
        let store = Self { table: pool(&file), nodes: pool(&nodes_file(&file)), file, node };
        schema::prepare_sqlite(&store.table, &store.nodes, config.apply_schema).await?;
        Ok(store)
    }

    pub(super) async fn enter(&self) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO nodes (node, service, incarnation, version, backends, lease_until, \
             seen_epoch) VALUES ($1, $2, $3, $4, $5, strftime('%Y-%m-%d %H:%M:%f', 'now'), 0) \
             ON CONFLICT (node, service) DO UPDATE SET incarnation = excluded.incarnation, \
             version = excluded.version, backends = excluded.backends, forgotten = 0, \
             started_at = strftime('%Y-%m-%d %H:%M:%f', 'now'), seen_epoch = 0",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(&self.node.backends)
        .execute(&self.nodes)
        .await?;
        Ok(())
    }

    pub(super) async fn leave(&self) -> Result<(), StoreError> {
        let mut transaction = self.nodes.begin_with("BEGIN IMMEDIATE").await?;
        for delete in [
            "DELETE FROM busy WHERE node = $1 AND service = $2 AND EXISTS (SELECT 1 FROM nodes \
             WHERE node = $1 AND service = $2 AND incarnation = $3)",
            "DELETE FROM nodes WHERE node = $1 AND service = $2 AND incarnation = $3",
        ] {
            sqlx::query(delete)
                .bind(&*self.node.name)
                .bind(self.node.service)
                .bind(&*self.node.incarnation)
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// One read transaction: everything it reads is of one moment.
    pub(super) async fn load(&self) -> Result<Snapshot, StoreError> {
        let mut transaction = self.table.begin().await?;
        let newest: Option<CursorRow> =
            sqlx::query_as(rows::NEWEST).fetch_optional(&mut *transaction).await?;
        let accounts: i64 =
            sqlx::query_scalar(rows::COUNT_ACCOUNTS).fetch_one(&mut *transaction).await?;
        let aliases: i64 =
            sqlx::query_scalar(rows::COUNT_ALIASES).fetch_one(&mut *transaction).await?;
        let mut tables = Tables::with_capacity(number(accounts), number(aliases));
        let mut domains = sqlx::query_as(rows::DOMAINS).fetch(&mut *transaction);
        while let Some(row) = domains.try_next().await? {
            DomainsRow::put(row, &mut tables);
        }
        drop(domains);
        let mut accounts = sqlx::query_as(rows::ACCOUNTS).fetch(&mut *transaction);
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
        Ok(Snapshot { tables, cursor: newest.map(Cursor::from).unwrap_or_default() })
    }

    pub(super) async fn renew_lease(&self, length: Duration) -> Result<(), StoreError> {
        let renewed = sqlx::query(
            "UPDATE nodes SET lease_until = strftime('%Y-%m-%d %H:%M:%f', 'now', $4), listen = 1, \
             updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now') \
             WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(format!("+{:.3} seconds", length.as_secs_f64()))
        .execute(&self.nodes)
        .await?;
        if renewed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Replaced) }
    }

    pub(super) async fn changes_after(&self, cursor: &Cursor) -> Result<Page, StoreError> {
        let rows: Vec<ChangeRow> = sqlx::query_as(
            "WITH here AS (SELECT $4 IS NULL OR EXISTS (SELECT 1 FROM changes WHERE epoch = $1 \
               AND kind = $2 AND name = $3 AND CAST(nonce AS text) = $4) AS intact) \
             SELECT here.intact, c.* FROM here LEFT JOIN (SELECT epoch, kind, name, \
               CAST(nonce AS text) AS nonce, deleted, new_owner, new_state, new_account, new_login, \
               new_default_owner, new_subaddress_delimiter FROM changes \
               WHERE (epoch, kind, name) > ($1, $2, $3) ORDER BY epoch, kind, name LIMIT $5) c \
             ON true ORDER BY c.epoch, c.kind, c.name",
        )
        .bind(signed(cursor.epoch))
        .bind(&cursor.kind)
        .bind(&cursor.name)
        .bind(&cursor.nonce)
        .bind(PAGE)
        .fetch_all(&self.table)
        .await?;
        rows::page_of(rows, cursor)
    }

    pub(super) async fn report(&self, cursor: &Cursor, busy: &[Busy]) -> Result<bool, StoreError> {
        let here: bool = sqlx::query_scalar(
            "SELECT $4 IS NULL OR EXISTS (SELECT 1 FROM changes WHERE epoch = $1 AND kind = $2 \
             AND name = $3 AND CAST(nonce AS text) = $4)",
        )
        .bind(signed(cursor.epoch))
        .bind(&cursor.kind)
        .bind(&cursor.name)
        .bind(&cursor.nonce)
        .fetch_one(&self.table)
        .await?;
        if !here {
            return Ok(false);
        }
        let mut transaction = self.nodes.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "UPDATE nodes SET seen_epoch = $4, updated_at = strftime('%Y-%m-%d %H:%M:%f', 'now') \
             WHERE node = $1 AND service = $2 AND incarnation = $3",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(signed(cursor.epoch))
        .execute(&mut *transaction)
        .await?;
        sqlx::query("DELETE FROM busy WHERE node = $1 AND service = $2")
            .bind(&*self.node.name)
            .bind(self.node.service)
            .execute(&mut *transaction)
            .await?;
        for b in busy {
            sqlx::query(
                "INSERT INTO busy (node, service, account, epoch, sessions, deliveries, in_doubt) \
                 VALUES ($1, $2, $3, $4, $5, $6, 0)",
            )
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(&*b.account)
            .bind(signed(b.epoch.min(cursor.epoch)))
            .bind(b.sessions)
            .bind(b.deliveries)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(true)
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
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A flip that was committed must survive a power cut.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false)
        .disable_statement_logging()
}
