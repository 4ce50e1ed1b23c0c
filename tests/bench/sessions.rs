//! What SMTP sessions that say nothing more keep in the gateway's memory. Every run is one of a new process.

use std::time::Duration;

use tests::dns_zone::DnsZone;
use tokio::time::sleep;

use crate::gateway::Gateway;
use crate::measure::{self, median};
use crate::smtp::{Sender, Sink};
use crate::table;

const RUNS: usize = 3;
const SESSIONS: usize = 2_000;
const USERS: usize = 100;
/// What the first sessions allocate for ever is not theirs.
const FIRST: usize = 100;
/// For what a session's beginning has needed to be given back.
const SETTLE: Duration = Duration::from_secs(1);
const MIB: f64 = 1024.0 * 1024.0;

pub async fn run() -> anyhow::Result<()> {
    let sessions = measure::affordable_sessions(SESSIONS);
    println!("\n# {sessions} SMTP sessions at once (medians of {RUNS} runs)");
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(one_run(sessions).await?);
    }
    let names =
        ["after EHLO", "after MAIL and RCPT, each with its owner's connection", "after RSET"];
    for (index, name) in names.into_iter().enumerate() {
        let values = |which: usize| runs.iter().map(|run| run[index][which]).collect();
        println!(
            "{name}: {:.1} MiB RSS in all, {:.1} KiB per session",
            median(values(0)),
            median(values(1))
        );
    }
    Ok(())
}

/// At each stage: MiB in all, and KiB for each session but the first.
async fn one_run(sessions: usize) -> anyhow::Result<[[f64; 2]; 3]> {
    let directory = tempfile::tempdir()?;
    let table = table::sqlite(directory.path(), USERS).await?;
    let (owner, zone) = (Sink::start().await?, DnsZone::start().await?);
    let gateway = Gateway { owners: [owner.port; 2], table: &table, dns: Some(zone.address) };
    let service = gateway.start(directory.path()).await?;
    let mut senders = Vec::with_capacity(sessions);
    for _ in 0..FIRST {
        senders.push(Sender::connect(service.port).await?);
    }
    sleep(SETTLE).await;
    let before = measure::resident(service.pid())? as f64;
    let resident = async || {
        sleep(SETTLE).await;
        let resident = measure::resident(service.pid())? as f64;
        anyhow::Ok([resident / MIB, (resident - before) / (sessions - FIRST) as f64 / 1024.0])
    };
    for _ in FIRST..sessions {
        senders.push(Sender::connect(service.port).await?);
    }
    let greeted = resident().await?;
    for (number, sender) in senders.iter_mut().enumerate() {
        sender.address(&format!("user{}@example.org", number % USERS)).await?;
    }
    let addressed = resident().await?;
    // All of them were still there.
    for sender in &mut senders {
        sender.reset().await?;
    }
    Ok([greeted, addressed, resident().await?])
}
