//! The ownership table in Postgres.

mod listener;

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::Connection;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use super::rows::{
    self, AccountsRow, AliasesRow, ChangeRow, CursorRow, DomainsRow, PAGE, number, signed,
};
use super::{Cursor, Disputed, Grant, Node, Page, Report, Snapshot, StoreError};
pub(super) use listener::Listener;

use crate::config::OwnershipConfig;
use crate::ownership::Epoch;
use crate::ownership::map::{Claim, Tables};
use crate::ownership::schema::{self, Apply};

/// Longest wait for a connection, and for a statement that waits for a lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// Accounts whose disputes are looked at together.
const DISPUTES_AT_ONCE: usize = 1_000;

/// Takes back what this node has said: it has seen nothing, so nothing is settled by it.
const UNSAY: &str = "WITH mine AS (UPDATE nodes SET seen_epoch = 0, updated_at = clock_timestamp() \
       WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten \
       AND (extract(epoch FROM lease_until) * 1000000)::bigint = $4 RETURNING 1) \
     DELETE FROM busy WHERE node = $1 AND service = $2 AND EXISTS (SELECT 1 FROM mine)";
/// Whether the cursor's change is there, and whether the report was written. No joins with the arrays: of
/// a table that was empty a minute ago the planner expects no rows, and would loop over all pairs.
const REPORT: &str = "WITH here AS (SELECT (SELECT id FROM database) = $8 AND ($7::text IS NULL OR EXISTS \
       (SELECT 1 FROM changes WHERE epoch = $4 AND kind = $5 AND name = $6 \
        AND nonce::text = $7)) AS intact), \
     seen AS (UPDATE nodes SET seen_epoch = $4, updated_at = clock_timestamp() \
       WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten \
       AND (extract(epoch FROM lease_until) * 1000000)::bigint = $9 \
       AND (SELECT intact FROM here) RETURNING 1), \
     drained AS (DELETE FROM busy WHERE node = $1 AND service = $2 AND account = ANY ($10) \
       AND EXISTS (SELECT 1 FROM seen)), \
     changed AS (INSERT INTO busy AS b (node, service, account, epoch, sessions, deliveries) \
       SELECT $1, $2, c.* FROM unnest($11::text[], $12::bigint[], $13::bigint[], $14::bigint[]) c \
        WHERE EXISTS (SELECT 1 FROM seen) \
       ON CONFLICT (node, service, account) DO UPDATE SET epoch = excluded.epoch, \
       sessions = excluded.sessions, deliveries = excluded.deliveries \
       WHERE (b.epoch, b.sessions, b.deliveries) \
         IS DISTINCT FROM (excluded.epoch, excluded.sessions, excluded.deliveries)) \
     SELECT here.intact, EXISTS (SELECT 1 FROM seen) FROM here";

/// The ownership table in Postgres.
pub struct PostgresStore {
    /// Replaced when its connections do not answer.
    pool: Arc<Mutex<PgPool>>,
    options: PgConnectOptions,
    listen: PgConnectOptions,
    node: Node,
    listening: Arc<AtomicBool>,
}

impl PostgresStore {
    pub(super) async fn open(config: &OwnershipConfig, node: Node) -> Result<Self, StoreError> {
        let options = connect_options(&config.url)?;
        let listen = match &config.listen_url {
            Some(url) => connect_options(url)?,
            None => options.clone(),
        };
        let pool = Arc::new(Mutex::new(connect(&options)));
        let listening = Arc::new(AtomicBool::new(false));
        let store = Self { pool, options, listen, node, listening };
        let apply = Apply::by_service(config.apply_schema);
        schema::prepare_postgres(&store.pool(), apply).await?;
        Ok(store)
    }

    fn pool(&self) -> PgPool {
        current(&self.pool)
    }

    /// Connections of the old pool may hang until TCP gives up, a quarter of an hour: it is left alone.
    pub(super) fn reconnect(&self) {
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = connect(&self.options);
    }

