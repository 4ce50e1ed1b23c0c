//! Names without a row that the services were asked for.

use super::{Table, TableError};
use crate::ownership::unknown::Outcome;

const UNKNOWN: &str = "SELECT name, outcome, seen, services, CAST(first_at AS text) AS first_at, \
     CAST(last_at AS text) AS last_at FROM unknown_names_seen \
     WHERE (CAST($1 AS text) IS NULL OR outcome = $1) ORDER BY seen DESC, name LIMIT $2";

/// A name without a row, and what became of whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct UnknownName {
    /// The account that it would be.
    pub name: String,
    /// `default` or `refused`, at last.
    pub outcome: String,
    /// How often.
    pub seen: i64,
    /// By which services.
    pub services: String,
    /// When first, UTC.
    pub first_at: String,
    /// When last, UTC.
    pub last_at: String,
}

impl Table {
    /// Names without a row, most seen first.
    ///
    /// # Errors
    ///
    /// The database's failure.
    pub async fn unknown_names(
        &self,
        outcome: Option<Outcome>,
        limit: Option<u32>,
    ) -> Result<Vec<UnknownName>, TableError> {
        let outcome = outcome.map(Outcome::as_str);
        let limit = limit.map_or(i64::MAX, i64::from);
        Ok(match self {
            Self::Postgres(pool) => {
                sqlx::query_as(UNKNOWN).bind(outcome).bind(limit).fetch_all(pool).await?
            }
            Self::Sqlite { pool, .. } => {
                sqlx::query_as(UNKNOWN).bind(outcome).bind(limit).fetch_all(pool).await?
            }
        })
    }
}
