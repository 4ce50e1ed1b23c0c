//! A client's side of a line-based protocol: say, expect, with a deadline on everything.
//!
//! It remembers what was said, so that a failure shows the conversation up to it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::patience::PATIENCE;
use crate::test_ca::server_name;

/// Octets of a line that are remembered.
const REMEMBERED: usize = 200;
/// Longest line taken from a server, in octets with CRLF.
const MAX_LINE: u64 = 1 << 20;

trait Octets: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Octets for T {}

/// A connection to a server.
pub struct Conversation {
    stream: BufReader<Box<dyn Octets>>,
    said: Vec<String>,
    patience: Duration,
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").field("said", &self.said).finish_non_exhaustive()
    }
}

impl Conversation {
    /// Connects without TLS.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let socket = timeout(PATIENCE, TcpStream::connect(address)).await??;
        Self::over(socket)
    }

    /// Connects from an address of one's own, so that a server sees who it is.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`], or the address is not this machine's.
    pub async fn connect_from(source: IpAddr, address: SocketAddr) -> Result<Self> {
        let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::from((source, 0)))?;
        Self::over(timeout(PATIENCE, socket.connect(address)).await??)
    }

    /// Connects with TLS from the first octet; `name` is what the certificate must say.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`], or TLS fails.
    pub async fn connect_tls(address: SocketAddr, tls: &TlsConnector, name: &str) -> Result<Self> {
        let mut conversation = Self::connect(address).await?;
        conversation.start_tls(tls, name).await?;
        Ok(conversation)
    }

    /// On a connection that is there already.
    ///
    /// # Errors
    ///
    /// It is broken.
    pub fn over(socket: TcpStream) -> Result<Self> {
        socket.set_nodelay(true)?;
        let stream: Box<dyn Octets> = Box::new(socket);
        Ok(Self { stream: BufReader::new(stream), said: Vec::new(), patience: PATIENCE })
    }

    /// Begins TLS on this connection, after the server has agreed to it.
    ///
    /// # Errors
    ///
    /// The server said more before it, or TLS fails.
    pub async fn start_tls(&mut self, tls: &TlsConnector, name: &str) -> Result<()> {
        ensure!(self.stream.buffer().is_empty(), "the server spoke before TLS{}", self.so_far());
        let nobody: Box<dyn Octets> = Box::new(tokio::io::empty());
        let plain = std::mem::replace(&mut self.stream, BufReader::new(nobody)).into_inner();
        let stream = timeout(self.patience, tls.connect(server_name(name)?, plain))
            .await
            .context("TLS handshake")?
            .context("TLS handshake")?;
        self.stream = BufReader::new(Box::new(stream));
        self.said.push("(TLS)".to_owned());
        Ok(())
    }

    /// Sends a line; CRLF is added.
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub async fn say(&mut self, line: &str) -> Result<()> {
        self.send(format!("{line}\r\n").as_bytes()).await
    }

    /// Sends octets as they are.
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub async fn send(&mut self, octets: &[u8]) -> Result<()> {
        self.remember("C", octets);
        let send = async {
            self.stream.write_all(octets).await?;
            self.stream.flush().await
        };
        let sent = timeout(self.patience, send).await;
        sent.map_err(anyhow::Error::from)
            .and_then(|sent| Ok(sent?))
            .with_context(|| format!("cannot send{}", self.so_far()))
    }

    /// The next line, without CRLF; `None` at the end of the connection.
    ///
    /// # Errors
    ///
    /// Nothing comes in time, or what comes is no line.
    pub async fn next_line(&mut self) -> Result<Option<String>> {
        let mut octets = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_LINE);
        let read = timeout(self.patience, limited.read_until(b'\n', &mut octets)).await;
        match read {
            Err(_) => bail!("the server says nothing{}", self.so_far()),
            // A reset is an end, too: a server may close with octets of ours unread.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return Ok(None);
            }
            // So is an end of TLS without close_notify.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Ok(Err(error)) => return Err(anyhow!(error).context(self.so_far())),
            Ok(Ok(0)) => return Ok(None),
            Ok(Ok(_)) => {}
        }
        self.remember("S", &octets);
        ensure!(octets.ends_with(b"\r\n"), "a line without CRLF{}", self.so_far());
        octets.truncate(octets.len() - 2);
        Ok(Some(String::from_utf8_lossy(&octets).into_owned()))
    }

    /// The next line; the end of the connection is an error.
    ///
    /// # Errors
    ///
    /// As [`Self::next_line`], or the server closed.
    pub async fn line(&mut self) -> Result<String> {
        self.next_line().await?.with_context(|| format!("the server closed{}", self.so_far()))
    }

    /// The next line, which must begin with `prefix`.
    ///
    /// # Errors
    ///
    /// As [`Self::line`], or it begins otherwise.
    pub async fn expect(&mut self, prefix: &str) -> Result<String> {
        let line = self.line().await?;
        ensure!(line.starts_with(prefix), "expected {prefix:?}{}", self.so_far());
        Ok(line)
    }

    /// The next `count` octets.
    ///
    /// # Errors
    ///
    /// They do not come in time.
    pub async fn octets(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut octets = vec![0; count];
        timeout(self.patience, self.stream.read_exact(&mut octets))
            .await
            .with_context(|| format!("waiting for {count} octets{}", self.so_far()))?
            .with_context(|| format!("waiting for {count} octets{}", self.so_far()))?;
        self.remember("S", &octets);
        Ok(octets)
    }

    /// Waits for the server to close, and returns the lines before that.
    ///
    /// # Errors
    ///
    /// It does not close in time.
    pub async fn closed(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        while let Some(line) = self.next_line().await? {
            lines.push(line);
        }
        self.said.push("(closed)".to_owned());
        Ok(lines)
    }

    /// What was said so far, a line each, `C:` and `S:` before them.
    pub fn said(&self) -> &[String] {
        &self.said
    }

    fn so_far(&self) -> String {
        let from = self.said.len().saturating_sub(30);
        format!("; so far:\n{}", self.said.get(from..).unwrap_or_default().join("\n"))
    }

    fn remember(&mut self, who: &str, octets: &[u8]) {
        let shown = octets.get(..REMEMBERED).unwrap_or(octets);
        for line in String::from_utf8_lossy(shown).lines() {
            self.said.push(format!("{who}: {line}"));
        }
    }
}
