//! A mail system that counts what it gets, and misbehaves as it is told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

/// A message that came to its end, for one recipient.
#[derive(Debug, Clone)]
pub(crate) struct Got {
    pub(crate) owner: &'static str,
    pub(crate) to: String,
    pub(crate) id: String,
    /// When its end was read.
    pub(crate) at: Instant,
    /// 250 was said to it, as far as the socket took it.
    pub(crate) answered: bool,
}

/// What an owner does, in a hundred messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mood {
    /// It takes everything.
    Good,
    /// Now and then it hangs up, puts off, or is slow.
    Moody,
    /// It greets nobody.
    Away,
}

/// A running owner.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) address: SocketAddr,
    mood: Arc<AtomicU8>,
}

/// All that any owner got.
pub(crate) type Gotten = Arc<Mutex<Vec<Got>>>;

impl Owner {
    pub(crate) async fn start(name: &'static str, gotten: Gotten) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mood = Arc::new(AtomicU8::new(Mood::Good as u8));
        let moods = Arc::clone(&mood);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (moods, gotten) = (Arc::clone(&moods), Arc::clone(&gotten));
                tokio::spawn(async move { serve(name, socket, &moods, &gotten).await });
            }
        });
        Ok(Self { address, mood })
    }

    pub(crate) fn be(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::Relaxed);
    }
}

async fn serve(
    owner: &'static str,
    socket: TcpStream,
    moods: &AtomicU8,
    gotten: &Gotten,
) -> Result<()> {
    let is = |mood: Mood| moods.load(Ordering::Relaxed) == mood as u8;
    let strikes = |percent: u8| is(Mood::Moody) && fastrand::u8(0..100) < percent;
    if is(Mood::Away) {
        return Ok(());
    }
    let mut stream = BufReader::new(socket);
    say(&mut stream, "220 owner").await?;
    let mut to: Vec<String> = Vec::new();
    loop {
        let line = read(&mut stream).await?;
        if strikes(1) {
            bail!("hangs up");
        }
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        match verb.as_str() {
            "EHLO" => say(&mut stream, "250-owner\r\n250-PIPELINING\r\n250 8BITMIME").await?,
            "MAIL" | "RSET" => {
                to.clear();
                say(&mut stream, "250 2.0.0 Ok").await?;
            }
            "RCPT" if strikes(2) => say(&mut stream, "451 4.2.0 Not now").await?,
            "RCPT" => {
                to.push(line.split(['<', '>']).nth(1).context("no path")?.to_owned());
                say(&mut stream, "250 2.1.5 Ok").await?;
            }
            "DATA" if to.is_empty() => say(&mut stream, "554 5.5.1 Nobody").await?,
            "DATA" => {
                say(&mut stream, "354 Go on").await?;
                if strikes(3) {
                    bail!("hangs up before the end");
                }
                let id = content(&mut stream).await?;
                if strikes(3) {
                    // Not kept, and nobody hears of that.
                    bail!("hangs up behind the end");
                }
                if strikes(4) {
                    say(&mut stream, "452 4.2.2 Not now").await?;
                    continue;
                }
                let at = Instant::now();
                let first = {
                    let mut gotten = gotten.lock().unwrap();
                    let first = gotten.len();
                    gotten.extend(to.drain(..).map(|to| {
                        let id = id.clone();
                        Got { owner, to, id, at, answered: false }
                    }));
                    first..gotten.len()
                };
                if strikes(4) {
                    bail!("has it, and hangs up");
                }
                if strikes(5) {
                    sleep(Duration::from_millis(fastrand::u64(50..1500))).await;
                }
                say(&mut stream, "250 2.0.0 Kept").await?;
                gotten.lock().unwrap()[first].iter_mut().for_each(|got| got.answered = true);
            }
            "QUIT" => return say(&mut stream, "221 2.0.0 Bye").await,
            _ => say(&mut stream, "250 2.0.0 Ok").await?,
        }
    }
}

/// Reads a message to its end; the id in its subject.
async fn content(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut id = None;
    loop {
        let line = read(stream).await?;
        if line == "." {
            return id.context("a message without an id");
        }
        if let Some(subject) = line.strip_prefix("Subject: ") {
            id = Some(subject.to_owned());
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        bail!("closed");
    }
    Ok(line.trim_end().to_owned())
}

async fn say(stream: &mut BufReader<TcpStream>, text: &str) -> Result<()> {
    Ok(stream.get_mut().write_all(format!("{text}\r\n").as_bytes()).await?)
}
