//! The nodes as the table knows them, and the end of those that do not come back.

use super::{Table, TableError};

const POSTGRES_LIST: &str = "SELECT n.node, n.service, CAST(n.lease_until AS text) AS lease_until, \
       n.lease_until >= clock_timestamp() AS lease_runs, n.forgotten, n.listen, n.seen_epoch, \
       CAST(n.stopped_at AS text) AS stopped_at, n.spooled, \
       CAST(n.spool_oldest AS text) AS spool_oldest, \
       (SELECT epoch FROM clock) AS newest_epoch, \
       CAST(coalesce(sum(b.sessions), 0) AS bigint) AS sessions, \
       CAST(coalesce(sum(b.deliveries), 0) AS bigint) AS deliveries, \
       CAST(coalesce(sum(b.in_doubt), 0) AS bigint) AS in_doubt \
     FROM nodes n LEFT JOIN busy b ON (b.node, b.service) = (n.node, n.service) \
     WHERE (CAST($1 AS text) IS NULL OR n.node = $1) AND (CAST($2 AS text) IS NULL OR n.service = $2) \
     GROUP BY n.node, n.service ORDER BY n.node, n.service";
const SQLITE_LIST: &str = "SELECT n.node, n.service, n.lease_until, \
       n.lease_until >= strftime('%Y-%m-%d %H:%M:%f', 'now') AS lease_runs, n.forgotten, n.listen, \
       n.seen_epoch, n.stopped_at, n.spooled, n.spool_oldest, (SELECT epoch FROM main.clock) AS newest_epoch, \
       coalesce(sum(b.sessions), 0) AS sessions, coalesce(sum(b.deliveries), 0) AS deliveries, \
       coalesce(sum(b.in_doubt), 0) AS in_doubt \
     FROM nodes.nodes n LEFT JOIN nodes.busy b ON b.node = n.node AND b.service = n.service \
     WHERE ($1 IS NULL OR n.node = $1) AND ($2 IS NULL OR n.service = $2) \
     GROUP BY n.node, n.service ORDER BY n.node, n.service";
/// So that no lease is prolonged between the look at it and the end of its node.
const POSTGRES_LOCK: &str = "SELECT FROM nodes WHERE node = $1 FOR UPDATE";
const POSTGRES_FORGET: &str = "UPDATE nodes SET forgotten = true \
     WHERE node = $1 AND (CAST($2 AS text) IS NULL OR service = $2)";
const SQLITE_FORGET: &str = "UPDATE nodes.nodes SET forgotten = 1 \
     WHERE node = $1 AND ($2 IS NULL OR service = $2)";

/// One service of one node.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct NodeLine {
    /// The node.
    pub node: String,
    /// `mx-gateway` or `login-proxy`.
    pub service: String,
    /// When its lease ends, or has ended, UTC. Past it the node serves nothing.
    pub lease_until: String,
    /// It has not ended.
    pub lease_runs: bool,
    /// An operator said that it will not come back.
    pub forgotten: bool,
    /// Notifications reach it.
    pub listen: bool,
    /// It has read all changes up to this one.
    pub seen_epoch: i64,
    /// The newest change there is.
    pub newest_epoch: i64,
    /// Sessions still open under an older change.
    pub sessions: i64,
    /// Deliveries without verdict.
    pub deliveries: i64,
    /// Deliveries whose verdict will never count.
    pub in_doubt: i64,
    /// It has stopped, and left mail behind. UTC.
    pub stopped_at: Option<String>,
    /// Messages on its disk, as it said last.
    pub spooled: i64,
    /// When the oldest of them came, UTC.
    pub spool_oldest: Option<String>,
}

impl NodeLine {
    /// There is mail on its disk, and nobody who delivers it.
    pub fn leaves_mail(&self) -> bool {
        self.spooled > 0 && (self.forgotten || !self.lease_runs)
    }
}

