//! What the driver has to be told of each protocol: its front, its backend, its words.

use std::future::Future;
use std::pin::Pin;

use shared::backend::{Endpoint, LoginProtocol};
use shared::listener::Refused;
use tokio::time::Instant;

use crate::backend::{self, Abilities, AttachError, Attached, Attempt};
use crate::front::imap::{self, ImapFront};
use crate::front::managesieve::{self, ManageSieveFront};
use crate::front::pop3::{self, Pop3Front};
use crate::front::submission::{self, SubmissionFront};
use crate::front::{Front, Terms};
use crate::offer::{self, Offer};
use crate::refusal::Farewell;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = Result<T, AttachError>> + Send + 'a>>;

/// What the driver has to be told of a protocol.
#[derive(Debug)]
pub struct Protocol {
    /// Which one.
    pub kind: LoginProtocol,
    /// Makes a front for a new connection.
    pub front: fn(Terms) -> Box<dyn Front>,
    /// Logs in to an owner.
    pub log_in: for<'a> fn(&'a Endpoint, Attempt<'a>) -> Boxed<'a, Attached>,
    /// Asks a backend what it can.
    pub probe: for<'a> fn(&'a Endpoint, Instant) -> Boxed<'a, Abilities>,
    /// What is advertised while nobody has said what it can.
    pub modest: fn() -> Offer,
    /// What all of several backends can.
    pub merge: fn(&[Abilities]) -> Offer,
    /// What a connection over the limits is told. On a TLS port nothing can be said before the handshake,
    /// and a handshake is what must be saved; so it gets the words in the clear, as from other servers.
    pub full: fn(Refused) -> Vec<u8>,
}

/// The protocol of that kind.
pub fn of(kind: LoginProtocol) -> &'static Protocol {
    match kind {
        LoginProtocol::Imap => &IMAP,
        LoginProtocol::Pop3 => &POP3,
        LoginProtocol::Submission => &SUBMISSION,
        LoginProtocol::ManageSieve => &MANAGESIEVE,
    }
}

/// RFC 3501, RFC 9051.
pub static IMAP: Protocol = Protocol {
    kind: LoginProtocol::Imap,
    front: |terms| Box::new(ImapFront::new(terms)),
    log_in: |endpoint, attempt| Box::pin(backend::imap::log_in(endpoint, attempt)),
    probe: |endpoint, until| Box::pin(backend::imap::probe(endpoint, until)),
    modest: offer::imap::modest,
    merge: offer::imap::merge,
    full: |_| imap::farewell_words(Farewell::TooManyConnections).into(),
};

/// RFC 1939.
pub static POP3: Protocol = Protocol {
    kind: LoginProtocol::Pop3,
    front: |terms| Box::new(Pop3Front::new(terms)),
    log_in: |endpoint, attempt| Box::pin(backend::pop3::log_in(endpoint, attempt)),
    probe: |endpoint, until| Box::pin(backend::pop3::probe(endpoint, until)),
    modest: offer::pop3::modest,
    merge: offer::pop3::merge,
    full: |_| pop3::farewell_words(Farewell::TooManyConnections).into(),
};

/// RFC 6409.
pub static SUBMISSION: Protocol = Protocol {
    kind: LoginProtocol::Submission,
    front: |terms| Box::new(SubmissionFront::new(terms)),
    log_in: |endpoint, attempt| Box::pin(backend::submission::log_in(endpoint, attempt)),
    probe: |endpoint, until| Box::pin(backend::submission::probe(endpoint, until)),
    modest: offer::submission::modest,
    merge: offer::submission::merge,
    full: |_| {
        format!("{}\r\n", submission::farewell_words(Farewell::TooManyConnections)).into_bytes()
    },
};

/// RFC 5804.
pub static MANAGESIEVE: Protocol = Protocol {
    kind: LoginProtocol::ManageSieve,
    front: |terms| Box::new(ManageSieveFront::new(terms)),
    log_in: |endpoint, attempt| Box::pin(backend::managesieve::log_in(endpoint, attempt)),
    probe: |endpoint, until| Box::pin(backend::managesieve::probe(endpoint, until)),
    modest: offer::managesieve::modest,
    merge: offer::managesieve::merge,
    full: |_| managesieve::farewell_words(Farewell::TooManyConnections).into(),
};
