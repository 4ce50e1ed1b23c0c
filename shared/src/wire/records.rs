//! TLS on a wire: rustls' unbuffered connection, and the octets it leaves to its caller.
//!
//! rustls here keeps keys and protocol state; what it decrypts, it decrypts in the caller's buffer,
//! and what it wants sent, it writes to the caller's buffer. So this file keeps two things per
//! connection, both empty while nothing is in the air: the front of a record whose end has not come,
//! and records that the socket has not taken yet. No socket, no clock.
//!
//! rustls hands decrypted records over in vectors of its own, which it frees and does not wipe.

use std::sync::{Arc, OnceLock};

use tokio_rustls::rustls::client::UnbufferedClientConnection;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::server::{
    ClientHello, ResolvesServerCert, ServerConfig, UnbufferedServerConnection,
};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus,
};
use tokio_rustls::rustls::{self, ClientConfig, CommonState, ProtocolVersion};

use super::scratch::{Outgoing, Plain};
use crate::dialogue::Output;

/// Octets that one record of 16 KiB grows by, at most (RFC 8446 §5.2; RFC 5246 §6.2.3 with AEAD).
const RECORD_OVERHEAD: usize = 64;
/// Octets of plaintext in one record, at most.
const RECORD: usize = 16 * 1024;

/// A TLS connection's state between two polls.
pub(super) struct Tls {
    side: Side,
    /// The front of a record that is not complete. rustls has decrypted parts of it in place where a
    /// handshake message spans records, so it must get back exactly these octets.
    partial: Vec<u8>,
    /// Records that the socket has not taken yet.
    pub(super) pending: Output,
    /// The name a client asked for (RFC 6066 §3).
    name: Option<Arc<OnceLock<Box<str>>>>,
    /// The peer's close_notify was read.
    peer_closed: bool,
    /// Ours was queued.
    closed: bool,
}

/// What both sides know of a connection, for a Received header and the logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsDescription {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The cipher suite's IANA name.
    pub cipher: Box<str>,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// Notes the name a client asks for and leaves the choice of a certificate to `chooser`.
/// (The unbuffered connection does not tell it.)
#[derive(Debug)]
struct NameNote {
    chooser: Arc<dyn ResolvesServerCert>,
    name: Arc<OnceLock<Box<str>>>,
}

/// What came of one step of rustls' state machine.
enum Turn {
    /// Something was consumed or produced: ask again.
    Again,
    /// More octets from the peer are needed.
    Blocked,
    /// The handshake is over and the plaintext, if there was any, was encrypted.
    Traffic,
    /// The peer's close_notify: no plaintext follows it.
    PeerClosed,
    /// Both said close_notify.
    Closed,
}

