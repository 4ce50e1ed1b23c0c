//! The login proxy's HTTP within the test's own process, on an owner map that the test writes to directly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use login_proxy::login::Shared;
use login_proxy::web::{self, Common, Context};
use shared::backend::Backend;
use shared::config::{Bind, ListenerConfig, ListenerTls, LoginConfig, NamesConfig, ProxyMode};
use shared::lifecycle::Lifecycle;
use shared::listener::Listener;
use shared::web::{AccountSource, Rule};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;

use crate::login_node::Settings;
use crate::patience::PATIENCE;
pub use crate::rows::DOMAIN;
use crate::rows::Rows;

/// A running proxy.
#[derive(Debug)]
pub struct WebNode {
    rows: Rows,
    /// Its tasks.
    pub lifecycle: Lifecycle,
    /// Where it listens.
    pub address: SocketAddr,
    /// What its requests from now on work with.
    pub context: Arc<ArcSwap<Context>>,
}

/// Limits and delays for tests: everything by Basic and Bearer, and WebSockets at `/ws`.
pub fn rules() -> LoginConfig {
    let mut rules = Settings::default().rules;
    let sources = [AccountSource::Basic, AccountSource::Bearer];
    let socket = Rule::by_account("/ws", &sources).map(|rule| Rule { websocket: true, ..rule });
    let all = Rule::by_account("/**", &sources);
    rules.web.rules = [socket, all].into_iter().flatten().collect();
    rules
}

impl WebNode {
    /// Starts one with these backends, [`DOMAIN`] and no accounts.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn start(
        backends: impl IntoIterator<Item = Backend>,
        rules: LoginConfig,
        tls: Option<&ServerConfig>,
    ) -> Result<Self> {
        let rows = Rows::new(backends);
        let lifecycle = Lifecycle::default();
        let listener = Listener::bind(&ListenerConfig {
            binds: vec![Bind::Address(SocketAddr::from(([127, 0, 0, 1], 0)))],
            tls: ListenerTls::None,
            proxy: ProxyMode::Off,
            proxy_trusted: Vec::new(),
            max_connections: 2000,
            max_per_address: 2000,
        })?;
        let address = listener.addresses().first().copied().context("it is bound nowhere")?;
        let rules_name = rules.web.public_name.clone();
        let context = Context {
            ownership: Arc::clone(&rows.ownership),
            shared: Shared::new(&rules),
            lifecycle: lifecycle.clone(),
            rules,
            names: NamesConfig::default(),
            tls: tls.map(web::with_alpn),
            via: web::pseudonym("test"),
            published: web::Published::named(rules_name),
            common: Common::new(&lifecycle),
        };
        let context = Arc::new(ArcSwap::from_pointee(context));
        let serving = Arc::clone(&context);
        listener.serve(&lifecycle, web::full, move |accepted| {
            web::serve(Arc::clone(&serving), accepted)
        });
        Ok(Self { rows, lifecycle, address, context })
    }

    /// A connection in the clear.
    ///
    /// # Errors
    ///
    /// The system's.
    pub async fn connect(&self) -> Result<WebClient> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        Ok(WebClient { socket, unread: Vec::new() })
    }

    /// What one request on a connection of its own is answered: see [`WebClient::ask`].
    ///
    /// # Errors
    ///
    /// There is no answer.
    pub async fn ask(&self, request: &str) -> Result<Answered> {
        self.connect().await?.ask(request).await
    }
}

impl std::ops::Deref for WebNode {
    type Target = Rows;

    fn deref(&self) -> &Rows {
        &self.rows
    }
}

/// A client that says what it is told, octet by octet.
#[derive(Debug)]
pub struct WebClient {
    /// Its connection.
    pub socket: TcpStream,
    unread: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Its status.
    pub status: u16,
    /// Its head, without the empty line.
    pub head: String,
    /// Its body, decoded.
    pub body: String,
}

