//! The table's schema: numbered migrations in `config/schema`, built into every binary (OWN-1).

use std::cmp::Ordering;
use std::fs::File;
use std::path::Path;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{PgConnection, PgPool, SqlitePool};

use super::store::{StoreError, make_file};

/// Postgres: everything in one database.
pub static POSTGRES: Migrator = sqlx::migrate!("../config/schema/postgres");
/// SQLite: the table itself.
pub static SQLITE: Migrator = sqlx::migrate!("../config/schema/sqlite");
/// SQLite: the second file, for what the services write.
pub static SQLITE_NODES: Migrator = sqlx::migrate!("../config/schema/sqlite-nodes");

/// Why a schema is not the one this version knows. None of these is mended by waiting.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer version of Mailshift has changed the schema.
    #[error(
        "the schema is version {found}, newer than this program knows ({known}): use a newer program"
    )]
    Newer {
        /// Version in the database.
        found: i64,
        /// Newest version built in.
        known: i64,
    },
    /// The schema is older and must not be changed by the services.
    #[error(
        "the schema is version {found}, this program needs {known}: run `mailshift schema apply`, or set \
         ownership.apply_schema = true"
    )]
    Older {
        /// Version in the database; 0 when there is none.
        found: i64,
        /// Newest version built in.
        known: i64,
    },
    /// There is no table at all. Only `mailshift schema apply` makes one: a service that did would serve an
    /// empty one where a path is mistyped or a volume is not mounted, and refuse everybody for good.
    #[error(
        "there is no ownership table here: check the place, or make one with `mailshift schema apply`"
    )]
    Missing,
    /// A migration failed.
    #[error("cannot bring the schema up to date: {0}")]
    Migration(MigrateError),
}

/// What may be done to a schema that is not up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    /// Everything: an operator said so.
    All,
    /// An older one may be brought up to date.
    ToOlder,
    /// Nothing.
    Never,
}

impl Apply {
    /// What a service may do.
    pub(super) fn by_service(configured: bool) -> Self {
        if configured { Self::ToOlder } else { Self::Never }
    }
}

/// Brings a Postgres schema up to date where `apply` allows it, and refuses one that is not.
///
/// # Errors
///
/// A [`SchemaError`], or the database's failure.
pub async fn prepare_postgres(pool: &PgPool, apply: Apply) -> Result<(), StoreError> {
    let found = version_postgres(&mut *pool.acquire().await?).await?;
    migrate_postgres(pool, found, apply).await
}

/// The same where the version in the database is known.
pub(super) async fn migrate_postgres(
    pool: &PgPool,
    found: i64,
    apply: Apply,
) -> Result<(), StoreError> {
    if judge(found, &POSTGRES, apply)? {
        POSTGRES.run(pool).await.map_err(fault)?;
    }
    Ok(())
}

/// The same for the two files of SQLite.
///
/// # Errors
///
/// As [`prepare_postgres`].
pub async fn prepare_sqlite(
    table: &SqlitePool,
    nodes: &SqlitePool,
    file: &Path,
    apply: Apply,
) -> Result<(), StoreError> {
    // Both services may start at once, and SQLite has no lock of its own for this. Never on the database
    // itself: closing any descriptor of it would end the locks that SQLite holds there.
    let mut name = file.as_os_str().to_owned();
    name.push(".schema-lock");
    make_file(Path::new(&name)).map_err(sqlx::Error::Io)?;
    let lock = File::open(&name).map_err(sqlx::Error::Io)?;
    let locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
    let _locked = locked.map_err(std::io::Error::other).and_then(|l| l).map_err(sqlx::Error::Io)?;
    if judge(version_sqlite(table).await?, &SQLITE, apply)? {
        SQLITE.run(table).await.map_err(fault)?;
    }
    // The second file belongs to the services alone; there is nothing in it to ask about.
    if judge(version_sqlite(nodes).await?, &SQLITE_NODES, Apply::All)? {
        SQLITE_NODES.run(nodes).await.map_err(fault)?;
    }
    Ok(())
}

/// Newest migration in a Postgres database; 0 when there is none. Only reads, since a service's role
/// may not create anything.
///
/// # Errors
///
/// The database's failure.
pub async fn version_postgres(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(0);
    }
    sqlx::query_scalar(NEWEST).persistent(false).fetch_one(connection).await
}

/// Newest migration in an SQLite file; 0 when there is none.
///
/// # Errors
///
/// The file's failure.
pub async fn version_sqlite(pool: &SqlitePool) -> Result<i64, sqlx::Error> {
    let there: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name = '_sqlx_migrations'")
            .fetch_one(pool)
            .await?;
    if there == 0 {
        return Ok(0);
    }
    sqlx::query_scalar(NEWEST).fetch_one(pool).await
}

/// Newest version that `migrator` has built in.
pub fn known(migrator: &Migrator) -> i64 {
    migrator.iter().map(|migration| migration.version).max().unwrap_or(0)
}

const NEWEST: &str = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";

/// Whether migrations have to run.
fn judge(found: i64, migrator: &Migrator, apply: Apply) -> Result<bool, SchemaError> {
    let known = known(migrator);
    if found == 0 && apply != Apply::All {
        return Err(SchemaError::Missing);
    }
    match found.cmp(&known) {
        Ordering::Greater => Err(SchemaError::Newer { found, known }),
        Ordering::Equal => Ok(false),
        Ordering::Less if apply != Apply::Never => Ok(true),
        Ordering::Less => Err(SchemaError::Older { found, known }),
    }
}

fn fault(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) => StoreError::Database(error),
        other => StoreError::Schema(SchemaError::Migration(other)),
    }
}
