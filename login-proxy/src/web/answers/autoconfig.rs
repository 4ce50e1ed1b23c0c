//! Mozilla's configuration file (config-v1.1.xml), which Thunderbird, K-9, Evolution, KMail and others read:
//! <https://wiki.mozilla.org/Thunderbird:Autoconfiguration:ConfigFileFormat>, draft-ietf-mailmaint-autoconfig.
//! Pure.
//!
//! The same for everybody of a domain: what it says does not depend on whether there is such an address.

use bytes::Bytes;
use http::{Response, StatusCode};
use shared::address::Domain;
use shared::backend::LoginProtocol;

use super::published::{OAuth, Published, Security, Service, Where};
use super::reply::{Keep, XML, reply};
use super::well_known::{CALDAV, CARDDAV, JMAP};
use super::xml::Xml;

/// What clients put their user's address for.
const USERNAME: &str = "%EMAILADDRESS%";

/// The file. `emailaddress` is the query's parameter of that name, decoded; `host` is the host that was
/// asked, without a port: `autoconfig.DOMAIN` or the domain itself. An address that is none gets what is true
/// of the public name.
pub(super) fn answer(
    published: &Published,
    emailaddress: Option<&[u8]>,
    host: Option<&str>,
) -> Response<Bytes> {
    let domain = published.domain_asked(emailaddress, host);
    let mut xml = Xml::new();
    xml.within("clientConfig", &[("version", "1.1")], |xml| {
        xml.within("emailProvider", &[("id", domain.as_str())], |xml| {
            provider(xml, published, &domain);
        });
        // Beside the provider, not in it: so it is specified, and mail-only readers stop before it.
        collection(xml, published, ("addressBook", "carddav"), published.carddav.as_ref(), CARDDAV);
        collection(xml, published, ("calendar", "caldav"), published.caldav.as_ref(), CALDAV);
        if let Some(oauth) = &published.oauth {
            token_issuer(xml, oauth);
        }
    });
    reply(StatusCode::OK, XML, Keep::AnHour, xml.finish())
}

/// Clients take the first server that they can use, so the order is that of preference. Without a `domain`
/// Thunderbird takes nothing.
fn provider(xml: &mut Xml, published: &Published, domain: &Domain) {
    xml.leaf("domain", domain);
    xml.leaf("displayName", published.title());
    for (protocol, kind) in [(LoginProtocol::Imap, "imap"), (LoginProtocol::Pop3, "pop3")] {
        for service in published.of(protocol) {
            server(xml, published, ("incomingServer", kind), service);
        }
    }
    if let Some(place) = &published.jmap {
        xml.within("incomingServer", &[("type", "jmap")], |xml| {
            xml.leaf("url", published.url_of(place, JMAP));
            http_login(xml, published);
        });
    }
    for service in published.of(LoginProtocol::Submission) {
        server(xml, published, ("outgoingServer", "smtp"), service);
    }
}

