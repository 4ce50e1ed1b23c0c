//! What a client speaks before it has logged in: one pure state machine a protocol.
//!
//! No front knows a backend, and the driver in [`crate::login`] knows no protocol.

pub mod imap;

use shared::address::Domain;
use shared::credentials::Credentials;
use shared::dialogue::{Dialogue, Output};

use crate::backend::Welcome;
use crate::refusal::{Farewell, Refusal};

/// A protocol before login: what the driver needs of it beyond [`Dialogue`].
pub trait Front: Dialogue<Event = Credentials> + Send + Sync {
    /// Queues the greeting.
    fn greet(&mut self, out: &mut Output);

    /// Says no to the credentials that were last given; the client may try again.
    fn refuse(&mut self, refusal: Refusal, out: &mut Output);

    /// Says yes; the backend speaks from here on.
    fn welcome(&mut self, welcome: &Welcome, out: &mut Output);

    /// Ends the connection in the protocol's words.
    fn bid_farewell(&mut self, farewell: Farewell, out: &mut Output);

    /// What the client told of itself (IMAP ID): pairs of key and value, none for other protocols.
    fn client_id(&self) -> &[(Vec<u8>, Vec<u8>)];
}

/// What a connection is offered before login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The name in the greeting.
    pub hostname: Domain,
    /// What every backend has, in the protocol's form; what depends on the connection is added by the front.
    pub capabilities: Box<str>,
    /// The connection is secured already (implicit TLS).
    pub secured: bool,
    /// STARTTLS is to be had.
    pub starttls: bool,
    /// Passwords are taken without TLS.
    pub plaintext: bool,
}
