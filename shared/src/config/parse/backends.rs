//! Backends, their endpoints, and whom their certificates must satisfy.

use std::net::IpAddr;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::ServerName;

use super::{Parser, raw};
use crate::address::Domain;
use crate::backend::{
    Backend, BackendName, BackendTls, Backends, Endpoint, Host, Identity, LoginProtocol,
    MailEndpoint, MailProtocol, ProxyExtensions, SourceAddresses,
};
use crate::config::{Bind, CertificateFiles, ListenerConfig, LoginConfig, MxConfig};
use crate::reach::Reach;
use crate::resolver::Resolver;
use crate::tls::{Trust, client_config};

/// Where the two services listen: a backend that is there would be ourselves.
pub(super) struct Listening {
    mail: Arc<[Bind]>,
    login: Arc<[Bind]>,
}

impl Listening {
    pub(super) fn of(mx: &MxConfig, login: &LoginConfig) -> Self {
        let binds = |listener: &ListenerConfig| listener.binds.clone();
        Self {
            mail: mx.listeners.iter().flat_map(|l| binds(&l.config)).collect(),
            login: login
                .listeners
                .iter()
                .map(|login| &login.listener)
                .chain(login.web_listeners.iter().map(|web| &web.listener))
                .flat_map(binds)
                .collect(),
        }
    }
}

/// What an endpoint's protocol brings along.
#[derive(Clone, Copy)]
struct EndpointRules {
    port: u16,
    implicit_port: u16,
    /// How clients' addresses are forwarded when nothing is configured.
    identity: Identity,
    /// Passwords go over it.
    credentials: bool,
}

impl Parser<'_, '_> {
    pub(super) fn backends(
        &mut self,
        backends: std::collections::BTreeMap<String, raw::Backend>,
        listening: &Listening,
    ) -> Backends {
        if backends.is_empty() {
            let message = "no backend is configured: name at least the old and the new server, \
                           [backends.old.mail], [backends.old.imap], …";
            self.problems.note("backends", message);
        }
        let resolver = Arc::new(Resolver::default());
        let mut parsed = Vec::new();
        for (name, backend) in backends {
            let key = format!("backends.{name}");
            let Ok(name) = BackendName::parse(&name) else {
                let message = "a backend's name is 1 to 63 of a-z, 0-9, '-', '_' and '.'";
                self.problems.note(&key, message);
                continue;
            };
            let raw::Backend { mail, imap, pop3, submission, managesieve, http } = backend;
            let logins = [
                (LoginProtocol::Imap, imap),
                (LoginProtocol::Pop3, pop3),
                (LoginProtocol::Submission, submission),
                (LoginProtocol::ManageSieve, managesieve),
            ];
            let none = mail.is_none() && http.is_none();
            if none && logins.iter().all(|(_, endpoint)| endpoint.is_none()) {
                let message = format!("has no endpoint: [{key}.mail], [{key}.imap], …");
                self.problems.note(&key, message);
            }
            let reach = |protocol, own: &Arc<[Bind]>| {
                let (resolver, own) = (Arc::clone(&resolver), Arc::clone(own));
                Arc::new(Reach::new(&name, protocol, resolver, own))
            };
            let mut backend = Backend::new(name.clone());
            backend.mail = mail.and_then(|mail| self.mail(&format!("{key}.mail"), &mail));
            if let Some(mail) = &mut backend.mail {
                mail.endpoint.reach = reach("mail", &listening.mail);
            }
            for (protocol, endpoint) in logins {
                let Some(endpoint) = endpoint else { continue };
                let mut endpoint =
                    self.login_endpoint(&format!("{key}.{protocol}"), protocol, &endpoint);
                if let Some(endpoint) = &mut endpoint {
                    endpoint.reach = reach(protocol.as_str(), &listening.login);
                }
                backend.set_login(protocol, endpoint);
            }
            backend.http = http.and_then(|http| self.http(&format!("{key}.http"), http));
            if let Some(http) = &mut backend.http {
                http.reach = reach("http", &listening.login);
            }
            parsed.push(backend);
        }
        parsed.into_iter().collect()
    }