/// What is done with plaintext in one run of rustls' state machine.
enum Task<'a> {
    /// Put here what records hold.
    Open(&'a mut Plain),
    /// Expect none.
    Greet,
    /// Encrypt this.
    Seal(&'a [u8]),
    /// Say close_notify.
    Close,
}

impl Tls {
    /// Our side of a client's connection.
    pub(super) fn server(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let name = Arc::new(OnceLock::new());
        let mut config = ServerConfig::clone(config);
        config.cert_resolver =
            Arc::new(NameNote { chooser: config.cert_resolver, name: name.clone() });
        let connection = UnbufferedServerConnection::new(Arc::new(config))?;
        Ok(Self::new(Side::Server(connection), Some(name)))
    }

    /// Our side of a connection to a server. The ClientHello is pending.
    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        outgoing: &mut Outgoing,
    ) -> Result<Self, rustls::Error> {
        let mut tls = Self::new(Side::Client(UnbufferedClientConnection::new(config, name)?), None);
        tls.run(&mut [], &mut Task::Greet, outgoing)?;
        tls.pending.push(outgoing.queued());
        Ok(tls)
    }

    fn new(side: Side, name: Option<Arc<OnceLock<Box<str>>>>) -> Self {
        Self {
            side,
            partial: Vec::new(),
            pending: Output::default(),
            name,
            peer_closed: false,
            closed: false,
        }
    }

    /// True until both sides may send plaintext.
    pub(super) fn is_handshaking(&self) -> bool {
        self.side.common().is_handshaking()
    }

    /// True when what is pending at the end of the handshake is nothing the peer waits for: a server
    /// of TLS 1.3 has sent its Finished long before.
    pub(super) fn only_tickets_wait(&self) -> bool {
        match &self.side {
            Side::Client(_) => false,
            Side::Server(s) => s.protocol_version() == Some(ProtocolVersion::TLSv1_3),
        }
    }

    /// True once the peer's close_notify was read.
    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Octets of an incomplete record.
    pub(super) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// True when this connection owns no buffers.
    pub(super) fn owns_no_buffers(&self) -> bool {
        self.partial.capacity() == 0 && self.pending.is_empty()
    }

    /// The name the client asked for.
    pub(super) fn name(&self) -> Option<&str> {
        Some(self.name.as_ref()?.get()?)
    }

    /// Version and cipher suite, once they are known.
    pub(super) fn description(&self) -> Option<TlsDescription> {
        let common = self.side.common();
        let version = match common.protocol_version()? {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLS",
        };
        let suite = common.negotiated_cipher_suite()?.suite();
        let cipher = suite.as_str()?.replacen("TLS13_", "TLS_", 1).into_boxed_str();
        Some(TlsDescription { version, cipher })
    }

    /// Takes `incoming`, which begins with [`Self::partial`], and puts what its records hold in
    /// `plain`. Keeps an incomplete record. What rustls wants sent becomes pending, an alert for the
    /// error that is returned included.
    pub(super) fn open(
        &mut self,
        incoming: &mut [u8],
        plain: &mut Plain,
        outgoing: &mut Outgoing,
    ) -> Result<(), rustls::Error> {
        let result = self.run(incoming, &mut Task::Open(plain), outgoing);
        if result.is_err() {
            self.alert(outgoing);
        }
        self.pending.push(outgoing.queued());
        outgoing.clear();
        let consumed = result?;
        let rest = incoming.get(consumed..).unwrap_or_default();
        // Nothing after close_notify counts.
        let rest = if self.peer_closed { &[] } else { rest };
        // A fresh vector each time: an idle connection owns none.
        self.partial = rest.to_vec();
        Ok(())
    }

    /// Adds the records that hold `plain` to `outgoing`, behind whatever rustls wants sent first.
    pub(super) fn seal(
        &mut self,
        plain: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), rustls::Error> {
        if self.closed || self.is_handshaking() {
            return Err(rustls::Error::General("plaintext out of turn".to_owned()));
        }
        self.run_alone(&mut Task::Seal(plain), outgoing)
    }

    /// Adds our close_notify to what is pending, once.
    pub(super) fn close(&mut self, outgoing: &mut Outgoing) -> Result<(), rustls::Error> {
        if self.closed || self.is_handshaking() {
            return Ok(());
        }
        self.closed = true;
        self.run_alone(&mut Task::Close, outgoing)?;
        self.pending.push(outgoing.queued());
        outgoing.clear();
        Ok(())
    }

    /// Runs without fresh octets. rustls must see the incomplete record again: it counts on finding
    /// there what it has looked at already.
    fn run_alone(
        &mut self,
        task: &mut Task<'_>,
        outgoing: &mut Outgoing,
    ) -> Result<(), rustls::Error> {
        let mut partial = std::mem::take(&mut self.partial);
        let result = self.run(&mut partial, task, outgoing);
        let consumed = result.as_ref().copied().unwrap_or(0);
        if consumed > 0 {
            partial.drain(..consumed.min(partial.len()));
        }
        self.partial = partial;
        result.map(|_| ())
    }

    /// Runs rustls until it needs the peer; returns the octets of `incoming` that are done with.
    fn run(
        &mut self,
        incoming: &mut [u8],
        task: &mut Task<'_>,
        outgoing: &mut Outgoing,
    ) -> Result<usize, rustls::Error> {
        let mut consumed = 0_usize;
        loop {
            let rest = incoming.get_mut(consumed..).unwrap_or_default();
            let (discard, turn) = match &mut self.side {
                Side::Client(c) => turn(c.process_tls_records(rest), task, outgoing)?,
                Side::Server(s) => turn(s.process_tls_records(rest), task, outgoing)?,
            };
            consumed = consumed.saturating_add(discard);
            match turn {
                Turn::Again => {}
                Turn::PeerClosed => self.peer_closed = true,
                Turn::Blocked | Turn::Traffic | Turn::Closed => return Ok(consumed),
            }
        }
    }

    /// Collects the alert that rustls prepared for an error, and what it wanted sent before.
    fn alert(&mut self, outgoing: &mut Outgoing) {
        while self.side.common().wants_write() {
            let task = &mut Task::Greet;
            let turned = match &mut self.side {
                Side::Client(c) => turn(c.process_tls_records(&mut []), task, outgoing),
                Side::Server(s) => turn(s.process_tls_records(&mut []), task, outgoing),
            };
            if !matches!(turned, Ok((_, Turn::Again))) {
                return;
            }
        }
    }
}

