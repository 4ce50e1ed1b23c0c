//! Backends, their endpoints, and whom their certificates must satisfy.

use std::net::IpAddr;

use tokio_rustls::rustls::pki_types::ServerName;

use super::{Parser, raw};
use crate::address::Domain;
use crate::backend::{
    Backend, BackendName, BackendTls, Backends, Endpoint, Identity, LoginProtocol, MailEndpoint,
    MailProtocol, ProxyExtensions,
};
use crate::config::CertificateFiles;
use crate::tls::{Trust, client_config};

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
    ) -> Backends {
        if backends.is_empty() {
            let message = "no backend is configured: name at least the old and the new server, \
                           [backends.old.mail], [backends.old.imap], …";
            self.problems.note("backends", message);
        }
        let mut parsed = Vec::new();
        for (name, backend) in backends {
            let key = format!("backends.{name}");
            let Ok(name) = BackendName::parse(&name) else {
                let message = "a backend's name is 1 to 63 of a-z, 0-9, '-', '_' and '.'";
                self.problems.note(&key, message);
                continue;
            };
            let raw::Backend { mail, imap, pop3, submission, managesieve } = backend;
            let logins = [
                (LoginProtocol::Imap, imap),
                (LoginProtocol::Pop3, pop3),
                (LoginProtocol::Submission, submission),
                (LoginProtocol::ManageSieve, managesieve),
            ];
            if mail.is_none() && logins.iter().all(|(_, endpoint)| endpoint.is_none()) {
                let message = format!("has no endpoint: [{key}.mail], [{key}.imap], …");
                self.problems.note(&key, message);
            }
            let mut backend = Backend::new(name);
            backend.mail = mail.and_then(|mail| self.mail(&format!("{key}.mail"), &mail));
            for (protocol, endpoint) in logins {
                let Some(endpoint) = endpoint else { continue };
                let endpoint =
                    self.login_endpoint(&format!("{key}.{protocol}"), protocol, &endpoint);
                backend.set_login(protocol, endpoint);
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
        if endpoint.protocol.is_some() {
            self.problems.note(&format!("{key}.protocol"), "is for mail only");
        }
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
        let rules = EndpointRules { port, implicit_port, identity, credentials: true };
        let endpoint = self.endpoint(key, endpoint, rules)?;
        if endpoint.identity == wrong {
            let message = "IMAP has \"dovecot-id\", the other protocols have \"xclient\"; all have \
                           \"proxy\" and \"none\"";
            self.problems.note(&format!("{key}.identity"), message);
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
        if endpoint.identity == Identity::DovecotId {
            let message = "\"dovecot-id\" is for IMAP; mail has \"xclient\", \"proxy\" or \"none\"";
            self.problems.note(&format!("{key}.identity"), message);
        }
        Some(MailEndpoint { endpoint, protocol })
    }

    fn endpoint(
        &mut self,
        key: &str,
        endpoint: &raw::Endpoint,
        rules: EndpointRules,
    ) -> Option<Endpoint> {
        if endpoint.host.is_empty() {
            self.problems.note(&format!("{key}.host"), "is missing");
            return None;
        }
        let host = endpoint.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.parse::<IpAddr>().is_err() && Domain::parse(&host).is_err() {
            let message = format!("{host:?} is neither a host name nor an IP address");
            self.problems.note(&format!("{key}.host"), message);
        }
        let mode = endpoint.tls.unwrap_or(if is_loopback(&host) {
            raw::BackendTls::Plain
        } else {
            raw::BackendTls::StartTls
        });
        let tls = self.backend_tls(key, &host, mode, endpoint, rules)?;
        if endpoint.port == Some(0) {
            self.problems.note(&format!("{key}.port"), "0 is no port to connect to");
        }
        self.trust_is_used(key, mode, endpoint);
        let default_port = match mode {
            raw::BackendTls::Implicit => rules.implicit_port,
            raw::BackendTls::Plain | raw::BackendTls::StartTls => rules.port,
        };
        Some(Endpoint {
            host: host.into(),
            port: endpoint.port.unwrap_or(default_port),
            tls,
            identity: endpoint.identity.map_or(rules.identity, Identity::from),
            proxy_extensions: self.proxy_extensions(key, endpoint),
            hide_auth_errors: endpoint.hide_auth_errors,
            connect_timeout: endpoint.connect_timeout,
            reply_timeout: endpoint.reply_timeout,
        })
    }

    fn backend_tls(
        &mut self,
        key: &str,
        host: &str,
        mode: raw::BackendTls,
        endpoint: &raw::Endpoint,
        rules: EndpointRules,
    ) -> Option<BackendTls> {
        if mode == raw::BackendTls::Plain {
            if rules.credentials && !is_loopback(host) && !endpoint.allow_plaintext {
                let message = format!(
                    "passwords would go to {host} in the clear; use \"starttls\" or \"implicit\", \
                     or set allow_plaintext = true"
                );
                self.problems.note(&format!("{key}.tls"), message);
            }
            return Some(BackendTls::Plain);
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
            raw::Identity::DovecotId => Self::DovecotId,
            raw::Identity::Proxy => Self::Proxy,
            raw::Identity::ProxyV1 => Self::ProxyV1,
        }
    }
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
