//! How much more memory the gateway needs while large messages pass, authentication included. Every run is
//! one of a new process, which a small message has warmed.

use std::sync::Arc;

use anyhow::ensure;
use tests::dns_zone::DnsZone;
use tests::signer::{Kind, Signer};
use tokio::task::JoinSet;

use crate::gateway::Gateway;
use crate::measure::{self, median};
use crate::smtp::{Sender, Sink, message, signed};
use crate::table;

const RUNS: usize = 3;
const MEGABYTE: usize = 1_000_000;
const AUTHOR: &str = "ann@sender.example";
const MIB: f64 = 1024.0 * 1024.0;

pub async fn run() -> anyhow::Result<()> {
    let zone = DnsZone::start().await?;
    let signer = Signer::new(&zone, "sender.example", Kind::Rsa)?;
    println!("\n# large messages: peak RSS above what it was before (medians of {RUNS} runs)");
    for (what, at_once, content) in [
        ("one of 50 MB", 1, message(50 * MEGABYTE)),
        ("10 of 50 MB at once", 10, message(50 * MEGABYTE)),
        ("one of 20 MB whose signature is verified", 1, signed(&signer, AUTHOR, 20 * MEGABYTE)?),
    ] {
        let (content, mut grown) = (Arc::new(content), Vec::new());
        for _ in 0..RUNS {
            grown.push(one_run(&zone, at_once, &content).await?);
        }
        println!("{what}: {:.1} MiB", median(grown));
    }
    Ok(())
}

/// In MiB.
async fn one_run(zone: &DnsZone, at_once: usize, content: &Arc<Vec<u8>>) -> anyhow::Result<f64> {
    let directory = tempfile::tempdir()?;
    let table = table::sqlite(directory.path(), 1).await?;
    let owner = Sink::start().await?;
    let gateway = Gateway { owners: [owner.port; 2], table: &table, dns: Some(zone.address) };
    let service = gateway.start(directory.path()).await?;
    Sender::connect(service.port).await?.send("user0@example.org", &message(4096)).await?;
    let before = measure::resident(service.pid())? as f64;
    measure::forget_peak(service.pid())?;
    let mut senders = JoinSet::new();
    for _ in 0..at_once {
        let (port, content) = (service.port, Arc::clone(content));
        senders.spawn(async move {
            Sender::connect(port).await?.send("user0@example.org", &content).await
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    let peak = measure::peak(service.pid())? as f64;
    ensure!(owner.messages() == at_once + 1, "not all arrived");
    Ok((peak - before) / MIB)
}
