//! The smallest IMAP server that a proxy can log in to, and a client that logs in through one.

use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::tls::Tls;

/// A backend: accepts every login and answers every command with OK, until it is dropped.
pub struct Backend {
    pub port: u16,
}

impl Backend {
    /// `tls`: implicit TLS, else plain. `name` is in every OK, so that a client sees where it is.
    pub async fn start(name: &'static str, tls: Option<Arc<Tls>>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let tls = tls.clone();
                let _ = socket.set_nodelay(true);
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => match tls.acceptor.accept(socket).await {
                            Ok(stream) => speak(stream, name).await,
                            Err(error) => Err(error.into()),
                        },
                        None => speak(socket, name).await,
                    }
                });
            }
        });
        Ok(Self { port })
    }
}

async fn speak<S>(stream: S, name: &str) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    const CAPABILITIES: &str = "CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID IDLE AUTH=PLAIN";
    let mut stream = BufReader::with_capacity(512, stream);
    stream.write_all(format!("* OK [{CAPABILITIES}] ready\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let tag = words.next().unwrap_or("*").to_owned();
        let answer = match words.next().unwrap_or_default().to_ascii_uppercase().as_str() {
            "ID" => format!("* ID NIL\r\n{tag} OK ID completed\r\n"),
            "CAPABILITY" => format!("* {CAPABILITIES}\r\n{tag} OK done\r\n"),
            "AUTHENTICATE" if words.nth(1).is_none() => {
                stream.write_all(b"+ \r\n").await?;
                stream.flush().await?;
                line.clear();
                stream.read_line(&mut line).await?;
                format!("{tag} OK [{CAPABILITIES} AT={name}] at {name}\r\n")
            }
            "AUTHENTICATE" | "LOGIN" => {
                format!("{tag} OK [{CAPABILITIES} AT={name}] at {name}\r\n")
            }
            _ => format!("{tag} OK done at {name}\r\n"),
        };
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

/// A client's connection, logged in.
pub struct Client {
    pub stream: BufReader<TlsStream<TcpStream>>,
    /// What the server said to the login.
    pub welcome: String,
}

impl Client {
    /// Connects with implicit TLS, in full (no resumption), and logs in.
    pub async fn log_in(port: u16, tls: &Tls, user: &str) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        let stream = tls.connector.connect(Tls::name(), socket).await?;
        let mut stream = BufReader::with_capacity(512, stream);
        expect(&mut stream, "* OK").await.context("greeting")?;
        stream.write_all(format!("a LOGIN {user} secret\r\n").as_bytes()).await?;
        stream.flush().await?;
        let welcome = expect(&mut stream, "a ").await?;
        if !welcome.starts_with("a OK") {
            bail!("login refused: {welcome}");
        }
        Ok(Self { stream, welcome })
    }

    /// One round trip through the joined session.
    pub async fn noop(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(b"n NOOP\r\n").await?;
        self.stream.flush().await?;
        expect(&mut self.stream, "n ").await.map(drop)
    }

    /// Waits until the other side closes.
    pub async fn closed(&mut self) {
        let mut line = String::new();
        while !matches!(self.stream.read_line(&mut line).await, Ok(0) | Err(_)) {
            line.clear();
        }
    }
}

/// Reads lines up to the first that begins with `prefix`.
async fn expect<S: AsyncBufRead + Unpin>(stream: &mut S, prefix: &str) -> anyhow::Result<String> {
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            bail!("closed while waiting for {prefix:?}");
        }
        if line.starts_with(prefix) {
            return Ok(line.trim_end().to_owned());
        }
    }
}
