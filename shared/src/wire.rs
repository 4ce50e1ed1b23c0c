//! A peer's connection: socket, TLS, unread and queued octets, deadlines. The one place for each.
//!
//! A [`Wire`] drives a [`Dialogue`] where the peer leads ([`Wire::drive`]) and is spoken on directly
//! where we lead ([`Wire::say`], [`Wire::line`]). Two of them are joined by [`join`].
//!
//! An idle wire owns no buffers: it waits until the socket is ready, then reads and decrypts within
//! its thread's [`scratch`] and keeps only what is left over. A pending write does not stop reading,
//! nor the reverse: two peers that both send first do not block each other, as long as neither is
//! more than [`MAX_UNREAD`] ahead.
//!
//! STARTTLS (RFC 3207, RFC 2595): plaintext that is there when the handshake begins was injected,
//! or its sender is broken. Either way the connection ends, on client and backend legs.

mod connect;
mod join;
mod race;
mod records;
mod scratch;
mod transfer;

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, ServerConfig};

pub use self::connect::{ConnectError, Connected, Proxied, Reached, connect_socket};
pub use self::join::{AnswerGrace, Ended, JoinRules, Joined, Leg, Watch, join};
use self::records::Tls;
pub use self::records::TlsDescription;
use crate::dialogue::{Dialogue, Input, Line, Output, Step, Violation};

/// Most octets a peer may send ahead of what we consume (one record more under TLS).
pub const MAX_UNREAD: usize = 64 * 1024;

/// How long a closed connection is still read, so that our last words are not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);

/// One connection.
pub struct Wire {
    socket: TcpStream,
    tls: Option<Box<Tls>>,
    /// Octets that were read and not consumed.
    pub input: Input,
    /// Octets that were queued and not written.
    pub output: Output,
    /// Longest waits.
    pub deadlines: Deadlines,
    /// The peer's address and ours. Rarely looked at, so not in every joined session's task.
    addresses: Box<(SocketAddr, SocketAddr)>,
    /// For the client's STARTTLS.
    offered: Option<Arc<ServerConfig>>,
    /// The peer will send nothing more.
    ended: bool,
    /// Octets the socket has taken and given, to see progress by.
    sent: u64,
    received: u64,
    /// Octets that came into `input`.
    said: u64,
}

