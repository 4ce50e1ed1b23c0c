//! The smallest servers that a proxy can log in to: they accept every login and answer every command with
//! yes. They run in this process, so that what is counted is the proxy's alone.
//!
//! In all protocols alike, three words stand for what clients do once they are joined: `ECHO`, `DOWNLOAD n`
//! and `UPLOAD n`.

use std::sync::Arc;

use anyhow::{Context, bail};
use shared::backend::LoginProtocol;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::tls::Tls;

/// Octets per read and write of a long transfer.
pub const BULK: usize = 256 * 1024;
/// Longest literal, which is a name or a password.
const MAX_LITERAL: usize = 4096;
const IMAP_CAPABILITIES: &str = "CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID IDLE AUTH=PLAIN";

/// A connection, plain or TLS.
pub type Stream = BufReader<Box<dyn Socket>>;

pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Reads by lines; buffers are small, since there are thousands of sessions in this process.
pub fn stream(socket: impl Socket + 'static) -> Stream {
    BufReader::with_capacity(512, Box::new(socket))
}

/// A backend, until this process ends.
pub struct Backend {
    pub port: u16,
}

/// What all of a backend's connections know.
struct Server {
    protocol: LoginProtocol,
    name: &'static str,
    tls: Option<Arc<Tls>>,
}

impl Backend {
    /// `tls`: as the protocol has it (ManageSieve: STARTTLS, else implicit); none: plain. `name` is in
    /// every yes to a login, so that a client sees where it is.
    pub fn start(
        protocol: LoginProtocol,
        name: &'static str,
        tls: Option<Arc<Tls>>,
    ) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let server = Arc::new(Server { protocol, name, tls });
        // A thread of its own: a client that speaks to it directly must not find it in its own thread, awake
        // already, which no proxy can be.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || runtime.block_on(server.accept(listener)));
        Ok(Self { port })
    }
}

/// What a command leads to.
enum Answer {
    Say(String),
    /// The client's response to a challenge comes next, and then this is the answer.
    Ask(&'static str, String),
    StartTls,
}

impl Server {
    async fn accept(self: Arc<Self>, listener: std::net::TcpListener) -> anyhow::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        while let Ok((socket, _)) = listener.accept().await {
            let _ = socket.set_nodelay(true);
            let server = Arc::clone(&self);
            tokio::spawn(async move { server.serve(socket).await });
        }
        Ok(())
    }

    async fn serve(&self, socket: TcpStream) -> anyhow::Result<()> {
        match &self.tls {
            Some(tls) if self.protocol != LoginProtocol::ManageSieve => {
                self.speak(stream(tls.acceptor.accept(socket).await?)).await
            }
            _ => self.speak(stream(socket)).await,
        }
    }

    async fn speak(&self, mut stream: Stream) -> anyhow::Result<()> {
        say(&mut stream, &self.greeting(true)).await?;
        while let Some(line) = line(&mut stream).await? {
            if joined(&line, &mut stream).await? {
                continue;
            }
            match self.answer(&line) {
                Answer::Say(answer) => say(&mut stream, &answer).await?,
                Answer::Ask(challenge, answer) => {
                    say(&mut stream, challenge).await?;
                    self::line(&mut stream).await?;
                    say(&mut stream, &answer).await?;
                }
                Answer::StartTls => {
                    say(&mut stream, "OK \"begin\"\r\n").await?;
                    let tls = self.tls.as_ref().context("STARTTLS without a certificate")?;
                    let secured = tls.acceptor.accept(stream.into_inner()).await?;
                    stream = self::stream(secured);
                    say(&mut stream, &self.greeting(false)).await?;
                }
            }
        }
        Ok(())
    }

    fn greeting(&self, in_clear: bool) -> String {
        match self.protocol {
            LoginProtocol::Imap => format!("* OK [{IMAP_CAPABILITIES}] ready\r\n"),
            LoginProtocol::Pop3 => "+OK ready\r\n".into(),
            LoginProtocol::Submission => format!("220 {} ESMTP\r\n", self.name),
            LoginProtocol::ManageSieve => {
                let start_tls =
                    if in_clear && self.tls.is_some() { "\"STARTTLS\"\r\n" } else { "" };
                format!(
                    "\"IMPLEMENTATION\" \"bench\"\r\n\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"\r\n\
                     \"VERSION\" \"1.0\"\r\n{start_tls}OK \"ready\"\r\n"
                )
            }
        }
    }

