//! What a client speaks before it has logged in: one pure state machine a protocol.
//!
//! No front knows a backend, and the driver in [`crate::login`] knows no protocol. What SASL asks of a
//! client is the same in all of them: `sasl`.

#[cfg(test)]
mod cut;
mod forwarded;
pub mod imap;
pub mod managesieve;
pub mod pop3;
mod sasl;
pub mod submission;

use std::net::IpAddr;
use std::sync::Arc;

use shared::address::Domain;
use shared::credentials::{Credentials, Secret};
use shared::dialogue::{Dialogue, Output, Step, Violation};
use shared::sasl::{Mechanism, Mechanisms};

use crate::backend::Welcome;
use crate::refusal::{Farewell, Refusal};

/// Wrong commands before a client is sent away.
const MAX_BAD_COMMANDS: u32 = 10;

/// A protocol before login: what the driver needs of it beyond [`Dialogue`].
pub trait Front: Dialogue<Event = Event> + Send + Sync {
    /// Queues the greeting.
    fn greet(&mut self, out: &mut Output);

    /// Passes a backend's challenge on, not in base64; the client's answer comes as [`Event::Response`].
    fn challenge(&mut self, challenge: &[u8], out: &mut Output);

    /// Says no to the credentials that were last given; the client may try again.
    fn refuse(&mut self, refusal: Refusal, out: &mut Output);

    /// Says no to the credentials that were last given, in their owner's words, which are one line of
    /// printable ASCII without quotes; the client may try again.
    fn reject(&mut self, reason: &str, out: &mut Output);

    /// Says yes; the backend speaks from here on.
    fn welcome(&mut self, welcome: &Welcome, out: &mut Output);

    /// Ends the connection in the protocol's words.
    fn bid_farewell(&mut self, farewell: Farewell, out: &mut Output);

    /// What the client has told of itself.
    fn told(&self) -> &Told;
}

/// What a front asks of the driver.
#[derive(Debug)]
pub enum Event {
    /// Somebody wants to log in.
    Credentials(Credentials),
    /// The answer to a challenge, decoded; `None`: the client gives up.
    Response(Option<Secret>),
}

/// What a client has told of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// By IMAP ID: pairs of key and value.
    pub id: Vec<(Vec<u8>, Vec<u8>)>,
    /// By EHLO.
    pub helo: Option<Box<str>>,
    /// A trusted proxy in front of us has told who its client is.
    pub forwarded: Option<Box<Forwarded>>,
}

/// What a trusted proxy told of its client (FWD-4), by IMAP ID or XCLIENT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's address.
    pub client_ip: Option<IpAddr>,
    /// The client's port.
    pub client_port: Option<u16>,
    /// The address that the client connected to.
    pub local_ip: Option<IpAddr>,
    /// The port that the client connected to.
    pub local_port: Option<u16>,
    /// The proxy's name for the session, 1 to 64 printable octets.
    pub session: Option<Box<str>>,
    /// Hops through proxies that are left.
    pub ttl: Option<u8>,
}

/// What a connection is offered before login.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the connection")]
pub struct Terms {
    /// The name in the greeting.
    pub hostname: Domain,
    /// What every backend has, in the protocol's form, one capability each; what depends on the connection
    /// is added by the front.
    pub capabilities: Arc<[Box<str>]>,
    /// Mechanisms that every backend's users can log in with.
    pub mechanisms: Mechanisms,
    /// The connection is secured already (implicit TLS).
    pub secured: bool,
    /// STARTTLS is to be had.
    pub starttls: bool,
    /// Passwords are taken without TLS.
    pub plaintext: bool,
    /// The peer is a proxy that may name its client (FWD-4).
    pub trusted: bool,
}

impl Terms {
    /// True when a password may be sent on the connection as it is.
    pub fn takes_passwords(&self) -> bool {
        self.secured || self.plaintext
    }

    /// The mechanisms that may be used on the connection as it is.
    pub fn usable(&self) -> Mechanisms {
        let passwords = self.takes_passwords();
        self.mechanisms.iter().filter(|m| passwords || !m.is_cleartext()).collect()
    }

    /// The mechanism of that name, if it may be used. LOGIN is understood everywhere, though not listed
    /// everywhere: a password is a password.
    pub fn mechanism(&self, name: &[u8]) -> Option<Mechanism> {
        Mechanism::parse(name).filter(|mechanism| {
            *mechanism == Mechanism::Login || self.mechanisms.contains(*mechanism)
        })
    }

    /// True when STARTTLS is to be had now.
    pub fn offers_tls(&self) -> bool {
        self.starttls && !self.secured
    }
}

/// Takes in what there is up to the first step, or until so much is queued that it must be written first.
fn steps(
    output: &mut Output,
    mut take_in: impl FnMut(&mut Output) -> Result<Option<Step<Event>>, Violation>,
) -> Result<Step<Event>, Violation> {
    while !output.is_full() {
        if let Some(step) = take_in(output)? {
            return Ok(step);
        }
    }
    Ok(Step::NeedInput)
}
