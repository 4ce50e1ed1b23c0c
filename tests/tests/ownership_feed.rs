//! The feed on real databases: what a plain SQL statement changes is what every node routes by.

use std::sync::Arc;
use std::time::Duration;

use shared::backend::{Backend, BackendName, Backends};
use shared::config::OwnershipConfig;
use shared::ownership::feed::Feed;
use shared::ownership::store::{Node, Store};
use shared::ownership::{Name, Ownership, Refusal, Work};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

fn config(url: &str) -> OwnershipConfig {
    OwnershipConfig {
        url: url.to_owned(),
        listen_url: None,
        max_staleness: Duration::from_secs(300),
        poll_interval: Duration::from_secs(1),
        apply_schema: true,
    }
}

fn backends() -> Backends {
    ["old", "new"]
        .map(|name| Backend { name: BackendName::parse(name).unwrap(), mail: None, imap: None })
        .into_iter()
        .collect()
}

async fn node(url: &str, name: &str) -> (Arc<Ownership>, CancellationToken) {
    let ownership = Ownership::new(backends());
    let node = Node {
        name: name.into(),
        service: "login-proxy",
        incarnation: name.into(),
        backends: r#"{"old":"1","new":"2"}"#.into(),
    };
    let config = config(url);
    let store = Store::open(&config, node).await.unwrap();
    let feed =
        Feed::start(store, Arc::clone(&ownership), config.max_staleness, config.poll_interval)
            .await;
    let stop = CancellationToken::new();
    tokio::spawn(feed.run(stop.clone()));
    (ownership, stop)
}

fn owner(ownership: &Ownership, name: &str) -> String {
    match ownership.look_up(&Name::of_login(name.as_bytes()).unwrap()) {
        Ok(owner) => owner.backend.name.to_string(),
        Err(refusal) => format!("{refusal:?}"),
    }
}

#[tokio::test]
async fn smoke() {
    let url = std::env::var("MYPG").unwrap();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    let (a, _stop) = node(&url, "a").await;
    let (b, _stop) = node(&url, "b").await;
    sqlx::raw_sql("INSERT INTO domains (domain, default_owner) VALUES ('example.org','old') ON CONFLICT DO NOTHING; INSERT INTO accounts (account, owner) VALUES ('ann@example.org','old') ON CONFLICT (account) DO UPDATE SET owner='old'").execute(&pool).await.unwrap();
    for _ in 0..10 {
        for to in ["new", "old"] {
            sqlx::query("UPDATE accounts SET owner=$1 WHERE account='ann@example.org'")
                .bind(to)
                .execute(&pool)
                .await
                .unwrap();
            let t = Instant::now();
            while owner(&a, "ann@example.org") != to || owner(&b, "ann@example.org") != to {
                sleep(Duration::from_millis(1)).await;
                if t.elapsed() > Duration::from_secs(3) {
                    panic!("{} {}", owner(&a, "ann@example.org"), owner(&b, "ann@example.org"))
                }
            }
            eprintln!("{:?}", t.elapsed());
        }
    }
    let (_o, r) = a.enter(&Name::of_login(b"ann@example.org").unwrap(), Work::Session).unwrap();
    sqlx::query("UPDATE accounts SET owner='new' WHERE account='ann@example.org'")
        .execute(&pool)
        .await
        .unwrap();
    r.outdated().await;
    sleep(Duration::from_millis(100)).await;
    let rows: Vec<(String, i64, i64)> =
        sqlx::query_as("select node, epoch, sessions from busy").fetch_all(&pool).await.unwrap();
    eprintln!("{rows:?}");
    drop(r);
    sleep(Duration::from_millis(100)).await;
    let rows: Vec<(String, i64, i64)> =
        sqlx::query_as("select node, epoch, sessions from busy").fetch_all(&pool).await.unwrap();
    eprintln!("{rows:?}");
    let rows: Vec<(String, i64, bool)> =
        sqlx::query_as("select node, seen_epoch, listen from nodes")
            .fetch_all(&pool)
            .await
            .unwrap();
    eprintln!("{rows:?}");
}
#[tokio::test]
async fn smoke_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/ownership.db", dir.path().display());
    let (a, _stop) = node(&url, "a").await;
    let (b, _stop) = node(&url, "b").await;
    let sh = |sql: &str| {
        let o = std::process::Command::new("sqlite3")
            .arg(dir.path().join("ownership.db"))
            .arg(sql)
            .output()
            .unwrap();
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    };
    sh(
        "INSERT INTO domains (domain, default_owner) VALUES ('example.org','old'); INSERT INTO accounts (account, owner) VALUES ('ann@example.org','old')",
    );
    for _ in 0..5 {
        for to in ["new", "old"] {
            sh(&format!("UPDATE accounts SET owner='{to}' WHERE account='ann@example.org'"));
            let t = Instant::now();
            while owner(&a, "ann@example.org") != to || owner(&b, "ann@example.org") != to {
                sleep(Duration::from_millis(1)).await;
                if t.elapsed() > Duration::from_secs(3) {
                    panic!("{} {}", owner(&a, "ann@example.org"), owner(&b, "ann@example.org"))
                }
            }
            eprintln!("{:?}", t.elapsed());
        }
    }
}
