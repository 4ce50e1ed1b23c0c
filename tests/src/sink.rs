//! An SMTP or LMTP server that behaves as a test wants: an owner that accepts, refuses, hangs, hangs up,
//! answers nonsense, or asks the test what to say.
//!
//! It has its own reading of message data, so that tests do not check the codec against itself, insists on
//! the order of commands, and keeps a record of every connection and message.

mod reading;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use shared::backend::{Backend, BackendName, Endpoint, Host, MailEndpoint, MailProtocol};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use self::reading::Reading;
use crate::chat::Octets;
use crate::patience::PATIENCE;

/// How a sink behaves.
#[derive(Clone)]
pub struct Manners {
    /// SMTP or LMTP.
    pub protocol: MailProtocol,
    /// Lines of its EHLO reply behind the first.
    pub keywords: Vec<&'static str>,
    /// Its certificate, for STARTTLS, which it then offers.
    pub tls: Option<TlsAcceptor>,
    /// What it says in the clear behind the 220 of STARTTLS.
    pub injected: &'static str,
    /// A PROXY header comes first.
    pub proxied: bool,
    /// What differs from accepting everything: the first entry whose words a moment begins with counts.
    ///
    /// The moments are command lines as received, `(greeting)`, `(content)` at the first line of a
    /// message, and `(verdict)` at its end; with LMTP `(verdict) <ann@example.org>`, for each recipient.
    pub answers: Vec<(&'static str, Answer)>,
}

/// What a sink does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Says this line.
    Say(&'static str),
    /// Says this line the first time, then what is usual.
    Once(&'static str),
    /// Hangs up.
    Close,
    /// Hangs up the first time, then says what is usual.
    CloseOnce,
    /// Says this line and hangs up.
    CloseWith(&'static str),
    /// Says and reads nothing any more, and keeps the connection.
    Hang,
    /// Says what the test says, which is told by [`Sink::asked`].
    Ask,
    /// Reads nothing until the test says something, and says that; nothing if it is empty.
    Pause,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            protocol: MailProtocol::Smtp,
            keywords: vec!["PIPELINING", "SIZE 100000000", "8BITMIME", "ENHANCEDSTATUSCODES"],
            tls: None,
            injected: "",
            proxied: false,
            answers: Vec::new(),
        }
    }
}

impl Manners {
    /// LMTP's usual ones.
    pub fn lmtp() -> Self {
        Self { protocol: MailProtocol::Lmtp, ..Self::default() }
    }

    /// The same with one more answer.
    pub fn but(mut self, moment: &'static str, answer: Answer) -> Self {
        self.answers.push((moment, answer));
        self
    }
}

/// A running sink; it ends with its runtime.
#[derive(Debug)]
pub struct Sink {
    name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    protocol: MailProtocol,
    record: Arc<Record>,
    asked: mpsc::UnboundedReceiver<Asked>,
    accepting: tokio::task::JoinHandle<()>,
}

/// A moment that waits for the test.
#[derive(Debug)]
pub struct Asked {
    /// Which.
    pub moment: String,
    answer: oneshot::Sender<String>,
}

/// What happened on one connection.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Every command line, without line ends.
    pub lines: Vec<String>,
    /// The source address of its PROXY header.
    pub proxied_for: Option<SocketAddr>,
    /// TLS is up.
    pub secured: bool,
    /// The peer has closed, or the sink.
    pub closed: bool,
}

/// A message that came to its end, whatever was said to it then.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// The connection it came on.
    pub connection: usize,
    /// The MAIL line.
    pub mail: String,
    /// The recipients that were accepted, without brackets.
    pub to: Vec<String>,
    /// Its content without dot-stuffing, as far as it is kept.
    pub content: Vec<u8>,
    /// Its octets.
    pub octets: u64,
    /// The digest of those that follow the gateway's own header fields.
    pub digest: [u8; 32],
    /// What was said to it, a line for each recipient; empty until then.
    pub verdicts: Vec<String>,
}

