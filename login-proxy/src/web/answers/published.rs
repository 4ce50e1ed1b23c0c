//! What is published of this installation: the name that clients know, and what they find there.
//!
//! It is made of the configuration by whoever knows the listeners. It has nothing of accounts, so no answer
//! made of it says whether there is one.

use std::net::IpAddr;

use shared::address::{Address, Domain};
use shared::backend::LoginProtocol;
use shared::mta_sts::MtaSts;
use shared::web::Place;

/// What is published.
#[derive(Debug, Clone)]
pub struct Published {
    /// The name that clients know.
    pub(super) name: Domain,
    /// The port of HTTPS under that name.
    pub(super) https_port: u16,
    /// What people call the service; empty: the name.
    pub(super) display_name: Box<str>,
    /// What clients log in with, as it is seen from outside.
    pub(super) services: Vec<Service>,
    /// Where JMAP is, if it is.
    pub(super) jmap: Option<Where>,
    /// Where calendars are, if they are.
    pub(super) caldav: Option<Where>,
    /// Where address books are, if they are.
    pub(super) carddav: Option<Where>,
    /// Who gives out tokens, if anybody does.
    pub(super) oauth: Option<OAuth>,
    /// The policy of MTA-STS, if there is one.
    pub(super) mta_sts: Option<MtaSts>,
}

/// A protocol on a port of the public name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) protocol: LoginProtocol,
    pub(super) port: u16,
    pub(super) security: Security,
}

/// How a connection is secured. One that is not secured is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Security {
    /// TLS from the first octet.
    Implicit,
    /// Plain text until STARTTLS.
    StartTls,
}

/// Where something is that clients look for under `/.well-known/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Where {
    /// Its server answers there itself.
    ItsServerKnows,
    /// There.
    At(Place),
}

/// Who gives out tokens (RFC 6749, RFC 9207). All are in the form in which they are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OAuth {
    /// The issuer's name.
    pub(super) issuer: Box<str>,
    /// Where a person logs in.
    pub(super) authorization_url: Box<str>,
    /// Where codes become tokens.
    pub(super) token_url: Box<str>,
    /// What a mail program asks for.
    pub(super) scope: Box<str>,
    /// What a mail program without an identifier of its own calls itself.
    pub(super) client_id: Box<str>,
}

impl Published {
    /// A name, and nothing else yet.
    pub fn named(name: Domain) -> Self {
        Self {
            name,
            https_port: 443,
            display_name: Box::default(),
            services: Vec::new(),
            jmap: None,
            caldav: None,
            carddav: None,
            oauth: None,
            mta_sts: None,
        }
    }

    /// The services of that protocol, those with TLS from the beginning first (RFC 8314 §3).
    pub(super) fn of(&self, protocol: LoginProtocol) -> Vec<Service> {
        let of_it = self.services.iter().filter(|service| service.protocol == protocol);
        let mut services: Vec<Service> = of_it.copied().collect();
        services.sort_by_key(|service| service.security);
        services
    }

    /// What people call the service.
    pub(super) fn title(&self) -> &str {
        if self.display_name.is_empty() { self.name.as_str() } else { &self.display_name }
    }

    /// The URL of a path under the public name.
    pub(super) fn url(&self, path: &str) -> String {
        match self.https_port {
            443 => format!("https://{}{path}", self.name),
            port => format!("https://{}:{port}{path}", self.name),
        }
    }

    /// The URL of a place; of one that is only known under `/.well-known/`, that one.
    pub(super) fn url_of(&self, place: &Where, well_known: &str) -> String {
        match place.location() {
            None => self.url(well_known),
            Some(path) if path.starts_with('/') => self.url(path),
            Some(url) => url.to_owned(),
        }
    }

    /// The domain a client asks about: its address's, or of the host it asks (`autoconfig.DOMAIN`, or the
    /// domain itself). Of what is none, the public name. `host` is without a port.
    pub(super) fn domain_asked(&self, address: Option<&[u8]>, host: Option<&str>) -> Domain {
        let asked = match address {
            Some(address) => std::str::from_utf8(address)
                .ok()
                .and_then(|address| Address::parse_utf8(address).ok())
                .map(|address| address.domain().clone()),
            None => host.and_then(domain_of_host),
        };
        // Clients take a whole answer for broken if its domain has an underscore.
        let asked = asked.filter(|domain| !domain.as_str().contains('_'));
        asked.unwrap_or_else(|| self.name.clone())
    }
}