impl Answered {
    /// The value of a field, the first of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl WebClient {
    /// Says octets.
    ///
    /// # Errors
    ///
    /// The connection's.
    pub async fn say(&mut self, octets: &[u8]) -> Result<()> {
        Ok(self.socket.write_all(octets).await?)
    }

    /// Says a request, its lines separated by `\n`, which go out as CRLF, and hears the answer.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn ask(&mut self, request: &str) -> Result<Answered> {
        self.say(request.replace('\n', "\r\n").as_bytes()).await?;
        self.hear().await
    }

    /// Hears the next answer, with its body; informational ones are passed over.
    ///
    /// # Errors
    ///
    /// The connection ends before it does, or it takes too long.
    pub async fn hear(&mut self) -> Result<Answered> {
        loop {
            let head = self.head().await?;
            let status = head.get(9..12).context("no status")?.parse()?;
            if status == 100 || status == 103 {
                continue;
            }
            let mut answered = Answered { status, head, body: String::new() };
            let chunked = answered.field("transfer-encoding") == Some("chunked");
            let length = answered.field("content-length").and_then(|text| text.parse().ok());
            answered.body = match (chunked, length) {
                (true, _) => self.chunks().await?,
                (false, Some(length)) => {
                    String::from_utf8_lossy(&self.octets(length).await?).into_owned()
                }
                (false, None) => String::new(),
            };
            return Ok(answered);
        }
    }

    /// Hears the next head, and nothing of its body.
    ///
    /// # Errors
    ///
    /// As [`Self::hear`].
    pub async fn head(&mut self) -> Result<String> {
        self.until(b"\r\n\r\n").await.map(|head| head.trim_end().to_owned())
    }

    /// Hears up to and with what ends with `end`.
    ///
    /// # Errors
    ///
    /// As [`Self::hear`].
    pub async fn until(&mut self, end: &[u8]) -> Result<String> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                let head: Vec<u8> = self.unread.drain(..at + end.len()).collect();
                return Ok(String::from_utf8_lossy(&head).into_owned());
            }
            self.fill().await?;
        }
    }

    async fn octets(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.unread.len() < count {
            self.fill().await?;
        }
        Ok(self.unread.drain(..count).collect())
    }

    async fn chunks(&mut self) -> Result<String> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n").await?;
            let size = usize::from_str_radix(line.trim().split(';').next().unwrap_or(""), 16)?;
            if size == 0 {
                while self.until(b"\r\n").await? != "\r\n" {}
                return Ok(String::from_utf8_lossy(&body).into_owned());
            }
            body.extend(self.octets(size).await?);
            self.octets(2).await?;
        }
    }

    async fn fill(&mut self) -> Result<()> {
        let read = timeout(PATIENCE, self.socket.read_buf(&mut self.unread)).await;
        if read.context("nothing is heard")?? == 0 {
            bail!("closed after {:?}", String::from_utf8_lossy(&self.unread));
        }
        Ok(())
    }

    /// Waits until the connection is closed; what comes before is passed over.
    ///
    /// # Errors
    ///
    /// It stays open.
    pub async fn closed(&mut self) -> Result<()> {
        let closed = async {
            let mut scratch = [0; 4096];
            while self.socket.read(&mut scratch).await.is_ok_and(|read| read > 0) {}
        };
        timeout(PATIENCE, closed).await.context("it stays open")
    }
}

/// `Authorization` of an account of [`DOMAIN`] with that password.
pub fn basic(local: &str, password: &str) -> String {
    let text = BASE64_STANDARD.encode(format!("{local}@{DOMAIN}:{password}"));
    format!("Authorization: Basic {text}")
}

/// A GET by somebody of [`DOMAIN`] with the right password.
pub fn get(path: &str, local: &str) -> String {
    let authorization = basic(local, crate::login_backend::PASSWORD);
    format!("GET {path} HTTP/1.1\nHost: mail.example.org\n{authorization}\n\n")
}

/// A moment for something that must not happen.
pub async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}
