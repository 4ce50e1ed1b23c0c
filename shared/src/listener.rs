//! Listeners: where they bind, how many connections they take, who the client is (PROXY protocol).
//!
//! A connection that is accepted here is handed over as a socket with its client's address; what is
//! spoken on it is the service's business. Accepting never ends because of an error: out of descriptors
//! it waits a little, and says so now and then.

mod bind;
mod sockets;

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

pub use bind::BindError;
pub use sockets::Sockets;

use crate::config::{ListenerConfig, ProxyMode};
use crate::lifecycle::Lifecycle;
use crate::proxy_protocol::{self, Prefix};
use crate::seats::{Full, Seats};

/// Longest wait for a PROXY header (the same as Postfix and Dovecot give it, about).
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Where the header is optional, a client of a server that speaks first waits to be greeted; so silence
/// of a trusted peer for this long means that there is no header. Clients elsewhere do not wait at all.
const OPTIONAL_HEADER_WAIT: Duration = Duration::from_millis(200);
/// Longest PROXY header taken; version 2 with all its extensions stays far below.
const MAX_HEADER: usize = 2048;
/// First and longest wait after a failed accept, such as one for want of descriptors.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// A failing accept, or a connection over the limits, is said this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Bound sockets with one set of rules.
#[derive(Debug)]
pub struct Listener {
    /// Until they are served.
    sockets: Mutex<Vec<Arc<TcpListener>>>,
    rules: Arc<Rules>,
}

#[derive(Debug)]
struct Rules {
    proxy: ArcSwap<Proxy>,
    seats: Arc<Seats<IpAddr>>,
    complaints: Complaints,
}

#[derive(Debug)]
struct Proxy {
    mode: ProxyMode,
    trusted: Vec<IpNet>,
}

/// A connection's place, given back when dropped.
pub type Seat = crate::seats::Seat<IpAddr>;

/// When something that may happen thousands of times a second was last said, and how often it was
/// left unsaid since.
#[derive(Debug, Default)]
struct Complaints(Mutex<(Option<Instant>, u64)>);

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The socket; nothing was read from it but a PROXY header.
    pub socket: TcpStream,
    /// The client's address: the socket's, or what a trusted PROXY header says.
    pub client: SocketAddr,
    /// The address the client connected to, likewise.
    pub local: SocketAddr,
    /// The client is a trusted proxy that has named nobody: who is behind it is not known.
    pub unnamed: bool,
    /// The connection's place among those allowed. Dropped when the connection has ended.
    pub seat: Seat,
}

/// Why a connection was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many connections as allowed are open.
    #[error("too many connections")]
    TooMany,
    /// As many connections as allowed are open from this address.
    #[error("too many connections from this address")]
    TooManyFromAddress,
}

impl From<Full> for Refused {
    fn from(full: Full) -> Self {
        match full {
            Full::InAll => Self::TooMany,
            Full::ForKey => Self::TooManyFromAddress,
        }
    }
}

/// Why a connection's PROXY header was not taken; it is closed without a word.
#[derive(Debug, thiserror::Error)]
enum HeaderFault {
    #[error("not a trusted proxy, and a PROXY header is required here")]
    Untrusted,
    #[error("no PROXY header in time")]
    Missing,
    #[error("PROXY header of more than {MAX_HEADER} octets")]
    TooLong,
    #[error(transparent)]
    Malformed(#[from] proxy_protocol::HeaderError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Listener {
    /// Binds every address of `config`.
    ///
    /// # Errors
    ///
    /// A [`BindError`] that names the address.
    pub fn bind(config: &ListenerConfig) -> Result<Self, BindError> {
        Self::bind_among(config, &Sockets::default())
    }

    /// [`Self::bind`], where sockets may have been given.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    pub fn bind_among(config: &ListenerConfig, among: &Sockets) -> Result<Self, BindError> {
        let mut sockets = Vec::new();
        for bind in &config.binds {
            sockets.extend(among.open(*bind)?);
        }
        let rules = Rules {
            proxy: ArcSwap::from_pointee(Proxy::of(config)),
            seats: Seats::new(config.max_connections, config.max_per_address),
            complaints: Complaints::default(),
        };
        Ok(Self { sockets: Mutex::new(sockets), rules: Arc::new(rules) })
    }

    /// Takes the limits and the PROXY protocol of `config` for connections from now on.
    pub fn reload(&self, config: &ListenerConfig) {
        self.rules.proxy.store(Arc::new(Proxy::of(config)));
        self.rules.seats.limit(config.max_connections, config.max_per_address);
    }

    /// The addresses that are bound, until they are served.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Accepts until `lifecycle` drains, with a task for each connection. `refusal` is what a connection
    /// over the limits is told, in the protocol's words. A panic in a session ends that session only.
    pub fn serve<S, F>(&self, lifecycle: &Lifecycle, refusal: fn(Refused) -> Vec<u8>, session: S)
    where
        S: Fn(Accepted) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let sockets =
            std::mem::take(&mut *self.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        for socket in sockets {
            let (rules, session) = (Arc::clone(&self.rules), session.clone());
            let tasks = lifecycle.clone();
            lifecycle.spawn_listener("listener", accept(socket, rules, tasks, refusal, session));
        }
    }
}

impl Proxy {
    fn of(config: &ListenerConfig) -> Self {
        Self { mode: config.proxy, trusted: config.proxy_trusted.clone() }
    }
}

