//! The configuration file as written: every key with its default in one literal a section.
//!
//! Nothing here is checked beyond its type; `parse` does that. `config/mailshift.toml` shows every key,
//! and a test compares it with these defaults (CFG-5).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The whole file.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) node: Node,
    pub(super) ownership: Ownership,
    pub(super) names: Names,
    pub(super) tls: Tls,
    pub(super) backends: BTreeMap<String, Backend>,
    pub(super) mx: Mx,
    pub(super) login: Login,
    pub(super) log: Log,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) state_dir: PathBuf,
    #[serde(with = "humantime_serde")]
    pub(super) shutdown_grace: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) handover_grace: Duration,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: String::new(),
            state_dir: "/var/lib/mailshift".into(),
            shutdown_grace: Duration::from_secs(30),
            handover_grace: Duration::from_hours(1),
        }
    }
}

#[derive(PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Ownership {
    pub(super) url: String,
    pub(super) url_file: Option<PathBuf>,
    pub(super) listen_url: String,
    pub(super) listen_url_file: Option<PathBuf>,
    #[serde(with = "humantime_serde")]
    pub(super) max_staleness: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) poll_interval: Duration,
    pub(super) apply_schema: bool,
}

impl Default for Ownership {
    fn default() -> Self {
        Self {
            url: "sqlite:/var/lib/mailshift/ownership/ownership.db".into(),
            url_file: None,
            listen_url: String::new(),
            listen_url_file: None,
            max_staleness: Duration::from_mins(5),
            poll_interval: Duration::from_secs(1),
            apply_schema: true,
        }
    }
}

/// The URLs may hold passwords.
impl std::fmt::Debug for Ownership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ownership").finish_non_exhaustive()
    }
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Names {
    pub(super) default_domain: String,
    pub(super) routing_domains: BTreeMap<String, String>,
    pub(super) master_separators: String,
    pub(super) token_claims: Vec<String>,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            default_domain: String::new(),
            routing_domains: BTreeMap::new(),
            master_separators: "*".into(),
            token_claims: ["email", "preferred_username", "upn"].map(str::to_owned).into(),
        }
    }
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) certificates: Vec<Certificate>,
    pub(super) self_signed: bool,
    pub(super) ticket_key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Certificate {
    pub(super) cert_file: PathBuf,
    pub(super) key_file: PathBuf,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Backend {
    pub(super) mail: Option<Endpoint>,
    pub(super) imap: Option<Endpoint>,
    pub(super) pop3: Option<Endpoint>,
    pub(super) submission: Option<Endpoint>,
    pub(super) managesieve: Option<Endpoint>,
    pub(super) http: Option<Endpoint>,
}

/// One protocol's address at a backend. `port`, `tls`, `identity` and `protocol` have defaults that
/// depend on the protocol.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Endpoint {
    #[serde(deserialize_with = "one_or_several")]
    pub(super) host: Vec<String>,
    pub(super) port: Option<u16>,
    pub(super) source_address: Vec<IpAddr>,
    pub(super) protocol: Option<MailProtocol>,
    pub(super) tls: Option<BackendTls>,
    pub(super) server_name: String,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) pin_sha256: Vec<String>,
    pub(super) allow_plaintext: bool,
    pub(super) client_cert_file: Option<PathBuf>,
    pub(super) client_key_file: Option<PathBuf>,
    pub(super) identity: Option<Identity>,
    pub(super) proxy_extensions: Vec<ProxyExtension>,
    pub(super) hide_auth_errors: bool,
    #[serde(with = "humantime_serde")]
    pub(super) connect_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) reply_timeout: Duration,
    pub(super) chunking: Option<bool>,
    pub(super) warm: Option<usize>,
    pub(super) max_connections: Option<usize>,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            host: Vec::new(),
            port: None,
            source_address: Vec::new(),
            protocol: None,
            tls: None,
            server_name: String::new(),
            ca_file: None,
            pin_sha256: Vec::new(),
            allow_plaintext: false,
            client_cert_file: None,
            client_key_file: None,
            identity: None,
            proxy_extensions: Vec::new(),
            hide_auth_errors: true,
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_mins(1),
            chunking: None,
            warm: None,
            max_connections: None,
        }
    }
}

