//! The row of an account that lives at its domain's default owner for want of one: made before a hold or a
//! flip, and nothing changes by it. Postgres has functions for it; here are their twins for SQLite.

use sqlx::{Sqlite, Transaction};

use super::TableError;
use crate::ownership::DomainRow;

const ROW: &str = "SELECT owner, state FROM accounts WHERE account = $1";
const TARGET: &str = "SELECT account FROM aliases WHERE alias = $1";
const DOMAIN: &str = "SELECT default_owner, subaddress_delimiter FROM domains WHERE domain = $1";
/// The row that a name leads to as account or as alias.
const LED_TO: &str = "SELECT owner, state FROM accounts WHERE account = \
     coalesce((SELECT account FROM aliases WHERE alias = $1), $1)";
const INSERT: &str = "INSERT INTO accounts (account, owner) VALUES ($1, $2)";

/// A row that was made for an account that had none.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Made {
    /// The account.
    pub account: String,
    /// Where it lived: its domain's default owner.
    pub owner: String,
}

/// Why a name that has no row gets none: it does not live by its domain's default owner alone, so a row
/// there would move it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LivesElsewhere {
    /// It goes where its mailbox goes.
    #[error(
        "{name} is a sub-address of {mailbox} and lives by its row\n  Name {mailbox}, or make a row for the \
         sub-address alone: mailshift accounts import, or INSERT."
    )]
    SubAddress {
        /// What was named.
        name: String,
        /// The mailbox.
        mailbox: String,
    },
    /// Its mail goes one way and its logins another.
    #[error(
        "{name} has no row: its mail goes by the catch-all {catch_all} ({owner}), its logins by the default \
         owner of its domain ({})\n  Make its row where its mailbox is: mailshift accounts import, or INSERT.",
        default_owner.as_deref().unwrap_or("none")
    )]
    CatchAll {
        /// What was named.
        name: String,
        /// The domain's catch-all.
        catch_all: String,
        /// The catch-all's owner.
        owner: String,
        /// The domain's.
        default_owner: Option<String>,
    },
    /// Its mail waits for the end of a hold.
    #[error(
        "{name} has no row: its mail goes by the catch-all {catch_all}, which is held\n  End the hold of the \
         catch-all first."
    )]
    HeldCatchAll {
        /// What was named.
        name: String,
        /// The domain's catch-all.
        catch_all: String,
    },
}

/// An account's row.
pub(super) struct Ensured {
    pub(super) owner: String,
    pub(super) held: bool,
    /// It had none before.
    pub(super) made: Option<Made>,
}

/// Finds an account's row, or gives it one at its domain's default owner.
pub(super) async fn ensure_sqlite(
    transaction: &mut Transaction<'_, Sqlite>,
    name: &str,
) -> Result<Ensured, TableError> {
    if let Some((owner, held)) = row_sqlite(transaction, ROW, name).await? {
        return Ok(Ensured { owner, held, made: None });
    }
    let account: Option<String> =
        sqlx::query_scalar(TARGET).bind(name).fetch_optional(&mut **transaction).await?;
    if let Some(account) = account {
        return Err(TableError::IsAlias { alias: name.to_owned(), account });
    }
    let Some(owner) = owner_without_row(transaction, name).await? else {
        return Err(TableError::NoSuchAccount(name.to_owned()));
    };
    sqlx::query(INSERT).bind(name).bind(&owner).execute(&mut **transaction).await?;
    let made = Some(Made { account: name.to_owned(), owner: owner.clone() });
    Ok(Ensured { owner, held: false, made })
}

/// Where a name lives that has no row: at its domain's default owner, and nowhere without one.
async fn owner_without_row(
    transaction: &mut Transaction<'_, Sqlite>,
    name: &str,
) -> Result<Option<String>, TableError> {
    let Some((local, domain)) = name.rsplit_once('@') else { return Ok(None) };
    let row: Option<(Option<String>, String)> =
        sqlx::query_as(DOMAIN).bind(domain).fetch_optional(&mut **transaction).await?;
    let Some((default_owner, delimiter)) = row else { return Ok(None) };
    let delimiting = DomainRow { subaddress_delimiter: delimiter.into(), ..DomainRow::default() };
    if let Some(mailbox) = delimiting.without_detail(local) {
        let mailbox = format!("{mailbox}@{domain}");
        return Err(LivesElsewhere::SubAddress { name: name.to_owned(), mailbox }.into());
    }
    let catch_all = format!("*@{domain}");
    let name = name.to_owned();
    match row_sqlite(transaction, LED_TO, &catch_all).await? {
        Some((owner, _)) if Some(&owner) != default_owner.as_ref() => {
            Err(LivesElsewhere::CatchAll { name, catch_all, owner, default_owner }.into())
        }
        Some((_, true)) => Err(LivesElsewhere::HeldCatchAll { name, catch_all }.into()),
        Some((_, false)) | None => Ok(default_owner),
    }
}

/// Owner, and whether it is held.
async fn row_sqlite(
    transaction: &mut Transaction<'_, Sqlite>,
    query: &'static str,
    name: &str,
) -> Result<Option<(String, bool)>, sqlx::Error> {
    let row: Option<(String, String)> =
        sqlx::query_as(query).bind(name).fetch_optional(&mut **transaction).await?;
    Ok(row.map(|(owner, state)| (owner, state == "held")))
}
