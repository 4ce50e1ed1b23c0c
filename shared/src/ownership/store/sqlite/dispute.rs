//! Disputes: names that were led by changes which this file does not have. The twin of the function
//! `dispute` of the schema for Postgres.

use sqlx::{Sqlite, Transaction};

use super::SqliteStore;
use crate::ownership::Epoch;
use crate::ownership::map::Claim;
use crate::ownership::store::rows::{Basis, made, reason};
use crate::ownership::store::{Dispute, Disputed, StoreError};
use crate::ownership::table::sign_sqlite;

/// Whether a change is gone. Changes older than the oldest one were pruned, not lost; a name that was
/// disputed after the change has had its operator.
const LOST: &str = concat!(
    "SELECT $2 >= coalesce((SELECT min(epoch) FROM changes), 0) \
     AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.epoch = $2 AND c.kind = $3 AND c.name = $4 AND ",
    made!(),
    " = $5) \
     AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.epoch > $2 AND c.kind = 'account' \
       AND c.name = $1 AND c.via = 'dispute')"
);

impl SqliteStore {
    pub(in crate::ownership::store) async fn dispute<'a>(
        &self,
        claims: &'a [Claim],
    ) -> Result<Vec<Dispute<'a>>, StoreError> {
        let mut disputed = Vec::new();
        for claim in claims {
            let mut transaction = self.table.begin_with("BEGIN IMMEDIATE").await?;
            let Some(change) = lost(&mut transaction, claim).await? else {
                transaction.rollback().await?;
                continue;
            };
            sign_sqlite(&mut transaction, Some((&self.signature(), "dispute"))).await?;
            let reason = reason(&self.node, claim, change);
            let outcome = refused(hold(&mut transaction, claim, reason).await)?;
            match outcome {
                Disputed::Held => {
                    sign_sqlite(&mut transaction, None).await?;
                    transaction.commit().await?;
                }
                Disputed::Refused(_) => transaction.rollback().await?,
            }
            disputed.push(Dispute { claim, change, outcome });
        }
        Ok(disputed)
    }
}

/// The newest change of a claim that is not there.
async fn lost(
    transaction: &mut Transaction<'_, Sqlite>,
    claim: &Claim,
) -> Result<Option<Epoch>, sqlx::Error> {
    let mut newest = None;
    for change in &claim.changes {
        let Basis { epoch, kind, name, made } = Basis::of(change);
        let lost: bool = sqlx::query_scalar(LOST)
            .bind(&*claim.name)
            .bind(epoch)
            .bind(kind)
            .bind(name)
            .bind(made)
            .fetch_one(&mut **transaction)
            .await?;
        if lost {
            newest = newest.max(Some(change.0));
        }
    }
    Ok(newest)
}

/// Holds the name without end: its row, or one that is made at the owner that the node knew, in place of an
/// alias of that name.
async fn hold(
    transaction: &mut Transaction<'_, Sqlite>,
    claim: &Claim,
    mut reason: String,
) -> Result<(), sqlx::Error> {
    let alias_of: Option<String> =
        sqlx::query_scalar("DELETE FROM aliases WHERE alias = $1 RETURNING account")
            .bind(&*claim.name)
            .fetch_optional(&mut **transaction)
            .await?;
    if let Some(account) = alias_of {
        reason.push_str("; it was an alias of ");
        reason.push_str(&account);
    }
    sqlx::query(
        "INSERT INTO accounts (account, owner, state) SELECT $1, $2, 'held' \
         WHERE NOT EXISTS (SELECT 1 FROM accounts WHERE account = $1)",
    )
    .bind(&*claim.name)
    .bind(&*claim.owner)
    .execute(&mut **transaction)
    .await?;
    sqlx::query(
        "UPDATE accounts SET state = 'held', hold_token = NULL, hold_until = NULL, disputed = $2 \
         WHERE account = $1 AND disputed IS NULL",
    )
    .bind(&*claim.name)
    .bind(reason)
    .execute(&mut **transaction)
    .await
    .map(drop)
}

/// What the table itself refused will be refused again; anything else is tried again.
fn refused(held: Result<(), sqlx::Error>) -> Result<Disputed, StoreError> {
    match held {
        Ok(()) => Ok(Disputed::Held),
        // SQLITE_CONSTRAINT_TRIGGER and its like: the code's low octet is 19.
        Err(sqlx::Error::Database(error))
            if error
                .code()
                .and_then(|code| code.parse::<i32>().ok())
                .is_some_and(|c| c & 0xff == 19) =>
        {
            Ok(Disputed::Refused(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}
