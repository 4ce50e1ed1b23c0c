//! The smallest SMTP server that mail can be delivered to, and a client that sends through a gateway.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tests::signer::Signer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const FINAL_DOT: &[u8] = b".\r\n";
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Octets that are kept of a message.
const KEPT: usize = 8 * 1024;

/// A server that takes every message and forgets it, until this is dropped.
pub struct Sink {
    pub port: u16,
    seen: Arc<Seen>,
    serving: JoinHandle<()>,
}

/// What came so far.
#[derive(Default)]
struct Seen {
    messages: AtomicUsize,
    /// The front of the last message.
    last: Mutex<Vec<u8>>,
}

impl Sink {
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_on(0).await
    }

    /// One on this port; 0: any.
    pub async fn start_on(port: u16) -> anyhow::Result<Self> {
        let listener = TcpSocket::new_v4()?;
        listener.set_reuseaddr(true)?;
        listener.bind(([127, 0, 0, 1], port).into())?;
        let listener = listener.listen(BACKLOG)?;
        let port = listener.local_addr()?.port();
        let seen = Arc::<Seen>::default();
        let noted = Arc::clone(&seen);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let seen = Arc::clone(&noted);
                connections.spawn(async move { take(socket, &seen).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, seen, serving })
    }

    /// Messages so far.
    pub fn messages(&self) -> usize {
        self.seen.messages.load(Ordering::Relaxed)
    }

    /// The front of the last one.
    pub fn last(&self) -> String {
        String::from_utf8_lossy(&lock(&self.seen.last)).into_owned()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn take(socket: TcpStream, seen: &Seen) -> anyhow::Result<()> {
    let mut stream = BufReader::with_capacity(16 * 1024, socket);
    stream.write_all(b"220 sink ESMTP\r\n").await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply: &[u8] = match verb.as_slice() {
            b"EHLO" => b"250-sink\r\n250-PIPELINING\r\n250-SIZE 100000000\r\n250 8BITMIME\r\n",
            b"DATA" => {
                stream.write_all(b"354 go on\r\n").await?;
                let front = swallow(&mut stream).await?;
                *lock(&seen.last) = front;
                seen.messages.fetch_add(1, Ordering::Relaxed);
                b"250 2.0.0 ok\r\n"
            }
            b"QUIT" => return Ok(stream.write_all(b"221 2.0.0 bye\r\n").await?),
            _ => b"250 2.0.0 ok\r\n",
        };
        stream.write_all(reply).await?;
    }
}

/// Reads up to the final dot, behind which a client may have pipelined more; returns the message's front.
async fn swallow(stream: &mut BufReader<TcpStream>) -> anyhow::Result<Vec<u8>> {
    let (mut line, mut front) = (Vec::with_capacity(1024), Vec::new());
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            bail!("closed inside data");
        }
        if line == FINAL_DOT {
            return Ok(front);
        }
        if front.len() < KEPT {
            front.extend_from_slice(&line);
        }
    }
}

/// A client's connection to a gateway.
pub struct Sender {
    stream: BufReader<TcpStream>,
}

impl Sender {
    pub async fn connect(port: u16) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        let mut sender = Self { stream: BufReader::with_capacity(1024, socket) };
        sender.reply(b"220").await?;
        sender.say(b"EHLO sender.example\r\n").await?;
        sender.reply(b"250").await?;
        Ok(sender)
    }

    /// One message with pipelined commands; every reply must be a yes.
    pub async fn send(&mut self, to: &str, message: &[u8]) -> anyhow::Result<()> {
        self.begin("bench@sender.example", to).await?;
        self.say(message).await?;
        self.reply(b"250").await
    }

    /// Everything before a message.
    pub async fn begin(&mut self, from: &str, to: &str) -> anyhow::Result<()> {
        let commands = format!("MAIL FROM:<{from}>\r\nRCPT TO:<{to}>\r\nDATA\r\n");
        self.say(commands.as_bytes()).await?;
        self.reply(b"250").await?;
        self.reply(b"250").await?;
        self.reply(b"354").await
    }

    /// A message; how long its reply takes from the final dot on.
    pub async fn finish(&mut self, message: &[u8]) -> anyhow::Result<Duration> {
        self.say(message.strip_suffix(FINAL_DOT).context("no final dot")?).await?;
        let began = Instant::now();
        self.say(FINAL_DOT).await?;
        self.reply(b"250").await?;
        Ok(began.elapsed())
    }

    /// Sender and recipient of a message that does not come yet.
    pub async fn address(&mut self, to: &str) -> anyhow::Result<()> {
        let commands = format!("MAIL FROM:<bench@sender.example>\r\nRCPT TO:<{to}>\r\n");
        self.say(commands.as_bytes()).await?;
        self.reply(b"250").await?;
        self.reply(b"250").await
    }

    /// That message is not to be.
    pub async fn reset(&mut self) -> anyhow::Result<()> {
        self.say(b"RSET\r\n").await?;
        self.reply(b"250").await
    }

    /// Takes leave: one that goes without a word may not have heard the last reply, as far as the gateway knows,
    /// and the same message from it again would not be delivered.
    pub async fn quit(mut self) -> anyhow::Result<()> {
        self.say(b"QUIT\r\n").await?;
        self.reply(b"221").await
    }

    async fn say(&mut self, octets: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.write_all(octets).await?)
    }

    async fn reply(&mut self, code: &[u8]) -> anyhow::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            self.stream.read_until(b'\n', &mut line).await?;
            if !line.starts_with(code) {
                bail!(
                    "expected {}, got {}",
                    String::from_utf8_lossy(code),
                    String::from_utf8_lossy(&line)
                );
            }
            if line.get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}

/// A message of about `octets`, with its final dot.
pub fn message(octets: usize) -> Vec<u8> {
    let mut message = unsent("bench@sender.example", octets).into_bytes();
    message.extend_from_slice(FINAL_DOT);
    message
}

/// A message signed by its author's domain, with its final dot.
pub fn signed(signer: &Signer, from: &str, octets: usize) -> anyhow::Result<Vec<u8>> {
    let mut message = signer.sign(&unsent(from, octets))?.into_bytes();
    message.extend_from_slice(FINAL_DOT);
    Ok(message)
}

fn unsent(from: &str, octets: usize) -> String {
    let mut message = format!(
        "From: {from}\r\nTo: user0@example.org\r\nSubject: bench\r\n\
         Date: Tue, 01 Dec 2026 03:00:00 +0000\r\n\r\n"
    );
    while message.len() < octets {
        message.push_str("The quick brown fox jumps over the lazy dog, again and again.\r\n");
    }
    message
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
