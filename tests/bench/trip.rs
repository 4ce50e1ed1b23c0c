//! What a joined session adds to a round trip: a line of 20 octets and its echo, through a proxy and
//! straight to a backend, by turns.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::Backend;
use crate::client::Client;
use crate::measure::percentile;
use crate::peers::Who;
use crate::stage::{Stage, by_turns};

const RUNS: usize = 5;
/// Turns of a run, and round trips of a turn.
const TURNS: usize = 10;
const TRIPS: usize = 300;

pub async fn run() -> anyhow::Result<()> {
    for stage in Stage::all().await? {
        println!(
            "\n# added round trip, {} (medians of {RUNS} runs of {})",
            stage.name(),
            TURNS * TRIPS
        );
        // A client speaks TLS, so what it is compared with is a backend that does, too.
        let direct = Backend::start(stage.protocol, "direct", Some(Arc::clone(&stage.tls)))?;
        let peers = stage.start(&Who::ALL).await?;
        let results = by_turns(RUNS, peers, async |peer| {
            let mut straight = stage.log_in(direct.port, 0).await?;
            let mut through = stage.log_in(peer.port, 0).await?;
            let (mut without, mut with) = (Vec::new(), Vec::new());
            for _ in 0..TURNS {
                trips(&mut straight, &mut without).await?;
                trips(&mut through, &mut with).await?;
            }
            let [p50, p99] =
                [50.0, 99.0].map(|p| percentile(&mut with, p) - percentile(&mut without, p));
            Ok([p50, p99, percentile(&mut without, 50.0)])
        });
        results.await?.print(["µs added, p50", "µs added, p99", "µs direct, p50"]);
    }
    Ok(())
}

async fn trips(client: &mut Client, micros: &mut Vec<f64>) -> anyhow::Result<()> {
    for _ in 0..TRIPS {
        let began = Instant::now();
        client.echo().await?;
        micros.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}
