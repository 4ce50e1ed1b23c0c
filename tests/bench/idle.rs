//! What an idle joined session keeps in memory. Every run is one of a new process: what an earlier one has
//! freed would serve the next.

use std::sync::Arc;
use std::time::Duration;

use shared::backend::LoginProtocol;
use tokio::time::sleep;

use crate::measure::{self, Results};
use crate::peers::{Peer, Who};
use crate::stage::{Stage, by_turns};

const SESSIONS: usize = 5_000;
/// What the first sessions allocate for ever is not theirs.
const FIRST: usize = 100;
/// Runs with IMAP, whose peers are measured, too.
const RUNS: usize = 3;
/// For what a login has needed to be given back.
const SETTLE: Duration = Duration::from_secs(1);

pub async fn run() -> anyhow::Result<()> {
    let sessions = measure::affordable_sessions(SESSIONS);
    for stage in Stage::all().await? {
        let runs = if stage.protocol == LoginProtocol::Imap { RUNS } else { 1 };
        println!(
            "\n# idle sessions, {} ({sessions} sessions, medians of {runs} runs)",
            stage.name()
        );
        let stage = Arc::new(stage);
        let mut results = Results::default();
        for who in Who::ALL {
            for _ in 0..runs {
                let peers = stage.start(&[who]).await?;
                if peers.is_empty() {
                    break;
                }
                let measured = by_turns(1, peers, async |peer| {
                    kibibytes(&stage, peer, sessions).await.map(|per_session| [per_session])
                });
                results.extend(measured.await?);
            }
        }
        results.print(["KiB RSS per session"]);
    }
    Ok(())
}

/// For each session.
async fn kibibytes(stage: &Arc<Stage>, peer: &Peer, sessions: usize) -> anyhow::Result<f64> {
    let keep = |client| client;
    let first = stage.log_in_many(peer.port, FIRST, keep).await?;
    sleep(SETTLE).await;
    let before = measure::resident_of_tree(peer.pid);
    let more = stage.log_in_many(peer.port, sessions - FIRST, keep).await?;
    sleep(SETTLE).await;
    let grown = measure::resident_of_tree(peer.pid).saturating_sub(before);
    let per_session = grown as f64 / more.len() as f64 / 1024.0;
    // All of them were still there.
    for mut client in [first, more].into_iter().flatten().step_by(100) {
        client.echo().await?;
    }
    Ok(per_session)
}
