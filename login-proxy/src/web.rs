//! HTTP (HTP-1 … HTP-10): JMAP, CalDAV, CardDAV, web sites, routed by each request and not by connection.
//!
//! hyper speaks with clients, in HTTP/1.1 and HTTP/2 as they have agreed by ALPN, and with backends, in
//! HTTP/1.1. What a request is allowed to be is checked in [`head`]; [`exchange`] leads it from its rule
//! through its account to its owner and back; connections to backends are kept in [`pool`]; bodies are
//! streamed through [`body`]. What we answer ourselves is in [`answers`].
//!
//! What is absent: a connection that belongs to a backend; a request without a rule; a stream that outlives
//! the move of its account.

mod account;
mod activity;
mod answers;
mod ask;
mod body;
mod codes;
mod discovery;
mod exchange;
mod fault;
mod flight;
mod head;
mod link;
mod passing;
mod pool;
mod tunnel;
mod urls;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use shared::config::{LoginConfig, NamesConfig};
use shared::lifecycle::Lifecycle;
use shared::listener::{Accepted, Refused, Seat};
use shared::ownership::Ownership;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::rustls::{ProtocolVersion, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsStream};

use self::activity::Activity;
pub use self::answers::{Published, published};
use self::codes::Codes;
use self::discovery::Discovery;
use self::link::{Leg, Link};
use self::pool::Pool;
use crate::login::Shared;

/// Most fields of a request.
const MAX_FIELDS: usize = 128;
/// Requests of one HTTP/2 connection at the same time.
const MAX_STREAMS: u32 = 100;
/// What a stream, and a connection, of HTTP/2 may have sent ahead, in octets.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// What of an answer waits for a stream's window, in octets.
const SEND_BUFFER: usize = 64 * 1024;
/// How often a silent peer is asked whether it is there, in HTTP/2.
const PING: Duration = Duration::from_mins(1);

/// What every request of one listener works with.
#[derive(Debug)]
pub struct Context {
    /// Who owns each account.
    pub ownership: Arc<Ownership>,
    /// What it shares with the other listeners of the process.
    pub shared: Shared,
    /// Tasks and their end.
    pub lifecycle: Lifecycle,
    /// Limits, delays and rules.
    pub rules: LoginConfig,
    /// How logins lead to accounts.
    pub names: NamesConfig,
    /// Certificates, where TLS is spoken.
    pub tls: Option<Arc<ServerConfig>>,
    /// Our name among proxies (RFC 9110 §7.6.3).
    pub via: Box<str>,
    /// What programs that configure themselves are told.
    pub published: Published,
    /// What all HTTP of the process has in common.
    pub common: Common,
}

/// What all HTTP of a process has in common, whatever its configuration.
#[derive(Debug, Clone)]
pub struct Common {
    pool: Arc<Pool>,
    codes: Arc<Codes>,
    discovery: Arc<Discovery>,
}

/// A client's connection.
#[derive(Debug)]
struct Client {
    /// Whom it is of: the peer, or whom a PROXY header names.
    address: SocketAddr,
    /// The address of ours that it came to.
    local: SocketAddr,
    /// A trusted proxy that has named nobody.
    unnamed: bool,
    /// The socket's other end.
    peer: IpAddr,
    secured: bool,
    /// The name it asked for by TLS.
    sni: Option<Box<str>>,
    tls_version: Option<&'static str>,
    activity: Arc<Activity>,
    /// Connections to backends that are bound to this client.
    pool: OnceLock<Arc<Pool>>,
    _seat: Seat,
}

impl Common {
    /// Nothing is kept yet.
    pub fn new(lifecycle: &Lifecycle) -> Self {
        let pool = Pool::new(lifecycle.clone());
        lifecycle.spawn_chore("http pool", Arc::clone(&pool).tend());
        Self { pool, codes: Arc::default(), discovery: Arc::default() }
    }
}

impl Client {
    fn own_pool(&self, cx: &Context) -> Arc<Pool> {
        Arc::clone(self.pool.get_or_init(|| Pool::new(cx.lifecycle.clone())))
    }
}

/// The same certificates, for clients that choose between HTTP/2 and HTTP/1.1.
pub fn with_alpn(tls: &ServerConfig) -> Arc<ServerConfig> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(tls)
}

/// What a connection over the limits is told.
pub fn full(_: Refused) -> Vec<u8> {
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        .into()
}

/// Our name among proxies: of letters that a `Via` may have.
pub fn pseudonym(node: &str) -> Box<str> {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '-' };
    format!("mailshift-{}", node.chars().map(plain).collect::<String>()).into()
}

