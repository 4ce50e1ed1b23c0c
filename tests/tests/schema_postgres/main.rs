//! The ownership table in a real Postgres: what plain SQL does, what is refused, what the movers'
//! functions promise, and that commit order is number order (DESIGN §2, §2a).

mod concurrency;
mod guards;
mod holds;
mod plain_sql;
mod roles;
mod views;

use shared::ownership::schema;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor};
use tests::postgres::{Database, Server};

const ROLES: &str = include_str!("../../../config/schema/postgres/roles.sql");

/// A database of one's own with the schema, a domain that lives at `old`, and three accounts there.
async fn table() -> (Database, PgPool) {
    let database = Server::shared().create_database().unwrap();
    let pool = PgPoolOptions::new().max_connections(12).connect(&database.url).await.unwrap();
    schema::POSTGRES.run(&pool).await.unwrap();
    run(
        &pool,
        "INSERT INTO domains (domain, default_owner) VALUES ('example.org', 'old'), \
         ('strict.example', NULL); \
         INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'old'), \
         ('bob@example.org', 'old'), ('joe@strict.example', 'old')",
    )
    .await;
    (database, pool)
}

async fn run(pool: &PgPool, sql: &str) {
    pool.execute(AssertSqlSafe(sql.to_owned())).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// Runs what must fail; its SQLSTATE and its message.
async fn refused(pool: &PgPool, sql: &str) -> (String, String) {
    let error = pool.execute(AssertSqlSafe(sql.to_owned())).await.expect_err(sql);
    parts(&error)
}

fn parts(error: &sqlx::Error) -> (String, String) {
    let error = error.as_database_error().unwrap_or_else(|| panic!("{error}"));
    (error.code().unwrap_or_default().into_owned(), error.message().to_owned())
}

async fn number(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(pool)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
}

async fn text(pool: &PgPool, sql: &str) -> String {
    sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(format!("SELECT ({sql})::text")))
        .fetch_one(pool)
        .await
        .unwrap_or_else(|e| panic!("{sql}: {e}"))
        .unwrap_or_else(|| "NULL".to_owned())
}

/// The newest `count` changes as `kind name op old→new`, oldest first.
async fn newest_changes(pool: &PgPool, count: i64) -> Vec<String> {
    let mut rows: Vec<String> = sqlx::query_scalar(
        "SELECT format('%s %s %s %s→%s', kind, name, op, \
           coalesce(concat_ws('/', old_owner, old_state, old_account, old_default_owner, \
                              old_subaddress_delimiter, old_login::text), ''), \
           coalesce(concat_ws('/', new_owner, new_state, new_account, new_default_owner, \
                              new_subaddress_delimiter, new_login::text), '')) \
         FROM changes ORDER BY epoch DESC, kind DESC, name DESC LIMIT $1",
    )
    .bind(count)
    .fetch_all(pool)
    .await
    .unwrap();
    rows.reverse();
    rows
}

async fn epoch(pool: &PgPool) -> i64 {
    number(pool, "SELECT epoch FROM clock").await
}

/// A node that lives, knows `old` and `new`, and has seen everything up to `seen`.
async fn node(pool: &PgPool, name: &str, seen: i64) {
    sqlx::query(
        "INSERT INTO nodes (node, service, incarnation, version, lease_until, seen_epoch, backends) \
         VALUES ($1, 'mx-gateway', 'i', '1', clock_timestamp() + interval '1 hour', $2, \
                 '{\"old\": \"h1\", \"new\": \"h2\"}') \
         ON CONFLICT (node, service) DO UPDATE SET seen_epoch = excluded.seen_epoch",
    )
    .bind(name)
    .bind(seen)
    .execute(pool)
    .await
    .unwrap();
}

async fn hold(pool: &PgPool, account: &str) -> String {
    sqlx::query_scalar("SELECT hold($1, interval '1 minute')")
        .bind(account)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// `node status` for each node.
async fn fence(pool: &PgPool, account: &str, token: &str) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT node || ' ' || status FROM fence($1, $2)")
        .bind(account)
        .bind(token)
        .fetch_all(pool)
        .await
}

async fn flip(pool: &PgPool, account: &str, owner: &str, token: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT flip($1, $2, $3)")
        .bind(account)
        .bind(owner)
        .bind(token)
        .execute(pool)
        .await
        .map(|_| ())
}

/// Returns once `count` sessions wait for a lock.
async fn until_waiting(pool: &PgPool, count: i64) {
    while number(
        pool,
        "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .await
        < count
    {
        tokio::task::yield_now().await;
    }
}
