//! Connections to backends, kept for the next request (HTP-1).
//!
//! A backend sees each request's own authorization, so a connection may carry requests of several accounts;
//! one that a PROXY header has bound to a client is kept by that client's connection alone. What was cut in
//! the middle is never kept.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use shared::backend::{BackendName, BackendTls, Endpoint};
use shared::lifecycle::Lifecycle;
use shared::proxy_protocol::Extensions;
use shared::wire::{ConnectError, Proxied, WireError, connect_socket};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{TlsConnector, TlsStream};
use tokio_util::sync::CancellationToken;

use super::body::Sent;
use super::link::{Leg, Link};

/// Connections that are kept for one backend.
const MAX_IDLE: usize = 128;
/// How long one is kept: less than servers wait.
const IDLE: Duration = Duration::from_secs(20);
/// A connection whose answer has just ended is free in a moment.
const SOON: Duration = Duration::from_millis(20);
/// Longest head of an answer, in octets, and most fields.
const MAX_ANSWER_HEAD: usize = 256 * 1024;
const MAX_ANSWER_FIELDS: usize = 256;

/// Connections that wait for requests.
#[derive(Debug)]
pub(super) struct Pool {
    lifecycle: Lifecycle,
    idle: Mutex<HashMap<BackendName, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection to a backend. Dropped, it is closed at once.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Sent>,
    address: SocketAddr,
    /// Cuts it.
    cut: CancellationToken,
    /// It is closed.
    closed: CancellationToken,
    /// It has answered before: a server may close it at any moment.
    pub(super) is_used: bool,
}

impl Pool {
    pub(super) fn new(lifecycle: Lifecycle) -> Arc<Self> {
        Arc::new(Self { lifecycle, idle: Mutex::default() })
    }

    /// One that is free, if there is one.
    pub(super) async fn take(
        &self,
        backend: &BackendName,
        endpoint: &Endpoint,
    ) -> Option<Connection> {
        loop {
            let mut connection = self.pop(backend)?;
            let fits = endpoint.reach.is_up(connection.address);
            if fits && matches!(timeout(SOON, connection.sender.ready()).await, Ok(Ok(()))) {
                connection.is_used = true;
                return Some(connection);
            }
        }
    }

    fn pop(&self, backend: &BackendName) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle.get_mut(backend)?;
        // The one used last: the others grow old and go.
        while let Some(Idle { connection, since }) = kept.pop() {
            if !connection.sender.is_closed() && since.elapsed() < IDLE {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps one whose answer has ended.
    pub(super) fn give(&self, backend: &BackendName, connection: Connection) {
        if connection.sender.is_closed() || self.lifecycle.stop().is_cancelled() {
            return;
        }
        let now = Instant::now();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match idle.get_mut(backend) {
            Some(kept) => kept,
            None => idle.entry(backend.clone()).or_default(),
        };
        let old = kept.iter().take_while(|one| now - one.since >= IDLE).count();
        drop(kept.drain(..old));
        if kept.len() < MAX_IDLE {
            kept.push(Idle { connection, since: now });
        }
    }

    /// Closes those that have grown old, and at a stop all, until the service ends.
    pub(super) async fn tend(self: Arc<Self>) {
        let stop = self.lifecycle.stop().clone();
        loop {
            let stopped = timeout(IDLE, stop.cancelled()).await.is_ok();
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if stopped {
                idle.clear();
                return;
            }
            let now = Instant::now();
            for kept in idle.values_mut() {
                kept.retain(|one| now - one.since < IDLE);
            }
            idle.retain(|_, kept| !kept.is_empty());
        }
    }

    /// A new one.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        client: Proxied,
        extensions: Extensions<'_>,
        until: Instant,
        patience: Duration,
    ) -> Result<Connection, ConnectError> {
        let reached = connect_socket(endpoint, Some(client), extensions, until).await?;
        let (address, socket) = (reached.address, reached.socket);
        let failed = |source| ConnectError::Secure { address, source };
        let secured = async {
            let leg = match reached.tls {
                BackendTls::Implicit(config, name) => {
                    let handshake = TlsConnector::from(config).connect(name, socket);
                    let stream = match timeout_at(until, handshake).await {
                        Ok(stream) => stream.map_err(WireError::from),
                        Err(_) => Err(WireError::Deadline),
                    };
                    Leg::Tls(Box::new(TlsStream::Client(stream.map_err(failed)?)))
                }
                // The configuration has no STARTTLS for HTTP.
                BackendTls::Plain | BackendTls::StartTls(..) => Leg::Plain(socket),
            };
            Ok::<_, ConnectError>(leg)
        };
        let leg = reached.trial.judge(secured).await?;
        let io = TokioIo::new(Link::new(leg, patience));
        let mut builder = http1::Builder::new();
        builder.max_header_size(MAX_ANSWER_HEAD).max_headers(MAX_ANSWER_FIELDS);
        let handshake = builder.handshake(io).await;
        let (sender, connection) =
            handshake.map_err(|error| failed(WireError::Io(std::io::Error::other(error))))?;
        let (cut, closed) = (CancellationToken::new(), CancellationToken::new());
        let (cutting, closing) = (cut.clone(), closed.clone().drop_guard());
        self.lifecycle.spawn_chore("http backend", async move {
            let mut connection = Box::pin(connection.with_upgrades());
            tokio::select! {
                // What became of it is told to whoever waits for an answer.
                _ = &mut connection => {}
                () = cutting.cancelled() => {}
            }
            drop(connection);
            drop(closing);
        });
        Ok(Connection { sender, address, cut, closed, is_used: false })
    }
}

impl Connection {
    /// To send a request by.
    pub(super) fn sender(&mut self) -> &mut SendRequest<Sent> {
        &mut self.sender
    }

    /// Cuts it, whoever has it.
    pub(super) fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Told when it is closed: nothing more is sent then.
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}
