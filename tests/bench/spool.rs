//! Mail for owners that are away, whose rows are known: how fast it is taken into the queue, on disk before
//! the sender is told, and how fast it leaves once the owners are there. Beside it Postfix, whose transport is
//! deferred for that time. Every run is one with new queues.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tests::postfix::Postfix;
use tests::postgres::{Database, Server};
use tokio::time::sleep;

use crate::gateway::Gateway;
use crate::mail::send_many;
use crate::measure::{self, median};
use crate::proxy::Service;
use crate::smtp::{Sink, message};
use crate::{peers, table};

const RUNS: usize = 3;
const OCTETS: usize = 4 * 1024;
const USERS: usize = 100;
/// Longest wait for the last message of a run.
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest time in which Postfix is asked once to try its queue.
const ASKED: Duration = Duration::from_secs(2);
/// How long the disk is tried alone.
const TRIED: Duration = Duration::from_secs(2);
const DEFERRED: &str = "defer_transports = smtp\n";

pub async fn run() -> anyhow::Result<()> {
    println!(
        "\n# queue: the disk alone writes, syncs and names {:.0} files/s by one writer",
        disk()?
    );
    let database = Server::shared().create_database()?;
    table::fill(&database.url, USERS).await?;
    table::move_half(&database.url).await?;
    for senders in [50, 200] {
        println!("\n# queue: messages of 4 KiB, {senders} senders, two owners that are away");
        for (who, messages) in [(Who::Us, 10_000), (Who::Postfix, 3_000)] {
            let mut runs = Vec::new();
            for _ in 0..RUNS {
                match one_run(who, &database, senders, messages).await {
                    Ok(run) => runs.push(run),
                    Err(error) if who == Who::Us => return Err(error),
                    Err(error) => println!("Postfix: not measured: {error:#}"),
                }
            }
            print(who, messages, &runs);
        }
    }
    Ok(())
}

fn print(who: Who, messages: usize, runs: &[Run]) {
    let name = if who == Who::Us { "mx-gateway" } else { "Postfix" };
    let of = |value: fn(&Run) -> f64| median(runs.iter().map(value).collect());
    println!(
        "{name}: {:.0} messages/s taken ({:.0} µs CPU each), {:.0} messages/s delivered ({:.0} µs CPU each) \
         from the first one on, {:.1} s after the owners came (medians of {} runs of {messages})",
        of(|run| run.taken),
        of(|run| run.cpu_taken),
        of(|run| run.delivered),
        of(|run| run.cpu_delivered),
        of(|run| run.first),
        runs.len(),
    );
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Us,
    Postfix,
}

/// Messages a second and microseconds for each; seconds.
struct Run {
    taken: f64,
    cpu_taken: f64,
    delivered: f64,
    cpu_delivered: f64,
    /// From the owners' start to the first delivery.
    first: f64,
}

async fn one_run(
    who: Who,
    database: &Database,
    senders: usize,
    messages: usize,
) -> anyhow::Result<Run> {
    let ports = tests::ports::reserve::<2>()?.map(|address| address.port());
    let mut queue = Queue::start(who, database, ports).await?;
    let (port, pid) = queue.address()?;
    let (before, began) = (measure::cpu_of_tree(pid)?, Instant::now());
    let sent = send_many(port, senders, messages, &message(OCTETS)).await?;
    let taken = sent as f64 / began.elapsed().as_secs_f64();
    let between = measure::cpu_of_tree(pid)?;

    let [old, new] = ports;
    let (began, owners) =
        (Instant::now(), [Sink::start_on(old).await?, Sink::start_on(new).await?]);
    let arrived = || owners.iter().map(Sink::messages).sum::<usize>();
    queue.owners_are_there()?;
    let mut asked = Instant::now();
    while arrived() == 0 {
        ensure!(began.elapsed() < PATIENCE, "nothing leaves the queue");
        if asked.elapsed() > ASKED {
            queue.flush()?;
            asked = Instant::now();
        }
        sleep(Duration::from_millis(1)).await;
    }
    let (first, leaving) = (began.elapsed().as_secs_f64(), Instant::now());
    while arrived() < sent {
        ensure!(leaving.elapsed() < PATIENCE, "{} of {sent} left the queue", arrived());
        sleep(Duration::from_millis(1)).await;
    }
    let delivered = sent as f64 / leaving.elapsed().as_secs_f64();
    let after = measure::cpu_of_tree(pid)?;
    let micros = |used: Duration| used.as_secs_f64() * 1e6 / sent as f64;
    let [cpu_taken, cpu_delivered] =
        [between.saturating_sub(before), after.saturating_sub(between)].map(micros);
    Ok(Run { taken, cpu_taken, delivered, cpu_delivered, first })
}

/// Who keeps the mail.
enum Queue {
    Us { service: Service, _state: TempDir },
    Postfix(Box<Postfix>),
}

impl Queue {
    async fn start(who: Who, database: &Database, owners: [u16; 2]) -> anyhow::Result<Self> {
        match who {
            Who::Us => {
                let state = tempfile::tempdir()?;
                let gateway = Gateway { owners, table: &database.url, dns: None };
                Ok(Self::Us { service: gateway.start(state.path()).await?, _state: state })
            }
            Who::Postfix => {
                let postfix = peers::postfix(USERS, database, owners, DEFERRED).await?;
                Ok(Self::Postfix(Box::new(postfix)))
            }
        }
    }

    /// Port and process.
    fn address(&self) -> anyhow::Result<(u16, u32)> {
        match self {
            Self::Us { service, .. } => Ok((service.port, service.pid())),
            Self::Postfix(postfix) => {
                Ok((postfix.smtp().port(), postfix.pid().context("it ended")?.try_into()?))
            }
        }
    }

    /// What an operator does then: nothing with us.
    fn owners_are_there(&mut self) -> anyhow::Result<()> {
        if let Self::Postfix(postfix) = self {
            postfix.reload(peers::POSTFIX)?;
        }
        self.flush()
    }

    fn flush(&self) -> anyhow::Result<()> {
        match self {
            Self::Us { .. } => Ok(()),
            Self::Postfix(postfix) => postfix.flush(),
        }
    }
}

/// Files a second that one writer makes as a queue does: written, synced, moved, and their directory synced.
fn disk() -> anyhow::Result<f64> {
    let directory = tempfile::tempdir()?;
    let names = File::open(directory.path())?;
    let (began, content, mut files) = (Instant::now(), message(OCTETS), 0_u32);
    while began.elapsed() < TRIED {
        write(directory.path(), files, &content)?;
        names.sync_all()?;
        files += 1;
    }
    Ok(f64::from(files) / began.elapsed().as_secs_f64())
}

fn write(directory: &Path, number: u32, content: &[u8]) -> anyhow::Result<()> {
    let (draft, path) = (directory.join("draft"), directory.join(number.to_string()));
    let mut file = File::create_new(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(std::fs::rename(&draft, path)?)
}
