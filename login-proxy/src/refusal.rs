//! Why a client is told no. Each protocol's front has the words (study of RFC 5530, 3206, 5804, 4954);
//! what matters here is whose fault it is.

use shared::ownership;
use shared::wire::ConnectError;

use crate::backend::AttachError;

/// Why a client is told no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The backend said so, or there is no such account: the client may try again with other words.
    BadCredentials,
    /// For now: the table is stale, the account is held, its backend is away.
    Unavailable,
    /// The backend has as many sessions of this user as it allows.
    TooManySessions,
    /// Only an administrator can mend it: an owner nobody configured, a backend that cannot be talked to.
    Misconfigured,
    /// Credentials in the clear are not taken; they were not tried.
    NeedsTls,
    /// The client gave up in the middle of an exchange.
    Cancelled,
    /// Its address has guessed too often of late; the credentials were not tried.
    TooManyGuesses,
}

/// Why a client's connection ends before it has logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// The service stops.
    ShuttingDown,
    /// The client did not log in in time.
    TooSlow,
    /// The client guessed too often.
    TooManyFailures,
    /// As many connections as allowed are open.
    TooManyConnections,
}

impl From<&ownership::Refusal> for Refusal {
    fn from(refusal: &ownership::Refusal) -> Self {
        match refusal {
            ownership::Refusal::Stale
            | ownership::Refusal::Held { .. }
            | ownership::Refusal::UnknownBackend { .. }
            | ownership::Refusal::Ambiguous { .. }
            | ownership::Refusal::Unsettled => Self::Unavailable,
            // Whether a name exists is nobody's business who cannot log in to it.
            ownership::Refusal::NoSuchAccount
            | ownership::Refusal::ForeignDomain
            | ownership::Refusal::NoLogin { .. } => Self::BadCredentials,
        }
    }
}

impl From<&AttachError> for Refusal {
    fn from(error: &AttachError) -> Self {
        match error {
            AttachError::Rejected(_) => Self::BadCredentials,
            AttachError::TooManySessions => Self::TooManySessions,
            AttachError::Cancelled => Self::Cancelled,
            AttachError::Connect(ConnectError::Own { .. }) => Self::Misconfigured,
            AttachError::Connect(_)
            | AttachError::Wire(_)
            | AttachError::TimedOut
            | AttachError::Unavailable => Self::Unavailable,
            AttachError::NoEndpoint { .. }
            | AttachError::NoStartTls
            | AttachError::NoMechanism
            | AttachError::Protocol(_)
            | AttachError::Refuses => Self::Misconfigured,
        }
    }
}
