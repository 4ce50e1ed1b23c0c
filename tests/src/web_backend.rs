//! A small HTTP/1.1 server with manners of its own, which keeps every octet that it was sent.
//!
//! What it does is in the path: `/echo` says its name and the body, `/hang` never answers, `/close` closes,
//! `/slow` answers when it is let to, `/sse`, `/ws` and `/endless` go on, `/early` answers before the body, `/wrong`
//! says 401, `/json/…` has the octets of [`Manners::json`], `/moved` redirects to [`Manners::location`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use shared::backend::{Backend, BackendName, Endpoint, Host};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::patience::until;

/// What a server does otherwise than the others.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// What `/json` is answered.
    pub json: String,
    /// Where `/moved` leads.
    pub location: String,
    /// It closes after each answer, without saying so.
    pub closes: bool,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its head, without the empty line.
    pub head: String,
    /// Its body, decoded.
    pub body: Vec<u8>,
    /// Which of the server's connections.
    pub connection: usize,
}

impl Seen {
    /// The value of a field, the first of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A running server.
#[derive(Debug)]
pub struct WebBackend {
    name: BackendName,
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    name: String,
    manners: Manners,
    seen: Mutex<Vec<Seen>>,
    connections: Mutex<(usize, usize)>,
    /// A permit for each answer to `/slow`.
    slow: Semaphore,
}

impl WebBackend {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn start(name: &str, manners: Manners) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            name: name.to_owned(),
            manners,
            seen: Mutex::default(),
            connections: Mutex::default(),
            slow: Semaphore::new(0),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    let number = state.opened(1);
                    let _ = state.serve(socket, number).await;
                    state.closed();
                });
            }
        });
        let name = BackendName::parse(name).map_err(anyhow::Error::msg)?;
        Ok(Self { name, address, state, task })
    }

    /// As it stands in the configuration.
    pub fn configured(&self) -> Backend {
        let mut backend = Backend::new(self.name.clone());
        let mut endpoint = Endpoint::plain(Host::new("127.0.0.1", self.address.port()));
        endpoint.identity = shared::backend::Identity::Forwarded;
        backend.http = Some(endpoint);
        backend
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many requests have come.
    ///
    /// # Errors
    ///
    /// They do not.
    pub async fn until_seen(&self, count: usize) -> Result<()> {
        until("requests", || (self.seen().len() >= count).then_some(())).await
    }

    /// Connections that are open, and all so far.
    pub fn connections(&self) -> (usize, usize) {
        *self.state.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until none of its connections is open: it is told a moment after they are closed.
    ///
    /// # Errors
    ///
    /// One stays.
    pub async fn left_alone(&self) -> Result<()> {
        until("its connections to end", || (self.connections().0 == 0).then_some(())).await
    }

    /// Lets one request for `/slow` be answered.
    pub fn go_on(&self) {
        self.state.slow.add_permits(1);
    }
}

impl Drop for WebBackend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    fn opened(&self, count: usize) -> usize {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.0 += count;
        connections.1 += count;
        connections.1
    }

    fn closed(&self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).0 -= 1;
    }

    async fn serve(&self, mut socket: TcpStream, connection: usize) -> Result<()> {
        let mut unread = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
                    break at;
                }
                if socket.read_buf(&mut unread).await? == 0 {
                    return Ok(());
                }
            };
            let head: Vec<u8> = unread.drain(..end + 4).collect();
            let head = String::from_utf8_lossy(&head).trim_end().to_owned();
            let mut seen = Seen { head, body: Vec::new(), connection };
            let path = seen.head.split(' ').nth(1).unwrap_or_default().to_owned();
            if path.starts_with("/early") {
                self.note(seen);
                let answer =
                    "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge";
                socket.write_all(answer.as_bytes()).await?;
                return Ok(());
            }
            if seen.field("expect").is_some() {
                if path.starts_with("/refuse") {
                    self.note(seen);
                    let answer = "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n";
                    socket.write_all(answer.as_bytes()).await?;
                    return Ok(());
                }
                socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            seen.body = body(&seen, &mut socket, &mut unread).await?;
            self.note(seen.clone());
            if !self.answer(&mut socket, &path, &seen).await? || self.manners.closes {
                return Ok(());
            }
        }
    }

    fn note(&self, seen: Seen) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }

    /// Answers. False: the connection is over.
    async fn answer(&self, socket: &mut TcpStream, path: &str, seen: &Seen) -> Result<bool> {
        let name = &self.name;
        let plain = |status: &str, more: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 {status}\r\n{more}Content-Length: {length}\r\n\r\n{body}")
        };
        let answer = match path.split('?').next().unwrap_or_default() {
            "/hang" => {
                gone(socket).await;
                return Ok(false);
            }
            "/close" => return Ok(false),
            "/slow" => {
                if !self.may_go_on(socket).await? {
                    return Ok(false);
                }
                plain("200 OK", "", &format!("{name} slow"))
            }
            "/half" => {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
                socket.write_all(answer.as_bytes()).await?;
                if !self.may_go_on(socket).await? {
                    return Ok(false);
                }
                "x".repeat(96)
            }
            "/wrong" => plain("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", "no"),
            "/moved" => plain("302 Found", &format!("Location: {}\r\n", self.manners.location), ""),
            "/hop" => plain(
                "200 OK",
                "Connection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nAlt-Svc: h3=\":443\"\r\n",
                name,
            ),
            "/both" => "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
                       5\r\nhello\r\n0\r\n\r\n"
                .to_owned(),
            "/garbage" => "NOT HTTP AT ALL\r\n\r\n".to_owned(),
            "/sse" => return self.events(socket).await,
            "/endless" => return endless(socket).await,
            "/ws" => return self.websocket(socket, seen).await,
            path if path.contains("json") || path.ends_with("/session") => {
                plain("200 OK", "Content-Type: application/json\r\n", &self.manners.json)
            }
            _ if seen.head.starts_with("HEAD ") => {
                "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n".to_owned()
            }
            _ => {
                let body = String::from_utf8_lossy(&seen.body);
                plain("200 OK", &format!("X-Backend: {name}\r\n"), &format!("{name}:{body}"))
            }
        };
        socket.write_all(answer.as_bytes()).await?;
        Ok(true)
    }

    /// Waits until it is let to. False: nobody waits with it.
    async fn may_go_on(&self, socket: &mut TcpStream) -> Result<bool> {
        tokio::select! {
            permit = self.slow.acquire() => {
                permit?.forget();
                Ok(true)
            }
            () = gone(socket) => Ok(false),
        }
    }

    async fn events(&self, socket: &mut TcpStream) -> Result<bool> {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        socket.write_all(head.as_bytes()).await?;
        loop {
            let event = format!("data: {}\n\n", self.name);
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            socket.write_all(chunk.as_bytes()).await?;
            let mut scratch = [0; 16];
            // Nobody says anything on such a connection: that it ends is heard.
            let heard =
                tokio::time::timeout(Duration::from_millis(50), socket.read(&mut scratch)).await;
            if matches!(heard, Ok(Ok(0) | Err(_))) {
                return Ok(false);
            }
        }
    }

    async fn websocket(&self, socket: &mut TcpStream, seen: &Seen) -> Result<bool> {
        if seen.field("upgrade").is_none() {
            socket.write_all(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n").await?;
            return Ok(true);
        }
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket.write_all(head.as_bytes()).await?;
        let mut octets = [0; 1024];
        loop {
            let read = socket.read(&mut octets).await?;
            if read == 0 {
                return Ok(false);
            }
            socket.write_all(self.name.as_bytes()).await?;
            socket.write_all(&octets[..read]).await?;
        }
    }
}

