//! One `mailshift.toml` for both services, read strictly: an unknown key is an error, and every error
//! names file, line, key and the nearest known key (CFG-1, CFG-2).
//!
//! The file is read into the `raw` structs, whose `Default` literals are the documented defaults, and
//! then parsed into the types below. Nothing inside the services checks a configured value again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::address::Domain;
use crate::backend::Backends;

/// Everything that is configured, parsed.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeConfig,
    /// The ownership table.
    pub ownership: OwnershipConfig,
    /// The mail systems between which accounts move.
    pub backends: Backends,
    /// Added to bare logins.
    pub default_domain: Option<Domain>,
    /// Certificates for listeners.
    pub tls: TlsConfig,
    /// The gateway.
    pub mx: MxConfig,
    /// The login proxy.
    pub login: LoginConfig,
    /// Logs.
    pub log: LogConfig,
}

/// This node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name in the `nodes` table; unique among all nodes.
    pub name: Box<str>,
    /// Directory of its own files; each service has a sub-directory, locked against a second process.
    pub state_dir: PathBuf,
    /// How long work in hand may take at shutdown.
    pub shutdown_grace: Duration,
}

/// The ownership table.
#[derive(Clone)]
pub struct OwnershipConfig {
    /// `postgres://…` or `sqlite:/path`. May hold a password, so it is not printed.
    pub url: String,
    /// Postgres: a direct connection for LISTEN where `url` goes through a pooler.
    pub listen_url: Option<String>,
    /// How old the copy may be before look-ups are refused.
    pub max_staleness: Duration,
    /// How often the feed is read without a notification.
    pub poll_interval: Duration,
    /// Whether the services bring an older schema up to date.
    pub apply_schema: bool,
}

/// Certificates for listeners.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM files; a certificate serves every name in it, the first one also clients without SNI.
    pub certificates: Vec<CertificateFiles>,
    /// Make a self-signed certificate at start instead (for trials).
    pub self_signed: bool,
}

/// One certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
}

/// The gateway.
#[derive(Debug, Clone)]
pub struct MxConfig {
    /// The name in greetings and Received headers.
    pub hostname: Domain,
    /// SMTP listeners.
    pub listeners: Vec<ListenerConfig>,
    /// Largest message in octets, CRLFs counted (RFC 1870).
    pub max_message_size: u64,
    /// Octets of a message kept in memory before it goes to a temporary file.
    pub memory_per_message: usize,
    /// Recipients accepted in one transaction.
    pub max_recipients: usize,
    /// Longest wait for a command.
    pub command_timeout: Duration,
    /// Longest wait for the next octets of message data.
    pub data_timeout: Duration,
    /// Longest wait for an owner's verdict after the final dot.
    pub delivery_timeout: Duration,
    /// Received headers after which a message is taken to loop (RFC 5321 §6.3).
    pub max_received: usize,
}

/// The login proxy.
#[derive(Debug, Clone)]
pub struct LoginConfig {
    /// The name in greetings.
    pub hostname: Domain,
    /// IMAP listeners.
    pub imap: Vec<ListenerConfig>,
    /// Longest time from connect to a successful login.
    pub login_timeout: Duration,
    /// Failed logins after which a connection is closed.
    pub max_failures: u32,
    /// Delay before a wrong password is answered.
    pub failure_delay: Duration,
    /// Longest time from credentials to the backend's verdict.
    pub attach_timeout: Duration,
    /// Longest silence of a joined session, on both legs together.
    pub idle_timeout: Duration,
    /// How long a session that is not quiet may go on after a flip.
    pub kick_grace: Duration,
    /// Allow logins without TLS (loopback clients always may).
    pub allow_plaintext: bool,
}

/// One listener: its addresses and how it speaks.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// Where it binds.
    pub binds: Vec<Bind>,
    /// TLS on it.
    pub tls: ListenerTls,
    /// PROXY protocol on it.
    pub proxy: ProxyMode,
    /// Networks whose PROXY header is believed.
    pub proxy_trusted: Vec<IpNet>,
    /// Connections open at once, in all.
    pub max_connections: usize,
    /// Connections open at once from one address (one /64 for IPv6).
    pub max_per_address: usize,
}

/// Where a listener binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// `:143`: every address, IPv6 and IPv4 on one port.
    Port(u16),
    /// An address written out: it must bind.
    Address(SocketAddr),
}

/// TLS on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerTls {
    /// None at all.
    None,
    /// Offered by STARTTLS.
    StartTls,
    /// From the first octet.
    Implicit,
}

/// PROXY protocol on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// Not understood.
    Off,
    /// Taken from trusted networks when it comes.
    Optional,
    /// Trusted networks must send it; everybody else is refused.
    Required,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// `tracing` filter, such as `info,sqlx=warn`.
    pub level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl std::fmt::Debug for OwnershipConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnershipConfig")
            .field("max_staleness", &self.max_staleness)
            .field("poll_interval", &self.poll_interval)
            .finish_non_exhaustive()
    }
}
