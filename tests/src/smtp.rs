//! An SMTP client (RFC 5321) as far as tests need one.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::conversation::Conversation;

/// A client's connection, greeted.
#[derive(Debug)]
pub struct Smtp {
    /// The conversation itself, for what has no method here.
    pub conversation: Conversation,
    /// The server's greeting.
    pub greeting: Reply,
}

/// A server's reply (RFC 5321 §4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The code.
    pub code: u16,
    /// The texts of its lines.
    pub lines: Vec<String>,
}

impl Reply {
    /// 2xx or 3xx.
    pub fn is_positive(&self) -> bool {
        (200..400).contains(&self.code)
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.lines.join(" / "))
    }
}

impl Smtp {
    /// Connects without TLS.
    ///
    /// # Errors
    ///
    /// Nobody is there, or does not greet.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        Self::greeted(Conversation::connect(address).await?).await
    }

    /// Connects from an address of one's own.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    pub async fn connect_from(source: IpAddr, address: SocketAddr) -> Result<Self> {
        Self::greeted(Conversation::connect_from(source, address).await?).await
    }

    /// On a connection on which something was said before the greeting, such as a PROXY header.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    pub async fn over(socket: TcpStream) -> Result<Self> {
        Self::greeted(Conversation::over(socket)?).await
    }

    async fn greeted(mut conversation: Conversation) -> Result<Self> {
        let greeting = reply(&mut conversation).await.context("SMTP greeting")?;
        Ok(Self { conversation, greeting })
    }

    /// Sends a line and returns the reply to it.
    ///
    /// # Errors
    ///
    /// The server closes or is silent.
    pub async fn command(&mut self, line: &str) -> Result<Reply> {
        self.conversation.say(line).await?;
        self.reply().await
    }

    /// The next reply.
    ///
    /// # Errors
    ///
    /// The server closes or is silent.
    pub async fn reply(&mut self) -> Result<Reply> {
        reply(&mut self.conversation).await
    }

    /// EHLO, then STARTTLS, then EHLO again.
    ///
    /// # Errors
    ///
    /// It is refused, or TLS fails.
    pub async fn start_tls(&mut self, tls: &TlsConnector, name: &str) -> Result<()> {
        self.command("EHLO client.example.com").await?;
        let ready = self.command("STARTTLS").await?;
        ensure!(ready.code == 220, "STARTTLS: {ready}");
        self.conversation.start_tls(tls, name).await?;
        self.command("EHLO client.example.com").await.map(drop)
    }

    /// One message in one transaction, EHLO first. Returns the first refusal, or else the reply to the
    /// message. `message` has CRLF line ends; its dots are stuffed here.
    ///
    /// # Errors
    ///
    /// The server closes or is silent.
    pub async fn send(&mut self, from: &str, to: &[&str], message: &str) -> Result<Reply> {
        let envelope = ["EHLO client.example.com".to_string(), format!("MAIL FROM:<{from}>")]
            .into_iter()
            .chain(to.iter().map(|to| format!("RCPT TO:<{to}>")))
            .chain(["DATA".to_owned()]);
        for line in envelope {
            let reply = self.command(&line).await?;
            if !reply.is_positive() {
                return Ok(reply);
            }
        }
        self.conversation.send(stuffed(message).as_bytes()).await?;
        self.reply().await
    }
}

/// Sends one message on a connection of its own.
///
/// # Errors
///
/// The server closes or is silent. A refusal is a [`Reply`].
pub async fn send(address: SocketAddr, from: &str, to: &[&str], message: &str) -> Result<Reply> {
    Smtp::connect(address).await?.send(from, to, message).await
}

/// A small message with a subject to know it by.
pub fn message(subject: &str) -> String {
    format!(
        "From: Sender <sender@example.com>\r\nTo: <undisclosed@example.org>\r\n\
         Subject: {subject}\r\nDate: Thu, 01 Jan 2026 12:00:00 +0000\r\n\
         Message-ID: <{}@example.com>\r\n\r\nThis is {subject}.\r\n",
        fastrand::u64(..)
    )
}

async fn reply(conversation: &mut Conversation) -> Result<Reply> {
    let mut lines = Vec::new();
    loop {
        let line = conversation.line().await?;
        let code = line.get(..3).and_then(|code| code.parse().ok());
        let code = code.with_context(|| format!("{line:?} is no reply"))?;
        lines.push(line.get(4..).unwrap_or_default().to_owned());
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(Reply { code, lines });
        }
    }
}

/// Message data with its end (RFC 5321 §4.5.2).
fn stuffed(message: &str) -> String {
    let mut data = String::with_capacity(message.len() + 8);
    for line in message.split_inclusive("\r\n") {
        if line.starts_with('.') {
            data.push('.');
        }
        data.push_str(line);
    }
    if !data.ends_with("\r\n") {
        data.push_str("\r\n");
    }
    data.push_str(".\r\n");
    data
}
