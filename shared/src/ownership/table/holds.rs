//! What a mover does: hold, renew, release, fence, flip; and the end of holds whose holder has died
//! (DESIGN §2a). In Postgres these are functions of the schema. Here are their twins for SQLite: each is
//! one transaction that has the file's only write lock from its beginning, so what it reads stands until
//! it commits.

mod holder;

use std::time::Duration;

use sqlx::{PgPool, Postgres, Sqlite, SqlitePool, Transaction};

use self::holder::{held_already, require_fenced_holder, require_holder};
use super::ensure::{Made, ensure_sqlite};
use super::flip::{require_owner_sqlite, sign_postgres, sign_sqlite};
use super::{Table, TableError};
use crate::backend::BackendName;

/// Longest lease, as the schema of Postgres has it.
const MAX_LEASE: Duration = Duration::from_hours(1);
/// Holds whose lease is over.
const OVER: &str = "SELECT count(*) FROM accounts WHERE state = 'held' \
     AND hold_until < strftime('%Y-%m-%d %H:%M:%f', 'now')";
const EXPIRE: &str = "UPDATE accounts SET state = 'active' WHERE state = 'held' \
     AND hold_until < strftime('%Y-%m-%d %H:%M:%f', 'now')";
const HOLD: &str = "UPDATE accounts SET state = 'held', hold_token = lower(hex(randomblob(16))), \
     hold_until = strftime('%Y-%m-%d %H:%M:%f', 'now', $2) \
     WHERE account = $1 AND state = 'active' RETURNING hold_token";
const RENEW: &str = "UPDATE accounts SET hold_until = strftime('%Y-%m-%d %H:%M:%f', 'now', $3) \
     WHERE account = $1 AND state = 'held' AND hold_token = $2";
const RELEASE: &str = "UPDATE accounts SET state = 'active' \
     WHERE account = $1 AND state = 'held' AND hold_token = $2";
const FENCE: &str = "UPDATE accounts SET fenced = 1 \
     WHERE account = $1 AND state = 'held' AND hold_token = $2";
const FLIP: &str = "UPDATE accounts SET owner = $3, state = 'active' \
     WHERE account = $1 AND state = 'held' AND hold_token = $2 AND fenced";
/// How far each node is with the last change of an account that has a row.
const NODE_STATUS: &str = "WITH last AS (SELECT max(epoch) AS epoch FROM (\
       SELECT epoch FROM accounts WHERE account = $1 \
       UNION ALL SELECT epoch FROM changes WHERE name = $1 AND kind IN ('account', 'alias') \
       UNION ALL SELECT epoch FROM changes WHERE new_account = $1 \
       UNION ALL SELECT epoch FROM changes WHERE old_account = $1)) \
     SELECT n.node, n.service, CASE WHEN n.forgotten THEN 'forgotten' \
       WHEN n.lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now') THEN 'lapsed' \
       WHEN b.account IS NOT NULL THEN 'busy' \
       WHEN n.seen_epoch < last.epoch THEN 'waiting' ELSE 'seen' END AS status, \
       coalesce(b.sessions, 0) AS sessions, coalesce(b.deliveries, 0) AS deliveries, \
       coalesce(b.in_doubt, 0) AS in_doubt \
     FROM nodes.nodes n JOIN last LEFT JOIN nodes.busy b \
       ON b.node = n.node AND b.service = n.service AND b.account = $1 ORDER BY n.node, n.service";

/// A hold that has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// What its holder needs for everything else.
    pub token: String,
    /// The row that was made first.
    pub made: Option<Made>,
}

/// How far one service of one node is with the last change of an account.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct NodeStatus {
    /// The node.
    pub node: String,
    /// `mx-gateway` or `login-proxy`.
    pub service: String,
    /// `seen`, `waiting`, `busy`, `lapsed` or `forgotten`.
    pub status: String,
    /// Sessions still open under an older change.
    pub sessions: i64,
    /// Deliveries without verdict.
    pub deliveries: i64,
    /// Deliveries whose verdict will never count.
    pub in_doubt: i64,
}

impl NodeStatus {
    /// True when the change is not settled because of this node.
    pub fn blocks(&self) -> bool {
        matches!(&*self.status, "waiting" | "busy")
    }
}

