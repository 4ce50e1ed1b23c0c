//! The gateway under kill -9, owners that hang up at every moment, flips and holds, with counting senders on one
//! side and counting owners on the other (P3, P5, P6, SPL-1..3, SPL-10, SPL-12).
//!
//! Whatever happens: no message that was accepted is lost, none reaches an owner that must not get it, and each
//! double has one of P9's reasons. `CRASH_ROUNDS` (default 12) makes it longer: `make chaos`. What is random
//! follows `CRASH_SEED`, which is printed.

mod ledger;
mod owner;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::node::{Node, Options, binary, by_lmtp};
use tests::patience::until;
use tests::ports;
use tests::smtp::Smtp;
use tests::table::{Engine, Table};
use tests::test_ca::TestCa;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::ledger::{Ledger, Verdict};
use crate::owner::{Gotten, Mood, Owner};

const PEOPLE: [&str; 6] = ["ann", "ben", "cat", "dan", "eve", "fay"];
/// People who send without a pause.
const SENDERS: usize = 4;

/// Of a hundred replies, those that a sender does not wait for.
const LOST_REPLIES: u8 = 10;

fn account(local: &str) -> String {
    format!("{local}@example.org")
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Everything there is.
struct Scene {
    /// Its files are read again at each start.
    _ca: TestCa,
    table: Table,
    node: Node,
    old: Owner,
    new: Owner,
    gotten: Gotten,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
}

impl Scene {
    async fn set() -> Result<Self> {
        let table = Table::create(Engine::Sqlite)?;
        let rows: Vec<String> =
            PEOPLE.iter().map(|local| format!("('{}', 'old')", account(local))).collect();
        table.sql(&format!(
            "INSERT INTO domains (domain) VALUES ('example.org');
             INSERT INTO accounts (account, owner) VALUES {};",
            rows.join(", ")
        ))?;
        let gotten = Gotten::default();
        let old = Owner::start("old", Arc::clone(&gotten)).await?;
        let new = Owner::start("new", Arc::clone(&gotten)).await?;
        let [smtp, imap, imaps, nobody] = ports::reserve()?;
        let smtp_only = |name, owner: &Owner| {
            let text = by_lmtp(name, owner.address, nobody);
            text.replace("\"lmtp\"", "\"smtp\"").replace("\"xclient\"", "\"none\"")
        };
        let options = Options {
            name: "node1".to_owned(),
            url: table.url(),
            backends: smtp_only("old", &old) + &smtp_only("new", &new),
            mx: "patience = \"500ms\"".to_owned(),
            listen: Some([smtp, imap, imaps]),
            ..Options::default()
        };
        let ca = TestCa::new()?;
        let node = Node::start(&options, &ca).await?;
        let (ledger, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        Ok(Self { _ca: ca, table, node, old, new, gotten, ledger, stop, senders: Vec::new() })
    }

    fn start_sending(&mut self) {
        let next = Arc::new(AtomicU64::new(0));
        for _ in 0..SENDERS {
            let (ledger, stop) = (Arc::clone(&self.ledger), Arc::clone(&self.stop));
            let (address, next) = (self.node.smtp(), Arc::clone(&next));
            self.senders.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("message-{}", next.fetch_add(1, Ordering::Relaxed));
                    let mut people = PEOPLE;
                    fastrand::shuffle(&mut people);
                    let count = fastrand::usize(1..=3);
                    let to: Vec<String> = people[..count].iter().map(|p| account(p)).collect();
                    ledger.sent();
                    send(address, &ledger, &id, &to).await;
                }
            }));
        }
    }

    /// One thing that happens.
    async fn happen(&mut self) -> Result<()> {
        for owner in [&self.old, &self.new] {
            owner.be([Mood::Good, Mood::Moody, Mood::Moody, Mood::Away][fastrand::usize(0..4)]);
        }
        sleep(Duration::from_millis(fastrand::u64(50..400))).await;
        let account = account(PEOPLE[fastrand::usize(0..PEOPLE.len())]);
        match fastrand::u8(0..3) {
            0 => self.kill().await,
            1 => self.flip(&account).await,
            _ => self.hold(&account).await,
        }
    }

    async fn kill(&mut self) -> Result<()> {
        let from = Instant::now();
        self.node.crash()?;
        sleep(Duration::from_millis(fastrand::u64(0..200))).await;
        self.node.resume().await?;
        self.ledger.killed(from, Instant::now());
        Ok(())
    }

    async fn flip(&self, account: &str) -> Result<()> {
        let to = ["old", "new"][fastrand::usize(0..2)];
        self.ledger.allow(account);
        self.table.flip(account, to)?;
        self.table.settled(account).await?;
        self.ledger.forbid(account, Some(if to == "old" { "new" } else { "old" }));
        Ok(())
    }

    /// As a mover does: hold, fence, and then the account belongs to nobody until it is flipped.
    async fn hold(&self, account: &str) -> Result<()> {
        let token = self.table.mailshift(&["hold", account, "--for", "5m"])?;
        let token = token.trim();
        until("the fence", || {
            self.table.mailshift(&["fence", account, "--token", token]).ok().map(drop)
        })
        .await?;
        self.ledger.allow(account);
        self.ledger.forbid(account, None);
        sleep(Duration::from_millis(fastrand::u64(50..400))).await;
        self.ledger.allow(account);
        let to = ["old", "new"][fastrand::usize(0..2)];
        self.table.mailshift(&["flip", account, to, "--token", token])?;
        self.table.settled(account).await?;
        self.ledger.forbid(account, Some(if to == "old" { "new" } else { "old" }));
        Ok(())
    }

    fn spooled(&self, place: &str) -> HashSet<String> {
        let directory: PathBuf = self.node.directory().join("state/mx-gateway/spool").join(place);
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect()
    }

    fn queue(&self, arguments: &[&str]) -> Result<()> {
        let output = std::process::Command::new(binary("mailshift")?)
            .args(["queue", "--config"])
            .arg(self.node.configuration())
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// All faults end, all that waits is delivered, and is judged.
    async fn end(mut self) -> Result<Verdict> {
        self.stop.store(true, Ordering::Relaxed);
        self.old.be(Mood::Good);
        self.new.be(Mood::Good);
        for sender in std::mem::take(&mut self.senders) {
            sender.await?;
        }
        let began = Instant::now();
        while !self.spooled("messages").is_empty() {
            ensure!(began.elapsed() < Duration::from_mins(1), "the queue does not become empty");
            // Owners in doubt are not asked again for minutes, unless an operator says so.
            self.queue(&["retry", "--all"])?;
            sleep(Duration::from_millis(200)).await;
        }
        let subject = |text: &String| {
            text.lines().find_map(|line| line.strip_prefix("Subject: ")).map(str::to_owned)
        };
        let dead = self.spooled("dead").iter().filter_map(subject).collect();
        ensure!(self.spooled("corrupt").is_empty(), "a file is corrupt");
        let gotten = self.gotten.lock().unwrap().clone();
        let verdict = self.ledger.judge(&gotten, &dead);
        let Verdict { sent, accepted, refused, delivered, kills, doubled, .. } = &verdict;
        println!(
            "{sent} messages, {refused} refused; {accepted} recipients accepted, {delivered} copies at owners, \
             {kills} kills, {} dead letters; lost {}, misplaced {}, doubled {doubled:?}, unexplained {}",
            dead.len(),
            verdict.lost.len(),
            verdict.misplaced.len(),
            verdict.unexplained.len(),
        );
        Ok(verdict)
    }
}

