//! How long a login takes while thousands are joined, and while a thousand attackers hold half a handshake
//! each and come again as soon as they are sent away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shared::backend::LoginProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::measure::{self, percentile};
use crate::peers::Who;
use crate::stage::Stage;

const SESSIONS: usize = 9_000;
const ATTACKERS: usize = 1_000;
const LOGINS: usize = 300;
/// Between two logins: they are to meet the crowd, not each other.
const PAUSE: Duration = Duration::from_millis(10);
/// The front of a ClientHello: a record of 512 octets, of which nothing more comes.
const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

pub async fn run() -> anyhow::Result<()> {
    // Both ends of each session are here, and so are the attackers.
    let sessions = measure::affordable_sessions(SESSIONS + ATTACKERS / 2) - ATTACKERS / 2;
    for stage in Stage::all().await? {
        if stage.protocol != LoginProtocol::Imap {
            continue;
        }
        println!("\n# {LOGINS} logins among others, {}", stage.name());
        let stage = Arc::new(stage);
        let [peer] = &*stage.start(&[Who::Us]).await? else { continue };
        print("alone", logins(&stage, peer.port).await?);
        let joined = stage.log_in_many(peer.port, sessions, |client| client).await?;
        print(&format!("{} sessions joined", joined.len()), logins(&stage, peer.port).await?);
        let attack = Attack::start(peer.port, ATTACKERS).await;
        let all = logins(&stage, peer.port).await?;
        let attacks = attack.stop().await;
        print(&format!("and {ATTACKERS} half-open attackers ({attacks} connections)"), all);
        for mut client in joined.into_iter().step_by(100) {
            client.echo().await?;
        }
    }
    Ok(())
}

async fn logins(stage: &Stage, port: u16) -> anyhow::Result<Vec<f64>> {
    let mut millis = Vec::new();
    for number in 0..LOGINS {
        let began = Instant::now();
        drop(stage.log_in(port, number).await?);
        millis.push(began.elapsed().as_secs_f64() * 1e3);
        sleep(PAUSE).await;
    }
    Ok(millis)
}

fn print(what: &str, mut millis: Vec<f64>) {
    println!(
        "{what}: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        percentile(&mut millis, 50.0),
        percentile(&mut millis, 99.0),
        percentile(&mut millis, 100.0)
    );
}

/// Clients that begin a handshake and never go on with it.
struct Attack {
    go_on: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Attack {
    async fn start(port: u16, attackers: usize) -> Self {
        let (go_on, connections) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for _ in 0..attackers {
            let (go_on, connections) = (Arc::clone(&go_on), Arc::clone(&connections));
            tasks.spawn(async move {
                while go_on.load(Ordering::Relaxed) {
                    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)).await else {
                        sleep(PAUSE).await;
                        continue;
                    };
                    connections.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.write_all(HALF_A_HELLO).await;
                    // Until it is sent away, or for a while.
                    let _ = tokio::time::timeout(100 * PAUSE, socket.read(&mut [0; 64])).await;
                }
            });
        }
        while connections.load(Ordering::Relaxed) < attackers {
            sleep(PAUSE).await;
        }
        Self { go_on, connections, tasks }
    }

    /// How many connections they have made.
    async fn stop(mut self) -> usize {
        self.go_on.store(false, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        self.connections.load(Ordering::Relaxed)
    }
}