impl Message {
    /// Its content behind the gateway's own header fields, the first of which is Received.
    pub fn as_sent(&self) -> &[u8] {
        assert!(self.content.starts_with(b"Received: "), "{:?}", self.text());
        &self.content[first_field(&self.content)..]
    }

    /// Its content as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }
}

#[derive(Debug, Default)]
struct Record {
    connections: Mutex<Vec<Connection>>,
    messages: Mutex<Vec<Message>>,
    /// What was to be done once and was.
    done: Mutex<Vec<&'static str>>,
    changed: Notify,
}

impl Record {
    fn is_first(&self, words: &'static str) -> bool {
        let mut done = self.done.lock().unwrap();
        let first = !done.contains(&words);
        done.push(words);
        first
    }

    fn note(&self, number: usize, what: impl FnOnce(&mut Connection)) {
        what(&mut self.connections.lock().unwrap()[number]);
        self.changed.notify_waiters();
    }
}

impl Asked {
    /// Says this line. False when nobody is there any more to hear it.
    pub fn say(self, line: &str) -> bool {
        self.answer.send(line.to_owned()).is_ok()
    }
}

impl Sink {
    /// Starts one that is the backend `name`.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn start(name: &'static str, manners: Manners) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let record = Arc::new(Record::default());
        let (ask, asked) = mpsc::unbounded_channel();
        let (kept, protocol) = (Arc::clone(&record), manners.protocol);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let number = {
                    let mut connections = kept.connections.lock().unwrap();
                    connections.push(Connection::default());
                    connections.len() - 1
                };
                kept.changed.notify_waiters();
                let server = Server {
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
        Ok(Self { name, address, protocol, record, asked, accepting })
    }

    /// As the configuration has it: plain, no identity, patient.
    pub fn configured(&self) -> Backend {
        self.configured_as(|_| {})
    }

    /// As the configuration has it, with changes.
    pub fn configured_as(&self, change: impl FnOnce(&mut Endpoint)) -> Backend {
        let host = Host::new(&self.address.ip().to_string(), self.address.port());
        let mut endpoint = Endpoint {
            connect_timeout: PATIENCE,
            reply_timeout: PATIENCE,
            ..Endpoint::plain(host)
        };
        change(&mut endpoint);
        let mut backend = Backend::new(BackendName::parse(self.name).expect("a backend's name"));
        // Tests count connections, so none waits ahead of its use.
        backend.mail = Some(MailEndpoint { warm: 0, ..MailEndpoint::new(endpoint, self.protocol) });
        backend
    }

    /// As the configuration has it, with changes of what is mail's alone.
    pub fn configured_with(&self, change: impl FnOnce(&mut MailEndpoint)) -> Backend {
        let mut backend = self.configured();
        backend.mail.as_mut().map(change);
        backend
    }

    /// Takes no more connections.
    pub async fn stop_listening(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }

    /// The connections so far.
    pub fn connections(&self) -> Vec<Connection> {
        self.record.connections.lock().unwrap().clone()
    }

    /// The messages so far, also those that were not accepted.
    pub fn messages(&self) -> Vec<Message> {
        self.record.messages.lock().unwrap().clone()
    }

    /// The recipients of all messages so far, in their order.
    pub fn recipients(&self) -> Vec<String> {
        self.messages().into_iter().flat_map(|message| message.to).collect()
    }

    /// The command lines that begin with these words, on all connections.
    pub fn heard(&self, words: &str) -> Vec<String> {
        let lines = self.connections().into_iter().flat_map(|connection| connection.lines);
        lines.filter(|line| line.starts_with(words)).collect()
    }

    /// Waits until its record is as it should be.
    ///
    /// # Errors
    ///
    /// It does not become so.
    pub async fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) -> Result<()> {
        let wait = async {
            loop {
                let changed = self.record.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if so(self) {
                    return;
                }
                changed.await;
            }
        };
        let waited = timeout(PATIENCE, wait).await;
        waited.with_context(|| format!("{}: {what}; instead: {:?}", self.name, self.connections()))
    }

    /// The next moment that waits for the test ([`Answer::Ask`]).
    ///
    /// # Errors
    ///
    /// None comes.
    pub async fn asked(&mut self) -> Result<Asked> {
        let asked = timeout(PATIENCE, self.asked.recv()).await;
        asked.with_context(|| format!("nothing was asked at {}", self.name))?.context("it ended")
    }
}

