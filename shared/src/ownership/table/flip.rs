//! The immediate flip: change of owner without a hold. For mail systems that copy themselves, for
//! accounts that are empty, for going back. A mover holds and fences first (DESIGN §2a).

use sqlx::{Postgres, Sqlite, Transaction};

use super::ensure::{Made, ensure_sqlite};
use super::{Table, TableError};
use crate::backend::BackendName;

const SETTLING: &str = "SELECT account, owner, epoch, settled, waiting, busy, lapsed, forgotten, \
     sessions, deliveries, in_doubt FROM flip_status WHERE account = $1";
const SQLITE_LIVE: &str = "SELECT node || '/' || service, \
     CAST(json_extract(backends, '$.\"' || $1 || '\"') AS text) FROM nodes.nodes \
     WHERE NOT forgotten AND lease_until >= strftime('%Y-%m-%d %H:%M:%f', 'now') ORDER BY 1";
const ENSURE: &str = "SELECT account, owner FROM \
     (SELECT name AS account, ensure_account(name) AS owner FROM unnest($1) AS name) AS e \
     WHERE owner IS NOT NULL";

/// What a flip changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flipped {
    /// Accounts that changed their owner.
    pub changed: Vec<String>,
    /// Accounts that were there already.
    pub unchanged: Vec<String>,
    /// Rows that were made first.
    pub made: Vec<Made>,
}

/// How far an account's last change is on the nodes.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Settling {
    /// The account.
    pub account: String,
    /// Its owner.
    pub owner: String,
    /// The change.
    pub epoch: i64,
    /// Every live node has applied it.
    pub settled: bool,
    /// Nodes that have not read it.
    pub waiting: Option<String>,
    /// Nodes where older work still runs.
    pub busy: Option<String>,
    /// Nodes whose lease ended: they serve nothing.
    pub lapsed: Option<String>,
    /// Nodes that an operator has given up.
    pub forgotten: Option<String>,
    /// Sessions still open under an older change.
    pub sessions: i64,
    /// Deliveries without verdict.
    pub deliveries: i64,
    /// Deliveries whose verdict will never count.
    pub in_doubt: i64,
}

impl Table {
    /// Gives `accounts` to `owner`, all of them or none; `actor` goes into the audit.
    ///
    /// # Errors
    ///
    /// A name that is no account, a held one, an owner that a live node could not serve.
    pub async fn flip(
        &self,
        accounts: &[String],
        owner: &BackendName,
        actor: &str,
    ) -> Result<Flipped, TableError> {
        let mut names =
            accounts.iter().map(|name| super::canonical(name)).collect::<Result<Vec<_>, _>>()?;
        names.sort();
        names.dedup();
        match self {
            Self::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                let flipped = flip_postgres(&mut transaction, names, owner, actor).await?;
                transaction.commit().await?;
                Ok(flipped)
            }
            Self::Sqlite { pool, .. } => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                let flipped = flip_sqlite(&mut transaction, names, owner, actor).await?;
                transaction.commit().await?;
                Ok(flipped)
            }
        }
    }

    /// How far the last change of `account` is on the nodes; `None` when it has no row.
    ///
    /// # Errors
    ///
    /// The database's failure.
    pub async fn settling(&self, account: &str) -> Result<Option<Settling>, TableError> {
        Ok(match self {
            Self::Postgres(pool) => {
                sqlx::query_as(SETTLING).bind(account).fetch_optional(pool).await?
            }
            Self::Sqlite { pool, .. } => {
                sqlx::query_as(SETTLING).bind(account).fetch_optional(pool).await?
            }
        })
    }
}

/// Tells the triggers who asks, until the transaction ends.
pub(super) async fn sign_postgres(
    transaction: &mut Transaction<'_, Postgres>,
    actor: &str,
    command: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT set_config('mailshift.actor', $1, true), set_config('mailshift.via', $2, true)",
    )
    .bind(actor)
    .bind(command)
    .execute(&mut **transaction)
    .await
    .map(|_| ())
}