/// A word, or a list of them.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a host name or address, or a list of them")
        }

        fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Vec<String>, E> {
            Ok(vec![word.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<String>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
    deserializer.deserialize_any(Words)
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum MailProtocol {
    Smtp,
    Lmtp,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum BackendTls {
    Plain,
    StartTls,
    Implicit,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Identity {
    None,
    Xclient,
    Xforward,
    DovecotId,
    Proxy,
    ProxyV1,
    Forwarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ProxyExtension {
    Authority,
    UniqueId,
    Tls,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Mx {
    pub(super) hostname: String,
    pub(super) postmaster: String,
    pub(super) smtp: Listener,
    pub(super) lmtp: Listener,
    pub(super) trusted_networks: Vec<IpNet>,
    pub(super) internal: Internal,
    pub(super) lookup: Lookup,
    pub(super) limits: Limits,
    pub(super) tls_fallback: bool,
    pub(super) max_message_size: ByteSize,
    pub(super) memory_per_message: ByteSize,
    pub(super) max_recipients: usize,
    #[serde(with = "humantime_serde")]
    pub(super) command_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) data_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) delivery_timeout: Duration,
    pub(super) max_received: usize,
    #[serde(with = "humantime_serde")]
    pub(super) patience: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) flip_grace: Duration,
    pub(super) queue: Queue,
    pub(super) authentication: Authentication,
    pub(super) mail_log: PathBuf,
    pub(super) mail_log_name: String,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Queue {
    #[serde(with = "humantime_serde")]
    pub(super) expire: Duration,
    pub(super) max_per_backend: u32,
    pub(super) max_per_second: u32,
    pub(super) report_via: String,
    pub(super) reserve: ByteSize,
    #[serde(with = "humantime_serde")]
    pub(super) remember: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            expire: Duration::from_hours(5 * 24),
            max_per_backend: 20,
            max_per_second: 0,
            report_via: String::new(),
            reserve: ByteSize::mib(64),
            remember: Duration::from_hours(48),
        }
    }
}

impl Default for Mx {
    fn default() -> Self {
        Self {
            hostname: String::new(),
            postmaster: String::new(),
            smtp: Listener::default(),
            lmtp: Listener::default(),
            trusted_networks: Vec::new(),
            internal: Internal::default(),
            lookup: Lookup::default(),
            limits: Limits::default(),
            tls_fallback: false,
            max_message_size: ByteSize::mib(50),
            memory_per_message: ByteSize::kib(256),
            max_recipients: 1000,
            // RFC 5321 §4.5.3.2.7.
            command_timeout: Duration::from_mins(5),
            // RFC 5321 §4.5.3.2.5 allows 3 minutes a block.
            data_timeout: Duration::from_mins(3),
            // RFC 5321 §4.5.3.2.6.
            delivery_timeout: Duration::from_mins(10),
            max_received: 100,
            patience: Duration::from_secs(30),
            flip_grace: Duration::from_hours(24),
            queue: Queue::default(),
            authentication: Authentication::default(),
            mail_log: PathBuf::new(),
            mail_log_name: "postfix".into(),
        }
    }
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Authentication {
    pub(super) enabled: bool,
    pub(super) name: String,
    #[serde(with = "humantime_serde")]
    pub(super) time_limit: Duration,
    pub(super) dns: Vec<String>,
    pub(super) enforce: BTreeMap<String, Enforcement>,
    pub(super) max_signatures: usize,
    pub(super) max_verified_size: ByteSize,
    pub(super) arc_seal: ArcSeal,
}

impl Default for Authentication {
    fn default() -> Self {
        Self {
            enabled: true,
            name: String::new(),
            time_limit: Duration::from_secs(8),
            dns: Vec::new(),
            enforce: BTreeMap::new(),
            max_signatures: 8,
            max_verified_size: ByteSize::mib(25),
            arc_seal: ArcSeal::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Enforcement {
    Off,
    Quarantine,
    Reject,
}

/// With an empty domain nothing is sealed.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ArcSeal {
    pub(super) domain: String,
    pub(super) selector: String,
    pub(super) key_file: PathBuf,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "login_timeout is the operators' word")]
pub(super) struct Login {
    pub(super) hostname: String,
    pub(super) imap: Listener,
    pub(super) imaps: Listener,
    pub(super) pop3: Listener,
    pub(super) pop3s: Listener,
    pub(super) submission: Listener,
    pub(super) submissions: Listener,
    pub(super) managesieve: Listener,
    pub(super) http: Listener,
    pub(super) https: Listener,
    pub(super) web: Web,
    pub(super) advertise: Advertise,
    #[serde(with = "humantime_serde")]
    pub(super) login_timeout: Duration,
    pub(super) max_failures: u32,
    #[serde(with = "humantime_serde")]
    pub(super) failure_delay: Duration,
    pub(super) guesses_per_address: u32,
    #[serde(with = "humantime_serde")]
    pub(super) guess_window: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) attach_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) hold_wait: Duration,
    pub(super) max_held_per_account: usize,
    pub(super) max_held: usize,
    #[serde(with = "humantime_serde")]
    pub(super) idle_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) kick_grace: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) data_grace: Duration,
    pub(super) allow_plaintext: bool,
    pub(super) trusted_networks: Vec<IpNet>,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            hostname: String::new(),
            imap: Listener::default(),
            imaps: Listener::default(),
            pop3: Listener::default(),
            pop3s: Listener::default(),
            submission: Listener::default(),
            submissions: Listener::default(),
            managesieve: Listener::default(),
            http: Listener::default(),
            https: Listener::default(),
            web: Web::default(),
            advertise: Advertise::default(),
            login_timeout: Duration::from_mins(3),
            max_failures: 10,
            failure_delay: Duration::from_secs(2),
            guesses_per_address: 100,
            guess_window: Duration::from_mins(10),
            attach_timeout: Duration::from_secs(30),
            hold_wait: Duration::from_secs(30),
            max_held_per_account: 20,
            max_held: 5000,
            // IDLE is renewed every 29 minutes (RFC 2177); servers may log out after 30.
            idle_timeout: Duration::from_mins(31),
            kick_grace: Duration::from_secs(2),
            data_grace: Duration::from_secs(30),
            allow_plaintext: false,
            trusted_networks: Vec::new(),
        }
    }
}