    /// Where sessions of a protocol are joined.
    fn login_endpoint(
        &mut self,
        key: &str,
        protocol: LoginProtocol,
        endpoint: &raw::Endpoint,
    ) -> Option<Endpoint> {
        self.nothing_of_mail(key, endpoint);
        let (port, implicit_port) = match protocol {
            LoginProtocol::Imap => (143, 993),
            LoginProtocol::Pop3 => (110, 995),
            LoginProtocol::Submission => (587, 465),
            LoginProtocol::ManageSieve => (4190, 4190),
        };
        let (identity, wrong) = match protocol {
            LoginProtocol::Imap => (Identity::DovecotId, Identity::Xclient),
            LoginProtocol::Pop3 | LoginProtocol::Submission | LoginProtocol::ManageSieve => {
                (Identity::Xclient, Identity::DovecotId)
            }
        };
        let wrong = [wrong, Identity::Xforward, Identity::Forwarded];
        let rules = EndpointRules { port, implicit_port, identity, credentials: true };
        let endpoint = self.endpoint(key, endpoint, rules)?;
        if wrong.contains(&endpoint.identity) {
            let message = "IMAP has \"dovecot-id\", the other protocols have \"xclient\"; all have \
                           \"proxy\" and \"none\"";
            self.problems.note(&format!("{key}.identity"), message);
        }
        Some(endpoint)
    }

    fn nothing_of_mail(&mut self, key: &str, endpoint: &raw::Endpoint) {
        for (name, given) in [
            ("protocol", endpoint.protocol.is_some()),
            ("chunking", endpoint.chunking.is_some()),
            ("warm", endpoint.warm.is_some()),
            ("max_connections", endpoint.max_connections.is_some()),
        ] {
            if given {
                self.problems.note(&format!("{key}.{name}"), "is for mail only");
            }
        }
    }

    /// Where HTTP requests are sent.
    fn http(&mut self, key: &str, mut endpoint: raw::Endpoint) -> Option<Endpoint> {
        self.nothing_of_mail(key, &endpoint);
        let here = endpoint.host.iter().all(|text| is_loopback(split_port(text).0));
        match endpoint.tls {
            Some(raw::BackendTls::StartTls) => {
                let message = "HTTP has no STARTTLS: \"implicit\" or \"plain\"";
                self.problems.note(&format!("{key}.tls"), message);
            }
            None if !here => endpoint.tls = Some(raw::BackendTls::Implicit),
            Some(raw::BackendTls::Plain | raw::BackendTls::Implicit) | None => {}
        }
        let (port, implicit_port) = (80, 443);
        let rules =
            EndpointRules { port, implicit_port, identity: Identity::Forwarded, credentials: true };
        let endpoint = self.endpoint(key, &endpoint, rules)?;
        match endpoint.identity {
            Identity::Forwarded | Identity::Proxy | Identity::ProxyV1 | Identity::None => {}
            Identity::Xclient | Identity::Xforward | Identity::DovecotId => {
                let message = "HTTP has \"forwarded\", \"proxy\", \"proxy-v1\" and \"none\"";
                self.problems.note(&format!("{key}.identity"), message);
            }
        }
        Some(endpoint)
    }

    fn mail(&mut self, key: &str, mail: &raw::Endpoint) -> Option<MailEndpoint> {
        let protocol = match mail.protocol {
            Some(raw::MailProtocol::Lmtp) => MailProtocol::Lmtp,
            Some(raw::MailProtocol::Smtp) | None => MailProtocol::Smtp,
        };
        let (port, implicit_port) = match protocol {
            MailProtocol::Smtp => (25, 465),
            MailProtocol::Lmtp => (24, 24),
        };
        let rules =
            EndpointRules { port, implicit_port, identity: Identity::None, credentials: false };
        let endpoint = self.endpoint(key, mail, rules)?;
        if matches!(endpoint.identity, Identity::DovecotId | Identity::Forwarded) {
            let message = "\"dovecot-id\" is for IMAP, \"forwarded\" for HTTP; mail has \"xclient\", \"xforward\", \"proxy\" or \
                           \"none\"";
            self.problems.note(&format!("{key}.identity"), message);
        }
        if mail.warm.is_some() && endpoint.identity != Identity::Xclient {
            self.problems.note(&format!("{key}.warm"), "is for identity = \"xclient\"");
        }
        if mail.max_connections == Some(0) {
            let message = "has to be at least 1, or nothing is delivered there";
            self.problems.note(&format!("{key}.max_connections"), message);
        }
        let default = MailEndpoint::new(endpoint, protocol);
        Some(MailEndpoint {
            chunking: mail.chunking.unwrap_or(default.chunking),
            warm: mail.warm.unwrap_or(default.warm),
            max_connections: mail.max_connections.unwrap_or(default.max_connections),
            ..default
        })
    }

