//! Cut-through messages: every second recipient lives at new. Senders and sinks run in this process, the
//! gateway in its own, so its numbers are its own. Beside it Postfix, which asks the same table in Postgres.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tests::postgres::Server;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::gateway::Gateway;
use crate::smtp::{Sender, Sink, message};
use crate::{measure, peers, table};

const RUNS: usize = 5;
const AT_ONCE: usize = 16;
const USERS: usize = 100;
/// Longest wait for the last message of a run.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let database = Server::shared().create_database()?;
    table::fill(&database.url, USERS).await?;
    table::move_half(&database.url).await?;
    let (old, new) = (Sink::start().await?, Sink::start().await?);
    let owners = [old.port, new.port];
    let gateway = Gateway { owners, table: &database.url, dns: None };
    let service = gateway.start(directory.path()).await?;
    let postfix = peers::postfix(USERS, &database, owners, "").await;
    for octets in [4 * 1024, 64 * 1024] {
        println!("\n# messages of {} KiB, {AT_ONCE} senders, two owners", octets / 1024);
        let gateway =
            Peer { name: "mx-gateway", port: service.port, pid: service.pid(), messages: 8_000 };
        measure_peer(&gateway, octets, [&old, &new]).await?;
        match &postfix {
            Ok(postfix) => {
                let pid = u32::try_from(postfix.pid().unwrap_or_default())?;
                let port = postfix.smtp().port();
                let peer = Peer { name: "Postfix, pgsql maps", port, pid, messages: 1_000 };
                measure_peer(&peer, octets, [&old, &new]).await?;
            }
            Err(error) => println!("Postfix: not measured: {error:#}"),
        }
    }
    Ok(())
}

/// Who is measured, and with how many messages.
struct Peer {
    name: &'static str,
    port: u16,
    pid: u32,
    messages: usize,
}

/// From the first message to the last one's arrival at its owner.
async fn measure_peer(peer: &Peer, octets: usize, sinks: [&Sink; 2]) -> anyhow::Result<()> {
    let arrived = || sinks.iter().map(|sink| sink.messages()).sum::<usize>();
    let (mut cpu, mut of_postgres, mut rate) = (Vec::new(), Vec::new(), Vec::new());
    let postgres = Server::shared().pid()?;
    for _ in 0..RUNS {
        let before = [peer.pid, postgres].map(measure::cpu_of_tree);
        let (began, first) = (Instant::now(), arrived());
        let at_new = sinks[1].messages();
        let content = message(octets);
        let sent = send_many(peer.port, AT_ONCE, peer.messages, &content).await?;
        while arrived() - first < sent {
            ensure!(began.elapsed() < PATIENCE, "{} keeps messages", peer.name);
            sleep(Duration::from_millis(1)).await;
        }
        ensure!(2 * (sinks[1].messages() - at_new) == sent, "{} does not split evenly", peer.name);
        rate.push(sent as f64 / began.elapsed().as_secs_f64());
        let after = [peer.pid, postgres].map(measure::cpu_of_tree);
        for (values, (before, after)) in
            [&mut cpu, &mut of_postgres].into_iter().zip(before.into_iter().zip(after))
        {
            let used = after?.saturating_sub(before?);
            values.push(used.as_secs_f64() * 1e6 / sent as f64);
        }
    }
    println!(
        "{}: {:.0} µs CPU per message (and {:.0} in Postgres), {:.0} messages/s (medians of {RUNS} \
         runs of {})",
        peer.name,
        measure::median(cpu),
        measure::median(of_postgres),
        measure::median(rate),
        peer.messages
    );
    Ok(())
}

/// Sends about so many by `at_once` senders, and returns how many it were.
pub async fn send_many(
    port: u16,
    at_once: usize,
    messages: usize,
    content: &[u8],
) -> anyhow::Result<usize> {
    let mut senders = JoinSet::new();
    for sender in 0..at_once {
        let content = content.to_vec();
        senders.spawn(async move {
            let mut connection = Sender::connect(port).await?;
            for number in 0..messages / at_once {
                let to = format!("user{}@example.org", (sender + number) % USERS);
                connection.send(&to, &content).await?;
            }
            connection.quit().await
        });
    }
    while let Some(done) = senders.join_next().await {
        done??;
    }
    Ok(messages / at_once * at_once)
}
