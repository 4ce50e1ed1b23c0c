//! Logins through a proxy, with full TLS 1.3 handshakes on every TLS leg, and once resumed: CPU and rate.

use std::sync::Arc;
use std::time::Instant;

use crate::measure;
use crate::peers::Who;
use crate::stage::{Stage, by_turns};

const RUNS: usize = 5;
const LOGINS: usize = 2_000;

pub async fn run() -> anyhow::Result<()> {
    let mut stages = Stage::all().await?;
    stages.push(Stage::resuming()?);
    for stage in stages {
        println!("\n# logins, {} (medians of {RUNS} runs of {LOGINS})", stage.name());
        let stage = Arc::new(stage);
        let peers = stage.start(&[Who::Us, Who::Nginx, Who::Dovecot]).await?;
        let results = by_turns(RUNS, peers, async |peer| {
            let before = measure::cpu_of_tree(peer.pid)?;
            let began = Instant::now();
            stage.log_in_many(peer.port, LOGINS, drop).await?;
            let rate = LOGINS as f64 / began.elapsed().as_secs_f64();
            let used = measure::cpu_of_tree(peer.pid)?.saturating_sub(before);
            Ok([used.as_secs_f64() * 1e6 / LOGINS as f64, rate])
        });
        results.await?.print(["µs CPU per login", "logins/s"]);
    }
    Ok(())
}