/// Longest waits on a peer.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For the peer's next octets; for a whole TLS handshake.
    pub read: Duration,
    /// For the peer to take some of what we write.
    pub write: Duration,
    /// End of the whole phase, whatever the peer does.
    pub until: Option<Instant>,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer did not speak, or did not read, in time.
    #[error("no progress within the time allowed")]
    Deadline,
    /// The peer closed where an answer was due.
    #[error("connection closed by the peer")]
    Closed,
    /// The peer sent more than anything we could be waiting for.
    #[error("more than {MAX_UNREAD} octets unread")]
    InputFull,
    /// Plaintext came with or after STARTTLS and before the handshake: injected, or a broken peer.
    #[error("plaintext after STARTTLS")]
    PlaintextAfterStartTls,
    /// The TLS handshake or a record failed.
    #[error("TLS: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
    /// The peer broke its protocol.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Wire {
    /// A wire on a connected socket.
    ///
    /// # Errors
    ///
    /// When the socket is not connected any more.
    pub fn new(socket: TcpStream, deadlines: Deadlines) -> Result<Self, WireError> {
        socket.set_nodelay(true)?;
        connect::keep_alive(&socket)?;
        let (peer, local) = (socket.peer_addr()?, socket.local_addr()?);
        Ok(Self {
            socket,
            tls: None,
            input: Input::default(),
            output: Output::default(),
            deadlines,
            addresses: Box::new((canonical(peer), canonical(local))),
            offered: None,
            ended: false,
            sent: 0,
            received: 0,
            said: 0,
        })
    }

    /// The same wire, whose peer and own address a trusted PROXY header named.
    pub fn on_behalf_of(mut self, peer: SocketAddr, local: SocketAddr) -> Self {
        self.speak_for(peer, local);
        self
    }

    /// From now on, the peer and our own address are those that a trusted peer named in its protocol.
    pub fn speak_for(&mut self, peer: SocketAddr, local: SocketAddr) {
        *self.addresses = (canonical(peer), canonical(local));
    }

    /// The peer's address: the client's, where a trusted PROXY header named one. IPv4 addresses are
    /// written as such, also where the socket is an IPv6 one.
    pub fn peer(&self) -> SocketAddr {
        self.addresses.0
    }

    /// Our address on this connection: the one the client connected to, where a PROXY header says so.
    pub fn local(&self) -> SocketAddr {
        self.addresses.1
    }

    /// True once a TLS handshake was completed.
    pub fn is_secured(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| !tls.is_handshaking())
    }

    /// Version and cipher suite, for Received headers and logs.
    pub fn tls_description(&self) -> Option<TlsDescription> {
        self.tls.as_ref()?.description()
    }

    /// The server name the client asked for (RFC 6066 §3).
    pub fn sni(&self) -> Option<&str> {
        self.tls.as_ref()?.name()
    }

    /// True while this wire owns no buffers: nothing is unread, unsent, or half a record.
    pub fn owns_no_buffers(&self) -> bool {
        self.input.is_empty()
            && self.output.is_empty()
            && self.tls.as_ref().is_none_or(|tls| tls.owns_no_buffers())
    }

    /// Sets what a [`Step::StartTls`] is answered with.
    pub fn offer_tls(&mut self, config: Arc<ServerConfig>) {
        self.offered = Some(config);
    }

    /// Runs `dialogue` until it has an event; `None` when either side closed.
    ///
    /// # Errors
    ///
    /// A [`WireError`]; what the dialogue said last was written.
    pub async fn drive<D>(&mut self, dialogue: &mut D) -> Result<Option<D::Event>, WireError>
    where
        D: Dialogue + ?Sized,
    {
        loop {
            match dialogue.step(&mut self.input, &mut self.output) {
                Ok(Step::NeedInput) => {
                    let (unread, full) = (self.input.len(), self.output.is_full());
                    self.flush().await?;
                    if full {
                        continue;
                    }
                    // A write that had to wait may have read on.
                    if self.input.len() == unread && self.fill().await? == 0 {
                        return Ok(None);
                    }
                }
                Ok(Step::StartTls) => {
                    let offered = self.offered.clone().ok_or_else(nothing_offered)?;
                    self.flush().await?;
                    self.accept_tls(offered).await?;
                    dialogue.secured(&mut self.output);
                }
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::Close) => {
                    self.flush().await?;
                    return Ok(None);
                }
                Err(violation) => {
                    self.flush().await?;
                    return Err(violation.into());
                }
            }
        }
    }

    /// Handshakes as the server, within [`Deadlines::read`]. Session tickets of TLS 1.3 are left to be
    /// written together with what is said next: apart, they and delayed ACKs can cost 40 ms.
    ///
    /// # Errors
    ///
    /// [`WireError::PlaintextAfterStartTls`] when something is unread; [`WireError::Closed`],
    /// [`WireError::Deadline`], or TLS's or the socket's failure, after the alert was sent.
    pub async fn accept_tls(&mut self, config: Arc<ServerConfig>) -> Result<(), WireError> {
        self.leave_plaintext()?;
        self.tls = Some(Box::new(Tls::server(&config)?));
        self.handshake().await
    }

    /// Handshakes as the client, within [`Deadlines::read`].
    ///
    /// # Errors
    ///
    /// As [`Self::accept_tls`].
    pub async fn connect_tls(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<(), WireError> {
        self.flush().await?;
        self.leave_plaintext()?;
        let tls = scratch::lend(|scratch| Tls::client(config, name, &mut scratch.outgoing))?;
        self.tls = Some(Box::new(tls));
        self.handshake().await
    }

    /// Reads at least one octet more; 0 when the peer closed, with or without TLS's close_notify
    /// (many old clients leave it out, and every protocol here ends messages by itself).
    ///
    /// # Errors
    ///
    /// [`WireError::Deadline`], [`WireError::InputFull`], or the socket's or TLS's failure.
    pub async fn fill(&mut self) -> Result<usize, WireError> {
        let deadline = self.deadline(self.deadlines.read);
        timeout_at(deadline, poll_fn(|cx| self.poll_fill(cx))).await?
    }

    /// Waits, without a deadline, until the peer speaks or closes; what it says stays unread. For
    /// connections that are kept open: whatever comes there ends their use.
    ///
    /// # Errors
    ///
    /// The socket's or TLS's failure.
    pub async fn readable(&mut self) -> Result<(), WireError> {
        if self.input.is_empty() {
            poll_fn(|cx| self.poll_fill(cx)).await?;
        }
        Ok(())
    }

    /// Waits until the peer has closed its side of the connection, or it is broken, whatever of it is unread.
    pub async fn hung_up(&self) {
        // Of what is waited for with this interest, only the end concerns this socket: nobody registered it for
        // octets that are urgent.
        if !self.ended {
            match self.socket.ready(Interest::PRIORITY).await {
                Ok(ready) if !ready.is_read_closed() => std::future::pending().await,
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Octets that the peer has said so far, TLS's own apart: all that ever came into `input`.
    pub fn said(&self) -> u64 {
        self.said
    }

    /// Writes everything that is queued. While the peer does not read, it is read from, up to
    /// [`MAX_UNREAD`]; so look at `input` before the next [`Self::fill`].
    ///
    /// # Errors
    ///
    /// [`WireError::Deadline`], or the socket's or TLS's failure.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        loop {
            let deadline = self.deadline(self.deadlines.write);
            let before = self.sent;
            let progress = poll_fn(|cx| match self.poll_flush(cx) {
                Poll::Pending if self.sent > before => Poll::Ready(Ok(false)),
                Poll::Pending => match self.poll_read_on(cx) {
                    Ok(()) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                },
                Poll::Ready(result) => Poll::Ready(result.map(|()| true)),
            });
            if timeout_at(deadline, progress).await?? {
                return Ok(());
            }
        }
    }

    /// Queues `octets` and writes everything that is queued.
    ///
    /// # Errors
    ///
    /// As [`Self::flush`].
    pub async fn say(&mut self, octets: impl AsRef<[u8]>) -> Result<(), WireError> {
        self.output.push(octets);
        self.flush().await
    }

    /// Reads one line.
    ///
    /// # Errors
    ///
    /// [`WireError::Closed`] when the peer closed before its end; as [`Self::fill`]; a [`Violation`] when
    /// it is longer than `limit` octets with its line end.
    pub async fn line(&mut self, limit: usize) -> Result<Line, WireError> {
        loop {
            if let Some(line) = self.input.line(limit)? {
                return Ok(line);
            }
            if self.fill().await? == 0 {
                return Err(WireError::Closed);
            }
        }
    }

    /// Whether dropping this wire resets the connection, so that what the peer has not received is
    /// discarded. Otherwise the system goes on delivering it, for minutes, after we have forgotten it.
    ///
    /// # Errors
    ///
    /// The socket's failure.
    pub fn discard_on_drop(&mut self, discard: bool) -> Result<(), WireError> {
        Ok(SockRef::from(&self.socket).set_linger(discard.then_some(Duration::ZERO))?)
    }

    /// Writes what is queued and close_notify, closes our direction, and reads on for a moment so
    /// that a reset does not overtake our last words. Bounded by [`Deadlines::write`].
    pub async fn close(mut self) {
        // Whatever fails here, the connection is over.
        let limit = self.deadlines.write;
        let farewell = async {
            self.flush().await?;
            self.queue_close_notify()?;
            self.flush().await?;
            Ok::<_, WireError>(self.socket.shutdown().await?)
        };
        if !matches!(timeout(limit, farewell).await, Ok(Ok(()))) {
            return;
        }
        let lingered = async {
            while !self.ended {
                self.input.clear();
                poll_fn(|cx| self.poll_fill(cx)).await?;
            }
            Ok::<(), WireError>(())
        };
        let _ = timeout(LINGER, lingered).await;
    }

    fn queue_close_notify(&mut self) -> Result<(), WireError> {
        if let Some(tls) = &mut self.tls {
            scratch::lend(|scratch| tls.close(&mut scratch.outgoing))?;
        }
        Ok(())
    }

    fn deadline(&self, limit: Duration) -> Instant {
        let deadline = later(Instant::now(), limit);
        self.deadlines.until.map_or(deadline, |until| until.min(deadline))
    }

    /// True while octets are under way: queued, or the front of a record without its end.
    fn something_waits(&self) -> bool {
        let waits = |tls: &Tls| !tls.pending.is_empty() || !tls.partial().is_empty();
        !self.output.is_empty() || self.tls.as_deref().is_some_and(waits)
    }

    fn leave_plaintext(&mut self) -> Result<(), WireError> {
        if self.tls.is_some() {
            return Err(rustls::Error::General("TLS within TLS".to_owned()).into());
        }
        if !self.input.is_empty() {
            self.input.clear();
            return Err(WireError::PlaintextAfterStartTls);
        }
        self.offered = None;
        Ok(())
    }

    async fn handshake(&mut self) -> Result<(), WireError> {
        let deadline = self.deadline(self.deadlines.read);
        timeout_at(deadline, poll_fn(|cx| self.poll_handshake(cx))).await?
    }
}

/// `limit` after `from`; a limit beyond the clock's end is as good as thirty years.
fn later(from: Instant, limit: Duration) -> Instant {
    from.checked_add(limit).unwrap_or_else(|| from + Duration::from_hours(30 * 365 * 24))
}

/// An IPv4 client of an IPv6 socket has an IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// A dialogue asked for TLS on a listener that has none.
fn nothing_offered() -> WireError {
    rustls::Error::General("STARTTLS without a configuration".to_owned()).into()
}

impl From<Elapsed> for WireError {
    fn from(_: Elapsed) -> Self {
        Self::Deadline
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tls = self.tls.as_ref().map(|tls| tls.description());
        f.debug_struct("Wire")
            .field("peer", &self.peer())
            .field("tls", &tls)
            .finish_non_exhaustive()
    }
}
