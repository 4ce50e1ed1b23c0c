//! The head of a request and of an answer: what is asked of whom, and what of it goes on (HTP-6).
//!
//! Hop-by-hop fields end here (RFC 9110 §7.6.1). What says who the client is is ours to say; what a client
//! says of itself is believed from trusted networks alone. Framing is hyper's, which writes it anew for each
//! leg. Pure.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};
use shared::address::Domain;

/// Most proxies that are read of who a client is.
const MAX_VIA: usize = 32;

/// Fields of one connection (RFC 9110 §7.6.1), and those that ask a proxy for something.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields by which a server may be told who the client is, or what it asked for: all are ours to say. So are
/// those that begin with `x-forwarded`.
const CLAIMS: [&str; 41] = [
    "client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "forwarded",
    "forwarded-for",
    "front-end-https",
    "proxy",
    "remote-user",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-auth-request-email",
    "x-auth-request-user",
    "x-authenticated-user",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-url",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-host",
    "x-remote-ip",
    "x-remote-user",
    "x-request-id",
    "x-rewrite-url",
    "x-scheme",
    "x-script-name",
    "x-ssl-client-cert",
    "x-ssl-client-verify",
    "x-user",
    "x-webobjects-remote-host",
    "x-webobjects-remote-user",
    "x-webobjects-server-name",
    "x-webobjects-server-port",
    "x-webobjects-server-url",
];

/// What is wrong with a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    #[error("exactly one Host is needed")]
    Host,
    #[error("the request's target and its Host differ")]
    HostMismatch,
    #[error("more than one Authorization")]
    TwoAuthorizations,
    #[error("Connection names a field that is not one connection's")]
    ConnectionAbuse,
    #[error("Connection is malformed")]
    Connection,
}

/// The host that a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// As the client wrote it, port included.
    pub(super) authority: Box<str>,
    /// In canonical form, without its port.
    pub(super) host: Box<str>,
}

/// Who asks, and how it is told on.
#[derive(Debug, Clone)]
pub(super) struct Introduction<'a> {
    pub(super) client: IpAddr,
    pub(super) secured: bool,
    pub(super) asked: &'a Asked,
    /// Our name for the request.
    pub(super) session: &'a str,
    /// Our name among proxies.
    pub(super) via: &'a str,
    /// The backend is told the client's address by fields.
    pub(super) forwarded: bool,
}

impl Asked {
    /// Reads it of a request. One of HTTP/1.0 may leave it out.
    pub(super) fn of(parts: &Parts, public_name: &Domain) -> Result<Self, HeadError> {
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(HeadError::Host);
        }
        let host = match host {
            Some(host) => Some(host.to_str().map_err(|_| HeadError::Host)?),
            None => None,
        };
        let authority = match (parts.uri.authority(), host) {
            (Some(target), Some(host)) if !target.as_str().eq_ignore_ascii_case(host) => {
                return Err(HeadError::HostMismatch);
            }
            (Some(target), _) => target.as_str(),
            (None, Some(host)) => host,
            (None, None) if parts.version <= Version::HTTP_10 => public_name.as_str(),
            (None, None) => return Err(HeadError::Host),
        };
        let parsed: Authority = authority.parse().map_err(|_| HeadError::Host)?;
        if authority.contains('@') || parsed.host().is_empty() {
            return Err(HeadError::Host);
        }
        let host = parsed.host().trim_end_matches('.').to_ascii_lowercase();
        Ok(Self { authority: authority.into(), host: host.into() })
    }
}

/// Checks what is not hyper's to check.
pub(super) fn check(headers: &HeaderMap) -> Result<(), HeadError> {
    if headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
        return Err(HeadError::TwoAuthorizations);
    }
    for name in named_by_connection(headers) {
        let name = name?;
        let known =
            ["keep-alive", "proxy-connection", "te", "upgrade", "http2-settings", "trailer"];
        let of_the_client = name.starts_with("x-") && !is_claim(&name);
        if !known.contains(&&*name) && !of_the_client {
            return Err(HeadError::ConnectionAbuse);
        }
    }
    Ok(())
}

