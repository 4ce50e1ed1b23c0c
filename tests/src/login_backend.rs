//! A server to log in to that behaves as a test wants: it delays, refuses, hangs, floods, injects.
//!
//! It keeps a record of every connection, so a test can wait for what must come and see what never came.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

mod imap;
mod managesieve;
mod pop3;
mod submission;

use anyhow::{Context, Result, bail};
use shared::backend::{Backend, BackendName, Endpoint, Host, LoginProtocol};
use shared::sasl::{Mechanism, decode_base64, decode_bearer, decode_plain, decode_scram};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::HandshakeKind;

use crate::chat::Octets;
use crate::patience::PATIENCE;

/// The password that every account has, unless [`Manners::verdict`] says otherwise.
pub const PASSWORD: &str = "secret";

/// How a backend behaves.
#[derive(Clone)]
pub struct Manners {
    /// What it speaks.
    pub protocol: LoginProtocol,
    /// What it lists before login. POP3 and submission: lines, with `, ` between them; POP3, none: it does not
    /// know CAPA.
    pub capabilities: &'static str,
    /// Its first line; `CAPS` stands for the capabilities.
    pub greeting: &'static str,
    /// What follows the greeting.
    pub then: Then,
    /// How it answers a login.
    pub verdict: Verdict,
    /// What it asks in mechanisms other than PLAIN and LOGIN, not in base64.
    pub challenges: &'static [&'static str],
    /// What it says after the OK of STARTTLS, in the clear.
    pub injected: &'static str,
    /// Its certificate, where it speaks TLS.
    pub tls: Option<Tls>,
    /// A PROXY header comes first.
    pub proxied: bool,
}

/// What a backend does after its greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Speaks its protocol.
    Speak,
    /// Says nothing more and keeps the connection.
    Hang,
    /// Says nothing more and closes it.
    HangUp,
    /// Says these octets again and again.
    Flood(&'static str),
}

/// How a backend answers a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Yes to [`PASSWORD`], no to everything else.
    ByPassword,
    /// With these octets; `TAG` stands for the command's tag.
    Say(&'static str),
    /// With a challenge; after the client's answer with the other octets.
    Challenge(&'static str, &'static str),
    /// As the test says, which is asked by [`LoginBackend::asked`].
    Ask,
    /// Says these octets again and again.
    Flood(&'static str),
    /// With a yes, and then says the other octets again and again.
    Pour(&'static str, &'static str),
}

/// Where a backend speaks TLS.
#[derive(Clone)]
pub enum Tls {
    /// From the first octet.
    Implicit(TlsAcceptor),
    /// After STARTTLS.
    StartTls(TlsAcceptor),
}

impl Default for Manners {
    fn default() -> Self {
        Self::of(LoginProtocol::Imap)
    }
}

impl Manners {
    /// Good ones, in that protocol.
    pub fn of(protocol: LoginProtocol) -> Self {
        let (capabilities, greeting) = match protocol {
            LoginProtocol::Imap => {
                ("IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN", "* OK [CAPABILITY CAPS] ready\r\n")
            }
            LoginProtocol::Pop3 => (
                "TOP, UIDL, RESP-CODES, PIPELINING, AUTH-RESP-CODE, USER, SASL PLAIN",
                "+OK ready\r\n",
            ),
            LoginProtocol::Submission => {
                ("PIPELINING, SIZE 1000000, 8BITMIME, AUTH PLAIN LOGIN", "220 ready\r\n")
            }
            LoginProtocol::ManageSieve => (managesieve::CAPABILITIES, "CAPS\r\nOK \"ready\"\r\n"),
        };
        Self {
            protocol,
            capabilities,
            greeting,
            then: Then::Speak,
            verdict: Verdict::ByPassword,
            challenges: &[],
            injected: "",
            tls: None,
            proxied: false,
        }
    }
}

/// A running backend; it ends with its runtime.
#[derive(Debug)]
pub struct LoginBackend {
    name: &'static str,
    protocol: LoginProtocol,
    /// Where it listens.
    pub address: SocketAddr,
    record: Arc<Record>,
    asked: mpsc::UnboundedReceiver<Asked>,
}

/// A login that waits for the test's verdict.
#[derive(Debug)]
pub struct Asked {
    /// As whom.
    pub login: Login,
    answer: oneshot::Sender<String>,
}

impl Asked {
    /// Answers with these octets; `TAG` stands for the command's tag. False when nobody waits any more.
    pub fn say(self, octets: &str) -> bool {
        self.answer.send(octets.to_owned()).is_ok()
    }
}

/// What was given to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// SASL's authzid; empty for none.
    pub authzid: String,
    /// The name that the password belongs to.
    pub authcid: String,
    /// The password.
    pub password: String,
}

