//! A mail client that logs in through a proxy, and what it does once it is joined.

use anyhow::bail;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shared::backend::LoginProtocol;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;

use crate::backend::{Stream, receive, say, send, stream};
use crate::tls::Tls;

/// A line of 20 octets.
const ECHO: &str = "ECHO 0123456789012\r\n";

/// A client's connection, logged in.
pub struct Client {
    stream: Stream,
    /// What the server said to the login.
    pub welcome: String,
}

impl Client {
    /// Connects with TLS (ManageSieve: STARTTLS, else implicit), in full (no resumption), and logs in.
    pub async fn log_in(
        protocol: LoginProtocol,
        port: u16,
        tls: &Tls,
        user: &str,
    ) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        let response = STANDARD.encode(format!("\0{user}\0secret"));
        if protocol == LoginProtocol::ManageSieve {
            let mut clear = stream(socket);
            expect(&mut clear, "OK").await?;
            say(&mut clear, "STARTTLS\r\n").await?;
            expect(&mut clear, "OK").await?;
            let socket = tls.connector.connect(Tls::name(), clear.into_inner()).await?;
            let mut stream = stream(socket);
            expect(&mut stream, "OK").await?;
            say(&mut stream, &format!("AUTHENTICATE \"PLAIN\" \"{response}\"\r\n")).await?;
            let welcome = expect(&mut stream, "OK").await?;
            return Ok(Self { stream, welcome });
        }
        let mut stream = stream(tls.connector.connect(Tls::name(), socket).await?);
        let welcome = match protocol {
            LoginProtocol::Imap => {
                expect(&mut stream, "* OK").await?;
                say(&mut stream, &format!("a LOGIN {user} secret\r\n")).await?;
                expect(&mut stream, "a OK").await?
            }
            LoginProtocol::Pop3 => {
                expect(&mut stream, "+OK").await?;
                say(&mut stream, &format!("USER {user}\r\n")).await?;
                expect(&mut stream, "+OK").await?;
                say(&mut stream, "PASS secret\r\n").await?;
                expect(&mut stream, "+OK").await?
            }
            LoginProtocol::Submission | LoginProtocol::ManageSieve => {
                expect(&mut stream, "220 ").await?;
                say(&mut stream, "EHLO client.example\r\n").await?;
                expect(&mut stream, "250 ").await?;
                say(&mut stream, &format!("AUTH PLAIN {response}\r\n")).await?;
                expect(&mut stream, "235 ").await?
            }
        };
        Ok(Self { stream, welcome })
    }

    /// One round trip of a line.
    pub async fn echo(&mut self) -> anyhow::Result<()> {
        say(&mut self.stream, ECHO).await?;
        expect(&mut self.stream, "ECHO").await.map(drop)
    }

    /// So many octets from the backend.
    pub async fn download(&mut self, octets: usize) -> anyhow::Result<()> {
        say(&mut self.stream, &format!("DOWNLOAD {octets}\r\n")).await?;
        receive(&mut self.stream, octets).await
    }

    /// So many octets to the backend.
    pub async fn upload(&mut self, octets: usize) -> anyhow::Result<()> {
        say(&mut self.stream, &format!("UPLOAD {octets}\r\n")).await?;
        send(&mut self.stream, octets).await?;
        expect(&mut self.stream, "UPLOADED").await.map(drop)
    }

    /// Waits until the other side closes.
    pub async fn closed(&mut self) {
        let mut line = String::new();
        while !matches!(self.stream.read_line(&mut line).await, Ok(0) | Err(_)) {
            line.clear();
        }
    }
}

/// Reads lines up to the first that begins with `prefix`. A no in any of the protocols is an error.
async fn expect(stream: &mut Stream, prefix: &str) -> anyhow::Result<String> {
    const REFUSALS: [&str; 8] = ["a NO", "a BAD", "* BYE", "-ERR", "NO", "BYE", "4", "5"];
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            bail!("closed while waiting for {prefix:?}");
        }
        if line.starts_with(prefix) {
            return Ok(line.trim_end().to_owned());
        }
        if REFUSALS.iter().any(|no| line.starts_with(no)) {
            bail!("waiting for {prefix:?}, got {line:?}");
        }
    }
}