/// One connection's server.
struct Server {
    number: usize,
    manners: Manners,
    record: Arc<Record>,
    ask: mpsc::UnboundedSender<Asked>,
}

type Stream = BufReader<Box<dyn Octets>>;

/// A transaction under way.
#[derive(Default)]
struct Transaction {
    mail: String,
    to: Vec<String>,
    /// What came by BDAT so far.
    chunks: Vec<u8>,
}

impl Server {
    async fn serve(mut self, socket: TcpStream) -> Result<()> {
        socket.set_nodelay(true)?;
        let mut socket: Box<dyn Octets> = Box::new(socket);
        if self.manners.proxied {
            let client = proxy_header(&mut socket).await?;
            self.record.note(self.number, |connection| connection.proxied_for = Some(client));
        }
        let mut stream = BufReader::new(socket);
        self.answer(&mut stream, "(greeting)", "220 sink.internal ready").await?;
        let mut transaction: Option<Transaction> = None;
        loop {
            let Some(line) = self.command(&mut stream).await? else { return Ok(()) };
            let upper = line.to_ascii_uppercase();
            let verb = upper.split(' ').next().unwrap_or_default();
            let hello = match self.manners.protocol {
                MailProtocol::Smtp => "EHLO",
                MailProtocol::Lmtp => "LHLO",
            };
            match (verb, &mut transaction) {
                ("EHLO" | "LHLO", _) if verb == hello => {
                    transaction = None;
                    let offered = self.offered();
                    self.answer(&mut stream, &line, &offered).await?;
                }
                ("XCLIENT", None) => {
                    self.answer(&mut stream, &line, "220 sink.internal").await?;
                }
                ("STARTTLS", None) if self.manners.tls.is_some() => {
                    self.answer(&mut stream, &line, "220 2.0.0 Go ahead").await?;
                    stream = self.secure(stream).await?;
                }
                ("MAIL", None) => {
                    let reply = self.answer(&mut stream, &line, "250 2.1.0 Ok").await?;
                    if reply.starts_with('2') {
                        transaction = Some(Transaction { mail: line, ..Transaction::default() });
                    }
                }
                ("RCPT", Some(open)) => {
                    let reply = self.answer(&mut stream, &line, "250 2.1.5 Ok").await?;
                    if reply.starts_with('2') {
                        let path = line.split_once('<').unwrap_or_default().1;
                        open.to.push(path.rsplit_once('>').unwrap_or_default().0.to_owned());
                    }
                }
                ("DATA", Some(open)) if !open.to.is_empty() => {
                    let reply = self.answer(&mut stream, &line, "354 Go ahead").await?;
                    if reply.starts_with('3') {
                        let open = transaction.take().unwrap_or_default();
                        self.message(&mut stream, open).await?;
                    }
                }
                ("BDAT", open) => self.chunk(&mut stream, &line, open).await?,
                ("XFORWARD", None) => {
                    self.answer(&mut stream, &line, "250 2.0.0 Ok").await?;
                }
                ("RSET", _) => {
                    transaction = None;
                    self.answer(&mut stream, &line, "250 2.0.0 Ok").await?;
                }
                ("QUIT", _) => {
                    self.answer(&mut stream, &line, "221 2.0.0 Bye").await?;
                    return Ok(());
                }
                _ => say(&mut stream, "503 5.5.1 Out of order").await?,
            }
        }
    }

    fn offered(&self) -> String {
        let mut lines = vec!["sink.internal"];
        lines.extend(&self.manners.keywords);
        if self.manners.tls.is_some() {
            lines.push("STARTTLS");
        }
        let last = lines.len() - 1;
        let line =
            |(at, line): (usize, &&str)| format!("250{}{line}", if at == last { ' ' } else { '-' });
        lines.iter().enumerate().map(line).collect::<Vec<_>>().join("\r\n")
    }