    pub(super) async fn enter(&self) -> Result<(), StoreError> {
        let entered = sqlx::query(
            "INSERT INTO nodes (node, service, incarnation, version, backends, lease_until, seen_epoch) \
             VALUES ($1, $2, $3, $4, $5::jsonb, clock_timestamp(), 0) \
             ON CONFLICT (node, service) DO UPDATE SET incarnation = excluded.incarnation, \
             version = excluded.version, backends = excluded.backends, forgotten = false, \
             started_at = clock_timestamp(), seen_epoch = 0 \
             WHERE split_part(nodes.incarnation, '/', 1) = split_part(excluded.incarnation, '/', 1) \
                OR nodes.forgotten OR nodes.lease_until < clock_timestamp()",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(&self.node.backends)
        .execute(&self.pool())
        .await
        .map_err(read_only)?;
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
        .fetch_optional(&self.pool())
        .await?;
        Ok(rows::evicted(row))
    }

    pub(super) async fn leave(&self) -> Result<(), StoreError> {
        // Its rows of `busy` go with it.
        sqlx::query("DELETE FROM nodes WHERE node = $1 AND service = $2 AND incarnation = $3")
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(&*self.node.incarnation)
            .execute(&self.pool())
            .await?;
        Ok(())
    }

    /// One transaction under REPEATABLE READ: everything it reads is of one moment.
    pub(super) async fn load(&self) -> Result<Snapshot, StoreError> {
        let mut connection = self.pool().acquire().await?;
        let mut transaction = connection
            .begin_with("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            .await?;
        let database: String =
            sqlx::query_scalar(rows::DATABASE).fetch_one(&mut *transaction).await?;
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
        Ok(Snapshot { tables, cursor: CursorRow::cursor(newest, database) })
    }

    pub(super) async fn renew_lease(&self, length: Duration) -> Result<Grant, StoreError> {
        let until: Option<i64> = sqlx::query_scalar(
            "UPDATE nodes SET lease_until = clock_timestamp() + $4 * interval '1 millisecond', \
             listen = $5, updated_at = clock_timestamp() \
             WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten \
             RETURNING (extract(epoch FROM lease_until) * 1000000)::bigint",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(i64::try_from(length.as_millis()).unwrap_or(i64::MAX))
        .bind(self.listening.load(Ordering::Relaxed))
        .fetch_optional(&self.pool())
        .await
        .map_err(read_only)?;
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
        // One statement: one snapshot for all three questions.
        let rows: Vec<ChangeRow> = sqlx::query_as(
            "WITH here AS (SELECT \
               (SELECT id FROM database) = $6 AND ($4::text IS NULL OR EXISTS (SELECT 1 FROM changes \
                 WHERE epoch = $1 AND kind = $2 AND name = $3 AND nonce::text = $4)) AS intact, \
               $7::bigint IS NULL OR EXISTS (SELECT 1 FROM nodes \
                 WHERE node = $8 AND service = $9 AND incarnation = $10 \
                 AND (extract(epoch FROM lease_until) * 1000000)::bigint >= $7) AS granted) \
             SELECT here.intact, here.granted, c.* FROM here LEFT JOIN LATERAL (SELECT epoch, kind, name, \
               nonce::text AS nonce, deleted, new_owner, new_state, new_account, new_login, \
               new_default_owner, new_subaddress_delimiter FROM changes \
               WHERE (epoch, kind, name) > ($1, $2, $3) ORDER BY epoch, kind, name LIMIT $5) c \
             ON true ORDER BY c.epoch, c.kind, c.name",
        )
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
        .fetch_all(&self.pool())
        .await?;
        rows::page_of(rows, cursor)
    }

    /// One statement, however much there is (and one before it that takes back what was said, where that is
    /// not known). Not a transaction of several: a connection that hangs in the
    /// middle of one would keep the node's own row locked until the server gives it up.
    ///
    /// It may be carried out after it was given up. But a poll that fails is followed by a new lease, which
    /// waits for the same row: so this comes before that, or finds a lease that is not `grant` and does
    /// nothing.
    pub(super) async fn report(
        &self,
        cursor: &Cursor,
        grant: &Grant,
        report: &Report<'_>,
    ) -> Result<(), StoreError> {
        if report.afresh {
            sqlx::query(UNSAY)
                .bind(&*self.node.name)
                .bind(self.node.service)
                .bind(&*self.node.incarnation)
                .bind(grant.0)
                .execute(&self.pool())
                .await
                .map_err(read_only)?;
        }
        let changed = &report.changed;
        let accounts: Vec<&str> = changed.iter().map(|b| &*b.account).collect();
        let epochs: Vec<i64> = changed.iter().map(|b| signed(b.epoch)).collect();
        let sessions: Vec<i64> = changed.iter().map(|b| b.sessions.into()).collect();
        let deliveries: Vec<i64> = changed.iter().map(|b| b.deliveries.into()).collect();
        let (intact, seen): (bool, bool) = sqlx::query_as(REPORT)
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(&*self.node.incarnation)
            .bind(signed(cursor.epoch))
            .bind(&cursor.kind)
            .bind(&cursor.name)
            .bind(&cursor.nonce)
            .bind(&cursor.database)
            .bind(grant.0)
            .bind(&report.drained)
            .bind(accounts)
            .bind(epochs)
            .bind(sessions)
            .bind(deliveries)
            // Planned each time: the plan for one account is none for a hundred thousand.
            .persistent(false)
            .fetch_one(&self.pool())
            .await
            .map_err(read_only)?;
        if seen {
            return Ok(());
        }
        let other = if intact { StoreError::Overtaken } else { StoreError::HistoryLost };
        Err(self.evicted().await?.unwrap_or(other))
    }

    pub(super) async fn expire_holds(&self) -> Result<u64, StoreError> {
        let ended: i64 =
            sqlx::query_scalar("SELECT expire_holds()").fetch_one(&self.pool()).await?;
        Ok(u64::try_from(ended).unwrap_or_default())
    }

    pub(super) async fn dispute<'a>(
        &self,
        claims: &'a [Claim],
    ) -> Result<Vec<(&'a Claim, Disputed)>, StoreError> {
        let mut disputed = Vec::new();
        // In parts, so that nodes that find the same loss do not all do the same work.
        for part in claims.chunks(DISPUTES_AT_ONCE) {
            let lost = self.lost(part).await?;
            for claim in part.iter().filter(|claim| lost.contains(&*claim.account)) {
                let done = sqlx::query("SELECT dispute($1, $2, $3)")
                    .bind(&*claim.account)
                    .bind(&*claim.owner)
                    .bind(rows::reason(&self.node, claim))
                    .execute(&self.pool())
                    .await;
                disputed.push((claim, refused(done)?));
            }
        }
        Ok(disputed)
    }

    /// Accounts whose change is gone. Changes older than the oldest one were pruned, not lost; an account
    /// that was disputed after the change has had its operator.
    async fn lost(&self, claims: &[Claim]) -> Result<HashSet<String>, StoreError> {
        let accounts: Vec<&str> = claims.iter().map(|claim| &*claim.account).collect();
        let owners: Vec<&str> = claims.iter().map(|claim| &*claim.owner).collect();
        let epochs: Vec<i64> = claims.iter().map(|claim| signed(claim.epoch)).collect();
        let lost: Vec<String> = sqlx::query_scalar(
            "SELECT m.account FROM unnest($1::text[], $2::text[], $3::bigint[]) m(account, owner, epoch) \
             WHERE m.epoch >= coalesce((SELECT min(epoch) FROM changes), 0) \
             AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.epoch = m.epoch AND c.kind = 'account' \
               AND c.name = m.account AND c.new_owner = m.owner) \
             AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.epoch > m.epoch AND c.kind = 'account' \
               AND c.name = m.account AND c.via = 'dispute')",
        )
        .bind(accounts)
        .bind(owners)
        .bind(epochs)
        .fetch_all(&self.pool())
        .await?;
        Ok(lost.into_iter().collect())
    }

    pub(super) async fn raise_clock(&self, epoch: Epoch) -> Result<(), StoreError> {
        sqlx::query("SELECT raise_clock($1)").bind(signed(epoch)).execute(&self.pool()).await?;
        Ok(())
    }

    pub(super) fn listener(&self) -> Listener {
        Listener::new(self.listen.clone(), Arc::clone(&self.pool), Arc::clone(&self.listening))
    }
}

impl fmt::Debug for PostgresStore {
    /// Without the connection's options, which have the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("node", &self.node).finish_non_exhaustive()
    }
}

fn connect(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(3)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(options.clone())
}

fn current(pool: &Mutex<PgPool>) -> PgPool {
    pool.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What the table itself refused will be refused again; anything else is tried again.
fn refused<T>(done: Result<T, sqlx::Error>) -> Result<Disputed, StoreError> {
    let Err(error) = done else { return Ok(Disputed::Held) };
    match error.as_database_error().and_then(DatabaseError::code) {
        // Classes of errors: ours, and integrity constraints.
        Some(code) if code.starts_with("MS") || code.starts_with("23") => {
            Ok(Disputed::Refused(error.to_string()))
        }
        Some(_) | None => Err(error.into()),
    }
}

/// Every session's own limits, so that a forgotten `BEGIN` elsewhere cannot stall a node (OWN-19).
fn connect_options(url: &str) -> Result<PgConnectOptions, StoreError> {
    Ok(PgConnectOptions::from_str(url)?.application_name("mailshift").options([
        ("lock_timeout", "5s"),
        ("statement_timeout", "60s"),
        ("idle_in_transaction_session_timeout", "10s"),
    ]))
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
        let options = connect_options("postgres://mx:hunter2@localhost/mailshift").unwrap();
        let node = Node {
            name: "a".into(),
            service: "mx-gateway",
            incarnation: "i".into(),
            backends: String::new(),
        };
        let store = PostgresStore {
            pool: Arc::new(Mutex::new(connect(&options))),
            listen: options.clone(),
            options,
            node,
            listening: Arc::default(),
        };
        let shown = format!("{store:?} {:?}", store.listener());
        assert!(shown.contains("mx-gateway") && !shown.contains("hunter2"), "{shown}");
    }
}
