//! Connecting to a backend: name to addresses, TCP, the client's address (PROXY), implicit TLS.
//!
//! STARTTLS and XCLIENT are words of the protocols and said by them, on the wire made here.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::{Deadlines, Wire, WireError};
use crate::backend::{BackendTls, Endpoint, Identity};
use crate::proxy_protocol::{self, Extensions};

/// A connection that is silent for this long is probed, so that a vanished peer is noticed.
const KEEPALIVE_TIME: Duration = Duration::from_mins(2);
/// Time between probes; after four without an answer the connection is over.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBES: u32 = 4;

/// The client for whom a backend is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxied {
    /// The client's address.
    pub client: SocketAddr,
    /// The address of ours that it connected to.
    pub local: SocketAddr,
}

/// Why a backend could not be connected to. Always a fault to be answered temporarily.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its name could not be resolved.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The configured name.
        host: Box<str>,
        /// What the resolver said.
        source: io::Error,
    },
    /// Its name has no address.
    #[error("{0} has no address")]
    NoAddress(Box<str>),
    /// Nothing answered in time.
    #[error("no connection to {0} within the time allowed")]
    Timeout(Box<str>),
    /// Every address failed; this is the last one's failure.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The last address tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Connected, but the PROXY header or the TLS handshake failed.
    #[error("{address}: {source}")]
    Secure {
        /// The address connected to.
        address: SocketAddr,
        /// What failed.
        source: WireError,
    },
}

impl ConnectError {
    /// True for a failure that may be gone a moment later, such as a server that starts again. One that took
    /// its whole time, or a certificate that is not the one, will not be.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Resolve { .. } | Self::Connect { .. } => true,
            Self::Secure { source, .. } => matches!(source, WireError::Closed | WireError::Io(_)),
            Self::NoAddress(_) | Self::Timeout(_) => false,
        }
    }
}

impl Wire {
    /// Connects to `endpoint`: resolves its name, tries each address, all within its connect
    /// timeout; then writes a PROXY header if it is told clients that way (LOCAL without a client),
    /// and handshakes if its TLS is implicit. For [`BackendTls::StartTls`] the caller says the
    /// protocol's command and then calls [`Wire::connect_tls`].
    ///
    /// # Errors
    ///
    /// A [`ConnectError`].
    pub async fn connect(
        endpoint: &Endpoint,
        client: Option<Proxied>,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        Self::connect_telling(endpoint, client, Extensions::default(), deadlines).await
    }

    /// As [`Self::connect`]; a PROXY header of version 2 also says what of `extensions` the endpoint is to
    /// be told.
    ///
    /// # Errors
    ///
    /// A [`ConnectError`].
    pub async fn connect_telling(
        endpoint: &Endpoint,
        client: Option<Proxied>,
        extensions: Extensions<'_>,
        deadlines: Deadlines,
    ) -> Result<Self, ConnectError> {
        let (socket, address) = dial(endpoint, deadlines.until).await?;
        let secured = async {
            let mut wire = Self::new(socket, deadlines)?;
            match endpoint.identity {
                Identity::Proxy => {
                    let wanted = endpoint.proxy_extensions;
                    let extensions = Extensions {
                        authority: extensions.authority.filter(|_| wanted.authority),
                        unique_id: extensions.unique_id.filter(|_| wanted.unique_id),
                        tls: extensions.tls.filter(|_| wanted.tls),
                    };
                    wire.say(proxy_protocol::encode(client, extensions)).await?;
                }
                Identity::ProxyV1 => wire.say(proxy_protocol::encode_v1(client)).await?,
                Identity::None | Identity::Xclient | Identity::DovecotId => {}
            }
            match &endpoint.tls {
                BackendTls::Implicit(config, name) => {
                    wire.connect_tls(config.clone(), name.clone()).await?;
                }
                BackendTls::Plain | BackendTls::StartTls(..) => {}
            }
            Ok(wire)
        };
        secured.await.map_err(|source| ConnectError::Secure { address, source })
    }
}

/// A TCP connection to the first address that takes it, each given a fair share of the time left.
async fn dial(
    endpoint: &Endpoint,
    until: Option<Instant>,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let host = || endpoint.host.clone();
    let late = || ConnectError::Timeout(format!("{}:{}", endpoint.host, endpoint.port).into());
    let now = Instant::now();
    let deadline = now.checked_add(endpoint.connect_timeout).or(until).ok_or_else(late)?;
    let deadline = until.map_or(deadline, |until| until.min(deadline));

    let resolved = timeout_at(deadline, lookup_host((&*endpoint.host, endpoint.port))).await;
    let addresses = resolved
        .map_err(|_| late())?
        .map_err(|source| ConnectError::Resolve { host: host(), source })?
        .collect::<Vec<_>>();

    let mut failure = ConnectError::NoAddress(host());
    for (tried, address) in addresses.iter().copied().enumerate() {
        let now = Instant::now();
        let left = u32::try_from(addresses.len().saturating_sub(tried)).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(now) / left.max(1);
        match timeout_at(now + share, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return Ok((socket, address)),
            Ok(Err(source)) => failure = ConnectError::Connect { address, source },
            Err(_) => failure = late(),
        }
    }
    Err(failure)
}

/// Has the kernel probe a silent peer.
pub(super) fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(socket).set_tcp_keepalive(&probes)
}
