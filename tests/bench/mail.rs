//! Cut-through messages: every second recipient lives at new. Senders and sinks run in this process, the
//! gateway in its own, so its numbers are its own.

use std::time::Instant;

use tokio::task::JoinSet;

use crate::proxy::{Service, free_port};
use crate::smtp::{Sender, Sink, message};
use crate::{measure, table};

const RUNS: usize = 5;
const AT_ONCE: usize = 16;

pub async fn run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let table = table::sqlite(directory.path(), 100).await?;
    table::move_half(&table).await?;
    let (old, new) = (Sink::start().await?, Sink::start().await?);
    let port = free_port()?;
    let config = format!(
        "[node]\nname = \"bench\"\nstate_dir = {state:?}\n[ownership]\nurl = {table:?}\n\
         [backends.old.mail]\nhost = \"127.0.0.1\"\nport = {old}\n\
         [backends.new.mail]\nhost = \"127.0.0.1\"\nport = {new}\n\
         [mx]\nhostname = \"mx.example.org\"\n[mx.smtp]\nlisten = [\"127.0.0.1:{port}\"]\n\
         tls = \"none\"\n[log]\nlevel = \"warn\"\n",
        state = directory.path(),
        old = old.port,
        new = new.port,
    );
    let service = Service::start("mx-gateway", &config, directory.path(), port).await?;
    for (octets, messages) in [(4 * 1024, 8_000), (64 * 1024, 4_000)] {
        println!("\n# cut-through, {} KiB messages, {AT_ONCE} senders, two owners", octets / 1024);
        measure_peer("mx-gateway", service.port, service.pid(), octets, messages).await?;
    }
    Ok(())
}

/// Sends `messages` of `octets` through whoever listens on `port`.
pub async fn measure_peer(
    name: &str,
    port: u16,
    pid: u32,
    octets: usize,
    messages: usize,
) -> anyhow::Result<()> {
    let (mut cpu, mut rate) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let before = measure::cpu_of_tree(pid)?;
        let began = Instant::now();
        send_many(port, octets, messages).await?;
        rate.push(messages as f64 / began.elapsed().as_secs_f64());
        let used = measure::cpu_of_tree(pid)?.saturating_sub(before);
        cpu.push(used.as_secs_f64() * 1e6 / messages as f64);
    }
    println!(
        "{name}: {:.0} µs CPU per message, {:.0} messages/s (medians of {RUNS} runs of {messages})",
        measure::median(cpu),
        measure::median(rate)
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
            anyhow::Ok(())
        });
    }
    while let Some(done) = senders.join_next().await {
        done??;
    }
    Ok(())
}
