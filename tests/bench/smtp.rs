//! The smallest SMTP server that mail can be delivered to, and a client that sends through a gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A server that takes every message and forgets it.
pub struct Sink {
    pub port: u16,
    /// Messages so far.
    messages: Arc<AtomicUsize>,
}

impl Sink {
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let messages = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&messages);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let counter = Arc::clone(&counter);
                tokio::spawn(async move { take(socket, &counter).await });
            }
        });
        Ok(Self { port, messages })
    }

    /// Messages so far.
    pub fn messages(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }
}

async fn take(socket: TcpStream, messages: &AtomicUsize) -> anyhow::Result<()> {
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
                swallow(&mut stream).await?;
                messages.fetch_add(1, Ordering::Relaxed);
                b"250 2.0.0 ok\r\n"
            }
            b"QUIT" => return Ok(stream.write_all(b"221 2.0.0 bye\r\n").await?),
            _ => b"250 2.0.0 ok\r\n",
        };
        stream.write_all(reply).await?;
    }
}

/// Reads up to the final dot; a client may have pipelined more behind it.
async fn swallow(stream: &mut BufReader<TcpStream>) -> anyhow::Result<()> {
    let mut line = Vec::with_capacity(1024);
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            bail!("closed inside data");
        }
        if line == b".\r\n" {
            return Ok(());
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
        let commands = format!("MAIL FROM:<bench@sender.example>\r\nRCPT TO:<{to}>\r\nDATA\r\n");
        self.say(commands.as_bytes()).await?;
        self.reply(b"250").await?;
        self.reply(b"250").await?;
        self.reply(b"354").await?;
        self.say(message).await?;
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
    let mut message = b"From: bench@sender.example\r\nSubject: bench\r\n\r\n".to_vec();
    while message.len() < octets {
        message.extend_from_slice(
            b"The quick brown fox jumps over the lazy dog, again and again.\r\n",
        );
    }
    message.extend_from_slice(b".\r\n");
    message
}
