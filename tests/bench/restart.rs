//! Logins at a steady rate while the login proxy is replaced again and again by a new process (KIK-6).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use shared::backend::LoginProtocol;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::backend::Backend;
use crate::client::Client;
use crate::measure::percentile;
use crate::proxy::LoginNode;
use crate::table;
use crate::tls::Tls;

const PER_SECOND: u32 = 200;
const HAND_OVERS: usize = 5;
/// From one to the next.
const APART: Duration = Duration::from_secs(4);

pub async fn run() -> anyhow::Result<()> {
    println!("\n# restart: {HAND_OVERS} new processes under {PER_SECOND} IMAP logins a second");
    let directory = tempfile::tempdir()?;
    let tls = Arc::new(Tls::new(directory.path(), false)?);
    let database = tests::postgres::Server::shared().create_database()?;
    table::fill(&database.url, 100).await?;
    let backend = Backend::start(LoginProtocol::Imap, "old", None)?;
    let state = directory.path().join("node");
    let node = LoginNode {
        protocol: LoginProtocol::Imap,
        backends: &[("old", backend.port)],
        backend_tls: false,
    };
    let service = node.start(&state, &database.url, &tls).await?;
    let replaced = replace(&state, service.pid());
    let logins = logins(service.port, Arc::clone(&tls), APART * (HAND_OVERS as u32 + 1));
    let (replaced, (mut millis, failures)) = tokio::join!(replaced, logins);
    let last = replaced?;
    println!(
        "{} logins, {} failed; p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        millis.len() + failures.len(),
        failures.len(),
        percentile(&mut millis, 50.0),
        percentile(&mut millis, 99.0),
        percentile(&mut millis, 100.0)
    );
    for failure in failures.iter().take(5) {
        println!("failed: {failure}");
    }
    kill_process(last, Signal::KILL)?;
    Ok(())
}

/// Asks the process that serves to start the next one, again and again; returns the last one's id.
async fn replace(state: &Path, first: u32) -> anyhow::Result<Pid> {
    let mut serving = Pid::from_raw(first.cast_signed()).context("a process id")?;
    for _ in 0..HAND_OVERS {
        sleep(APART).await;
        let before = processes(state);
        kill_process(serving, Signal::USR2)?;
        let deadline = Instant::now() + 2 * APART;
        serving = loop {
            if let Some(new) = processes(state).into_iter().find(|pid| !before.contains(pid)) {
                break new;
            }
            anyhow::ensure!(Instant::now() < deadline, "no new process took over");
            sleep(Duration::from_millis(50)).await;
        };
    }
    Ok(serving)
}

/// The processes that have a state directory, by their locks.
fn processes(state: &Path) -> Vec<Pid> {
    let directories = std::fs::read_dir(state).into_iter().flatten().flatten();
    let locks =
        directories.filter_map(|entry| std::fs::read_to_string(entry.path().join("lock")).ok());
    locks.filter_map(|pid| Pid::from_raw(pid.trim().parse().ok()?)).collect()
}

/// How long each login took, and why others failed.
async fn logins(port: u16, tls: Arc<Tls>, time: Duration) -> (Vec<f64>, Vec<String>) {
    let until = Instant::now() + time;
    let mut ticks = interval(Duration::from_secs(1) / PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    while Instant::now() < until {
        ticks.tick().await;
        let tls = Arc::clone(&tls);
        running.spawn(async move {
            let began = Instant::now();
            let login = Client::log_in(LoginProtocol::Imap, port, &tls, "user0@example.org").await;
            login.map(|_| began.elapsed().as_secs_f64() * 1e3).map_err(|e| format!("{e:#}"))
        });
    }
    let (mut millis, mut failures) = (Vec::new(), Vec::new());
    for login in running.join_all().await {
        match login {
            Ok(took) => millis.push(took),
            Err(failure) => failures.push(failure),
        }
    }
    (millis, failures)
}
