//! One `mailshift.toml` for both services, read strictly: an unknown key is an error, and every error
//! names file, line, key and the nearest known key (CFG-1, CFG-2).
//!
//! The file is read into the `raw` structs, whose `Default` literals are the documented defaults, and
//! then parsed into the types below. Nothing inside the services checks a configured value again.

mod parse;
mod problem;
mod raw;
mod restart;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

pub use problem::ConfigError;

use crate::address::{Address, Domain};
use crate::backend::{BackendName, Backends, LoginProtocol};
use crate::ownership::RoutingDomains;
use crate::sasl::Mechanisms;
use crate::web::WebConfig;

/// Everything that is configured, parsed.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeConfig,
    /// The ownership table.
    pub ownership: OwnershipConfig,
    /// The mail systems between which accounts move.
    pub backends: Backends,
    /// How logins lead to accounts.
    pub names: NamesConfig,
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
    /// How long it may take after another process has taken over.
    pub handover_grace: Duration,
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

/// How logins lead to accounts.
#[derive(Debug, Clone, Default)]
pub struct NamesConfig {
    /// Added to bare logins.
    pub default_domain: Option<Domain>,
    /// Domains that stand for others: what old servers forward to.
    pub routing_domains: RoutingDomains,
    /// Characters that separate a mailbox from the master user who opens it (`ann@x*admin`).
    pub master_separators: Box<str>,
    /// Claims of a JWT that may name the account, in the order in which they are looked at.
    pub token_claims: Vec<Box<str>>,
}

/// Certificates for listeners.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM files; a certificate serves every name in it, the first one also clients without SNI.
    pub certificates: Vec<CertificateFiles>,
    /// Make a self-signed certificate at start instead (for trials).
    pub self_signed: bool,
    /// What the keys of session tickets are derived from, the same on all nodes; `None`: keys of this process.
    pub ticket_key_file: Option<PathBuf>,
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
    /// Where mail to `<postmaster>` without a domain goes; `None`: postmaster at our host name.
    pub postmaster: Option<Address>,
    /// Listeners of all kinds.
    pub listeners: Vec<MxListener>,
    /// Networks of servers in front of us that may say who their clients are, by XCLIENT or PROXY.
    pub trusted_networks: Vec<IpNet>,
    /// Who brings mail to the internal listener, and where from there mail for others goes.
    pub internal: InternalConfig,
    /// Where mail servers ask which addresses they must hand on.
    pub lookup: LookupConfig,
    /// What one address may do on the public listener.
    pub limits: LimitsConfig,
    /// After a failed handshake STARTTLS is not offered to that address for a while.
    pub tls_fallback: bool,
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
    /// Longest time that a delivery takes, the wait for the owner's verdict included.
    pub delivery_timeout: Duration,
    /// Longest time that a client waits for it: then the message is kept, and the delivery goes on.
    pub patience: Duration,
    /// So long after an account was flipped its owner's word that it does not exist is temporary; zero: never.
    pub flip_grace: Duration,
    /// Received headers after which a message is taken to loop (RFC 5321 §6.3).
    pub max_received: usize,
    /// What is found out about senders; `None`: nothing.
    pub authentication: Option<AuthenticationConfig>,
    /// What cannot be delivered at once.
    pub queue: QueueConfig,
    /// A second log in the words of Postfix.
    pub mail_log: Option<MailLogConfig>,
}

/// What is kept of messages that cannot be delivered at once, and how it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueConfig {
    /// An older message is given up; time for which it was held does not count.
    pub expire: Duration,
    /// Deliveries from the queue to one backend at once.
    pub max_per_backend: u32,
    /// Deliveries from the queue to one backend in a second; 0: any number.
    pub max_per_second: u32,
    /// The backend by which reports of failure go to senders who are not ours.
    pub report_via: Option<BackendName>,
    /// Free octets on its disk under which nothing more is kept.
    pub reserve: u64,
    /// How long it is known of a message whose sender may not have heard the reply that it was delivered; zero:
    /// not at all.
    pub remember: Duration,
}

/// A listener of the gateway.
#[derive(Debug, Clone)]
pub struct MxListener {
    /// What is spoken on it, and with whom.
    pub kind: MxKind,
    /// Where and how.
    pub config: ListenerConfig,
}

