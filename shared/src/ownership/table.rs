//! The ownership table as an operator's command changes and shows it.
//!
//! Everything here can be done in plain SQL, too; these are the same statements with the checks that a
//! person forgets: names in canonical form, owners that every live node knows, an account's row made
//! first where it lives by its domain's default. The services read the table through
//! [`store`](super::store).

mod accounts;
mod ensure;
mod flip;
mod holds;
mod import;
mod nodes;
mod unknown;

use std::path::PathBuf;
use std::time::Duration;

use sqlx::Executor;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

pub use accounts::{AccountLine, AuditLine, Filter, Shown};
pub use ensure::{LivesElsewhere, Made};
pub(super) use flip::sign_sqlite;
pub use flip::{Flipped, Settling};
pub(super) use holds::expire_sqlite;
pub use holds::{Hold, NodeStatus};
pub use import::{ImportRow, Imported, Moves, Problem, read_csv};
pub use nodes::{NodeError, NodeLine};
pub use unknown::UnknownName;

use super::schema::{self, Apply, SchemaError};
use super::store::{self, StoreError};
use crate::address::Address;
use crate::backend::BackendName;

/// Longest wait for a connection, and for another writer's lock.
const PATIENCE: Duration = Duration::from_secs(10);
/// What stands in a local part only between quotes (RFC 5321 §4.1.2).
const SPECIALS: &str = "()<>[]:;@\\,\" ";
/// Views across both SQLite files, made anew on each connection.
const SQLITE_VIEWS: &str = include_str!("../../../config/schema/sqlite/views.sql");
/// Roles and rights in Postgres.
const POSTGRES_ROLES: &str = include_str!("../../../config/schema/postgres/roles.sql");

/// The ownership table, open for a command.
#[derive(Debug)]
pub enum Table {
    /// Any number of nodes.
    Postgres(PgPool),
    /// One host; the services' file is attached as `nodes`.
    Sqlite {
        /// The table.
        pool: SqlitePool,
        /// Its file.
        file: PathBuf,
    },
}

/// A schema in a database, and the one this program has built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaVersion {
    /// `ownership`, or `nodes` for SQLite's second file.
    pub name: &'static str,
    /// Newest migration in the database; 0 when there is none.
    pub found: i64,
    /// Newest migration built in.
    pub known: i64,
}

/// Why a command could not do its work. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is no SQLite file under that name.
    #[error("there is no file {}: `mailshift schema apply` makes it", .0.display())]
    NoFile(PathBuf),
    /// An SQLite file cannot be made.
    #[error("cannot make {}: {source}", file.display())]
    File {
        /// The table's file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database is away, or something there went wrong.
    #[error("{0}")]
    Database(sqlx::Error),
    /// The table refused: its own words.
    #[error("{message}{}", hint.as_ref().map(|hint| format!("\n  {hint}")).unwrap_or_default())]
    Refused {
        /// What it said.
        message: String,
        /// What it advises.
        hint: Option<String>,
    },
    /// The schema is not the one this program knows.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Roles are an affair of Postgres.
    #[error("SQLite has no roles; the rights are those of the file")]
    NoRoles,
    /// Not a name that an account could have.
    #[error("{name:?} is no account name: {why}")]
    BadName {
        /// As it was typed.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Neither row nor default owner.
    #[error("there is no account {0}")]
    NoSuchAccount(String),
    /// The owner of an alias is its account's.
    #[error("{alias} is an alias of {account}: name the account itself")]
    IsAlias {
        /// What was named.
        alias: String,
        /// Where it leads.
        account: String,
    },
    /// A row at its domain's default owner would move it.
    #[error(transparent)]
    LivesElsewhere(#[from] LivesElsewhere),
    /// Held accounts keep their owner.
    #[error(
        "held, so the owner cannot change: {} (to end a hold or a dispute deliberately: UPDATE accounts \
         SET owner = …, state = 'active' WHERE account = …)",
        .0.join(", ")
    )]
    Held(Vec<String>),
    /// A second mover comes too late.
    #[error(
        "account {account} is held already, {}",
        until.as_ref().map_or_else(|| "without end".to_owned(), |until| format!("until {until}"))
    )]
    HeldAlready {
        /// The account.
        account: String,
        /// When its lease ends, UTC.
        until: Option<String>,
    },
    /// The hold was ended, by its lease, by another or deliberately.
    #[error("account {account} is not held (any more); its owner is {owner}")]
    NotHeld {
        /// The account.
        account: String,
        /// Who serves it.
        owner: String,
    },
    /// It is another's hold.
    #[error("account {0} is held, but not under this token")]
    OtherHolder(String),
    /// Some node may still serve the account.
    #[error(
        "account {0} is not fenced\n  Call `mailshift fence` until no node is waiting or busy."
    )]
    NotFenced(String),
    /// A node that is not there, or still lives.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A lease that nobody would wait for.
    #[error("a lease is longer than 0 and at most 1 hour")]
    BadLease,
    /// A live node could not serve the owner.
    #[error("backend {owner} is not configured on {nodes}")]
    OwnerUnknown {
        /// The backend.
        owner: BackendName,
        /// Which nodes lack it.
        nodes: String,
    },
    /// Live nodes would connect to different servers.
    #[error("backend {owner} has different addresses on {nodes}")]
    OwnerDiffers {
        /// The backend.
        owner: BackendName,
        /// The nodes.
        nodes: String,
    },
    /// An import that contradicts the table.
    #[error(
        "{} rows are in the table with other values (an import does not flip):\n  {}",
        .0.len(), .0.iter().take(20).cloned().collect::<Vec<_>>().join("\n  ")
    )]
    Conflicts(Vec<String>),
    /// An import that would flip accounts that have no row.
    #[error(
        "{} accounts have no row and live at their domain's default owner; this would move them (--flip, if \
         that is meant):\n  {}",
        .0.len(), .0.iter().take(20).cloned().collect::<Vec<_>>().join("\n  ")
    )]
    WouldMove(Vec<String>),
}

