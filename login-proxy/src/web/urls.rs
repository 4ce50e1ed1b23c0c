//! Addresses that a backend tells its clients, where they are the backend's own: in JMAP session objects
//! (RFC 8620 §2, RFC 8887 §3) and in `Location` (HTP-4). Clients must come by us, or the next flip is not
//! theirs. Pure.

use http::Uri;
use serde_json::Value;

/// The URLs of a session object.
const URLS: [&str; 4] = ["apiUrl", "downloadUrl", "uploadUrl", "eventSourceUrl"];
/// The capability that has one, too.
const WEBSOCKET: &str = "urn:ietf:params:jmap:websocket";

/// Makes the URLs of a session object those of the public name. `None`: it is none, or nothing in it is
/// another's.
pub(super) fn rewrite_session(body: &[u8], scheme: &str, authority: &str) -> Option<Vec<u8>> {
    let mut session: Value = serde_json::from_slice(body).ok()?;
    let object = session.as_object_mut()?;
    // What has no apiUrl is no session object.
    object.get("apiUrl")?;
    let mut changed = false;
    for name in URLS {
        if let Some(url) = object.get_mut(name) {
            changed |= rewrite(url, scheme, authority);
        }
    }
    let capabilities = object.get_mut("capabilities");
    let websocket = capabilities.and_then(|all| all.get_mut(WEBSOCKET));
    if let Some(url) = websocket.and_then(|websocket| websocket.get_mut("url")) {
        let scheme = if scheme == "https" { "wss" } else { "ws" };
        changed |= rewrite(url, scheme, authority);
    }
    changed.then(|| session.to_string().into_bytes())
}

/// Replaces scheme and authority of an absolute URL that has others. Templates (RFC 6570) stay as they are.
fn rewrite(url: &mut Value, scheme: &str, authority: &str) -> bool {
    let Some(text) = url.as_str() else { return false };
    let Some((before, rest)) = text.split_once("://") else { return false };
    let (host, path) = rest.find(['/', '?', '#', '{']).map_or((rest, ""), |at| rest.split_at(at));
    if before.eq_ignore_ascii_case(scheme) && host.eq_ignore_ascii_case(authority) {
        return false;
    }
    *url = Value::String(format!("{scheme}://{authority}{path}"));
    true
}

/// A `Location` as the client came here, where it has one of the backend's own hosts, or the name by which
/// the client has asked with the wrong scheme: a backend that does not see TLS leads away from it (Cyrus).
pub(super) fn rewrite_location(
    location: &str,
    own: impl Fn(&str, u16) -> bool,
    scheme: &str,
    authority: &str,
) -> Option<String> {
    let uri: Uri = location.parse().ok()?;
    let default = if uri.scheme_str()? == "https" { 443 } else { 80 };
    let asked = uri.authority().is_some_and(|name| name.as_str().eq_ignore_ascii_case(authority));
    let astray = asked && uri.scheme_str() != Some(scheme);
    if !astray && !own(uri.host()?, uri.port_u16().unwrap_or(default)) {
        return None;
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Some(format!("{scheme}://{authority}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_object_has_urls_of_the_public_name() {
        let body = br#"{"apiUrl":"http://10.0.0.1:8080/jmap/","downloadUrl":"http://10.0.0.1:8080/d/{accountId}?n={name}",
            "uploadUrl":"/upload/{accountId}","eventSourceUrl":"https://mail.example.org/es",
            "capabilities":{"urn:ietf:params:jmap:websocket":{"url":"ws://10.0.0.1:8080/ws"}},"username":"ann"}"#;
        let rewritten = rewrite_session(body, "https", "mail.example.org").unwrap();
        let session: Value = serde_json::from_slice(&rewritten).unwrap();
        assert_eq!(session["apiUrl"], "https://mail.example.org/jmap/");
        assert_eq!(session["downloadUrl"], "https://mail.example.org/d/{accountId}?n={name}");
        assert_eq!(session["uploadUrl"], "/upload/{accountId}");
        assert_eq!(session["eventSourceUrl"], "https://mail.example.org/es");
        assert_eq!(session["capabilities"][WEBSOCKET]["url"], "wss://mail.example.org/ws");
        assert_eq!(session["username"], "ann");
        assert_eq!(rewrite_session(&rewritten, "https", "mail.example.org"), None);
        for other in [&b"{}"[..], b"[]", b"", b"{\"apiUrl\":7}", b"{\"apiUrl\":\"x\"}"] {
            assert_eq!(rewrite_session(other, "https", "mail.example.org"), None);
        }
    }

    #[test]
    fn a_location_of_the_backends_own_is_the_public_names() {
        let own = |host: &str, port| host == "10.0.0.1" && port == 8080;
        let rewritten = |location: &str| rewrite_location(location, own, "https", "m.example");
        assert_eq!(rewritten("http://10.0.0.1:8080/a?b").as_deref(), Some("https://m.example/a?b"));
        assert_eq!(rewritten("http://10.0.0.1/a"), None);
        assert_eq!(rewritten("/a"), None);
        assert_eq!(rewritten("http://M.example/a").as_deref(), Some("https://m.example/a"));
        assert_eq!(rewritten("https://m.example/a"), None);
        assert_eq!(rewritten("https://elsewhere.example/a"), None);
    }
}