/// Sends one message as a mail server does: without a reply it comes again with the same.
async fn send(address: std::net::SocketAddr, ledger: &Ledger, id: &str, to: &[String]) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while Instant::now() < deadline {
        match offer(address, id, to).await {
            Ok(Some(accepted)) => return ledger.accepted(id, &accepted),
            Ok(None) => return ledger.refused(),
            Err(true) => ledger.unknown(id),
            Err(false) => {}
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The recipients for whom it was accepted; `None` when it was refused. An error is no reply; true when the
/// whole message was sent.
async fn offer<'a>(
    address: std::net::SocketAddr,
    id: &str,
    to: &'a [String],
) -> Result<Option<Vec<&'a str>>, bool> {
    let mut client = Smtp::connect(address).await.map_err(|_| false)?;
    client.command("EHLO sender.example.com").await.map_err(|_| false)?;
    let from = client.command("MAIL FROM:<sender@example.com>").await.map_err(|_| false)?;
    if from.code != 250 {
        return Ok(None);
    }
    let mut accepted = Vec::new();
    for to in to {
        let reply = client.command(&format!("RCPT TO:<{to}>")).await.map_err(|_| false)?;
        if reply.code == 250 {
            accepted.push(to.as_str());
        }
    }
    if accepted.is_empty() || client.command("DATA").await.map_err(|_| false)?.code != 354 {
        return Ok(None);
    }
    let message =
        format!("From: sender@example.com\r\nSubject: {id}\r\n\r\n{}\r\n.\r\n", "x".repeat(500));
    client.conversation.send(message.as_bytes()).await.map_err(|_| true)?;
    if fastrand::u8(0..100) < LOST_REPLIES {
        sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        return Err(true);
    }
    let reply = client.reply().await.map_err(|_| true)?;
    if reply.to_string().starts_with("451 4.4.5 ") {
        // Our own attempt of before is not over.
        return Err(false);
    }
    Ok((reply.code == 250).then_some(accepted))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_accepted_is_lost_or_misplaced_whatever_breaks() -> Result<()> {
    let seed = setting("CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("CRASH_SEED={seed}");
    fastrand::seed(seed);
    let mut scene = Scene::set().await?;
    scene.start_sending();
    for round in 0..setting("CRASH_ROUNDS").unwrap_or(12) {
        scene.happen().await?;
        if round % 20 == 19 {
            println!("{} rounds", round + 1);
        }
    }
    let verdict = scene.end().await?;
    ensure!(verdict.accepted > 0 && verdict.delivered > 0, "nothing was sent");
    ensure!(verdict.lost.is_empty(), "lost: {:?}", verdict.lost);
    ensure!(verdict.misplaced.is_empty(), "misplaced: {:?}", verdict.misplaced);
    ensure!(verdict.unexplained.is_empty(), "doubled: {:?}", verdict.unexplained);
    Ok(())
}