impl Table {
    /// Connects to the table at `url`: `postgres://…` or `sqlite:/path`.
    ///
    /// # Errors
    ///
    /// No database there, or a schema that this program does not know.
    pub async fn open(url: &str) -> Result<Self, TableError> {
        let table = Self::connect(url, false).await?;
        for version in table.schema().await? {
            version.check()?;
        }
        Ok(table)
    }

    /// Connects without looking at the schema, which may not be there yet; makes an SQLite file.
    ///
    /// # Errors
    ///
    /// No database there.
    pub async fn create(url: &str) -> Result<Self, TableError> {
        Self::connect(url, true).await
    }

    /// Connects without looking at the schema, to a table that must be there.
    ///
    /// # Errors
    ///
    /// No database there.
    pub async fn open_unchecked(url: &str) -> Result<Self, TableError> {
        Self::connect(url, false).await
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    ///
    /// A newer schema, or a migration that failed; then nothing was changed.
    pub async fn apply_schema(&self) -> Result<(), TableError> {
        match self {
            Self::Postgres(pool) => schema::prepare_postgres(pool, Apply::All).await?,
            Self::Sqlite { pool, file } => {
                let nodes = nodes_pool(file, true);
                let prepared = schema::prepare_sqlite(pool, &nodes, file, Apply::All).await;
                nodes.close().await;
                prepared?;
            }
        }
        Ok(())
    }

    /// Makes the roles of Postgres and grants them their rights.
    ///
    /// # Errors
    ///
    /// SQLite, or a login that may not create roles.
    pub async fn apply_roles(&self) -> Result<(), TableError> {
        let Self::Postgres(pool) = self else { return Err(TableError::NoRoles) };
        let mut transaction = pool.begin().await?;
        transaction.execute(POSTGRES_ROLES).await?;
        Ok(transaction.commit().await?)
    }

    /// The versions in the database.
    ///
    /// # Errors
    ///
    /// The database's failure.
    pub async fn schema(&self) -> Result<Vec<SchemaVersion>, TableError> {
        let ownership = |found, migrator| SchemaVersion {
            name: "ownership",
            found,
            known: schema::known(migrator),
        };
        Ok(match self {
            Self::Postgres(pool) => {
                let found = schema::version_postgres(&mut *pool.acquire().await?).await?;
                vec![ownership(found, &schema::POSTGRES)]
            }
            Self::Sqlite { pool, file } => {
                let nodes = nodes_pool(file, true);
                let found = schema::version_sqlite(&nodes).await;
                nodes.close().await;
                vec![
                    ownership(schema::version_sqlite(pool).await?, &schema::SQLITE),
                    SchemaVersion {
                        name: "nodes",
                        found: found?,
                        known: schema::known(&schema::SQLITE_NODES),
                    },
                ]
            }
        })
    }

    async fn connect(url: &str, create: bool) -> Result<Self, TableError> {
        if let Some(file) = sqlite_file(url) {
            if !create && !file.exists() {
                return Err(TableError::NoFile(file));
            }
            if create {
                store::make_file(&file)
                    .and_then(|()| store::make_file(&store::nodes_file(&file)))
                    .map_err(|source| TableError::File { file: file.clone(), source })?;
            }
            let attach = format!("ATTACH '{}' AS nodes", quoted(&store::nodes_file(&file)));
            let pool = SqlitePoolOptions::new()
                .max_connections(1)
                .acquire_timeout(PATIENCE)
                .after_connect(move |connection, _| {
                    let attach = sqlx::AssertSqlSafe(attach.clone());
                    Box::pin(async move {
                        connection.execute(attach).await?;
                        connection.execute(SQLITE_VIEWS).await?;
                        Ok(())
                    })
                })
                .connect_lazy_with(sqlite_options(&file, true));
            return Ok(Self::Sqlite { pool, file });
        }
        let pool =
            PgPoolOptions::new().max_connections(2).acquire_timeout(PATIENCE).connect(url).await?;
        Ok(Self::Postgres(pool))
    }
}

impl SchemaVersion {
    /// Whether this program can work with it.
    ///
    /// # Errors
    ///
    /// Newer, or older.
    pub fn check(&self) -> Result<(), SchemaError> {
        let Self { found, known, .. } = *self;
        match found.cmp(&known) {
            std::cmp::Ordering::Greater => Err(SchemaError::Newer { found, known }),
            std::cmp::Ordering::Less => Err(SchemaError::Older { found, known }),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }
}

/// The file in a `sqlite:` URL; `None` for another one.
pub fn sqlite_file(url: &str) -> Option<PathBuf> {
    url.starts_with("sqlite:").then(|| store::file_of(url))
}

/// The SQL that a shell on `file` begins with: the second file beside it, and the views across both.
pub fn sqlite_preamble(file: &std::path::Path) -> String {
    format!("ATTACH '{}' AS nodes;\n{SQLITE_VIEWS}", quoted(&store::nodes_file(file)))
}

/// A name as rows have it: an address, a bare login name, or an address in a form that only logins have
/// (beyond ASCII, say).
///
/// # Errors
///
/// [`TableError::BadName`].
pub fn canonical(name: &str) -> Result<String, TableError> {
    let name = name.trim();
    if let Ok(address) = Address::parse(name) {
        return Ok(address.canonical());
    }
    let refused = |why| TableError::BadName { name: name.to_owned(), why };
    let login =
        super::Name::of_login(name.as_bytes()).map_err(|error| refused(error.to_string()))?;
    // Such a row would be an account to which no mail could come, made by a slip.
    let local = name.rsplit_once('@').map_or("", |(local, _)| local);
    match local.chars().find(|letter| SPECIALS.contains(*letter)) {
        Some(special) => Err(refused(format!(
            "{special:?} stands before its @ unquoted (RFC 5321), which no address has; accounts are \
             separated by spaces"
        ))),
        None => Ok(login.as_str().to_owned()),
    }
}

fn quoted(file: &std::path::Path) -> String {
    file.display().to_string().replace('\'', "''")
}

fn nodes_pool(file: &std::path::Path, create: bool) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(sqlite_options(&store::nodes_file(file), create))
}

fn sqlite_options(file: &std::path::Path, create: bool) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(create)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(PATIENCE)
        .foreign_keys(false)
}

impl From<sqlx::Error> for TableError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(refusal) = &error else { return Self::Database(error) };
        let hint = refusal
            .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
            .and_then(|refusal| refusal.hint().or(refusal.detail()))
            .map(str::to_owned);
        Self::Refused { message: refusal.message().to_owned(), hint }
    }
}

impl From<StoreError> for TableError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(error) => error.into(),
            StoreError::Schema(error) => error.into(),
            other @ (StoreError::Timeout
            | StoreError::ReadOnly
            | StoreError::LeaseLost
            | StoreError::Overtaken
            | StoreError::Gone
            | StoreError::Forgotten
            | StoreError::NameTaken
            | StoreError::FileReplaced
            | StoreError::Unreadable { .. }
            | StoreError::HistoryLost) => Self::Refused { message: other.to_string(), hint: None },
        }
    }
}
