//! What a node says of itself, in Postgres.

use super::super::rows::{oldest, signed};
use super::super::{Cursor, Grant, Report, StoreError};
use super::{PostgresStore, read_only};

/// Takes back what this node has said: it has seen nothing, so nothing is settled by it.
const UNSAY: &str = "WITH mine AS (UPDATE nodes SET seen_epoch = 0, updated_at = clock_timestamp() \
       WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten \
       AND (extract(epoch FROM lease_until) * 1000000)::bigint = $4 RETURNING 1) \
     DELETE FROM busy WHERE node = $1 AND service = $2 AND EXISTS (SELECT 1 FROM mine)";
/// Whether the cursor's change is there, and whether the report was written. No joins with the arrays: of
/// a table that was empty a minute ago the planner expects no rows, and would loop over all pairs.
const REPORT: &str = "WITH here AS (SELECT (SELECT id FROM database) = $8 AND ($7::text IS NULL OR EXISTS \
       (SELECT 1 FROM changes WHERE epoch = $4 AND kind = $5 AND name = $6 \
        AND nonce::text = $7)) AS intact), \
     seen AS (UPDATE nodes SET seen_epoch = $4, updated_at = clock_timestamp(), \
       spooled = $15, spool_oldest = to_timestamp($16) \
       WHERE node = $1 AND service = $2 AND incarnation = $3 AND NOT forgotten \
       AND (extract(epoch FROM lease_until) * 1000000)::bigint = $9 \
       AND (SELECT intact FROM here) RETURNING 1), \
     drained AS (DELETE FROM busy WHERE node = $1 AND service = $2 AND account = ANY ($10) \
       AND EXISTS (SELECT 1 FROM seen)), \
     changed AS (INSERT INTO busy AS b (node, service, account, epoch, sessions, deliveries) \
       SELECT $1, $2, c.* FROM unnest($11::text[], $12::bigint[], $13::bigint[], $14::bigint[]) c \
        WHERE EXISTS (SELECT 1 FROM seen) \
       ON CONFLICT (node, service, account) DO UPDATE SET epoch = excluded.epoch, \
       sessions = excluded.sessions, deliveries = excluded.deliveries \
       WHERE (b.epoch, b.sessions, b.deliveries) \
         IS DISTINCT FROM (excluded.epoch, excluded.sessions, excluded.deliveries)) \
     SELECT here.intact, EXISTS (SELECT 1 FROM seen) FROM here";

impl PostgresStore {
    /// One statement, however much there is (and one before it that takes back what was said, where that is
    /// not known). Not a transaction of several: a connection that hangs in the
    /// middle of one would keep the node's own row locked until the server gives it up.
    ///
    /// It may be carried out after it was given up. But a poll that fails is followed by a new lease, which
    /// waits for the same row: so this comes before that, or finds a lease that is not `grant` and does
    /// nothing.
    pub(in super::super) async fn report(
        &self,
        cursor: &Cursor,
        grant: &Grant,
        report: &Report<'_>,
    ) -> Result<(), StoreError> {
        if report.afresh {
            let mut session = self.connections.session().await?;
            sqlx::query(UNSAY)
                .bind(&*self.node.name)
                .bind(self.node.service)
                .bind(&*self.node.incarnation)
                .bind(grant.0)
                .persistent(self.connections.keep_statements())
                .execute(session.connection())
                .await
                .map_err(read_only)?;
            session.end().await?;
        }
        let changed = &report.changed;
        let accounts: Vec<&str> = changed.iter().map(|b| &*b.account).collect();
        let epochs: Vec<i64> = changed.iter().map(|b| signed(b.epoch)).collect();
        let sessions: Vec<i64> = changed.iter().map(|b| b.sessions.into()).collect();
        let deliveries: Vec<i64> = changed.iter().map(|b| b.deliveries.into()).collect();
        let mut session = self.connections.session().await?;
        let (intact, seen): (bool, bool) = sqlx::query_as(REPORT)
            .bind(&*self.node.name)
            .bind(self.node.service)
            .bind(&*self.node.incarnation)
            .bind(signed(cursor.epoch))
            .bind(&cursor.kind)
            .bind(&cursor.name)
            .bind(&cursor.nonce)
            .bind(&cursor.database)
            .bind(grant.0)
            .bind(&report.drained)
            .bind(accounts)
            .bind(epochs)
            .bind(sessions)
            .bind(deliveries)
            .bind(signed(report.spooled.messages))
            .bind(oldest(report.spooled))
            // Planned each time: the plan for one account is none for a hundred thousand.
            .persistent(false)
            .fetch_one(session.connection())
            .await
            .map_err(read_only)?;
        session.end().await?;
        if seen {
            return Ok(());
        }
        let other = if intact { StoreError::Overtaken } else { StoreError::HistoryLost };
        Err(self.evicted().await?.unwrap_or(other))
    }
}