/// The same for SQLite; `None` takes it back, which must be done before the commit.
pub(in crate::ownership) async fn sign_sqlite(
    transaction: &mut Transaction<'_, Sqlite>,
    signature: Option<(&str, &str)>,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE caller SET actor = $1, via = $2")
        .bind(signature.map(|(actor, _)| actor))
        .bind(signature.map(|(_, command)| command))
        .execute(&mut **transaction)
        .await
        .map(|_| ())
}

/// Refuses an owner that a live node lacks or knows under other addresses. Postgres has a function.
pub(super) async fn require_owner_sqlite(
    transaction: &mut Transaction<'_, Sqlite>,
    owner: &BackendName,
) -> Result<(), TableError> {
    let nodes: Vec<(String, Option<String>)> =
        sqlx::query_as(SQLITE_LIVE).bind(owner.as_str()).fetch_all(&mut **transaction).await?;
    let lacking: Vec<&str> =
        nodes.iter().filter(|(_, hash)| hash.is_none()).map(|(node, _)| &**node).collect();
    if !lacking.is_empty() {
        return Err(TableError::OwnerUnknown { owner: owner.clone(), nodes: lacking.join(", ") });
    }
    let differ = nodes.windows(2).any(|pair| matches!(pair, [(_, a), (_, b)] if a != b));
    if differ {
        let all: Vec<&str> = nodes.iter().map(|(node, _)| &**node).collect();
        return Err(TableError::OwnerDiffers { owner: owner.clone(), nodes: all.join(", ") });
    }
    Ok(())
}

/// One UPDATE for all accounts: one epoch, seconds for 100,000.
async fn flip_postgres(
    transaction: &mut Transaction<'_, Postgres>,
    names: Vec<String>,
    owner: &BackendName,
    actor: &str,
) -> Result<Flipped, TableError> {
    sign_postgres(transaction, actor, "accounts flip").await?;
    sqlx::query("SELECT require_owner($1)")
        .bind(owner.as_str())
        .execute(&mut **transaction)
        .await?;
    let made = sqlx::query_as(ENSURE).bind(&names).fetch_all(&mut **transaction).await?;
    let changed: Vec<String> = sqlx::query_scalar(
        "UPDATE accounts SET owner = $1 \
         WHERE account = ANY($2) AND state = 'active' AND owner <> $1 RETURNING account",
    )
    .bind(owner.as_str())
    .bind(&names)
    .fetch_all(&mut **transaction)
    .await?;
    let held: Vec<String> = sqlx::query_scalar(
        "SELECT account FROM accounts WHERE account = ANY($1) AND state = 'held' ORDER BY account",
    )
    .bind(&names)
    .fetch_all(&mut **transaction)
    .await?;
    finish(names, changed, held, made)
}

async fn flip_sqlite(
    transaction: &mut Transaction<'_, Sqlite>,
    names: Vec<String>,
    owner: &BackendName,
    actor: &str,
) -> Result<Flipped, TableError> {
    require_owner_sqlite(transaction, owner).await?;
    sign_sqlite(transaction, Some((actor, "accounts flip"))).await?;
    let (mut changed, mut held, mut made) = (Vec::new(), Vec::new(), Vec::new());
    for name in &names {
        let account = ensure_sqlite(transaction, name).await?;
        made.extend(account.made);
        if account.held {
            held.push(name.clone());
        } else if account.owner != owner.as_str() {
            sqlx::query("UPDATE accounts SET owner = $1 WHERE account = $2")
                .bind(owner.as_str())
                .bind(name)
                .execute(&mut **transaction)
                .await?;
            changed.push(name.clone());
        }
    }
    sign_sqlite(transaction, None).await?;
    finish(names, changed, held, made)
}

fn finish(
    names: Vec<String>,
    mut changed: Vec<String>,
    held: Vec<String>,
    made: Vec<Made>,
) -> Result<Flipped, TableError> {
    if !held.is_empty() {
        return Err(TableError::Held(held));
    }
    changed.sort();
    let unchanged = names.into_iter().filter(|name| changed.binary_search(name).is_err()).collect();
    Ok(Flipped { changed, unchanged, made })
}
