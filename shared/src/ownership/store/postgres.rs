//! The ownership table in Postgres.

use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::rows::{
    self, AccountsRow, AliasesRow, ChangeRow, CursorRow, DomainsRow, PAGE, number, signed,
};
use super::{Cursor, Node, Page, Snapshot, StoreError};
use crate::config::OwnershipConfig;
use crate::ownership::map::Tables;
use crate::ownership::registry::Busy;
use crate::ownership::{Epoch, schema};

/// The channel on which the table's triggers tell of changes.
const CHANNEL: &str = "mailshift";
/// Longest wait for a connection, and for a statement that waits for a lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a listener proves that notifications come through.
const PROVE_EVERY: Duration = Duration::from_mins(1);
/// Longest wait for the proof, and between attempts to listen again.
const PROVE_WITHIN: Duration = Duration::from_secs(3);

/// The ownership table in Postgres.
#[derive(Debug)]
pub struct PostgresStore {
    pool: PgPool,
    listen: PgConnectOptions,
    node: Node,
    listening: Arc<AtomicBool>,
}

/// Waits for notifications on a connection of its own, while it is asked ([`Listener::told`]).
pub struct Listener {
    heard: Arc<Notify>,
    listening: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl PostgresStore {
    pub(super) async fn open(config: &OwnershipConfig, node: Node) -> Result<Self, StoreError> {
        let options = connect_options(&config.url)?;
        let listen = match &config.listen_url {
            Some(url) => connect_options(url)?,
            None => options.clone(),
        };
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .acquire_timeout(PATIENCE)
            .connect_lazy_with(options);
        let listening = Arc::new(AtomicBool::new(false));
        let store = Self { pool, listen, node, listening };
        schema::prepare_postgres(&store.pool, config.apply_schema).await?;
        Ok(store)
    }

    pub(super) async fn enter(&self) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO nodes (node, service, incarnation, version, backends, lease_until, seen_epoch) \
             VALUES ($1, $2, $3, $4, $5::jsonb, clock_timestamp(), 0) \
             ON CONFLICT (node, service) DO UPDATE SET incarnation = excluded.incarnation, \
             version = excluded.version, backends = excluded.backends, forgotten = false, \
             started_at = clock_timestamp(), seen_epoch = 0",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(env!("CARGO_PKG_VERSION"))
        .bind(&self.node.backends)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(super) async fn leave(&self) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
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

    /// One transaction under REPEATABLE READ: everything it reads is of one moment.
    pub(super) async fn load(&self) -> Result<Snapshot, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection
            .begin_with("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            .await?;
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
        let cursor = newest.map(Cursor::from).unwrap_or_default();
        transaction.commit().await?;
        Ok(Snapshot { tables, cursor })
    }

    pub(super) async fn renew_lease(&self, length: Duration) -> Result<(), StoreError> {
        let renewed = sqlx::query(
            "UPDATE nodes SET lease_until = clock_timestamp() + $4 * interval '1 millisecond', \
             listen = $5, updated_at = clock_timestamp() \
             WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(i64::try_from(length.as_millis()).unwrap_or(i64::MAX))
        .bind(self.listening.load(Ordering::Relaxed))
        .execute(&self.pool)
        .await
        .map_err(read_only)?;
        if renewed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Replaced) }
    }

