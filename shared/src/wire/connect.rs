//! Connecting to a backend: TCP to the address that is there first, the client's address (PROXY), implicit
//! TLS.
//!
//! STARTTLS and XCLIENT are words of the protocols and said by them, on the wire made here.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::race::{Dialed, dial};
use super::{Deadlines, Wire, WireError};
use crate::backend::{BackendTls, Endpoint, Identity};
use crate::config::Bind;
use crate::proxy_protocol::{self, Extensions};
use crate::reach::Trial;
use crate::resolver::ResolveError;

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

/// A connection that was made, and by what its server is to prove itself.
#[derive(Debug)]
pub struct Connected {
    /// The connection; its TLS is up if it is implicit.
    pub wire: Wire,
    /// How it is secured, with the name of the host that it leads to.
    pub tls: BackendTls,
    /// To be told what becomes of the connection, until the backend has answered.
    pub trial: Trial,
}

/// Why a backend could not be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its name could not be resolved.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The configured name.
        host: Box<str>,
        /// What the resolver said.
        source: ResolveError,
    },
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
    /// Every address has failed again and again, and it is not time for this connection to try one.
    #[error("every address of {endpoint} is down; one is tried again in {again:.1?}")]
    Down {
        /// The endpoint's places.
        endpoint: Box<str>,
        /// When one may be tried.
        again: Duration,
    },
    /// It had not answered yet when others found that it does not.
    #[error("{address} went down while it was waited for")]
    WentDown {
        /// The address connected to.
        address: SocketAddr,
    },
    /// It would be ourselves (NET-9).
    #[error("the backend {host} is this very service: {address} is its own listener {listener}")]
    Own {
        /// The configured place.
        host: Box<str>,
        /// Its address.
        address: SocketAddr,
        /// Where we listen.
        listener: Bind,
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
            Self::Timeout(_) | Self::Down { .. } | Self::WentDown { .. } | Self::Own { .. } => {
                false
            }
        }
    }
}

impl Wire {
    /// Connects to `endpoint`: resolves its names and races their addresses, all within its connect
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
    ) -> Result<Connected, ConnectError> {
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
    ) -> Result<Connected, ConnectError> {
        let mut passed_over = Vec::new();
        let mut hurried = true;
        loop {
            let dialed = match dial(endpoint, deadlines.until, &passed_over).await {
                Ok(dialed) => dialed,
                // No other is there: those that are slow get all their time after all.
                Err(_) if !passed_over.is_empty() => {
                    passed_over.clear();
                    hurried = false;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (address, hurry) = (dialed.address, hurried && dialed.has_others);
            let limit = hurry.then(|| endpoint.patience() / 2);
            match Self::introduced(endpoint, dialed, limit, client, extensions, deadlines).await {
                Err(_) if hurry => passed_over.push(address),
                introduced => return introduced,
            }
        }
    }

    /// PROXY header and TLS; with a `limit` also the server's first word, all within it: every server here
    /// speaks first, and one that is silent keeps nobody waiting whom another would serve.
    async fn introduced(
        endpoint: &Endpoint,
        dialed: Dialed<'_>,
        limit: Option<Duration>,
        client: Option<Proxied>,
        extensions: Extensions<'_>,
        deadlines: Deadlines,
    ) -> Result<Connected, ConnectError> {
        let Dialed { socket, address, host, mut trial, .. } = dialed;
        let told_first = matches!(endpoint.identity, Identity::Proxy | Identity::ProxyV1);
        if told_first && client.is_some() {
            trial = trial.names_a_client();
        }
        if let Some(limit) = limit {
            trial = trial.within(limit);
        }
        let tls = endpoint.tls_of(host);
        let secured = async {
            let mut wire = Self::new(socket, deadlines)?;
            if let Some(header) = proxy_header(endpoint, client, extensions) {
                wire.say(header).await?;
            }
            match &tls {
                BackendTls::Implicit(config, name) => {
                    wire.connect_tls(config.clone(), name.clone()).await?;
                }
                BackendTls::Plain | BackendTls::StartTls(..) => {}
            }
            if limit.is_some() {
                wire.readable().await?;
                if wire.input.is_empty() {
                    return Err(WireError::Closed);
                }
            }
            Ok(wire)
        };
        let secured = async {
            let done = match limit {
                Some(limit) => timeout(limit, secured).await.unwrap_or(Err(WireError::Deadline)),
                None => secured.await,
            };
            done.map_err(|source| ConnectError::Secure { address, source })
        };
        let (wire, trial) = trial.cover(secured).await?;
        Ok(Connected { wire, tls, trial })
    }
}

/// What an endpoint is told before anything else, where it is told clients that way.
fn proxy_header(
    endpoint: &Endpoint,
    client: Option<Proxied>,
    extensions: Extensions<'_>,
) -> Option<Vec<u8>> {
    match endpoint.identity {
        Identity::Proxy => {
            let wanted = endpoint.proxy_extensions;
            let extensions = Extensions {
                authority: extensions.authority.filter(|_| wanted.authority),
                unique_id: extensions.unique_id.filter(|_| wanted.unique_id),
                tls: extensions.tls.filter(|_| wanted.tls),
            };
            Some(proxy_protocol::encode(client, extensions))
        }
        Identity::ProxyV1 => Some(proxy_protocol::encode_v1(client)),
        Identity::None
        | Identity::Xclient
        | Identity::Xforward
        | Identity::DovecotId
        | Identity::Forwarded => None,
    }
}

/// A socket to a backend, for what is no [`Wire`].
#[derive(Debug)]
pub struct Reached {
    /// The socket; a PROXY header was sent where the endpoint wants one.
    pub socket: TcpStream,
    /// How it is to be secured, with the name of the host that it leads to.
    pub tls: BackendTls,
    /// Its address.
    pub address: SocketAddr,
    /// To be told what becomes of the connection.
    pub trial: Trial,
}

/// Connects to `endpoint` as [`Wire::connect_telling`] does, but for TLS.
///
/// # Errors
///
/// A [`ConnectError`].
pub async fn connect_socket(
    endpoint: &Endpoint,
    client: Option<Proxied>,
    extensions: Extensions<'_>,
    until: Instant,
) -> Result<Reached, ConnectError> {
    let Dialed { mut socket, address, host, mut trial, .. } =
        dial(endpoint, Some(until), &[]).await?;
    let failed = |source| ConnectError::Secure { address, source };
    socket.set_nodelay(true).and_then(|()| keep_alive(&socket)).map_err(|e| failed(e.into()))?;
    if let Some(header) = proxy_header(endpoint, client, extensions) {
        trial = trial.names_a_client();
        let written = timeout_at(until, socket.write_all(&header));
        let done = match written.await {
            Ok(done) => done.map_err(WireError::from),
            Err(_) => Err(WireError::Deadline),
        };
        done.map_err(failed)?;
    }
    Ok(Reached { socket, tls: endpoint.tls_of(host), address, trial })
}

/// Has the kernel probe a silent peer.
pub(super) fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(socket).set_tcp_keepalive(&probes)
}