    async fn secure(&mut self, stream: Stream) -> Result<Stream> {
        let Some(acceptor) = self.manners.tls.take() else { bail!("no certificate") };
        let mut socket = stream.into_inner();
        if !self.manners.injected.is_empty() {
            socket.write_all(self.manners.injected.as_bytes()).await?;
        }
        let socket: Box<dyn Octets> = Box::new(acceptor.accept(socket).await?);
        self.record.note(self.number, |connection| connection.secured = true);
        Ok(BufReader::new(socket))
    }

    /// Answers at a moment: as it is told, or else as is usual. Returns what it said.
    async fn answer(&mut self, stream: &mut Stream, moment: &str, usual: &str) -> Result<String> {
        let answers = &self.manners.answers;
        let answer = answers.iter().find(|(words, _)| moment.starts_with(words)).copied();
        let line = match answer {
            None => usual.to_owned(),
            Some((_, Answer::Say(line))) => line.to_owned(),
            Some((words, Answer::Once(line))) if self.record.is_first(words) => line.to_owned(),
            Some((words, Answer::CloseOnce)) if self.record.is_first(words) => {
                bail!("told to hang up")
            }
            Some((_, Answer::Once(_) | Answer::CloseOnce)) => usual.to_owned(),
            Some((_, Answer::Close)) => bail!("told to hang up"),
            Some((_, Answer::CloseWith(line))) => {
                say(stream, line).await?;
                bail!("told to hang up");
            }
            Some((_, Answer::Hang)) => {
                // Reading nothing: what is sent stays under way until nothing more fits.
                std::future::pending().await
            }
            Some((_, Answer::Pause)) => self.ask(moment)?.await?,
            Some((_, Answer::Ask)) => {
                tokio::select! {
                    answered = self.ask(moment)? => answered?,
                    // A peer that hangs up meanwhile is not answered.
                    ended = stream.fill_buf() => {
                        if ended?.is_empty() { bail!("closed while asked") }
                        bail!("spoke while asked")
                    }
                }
            }
        };
        if !line.is_empty() {
            say(stream, &line).await?;
        }
        Ok(line)
    }

    /// Has the test say what is to be said.
    fn ask(&self, moment: &str) -> Result<oneshot::Receiver<String>> {
        let (answer, answered) = oneshot::channel();
        self.ask.send(Asked { moment: moment.to_owned(), answer })?;
        Ok(answered)
    }

    /// Reads a message to its end and answers it.
    async fn message(&mut self, stream: &mut Stream, open: Transaction) -> Result<()> {
        if self.manners.answers.iter().any(|(words, _)| *words == "(content)") {
            stream.fill_buf().await?;
            self.answer(stream, "(content)", "").await?;
        }
        let mut reading = Reading::of(self.number, open);
        reading.dotted(stream).await?;
        self.verdicts(stream, reading.whole()).await
    }

    /// Reads one chunk (RFC 3030), and answers it.
    async fn chunk(
        &mut self,
        stream: &mut Stream,
        line: &str,
        transaction: &mut Option<Transaction>,
    ) -> Result<()> {
        let mut words = line.split(' ').skip(1);
        let octets: usize = words.next().unwrap_or_default().parse()?;
        let is_last = words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST"));
        if self.manners.answers.iter().any(|(words, _)| *words == "(content)") {
            stream.fill_buf().await?;
            self.answer(stream, "(content)", "").await?;
        }
        let mut chunk = vec![0; octets];
        stream.read_exact(&mut chunk).await.context("closed within a chunk")?;
        let Some(open) = transaction.as_mut().filter(|open| !open.to.is_empty()) else {
            return say(stream, "503 5.5.1 Out of order").await;
        };
        open.chunks.extend_from_slice(&chunk);
        if !is_last {
            return say(stream, "250 2.0.0 Ok").await;
        }
        let mut open = transaction.take().unwrap_or_default();
        let chunks = std::mem::take(&mut open.chunks);
        let mut reading = Reading::of(self.number, open);
        chunks.split_inclusive(|octet| *octet == b'\n').for_each(|line| reading.line(line));
        self.verdicts(stream, reading.whole()).await
    }

