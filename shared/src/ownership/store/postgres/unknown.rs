//! Names without a row, in Postgres.

use super::super::{Sighting, StoreError, UNKNOWN_DAYS, UNKNOWN_ROWS};
use super::{PostgresStore, read_only};

const NOTE: &str = "INSERT INTO unknown_names AS u (node, service, name, outcome, seen) \
     SELECT $1, $2, n.* FROM unnest($3::text[], $4::text[], $5::bigint[]) n \
     ON CONFLICT (node, service, name) DO UPDATE SET outcome = excluded.outcome, \
     seen = u.seen + excluded.seen, last_at = clock_timestamp()";
const PRUNE: &str = "DELETE FROM unknown_names WHERE node = $1 AND service = $2 \
     AND (last_at < clock_timestamp() - make_interval(days => $4) OR name IN ( \
       SELECT name FROM unknown_names WHERE node = $1 AND service = $2 \
       ORDER BY outcome = 'default' DESC, seen DESC, last_at DESC, name OFFSET $3))";

impl PostgresStore {
    /// Adds to what this node has seen, then forgets what is least worth keeping.
    pub(in super::super) async fn report_unknown(
        &self,
        sightings: &[Sighting],
    ) -> Result<(), StoreError> {
        let names: Vec<&str> = sightings.iter().map(|s| &*s.name).collect();
        let outcomes: Vec<&str> = sightings.iter().map(|s| s.outcome.as_str()).collect();
        let seen: Vec<i64> = sightings.iter().map(|s| s.seen.into()).collect();
        let mut session = self.connections.session().await?;
        sqlx::query(NOTE)
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(names)
            .bind(outcomes)
            .bind(seen)
            .persistent(self.connections.keep_statements())
            .execute(session.connection())
            .await
            .map_err(read_only)?;
        sqlx::query(PRUNE)
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(UNKNOWN_ROWS)
            .bind(UNKNOWN_DAYS)
            .persistent(self.connections.keep_statements())
            .execute(session.connection())
            .await
            .map_err(read_only)?;
        Ok(session.end().await?)
    }
}