impl Complaints {
    /// How often it was left unsaid, if it is to be said now.
    fn due(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unsaid) = &mut *state;
        if last.is_some_and(|at| at.elapsed() < COMPLAIN_EVERY) {
            *unsaid = unsaid.saturating_add(1);
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(unsaid))
    }
}

async fn accept<S, F>(
    socket: Arc<TcpListener>,
    rules: Arc<Rules>,
    lifecycle: Lifecycle,
    refusal: fn(Refused) -> Vec<u8>,
    session: S,
) where
    S: Fn(Accepted) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut back_off = BACK_OFF.0;
    let complaints = Complaints::default();
    loop {
        let accepted = tokio::select! {
            () = lifecycle.draining().cancelled() => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                back_off = BACK_OFF.0;
                let (rules, session) = (Arc::clone(&rules), session.clone());
                lifecycle.spawn("session", async move {
                    if let Some(accepted) = admit(stream, peer, &rules, refusal).await {
                        session(accepted).await;
                    }
                });
            }
            Err(error) => {
                if let Some(unsaid) = complaints.due() {
                    tracing::error!(%error, unsaid, "cannot accept connections; trying again");
                }
                if lifecycle.draining().run_until_cancelled(sleep(back_off)).await.is_none() {
                    return;
                }
                back_off = back_off.saturating_mul(2).min(BACK_OFF.1);
            }
        }
    }
}

/// Finds out who the client is and gives the connection a seat.
async fn admit(
    mut socket: TcpStream,
    peer: SocketAddr,
    rules: &Rules,
    refusal: fn(Refused) -> Vec<u8>,
) -> Option<Accepted> {
    let peer = canonical(peer);
    let local = canonical(socket.local_addr().ok()?);
    let (client, local, unnamed) = match client_of(&mut socket, peer, rules).await {
        Ok(Some((client, local))) => (client, local, false),
        Ok(None) => (peer, local, is_proxy(peer, rules)),
        Err(error) => {
            tracing::info!(%peer, %error, "connection closed");
            return None;
        }
    };
    match rules.seats.take(network(client.ip())).map_err(Refused::from) {
        Ok(seat) => Some(Accepted { socket, client, local, unnamed, seat }),
        Err(refused) => {
            if let Some(unsaid) = rules.complaints.due() {
                tracing::warn!(%client, error = %refused, unsaid, "connection refused");
            }
            let words = refusal(refused);
            let _ = timeout(HEADER_TIMEOUT, socket.write_all(&words)).await;
            None
        }
    }
}

/// Whether a peer's PROXY header is believed.
fn is_proxy(peer: SocketAddr, rules: &Rules) -> bool {
    let proxy = rules.proxy.load();
    proxy.mode != ProxyMode::Off && proxy.trusted.iter().any(|network| network.contains(&peer.ip()))
}

/// The client's address and ours as it sees it; `None` where the peer itself is the client.
async fn client_of(
    socket: &mut TcpStream,
    peer: SocketAddr,
    rules: &Rules,
) -> Result<Addresses, HeaderFault> {
    let mode = rules.proxy.load().mode;
    let wait = match (mode, is_proxy(peer, rules)) {
        (ProxyMode::Off, _) | (ProxyMode::Optional, false) => return Ok(None),
        (ProxyMode::Required, false) => return Err(HeaderFault::Untrusted),
        (ProxyMode::Optional, true) => OPTIONAL_HEADER_WAIT,
        (ProxyMode::Required, true) => HEADER_TIMEOUT,
    };
    match timeout(wait, first_octet(socket)).await {
        Ok(first) => first?,
        Err(_) if mode == ProxyMode::Optional => return Ok(None),
        Err(_) => return Err(HeaderFault::Missing),
    }
    let header = timeout(HEADER_TIMEOUT, read_header(socket)).await;
    match header.map_err(|_| HeaderFault::Missing)?? {
        Some(addresses) => Ok(addresses),
        None if mode == ProxyMode::Optional => Ok(None),
        None => Err(HeaderFault::Missing),
    }
}

/// Waits until the peer has said something, without taking it.
async fn first_octet(socket: &TcpStream) -> std::io::Result<()> {
    socket.peek(&mut [0]).await.map(drop)
}

/// What a header names: the client and the address it connected to; `None` for the proxy itself (LOCAL).
type Addresses = Option<(SocketAddr, SocketAddr)>;

/// Takes the header off the socket and nothing behind it; `None` when there is none.
async fn read_header(socket: &mut TcpStream) -> Result<Option<Addresses>, HeaderFault> {
    use tokio::io::AsyncReadExt;
    let mut seen = vec![0; MAX_HEADER];
    let mut before = 0;
    loop {
        let count = socket.peek(&mut seen).await?;
        if count == 0 {
            return Err(HeaderFault::Missing);
        }
        let octets = seen.get(..count).unwrap_or_default();
        match proxy_protocol::parse(octets)? {
            Prefix::Absent => return Ok(None),
            Prefix::Header { octets: length, client } => {
                let mut header = vec![0; length];
                socket.read_exact(&mut header).await?;
                return Ok(Some(client.map(|c| (canonical(c.client), canonical(c.local)))));
            }
            Prefix::Incomplete if count >= MAX_HEADER => return Err(HeaderFault::TooLong),
            // Nothing new: a peek of what is there returns at once, so wait a moment for more.
            Prefix::Incomplete if count == before => sleep(Duration::from_millis(5)).await,
            Prefix::Incomplete => before = count,
        }
    }
}

/// What counts as one address: a customer gets a whole /64 of IPv6.
pub fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// An IPv4 client on a dual-stack socket is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_64_of_ipv6_counts_as_one_address() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
