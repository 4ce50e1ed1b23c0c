//! Logging in to an account's owner: connect, secure, say who the client is, replay the credentials.
//!
//! Straight functions, since here we lead. A connection made here serves one attempt; what is not
//! joined is closed. Which mechanism a backend is given is decided in `sasl`, once for all protocols.

pub mod imap;
pub mod managesieve;
pub mod pop3;
mod prompt;
mod sasl;
pub mod submission;
pub mod watch;
mod xclient;

use std::net::SocketAddr;
use std::time::Duration;

use shared::address::Domain;
use shared::backend::{Endpoint, LoginProtocol};
use shared::credentials::Credentials;
use shared::probe::Unanswered;
use shared::proxy_protocol::Extensions;
use shared::reach::Blame;
use shared::sasl::Mechanisms;
use shared::wire::{ConnectError, Connected, Deadlines, Proxied, Watch, Wire, WireError};
use tokio::time::{Instant, sleep};

pub use self::prompt::{Asked, Prompt, prompt};
use crate::front::Told;

/// How long a backend is given, about, before it is connected to a second time.
const AGAIN: Duration = Duration::from_millis(200);

/// A backend that said yes.
#[derive(Debug)]
pub struct Attached {
    /// The connection, logged in.
    pub wire: Wire,
    /// What the client is to be told.
    pub welcome: Welcome,
    /// Looks for what would log another user in on the joined connection, where the backend has that.
    pub watch: Option<Box<dyn Watch>>,
}

/// What the client is to be told of its backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Welcome {
    /// IMAP: its capabilities after login, separated by spaces; empty when it did not say.
    pub capabilities: String,
    /// ManageSieve: the mechanism's last words where they came with the yes (RFC 5804 §2.1), not in base64.
    pub sasl: Option<Box<[u8]>>,
}

/// One attempt to log in.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// As whom, and by what.
    pub credentials: &'a Credentials,
    /// For whom.
    pub client: Client<'a>,
    /// Asks the client what only it can answer.
    pub prompt: &'a Prompt,
    /// End of the attempt.
    pub until: Instant,
    /// Our name, where a backend must be told one and the client has given none.
    pub hostname: &'a Domain,
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
    /// Hops through login proxies that this login may still take: a loop ends.
    pub ttl: u8,
    /// The version of TLS on its connection, such as `TLSv1.3`; `None` in the clear.
    pub tls: Option<&'a str>,
    /// The server name that it asked for in TLS.
    pub authority: Option<&'a str>,
    /// What it told of itself.
    pub told: &'a Told,
}

/// What a backend can do, as it says before login.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Its capabilities in the protocol's form, one each, without those of TLS and SASL.
    pub capabilities: Vec<Box<str>>,
    /// Its mechanisms.
    pub mechanisms: Mechanisms,
    /// It believes what we say of clients, in the way that is configured; `None` where that cannot be told.
    pub believes_us: Option<bool>,
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
        protocol: LoginProtocol,
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
    #[error("it rejected the credentials: {0}")]
    Rejected(Reason),
    /// It is out of order for now.
    #[error("it is unavailable")]
    Unavailable,
    /// It has as many sessions of this user as it allows.
    #[error("it has too many sessions of this user")]
    TooManySessions,
    /// It refuses for a reason that only an administrator can mend.
    #[error("it refuses for a fault of its own or its configuration")]
    Refuses,
    /// The client did not answer the backend's challenge.
    #[error("the client gave up")]
    Cancelled,
}

impl Unanswered for AttachError {
    fn timed_out() -> Self {
        Self::TimedOut
    }

    fn is_down(&self) -> bool {
        matches!(self, Self::Connect(ConnectError::Down { .. }))
    }
}

impl Blame for AttachError {
    fn blame(&self) -> Option<&WireError> {
        match self {
            Self::Wire(error) => Some(error),
            Self::Connect(error) => error.blame(),
            Self::TimedOut
            | Self::NoEndpoint { .. }
            | Self::NoStartTls
            | Self::NoMechanism
            | Self::Protocol(_)
            | Self::Rejected(_)
            | Self::Unavailable
            | Self::TooManySessions
            | Self::Refuses
            | Self::Cancelled => None,
        }
    }
}

/// What a backend says of credentials that it rejects: printable ASCII, without quotes, so that it can be
/// said in every protocol and logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(Box<str>);

impl Reason {
    /// Longest reason that is passed on, in octets.
    const MAX: usize = 200;

    /// What can be said of `text`.
    fn of(text: &str) -> Self {
        let printable =
            |c: char| if matches!(c, ' '..='~') && !"\"\\".contains(c) { c } else { '?' };
        let text: String = text.trim().chars().take(Self::MAX).map(printable).collect();
        Self(if text.is_empty() { "Authentication failed.".into() } else { text.into() })
    }

    /// The words.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Connects to `endpoint` for `client`, or for nobody (a probe), with the deadlines of a login.
async fn connect(
    endpoint: &Endpoint,
    client: Option<Client<'_>>,
    until: Instant,
) -> Result<Connected, AttachError> {
    let reply = endpoint.reply_timeout;
    let deadlines = Deadlines { read: reply, write: reply, until: Some(until) };
    let proxied = client.map(|client| Proxied { client: client.address, local: client.local });
    let extensions = client.map_or_else(Extensions::default, |client| Extensions {
        authority: client.authority,
        unique_id: Some(client.session),
        tls: client.tls,
    });
    let connect = || Wire::connect_telling(endpoint, proxied, extensions, deadlines);
    match connect().await {
        // A client waits, and nothing was said yet: a server that starts again has a second chance.
        Err(error) if error.may_pass() && client.is_some() => {
            sleep(AGAIN.mul_f64(0.5 + fastrand::f64())).await;
            Ok(connect().await?)
        }
        connected => Ok(connected?),
    }
}

/// Dovecot's words for its limit; older ones give it the code of something that passes by itself, and
/// trying again would make it worse.
fn says_too_many_sessions(text: &str) -> bool {
    text.contains("Maximum number of connections")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error's name, without what it carries.
    pub(super) fn cause(error: &AttachError) -> String {
        let shown = format!("{error:?}");
        shown.split(['(', ' ']).next().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_reason_cannot_say_more_than_one_line() {
        assert_eq!(
            Reason::of(" Password \"expired\"\r\n* BYE é").as_str(),
            "Password ?expired???* BYE ?"
        );
        assert_eq!(Reason::of(&"x".repeat(300)).as_str().len(), Reason::MAX);
        assert_eq!(Reason::of("").as_str(), "Authentication failed.");
    }
}