/// What is spoken on a listener of the gateway, and with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MxKind {
    /// SMTP with anybody.
    Smtp,
    /// LMTP with a server that has filtered the mail and wants a verdict for each recipient.
    Lmtp,
    /// SMTP with the mail systems between which accounts move (`mx.internal`).
    Internal,
}

/// How senders are authenticated: SPF, DKIM, DMARC, ARC, reverse DNS.
#[derive(Debug, Clone)]
pub struct AuthenticationConfig {
    /// Our authserv-id (RFC 8601 §2.5).
    pub name: Domain,
    /// Longest time for all of it; what is not known by then is a temporary error.
    pub time_limit: Duration,
    /// Name servers that are asked; none: the system's.
    pub name_servers: Vec<SocketAddr>,
    /// What a failure of DMARC leads to.
    pub enforcement: Enforcement,
    /// Signatures of one message that are verified.
    pub max_signatures: usize,
    /// Octets of a message above which its signatures are not verified.
    pub max_verified_size: u64,
    /// With what messages are sealed (RFC 8617).
    pub arc_seal: Option<ArcSealConfig>,
}

/// What a failure of DMARC leads to, by the recipient's domain.
#[derive(Debug, Clone, Default)]
pub struct Enforcement {
    domains: BTreeMap<Domain, EnforcementMode>,
    others: EnforcementMode,
}

/// How far the policy of an author's domain is followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum EnforcementMode {
    /// Not at all: it is reported.
    #[default]
    Off,
    /// To quarantine at most.
    Quarantine,
    /// To rejection.
    Reject,
}

/// With what messages are sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArcSealConfig {
    /// The sealing domain.
    pub domain: Domain,
    /// The selector of its key.
    pub selector: Box<str>,
    /// The private key, PEM: RSA (PKCS #1 or #8) or Ed25519 (PKCS #8).
    pub key_file: PathBuf,
}

impl Enforcement {
    /// `others` is for domains that are not named.
    pub fn new(domains: BTreeMap<Domain, EnforcementMode>, others: EnforcementMode) -> Self {
        Self { domains, others }
    }

    /// How far the author's policy is followed for mail to `domain`.
    pub fn mode(&self, domain: &Domain) -> EnforcementMode {
        self.domains.get(domain).copied().unwrap_or(self.others)
    }
}

/// The internal listener's own rules.
#[derive(Debug, Clone, Default)]
pub struct InternalConfig {
    /// Networks from which mail is taken.
    pub trusted_networks: Vec<IpNet>,
    /// Where mail for domains that are not ours goes; `None`: it is refused.
    pub outbound: Option<BackendName>,
}

/// What one address, IPv6: one /64, may do on the public listener. 0 is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// New connections within a minute.
    pub connections_per_minute: u32,
    /// Messages within a minute.
    pub messages_per_minute: u32,
    /// Recipients that are refused within the window, after which it is sent away; long before, it is
    /// answered later and later.
    pub refused_recipients: u32,
    /// The window.
    pub refused_window: Duration,
    /// How long it has to wait for the greeting.
    pub greet_delay: Duration,
    /// How long a session may last, a message in hand apart; zero: no limit.
    pub session_time: Duration,
    /// Zones of lists of addresses from which nothing is taken.
    pub dnsbl: Vec<Domain>,
    /// Networks to which none of this applies.
    pub exempt_networks: Vec<IpNet>,
}

/// Where mail servers ask which addresses they must hand on.
#[derive(Debug, Clone, Default)]
pub struct LookupConfig {
    /// Where Postfix's `socketmap` is spoken; the map's name is the asking backend's.
    pub socketmap: Option<ListenerConfig>,
    /// Where it is spoken on a Unix socket.
    pub socket: Option<PathBuf>,
    /// Where Postfix's `tcp_table` is spoken, for one backend each.
    pub tcp_tables: Vec<(BackendName, ListenerConfig)>,
    /// Networks that may ask.
    pub trusted_networks: Vec<IpNet>,
    /// What is answered: a transport with its next hop.
    pub next_hop: Box<str>,
}

/// A log in the words of Postfix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailLogConfig {
    /// Its file.
    pub file: PathBuf,
    /// What its lines call us, where Postfix has `syslog_name`.
    pub name: Box<str>,
}

