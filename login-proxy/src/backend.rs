//! Logging in to an account's owner: connect, secure, say who the client is, replay the credentials.
//!
//! Straight functions, since here we lead. A connection made here serves one attempt; what is not
//! joined is closed.

pub mod imap;

use std::net::SocketAddr;

use shared::wire::{ConnectError, Wire, WireError};

/// A backend that said yes.
#[derive(Debug)]
pub struct Attached {
    /// The connection, logged in.
    pub wire: Wire,
    /// What the client is to be told.
    pub welcome: Welcome,
}

/// What the client is to be told of its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// IMAP: its capabilities after login, separated by spaces; empty when it did not say.
    pub capabilities: String,
}

/// Who the client is, for a backend that believes us (FWD-1).
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Its address.
    pub address: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// Our name for the session, 1 to 64 octets.
    pub session: &'a str,
    /// What it told of itself by IMAP ID.
    pub id: &'a [(Vec<u8>, Vec<u8>)],
}

/// Why a backend did not say yes.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It cannot be reached or secured.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke, or it did not answer in time.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The whole attempt took too long.
    #[error("no verdict within the time allowed")]
    TimedOut,
    /// The configuration has no endpoint of this protocol for the owner.
    #[error("backend {backend} has no {protocol} endpoint")]
    NoEndpoint {
        /// The owner.
        backend: Box<str>,
        /// The protocol.
        protocol: &'static str,
    },
    /// It does not offer STARTTLS, which is configured. There is no downgrade.
    #[error("it does not offer STARTTLS")]
    NoStartTls,
    /// It takes these credentials in no form that we could give them.
    #[error("it takes no mechanism that these credentials fit")]
    NoMechanism,
    /// It does not speak the protocol.
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    /// The credentials are wrong.
    #[error("it rejected the credentials")]
    Rejected,
    /// It is out of order for now.
    #[error("it is unavailable")]
    Unavailable,
    /// It has as many sessions of this user as it allows.
    #[error("it has too many sessions of this user")]
    TooManySessions,
    /// It refuses for a reason that only an administrator can mend.
    #[error("it refuses for a fault of its own or its configuration")]
    Refuses,
}