/// The names in `Connection` but `close` and `keep-alive`, in lower case.
fn named_by_connection(
    headers: &HeaderMap,
) -> impl Iterator<Item = Result<String, HeadError>> + '_ {
    let values = headers.get_all(header::CONNECTION).iter();
    values.flat_map(|value| {
        let names: Vec<_> = match value.to_str() {
            Ok(text) => text.split(',').map(|name| Ok(name.trim().to_ascii_lowercase())).collect(),
            Err(_) => vec![Err(HeadError::Connection)],
        };
        let said =
            |name: &Result<String, _>| !matches!(name.as_deref(), Ok("" | "close" | "keep-alive"));
        names.into_iter().filter(said)
    })
}

/// True when the client asks for a WebSocket (RFC 6455 §4.1).
pub(super) fn asks_for_websocket(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    *method == Method::GET
        && version == Version::HTTP_11
        && upgrade.is_some_and(|text| text.trim().eq_ignore_ascii_case("websocket"))
        && named_by_connection(headers).any(|name| name.as_deref() == Ok("upgrade"))
}

/// Takes out what belongs to one connection.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = named_by_connection(headers).filter_map(Result::ok).collect();
    for name in named {
        headers.remove(name.as_str());
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Who a trusted front says that its client is (RFC 7239 §5.2, or `X-Forwarded-For`). Each front adds whom it
/// saw at the end, and what stands before may be the client's own invention: so it is the last one that is
/// no trusted front itself.
pub(super) fn claimed_client(
    headers: &HeaderMap,
    is_front: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    let lines = |name: &str| -> Vec<&str> {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim).collect()
    };
    let forwarded = lines("forwarded");
    let hops: Vec<Option<IpAddr>> = if forwarded.is_empty() {
        lines("x-forwarded-for").into_iter().map(node_address).collect()
    } else {
        forwarded.into_iter().map(forwarded_for).collect()
    };
    let mut seen = None;
    for hop in hops.into_iter().rev() {
        // Behind one that cannot be read nothing is known.
        let hop = hop?;
        seen = Some(hop);
        if !is_front(hop) {
            break;
        }
    }
    seen
}

fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| node_address(value.trim_matches('"')))?
    })
}

/// An address, with or without brackets and a port.
fn node_address(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
        .or_else(|| text.strip_prefix('[').and_then(|text| text.strip_suffix(']'))?.parse().ok())
}

/// True when a request has come through us before.
pub(super) fn has_come_by(headers: &HeaderMap, via: &str) -> bool {
    let hops = headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
    let hops = hops.flat_map(|value| value.split(','));
    let mut seen: usize = 0;
    for hop in hops {
        seen = seen.saturating_add(1);
        if seen > MAX_VIA || hop.split_whitespace().nth(1) == Some(via) {
            return true;
        }
    }
    false
}

/// Makes a client's fields those of a request to a backend: what is one connection's ends here, what says
/// who asks is said by us.
pub(super) fn send_on(headers: &mut HeaderMap, introduction: &Introduction<'_>) {
    strip_hop_by_hop(headers);
    // hyper writes it anew for the body as it is sent.
    headers.remove(header::CONTENT_LENGTH);
    strip_claims(headers);
    join_cookies(headers);
    let Introduction { client, secured, asked, session, via, forwarded } = introduction;
    let mut say = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    say(header::HOST, &asked.authority);
    say(HeaderName::from_static("x-request-id"), session);
    if *forwarded {
        let client = client.to_canonical();
        let proto = if *secured { "https" } else { "http" };
        let node = match client {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("\"[{v6}]\""),
        };
        // An authority has nothing in it that would end a quoted string.
        let pairs = format!("for={node};proto={proto};host=\"{}\"", asked.authority);
        let plain = client.to_string();
        say(header::FORWARDED, &pairs);
        say(HeaderName::from_static("x-forwarded-for"), &plain);
        say(HeaderName::from_static("x-real-ip"), &plain);
        say(HeaderName::from_static("x-forwarded-proto"), proto);
        say(HeaderName::from_static("x-forwarded-host"), &asked.authority);
    }
    if let Ok(value) = HeaderValue::from_str(&format!("1.1 {via}")) {
        headers.append(header::VIA, value);
    }
}

