//! Connections to Postgres: direct, or through a pooler that gives each transaction another one.
//!
//! On a direct connection each session begins with its limits. A pooler refuses or forgets them, and
//! prepared statements, too: so behind one each statement is a transaction that begins with its limits,
//! and is prepared in it. `listen_url` says that there is one: nobody else needs it.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Postgres, Transaction};

use crate::config::OwnershipConfig;

/// Longest wait for a connection, and for a statement that waits for a lock.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Limits of every session, so that a forgotten `BEGIN` elsewhere cannot stall a node (OWN-19).
const LIMITS: [(&str, &str); 3] = [
    ("lock_timeout", "5s"),
    ("statement_timeout", "60s"),
    ("idle_in_transaction_session_timeout", "10s"),
];

/// The ways to the database.
pub(super) struct Connections {
    /// Replaced when its connections do not answer.
    pool: Mutex<PgPool>,
    options: PgConnectOptions,
    /// A direct one, for what needs a session of its own.
    direct: PgConnectOptions,
    pooled: bool,
}

/// A connection for some statements.
pub(super) enum Session {
    Direct(PoolConnection<Postgres>),
    Pooled(Transaction<'static, Postgres>),
}

impl Connections {
    pub(super) fn new(config: &OwnershipConfig) -> Result<Self, sqlx::Error> {
        let pooled = config.listen_url.is_some();
        let own = options(&config.url)?;
        let options = if pooled { own } else { limited(own) };
        let direct = match &config.listen_url {
            Some(url) => limited(self::options(url)?),
            None => options.clone(),
        };
        Ok(Self { pool: Mutex::new(connect(&options)), options, direct, pooled })
    }

    /// Connections of the old pool may hang until TCP gives up, a quarter of an hour: it is left alone.
    pub(super) fn reconnect(&self) {
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = connect(&self.options);
    }

    /// A session, in which each statement is one transaction.
    pub(super) async fn session(&self) -> Result<Session, sqlx::Error> {
        Ok(if self.pooled {
            Session::Pooled(self.begin("BEGIN").await?)
        } else {
            Session::Direct(self.pool().acquire().await?)
        })
    }

    /// A transaction that begins in these words.
    pub(super) async fn begin(
        &self,
        begin: &str,
    ) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let limits = LIMITS.map(|(name, limit)| format!("; SET LOCAL {name} = '{limit}'"));
        self.pool().begin_with(AssertSqlSafe(format!("{begin}{}", limits.concat()))).await
    }

    /// Whether a statement that was prepared will be there the next time.
    pub(super) fn keep_statements(&self) -> bool {
        !self.pooled
    }

    pub(super) fn direct(&self) -> PgConnectOptions {
        self.direct.clone()
    }

    fn pool(&self) -> PgPool {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Session {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        match self {
            Self::Direct(connection) => connection,
            Self::Pooled(transaction) => transaction,
        }
    }

    /// Makes what was done last. Without it nothing was done, or nobody knows.
    pub(super) async fn end(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Direct(_) => Ok(()),
            Self::Pooled(transaction) => transaction.commit().await,
        }
    }
}

pub(super) fn connect(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(3)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(options.clone())
}

/// Only what a pooler lets pass: it refuses parameters that it does not know.
fn options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    Ok(PgConnectOptions::from_str(url)?.application_name("mailshift").extra_float_digits(None))
}

fn limited(options: PgConnectOptions) -> PgConnectOptions {
    options.options(LIMITS)
}
