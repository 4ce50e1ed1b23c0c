//! CPU for a gibibyte through joined sessions, in each direction.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::measure;
use crate::peers::{Peer, Who};
use crate::stage::{Stage, by_turns};

const RUNS: usize = 3;
/// Over which the gibibyte goes, at the same time.
const SESSIONS: usize = 4;
const GIBIBYTE: usize = 1 << 30;

pub async fn run() -> anyhow::Result<()> {
    for stage in Stage::all().await? {
        println!(
            "\n# a GiB through {SESSIONS} joined sessions, {} (medians of {RUNS} runs)",
            stage.name()
        );
        let stage = Arc::new(stage);
        let results = by_turns(RUNS, stage.start(&Who::ALL).await?, async |peer| {
            Ok([milliseconds(&stage, peer, false).await?, milliseconds(&stage, peer, true).await?])
        });
        results.await?.print(["ms CPU, to the client", "ms CPU, to the backend"]);
    }
    Ok(())
}

/// CPU of the peer's for a gibibyte, in milliseconds.
async fn milliseconds(stage: &Arc<Stage>, peer: &Peer, upload: bool) -> anyhow::Result<f64> {
    let clients = stage.log_in_many(peer.port, SESSIONS, |client| client).await?;
    let before = measure::cpu_of_tree(peer.pid)?;
    let mut transfers = JoinSet::new();
    for mut client in clients {
        transfers.spawn(async move {
            let octets = GIBIBYTE / SESSIONS;
            if upload { client.upload(octets).await } else { client.download(octets).await }
        });
    }
    while let Some(done) = transfers.join_next().await {
        done??;
    }
    Ok(measure::cpu_of_tree(peer.pid)?.saturating_sub(before).as_secs_f64() * 1e3)
}