fn server(
    xml: &mut Xml,
    published: &Published,
    (element, kind): (&'static str, &str),
    service: Service,
) {
    xml.within(element, &[("type", kind)], |xml| {
        xml.leaf("hostname", &published.name);
        xml.leaf("port", service.port);
        let security = match service.security {
            Security::Implicit => "SSL",
            Security::StartTls => "STARTTLS",
        };
        xml.leaf("socketType", security);
        // "In the clear" is within TLS. Thunderbird knows the token issuers of some providers only, and asks
        // no other: so tokens come second.
        xml.leaf("authentication", "password-cleartext");
        if published.oauth.is_some() {
            xml.leaf("authentication", "OAuth2");
        }
        xml.leaf("username", USERNAME);
    });
}

/// Address books or calendars. Their URL has had two names.
fn collection(
    xml: &mut Xml,
    published: &Published,
    (element, kind): (&'static str, &str),
    place: Option<&Where>,
    well_known: &str,
) {
    let Some(place) = place else { return };
    let url = published.url_of(place, well_known);
    xml.within(element, &[("type", kind)], |xml| {
        xml.leaf("url", &url);
        xml.leaf("serverURL", &url);
        http_login(xml, published);
    });
}

fn http_login(xml: &mut Xml, published: &Published) {
    xml.leaf("authentication", "http-basic");
    if published.oauth.is_some() {
        xml.leaf("authentication", "OAuth2");
    }
    xml.leaf("username", USERNAME);
}

fn token_issuer(xml: &mut Xml, oauth: &OAuth) {
    xml.within("oAuth2", &[], |xml| {
        xml.leaf("authURL", &oauth.authorization_url);
        xml.leaf("tokenURL", &oauth.token_url);
        xml.leaf("issuer", &oauth.issuer);
        xml.leaf("scope", &oauth.scope);
        xml.leaf("clientID", &oauth.client_id);
    });
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::super::published::typical;
    use super::super::xml::text_of;
    use super::*;

    fn text(response: &Response<Bytes>) -> String {
        String::from_utf8(response.body().to_vec()).unwrap()
    }

    fn asked(published: &Published, address: &[u8]) -> String {
        text(&answer(published, Some(address), None))
    }

    /// The tags of a document: its structure.
    fn tags(document: &str) -> Vec<&str> {
        document.split('<').skip(1).map(|part| part.split_once('>').unwrap().0).collect()
    }

    #[test]
    fn a_typical_installation_is_described_exactly() {
        let published = Published { jmap: None, caldav: None, ..typical() };
        let response = answer(&published, Some(b"ann@example.org"), Some("autoconfig.example.org"));
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/xml; charset=utf-8");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "max-age=3600");
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        let expected = r#"<?xml version="1.0" encoding="utf-8"?>
<clientConfig version="1.1">
  <emailProvider id="example.org">
    <domain>example.org</domain>
    <displayName>Example Mail</displayName>
    <incomingServer type="imap">
      <hostname>mail.example.org</hostname>
      <port>993</port>
      <socketType>SSL</socketType>
      <authentication>password-cleartext</authentication>
      <username>%EMAILADDRESS%</username>
    </incomingServer>
    <incomingServer type="imap">
      <hostname>mail.example.org</hostname>
      <port>143</port>
      <socketType>STARTTLS</socketType>
      <authentication>password-cleartext</authentication>
      <username>%EMAILADDRESS%</username>
    </incomingServer>
    <incomingServer type="pop3">
      <hostname>mail.example.org</hostname>
      <port>995</port>
      <socketType>SSL</socketType>
      <authentication>password-cleartext</authentication>
      <username>%EMAILADDRESS%</username>
    </incomingServer>
    <outgoingServer type="smtp">
      <hostname>mail.example.org</hostname>
      <port>465</port>
      <socketType>SSL</socketType>
      <authentication>password-cleartext</authentication>
      <username>%EMAILADDRESS%</username>
    </outgoingServer>
    <outgoingServer type="smtp">
      <hostname>mail.example.org</hostname>
      <port>587</port>
      <socketType>STARTTLS</socketType>
      <authentication>password-cleartext</authentication>
      <username>%EMAILADDRESS%</username>
    </outgoingServer>
  </emailProvider>
  <addressBook type="carddav">
    <url>https://mail.example.org/.well-known/carddav</url>
    <serverURL>https://mail.example.org/.well-known/carddav</serverURL>
    <authentication>http-basic</authentication>
    <username>%EMAILADDRESS%</username>
  </addressBook>
</clientConfig>
"#;
        assert_eq!(text(&response), expected);
    }

    #[test]
    fn calendars_and_jmap_are_described_where_they_are() {
        let document = asked(&typical(), b"ann@example.org");
        let jmap = "    <incomingServer type=\"jmap\">\n      \
                    <url>https://mail.example.org/.well-known/jmap</url>\n      \
                    <authentication>http-basic</authentication>\n      \
                    <username>%EMAILADDRESS%</username>\n    </incomingServer>\n";
        assert!(document.contains(jmap), "{document}");
        assert!(document.find("type=\"pop3\"") < document.find("type=\"jmap\""), "{document}");
        let calendar = "  <calendar type=\"caldav\">\n    \
                        <url>https://mail.example.org/dav/cal/</url>\n    \
                        <serverURL>https://mail.example.org/dav/cal/</serverURL>\n    \
                        <authentication>http-basic</authentication>\n    \
                        <username>%EMAILADDRESS%</username>\n  </calendar>\n</clientConfig>\n";
        assert!(document.contains(calendar), "{document}");
    }

    #[test]
    fn tokens_are_offered_second_and_only_where_somebody_issues_them() {
        assert!(!asked(&typical(), b"ann@example.org").contains("OAuth2"));
        let oauth = OAuth {
            issuer: "mail.example.org".into(),
            authorization_url: "https://mail.example.org/login?a=1&b=2".into(),
            token_url: "https://mail.example.org/auth/token".into(),
            scope: "offline_access".into(),
            client_id: "open".into(),
        };
        let document = asked(&Published { oauth: Some(oauth), ..typical() }, b"ann@example.org");
        let both = "<authentication>password-cleartext</authentication>\n      \
                    <authentication>OAuth2</authentication>";
        assert_eq!(document.matches(both).count(), 5, "{document}");
        let read = |name| text_of(&document, name).unwrap().unwrap();
        assert_eq!(read("authURL"), "https://mail.example.org/login?a=1&b=2");
        assert_eq!(read("clientID"), "open");
    }

    #[test]
    fn an_address_that_is_none_gets_the_public_names_data() {
        let of_name = asked(&typical(), b"ann@mail.example.org");
        let huge = vec![b'a'; 1 << 20];
        let hostile: [&[u8]; 9] = [
            b"",
            b"ann",
            b"@",
            b"\"><script>alert(1)</script>@example.net",
            b"ann@example.net\"/><x",
            b"ann@&amp;.example",
            b"\0@example.net",
            b"ann@\xff\xfe.example",
            &huge,
        ];
        for address in hostile {
            assert_eq!(asked(&typical(), address), of_name, "{}", address.escape_ascii());
        }
        // One that is well-formed and looks like markup: its domain counts, it is not repeated.
        let quoted = asked(&typical(), b"\"<b>&\"@example.net");
        assert_eq!(quoted, asked(&typical(), b"ann@example.net"));
    }

    #[test]
    fn without_an_address_the_host_says_the_domain() {
        let document = text(&answer(&typical(), None, Some("autoconfig.example.net")));
        assert_eq!(document, asked(&typical(), b"ann@example.net"));
        let document = text(&answer(&typical(), None, None));
        assert_eq!(document, asked(&typical(), b"ann@mail.example.org"));
    }

    proptest! {
        #[test]
        fn nothing_that_is_asked_or_configured_becomes_markup(
            address in proptest::collection::vec(any::<u8>(), 0..40),
            local in "\\PC{0,8}",
            domain in "([a-z0-9-]{1,5}|[<>&\"' .]|\\PC){1,4}",
            title in "([<>&\"']|\\PC){0,20}",
        ) {
            let plain = asked(&typical(), b"ann@example.org");
            let published = Published { display_name: title.as_str().into(), ..typical() };
            for address in [address, format!("{local}@{domain}").into_bytes()] {
                let document = asked(&published, &address);
                let (found, expected) = (tags(&document), tags(&plain));
                prop_assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(expected) {
                    match found.strip_prefix("emailProvider id=\"") {
                        None => prop_assert_eq!(*found, expected),
                        Some(id) => {
                            let id = id.strip_suffix('"').unwrap();
                            prop_assert!(Domain::parse(id).is_ok_and(|domain| domain.as_str() == id));
                        }
                    }
                }
                if !title.is_empty() {
                    let read = text_of(&document, "displayName");
                    prop_assert_eq!(read, Ok(Some(title.trim_ascii().into())));
                }
            }
        }
    }
}
