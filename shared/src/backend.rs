//! A backend: one configured mail system, and how each of its protocols is reached.
//!
//! Only names and addresses; connecting is the wire's business, and which backend an account lives
//! at is the ownership table's.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::Bind;
use crate::reach::Reach;
use crate::wire::ConnectError;

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
    /// Where POP3 sessions are joined.
    pub pop3: Option<Endpoint>,
    /// Where submission sessions are joined.
    pub submission: Option<Endpoint>,
    /// Where ManageSieve sessions are joined.
    pub managesieve: Option<Endpoint>,
    /// Where HTTP requests are sent.
    pub http: Option<Endpoint>,
}

/// A protocol that clients log in with, and whose sessions are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LoginProtocol {
    /// RFC 3501, RFC 9051.
    Imap,
    /// RFC 1939.
    Pop3,
    /// RFC 6409.
    Submission,
    /// RFC 5804.
    ManageSieve,
}

/// All backends by name. One that is not here is an unknown owner: refused temporarily, never guessed.
#[derive(Debug, Clone, Default)]
pub struct Backends(BTreeMap<BackendName, Arc<Backend>>);

/// One protocol's addresses at a backend.
#[derive(Clone)]
pub struct Endpoint {
    /// Where it is, the preferred one first.
    pub hosts: Vec<Host>,
    /// The addresses of ours that it is connected from.
    pub source: SourceAddresses,
    /// What is known of its addresses. Copies of an endpoint share it.
    pub reach: Arc<Reach>,
    /// How the connection is secured.
    pub tls: BackendTls,
    /// How the client's address is told to the backend.
    pub identity: Identity,
    /// What a PROXY header of version 2 says besides.
    pub proxy_extensions: ProxyExtensions,
    /// A refusal is answered in our own words, and not in the backend's.
    pub hide_auth_errors: bool,
    /// Longest wait for the TCP connection.
    pub connect_timeout: Duration,
    /// Longest wait for one reply before the session is joined or the data is sent.
    pub reply_timeout: Duration,
}

/// One place of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Host name or IP address, without brackets.
    pub name: Box<str>,
    /// TCP port.
    pub port: u16,
    /// The name in its certificate, where it is not the endpoint's.
    pub server_name: Option<ServerName<'static>>,
}

/// The addresses of ours that a connection is made from; the system chooses where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceAddresses {
    /// To an IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// To an IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

/// Where messages are delivered, in which protocol, and over how many connections.
#[derive(Debug, Clone)]
pub struct MailEndpoint {
    /// Its address.
    pub endpoint: Endpoint,
    /// SMTP or LMTP.
    pub protocol: MailProtocol,
    /// Messages are sent by BDAT (RFC 3030) where it is offered.
    pub chunking: bool,
    /// Connections that wait for clients, greeted already, where XCLIENT binds each to one client.
    pub warm: usize,
    /// Most connections at the same time.
    pub max_connections: usize,
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
    /// SMTP, LMTP, POP3, ManageSieve: the XCLIENT command, only where the backend offers it.
    Xclient,
    /// SMTP: the XFORWARD command, only where the backend offers it. It logs the client and judges us.
    Xforward,
    /// IMAP: Dovecot's `ID ("x-originating-ip" …)` from a trusted network.
    DovecotId,
    /// PROXY protocol version 2, before anything else.
    Proxy,
    /// PROXY protocol version 1 (Courier).
    ProxyV1,
    /// HTTP: `Forwarded` (RFC 7239) and `X-Forwarded-…`.
    Forwarded,
}

/// Extensions of a PROXY header of version 2; each is for the backend to want.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProxyExtensions {
    /// The server name that the client asked for.
    pub authority: bool,
    /// Our name for the session.
    pub unique_id: bool,
    /// That the client's connection is secured.
    pub tls: bool,
}

impl LoginProtocol {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Imap, Self::Pop3, Self::Submission, Self::ManageSieve];

    /// Its word in the configuration and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Imap => "imap",
            Self::Pop3 => "pop3",
            Self::Submission => "submission",
            Self::ManageSieve => "managesieve",
        }
    }
}

impl fmt::Display for LoginProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Backend {
    /// A backend without endpoints.
    pub fn new(name: BackendName) -> Self {
        Self {
            name,
            mail: None,
            imap: None,
            pop3: None,
            submission: None,
            managesieve: None,
            http: None,
        }
    }

    /// Where sessions of `protocol` are joined.
    pub fn login(&self, protocol: LoginProtocol) -> Option<&Endpoint> {
        match protocol {
            LoginProtocol::Imap => self.imap.as_ref(),
            LoginProtocol::Pop3 => self.pop3.as_ref(),
            LoginProtocol::Submission => self.submission.as_ref(),
            LoginProtocol::ManageSieve => self.managesieve.as_ref(),
        }
    }

    /// Its endpoints, each with its protocol's word in the configuration.
    pub fn endpoints(&self) -> impl Iterator<Item = (&'static str, &Endpoint)> {
        let mail = self.mail.as_ref().map(|mail| ("mail", &mail.endpoint));
        let logins = LoginProtocol::ALL.into_iter();
        let logins = logins.filter_map(|protocol| Some((protocol.as_str(), self.login(protocol)?)));
        let http = self.http.as_ref().map(|http| ("http", http));
        mail.into_iter().chain(logins).chain(http)
    }

