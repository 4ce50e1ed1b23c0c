//! Cut-through messages: every second recipient lives at new. Senders and sinks run in this process, the
//! gateway in its own, so its numbers are its own.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::proxy::Service;
use crate::smtp::{Sender, Sink, message};
use crate::{measure, peers, table};

const RUNS: usize = 5;
const AT_ONCE: usize = 16;
/// Longest wait for the last message of a run.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let table = table::sqlite(directory.path(), 100).await?;
    table::move_half(&table).await?;
    let (old, new) = (Sink::start().await?, Sink::start().await?);
    let port = tests::ports::reserve_one()?.port();
    let config = format!(
        "[node]\nname = \"bench\"\nstate_dir = {state:?}\n[ownership]\nurl = {table:?}\n\
         [backends.old.mail]\nhost = \"127.0.0.1\"\nport = {old}\n\
         [backends.new.mail]\nhost = \"127.0.0.1\"\nport = {new}\n\
         [mx]\nhostname = \"mx.example.org\"\nauthentication.enabled = false\n\
         [mx.smtp]\nlisten = [\"127.0.0.1:{port}\"]\n\
         tls = \"none\"\n[log]\nlevel = \"warn\"\n",
        state = directory.path(),
        old = old.port,
        new = new.port,
    );
    let service = Service::start("mx-gateway", &config, directory.path(), port).await?;
    let recipients = (0..100).map(|number| {
        (format!("user{number}@example.org"), if number % 2 == 0 { new.port } else { old.port })
    });
    let postfix = peers::postfix(recipients.collect()).await;
    for octets in [4 * 1024, 64 * 1024] {
        println!("\n# messages of {} KiB, {AT_ONCE} senders, two owners", octets / 1024);
        let gateway =
            Peer { name: "mx-gateway", port: service.port, pid: service.pid(), messages: 8_000 };
        measure_peer(&gateway, octets, [&old, &new]).await?;
        match &postfix {
            Ok(postfix) => {
                let pid = u32::try_from(postfix.pid().unwrap_or_default())?;
                let port = postfix.smtp().port();
                let peer = Peer { name: "Postfix", port, pid, messages: 1_000 };
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
    let (mut cpu, mut rate) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let before = measure::cpu_of_tree(peer.pid)?;
        let (began, first) = (Instant::now(), arrived());
        send_many(peer.port, octets, peer.messages).await?;
        let sent = peer.messages / AT_ONCE * AT_ONCE;
        while arrived() - first < sent {
            ensure!(began.elapsed() < PATIENCE, "{} keeps messages", peer.name);
            sleep(Duration::from_millis(1)).await;
        }
        rate.push(sent as f64 / began.elapsed().as_secs_f64());
        let used = measure::cpu_of_tree(peer.pid)?.saturating_sub(before);
        cpu.push(used.as_secs_f64() * 1e6 / sent as f64);
    }
    println!(
        "{}: {:.0} µs CPU per message, {:.0} messages/s (medians of {RUNS} runs of {})",
        peer.name,
        measure::median(cpu),
        measure::median(rate),
        peer.messages
    );
    Ok(())
}

async fn send_many(port: u16, octets: usize, messages: usize) -> anyhow::Result<()> {
    let mut senders = JoinSet::new();
    for sender in 0..AT_ONCE {
        senders.spawn(async move {
            let content = message(octets);
            let mut connection = Sender::connect(port).await?;
            for number in 0..messages / AT_ONCE {
                let to = format!("user{}@example.org", (sender + number) % 100);
                connection.send(&to, &content).await?;
            }
            connection.quit().await
        });
    }
    while let Some(done) = senders.join_next().await {
        done??;
    }
    Ok(())
}