/// The login proxy.
#[derive(Debug, Clone)]
pub struct LoginConfig {
    /// The name in greetings.
    pub hostname: Domain,
    /// Listeners of all protocols but HTTP.
    pub listeners: Vec<LoginListener>,
    /// Listeners of HTTP.
    pub web_listeners: Vec<WebListener>,
    /// How HTTP is routed.
    pub web: WebConfig,
    /// What is advertised before login instead of what all backends have.
    pub advertised: Advertised,
    /// Longest time from connect to a successful login.
    pub login_timeout: Duration,
    /// Failed logins after which a connection is closed.
    pub max_failures: u32,
    /// Delay before a wrong password is answered.
    pub failure_delay: Duration,
    /// Guesses from one address within the window, over which nothing of it is tried; 0: any number.
    pub guesses_per_address: u32,
    /// The time over which guesses are counted.
    pub guess_window: Duration,
    /// Longest time from credentials to the backend's verdict, not counting a hold.
    pub attach_timeout: Duration,
    /// Longest time that a login waits for the end of a hold.
    pub hold_wait: Duration,
    /// Logins that wait for the end of one account's hold, at once.
    pub max_held_per_account: usize,
    /// Logins that wait for the end of a hold, at once and in all.
    pub max_held: usize,
    /// Longest silence of a joined session, on both legs together.
    pub idle_timeout: Duration,
    /// How long a session that is not quiet may go on after a flip.
    pub kick_grace: Duration,
    /// The same for mail submission, whose sessions are quiet only when nothing is left to be answered.
    pub data_grace: Duration,
    /// Allow logins without TLS (loopback clients always may).
    pub allow_plaintext: bool,
    /// Networks of proxies and webmails that may say who their clients are, by IMAP ID or XCLIENT.
    pub trusted_networks: Vec<IpNet>,
}

/// A listener of the login proxy.
#[derive(Debug, Clone)]
pub struct LoginListener {
    /// Its key, such as `login.imaps`.
    pub key: Box<str>,
    /// What is spoken on it.
    pub protocol: LoginProtocol,
    /// Where and how.
    pub listener: ListenerConfig,
}

/// A listener of the login proxy for HTTP.
#[derive(Debug, Clone)]
pub struct WebListener {
    /// Its key: `login.http` or `login.https`.
    pub key: Box<str>,
    /// Where and how.
    pub listener: ListenerConfig,
}

/// What is advertised before login; `None`: what all backends have. TLS and mechanisms are told by the
/// fronts, as the connection allows.
#[derive(Debug, Clone, Default)]
pub struct Advertised {
    /// SASL mechanisms.
    pub mechanisms: Option<Mechanisms>,
    /// IMAP: a word each.
    pub imap: Option<Vec<Box<str>>>,
    /// POP3: a line of CAPA each.
    pub pop3: Option<Vec<Box<str>>>,
    /// Submission: a line of the answer to EHLO each.
    pub submission: Option<Vec<Box<str>>>,
    /// ManageSieve: a capability line each, quotes included.
    pub managesieve: Option<Vec<Box<str>>>,
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

impl Bind {
    /// The port.
    pub fn port(self) -> u16 {
        match self {
            Self::Port(port) => port,
            Self::Address(address) => address.port(),
        }
    }
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => write!(f, ":{port}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
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

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is wrong; every problem is named.
    #[error(transparent)]
    Wrong(#[from] ConfigError),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    ///
    /// [`LoadError`], with every problem of the file.
    pub fn load(file: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| LoadError::Unreadable { file: file.to_owned(), source })?;
        Ok(Self::parse(file, &text)?)
    }

    /// Checks `text` as if it were read from `file`.
    ///
    /// # Errors
    ///
    /// A [`ConfigError`] with every problem.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        parse::parse(file, text)
    }
}

impl Config {
    /// Backends that are listeners of this configuration itself, as far as that is seen without look-ups: a
    /// sentence each (NET-9). Connections to them are refused.
    pub fn loops(&self) -> Vec<String> {
        let endpoints = self.backends.iter().flat_map(|backend| {
            backend.endpoints().map(|(protocol, endpoint)| (&backend.name, protocol, endpoint))
        });
        let seen = endpoints.filter_map(|(name, protocol, endpoint)| {
            let (host, listener) = endpoint.own_listener()?;
            Some(format!(
                "backends.{name}.{protocol}: {host} is this service itself, which listens on {listener}; \
                 connections to it are refused"
            ))
        });
        seen.collect()
    }
}

impl MxKind {
    /// The key under which such listeners are configured.
    pub fn key(self) -> &'static str {
        match self {
            Self::Smtp => "mx.smtp",
            Self::Lmtp => "mx.lmtp",
            Self::Internal => "mx.internal",
        }
    }
}