    pub(super) async fn changes_after(&self, cursor: &Cursor) -> Result<Page, StoreError> {
        // One statement: one snapshot for both questions.
        let rows: Vec<ChangeRow> = sqlx::query_as(
            "WITH here AS (SELECT $4::text IS NULL OR EXISTS (SELECT 1 FROM changes \
               WHERE epoch = $1 AND kind = $2 AND name = $3 AND nonce::text = $4) AS intact) \
             SELECT here.intact, c.* FROM here LEFT JOIN LATERAL (SELECT epoch, kind, name, \
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
        .fetch_all(&self.pool)
        .await?;
        rows::page_of(rows, cursor)
    }

    pub(super) async fn report(&self, cursor: &Cursor, busy: &[Busy]) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let seen = sqlx::query(
            "UPDATE nodes SET seen_epoch = $4, updated_at = clock_timestamp() \
             WHERE node = $1 AND service = $2 AND incarnation = $3 AND ($7::text IS NULL OR EXISTS \
             (SELECT 1 FROM changes WHERE epoch = $4 AND kind = $5 AND name = $6 \
              AND nonce::text = $7))",
        )
        .bind(&*self.node.name)
        .bind(self.node.service)
        .bind(&*self.node.incarnation)
        .bind(signed(cursor.epoch))
        .bind(&cursor.kind)
        .bind(&cursor.name)
        .bind(&cursor.nonce)
        .execute(&mut *transaction)
        .await
        .map_err(read_only)?;
        if seen.rows_affected() == 0 {
            return Ok(false);
        }
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
            .bind(i64::from(b.sessions))
            .bind(i64::from(b.deliveries))
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    pub(super) async fn raise_clock(&self, epoch: Epoch) -> Result<(), StoreError> {
        sqlx::query("SELECT raise_clock($1)").bind(signed(epoch)).execute(&self.pool).await?;
        Ok(())
    }

    pub(super) fn listener(&self) -> Listener {
        let heard = Arc::new(Notify::new());
        let listening = listen(
            self.listen.clone(),
            self.pool.clone(),
            Arc::clone(&heard),
            Arc::clone(&self.listening),
        );
        Listener { heard, listening: Box::pin(listening) }
    }
}

impl Listener {
    pub(super) async fn told(&mut self) {
        tokio::select! {
            () = self.heard.notified() => {}
            () = &mut self.listening => {}
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

/// Listens for ever, on a new connection when one is lost. Each gap ends with a wake-up, because what
/// was said in it was not heard.
async fn listen(
    options: PgConnectOptions,
    pool: PgPool,
    heard: Arc<Notify>,
    listening: Arc<AtomicBool>,
) {
    loop {
        if let Err(error) = listen_once(&options, &pool, &heard, &listening).await
            && listening.swap(false, Ordering::Relaxed)
        {
            tracing::warn!(%error, "notifications lost; changes are found by polling");
        }
        heard.notify_one();
        sleep(PROVE_WITHIN).await;
    }
}

async fn listen_once(
    options: &PgConnectOptions,
    pool: &PgPool,
    heard: &Notify,
    listening: &AtomicBool,
) -> Result<(), StoreError> {
    let connections = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&connections).await?;
    // A pooler may swallow what we listen for; so talk to ourselves, on a channel nobody else has.
    let own = format!("mailshift_{}", uuid::Uuid::new_v4().simple());
    listener.listen_all([CHANNEL, own.as_str()]).await?;
    loop {
        sqlx::query("SELECT pg_notify($1, '')").bind(&own).execute(pool).await?;
        prove(&mut listener, &own, heard).await?;
        if !listening.swap(true, Ordering::Relaxed) {
            tracing::info!("notifications come through");
            heard.notify_one();
        }
        let quiet = async {
            while let Some(told) = listener.try_recv().await? {
                if told.channel() == CHANNEL {
                    heard.notify_one();
                }
            }
            Err::<(), _>(StoreError::Timeout)
        };
        if let Ok(lost) = timeout(PROVE_EVERY, quiet).await {
            return lost;
        }
    }
}

/// Waits for our own word to come back.
async fn prove(listener: &mut PgListener, own: &str, heard: &Notify) -> Result<(), StoreError> {
    let proof = async {
        while let Some(told) = listener.try_recv().await? {
            if told.channel() == own {
                return Ok(());
            }
            heard.notify_one();
        }
        Err(StoreError::Timeout)
    };
    timeout(PROVE_WITHIN, proof).await.unwrap_or(Err(StoreError::Timeout))
}

/// Every session's own limits, so that a forgotten `BEGIN` elsewhere cannot stall a node (OWN-19).
fn connect_options(url: &str) -> Result<PgConnectOptions, StoreError> {
    Ok(PgConnectOptions::from_str(url)?
        .application_name("mailshift")
        .options([("lock_timeout", "5s"), ("statement_timeout", "60s")]))
}

/// SQLSTATE 25006 read_only_sql_transaction: a standby or a demoted primary.
fn read_only(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(sqlx::error::DatabaseError::code) {
        Some(code) if code == "25006" => StoreError::ReadOnly,
        Some(_) | None => StoreError::Database(error),
    }
}
