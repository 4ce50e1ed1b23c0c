//! The ownership table in Postgres.

mod dispute;
mod listener;
mod report;
mod session;
mod unknown;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::error::DatabaseError;

use super::rows::{
    self, AccountsRow, AliasesRow, ChangeRow, CursorRow, DomainsRow, PAGE, RemovedRow, accounts,
    flipped_at, number, oldest, signed,
};
use super::{Cursor, Grant, Node, Page, Snapshot, Spooled, StoreError};
pub(super) use listener::Listener;
use session::{Connections, connect};

use crate::config::OwnershipConfig;
use crate::ownership::Epoch;
use crate::ownership::map::Tables;
use crate::ownership::schema::{self, Apply};

/// `flipped_at` in seconds of the Unix epoch.
macro_rules! seconds {
    () => {
        "floor(extract(epoch FROM flipped_at))::bigint"
    };
}

/// All accounts.
const ACCOUNTS: &str = accounts!(seconds!());
/// The changes after a cursor, at most a page, and whether it and the lease are still there. One statement:
/// one snapshot for all three questions.
const CHANGES: &str = concat!(
    "WITH here AS (SELECT \
       (SELECT id FROM database) = $6 AND ($4::text IS NULL OR EXISTS (SELECT 1 FROM changes \
         WHERE epoch = $1 AND kind = $2 AND name = $3 AND nonce::text = $4)) AS intact, \
       $7::bigint IS NULL OR EXISTS (SELECT 1 FROM nodes \
         WHERE node = $8 AND service = $9 AND incarnation = $10 \
         AND (extract(epoch FROM lease_until) * 1000000)::bigint >= $7) AS granted) \
     SELECT here.intact, here.granted, c.*, ",
    flipped_at!(seconds!()),
    " FROM here LEFT JOIN LATERAL (SELECT epoch, kind, name, \
       nonce::text AS nonce, deleted, new_owner, new_state, new_account, new_login, \
       new_default_owner, new_subaddress_delimiter FROM changes \
       WHERE (epoch, kind, name) > ($1, $2, $3) ORDER BY epoch, kind, name LIMIT $5) c \
     ON true ORDER BY c.epoch, c.kind, c.name"
);
/// A spool was adopted: who had it has stopped for good, or may come back without it.
const ADOPTED: &str = "WITH stopped AS (DELETE FROM nodes WHERE stopped_at IS NOT NULL \
       AND split_part(incarnation, '/', 1) = ANY ($1) AND lease_until < clock_timestamp()) \
     UPDATE nodes SET spooled = 0, spool_oldest = NULL WHERE stopped_at IS NULL \
       AND split_part(incarnation, '/', 1) = ANY ($1) AND lease_until < clock_timestamp()";
/// A node is gone; its rows of `busy` go with it.
const LEAVE: &str = "DELETE FROM nodes WHERE node = $1 AND service = $2 AND incarnation = $3";
/// The same where it leaves mail behind.
const STOP: &str = "WITH mine AS (UPDATE nodes SET stopped_at = clock_timestamp(), spooled = $4, \
       spool_oldest = to_timestamp($5), \
       lease_until = least(lease_until, clock_timestamp() - interval '1 millisecond') \
       WHERE node = $1 AND service = $2 AND incarnation = $3 RETURNING node, service) \
     DELETE FROM busy USING mine WHERE (busy.node, busy.service) = (mine.node, mine.service)";

/// The ownership table in Postgres.
pub struct PostgresStore {
    connections: Arc<Connections>,
    node: Node,
    listening: Arc<AtomicBool>,
}

impl PostgresStore {
    pub(super) async fn open(config: &OwnershipConfig, node: Node) -> Result<Self, StoreError> {
        let connections = Arc::new(Connections::new(config)?);
        let mut session = connections.session().await?;
        let version = schema::version_postgres(session.connection()).await?;
        session.end().await?;
        // Migrations need a session of their own.
        let direct = connect(&connections.direct());
        let apply = Apply::by_service(config.apply_schema);
        schema::migrate_postgres(&direct, version, apply).await?;
        direct.close().await;
        Ok(Self { connections, node, listening: Arc::default() })
    }

    /// New connections, where the old ones do not answer.
    pub(super) fn reconnect(&self) {
        self.connections.reconnect();
    }