/// What happened on one connection.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Every line it was sent, without line ends; secrets, too.
    pub lines: Vec<String>,
    /// What was given to log in.
    pub logins: Vec<Login>,
    /// A login was answered with OK.
    pub logged_in: bool,
    /// The peer has closed.
    pub closed: bool,
    /// The source address of its PROXY header.
    pub proxied_for: Option<SocketAddr>,
    /// TLS is up.
    pub secured: bool,
    /// By a session of before.
    pub resumed: bool,
}

#[derive(Debug, Default)]
struct Record {
    connections: Mutex<Vec<Connection>>,
    changed: Notify,
}

impl Record {
    fn note(&self, number: usize, what: impl FnOnce(&mut Connection)) {
        what(&mut self.connections.lock().unwrap()[number]);
        self.changed.notify_waiters();
    }
}

impl LoginBackend {
    /// Starts one. Its name is in the OK to every command after login.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn start(name: &'static str, manners: Manners) -> Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), name, manners).await
    }

    /// Starts one at an address of the test's choice.
    ///
    /// # Errors
    ///
    /// The address is taken.
    pub async fn start_at(
        address: SocketAddr,
        name: &'static str,
        manners: Manners,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let record = Arc::new(Record::default());
        let (ask, asked) = mpsc::unbounded_channel();
        let (kept, protocol) = (Arc::clone(&record), manners.protocol);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let number = {
                    let mut connections = kept.connections.lock().unwrap();
                    connections.push(Connection::default());
                    connections.len() - 1
                };
                kept.changed.notify_waiters();
                let server = Server {
                    name,
                    number,
                    manners: manners.clone(),
                    record: Arc::clone(&kept),
                    ask: ask.clone(),
                };
                tokio::spawn(async move {
                    let record = Arc::clone(&server.record);
                    // However it ended: there is nobody to tell but the test.
                    let _ = server.serve(socket).await;
                    record.note(number, |connection| connection.closed = true);
                });
            }
        });
        Ok(Self { name, protocol, address, record, asked })
    }

    /// As the configuration has it: plain, no identity, patient.
    pub fn configured(&self) -> Backend {
        self.configured_as(|_| {})
    }

    /// As the configuration has it, with changes.
    ///
    /// # Panics
    ///
    /// Its name is no backend's.
    pub fn configured_as(&self, change: impl FnOnce(&mut Endpoint)) -> Backend {
        let host = Host::new(&self.address.ip().to_string(), self.address.port());
        let mut endpoint = Endpoint {
            connect_timeout: PATIENCE,
            reply_timeout: PATIENCE,
            ..Endpoint::plain(host)
        };
        change(&mut endpoint);
        let mut backend = Backend::new(BackendName::parse(self.name).expect("a backend's name"));
        backend.set_login(self.protocol, Some(endpoint));
        backend
    }

    /// The connections so far.
    pub fn connections(&self) -> Vec<Connection> {
        self.record.connections.lock().unwrap().clone()
    }

    /// The names that logins were made with so far.
    pub fn logins(&self) -> Vec<String> {
        let connections = self.connections();
        connections.iter().flat_map(|c| &c.logins).map(|login| login.authcid.clone()).collect()
    }

    /// Connections that are logged in and not closed.
    pub fn sessions(&self) -> usize {
        self.connections().iter().filter(|c| c.logged_in && !c.closed).count()
    }

    /// Waits until its connections are as they should be.
    ///
    /// # Errors
    ///
    /// They do not become so.
    pub async fn until(
        &self,
        what: &str,
        mut so: impl FnMut(&[Connection]) -> bool,
    ) -> Result<Vec<Connection>> {
        let wait = async {
            loop {
                let changed = self.record.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let connections = self.connections();
                if so(&connections) {
                    return connections;
                }
                changed.await;
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        waited.with_context(|| format!("{}: {what}; instead: {:?}", self.name, self.connections()))
    }

    /// The next login that waits for a verdict ([`Verdict::Ask`]).
    ///
    /// # Errors
    ///
    /// None comes.
    pub async fn asked(&mut self) -> Result<Asked> {
        let asked = timeout(PATIENCE, self.asked.recv()).await;
        asked.with_context(|| format!("no login came to {}", self.name))?.context("it has ended")
    }
}

/// One connection's server.
struct Server {
    name: &'static str,
    number: usize,
    manners: Manners,
    record: Arc<Record>,
    ask: mpsc::UnboundedSender<Asked>,
}

type Stream = BufReader<Box<dyn Octets>>;

impl Server {
    async fn serve(&self, socket: TcpStream) -> Result<()> {
        socket.set_nodelay(true)?;
        let mut socket: Box<dyn Octets> = Box::new(socket);
        if self.manners.proxied {
            let client = proxy_header(&mut socket).await?;
            self.record.note(self.number, |connection| connection.proxied_for = Some(client));
        }
        if let Some(Tls::Implicit(acceptor)) = &self.manners.tls {
            socket = self.secured(acceptor, socket).await?;
        }
        let mut stream = BufReader::new(socket);
        let greeting = self.manners.greeting.replace("CAPS", self.manners.capabilities);
        say(&mut stream, &greeting).await?;
        match self.manners.then {
            Then::Speak => match self.manners.protocol {
                LoginProtocol::Imap => imap::speak(self, stream).await,
                LoginProtocol::Pop3 => pop3::speak(self, stream).await,
                LoginProtocol::Submission => submission::speak(self, stream).await,
                LoginProtocol::ManageSieve => managesieve::speak(self, stream).await,
            },
            Then::Hang => until_closed(stream).await,
            Then::HangUp => Ok(()),
            Then::Flood(octets) => flood(&mut stream, octets).await,
        }
    }

    async fn secured(
        &self,
        acceptor: &TlsAcceptor,
        socket: Box<dyn Octets>,
    ) -> Result<Box<dyn Octets>> {
        let stream = acceptor.accept(socket).await?;
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        self.record.note(self.number, |connection| {
            connection.secured = true;
            connection.resumed = resumed;
        });
        Ok(Box::new(stream))
    }

    /// Its words for yes and no, and how every yes of its protocol begins.
    fn words(&self) -> (String, &'static str, &'static str) {
        let (name, capabilities) = (self.name, self.manners.capabilities);
        match self.manners.protocol {
            LoginProtocol::Submission => {
                (format!("235 2.7.0 at {name}\r\n"), "535 5.7.8 wrong\r\n", "235")
            }
            LoginProtocol::Pop3 => (format!("+OK at {name}\r\n"), "-ERR [AUTH] wrong\r\n", "+OK"),
            LoginProtocol::ManageSieve => {
                (format!("OK \"at {name}\"\r\n"), "NO \"wrong\"\r\n", "OK")
            }
            LoginProtocol::Imap => (
                format!("TAG OK [CAPABILITY {capabilities} IDLE] at {name}\r\n"),
                "TAG NO [AUTHENTICATIONFAILED] wrong\r\n",
                "TAG OK",
            ),
        }
    }

    /// Answers a login; true after a yes.
    async fn answer(&self, stream: &mut Stream, tag: &str, login: Login) -> Result<bool> {
        let (.., yes) = self.words();
        Ok(self.pronounce(stream, tag, login).await?.starts_with(yes))
    }

    /// Answers a login, and returns what it has said, with `TAG` in its place.
    async fn pronounce(&self, stream: &mut Stream, tag: &str, login: Login) -> Result<String> {
        self.record.note(self.number, |connection| connection.logins.push(login.clone()));
        let (yes, no, yes_begins) = self.words();
        let answer = match self.manners.verdict {
            Verdict::ByPassword if login.password == PASSWORD => yes,
            Verdict::ByPassword => no.to_owned(),
            Verdict::Say(octets) => octets.to_owned(),
            Verdict::Challenge(challenge, octets) => {
                say(stream, challenge).await?;
                self.line(stream).await?;
                octets.to_owned()
            }
            Verdict::Flood(octets) => {
                flood(stream, octets).await?;
                return Ok(String::new());
            }
            Verdict::Pour(yes, octets) => {
                self.record.note(self.number, |connection| connection.logged_in = true);
                say(stream, &yes.replace("TAG", tag)).await?;
                flood(stream, octets).await?;
                return Ok(String::new());
            }
            Verdict::Ask => self.ask(stream, login).await?,
        };
        if answer.starts_with(yes_begins) {
            self.record.note(self.number, |connection| connection.logged_in = true);
        }
        say(stream, &answer.replace("TAG", tag)).await?;
        Ok(answer)
    }

    /// What the test says to this.
    async fn ask(&self, stream: &mut Stream, login: Login) -> Result<String> {
        let (answer, verdict) = oneshot::channel();
        let _ = self.ask.send(Asked { login, answer });
        tokio::select! {
            verdict = verdict => verdict.context("the test gave no verdict"),
            // The peer does not wait for it: it has closed.
            closed = stream.fill_buf() => {
                let early = closed?.len();
                bail!("{early} octets instead of patience");
            }
        }
    }

    /// The next line, noted; `None` when the peer has closed.
    async fn line(&self, stream: &mut Stream) -> Result<Option<String>> {
        let mut octets = Vec::new();
        if stream.read_until(b'\n', &mut octets).await? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&octets).trim_end_matches(['\r', '\n']).to_owned();
        self.record.note(self.number, |connection| connection.lines.push(line.clone()));
        Ok(Some(line))
    }
}