    fn endpoint(
        &mut self,
        key: &str,
        endpoint: &raw::Endpoint,
        rules: EndpointRules,
    ) -> Option<Endpoint> {
        if endpoint.host.iter().all(String::is_empty) {
            self.problems.note(&format!("{key}.host"), "is missing");
            return None;
        }
        let places: Vec<_> = endpoint
            .host
            .iter()
            .filter_map(|text| self.place(&format!("{key}.host"), text))
            .collect();
        let mode = endpoint.tls.unwrap_or(if places.iter().all(|(host, _)| is_loopback(host)) {
            raw::BackendTls::Plain
        } else {
            raw::BackendTls::StartTls
        });
        if endpoint.port == Some(0) {
            self.problems.note(&format!("{key}.port"), "0 is no port to connect to");
        }
        self.trust_is_used(key, mode, endpoint);
        let mut secured = Vec::new();
        for (host, _) in &places {
            secured.push(self.server_name(key, host, mode, endpoint, rules)?);
        }
        let tls = self.backend_tls(key, secured.first()?.clone(), mode, endpoint)?;
        let port = endpoint.port.unwrap_or(match mode {
            raw::BackendTls::Implicit => rules.implicit_port,
            raw::BackendTls::Plain | raw::BackendTls::StartTls => rules.port,
        });
        let hosts = places.into_iter().zip(secured).map(|((name, own), server_name)| Host {
            name: name.into(),
            port: own.unwrap_or(port),
            server_name,
        });
        Some(Endpoint {
            hosts: hosts.collect(),
            source: self.source(key, endpoint),
            reach: Arc::default(),
            tls,
            identity: endpoint.identity.map_or(rules.identity, Identity::from),
            proxy_extensions: self.proxy_extensions(key, endpoint),
            hide_auth_errors: endpoint.hide_auth_errors,
            connect_timeout: endpoint.connect_timeout,
            reply_timeout: endpoint.reply_timeout,
        })
    }

    /// A place: a name or an address, and the port behind it, if there is one.
    fn place(&mut self, key: &str, text: &str) -> Option<(String, Option<u16>)> {
        let (host, port) = split_port(text);
        if host.parse::<IpAddr>().is_err() && Domain::parse(host).is_err() {
            let message = format!("{host:?} is neither a host name nor an IP address");
            self.problems.note(key, message);
            return None;
        }
        let port = match port.map(str::parse) {
            None => None,
            Some(Ok(port)) if port > 0 => Some(port),
            Some(_) => {
                self.problems
                    .note(key, format!("{text:?} has no port to connect to behind its colon"));
                return None;
            }
        };
        Some((host.to_owned(), port))
    }

    /// The addresses of ours that it is connected from, one of each family at most.
    fn source(&mut self, key: &str, endpoint: &raw::Endpoint) -> SourceAddresses {
        let mut source = SourceAddresses::default();
        for address in &endpoint.source_address {
            let second = match *address {
                IpAddr::V4(v4) => source.v4.replace(v4).is_some(),
                IpAddr::V6(v6) => source.v6.replace(v6).is_some(),
            };
            if second {
                let message = "has two addresses of one family; which one would it be?";
                self.problems.note(&format!("{key}.source_address"), message);
            }
        }
        source
    }