/// Serves one client's connection to its end. Each request goes by what `current` is at its beginning.
pub async fn serve(current: Arc<ArcSwap<Context>>, accepted: Accepted) {
    let cx = current.load_full();
    let Accepted { socket, client: address, local, unnamed, seat } = accepted;
    let Ok(peer) = socket.peer_addr() else { return };
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let mut client = Client {
        address,
        local,
        unnamed,
        peer: peer.ip(),
        secured: false,
        sni: None,
        tls_version: None,
        activity: Activity::new(),
        pool: OnceLock::new(),
        _seat: seat,
    };
    let patience = cx.rules.web.body_timeout;
    let mut speaks_h2 = false;
    let leg = match &cx.tls {
        None => Leg::Plain(socket),
        Some(tls) => {
            let handshake = TlsAcceptor::from(Arc::clone(tls)).accept(socket);
            let accepted = tokio::select! {
                accepted = timeout(cx.rules.web.head_timeout, handshake) => accepted,
                () = cx.lifecycle.stop().cancelled() => return,
            };
            let stream = match accepted {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(client = %address, %error, "no TLS");
                    return;
                }
                Err(_) => {
                    tracing::debug!(client = %address, "no TLS within the time allowed");
                    return;
                }
            };
            let (_, tls) = stream.get_ref();
            client.secured = true;
            client.sni = tls.server_name().map(Into::into);
            client.tls_version = tls.protocol_version().map(version);
            speaks_h2 = tls.alpn_protocol() == Some(b"h2");
            Leg::Tls(Box::new(TlsStream::Server(stream)))
        }
    };
    let io = TokioIo::new(Link::new(leg, patience));
    let client = Arc::new(client);
    if speaks_h2 {
        Box::pin(serve_h2(current, cx, client, io)).await;
    } else {
        Box::pin(serve_h1(current, cx, client, io)).await;
    }
}

fn version(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "TLS",
    }
}

async fn serve_h1(
    current: Arc<ArcSwap<Context>>,
    cx: Arc<Context>,
    client: Arc<Client>,
    io: TokioIo<Link>,
) {
    let web = &cx.rules.web;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // It counts from the end of the request before.
        .header_read_timeout(web.keepalive.max(web.head_timeout))
        .max_headers(MAX_FIELDS)
        .max_header_size(web.max_header_size)
        .max_buf_size(web.max_header_size.max(64 * 1024));
    let service = service(current, &client);
    let connection = builder.serve_connection(io, service_fn(service)).with_upgrades();
    tokio::pin!(connection);
    drive(&cx, &client, connection, http1::UpgradeableConnection::graceful_shutdown).await;
}

async fn serve_h2(
    current: Arc<ArcSwap<Context>>,
    cx: Arc<Context>,
    client: Arc<Client>,
    io: TokioIo<Link>,
) {
    let header_list = u32::try_from(cx.rules.web.max_header_size).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(header_list)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(cx.rules.web.head_timeout);
    let service = service(current, &client);
    let connection = builder.serve_connection(io, service_fn(service));
    tokio::pin!(connection);
    drive(&cx, &client, connection, http2::Connection::graceful_shutdown).await;
}

type Answering =
    Pin<Box<dyn Future<Output = Result<http::Response<body::Answer>, Infallible>> + Send>>;

fn service(
    current: Arc<ArcSwap<Context>>,
    client: &Arc<Client>,
) -> impl Fn(http::Request<Incoming>) -> Answering + use<> {
    let client = Arc::clone(client);
    move |request| {
        let (cx, client) = (current.load_full(), Arc::clone(&client));
        // In a box, which is there for as long as a request is.
        Box::pin(async move { Ok(exchange::exchange(cx, client, request).await) })
    }
}

/// Drives a connection until it ends, is idle for too long, or the service stops.
async fn drive<C>(
    cx: &Context,
    client: &Client,
    mut connection: Pin<&mut C>,
    say_goodbye: impl Fn(Pin<&mut C>),
) where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let web = &cx.rules.web;
    let mut is_ending = false;
    loop {
        let idle_until = client.activity.idle_until(web.head_timeout, web.keepalive);
        let until = match idle_until {
            // What is said last may be under way still, for as long as somebody takes it.
            Some(_) if is_ending => client.activity.stuck_at(web.body_timeout),
            Some(idle) => Some(idle),
            // While something is in flight it is only looked whether it goes on.
            None => client.activity.stuck_at(cx.rules.idle_timeout),
        };
        let now = Instant::now();
        let again = now + web.keepalive;
        let until = until.unwrap_or(again);
        if until <= now {
            // By HTTP/2 a client can keep a stream from its window for ever, and answer pings.
            if is_ending || idle_until.is_none() {
                return;
            }
            say_goodbye(connection.as_mut());
            is_ending = true;
            continue;
        }
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(client = %client.address, %error, "connection ended");
                }
                return;
            }
            // Meanwhile something may have begun or ended.
            () = sleep_until(until.min(again)) => {}
            () = cx.lifecycle.draining().cancelled(), if !is_ending => {
                // What runs goes on; the next request is another process'.
                say_goodbye(connection.as_mut());
                is_ending = true;
            }
            () = cx.lifecycle.end().cancelled() => return,
        }
    }
}