    fn answer(&self, line: &str) -> Answer {
        let (name, line) = (self.name, line.trim_end());
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        let verb = first.to_ascii_uppercase();
        match (self.protocol, verb.as_str()) {
            (LoginProtocol::Imap, _) => imap(first, rest, name),
            (LoginProtocol::Pop3, "CAPA") => Answer::Say(
                "+OK list\r\nUSER\r\nSASL PLAIN\r\nPIPELINING\r\nUIDL\r\nTOP\r\n.\r\n".into(),
            ),
            (LoginProtocol::Pop3, "AUTH") if !rest.contains(' ') => {
                Answer::Ask("+ \r\n", format!("+OK at {name}\r\n"))
            }
            (LoginProtocol::Pop3, _) => Answer::Say(format!("+OK at {name}\r\n")),
            (LoginProtocol::Submission, "EHLO") => Answer::Say(format!(
                "250-{name}\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 AUTH PLAIN\r\n"
            )),
            (LoginProtocol::Submission, "AUTH") if !rest.contains(' ') => {
                Answer::Ask("334 \r\n", format!("235 2.7.0 at {name}\r\n"))
            }
            (LoginProtocol::Submission, "AUTH") => Answer::Say(format!("235 2.7.0 at {name}\r\n")),
            (LoginProtocol::Submission, _) => Answer::Say("250 2.0.0 done\r\n".into()),
            (LoginProtocol::ManageSieve, "STARTTLS") => Answer::StartTls,
            (LoginProtocol::ManageSieve, "CAPABILITY") => Answer::Say(self.greeting(false)),
            (LoginProtocol::ManageSieve, _) => Answer::Say(format!("OK \"at {name}\"\r\n")),
        }
    }
}

fn imap(tag: &str, rest: &str, name: &str) -> Answer {
    let welcome = format!("{tag} OK [{IMAP_CAPABILITIES} AT={name}] at {name}\r\n");
    let mut words = rest.split_whitespace();
    match words.next().unwrap_or_default().to_ascii_uppercase().as_str() {
        "ID" => Answer::Say(format!("* ID NIL\r\n{tag} OK ID completed\r\n")),
        "CAPABILITY" => Answer::Say(format!("* {IMAP_CAPABILITIES}\r\n{tag} OK done\r\n")),
        "AUTHENTICATE" if words.nth(1).is_none() => Answer::Ask("+ \r\n", welcome),
        "AUTHENTICATE" | "LOGIN" => Answer::Say(welcome),
        _ => Answer::Say(format!("{tag} OK done at {name}\r\n")),
    }
}

/// Does what a joined client asks for, if it does.
async fn joined(line: &str, stream: &mut Stream) -> anyhow::Result<bool> {
    let mut words = line.split_whitespace();
    let (verb, argument) = (words.next(), words.next().unwrap_or_default());
    match verb {
        Some("ECHO") => say(stream, line).await?,
        Some("DOWNLOAD") => send(stream, argument.parse()?).await?,
        Some("UPLOAD") => {
            receive(stream, argument.parse()?).await?;
            say(stream, "UPLOADED\r\n").await?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

pub async fn say(stream: &mut Stream, text: &str) -> anyhow::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    Ok(stream.flush().await?)
}

/// Sends so many octets.
pub async fn send(stream: &mut Stream, octets: usize) -> anyhow::Result<()> {
    let buffer = vec![b'x'; BULK];
    let mut left = octets;
    while left > 0 {
        let part = &buffer[..left.min(BULK)];
        stream.write_all(part).await?;
        left -= part.len();
    }
    Ok(stream.flush().await?)
}

/// Takes so many octets and forgets them.
pub async fn receive(stream: &mut Stream, octets: usize) -> anyhow::Result<()> {
    let mut buffer = vec![0; BULK];
    let mut left = octets;
    while left > 0 {
        let room = left.min(BULK);
        match stream.read(&mut buffer[..room]).await? {
            0 => bail!("closed {left} octets before the end"),
            read => left -= read,
        }
    }
    Ok(())
}

/// The next line with its end, in which a literal stands as if it had been said in the line.
async fn line(stream: &mut Stream) -> anyhow::Result<Option<String>> {
    let mut line = String::new();
    loop {
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let literal = line.trim_end().strip_suffix('}').and_then(|line| line.rsplit_once('{'));
        let Some((before, size)) = literal else { return Ok(Some(line)) };
        let (before, size) = (before.to_owned(), size.to_owned());
        if !size.ends_with('+') {
            say(stream, "+ go on\r\n").await?;
        }
        let mut octets = vec![0; size.trim_end_matches('+').parse::<usize>()?.min(MAX_LITERAL)];
        stream.read_exact(&mut octets).await?;
        line = before + std::str::from_utf8(&octets)?;
    }
}