    /// The name by which `host` proves itself; `None` in the clear.
    #[expect(clippy::option_option, reason = "the outer one says that a problem was noted")]
    fn server_name(
        &mut self,
        key: &str,
        host: &str,
        mode: raw::BackendTls,
        endpoint: &raw::Endpoint,
        rules: EndpointRules,
    ) -> Option<Option<ServerName<'static>>> {
        if mode == raw::BackendTls::Plain {
            if rules.credentials && !is_loopback(host) && !endpoint.allow_plaintext {
                let message = format!(
                    "passwords would go to {host} in the clear; use \"starttls\" or \"implicit\", \
                     or set allow_plaintext = true"
                );
                self.problems.note(&format!("{key}.tls"), message);
            }
            return Some(None);
        }
        let by_ip = host.parse::<IpAddr>().is_ok();
        if by_ip && endpoint.server_name.is_empty() && endpoint.pin_sha256.is_empty() {
            let message = "an IP address is no name to check a certificate by: \
                           set server_name or pin_sha256";
            self.problems.note(&format!("{key}.host"), message);
            return None;
        }
        let name = if endpoint.server_name.is_empty() { host } else { &endpoint.server_name };
        let Ok(name) = ServerName::try_from(name.to_owned()) else {
            self.problems.note(&format!("{key}.server_name"), "is no host name");
            return None;
        };
        Some(Some(name))
    }

    fn backend_tls(
        &mut self,
        key: &str,
        name: Option<ServerName<'static>>,
        mode: raw::BackendTls,
        endpoint: &raw::Endpoint,
    ) -> Option<BackendTls> {
        let Some(name) = name else { return Some(BackendTls::Plain) };
        let identity = self.client_certificate(key, endpoint);
        let trust = match self.trust(key, endpoint) {
            Some(trust) => client_config(&trust, identity.as_ref()),
            None => return None,
        };
        match (trust, mode) {
            (Ok(config), raw::BackendTls::Implicit) => Some(BackendTls::Implicit(config, name)),
            (Ok(config), raw::BackendTls::StartTls | raw::BackendTls::Plain) => {
                Some(BackendTls::StartTls(config, name))
            }
            (Err(error), _) => {
                self.problems.note(&format!("{key}.tls"), error.to_string());
                None
            }
        }
    }

    /// A pin that nothing looks at would be worse than none.
    fn trust_is_used(&mut self, key: &str, mode: raw::BackendTls, endpoint: &raw::Endpoint) {
        let named = [
            ("server_name", !endpoint.server_name.is_empty()),
            ("ca_file", endpoint.ca_file.is_some()),
            ("pin_sha256", !endpoint.pin_sha256.is_empty()),
            ("client_cert_file", endpoint.client_cert_file.is_some()),
        ];
        for (name, _) in named.into_iter().filter(|(_, given)| *given) {
            if mode == raw::BackendTls::Plain {
                let message = "is for TLS, and there is none on this connection: set tls = \"starttls\" \
                               or \"implicit\"";
                self.problems.note(&format!("{key}.{name}"), message);
            }
        }
        if endpoint.ca_file.is_some() && !endpoint.pin_sha256.is_empty() {
            let message =
                "a pin says which key it is, whoever signed it: leave ca_file or pin_sha256 out";
            self.problems.note(&format!("{key}.ca_file"), message);
        }
    }

    /// The certificate with which we prove who we are.
    fn client_certificate(
        &mut self,
        key: &str,
        endpoint: &raw::Endpoint,
    ) -> Option<CertificateFiles> {
        match (&endpoint.client_cert_file, &endpoint.client_key_file) {
            (Some(cert_file), Some(key_file)) => {
                Some(CertificateFiles { cert_file: cert_file.clone(), key_file: key_file.clone() })
            }
            (None, None) => None,
            (Some(_), None) => {
                self.problems.note(&format!("{key}.client_key_file"), "is missing");
                None
            }
            (None, Some(_)) => {
                self.problems.note(&format!("{key}.client_cert_file"), "is missing");
                None
            }
        }
    }

    fn proxy_extensions(&mut self, key: &str, endpoint: &raw::Endpoint) -> ProxyExtensions {
        let wanted = &endpoint.proxy_extensions;
        if !wanted.is_empty() && endpoint.identity != Some(raw::Identity::Proxy) {
            let message = "are for identity = \"proxy\"";
            self.problems.note(&format!("{key}.proxy_extensions"), message);
        }
        ProxyExtensions {
            authority: wanted.contains(&raw::ProxyExtension::Authority),
            unique_id: wanted.contains(&raw::ProxyExtension::UniqueId),
            tls: wanted.contains(&raw::ProxyExtension::Tls),
        }
    }

    fn trust(&mut self, key: &str, endpoint: &raw::Endpoint) -> Option<Trust> {
        if endpoint.pin_sha256.is_empty() {
            return Some(match &endpoint.ca_file {
                Some(file) => Trust::CaFile(file.clone()),
                None => Trust::Platform,
            });
        }
        let pins: Option<Vec<[u8; 32]>> =
            endpoint.pin_sha256.iter().map(|pin| digest_of_hex(pin)).collect();
        if pins.is_none() {
            let message = "a pin is 64 hexadecimal digits, colons allowed";
            self.problems.note(&format!("{key}.pin_sha256"), message);
        }
        pins.map(Trust::Pins)
    }
}

impl From<raw::Identity> for Identity {
    fn from(identity: raw::Identity) -> Self {
        match identity {
            raw::Identity::None => Self::None,
            raw::Identity::Xclient => Self::Xclient,
            raw::Identity::Xforward => Self::Xforward,
            raw::Identity::DovecotId => Self::DovecotId,
            raw::Identity::Proxy => Self::Proxy,
            raw::Identity::ProxyV1 => Self::ProxyV1,
            raw::Identity::Forwarded => Self::Forwarded,
        }
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or `v6`.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, (!rest.is_empty()).then(|| rest.strip_prefix(':').unwrap_or(rest)));
    }
    text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn digest_of_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    let mut digest = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (octet, pair) in digest.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *octet = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(digest)
}
