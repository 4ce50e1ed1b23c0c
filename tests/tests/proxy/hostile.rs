//! More of what strangers do to a service that listens to everybody (NET-5): ten thousand guesses, handshakes cut
//! half way, octets one by one, and all descriptors taken.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tests::children::Child;
use tests::conversation::Conversation;
use tests::imap::Imap;
use tests::login_backend::{LoginBackend, Manners, Verdict};
use tests::login_node::{LoginNode, Settings};
use tests::patience::until;
use tests::test_ca::{TestCa, server_name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::rustls::ClientConnection;

use crate::attacks::{Memory, Stage, open};

const HOST: &str = "localhost";
const SHORT: Duration = Duration::from_millis(300);

/// Guessers at once, how often each comes, and guesses in one connection: as many as `max_failures`.
const GUESSERS: u32 = 20;
const CONNECTIONS: u32 = 50;
const GUESSES: u32 = 10;
/// What ten thousand guesses may leave behind: lines of the log that wait to be written, and what is counted.
const LEFT_BEHIND: u64 = 32 << 20;

/// Guesses from one address after the other, each for another account or for one that is there.
async fn guess(to: SocketAddr, guesser: u32) -> Result<()> {
    for connection in 0..CONNECTIONS {
        let [_, _, high, low] = (guesser * CONNECTIONS + connection).to_be_bytes();
        let from = std::net::Ipv4Addr::new(127, 1, high, low);
        let mut client = Conversation::connect_from(from.into(), to).await?;
        let guesses: String = (0..GUESSES)
            .map(|guess| match guess % 2 {
                0 => format!("a LOGIN bob@example.org wrong{guess}\r\n"),
                _ => format!("a LOGIN n{guesser}.{connection}.{guess}@example.org wrong\r\n"),
            })
            .collect();
        client.send(guesses.as_bytes()).await?;
        let heard = client.closed().await?;
        let no = |line: &&String| line.starts_with("a NO [AUTHENTICATIONFAILED]");
        ensure!(heard.iter().filter(no).count() == GUESSES as usize, "{heard:?}");
    }
    Ok(())
}

#[tokio::test]
async fn ten_thousand_guesses_cost_bounded_memory_and_keep_nobody_from_logging_in() -> Result<()> {
    let stage = Stage::set(|_| Verdict::ByPassword).await?;
    let mut guessers = JoinSet::new();
    for guesser in 0..GUESSERS {
        guessers.spawn(guess(stage.node.imap(), guesser));
    }
    // Also the account that is guessed most.
    while !guessers.is_empty() {
        match guessers.try_join_next() {
            Some(ended) => ended??,
            None => drop(stage.node.log_in("bob@example.org").await?),
        }
    }
    let left = Memory::of(stage.pid)?.resident.saturating_sub(stage.resident);
    ensure!(left <= LEFT_BEHIND, "{left} octets are left");
    let gone = || (open(stage.pid).ok()? <= stage.open + 10).then_some(());
    until("all connections to end", gone).await
}

/// What a client says first.
fn hello(ca: &TestCa) -> Result<Vec<u8>> {
    let config = Arc::clone(ca.connector()?.config());
    let mut client = ClientConnection::new(config, server_name(HOST)?)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}

async fn tls_node(ca: &TestCa, change: impl FnOnce(&mut Settings)) -> Result<LoginNode> {
    let old = LoginBackend::start("old", Manners::default()).await?;
    let tls = Some(Arc::clone(ca.issue(HOST)?.acceptor()?.config()));
    let mut settings = Settings { tls, implicit_tls: true, ..Settings::default() };
    change(&mut settings);
    LoginNode::start_with([old.configured()], settings)
}

#[tokio::test]
async fn a_thousand_handshakes_that_are_cut_half_way_leave_no_task_and_no_seat() -> Result<()> {
    let ca = TestCa::new()?;
    let node = tls_node(&ca, |settings| settings.max_connections = 20).await?;
    let hello = hello(&ca)?;
    for attempt in 0..1000 {
        let mut socket = TcpStream::connect(node.address).await?;
        match attempt % 4 {
            // Before a word, in the middle of the first, and in the middle of the server's.
            0 => {}
            1 => socket.write_all(&hello[..hello.len() / 2]).await?,
            2 => {
                socket.write_all(&hello).await?;
                socket.read_exact(&mut [0; 100]).await?;
            }
            // By a reset, as what is unread at the end makes one.
            _ => {
                socket.write_all(&hello).await?;
                socket.readable().await?;
                socket.set_zero_linger()?;
            }
        }
        drop(socket);
        if attempt % 16 == 15 {
            let listening = || (node.lifecycle.tasks() == 1).then_some(());
            until("the tasks of handshakes to end", listening).await?;
        }
    }
    let client = Imap::connect_tls(node.address, &ca.connector()?, HOST).await?;
    assert!(client.greeting.starts_with("* OK"), "{}", client.greeting);
    Ok(())
}

/// Says `octets` one by one until the other side closes, and returns what that has said.
async fn drip(to: SocketAddr, octets: &[u8]) -> Result<Vec<u8>> {
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let (mut reading, mut writing) = socket.into_split();
    let mut heard = Vec::new();
    let dripping = async {
        for octet in octets.iter().cycle() {
            if writing.write_all(&[*octet]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = dripping => {}
        // A reset is an end, too.
        ended = tokio::time::timeout(tests::patience::PATIENCE, reading.read_to_end(&mut heard)) => drop(ended?),
    }
    Ok(heard)
}

#[tokio::test]
async fn a_client_that_says_one_octet_at_a_time_has_as_long_as_any_other() -> Result<()> {
    let ca = TestCa::new()?;
    let node = tls_node(&ca, |settings| settings.rules.login_timeout = SHORT).await?;
    drip(node.address, &hello(&ca)?).await?;
    let plain = Settings {
        rules: shared::config::LoginConfig { login_timeout: SHORT, ..Settings::default().rules },
        ..Settings::default()
    };
    let plain = LoginNode::start_with([], plain)?;
    let heard = drip(plain.address, b"x").await?;
    let heard = String::from_utf8_lossy(&heard).into_owned();
    assert!(heard.ends_with("* BYE Disconnected for inactivity during login.\r\n"), "{heard}");
    for node in [&node, &plain] {
        let listening = || (node.lifecycle.tasks() == 1).then_some(());
        until("the login's task to end", listening).await?;
    }
    Ok(())
}

/// Time that a process has had on a processor, in hundredths of a second.
fn processor_time(pid: i32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a name")?;
    let mut times = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let (user, system) = (times.next().context("user")??, times.next().context("system")??);
    Ok(user + system)
}

fn limit_descriptors(proxy: &Child, limit: u64) -> Result<()> {
    let pid = Pid::from_raw(proxy.pid()).context("a pid")?;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    Ok(())
}

#[tokio::test]
async fn without_descriptors_sessions_go_on_nothing_spins_and_logins_come_back() -> Result<()> {
    let stage = Stage::set(|_| Verdict::ByPassword).await?;
    let proxy = stage.node.proxy.as_ref().context("a login proxy")?;
    let mut session = stage.node.log_in("bob@example.org").await?;
    limit_descriptors(proxy, 64)?;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(stage.node.imap()).await?);
    }
    proxy.logged(&["cannot accept connections; trying again"]).await?;
    let before = processor_time(stage.pid)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = processor_time(stage.pid)?.saturating_sub(before);
    // One thread that spins would have had 300.
    ensure!(used < 60, "{used} hundredths of a second in three seconds");
    let response = session.command("NOOP").await?;
    ensure!(response.is_ok(), "{response:?}");
    ensure!(proxy.is_running());
    drop(idle);
    // Some are refused until the last of those has gone.
    for _ in 0..100 {
        if let Ok((_, response)) = stage.node.login("bob@example.org").await
            && response.is_ok()
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("nobody can log in: {}", proxy.end_of_log())
}