/// Takes out what is ours to say, in trailers, too.
pub(super) fn strip_claims(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> =
        headers.keys().filter(|name| is_claim(name.as_str())).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// HTTP/2 may send them in pieces, HTTP/1.1 has one field (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let pieces: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() < 2 {
        return;
    }
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Also with underscores, which are dashes to what runs behind CGI.
fn is_claim(name: &str) -> bool {
    let dashed;
    let name = if name.contains('_') {
        dashed = name.replace('_', "-");
        &*dashed
    } else {
        name
    };
    name.starts_with("x-forwarded") || CLAIMS.contains(&name)
}

/// Makes a backend's fields those of an answer to the client.
pub(super) fn pass_back(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    // It would lead clients past us.
    headers.remove(header::ALT_SVC);
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(target: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn public() -> Domain {
        Domain::parse("mail.example.org").unwrap()
    }

    #[test]
    fn a_request_has_one_host() {
        let host = |target: &str, fields: &[(&str, &str)]| {
            Asked::of(&parts(target, fields), &public()).map(|asked| asked.host.to_string())
        };
        assert_eq!(host("/", &[("host", "Mail.Example.ORG:443")]), Ok("mail.example.org".into()));
        assert_eq!(host("/", &[("host", "a"), ("host", "a")]), Err(HeadError::Host));
        assert_eq!(host("/", &[]), Err(HeadError::Host));
        assert_eq!(host("/", &[("host", "ann@example.org")]), Err(HeadError::Host));
        assert_eq!(host("/", &[("host", "a b")]), Err(HeadError::Host));
        let target = "http://a.example/x";
        assert_eq!(host(target, &[("host", "b.example")]), Err(HeadError::HostMismatch));
        assert_eq!(host(target, &[("host", "A.example")]), Ok("a.example".into()));
        let mut old = parts("/", &[]);
        old.version = Version::HTTP_10;
        assert_eq!(&*Asked::of(&old, &public()).unwrap().host, "mail.example.org");
    }

    #[test]
    fn connection_takes_nothing_out_that_is_not_its_own() {
        for abuse in ["Authorization", "host", "x-forwarded-for", "close, Cookie", "content-length"]
        {
            let headers = parts("/", &[("connection", abuse)]).headers;
            assert_eq!(check(&headers), Err(HeadError::ConnectionAbuse), "{abuse}");
        }
        let headers = parts("/", &[("connection", "keep-alive, Upgrade, x-mine")]).headers;
        assert_eq!(check(&headers), Ok(()));
        let headers = parts("/", &[("authorization", "a"), ("authorization", "b")]).headers;
        assert_eq!(check(&headers), Err(HeadError::TwoAuthorizations));
    }

    fn sent_on(fields: &[(&str, &str)], forwarded: bool) -> HeaderMap {
        let mut headers = parts("/", fields).headers;
        let asked = Asked { authority: "mail.example.org".into(), host: "mail.example.org".into() };
        let introduction = Introduction {
            client: "2001:db8::1".parse().unwrap(),
            secured: true,
            asked: &asked,
            session: "s1",
            via: "mailshift-a",
            forwarded,
        };
        send_on(&mut headers, &introduction);
        headers
    }

    #[test]
    fn who_the_client_is_is_ours_to_say() {
        let forged = [
            ("Forwarded", "for=1.2.3.4"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X_Forwarded_For", "1.2.3.4"),
            ("X-Real-IP", "1.2.3.4"),
            ("X-Request-Id", "forged"),
            ("Remote-User", "root"),
            ("X-Forwarded-Groups", "admin"),
            ("X-Webobjects-Remote-User", "root"),
            ("Connection", "keep-alive, x-mine"),
            ("X-Mine", "1"),
            ("TE", "trailers"),
            ("Proxy-Authorization", "Basic eDp5"),
            ("Transfer-Encoding", "chunked"),
            ("Via", "1.0 fred"),
            ("Accept", "*/*"),
        ];
        let headers = sent_on(&forged, true);
        let said: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let mut expected = vec![
            ("accept", "*/*"),
            ("host", "mail.example.org"),
            ("x-request-id", "s1"),
            ("forwarded", "for=\"[2001:db8::1]\";proto=https;host=\"mail.example.org\""),
            ("x-forwarded-for", "2001:db8::1"),
            ("x-real-ip", "2001:db8::1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "mail.example.org"),
            ("via", "1.0 fred"),
            ("via", "1.1 mailshift-a"),
        ];
        expected.sort_unstable();
        let mut said = said;
        said.sort_unstable();
        assert_eq!(said, expected);
        assert!(!sent_on(&forged, false).contains_key("x-forwarded-for"));
    }

    #[test]
    fn a_trusted_front_names_its_client_and_no_client_names_itself() {
        let front = |ip: IpAddr| ip.to_string().starts_with("10.");
        let claimed =
            |name: &str, value: &str| claimed_client(&parts("/", &[(name, value)]).headers, front);
        let v4 = "192.0.2.1".parse().ok();
        let v6 = "2001:db8::1".parse().ok();
        assert_eq!(
            claimed("forwarded", "for=8.8.8.8, for=192.0.2.1;proto=https, for=10.0.0.1"),
            v4
        );
        assert_eq!(claimed("forwarded", "proto=https;For=\"[2001:db8::1]:4711\""), v6);
        assert_eq!(claimed("x-forwarded-for", "8.8.8.8, 192.0.2.1, 10.0.0.1"), v4);
        assert_eq!(claimed("x-forwarded-for", "8.8.8.8, 192.0.2.1"), v4);
        assert_eq!(claimed("x-forwarded-for", "10.0.0.2, 10.0.0.1"), "10.0.0.2".parse().ok());
        assert_eq!(claimed("x-forwarded-for", "[2001:db8::1]"), v6);
        assert_eq!(claimed("x-forwarded-for", "unknown"), None);
        assert_eq!(claimed("x-forwarded-for", "192.0.2.1, unknown, 10.0.0.1"), None);
    }

    #[test]
    fn cookies_in_pieces_are_one_field() {
        let mut headers = parts("/", &[("cookie", "a=1"), ("cookie", "b=2")]).headers;
        join_cookies(&mut headers);
        let said: Vec<_> = headers.get_all("cookie").iter().collect();
        assert_eq!(said, ["a=1; b=2"]);
    }

    #[test]
    fn what_has_come_by_goes_round_in_circles() {
        let come = |value: &str| has_come_by(&parts("/", &[("via", value)]).headers, "mailshift-a");
        assert!(come("1.1 x, 1.1 mailshift-a"));
        assert!(!come("1.1 mailshift-b"));
        assert!(come(&"1.1 x,".repeat(40)));
    }

    #[test]
    fn a_websocket_is_asked_for_by_two_fields() {
        let asks = |fields: &[(&str, &str)]| {
            asks_for_websocket(&Method::GET, Version::HTTP_11, &parts("/", fields).headers)
        };
        assert!(asks(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]));
        assert!(!asks(&[("upgrade", "websocket")]));
        assert!(!asks(&[("connection", "upgrade"), ("upgrade", "h2c")]));
    }
}