async fn say(stream: &mut Stream, octets: &str) -> Result<()> {
    stream.write_all(octets.as_bytes()).await?;
    Ok(stream.flush().await?)
}

async fn until_closed(mut stream: Stream) -> Result<()> {
    let mut octets = [0; 1024];
    while stream.read(&mut octets).await? > 0 {}
    Ok(())
}

/// Until the peer has had enough.
async fn flood(stream: &mut Stream, octets: &str) -> Result<()> {
    let many = octets.repeat(4096 / octets.len().max(1) + 1);
    loop {
        say(stream, &many).await?;
        // Others on this thread want to speak, too.
        tokio::time::sleep(Duration::ZERO).await;
    }
}

/// A mechanism's first response in base64. A token is the password; SCRAM shows none.
fn response(mechanism: Mechanism, text: &str) -> Result<Login> {
    let response = decode_base64(text.as_bytes()).with_context(|| format!("{text:?}"))?;
    let credentials = match mechanism {
        Mechanism::Plain => decode_plain(&response)?,
        Mechanism::ScramSha1 | Mechanism::ScramSha256 => decode_scram(mechanism, response)?,
        _ => decode_bearer(mechanism, response)?,
    };
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    let secret = credentials.password().or(credentials.token());
    Ok(Login {
        authzid: credentials.authzid.as_deref().map(text).unwrap_or_default(),
        authcid: text(&credentials.authcid),
        password: secret.map(|secret| text(secret.expose())).unwrap_or_default(),
    })
}

/// Text in base64.
fn decoded(text: &str) -> Result<String> {
    let octets = decode_base64(text.as_bytes()).with_context(|| format!("{text:?}"))?;
    Ok(String::from_utf8_lossy(octets.expose()).into_owned())
}

/// A PROXY header of version 2 for TCP over IPv4.
async fn proxy_header(socket: &mut Box<dyn Octets>) -> Result<SocketAddr> {
    let mut head = [0; 16];
    socket.read_exact(&mut head).await?;
    anyhow::ensure!(head.starts_with(b"\r\n\r\n\0\r\nQUIT\n"), "no PROXY header: {head:?}");
    let mut addresses = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    socket.read_exact(&mut addresses).await?;
    anyhow::ensure!(head[12..14] == [0x21, 0x11], "not TCP over IPv4: {head:?}");
    let ip: [u8; 4] = addresses[..4].try_into()?;
    Ok(SocketAddr::from((ip, u16::from_be_bytes([addresses[8], addresses[9]]))))
}
