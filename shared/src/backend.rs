//! A backend: one configured mail system, and how each of its protocols is reached.
//!
//! Only names and addresses; connecting is the wire's business, and which backend an account lives
//! at is the ownership table's.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// A backend's name: the word in `accounts.owner` and in `[backends.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendName(Arc<str>);

/// One mail system. A protocol without an endpoint is not offered there.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The word in `accounts.owner`.
    pub name: BackendName,
    /// Where messages are delivered.
    pub mail: Option<MailEndpoint>,
    /// Where IMAP sessions are joined.
    pub imap: Option<Endpoint>,
}

/// All backends by name. One that is not here is an unknown owner: refused temporarily, never guessed.
#[derive(Debug, Clone, Default)]
pub struct Backends(BTreeMap<BackendName, Arc<Backend>>);

/// One protocol's address at a backend.
#[derive(Clone)]
pub struct Endpoint {
    /// Host name or IP address, without brackets.
    pub host: Box<str>,
    /// TCP port.
    pub port: u16,
    /// How the connection is secured.
    pub tls: BackendTls,
    /// How the client's address is told to the backend.
    pub identity: Identity,
    /// Longest wait for the TCP connection.
    pub connect_timeout: Duration,
    /// Longest wait for one reply before the session is joined or the data is sent.
    pub reply_timeout: Duration,
}

/// Where messages are delivered, and in which protocol.
#[derive(Debug, Clone)]
pub struct MailEndpoint {
    /// Its address.
    pub endpoint: Endpoint,
    /// SMTP or LMTP.
    pub protocol: MailProtocol,
}

/// How messages are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailProtocol {
    /// SMTP (RFC 5321): one reply for the message.
    Smtp,
    /// LMTP (RFC 2033): one reply for each recipient.
    Lmtp,
}

/// How a backend connection is secured. There is no downgrade from one to another.
#[derive(Clone)]
pub enum BackendTls {
    /// Not at all: loopback, or an explicit opt-in (CFG-6).
    Plain,
    /// By the protocol's STARTTLS command, before anything secret is said.
    StartTls(Arc<ClientConfig>, ServerName<'static>),
    /// From the first octet.
    Implicit(Arc<ClientConfig>, ServerName<'static>),
}

/// How a backend is told who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// It sees our address.
    None,
    /// SMTP and LMTP: the XCLIENT command, only with names the backend lists in EHLO.
    Xclient,
    /// IMAP: Dovecot's `ID ("x-originating-ip" …)` from a trusted network.
    DovecotId,
    /// PROXY protocol version 2, before anything else.
    Proxy,
}

impl BackendName {
    /// Reads a backend's name: 1 to 63 of lower-case letters, digits, `-`, `_` and `.`.
    ///
    /// # Errors
    ///
    /// The text, when it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        if (1..=63).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(text.into()))
        } else {
            Err(text.to_owned())
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Backends {
    /// The backend of that name.
    pub fn get(&self, name: &BackendName) -> Option<&Arc<Backend>> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.0.values()
    }
}

impl FromIterator<Backend> for Backends {
    fn from_iter<I: IntoIterator<Item = Backend>>(backends: I) -> Self {
        Self(backends.into_iter().map(|b| (b.name.clone(), Arc::new(b))).collect())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = match self.tls {
            BackendTls::Plain => "plain",
            BackendTls::StartTls(..) => "starttls",
            BackendTls::Implicit(..) => "implicit",
        };
        write!(f, "{}:{} ({tls}, {:?})", self.host, self.port, self.identity)
    }
}