fn domain_of_host(host: &str) -> Option<Domain> {
    let host = Domain::parse(host).ok()?;
    let name = host.as_str();
    let domain = name.strip_prefix("autoconfig.").unwrap_or(name);
    // Neither an address nor a name without a dot has mail of its own.
    let is_one = domain.contains('.') && domain.parse::<IpAddr>().is_err();
    if is_one { Domain::parse(domain).ok() } else { None }
}

impl Where {
    /// The path or URL; `None`: its server knows.
    pub(super) fn location(&self) -> Option<&str> {
        match self {
            Self::ItsServerKnows => None,
            Self::At(place) => Some(place.as_str()),
        }
    }
}

/// An installation as most are, for tests of the answers.
#[cfg(test)]
pub(super) fn typical() -> Published {
    use LoginProtocol::{Imap, ManageSieve, Pop3, Submission};
    let service = |protocol, port, security| Service { protocol, port, security };
    Published {
        name: Domain::parse("mail.example.org").unwrap(),
        https_port: 443,
        display_name: "Example Mail".into(),
        services: vec![
            service(Imap, 143, Security::StartTls),
            service(Imap, 993, Security::Implicit),
            service(Pop3, 995, Security::Implicit),
            service(Submission, 587, Security::StartTls),
            service(Submission, 465, Security::Implicit),
            service(ManageSieve, 4190, Security::StartTls),
        ],
        jmap: Some(Where::ItsServerKnows),
        caldav: Some(Where::At(Place::parse("/dav/cal/").unwrap())),
        carddav: Some(Where::ItsServerKnows),
        oauth: None,
        mta_sts: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_from_the_beginning_is_preferred() {
        let ports = |protocol| -> Vec<u16> {
            typical().of(protocol).iter().map(|service| service.port).collect()
        };
        assert_eq!(ports(LoginProtocol::Imap), [993, 143]);
        assert_eq!(ports(LoginProtocol::Submission), [465, 587]);
        assert_eq!(ports(LoginProtocol::Pop3), [995]);
    }

    #[test]
    fn a_client_asks_about_its_domain_or_about_none() {
        let asked = |address: Option<&[u8]>, host: Option<&str>| {
            typical().domain_asked(address, host).as_str().to_owned()
        };
        assert_eq!(asked(Some(b"ann@Example.NET"), Some("autoconfig.example.org")), "example.net");
        assert_eq!(
            asked(Some("ann@b\u{fc}cher.example".as_bytes()), None),
            "xn--bcher-kva.example"
        );
        assert_eq!(asked(None, Some("autoconfig.example.net")), "example.net");
        assert_eq!(asked(None, Some("Example.NET")), "example.net");
        let none: [(Option<&[u8]>, Option<&str>); 11] = [
            (None, None),
            (None, Some("192.0.2.1")),
            (None, Some("[2001:db8::1]")),
            (None, Some("autoconfig.")),
            (None, Some("autoconfig.192.0.2.1")),
            (Some(b""), Some("autoconfig.example.net")),
            (Some(b"ann"), None),
            (Some(b"ann@<x>"), None),
            (Some(b"ann@a_b.example"), None),
            (Some(b"ann@example.net\0"), None),
            (Some(b"ann@ex\xffample.net"), None),
        ];
        for (address, host) in none {
            assert_eq!(asked(address, host), "mail.example.org", "{address:?} {host:?}");
        }
    }

    #[test]
    fn a_place_is_a_path_of_ours_or_a_url_of_https() {
        let published = Published { https_port: 8443, ..typical() };
        let at = |text: &str| Where::At(Place::parse(text).unwrap());
        let url = |text: &str| published.url_of(&at(text), "/.well-known/x");
        assert_eq!(url("/dav/"), "https://mail.example.org:8443/dav/");
        assert_eq!(url("https://dav.example.org/"), "https://dav.example.org/");
        assert_eq!(
            typical().url_of(&Where::ItsServerKnows, "/.well-known/x"),
            "https://mail.example.org/.well-known/x"
        );
        for text in [
            "",
            "dav",
            "//evil.example/",
            "/\\evil.example/",
            "http://example.org/",
            "https://",
            "https:///x",
            "/a b",
            "/a\r\nSet-Cookie: x",
            "/\u{fc}",
            "javascript:x",
        ] {
            assert!(Place::parse(text).is_err(), "{text:?}");
        }
    }
}