/// Why a node is not forgotten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// No row.
    #[error("there is no node {0}: `mailshift node list` shows them")]
    Unknown(String),
    /// No fence would wait for it, while it may still serve.
    #[error(
        "{name} is not forgotten: its lease runs until {until} UTC, and it may serve until then\n  Stop it, \
         which takes it out of the table, or wait for the end of its lease."
    )]
    Alive {
        /// Node and service.
        name: String,
        /// When it will serve nothing any more.
        until: String,
    },
    /// What is on its disk would be forgotten with it.
    #[error(
        "{name} is not forgotten: it said last that {spooled} messages are on its disk, and nobody else delivers \
         them\n  Start it again, or bring its state directory to another node, and there: mailshift queue adopt \
         DIRECTORY\n  If that mail is lost or was adopted already: mailshift node forget --anyway"
    )]
    LeavesMail {
        /// Node and service.
        name: String,
        /// Messages.
        spooled: i64,
    },
}

impl Table {
    /// The nodes, by name.
    ///
    /// # Errors
    ///
    /// The database's failure.
    pub async fn nodes(&self) -> Result<Vec<NodeLine>, TableError> {
        let nobody = None::<&str>;
        Ok(match self {
            Self::Postgres(pool) => {
                let list = sqlx::query_as(POSTGRES_LIST).bind(nobody).bind(nobody);
                list.fetch_all(pool).await?
            }
            Self::Sqlite { pool, .. } => {
                let list = sqlx::query_as(SQLITE_LIST).bind(nobody).bind(nobody);
                list.fetch_all(pool).await?
            }
        })
    }

    /// Gives up a node that does not come back: all of its services, or the one that is named. Its next start
    /// clears this. Returns what was forgotten. One with mail on its disk is only forgotten `anyway`.
    ///
    /// # Errors
    ///
    /// No such node, one whose lease runs, or one that leaves mail behind.
    pub async fn forget(
        &self,
        node: &str,
        service: Option<&str>,
        anyway: bool,
    ) -> Result<Vec<NodeLine>, TableError> {
        match self {
            Self::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                sqlx::query(POSTGRES_LOCK).bind(node).execute(&mut *transaction).await?;
                let list = sqlx::query_as(POSTGRES_LIST).bind(node).bind(service);
                let found = list.fetch_all(&mut *transaction).await?;
                require_lapsed(node, &found)?;
                require_no_mail(&found, anyway)?;
                let forget = sqlx::query(POSTGRES_FORGET).bind(node).bind(service);
                forget.execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(found)
            }
            Self::Sqlite { pool, .. } => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                let list = sqlx::query_as(SQLITE_LIST).bind(node).bind(service);
                let found = list.fetch_all(&mut *transaction).await?;
                require_lapsed(node, &found)?;
                require_no_mail(&found, anyway)?;
                let forget = sqlx::query(SQLITE_FORGET).bind(node).bind(service);
                forget.execute(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(found)
            }
        }
    }
}

/// A node that is cut off learns of nothing, so only the end of its lease makes it safe to forget.
fn require_lapsed(node: &str, found: &[NodeLine]) -> Result<(), NodeError> {
    if found.is_empty() {
        return Err(NodeError::Unknown(node.to_owned()));
    }
    match found.iter().find(|line| line.lease_runs && !line.forgotten) {
        Some(alive) => Err(NodeError::Alive {
            name: format!("{}/{}", alive.node, alive.service),
            until: alive.lease_until.get(..19).unwrap_or(&alive.lease_until).to_owned(),
        }),
        None => Ok(()),
    }
}

/// Whoever gives a node up should not learn afterwards that mail was on its disk.
fn require_no_mail(found: &[NodeLine], anyway: bool) -> Result<(), NodeError> {
    match found.iter().find(|line| line.spooled > 0 && !anyway) {
        Some(line) => Err(NodeError::LeavesMail {
            name: format!("{}/{}", line.node, line.service),
            spooled: line.spooled,
        }),
        None => Ok(()),
    }
}
