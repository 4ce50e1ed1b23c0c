//! A peer's connection: socket, TLS, unread and queued octets, deadlines. The one place for each.
//!
//! A [`Wire`] drives a [`Dialogue`] where the peer leads ([`Wire::drive`]) and is spoken on directly
//! where we lead ([`Wire::say`], [`Wire::line`]). An idle wire owns no buffers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::dialogue::{Dialogue, Input, Line, Output, Step, Violation};

/// Most octets a peer may send ahead of what we consume.
pub const MAX_UNREAD: usize = 64 * 1024;

/// One connection.
#[derive(Debug)]
pub struct Wire {
    socket: TcpStream,
    /// Octets that were read and not consumed.
    pub input: Input,
    /// Octets that were queued and not written.
    pub output: Output,
    /// Longest waits.
    pub deadlines: Deadlines,
    peer: SocketAddr,
    local: SocketAddr,
}

/// Longest waits on a peer.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// For the peer's next octets.
    pub read: Duration,
    /// For the peer to take what we write.
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
        let (peer, local) = (socket.peer_addr()?, socket.local_addr()?);
        Ok(Self {
            socket,
            input: Input::default(),
            output: Output::default(),
            deadlines,
            peer,
            local,
        })
    }

    /// The peer's address: the client's, where a trusted PROXY header named one.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our address on this connection.
    pub fn local(&self) -> SocketAddr {
        self.local
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
                    self.flush().await?;
                    if self.fill().await? == 0 {
                        return Ok(None);
                    }
                }
                Ok(Step::StartTls) => {
                    self.flush().await?;
                    todo!("start_tls, then dialogue.secured(&mut self.output)")
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

    /// Reads at least one octet more; 0 when the peer closed.
    ///
    /// # Errors
    ///
    /// [`WireError::Deadline`], [`WireError::InputFull`], or the socket's or TLS's failure.
    pub async fn fill(&mut self) -> Result<usize, WireError> {
        if self.input.len() >= MAX_UNREAD {
            return Err(WireError::InputFull);
        }
        let mut scratch = vec![0; 16 * 1024];
        loop {
            self.timed(self.deadlines.read, self.socket.readable()).await??;
            match self.socket.try_read(&mut scratch) {
                Ok(count) => {
                    self.input.push(scratch.get(..count).unwrap_or_default());
                    return Ok(count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes everything that is queued.
    ///
    /// # Errors
    ///
    /// [`WireError::Deadline`], or the socket's or TLS's failure.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        if self.output.is_empty() {
            return Ok(());
        }
        let octets = self.output.take();
        let limit = self.deadlines.write;
        let written = tokio::time::timeout(limit, self.socket.write_all(&octets)).await;
        written.map_err(|_| WireError::Deadline)??;
        Ok(())
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

    async fn timed<F: Future>(&self, limit: Duration, wait: F) -> Result<F::Output, WireError> {
        let mut deadline = Instant::now().checked_add(limit).ok_or(WireError::Deadline)?;
        if let Some(until) = self.deadlines.until {
            deadline = deadline.min(until);
        }
        tokio::time::timeout_at(deadline, wait).await.map_err(|_| WireError::Deadline)
    }
}
