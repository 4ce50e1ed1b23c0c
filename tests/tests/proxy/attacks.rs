//! Hundreds of clients or backends at once that are up to no good, against the service as operators run
//! it: the memory that each can make it keep is bounded (P10), and others are served meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use shared::backend::LoginProtocol;
use shared::wire::MAX_UNREAD;
use tests::login_backend::{LoginBackend, Manners, PASSWORD, Verdict};
use tests::node::{Node, Options};
use tests::table::{Engine, Table};
use tests::test_ca::TestCa;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use LoginProtocol::{Imap, ManageSieve, Pop3, Submission};

/// Attackers at once.
const CLIENTS: usize = 500;
/// Attackers at once where each command of theirs is worth an answer, which takes the service's time.
const TALKERS: usize = 100;
/// What one of them may cost in resident memory at any moment: what may be unread of it, as much of its
/// backend, and half of that for answers that it does not read, the task, and the allocator's losses.
const PER_CLIENT: u64 = MAX_UNREAD as u64 * 5 / 2;
/// More than may be unread, and nearly as much.
const MORE: usize = 2 * MAX_UNREAD;
const NEARLY: usize = 60 * 1024;
/// As much as an attacker's own system keeps for it, in octets: it never reads.
const RECEIVE_BUFFER: u32 = 4 * 1024;
const PROTOCOLS: [LoginProtocol; 4] = [Imap, Pop3, Submission, ManageSieve];

/// A node, and backends with the same manners in every protocol, where `mal` lives. `bob` lives at a good
/// one.
pub(crate) struct Stage {
    pub(crate) node: Node,
    pub(crate) pid: i32,
    /// Its memory before anybody came.
    pub(crate) resident: u64,
    /// And its descriptors.
    pub(crate) open: usize,
    _backends: Vec<LoginBackend>,
    _table: Table,
    _ca: TestCa,
}

impl Stage {
    pub(crate) async fn set(verdict: impl Fn(LoginProtocol) -> Verdict) -> Result<Self> {
        let (ca, table) = (TestCa::new()?, Table::create(Engine::Sqlite)?);
        table.sql(
            "INSERT INTO domains (domain) VALUES ('example.org');
             INSERT INTO accounts (account, owner) VALUES
             ('mal@example.org', 'bad'), ('bob@example.org', 'good');",
        )?;
        let good = LoginBackend::start("good", Manners::default()).await?;
        let mut sections = section("good", Imap, &good);
        let mut backends = vec![good];
        for protocol in PROTOCOLS {
            let manners = Manners { verdict: verdict(protocol), ..Manners::of(protocol) };
            let bad = LoginBackend::start("bad", manners).await?;
            sections += &section("bad", protocol, &bad);
            backends.push(bad);
        }
        let options = Options {
            name: "attacked".into(),
            url: table.url(),
            backends: sections,
            every_protocol: true,
            ..Options::default()
        };
        let node = Node::start(&options, &ca).await?;
        node.log_in("bob@example.org").await?;
        let pid = node.proxy.as_ref().context("a login proxy")?.pid();
        let (resident, open) = (Memory::of(pid)?.resident, open(pid)?);
        Ok(Self { node, pid, resident, open, _backends: backends, _table: table, _ca: ca })
    }

    /// Lets every attacker say all this, and measures what that costs.
    async fn withstands(
        &self,
        clients: usize,
        protocol: LoginProtocol,
        said: String,
    ) -> Result<()> {
        let pid = self.pid;
        Memory::forget_peak(pid)?;
        let address = self.node.listener(protocol.as_str());
        let mut attackers = JoinSet::new();
        for _ in 0..clients {
            let said = said.clone();
            attackers.spawn(async move {
                let mut socket = deaf(address).await?;
                // Whoever is sent away has failed to send all of it.
                let _ = socket.write_all(said.as_bytes()).await;
                std::future::pending::<Result<()>>().await
            });
        }
        settled(pid).await?;
        // Somebody else is served in spite of them.
        self.node.log_in("bob@example.org").await?;
        let cost = Memory::of(pid)?.peak.saturating_sub(self.resident) / clients as u64;
        if let Some(failed) = attackers.try_join_next() {
            failed??;
        }
        ensure!(cost <= PER_CLIENT, "{protocol} {said:.60?}: {cost} octets a client");
        attackers.shutdown().await;
        let gone = || (open(pid).ok()? <= self.open + 10).then_some(());
        tests::patience::until("all connections to end", gone).await
    }
}

fn section(name: &str, protocol: LoginProtocol, backend: &LoginBackend) -> String {
    let port = backend.address.port();
    format!("[backends.{name}.{protocol}]\nhost = \"127.0.0.1\"\nport = {port}\n")
}

/// A connection whose system keeps nearly nothing for it.
async fn deaf(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    Ok(socket.connect(address).await?)
}

/// What a process occupies, in octets.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    peak: u64,
}