impl Table {
    /// Holds an account: from now on nobody serves it, until its holder ends that or the lease does.
    ///
    /// # Errors
    ///
    /// No account, held already, a name that lives by another's row, or a lease that is too long.
    pub async fn hold(
        &self,
        account: &str,
        lease: Duration,
        actor: &str,
    ) -> Result<Hold, TableError> {
        let account = super::canonical(account)?;
        require_lease(lease)?;
        match self {
            Self::Postgres(pool) => {
                let mut transaction = begin_postgres(pool, actor).await?;
                let made: Option<String> = sqlx::query_scalar("SELECT ensure_account($1)")
                    .bind(&account)
                    .fetch_one(&mut *transaction)
                    .await?;
                let token = sqlx::query_scalar("SELECT hold($1, $2 * interval '1 millisecond')")
                    .bind(&account)
                    .bind(millis(lease))
                    .fetch_one(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                Ok(Hold { token, made: made.map(|owner| Made { account, owner }) })
            }
            Self::Sqlite { pool, .. } => {
                let mut transaction = begin_sqlite(pool, actor, "ensure_account").await?;
                let made = ensure_sqlite(&mut transaction, &account).await?.made;
                sign_sqlite(&mut transaction, Some((actor, "hold"))).await?;
                let token: Option<String> = sqlx::query_scalar(HOLD)
                    .bind(&account)
                    .bind(modifier(lease))
                    .fetch_optional(&mut *transaction)
                    .await?;
                let Some(token) = token else {
                    return Err(held_already(&mut transaction, account).await?);
                };
                end_sqlite(transaction).await?;
                Ok(Hold { token, made })
            }
        }
    }

    /// Prolongs a hold: its lease starts again now. Nothing else changes. Returns its new end, UTC.
    ///
    /// # Errors
    ///
    /// Not held under this token.
    pub async fn renew(
        &self,
        account: &str,
        token: &str,
        lease: Duration,
        actor: &str,
    ) -> Result<String, TableError> {
        let account = super::canonical(account)?;
        require_lease(lease)?;
        match self {
            Self::Postgres(pool) => {
                let mut transaction = begin_postgres(pool, actor).await?;
                let until = sqlx::query_scalar(
                    "SELECT CAST(renew($1, $2, $3 * interval '1 millisecond') AS text)",
                )
                .bind(&account)
                .bind(token)
                .bind(millis(lease))
                .fetch_one(&mut *transaction)
                .await?;
                transaction.commit().await?;
                Ok(until)
            }
            Self::Sqlite { pool, .. } => {
                let mut transaction = begin_sqlite(pool, actor, "renew").await?;
                require_holder(&mut transaction, &account, token).await?;
                sqlx::query(RENEW)
                    .bind(&account)
                    .bind(token)
                    .bind(modifier(lease))
                    .execute(&mut *transaction)
                    .await?;
                let until =
                    sqlx::query_scalar("SELECT hold_until FROM accounts WHERE account = $1")
                        .bind(&account)
                        .fetch_one(&mut *transaction)
                        .await?;
                end_sqlite(transaction).await?;
                Ok(until)
            }
        }
    }

    /// Ends a hold; the owner stays.
    ///
    /// # Errors
    ///
    /// Not held under this token.
    pub async fn release(&self, account: &str, token: &str, actor: &str) -> Result<(), TableError> {
        let account = super::canonical(account)?;
        match self {
            Self::Postgres(pool) => {
                let mut transaction = begin_postgres(pool, actor).await?;
                sqlx::query("SELECT release($1, $2)")
                    .bind(&account)
                    .bind(token)
                    .execute(&mut *transaction)
                    .await?;
                Ok(transaction.commit().await?)
            }
            Self::Sqlite { pool, .. } => {
                let mut transaction = begin_sqlite(pool, actor, "release").await?;
                require_holder(&mut transaction, &account, token).await?;
                sqlx::query(RELEASE).bind(&account).bind(token).execute(&mut *transaction).await?;
                end_sqlite(transaction).await
            }
        }
    }

    /// Asks once how far each node is with a hold. When none blocks, the account is fenced, and
    /// [`Self::flip_held`] is allowed.
    ///
    /// # Errors
    ///
    /// Not held under this token.
    pub async fn fence(
        &self,
        account: &str,
        token: &str,
        actor: &str,
    ) -> Result<Vec<NodeStatus>, TableError> {
        let account = super::canonical(account)?;
        match self {
            Self::Postgres(pool) => {
                let mut transaction = begin_postgres(pool, actor).await?;
                let nodes = sqlx::query_as("SELECT * FROM fence($1, $2)")
                    .bind(&account)
                    .bind(token)
                    .fetch_all(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                Ok(nodes)
            }
            Self::Sqlite { pool, .. } => {
                let mut transaction = begin_sqlite(pool, actor, "fence").await?;
                require_holder(&mut transaction, &account, token).await?;
                // One look at all nodes decides and is returned.
                let nodes: Vec<NodeStatus> =
                    sqlx::query_as(NODE_STATUS).bind(&account).fetch_all(&mut *transaction).await?;
                if !nodes.iter().any(NodeStatus::blocks) {
                    sqlx::query(FENCE)
                        .bind(&account)
                        .bind(token)
                        .execute(&mut *transaction)
                        .await?;
                }
                end_sqlite(transaction).await?;
                Ok(nodes)
            }
        }
    }

    /// Gives a held and fenced account to `owner` and ends the hold.
    ///
    /// # Errors
    ///
    /// Not held under this token, not fenced, or an owner that a live node could not serve.
    pub async fn flip_held(
        &self,
        account: &str,
        owner: &BackendName,
        token: &str,
        actor: &str,
    ) -> Result<(), TableError> {
        let account = super::canonical(account)?;
        match self {
            Self::Postgres(pool) => {
                let mut transaction = begin_postgres(pool, actor).await?;
                sqlx::query("SELECT flip($1, $2, $3)")
                    .bind(&account)
                    .bind(owner.as_str())
                    .bind(token)
                    .execute(&mut *transaction)
                    .await?;
                Ok(transaction.commit().await?)
            }
            Self::Sqlite { pool, .. } => {
                let mut transaction = begin_sqlite(pool, actor, "flip").await?;
                require_owner_sqlite(&mut transaction, owner).await?;
                require_fenced_holder(&mut transaction, &account, token).await?;
                sqlx::query(FLIP)
                    .bind(&account)
                    .bind(token)
                    .bind(owner.as_str())
                    .execute(&mut *transaction)
                    .await?;
                end_sqlite(transaction).await
            }
        }
    }

    /// Ends the holds whose lease is over; their owners stay. Returns how many.
    ///
    /// # Errors
    ///
    /// The database's failure.
    pub async fn expire_holds(&self, actor: &str) -> Result<u64, TableError> {
        match self {
            Self::Postgres(pool) => {
                let mut transaction = begin_postgres(pool, actor).await?;
                let ended: i64 = sqlx::query_scalar("SELECT expire_holds()")
                    .fetch_one(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                Ok(u64::try_from(ended).unwrap_or_default())
            }
            Self::Sqlite { pool, .. } => Ok(expire_sqlite(pool, actor).await?),
        }
    }
}

/// Ends the holds in SQLite whose lease is over. Locks nothing when there is nothing to do; and what was
/// renewed or flipped while this waited for the lock no longer matches.
pub(in crate::ownership) async fn expire_sqlite(
    pool: &SqlitePool,
    actor: &str,
) -> Result<u64, sqlx::Error> {
    let over: i64 = sqlx::query_scalar(OVER).fetch_one(pool).await?;
    if over == 0 {
        return Ok(0);
    }
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    sign_sqlite(&mut transaction, Some((actor, "expire_holds"))).await?;
    let ended = sqlx::query(EXPIRE).execute(&mut *transaction).await?.rows_affected();
    sign_sqlite(&mut transaction, None).await?;
    transaction.commit().await?;
    Ok(ended)
}

/// A transaction as the functions want it, whatever the database's default is. Each says by itself in the
/// audit which one it is.
async fn begin_postgres<'a>(
    pool: &'a PgPool,
    actor: &str,
) -> Result<Transaction<'a, Postgres>, TableError> {
    let mut transaction = pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    sign_postgres(&mut transaction, actor, "").await?;
    Ok(transaction)
}

async fn begin_sqlite<'a>(
    pool: &'a SqlitePool,
    actor: &str,
    command: &str,
) -> Result<Transaction<'a, Sqlite>, TableError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    sign_sqlite(&mut transaction, Some((actor, command))).await?;
    Ok(transaction)
}

async fn end_sqlite(mut transaction: Transaction<'_, Sqlite>) -> Result<(), TableError> {
    sign_sqlite(&mut transaction, None).await?;
    Ok(transaction.commit().await?)
}

fn require_lease(lease: Duration) -> Result<(), TableError> {
    if lease.is_zero() || lease > MAX_LEASE { Err(TableError::BadLease) } else { Ok(()) }
}

/// A lease as Postgres multiplies its unit; it is at most an hour.
fn millis(lease: Duration) -> i64 {
    i64::try_from(lease.as_millis()).unwrap_or(i64::MAX)
}

/// A lease as SQLite's functions of time take it.
fn modifier(lease: Duration) -> String {
    format!("+{:.3} seconds", lease.as_secs_f64())
}