/// What both HTTP listeners have in common.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Web {
    pub(super) public_name: String,
    pub(super) display_name: String,
    pub(super) presets: Vec<WebPreset>,
    pub(super) fallback: String,
    pub(super) rules: Vec<WebRule>,
    pub(super) max_body: ByteSize,
    pub(super) max_header_size: ByteSize,
    #[serde(with = "humantime_serde")]
    pub(super) keepalive: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) head_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) body_timeout: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) retry_after: Duration,
    pub(super) rewrite_urls: bool,
    pub(super) discovery: String,
    pub(super) acme_challenge: PathBuf,
    pub(super) caldav: String,
    pub(super) carddav: String,
    pub(super) jmap: String,
    pub(super) mta_sts: MtaSts,
}

impl Default for Web {
    fn default() -> Self {
        Self {
            public_name: String::new(),
            display_name: String::new(),
            presets: Vec::new(),
            fallback: String::new(),
            rules: Vec::new(),
            max_body: ByteSize::gib(1),
            max_header_size: ByteSize::kib(64),
            keepalive: Duration::from_secs(75),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_mins(1),
            retry_after: Duration::from_secs(5),
            rewrite_urls: true,
            discovery: String::new(),
            acme_challenge: PathBuf::new(),
            caldav: String::new(),
            carddav: String::new(),
            jmap: String::new(),
            mta_sts: MtaSts::default(),
        }
    }
}

/// Rules that come behind one's own.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum WebPreset {
    Autoconfig,
    Jmap,
    Dav,
    Stalwart,
    Cyrus,
    Sogo,
}

