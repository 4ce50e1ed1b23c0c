//! Names without a row, in SQLite's second file.

use super::super::{Sighting, StoreError, UNKNOWN_DAYS, UNKNOWN_ROWS};
use super::SqliteStore;

const NOTE: &str = "INSERT INTO unknown_names (node, service, name, outcome, seen) \
     VALUES ($1, $2, $3, $4, $5) ON CONFLICT (node, service, name) DO UPDATE SET \
     outcome = excluded.outcome, seen = unknown_names.seen + excluded.seen, \
     last_at = strftime('%Y-%m-%d %H:%M:%f', 'now')";
const PRUNE: &str = "DELETE FROM unknown_names WHERE node = $1 AND service = $2 \
     AND (last_at < strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || $4 || ' days') OR name IN ( \
       SELECT name FROM unknown_names WHERE node = $1 AND service = $2 \
       ORDER BY outcome = 'default' DESC, seen DESC, last_at DESC, name LIMIT -1 OFFSET $3))";

impl SqliteStore {
    /// Adds to what this node has seen, then forgets what is least worth keeping.
    pub(in super::super) async fn report_unknown(
        &self,
        sightings: &[Sighting],
    ) -> Result<(), StoreError> {
        let mut transaction = self.nodes.begin_with("BEGIN IMMEDIATE").await?;
        for Sighting { name, outcome, seen } in sightings {
            sqlx::query(NOTE)
                .bind(&*self.node.name)
                .bind(self.node.service)
                .bind(&**name)
                .bind(outcome.as_str())
                .bind(*seen)
                .execute(&mut *transaction)
                .await?;
        }
        sqlx::query(PRUNE)
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(UNKNOWN_ROWS)
            .bind(UNKNOWN_DAYS)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }
}
