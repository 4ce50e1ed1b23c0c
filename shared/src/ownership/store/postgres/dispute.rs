//! Disputes: names that were led by changes which this database does not have.

use std::collections::HashMap;

use sqlx::error::DatabaseError;

use super::PostgresStore;
use crate::ownership::Epoch;
use crate::ownership::map::Claim;
use crate::ownership::store::rows::{Basis, epoch_of, made, reason};
use crate::ownership::store::{Dispute, Disputed, StoreError};

/// Names whose disputes are looked at together.
const AT_ONCE: usize = 1_000;

/// Claims, each with the newest of its changes that is not there. Changes older than the oldest one were
/// pruned, not lost; a name that was disputed after the change has had its operator.
const LOST: &str = concat!(
    "SELECT m.claimed, max(m.epoch) \
     FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[]) \
       m(claimed, epoch, kind, name, made) \
     WHERE m.epoch >= coalesce((SELECT min(epoch) FROM changes), 0) \
     AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.epoch = m.epoch AND c.kind = m.kind \
       AND c.name = m.name AND ",
    made!(),
    " = m.made) \
     AND NOT EXISTS (SELECT 1 FROM changes c WHERE c.epoch > m.epoch AND c.kind = 'account' \
       AND c.name = m.claimed AND c.via = 'dispute') \
     GROUP BY m.claimed"
);

impl PostgresStore {
    pub(in crate::ownership::store) async fn dispute<'a>(
        &self,
        claims: &'a [Claim],
    ) -> Result<Vec<Dispute<'a>>, StoreError> {
        let mut disputed = Vec::new();
        // In parts, so that nodes that find the same loss do not all do the same work.
        for part in claims.chunks(AT_ONCE) {
            let lost = self.lost(part).await?;
            let lost = part.iter().filter_map(|claim| Some((claim, *lost.get(&*claim.name)?)));
            for (claim, change) in lost {
                let mut session = self.connections.session().await?;
                let done = sqlx::query("SELECT dispute($1, $2, $3)")
                    .bind(&*claim.name)
                    .bind(&*claim.owner)
                    .bind(reason(&self.node, claim, change))
                    .persistent(self.connections.keep_statements())
                    .execute(session.connection())
                    .await;
                let outcome = refused(done)?;
                session.end().await?;
                disputed.push(Dispute { claim, change, outcome });
            }
        }
        Ok(disputed)
    }

    async fn lost(&self, claims: &[Claim]) -> Result<HashMap<String, Epoch>, StoreError> {
        let (mut claimed, mut epochs, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        let (mut names, mut mades) = (Vec::new(), Vec::new());
        for claim in claims {
            for Basis { epoch, kind, name, made } in claim.changes.iter().map(Basis::of) {
                claimed.push(&*claim.name);
                epochs.push(epoch);
                kinds.push(kind);
                names.push(name);
                mades.push(made);
            }
        }
        let mut session = self.connections.session().await?;
        let lost: Vec<(String, i64)> = sqlx::query_as(LOST)
            .bind(claimed)
            .bind(epochs)
            .bind(kinds)
            .bind(names)
            .bind(mades)
            .persistent(self.connections.keep_statements())
            .fetch_all(session.connection())
            .await?;
        session.end().await?;
        Ok(lost.into_iter().map(|(claimed, epoch)| (claimed, epoch_of(epoch))).collect())
    }
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