/// Requests, and what becomes of them. One of `account`, `backend` and `answer` says it.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WebRule {
    pub(super) host: String,
    pub(super) path: String,
    pub(super) methods: Vec<String>,
    pub(super) account: Vec<String>,
    pub(super) fallback: String,
    pub(super) backend: String,
    pub(super) answer: Option<WebAnswer>,
    pub(super) websocket: bool,
    pub(super) issues_codes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum WebAnswer {
    Autoconfig,
    Autodiscover,
    MtaSts,
    Acme,
    WellKnown,
}

/// With an empty mode there is no policy.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MtaSts {
    pub(super) mode: String,
    pub(super) mx: Vec<String>,
    #[serde(with = "humantime_serde")]
    pub(super) max_age: Duration,
}

impl Default for MtaSts {
    fn default() -> Self {
        Self { mode: String::new(), mx: Vec::new(), max_age: Duration::from_hours(7 * 24) }
    }
}

/// The internal listener: a listener's keys, and its own.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Internal {
    pub(super) listen: Vec<String>,
    pub(super) tls: ListenerTls,
    pub(super) trusted_networks: Vec<IpNet>,
    pub(super) outbound: String,
    pub(super) max_connections: usize,
    pub(super) max_per_address: usize,
}

impl Default for Internal {
    fn default() -> Self {
        let Listener { max_connections, max_per_address, .. } = Listener::default();
        Self {
            listen: Vec::new(),
            tls: ListenerTls::StartTls,
            trusted_networks: loopback(),
            outbound: String::new(),
            max_connections,
            max_per_address,
        }
    }
}

/// What one address may do on the public listener.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) connections_per_minute: u32,
    pub(super) messages_per_minute: u32,
    pub(super) refused_recipients: u32,
    #[serde(with = "humantime_serde")]
    pub(super) refused_window: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) greet_delay: Duration,
    #[serde(with = "humantime_serde")]
    pub(super) session_time: Duration,
    pub(super) dnsbl: Vec<String>,
    pub(super) exempt_networks: Vec<IpNet>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_minute: 1200,
            messages_per_minute: 6000,
            refused_recipients: 100,
            refused_window: Duration::from_mins(10),
            greet_delay: Duration::ZERO,
            session_time: Duration::from_hours(2),
            dnsbl: Vec::new(),
            exempt_networks: loopback(),
        }
    }
}

/// Where mail servers ask for addresses.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Lookup {
    pub(super) listen: Vec<String>,
    pub(super) socket: PathBuf,
    pub(super) tcp_table: BTreeMap<String, String>,
    pub(super) trusted_networks: Vec<IpNet>,
    pub(super) next_hop: String,
}

impl Default for Lookup {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            socket: PathBuf::new(),
            tcp_table: BTreeMap::new(),
            trusted_networks: loopback(),
            next_hop: String::new(),
        }
    }
}

/// This host alone.
fn loopback() -> Vec<IpNet> {
    let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    // All of 127.0.0.0/8 is this host.
    let length = |address: IpAddr| if address.is_ipv4() { 8 } else { 128 };
    addresses.iter().filter_map(|a| IpNet::new(*a, length(*a)).ok()).map(|n| n.trunc()).collect()
}

/// What is advertised before login. An empty list is "what all backends have".
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Advertise {
    pub(super) mechanisms: Vec<String>,
    pub(super) imap: Vec<String>,
    pub(super) pop3: Vec<String>,
    pub(super) submission: Vec<String>,
    pub(super) managesieve: Vec<String>,
}

