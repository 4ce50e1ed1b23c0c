//! From the commit of `UPDATE accounts SET owner = 'new'` in Postgres to its effect on three login
//! proxies: the account's idle session ends, and a login is at new.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::backend::LoginProtocol::Imap;
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::backend::Backend;
use crate::client::Client;
use crate::measure::percentile;
use crate::proxy::LoginNode;
use crate::table;
use crate::tls::Tls;

const NODES: usize = 3;
const FLIPS: usize = 200;
/// Longer than a session must be silent to be quiet.
const SETTLE: Duration = Duration::from_millis(200);
/// Between a client's attempts, as if it were a little less eager than a loop.
const RETRY: Duration = Duration::from_millis(2);

pub async fn run() -> anyhow::Result<()> {
    println!("\n# flip: SQL commit to its effect on {NODES} nodes, {FLIPS} flips");
    let directory = tempfile::tempdir()?;
    let tls = Arc::new(Tls::new(directory.path(), false)?);
    let database = tests::postgres::Server::shared().create_database()?;
    table::fill(&database.url, FLIPS).await?;
    let old = Backend::start(Imap, "old", Some(Arc::clone(&tls)))?;
    let new = Backend::start(Imap, "new", Some(Arc::clone(&tls)))?;
    let backends = [("old", old.port), ("new", new.port)];
    let mut nodes = Vec::new();
    for node in 0..NODES {
        let state = directory.path().join(format!("node{node}"));
        let node = LoginNode { protocol: Imap, backends: &backends, backend_tls: true };
        nodes.push(node.start(&state, &database.url, &tls).await?);
    }
    let pool = PgPool::connect(&database.url).await?;
    let (mut ended, mut at_new) = (Vec::new(), Vec::new());
    for number in 0..FLIPS {
        let user = format!("user{number}@example.org");
        let mut idle = Vec::new();
        for node in &nodes {
            idle.push(Client::log_in(Imap, node.port, &tls, &user).await?);
        }
        // Quiet sessions end at once; one that has just logged in would wait for its first quiet moment.
        sleep(SETTLE).await;
        sqlx::query("UPDATE accounts SET owner = 'new' WHERE account = $1")
            .bind(&user)
            .execute(&pool)
            .await?;
        let committed = Instant::now();
        let mut waiting = JoinSet::new();
        for (node, mut session) in nodes.iter().zip(idle) {
            let (port, tls, user) = (node.port, Arc::clone(&tls), user.clone());
            waiting.spawn(async move {
                let login = async {
                    while !Client::log_in(Imap, port, &tls, &user).await?.welcome.contains("AT=new")
                    {
                        sleep(RETRY).await;
                    }
                    anyhow::Ok(committed.elapsed())
                };
                let kick = async {
                    session.closed().await;
                    committed.elapsed()
                };
                let (login, kick) = tokio::join!(login, kick);
                anyhow::Ok((login?, kick))
            });
        }
        while let Some(done) = waiting.join_next().await {
            let (login, kick) = done??;
            at_new.push(login.as_secs_f64() * 1e3);
            ended.push(kick.as_secs_f64() * 1e3);
        }
    }
    for (what, mut times) in [("idle session ended", ended), ("a login granted at new", at_new)] {
        println!(
            "{what}: p50 {:.1} ms, p99 {:.1} ms",
            percentile(&mut times, 50.0),
            percentile(&mut times, 99.0)
        );
    }
    Ok(())
}