    /// Notes a whole message and answers it.
    async fn verdicts(&mut self, stream: &mut Stream, message: Message) -> Result<()> {
        let place = {
            let mut messages = self.record.messages.lock().unwrap();
            messages.push(message.clone());
            messages.len() - 1
        };
        self.record.changed.notify_waiters();
        let moments = match self.manners.protocol {
            MailProtocol::Smtp => vec!["(verdict)".to_owned()],
            MailProtocol::Lmtp => message.to.iter().map(|to| format!("(verdict) <{to}>")).collect(),
        };
        for moment in moments {
            let reply =
                self.answer(stream, &moment, "250 2.0.0 Ok: queued at sink.internal").await?;
            self.record.messages.lock().unwrap()[place].verdicts.push(reply);
            self.record.changed.notify_waiters();
        }
        Ok(())
    }

    async fn command(&self, stream: &mut Stream) -> Result<Option<String>> {
        let mut octets = Vec::new();
        if stream.read_until(b'\n', &mut octets).await? == 0 {
            return Ok(None);
        }
        let line = octets.strip_suffix(b"\r\n").context("a command without CRLF")?;
        let line = String::from_utf8_lossy(line).into_owned();
        self.record.note(self.number, |connection| connection.lines.push(line.clone()));
        Ok(Some(line))
    }
}

/// Where what the gateway has put before a message ends: its Received field, its own trace, and its id for the
/// content. Where it looks at senders, the results are between these two.
fn first_field(content: &[u8]) -> usize {
    let mut end = 0;
    for line in content.split_inclusive(|&b| b == b'\n') {
        if end > 0 && !is_ours(line) {
            break;
        }
        end += line.len();
        if line.starts_with(LAST) {
            break;
        }
    }
    end
}

/// What the last of the gateway's own fields begins with.
const LAST: &[u8] = b"Mailshift-Delivery-Id: ";

/// A line of what the gateway puts before a message that is not the first.
fn is_ours(line: &[u8]) -> bool {
    let fields: [&[u8]; 4] =
        [b"\t", b"Mailshift-Hop: ", b"Authentication-Results: mx.example.org;", LAST];
    fields.iter().any(|field| line.starts_with(field))
}

async fn say(stream: &mut Stream, line: &str) -> Result<()> {
    stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).await?;
    Ok(stream.get_mut().flush().await?)
}

/// The source address of a PROXY header of version 1.
async fn proxy_line(socket: &mut Box<dyn Octets>, mut line: Vec<u8>) -> Result<SocketAddr> {
    while !line.ends_with(b"\r\n") {
        line.push(socket.read_u8().await?);
    }
    let line = String::from_utf8(line)?;
    let mut words = line.split_ascii_whitespace().skip(2);
    let (source, port) = (words.next().context("no source")?, words.nth(1).context("no port")?);
    Ok(SocketAddr::new(source.parse()?, port.parse()?))
}

/// The source address of a PROXY header for TCP over IPv4.
async fn proxy_header(socket: &mut Box<dyn Octets>) -> Result<SocketAddr> {
    let mut head = [0; 16];
    socket.read_exact(&mut head).await?;
    if head.starts_with(b"PROXY TCP4 ") {
        return proxy_line(socket, head.to_vec()).await;
    }
    if head[..12] != *b"\r\n\r\n\0\r\nQUIT\n" {
        bail!("no PROXY header: {head:?}");
    }
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    socket.read_exact(&mut rest).await?;
    let (Some(ip), Some(port)) = (rest.first_chunk::<4>(), rest.get(8..10)) else {
        bail!("no IPv4 addresses in the PROXY header");
    };
    Ok(SocketAddr::from((*ip, u16::from_be_bytes([port[0], port[1]]))))
}