impl MxConfig {
    /// The listener of a kind.
    pub fn listener(&self, kind: MxKind) -> Option<&ListenerConfig> {
        self.listeners.iter().find(|listener| listener.kind == kind).map(|l| &l.config)
    }

    /// True when a peer may say who its clients are.
    pub fn is_trusted(&self, peer: IpAddr) -> bool {
        self.trusted_networks.iter().any(|network| network.contains(&peer))
    }
}

impl Advertised {
    /// What is advertised in `protocol`.
    pub fn of(&self, protocol: LoginProtocol) -> Option<&[Box<str>]> {
        match protocol {
            LoginProtocol::Imap => &self.imap,
            LoginProtocol::Pop3 => &self.pop3,
            LoginProtocol::Submission => &self.submission,
            LoginProtocol::ManageSieve => &self.managesieve,
        }
        .as_deref()
    }
}

impl LoginConfig {
    /// True when a peer may say who its clients are.
    pub fn is_trusted(&self, peer: IpAddr) -> bool {
        self.trusted_networks.iter().any(|network| network.contains(&peer))
    }
}

impl OwnershipConfig {
    /// The table's place without anything secret: an SQLite file's path, or a Postgres host.
    pub fn shown(&self) -> &str {
        match self.url.split_once("://") {
            Some((_, rest)) if !self.url.starts_with("sqlite:") => {
                rest.rsplit_once('@').map_or(rest, |(_, host)| host)
            }
            _ => &self.url,
        }
    }
}

impl std::fmt::Debug for OwnershipConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnershipConfig")
            .field("max_staleness", &self.max_staleness)
            .field("poll_interval", &self.poll_interval)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[ownership]