    /// Sets where sessions of `protocol` are joined.
    pub fn set_login(&mut self, protocol: LoginProtocol, endpoint: Option<Endpoint>) {
        *match protocol {
            LoginProtocol::Imap => &mut self.imap,
            LoginProtocol::Pop3 => &mut self.pop3,
            LoginProtocol::Submission => &mut self.submission,
            LoginProtocol::ManageSieve => &mut self.managesieve,
        } = endpoint;
    }
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
        write!(f, "{} ({:?}, {:?})", self.shown(), self.tls, self.identity)
    }
}

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::StartTls(..) => "starttls",
            Self::Implicit(..) => "implicit",
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

impl Host {
    /// A place whose certificate has the endpoint's name.
    pub fn new(name: &str, port: u16) -> Self {
        Self { name: name.into(), port, server_name: None }
    }

    /// Its address, where none needs to be looked up.
    pub fn literal(&self) -> Option<IpAddr> {
        self.name.parse().ok()
    }
}

impl SourceAddresses {
    /// The one from which `peer` is connected to.
    pub fn towards(self, peer: IpAddr) -> Option<IpAddr> {
        match peer {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

impl MailEndpoint {
    /// With the configuration's defaults for all else.
    pub fn new(endpoint: Endpoint, protocol: MailProtocol) -> Self {
        Self { endpoint, protocol, chunking: true, warm: 4, max_connections: 50 }
    }
}

impl Endpoint {
    /// One place, in the clear, with the configuration's defaults for all else.
    pub fn plain(host: Host) -> Self {
        Self {
            hosts: vec![host],
            source: SourceAddresses::default(),
            reach: Arc::default(),
            tls: BackendTls::Plain,
            identity: Identity::None,
            proxy_extensions: ProxyExtensions::default(),
            hide_auth_errors: true,
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_mins(1),
        }
    }

    /// Its places as a log shows them. Names as configured, so that it is the same on every node.
    pub fn shown(&self) -> String {
        self.hosts.iter().map(Host::to_string).collect::<Vec<_>>().join(", ")
    }

    /// How `host` is secured: by its own name, where it has one.
    pub fn tls_of(&self, host: &Host) -> BackendTls {
        let named = |name: &ServerName<'static>| host.server_name.clone().unwrap_or(name.clone());
        match &self.tls {
            BackendTls::Plain => BackendTls::Plain,
            BackendTls::StartTls(config, name) => BackendTls::StartTls(config.clone(), named(name)),
            BackendTls::Implicit(config, name) => BackendTls::Implicit(config.clone(), named(name)),
        }
    }

    /// One endpoint for each of its addresses, in the order of preference, to look at each by itself.
    ///
    /// # Errors
    ///
    /// None of its names has an address.
    pub async fn each_address(&self) -> Result<Vec<Self>, ConnectError> {
        let mut hosts: Vec<Host> = Vec::new();
        let mut failure = None;
        for host in &self.hosts {
            match self.reach.resolve(&host.name).await {
                Ok(addresses) => {
                    for ip in &*addresses {
                        let host = Host { name: ip.to_string().into(), ..host.clone() };
                        if !hosts.contains(&host) {
                            hosts.push(host);
                        }
                    }
                }
                Err(source) => {
                    failure = Some(ConnectError::Resolve { host: host.name.clone(), source });
                }
            }
        }
        match failure {
            Some(failure) if hosts.is_empty() => Err(failure),
            _ => Ok(hosts
                .into_iter()
                .map(|host| Self { hosts: vec![host], ..self.clone() })
                .collect()),
        }
    }

    /// The longest time that a server may take to be greeted from before the wait is its address's fault.
    pub fn patience(&self) -> Duration {
        self.connect_timeout.min(self.reply_timeout)
    }

    /// A place of it at which we listen ourselves, as far as that is seen without a look-up.
    pub fn own_listener(&self) -> Option<(&Host, Bind)> {
        self.hosts.iter().find_map(|host| {
            let ip = match &*host.name {
                "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                _ => host.literal()?,
            };
            Some((host, self.reach.own_listener((ip, host.port).into())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes compare what they show of their backends.
    #[test]
    fn what_is_shown_of_an_endpoint_is_the_same_on_every_node() {
        let mut endpoint = Endpoint::plain(Host::new("a.example.org", 143));
        endpoint.hosts.push(Host::new("2001:db8::1", 1143));
        let shown = "a.example.org:143, [2001:db8::1]:1143 (plain, None)";
        assert_eq!(format!("{endpoint:?}"), shown);
        // What differs from node to node: where it connects from, and what it has found out.
        endpoint.source.v4 = Some(Ipv4Addr::LOCALHOST);
        let address = "192.0.2.1:143".parse().unwrap();
        while let Ok(trial) = endpoint.reach.admit(address, Duration::MAX) {
            trial.fail(&"refused");
        }
        assert_eq!(format!("{endpoint:?}"), shown);
    }
}
