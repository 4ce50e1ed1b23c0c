//! Who may do what with a held row in SQLite, in the words of Postgres's functions.

use sqlx::{Sqlite, Transaction};

use super::super::TableError;

/// What decides about a holder.
#[derive(sqlx::FromRow)]
struct HoldRow {
    owner: String,
    state: String,
    hold_token: Option<String>,
    hold_until: Option<String>,
    fenced: bool,
}

/// Refuses whoever has not the token of the hold. The transaction has the write lock, so the row stands.
pub(super) async fn require_holder(
    transaction: &mut Transaction<'_, Sqlite>,
    account: &str,
    token: &str,
) -> Result<(), TableError> {
    holder(transaction, account, token).await.map(drop)
}

/// The same for a flip, which wants a fence under that token, too.
pub(super) async fn require_fenced_holder(
    transaction: &mut Transaction<'_, Sqlite>,
    account: &str,
    token: &str,
) -> Result<(), TableError> {
    let row = holder(transaction, account, token).await?;
    if row.fenced { Ok(()) } else { Err(TableError::NotFenced(account.to_owned())) }
}

/// Why a second mover comes too late.
pub(super) async fn held_already(
    transaction: &mut Transaction<'_, Sqlite>,
    account: String,
) -> Result<TableError, TableError> {
    let until = hold_row(transaction, &account).await?.and_then(|row| row.hold_until);
    Ok(TableError::HeldAlready { account, until })
}

async fn holder(
    transaction: &mut Transaction<'_, Sqlite>,
    account: &str,
    token: &str,
) -> Result<HoldRow, TableError> {
    match hold_row(transaction, account).await? {
        None => Err(TableError::NoSuchAccount(account.to_owned())),
        Some(row) if row.state != "held" => {
            Err(TableError::NotHeld { account: account.to_owned(), owner: row.owner })
        }
        Some(row) if row.hold_token.as_deref() != Some(token) => {
            Err(TableError::OtherHolder(account.to_owned()))
        }
        Some(row) => Ok(row),
    }
}

async fn hold_row(
    transaction: &mut Transaction<'_, Sqlite>,
    account: &str,
) -> Result<Option<HoldRow>, TableError> {
    Ok(sqlx::query_as(
        "SELECT owner, state, hold_token, hold_until, fenced FROM accounts WHERE account = $1",
    )
    .bind(account)
    .fetch_optional(&mut **transaction)
    .await?)
}