/// A listener. An empty `listen` is "off".
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Listener {
    pub(super) listen: Vec<String>,
    pub(super) tls: Option<ListenerTls>,
    pub(super) proxy_protocol: ProxyMode,
    pub(super) proxy_trusted: Vec<IpNet>,
    pub(super) max_connections: usize,
    pub(super) max_per_address: usize,
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            tls: None,
            proxy_protocol: ProxyMode::Off,
            proxy_trusted: Vec::new(),
            max_connections: 20_000,
            max_per_address: 1_000,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ListenerTls {
    None,
    StartTls,
    Implicit,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ProxyMode {
    Off,
    Optional,
    Required,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: LogFormat,
    pub(super) level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = include_str!("../../../config/mailshift.toml");

    /// The reference file with every shown default switched on.
    fn reference() -> File {
        let shown: Vec<&str> = REFERENCE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
                _ => line,
            })
            .collect();
        toml::from_str(&shown.join("\n")).unwrap()
    }

    /// A default that depends on the protocol is `None` here and shown in the file.
    fn listener(tls: ListenerTls) -> Listener {
        Listener { tls: Some(tls), ..Listener::default() }
    }

    #[test]
    fn the_reference_file_shows_every_default() {
        let mut file = reference();
        let unset = |path: &mut Option<PathBuf>| {
            assert_eq!(path.take(), Some(PathBuf::new()), "an empty path shows that it is not set");
        };
        unset(&mut file.ownership.url_file);
        unset(&mut file.ownership.listen_url_file);
        unset(&mut file.tls.ticket_key_file);
        let default = File {
            mx: Mx {
                smtp: listener(ListenerTls::StartTls),
                lmtp: listener(ListenerTls::StartTls),
                ..Mx::default()
            },
            login: Login {
                imap: listener(ListenerTls::StartTls),
                imaps: listener(ListenerTls::Implicit),
                pop3: listener(ListenerTls::StartTls),
                pop3s: listener(ListenerTls::Implicit),
                submission: listener(ListenerTls::StartTls),
                submissions: listener(ListenerTls::Implicit),
                managesieve: listener(ListenerTls::StartTls),
                http: listener(ListenerTls::None),
                https: listener(ListenerTls::Implicit),
                ..Login::default()
            },
            ..File::default()
        };
        file.backends.clear();
        assert_eq!(file, default);
    }

    #[test]
    fn the_reference_file_shows_every_key_of_a_backend() {
        let mut file = reference();
        let old = file.backends.remove("old").unwrap();
        for (endpoint, identity) in
            [(old.mail.unwrap(), Identity::None), (old.imap.unwrap(), Identity::DovecotId)]
        {
            let shown = Endpoint {
                host: vec!["127.0.0.1".into()],
                port: endpoint.port,
                protocol: endpoint.protocol,
                chunking: endpoint.protocol.map(|_| true),
                warm: endpoint.protocol.map(|_| 4),
                max_connections: endpoint.protocol.map(|_| 50),
                tls: Some(BackendTls::Plain),
                ca_file: Some(PathBuf::new()),
                client_cert_file: Some(PathBuf::new()),
                client_key_file: Some(PathBuf::new()),
                identity: Some(identity),
                ..Endpoint::default()
            };
            assert_eq!(endpoint, shown);
        }
    }

    /// The keys of a section are taken from the error that an unknown one gets.
    #[test]
    fn the_reference_file_has_every_key_of_every_section() {
        for section in [
            "node",
            "ownership",
            "names",
            "tls",
            "backends.old.imap",
            "mx",
            "mx.smtp",
            "mx.queue",
            "mx.lmtp",
            "mx.authentication",
            "mx.authentication.arc_seal",
            "mx.internal",
            "mx.lookup",
            "mx.limits",
            "login",
            "login.imap",
            "login.imaps",
            "login.pop3",
            "login.pop3s",
            "login.submission",
            "login.submissions",
            "login.managesieve",
            "login.http",
            "login.https",
            "login.web",
            "login.web.mta_sts",
            "login.advertise",
            "log",
        ] {
            let wrong = format!("[{section}]\nno_such_key = 1\n");
            let error = toml::from_str::<File>(&wrong).unwrap_err();
            let shown = REFERENCE.split("\n[").find(|s| s.starts_with(&format!("{section}]")));
            let shown = shown.unwrap_or_else(|| panic!("[{section}] is not in the file"));
            for key in error.message().split('`').skip(3).step_by(2) {
                let nested = REFERENCE.contains(&format!("[{section}.{key}]"));
                let mail_only = section == "backends.old.imap"
                    && ["protocol", "chunking", "warm", "max_connections"].contains(&key);
                assert!(
                    shown.contains(&format!("{key} =")) || nested || mail_only,
                    "{section}.{key} is not in config/mailshift.toml"
                );
            }
        }
    }
}