    pub(super) async fn enter(&self) -> Result<(), StoreError> {
        let mut session = self.connections.session().await?;
        let entered = sqlx::query(
            "INSERT INTO nodes (node, service, incarnation, version, backends, lease_until, seen_epoch) \
             VALUES ($1, $2, $3, $4, $5::jsonb, clock_timestamp(), 0) \
             ON CONFLICT (node, service) DO UPDATE SET incarnation = excluded.incarnation, \
             version = excluded.version, backends = excluded.backends, forgotten = false, stopped_at = NULL, \
             started_at = clock_timestamp(), seen_epoch = 0 \
             WHERE split_part(nodes.incarnation, '/', 1) = split_part(excluded.incarnation, '/', 1) \
                OR nodes.forgotten OR nodes.lease_until < clock_timestamp()",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(&*self.node.backends.now())
        .persistent(self.connections.keep_statements())
        .execute(session.connection())
        .await
        .map_err(read_only)?;
        session.end().await?;
        if entered.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NameTaken) }
    }

    /// Why this node's row was not there to be written to; `None` when it is.
    async fn evicted(&self) -> Result<Option<StoreError>, StoreError> {
        let mut session = self.connections.session().await?;
        let row = sqlx::query_as(
            "SELECT incarnation = $3, forgotten FROM nodes WHERE node = $1 AND service = $2",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .persistent(self.connections.keep_statements())
        .fetch_optional(session.connection())
        .await?;
        session.end().await?;
        Ok(rows::evicted(row))
    }

    pub(super) async fn leave(&self, spooled: Spooled) -> Result<(), StoreError> {
        let mut session = self.connections.session().await?;
        let leaves_nothing = spooled.messages == 0;
        let mut leave = sqlx::query(if leaves_nothing { LEAVE } else { STOP })
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(&*self.node.incarnation);
        if !leaves_nothing {
            leave = leave.bind(signed(spooled.messages)).bind(oldest(spooled));
        }
        leave.persistent(self.connections.keep_statements()).execute(session.connection()).await?;
        Ok(session.end().await?)
    }

    pub(super) async fn report_adopted(&self, state_dirs: &[Box<str>]) -> Result<(), StoreError> {
        let state_dirs: Vec<&str> = state_dirs.iter().map(|state_dir| &**state_dir).collect();
        let mut session = self.connections.session().await?;
        sqlx::query(ADOPTED)
            .bind(state_dirs)
            .persistent(self.connections.keep_statements())
            .execute(session.connection())
            .await?;
        Ok(session.end().await?)
    }

    /// One transaction under REPEATABLE READ: everything it reads is of one moment.
    pub(super) async fn load(&self) -> Result<Snapshot, StoreError> {
        let mut transaction = self
            .connections
            .begin("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            .await?;
        let keep = self.connections.keep_statements();
        let database: String = sqlx::query_scalar(rows::DATABASE)
            .persistent(keep)
            .fetch_one(&mut *transaction)
            .await?;
        let newest: Option<CursorRow> =
            sqlx::query_as(rows::NEWEST).persistent(keep).fetch_optional(&mut *transaction).await?;
        let accounts: i64 = sqlx::query_scalar(rows::COUNT_ACCOUNTS)
            .persistent(keep)
            .fetch_one(&mut *transaction)
            .await?;
        let aliases: i64 = sqlx::query_scalar(rows::COUNT_ALIASES)
            .persistent(keep)
            .fetch_one(&mut *transaction)
            .await?;
        let mut tables = Tables::with_capacity(number(accounts), number(aliases));
        let mut removed = sqlx::query_as(rows::REMOVED)
            .bind(RemovedRow::limit())
            .persistent(keep)
            .fetch(&mut *transaction);
        while let Some(row) = removed.try_next().await? {
            RemovedRow::put(row, &mut tables);
        }
        drop(removed);
        let mut domains = sqlx::query_as(rows::DOMAINS).persistent(keep).fetch(&mut *transaction);
        while let Some(row) = domains.try_next().await? {
            DomainsRow::put(row, &mut tables);
        }
        drop(domains);
        let mut accounts = sqlx::query_as(ACCOUNTS).persistent(keep).fetch(&mut *transaction);
        while let Some(row) = accounts.try_next().await? {
            AccountsRow::put(row, &mut tables);
        }
        drop(accounts);
        let mut aliases = sqlx::query_as(rows::ALIASES).persistent(keep).fetch(&mut *transaction);
        while let Some(row) = aliases.try_next().await? {
            AliasesRow::put(row, &mut tables);
        }
        drop(aliases);
        transaction.commit().await?;
        Ok(Snapshot { tables, cursor: CursorRow::cursor(newest, database) })
    }

    pub(super) async fn renew_lease(&self, length: Duration) -> Result<Grant, StoreError> {
        let mut session = self.connections.session().await?;
        let until: Option<i64> = sqlx::query_scalar(
            "UPDATE nodes SET lease_until = clock_timestamp() + $4 * interval '1 millisecond', \
             listen = $5, backends = $6::jsonb, updated_at = clock_timestamp() \
             WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten \
             RETURNING (extract(epoch FROM lease_until) * 1000000)::bigint",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(i64::try_from(length.as_millis()).unwrap_or(i64::MAX))
        .bind(self.listening.load(Ordering::Relaxed))
        .bind(&*self.node.backends.now())
        .persistent(self.connections.keep_statements())
        .fetch_optional(session.connection())
        .await
        .map_err(read_only)?;
        session.end().await?;
        match until {
            Some(until) => Ok(Grant(until)),
            // Forgotten and remembered between the two statements: the next poll tells.
            None => Err(self.evicted().await?.unwrap_or(StoreError::LeaseLost)),
        }
    }

    pub(super) async fn changes_after(
        &self,
        cursor: &Cursor,
        grant: Option<&Grant>,
    ) -> Result<Page, StoreError> {
        let mut session = self.connections.session().await?;
        let rows: Vec<ChangeRow> = sqlx::query_as(CHANGES)
            .bind(signed(cursor.epoch))
            .bind(&cursor.kind)
            .bind(&cursor.name)
            .bind(&cursor.nonce)
            .bind(PAGE)
            .bind(&cursor.database)
            .bind(grant.map(|grant| grant.0))
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(&*self.node.incarnation)
            .persistent(self.connections.keep_statements())
            .fetch_all(session.connection())
            .await?;
        session.end().await?;
        rows::page_of(rows, cursor)
    }

    pub(super) async fn expire_holds(&self) -> Result<u64, StoreError> {
        let mut session = self.connections.session().await?;
        let ended: i64 = sqlx::query_scalar("SELECT expire_holds()")
            .persistent(self.connections.keep_statements())
            .fetch_one(session.connection())
            .await?;
        session.end().await?;
        Ok(u64::try_from(ended).unwrap_or_default())
    }

    pub(super) async fn raise_clock(&self, epoch: Epoch) -> Result<(), StoreError> {
        let mut session = self.connections.session().await?;
        sqlx::query("SELECT raise_clock($1)")
            .bind(signed(epoch))
            .persistent(self.connections.keep_statements())
            .execute(session.connection())
            .await?;
        Ok(session.end().await?)
    }

    pub(super) fn listener(&self) -> Listener {
        Listener::new(Arc::clone(&self.connections), Arc::clone(&self.listening))
    }
}

impl fmt::Debug for PostgresStore {
    /// Without the connection's options, which have the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("node", &self.node).finish_non_exhaustive()
    }
}

/// SQLSTATE 25006 read_only_sql_transaction: a standby or a demoted primary.
fn read_only(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(DatabaseError::code) {
        Some(code) if code == "25006" => StoreError::ReadOnly,
        Some(_) | None => StoreError::Database(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn debug_output_has_no_password() {
        let config = OwnershipConfig {
            url: "postgres://mx:hunter2@localhost/mailshift".into(),
            listen_url: Some("postgres://mx:hunter2@localhost:5433/mailshift".into()),
            max_staleness: Duration::ZERO,
            poll_interval: Duration::ZERO,
            apply_schema: false,
        };
        let node = Node {
            name: "a".into(),
            service: "mx-gateway",
            incarnation: "i".into(),
            backends: super::super::Known::default(),
        };
        let connections = Arc::new(Connections::new(&config).unwrap());
        let store = PostgresStore { connections, node, listening: Arc::default() };
        let shown = format!("{store:?} {:?}", store.listener());
        assert!(shown.contains("mx-gateway") && !shown.contains("hunter2"), "{shown}");
    }
}