url = "sqlite:/tmp/ownership.db"
[tls]
self_signed = true
[backends.old.mail]
host = "127.0.0.1"
port = 2424
protocol = "lmtp"
[backends.old.imap]
host = "::1"
[mx]
hostname = "MX.example.org"
smtp = { listen = [":25", "127.0.0.1:2525"] }
[login]
hostname = "imap.example.org"
imaps = { listen = ["[::1]:993"] }
"#;

    fn problems(text: &str) -> Vec<String> {
        let error = Config::parse(Path::new("mailshift.toml"), text).unwrap_err();
        error.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_small_file_is_enough() {
        let config = Config::parse(Path::new("mailshift.toml"), GOOD).unwrap();
        assert_eq!(config.mx.hostname.as_str(), "mx.example.org");
        assert_eq!(config.mx.listeners[0].config.binds[0], Bind::Port(25));
        assert_eq!(config.login.listeners[0].listener.tls, ListenerTls::Implicit);
        let old = config.backends.iter().next().unwrap();
        assert_eq!(old.mail.as_ref().unwrap().endpoint.hosts[0].port, 2424);
        assert_eq!(old.imap.as_ref().unwrap().hosts[0].port, 143);
    }

    #[test]
    fn the_gateway_listens_by_smtp_and_by_lmtp_and_by_lmtp_never_on_port_25() {
        let with = |lmtp: &str| {
            let mx = format!("lmtp = {{ listen = [{lmtp}] }}\n[login]");
            GOOD.replacen("[login]", &mx, 1)
        };
        let config = Config::parse(Path::new("mailshift.toml"), &with("\"[::1]:24\"")).unwrap();
        assert_eq!(config.mx.listener(MxKind::Lmtp).unwrap().binds[0].port(), 24);
        assert_eq!(config.mx.listener(MxKind::Smtp).unwrap().binds[0].port(), 25);
        for port_25 in ["\"[::1]:25\"", "\":24\", \":25\""] {
            let problems = problems(&with(port_25)).join("\n");
            assert!(problems.contains("must not be on port 25"), "{problems}");
        }
        let problems = problems(&with("\"127.0.0.1:2525\"")).join("\n");
        assert!(problems.contains("another listener has 127.0.0.1:2525 already"), "{problems}");
    }

    #[test]
    fn who_may_name_its_clients_by_xclient_may_do_so_by_proxy() {
        let text = GOOD.replace(
            "smtp = { listen = [\":25\", \"127.0.0.1:2525\"] }",
            "smtp = { listen = [\":25\"], proxy_protocol = \"optional\" }\n\
             trusted_networks = [\"192.0.2.0/24\"]",
        );
        let config = Config::parse(Path::new("mailshift.toml"), &text).unwrap();
        let edge = "192.0.2.7".parse().unwrap();
        assert!(config.mx.is_trusted(edge) && !config.mx.is_trusted("192.0.3.7".parse().unwrap()));
        let smtp = config.mx.listener(MxKind::Smtp).unwrap();
        assert!(smtp.proxy_trusted.iter().any(|network| network.contains(&edge)));
    }

    #[test]
    fn every_problem_is_named_with_file_line_key_and_nearest_key() {
        let text = r#"
[ownership]
url = "sqlite:/x"
max_stalenes = "5m"
poll_interval = 5
[backends.old.mail]
host = "127.0.0.1"
protocl = "smtp"
[log]
format = "jsn"
"#;
        assert_eq!(
            problems(text),
            [
                "mailshift.toml:4: ownership.max_stalenes: unknown field `max_stalenes`, did you mean `max_staleness`?",
                "mailshift.toml:5: ownership.poll_interval: invalid type: integer `5`, expected a duration",
                "mailshift.toml:8: backends.old.mail.protocl: unknown field `protocl`, did you mean `protocol`?",
                "mailshift.toml:10: log.format: unknown variant `jsn`, did you mean `json`?",
            ]
        );
    }

    #[test]
    fn what_is_mails_alone_is_no_login_protocols() {
        let mail = "protocol = \"lmtp\"\n";
        let with = |text: &str| GOOD.replace(mail, &format!("{mail}{text}\n"));
        let text = with("identity = \"xclient\"\nchunking = false\nwarm = 9\nmax_connections = 7");
        let config = Config::parse(Path::new("mailshift.toml"), &text).unwrap();
        let old = config.backends.iter().next().unwrap().mail.as_ref().unwrap();
        assert_eq!((old.chunking, old.warm, old.max_connections), (false, 9, 7));
        for (text, expected) in [
            (with("warm = 1"), "mail.warm: is for identity = \"xclient\""),
            (with("max_connections = 0"), "mail.max_connections: has to be at least 1"),
            (
                GOOD.replace("\"::1\"", "\"::1\"\nchunking = true"),
                "imap.chunking: is for mail only",
            ),
            (
                GOOD.replace("\"::1\"", "\"::1\"\nidentity = \"xforward\""),
                "imap.identity: IMAP has",
            ),
        ] {
            let found = problems(&text);
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn a_routing_domain_stands_for_one_real_domain() {
        let with = |names: &str| GOOD.replace("[tls]\n", &format!("[names]\n{names}\n[tls]\n"));
        let good = with("routing_domains = { \"Moved.Example.org\" = \"example.org\" }");
        let config = Config::parse(Path::new("mailshift.toml"), &good).unwrap();
        let real = config.names.routing_domains.real("moved.example.org").map(Domain::as_str);
        assert_eq!(real, Some("example.org"));
        for (names, expected) in [
            ("routing_domains = { \"a.example\" = \"A.example\" }", "a.example stands for itself"),
            (
                "routing_domains = { \"a.example\" = \"b.example\", \"b.example\" = \"c.example\" }",
                "a.example stands for b.example, which is a routing domain itself",
            ),
            ("routing_domains = { \"a b\" = \"c.example\" }", "\"a b\": bad domain"),
            (
                "default_domain = \"a.example\"\nrouting_domains = { \"a.example\" = \"b.example\" }",
                "is a routing domain: name the real one",
            ),
        ] {
            let found = problems(&with(names));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn passwords_in_the_clear_need_a_word_of_consent() {
        let remote = GOOD.replace("host = \"::1\"", "host = \"192.0.2.1\"\ntls = \"plain\"");
        assert_eq!(
            problems(&remote),
            [
                "mailshift.toml:12: backends.old.imap.tls: passwords would go to 192.0.2.1 in the clear; use \
              \"starttls\" or \"implicit\", or set allow_plaintext = true"
            ]
        );
        let by_ip = GOOD.replace("host = \"::1\"", "host = \"192.0.2.1\"");
        assert!(
            problems(&by_ip)[0].contains("set server_name or pin_sha256"),
            "{:?}",
            problems(&by_ip)
        );
    }

    #[test]
    fn several_hosts_have_ports_and_names_of_their_own() {
        let parse = |text: &str| Config::parse(Path::new("mailshift.toml"), text);
        let several = r#"host = ["a.example.org", "b.example.org:1143", "[2001:db8::1]:143"]
server_name = "" # each one's own
source_address = ["192.0.2.1", "2001:db8::9"]
pin_sha256 = ["PIN"]"#;
        let several = several.replace("PIN", &"ab".repeat(32));
        let config = parse(&GOOD.replace("host = \"::1\"", &several)).unwrap();
        let imap = config.backends.iter().next().unwrap().imap.clone().unwrap();
        assert_eq!(imap.shown(), "a.example.org:143, b.example.org:1143, [2001:db8::1]:143");
        let names: Vec<_> =
            imap.hosts.iter().map(|host| host.server_name.clone().unwrap()).collect();
        assert_eq!(names[1].to_str(), "b.example.org");
        assert_eq!(imap.source.towards("192.0.2.7".parse().unwrap()), "192.0.2.1".parse().ok());
        assert_eq!(imap.source.towards("::7".parse().unwrap()), "2001:db8::9".parse().ok());
        for (wrong, problem) in [
            ("host = [\"::1\", \"a b:9\"]", "neither a host name nor an IP address"),
            ("host = [\"::1\", \"localhost:0\"]", "no port to connect to"),
            ("host = [\"::1\", \"localhost:x\"]", "no port to connect to"),
            ("host = []", "imap.host: is missing"),
            ("host = 7", "a host name or address, or a list of them"),
            ("host = \"::1\"\nsource_address = [\"::1\", \"::2\"]", "two addresses of one family"),
            ("host = [\"::1\", \"192.0.2.1\"]", "set server_name or pin_sha256"),
        ] {
            let found = problems(&GOOD.replace("host = \"::1\"", wrong));
            assert!(found.iter().any(|line| line.contains(problem)), "{wrong}: {found:?}");
        }
    }

    #[test]
    fn a_backend_that_is_a_listener_of_ours_is_named() {
        let parse = |text: &str| Config::parse(Path::new("mailshift.toml"), text).unwrap().loops();
        assert_eq!(parse(GOOD), Vec::<String>::new());
        let to_itself = GOOD.replace("host = \"::1\"", "host = \"::1\"\nport = 993");
        assert_eq!(
            parse(&to_itself),
            ["backends.old.imap: [::1]:993 is this service itself, which listens on [::1]:993; \
                 connections to it are refused"]
        );
        // The other service's listeners are not this one's.
        let to_other = GOOD.replace("host = \"::1\"", "host = \"127.0.0.1\"\nport = 2525");
        assert_eq!(parse(&to_other), Vec::<String>::new());
    }

    #[test]
    fn the_internal_listener_and_the_look_ups_lead_somewhere_and_to_somebody() {
        let with = |keys: &str| GOOD.replace("[mx]\n", &format!("[mx]\n{keys}\n"));
        let good = with(
            "internal = { listen = [\":2526\"], outbound = \"old\" }\n\
             lookup = { listen = [\":2527\"], tcp_table = { old = \":2528\" } }",
        );
        let config = Config::parse(Path::new("mailshift.toml"), &good).unwrap();
        let internal = config.mx.listener(MxKind::Internal).unwrap();
        assert_eq!(internal.binds, [Bind::Port(2526)]);
        assert_eq!(&*config.mx.lookup.next_hop, "smtp:[mx.example.org]:2526");
        let local: IpAddr = "127.9.9.9".parse().unwrap();
        let trusts = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&local));
        assert!(trusts(&config.mx.internal.trusted_networks), "this host, if nothing is said");
        assert!(trusts(&config.mx.lookup.trusted_networks));
        for (keys, expected) in [
            (
                "internal = { listen = [\":2526\"], trusted_networks = [] }",
                "mx.internal.trusted_networks: names no network",
            ),
            ("internal = { outbound = \"nwe\" }", "there is no [backends.nwe.mail]"),
            ("lookup = { listen = [\":2527\"] }", "mx.lookup.next_hop: is where mail servers"),
            (
                "lookup = { socket = \"lookup\", next_hop = \"smtp:x\" }",
                "mx.lookup.socket: needs an absolute path",
            ),
            (
                "lookup = { listen = [\":2527\"], next_hop = \"gateway\" }",
                "mx.lookup.next_hop: is a transport",
            ),
            (
                "lookup = { tcp_table = { odl = \":2528\" }, next_hop = \"smtp:x\" }",
                "mx.lookup.tcp_table.odl: is no backend",
            ),
            ("internal = { listen = [\":25\"] }", "another listener has :25 already"),
            ("limits = { dnsbl = [\"a b\"] }", "mx.limits.dnsbl: \"a b\": bad domain"),
            ("limits = { greet_delay = \"1m\" }", "mx.limits.greet_delay: must be at most 30s"),
        ] {
            let found = problems(&with(keys));
            assert!(found.len() == 1 && found[0].contains(expected), "{keys}: {found:?}");
        }
    }

    #[test]
    fn no_certificate_is_a_refusal_to_start() {
        let found = problems(&GOOD.replace("self_signed = true", ""));
        assert!(found[0].contains("mx.smtp: needs a certificate"), "{found:?}");
        assert!(found[1].contains("login.imaps: needs a certificate"), "{found:?}");
    }

    #[test]
    fn a_listener_needs_a_backend_that_speaks_its_protocol() {
        let text = GOOD.replace("[login]\n", "[login]\npop3 = { listen = [\":110\"] }\n");
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("login.pop3: no backend speaks pop3"), "{found:?}");
        let text = format!("{text}[backends.old.pop3]\nhost = \"127.0.0.1\"\n");
        assert!(Config::parse(Path::new("mailshift.toml"), &text).is_ok());
    }

    #[test]
    fn what_would_do_nothing_or_not_work_is_a_problem() {
        for (old, new, problem) in [
            (
                "host = \"::1\"",
                "host = \"::1\"\npin_sha256 = [\"x\"]",
                "imap.pin_sha256: is for TLS",
            ),
            ("host = \"::1\"", "host = \"::1\"\nca_file = \"/ca\"", "imap.ca_file: is for TLS"),
            ("host = \"::1\"", "host = \"::1\"\nport = 0", "imap.port: 0 is no port"),
            (
                "imaps = {",
                "imap = { listen = [\"[::1]:993\"] }\nimaps = {",
                "login.imap.listen: another listener has [::1]:993 already",
            ),
        ] {
            let found = problems(&GOOD.replace(old, new));
            assert!(found.len() == 1 && found[0].contains(problem), "{new}: {found:?}");
        }
    }

    #[test]
    fn capabilities_before_login_are_words_and_nothing_that_depends_on_the_connection() {
        let said = |key: &str, words: &[&str]| {
            GOOD.replace("[login]\n", &format!("[login]\nadvertise.{key} = {words:?}\n"))
        };
        let config = |key, words| Config::parse(Path::new("mailshift.toml"), &said(key, words));
        let default = Config::parse(Path::new("mailshift.toml"), GOOD).unwrap();
        assert_eq!(default.login.advertised.imap, None);
        let config = config("imap", &["IMAP4rev1", "ID"]).unwrap();
        let words = config.login.advertised.of(LoginProtocol::Imap).unwrap();
        assert_eq!(words, ["IMAP4rev1".into(), "ID".into()]);
        for (key, wrong) in [
            ("imap", &["ID"][..]),
            ("imap", &["IMAP4rev1", ""]),
            ("imap", &["IMAP4rev1", "AUTH=LOGIN"]),
            ("imap", &["IMAP4rev1", "starttls"]),
            ("imap", &["IMAP4rev1\r\n* BYE"]),
            ("pop3", &["TOP", "SASL PLAIN"]),
            ("submission", &["SIZE 1000", "auth PLAIN"]),
            ("submission", &["SIZE\r\n250 AUTH"]),
            ("managesieve", &["\"SIEVE\" \"fileinto\"", "\"sasl\" \"PLAIN\""]),
            ("mechanisms", &["PLAIN", "GSSAPI"]),
        ] {
            let found = problems(&said(key, wrong));
            assert!(found[0].contains(&format!("login.advertise.{key}")), "{wrong:?}: {found:?}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = GOOD.replace("sqlite:/tmp/ownership.db", "postgres://ms:hunter2@db/ms");
        let config = Config::parse(Path::new("mailshift.toml"), &text).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