/// Says octets for as long as somebody takes them.
async fn endless(socket: &mut TcpStream) -> Result<bool> {
    socket.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    loop {
        socket.write_all(chunk.as_bytes()).await?;
    }
}

/// Waits until the other end has gone.
async fn gone(socket: &mut TcpStream) {
    let mut scratch = [0; 16];
    while socket.read(&mut scratch).await.is_ok_and(|read| read > 0) {}
}

/// Reads a body, as RFC 9112 §6.3 says.
async fn body(seen: &Seen, socket: &mut TcpStream, unread: &mut Vec<u8>) -> Result<Vec<u8>> {
    let length: usize = seen.field("content-length").map_or(Ok(0), str::parse)?;
    if seen.field("transfer-encoding").is_none() {
        while unread.len() < length {
            anyhow::ensure!(socket.read_buf(unread).await? > 0, "cut off");
        }
        return Ok(unread.drain(..length).collect());
    }
    let mut body = Vec::new();
    loop {
        let at = loop {
            if let Some(at) = unread.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            anyhow::ensure!(socket.read_buf(unread).await? > 0, "cut off");
        };
        let line: Vec<u8> = unread.drain(..at + 2).collect();
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16)?;
        while unread.len() < size + 2 {
            anyhow::ensure!(socket.read_buf(unread).await? > 0, "cut off");
        }
        body.extend(unread.drain(..size));
        unread.drain(..2);
        if size == 0 {
            return Ok(body);
        }
    }
}