impl Memory {
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let octets = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).context("a size")?;
            let kib = line.split_ascii_whitespace().next().context("a number")?;
            Ok::<u64, anyhow::Error>(kib.parse::<u64>()? * 1024)
        };
        Ok(Self { resident: octets("VmRSS:")?, peak: octets("VmHWM:")? })
    }

    /// From here on, the peak is that of what follows.
    fn forget_peak(pid: i32) -> Result<()> {
        Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
    }
}

/// Descriptors that a process has open.
pub(crate) fn open(pid: i32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Waits until a process's memory does not change any more: all that is sent has been looked at.
async fn settled(pid: i32) -> Result<()> {
    let (mut last, mut same) = (Memory::of(pid)?, 0);
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = Memory::of(pid)?;
        same = if now.resident.abs_diff(last.resident) < 1 << 18 { same + 1 } else { 0 };
        last = now;
        if same == 6 {
            return Ok(());
        }
    }
    anyhow::bail!("it never comes to rest")
}

/// What `mal` says to log in.
fn log_in(protocol: LoginProtocol) -> String {
    let plain = STANDARD.encode(format!("\0mal@example.org\0{PASSWORD}"));
    match protocol {
        Imap => format!("a AUTHENTICATE PLAIN {plain}\r\n"),
        Pop3 => format!("USER mal@example.org\r\nPASS {PASSWORD}\r\n"),
        Submission => format!("EHLO client\r\nAUTH PLAIN {plain}\r\n"),
        ManageSieve => format!("AUTHENTICATE \"PLAIN\" \"{plain}\"\r\n"),
    }
}

/// `first`, then as many octets of `rest`, again and again.
fn again(first: &str, rest: &str, octets: usize) -> String {
    format!("{first}{}", rest.repeat(octets / rest.len()))
}

/// A command that may be given again and again.
fn noop(protocol: LoginProtocol) -> &'static str {
    match protocol {
        Imap => "a CAPABILITY\r\n",
        Pop3 => "CAPA\r\n",
        Submission => "EHLO client\r\n",
        ManageSieve => "CAPABILITY\r\n",
    }
}

#[tokio::test]
async fn literal_bombs_and_endless_lines_cost_no_more_than_may_be_unread() -> Result<()> {
    let stage = Stage::set(|_| Verdict::ByPassword).await?;
    for (protocol, first, rest) in [
        (Imap, "a LOGIN {99999999999+}\r\n", "x"),
        (Imap, "a LOGIN {99999999999}\r\n", "x"),
        // Each within its measure, but never the last.
        (Imap, "a ID (", "{0+}\r\n "),
        (Imap, "a AUTHENTICATE PLAIN\r\n", "A"),
        (Imap, "", "x"),
        (Pop3, "AUTH PLAIN\r\n", "A"),
        (Pop3, "PASS ", "x"),
        (Submission, "EHLO client\r\nAUTH PLAIN ", "A"),
        (Submission, "", "x"),
        (ManageSieve, "PUTSCRIPT \"a\" {99999999999+}\r\n", "x"),
        (ManageSieve, "NOOP ", "{0+}\r\n "),
        (ManageSieve, "AUTHENTICATE \"PLAIN\" \"", "A"),
    ] {
        stage.withstands(CLIENTS, protocol, again(first, rest, MORE)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn clients_that_ask_much_and_read_nothing_are_asked_to_read_first() -> Result<()> {
    let stage = Stage::set(|_| Verdict::ByPassword).await?;
    for protocol in PROTOCOLS {
        stage.withstands(TALKERS, protocol, again("", noop(protocol), MORE)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_pipelined_behind_a_login_that_hangs_is_kept_up_to_its_measure() -> Result<()> {
    let stage = Stage::set(|_| Verdict::Say("")).await?;
    for protocol in PROTOCOLS {
        let said = again(&log_in(protocol), noop(protocol), NEARLY);
        stage.withstands(CLIENTS, protocol, said).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_backend_that_floods_before_the_yes_is_not_listened_to() -> Result<()> {
    let stage = Stage::set(|_| Verdict::Flood("x")).await?;
    for protocol in PROTOCOLS {
        stage.withstands(CLIENTS, protocol, log_in(protocol)).await?;
    }
    Ok(())
}

/// ManageSieve's backends are asked once more behind their yes, so this one would not be joined. The join
/// knows no protocol.
#[tokio::test]
async fn a_big_answer_waits_at_its_backend_for_a_client_that_does_not_read() -> Result<()> {
    let yes = |protocol| match protocol {
        Imap => "TAG OK [CAPABILITY IMAP4rev1] in\r\n",
        Pop3 => "+OK in\r\n",
        Submission => "235 2.7.0 in\r\n",
        ManageSieve => "OK \"in\"\r\n",
    };
    let stage = Stage::set(|protocol| Verdict::Pour(yes(protocol), "* more and more\r\n")).await?;
    for protocol in [Imap, Pop3, Submission] {
        let said = again(&log_in(protocol), noop(protocol), NEARLY);
        stage.withstands(CLIENTS, protocol, said).await?;
    }
    Ok(())
}
