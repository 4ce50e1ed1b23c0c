//! From the commit of `UPDATE accounts SET owner = 'new'` in Postgres to its effect on three login
//! proxies: the account's idle session ends, and a login is at new; and from a hold to its fence.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::backend::LoginProtocol::Imap;
use sqlx::PgPool;
use tempfile::TempDir;
use tests::postgres::Database;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::backend::Backend;
use crate::client::Client;
use crate::measure::percentile;
use crate::proxy::{LoginNode, Service};
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
    let cluster = Cluster::start(FLIPS).await?;
    let (mut ended, mut at_new) = (Vec::new(), Vec::new());
    for number in 0..FLIPS {
        let user = format!("user{number}@example.org");
        let idle = cluster.idle_sessions(&user).await?;
        sqlx::query("UPDATE accounts SET owner = 'new' WHERE account = $1")
            .bind(&user)
            .execute(&cluster.pool)
            .await?;
        let committed = Instant::now();
        let mut waiting = JoinSet::new();
        for (node, mut session) in cluster.nodes.iter().zip(idle) {
            let (port, tls, user) = (node.port, Arc::clone(&cluster.tls), user.clone());
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
            at_new.push(millis(login));
            ended.push(millis(kick));
        }
    }
    print("idle session ended", ended);
    print("a login granted at new", at_new);
    Ok(())
}

/// From `hold()` to the fence that finds nothing any more in its way, as a mover sees it in SQL.
pub async fn hold() -> anyhow::Result<()> {
    println!("\n# hold: hold() to settled on {NODES} nodes, {FLIPS} holds");
    let cluster = Cluster::start(2 * FLIPS).await?;
    for (what, users, with_sessions) in [
        ("nobody is logged in", 0..FLIPS, false),
        ("an idle session at each node", FLIPS..2 * FLIPS, true),
    ] {
        let mut settled = Vec::new();
        for number in users {
            let user = format!("user{number}@example.org");
            let idle = if with_sessions { cluster.idle_sessions(&user).await? } else { Vec::new() };
            settled.push(millis(cluster.hold(&user).await?));
            drop(idle);
        }
        print(what, settled);
    }
    Ok(())
}

/// Login proxies on one table.
struct Cluster {
    pool: PgPool,
    nodes: Vec<Service>,
    tls: Arc<Tls>,
    _backends: [Backend; 2],
    _database: Database,
    _directory: TempDir,
}

impl Cluster {
    async fn start(accounts: usize) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let tls = Arc::new(Tls::new(directory.path(), false)?);
        let database = tests::postgres::Server::shared().create_database()?;
        table::fill(&database.url, accounts).await?;
        let backend = |name| Backend::start(Imap, name, Some(Arc::clone(&tls)));
        let (old, new) = (backend("old")?, backend("new")?);
        let backends = [("old", old.port), ("new", new.port)];
        let mut nodes = Vec::new();
        for node in 0..NODES {
            let state = directory.path().join(format!("node{node}"));
            let node = LoginNode { protocol: Imap, backends: &backends, backend_tls: true };
            nodes.push(node.start(&state, &database.url, &tls).await?);
        }
        Ok(Self {
            pool: PgPool::connect(&database.url).await?,
            nodes,
            tls,
            _backends: [old, new],
            _database: database,
            _directory: directory,
        })
    }

    /// A session of `user` at each node, which counts as quiet: one that has just logged in would wait for
    /// its first quiet moment.
    async fn idle_sessions(&self, user: &str) -> anyhow::Result<Vec<Client>> {
        let mut idle = Vec::new();
        for node in &self.nodes {
            idle.push(Client::log_in(Imap, node.port, &self.tls, user).await?);
        }
        sleep(SETTLE).await;
        Ok(idle)
    }

    /// Holds `user`, and asks until the hold is settled.
    async fn hold(&self, user: &str) -> anyhow::Result<Duration> {
        let mut connection = self.pool.acquire().await?;
        let began = Instant::now();
        let token: String = sqlx::query_scalar("SELECT hold($1, '5 min')")
            .bind(user)
            .fetch_one(&mut *connection)
            .await?;
        loop {
            let blocking: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM fence($1, $2) WHERE status NOT IN ('seen', 'lapsed', 'forgotten')",
            )
            .bind(user)
            .bind(&token)
            .fetch_one(&mut *connection)
            .await?;
            if blocking == 0 {
                return Ok(began.elapsed());
            }
            sleep(RETRY).await;
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn print(what: &str, mut times: Vec<f64>) {
    println!(
        "{what}: p50 {:.1} ms, p99 {:.1} ms",
        percentile(&mut times, 50.0),
        percentile(&mut times, 99.0)
    );
}
