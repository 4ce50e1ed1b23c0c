//! Ownership tables to measure with.

use std::path::Path;

use shared::config::OwnershipConfig;
use shared::ownership::store::Node;
use shared::ownership::table::Table;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

/// The configuration of a table under `url`.
pub fn config(url: &str) -> OwnershipConfig {
    OwnershipConfig {
        url: url.to_owned(),
        listen_url: None,
        max_staleness: std::time::Duration::from_secs(300),
        poll_interval: std::time::Duration::from_secs(1),
        apply_schema: true,
    }
}

/// A node of that name.
pub fn node(name: &str) -> Node {
    Node {
        name: name.into(),
        service: "login-proxy",
        incarnation: name.into(),
        backends: r#"{"old":"1","new":"2"}"#.into(),
    }
}

/// An SQLite table in `directory` with `accounts` accounts at old. Returns its URL.
pub async fn sqlite(directory: &Path, accounts: usize) -> anyhow::Result<String> {
    std::fs::create_dir_all(directory)?;
    let file = directory.join("ownership.db");
    let url = format!("sqlite:{}", file.display());
    Table::create(&url).await?.apply_schema().await?;
    let pool = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&file)).await?;
    sqlx::query("INSERT INTO domains (domain) VALUES ('example.org')").execute(&pool).await?;
    sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < $1) \
         INSERT INTO accounts (account, owner) SELECT 'user' || i || '@example.org', 'old' FROM n",
    )
    .bind(i64::try_from(accounts)?)
    .execute(&pool)
    .await?;
    pool.close().await;
    Ok(url)
}

/// Fills a new Postgres database with the schema and `accounts` accounts at old.
pub async fn fill(url: &str, accounts: usize) -> anyhow::Result<()> {
    Table::create(url).await?.apply_schema().await?;
    let pool = sqlx::PgPool::connect(url).await?;
    sqlx::query("INSERT INTO domains (domain) VALUES ('example.org')").execute(&pool).await?;
    sqlx::query(
        "INSERT INTO accounts (account, owner) \
         SELECT 'user' || i || '@example.org', 'old' FROM generate_series(0, $1 - 1) i",
    )
    .bind(i64::try_from(accounts)?)
    .execute(&pool)
    .await?;
    pool.close().await;
    Ok(())
}

/// Moves every second account of a Postgres table to new.
pub async fn move_half(url: &str) -> anyhow::Result<()> {
    let pool = sqlx::PgPool::connect(url).await?;
    sqlx::query("UPDATE accounts SET owner = 'new' WHERE account ~ '^user[0-9]*[02468]@'")
        .execute(&pool)
        .await?;
    pool.close().await;
    Ok(())
}