/// Acts on one state of rustls' machine; returns the octets that it is done with.
fn turn<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    task: &mut Task<'_>,
    outgoing: &mut Outgoing,
) -> Result<(usize, Turn), rustls::Error> {
    let UnbufferedStatus { mut discard, state } = status;
    let turn = match state? {
        ConnectionState::ReadTraffic(mut records) => {
            while let Some(record) = records.next_record() {
                let record = record?;
                discard = discard.saturating_add(record.discard);
                let put = match task {
                    Task::Open(plain) => plain.put(record.payload),
                    // `open` has taken every complete record before.
                    Task::Greet | Task::Seal(_) | Task::Close => false,
                };
                if !put {
                    return Err(rustls::Error::General("record out of turn".to_owned()));
                }
            }
            Turn::Again
        }
        ConnectionState::EncodeTlsData(mut message) => {
            let count = match message.encode(outgoing.room(RECORD)) {
                Ok(count) => count,
                Err(EncodeError::InsufficientSize(short)) => message
                    .encode(outgoing.room(short.required_size))
                    .map_err(|error| rustls::Error::General(error.to_string()))?,
                Err(error @ EncodeError::AlreadyEncoded) => {
                    return Err(rustls::Error::General(error.to_string()));
                }
            };
            outgoing.advance(count);
            Turn::Again
        }
        // They are in `outgoing`, and whoever called keeps that in order before anything else.
        ConnectionState::TransmitTlsData(queued) => {
            queued.done();
            Turn::Again
        }
        ConnectionState::BlockedHandshake => Turn::Blocked,
        ConnectionState::PeerClosed => Turn::PeerClosed,
        ConnectionState::Closed => Turn::Closed,
        ConnectionState::WriteTraffic(mut traffic) => {
            let count = match task {
                Task::Open(_) | Task::Greet => 0,
                Task::Seal(plain) => {
                    let records = plain.len().div_ceil(RECORD).saturating_add(1);
                    let room = plain.len().saturating_add(records.saturating_mul(RECORD_OVERHEAD));
                    match traffic.encrypt(plain, outgoing.room(room)) {
                        Err(EncryptError::InsufficientSize(short)) => {
                            traffic.encrypt(plain, outgoing.room(short.required_size))
                        }
                        sealed => sealed,
                    }
                    .map_err(|error| exhausted(&error))?
                }
                Task::Close => traffic
                    .queue_close_notify(outgoing.room(RECORD))
                    .map_err(|error| exhausted(&error))?,
            };
            outgoing.advance(count);
            Turn::Traffic
        }
        // Early data is never asked for; and rustls may grow states.
        _ => return Err(rustls::Error::General("unexpected TLS state".to_owned())),
    };
    Ok((discard, turn))
}

fn exhausted(error: &EncryptError) -> rustls::Error {
    match error {
        EncryptError::EncryptExhausted => rustls::Error::EncryptError,
        EncryptError::InsufficientSize(_) => rustls::Error::General(error.to_string()),
    }
}

impl Side {
    fn common(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }
}

impl ResolvesServerCert for NameNote {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(name) = hello.server_name() {
            let _ = self.name.set(name.into());
        }
        self.chooser.resolve(hello)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.chooser.only_raw_public_keys()
    }
}

impl std::fmt::Display for TlsDescription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with cipher {}", self.version, self.cipher)
    }
}

#[cfg(test)]
mod tests;
