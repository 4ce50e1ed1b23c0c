//! Whose a request is (HTP-2): by the sources of its rule, the first one that is there decides.
//!
//! Nothing here is believed: what is found only chooses the server that will verify it. Pure; the body, where
//! one is needed, was read before.

use http::header::{self, HeaderMap};
use serde_json::Value;
use shared::credentials::Secret;
use shared::sasl::{decode_base64, names_in_token};
use shared::web::AccountSource;

/// Longest name that is read, in octets: no account has a longer one.
const MAX_NAME: usize = 1024;

/// Whose a request is.
#[derive(Debug)]
pub(super) enum Whose {
    /// Somebody's of that name, as it was typed, master forms included.
    Named {
        name: Box<[u8]>,
        /// A password came with it: a no to it is a guess.
        by_password: bool,
        /// What it was read from, for logs.
        by: &'static str,
    },
    /// Of whom a token knows that does not say it.
    Token(Secret),
    /// Of whom a backend knows that issued this code.
    Code(Secret),
    /// It names nobody.
    Nobody,
}

/// Why it cannot be read: what is there is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {0} is malformed")]
pub(super) struct Unreadable(&'static str);

/// What is known of a request's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body<'a> {
    /// Its first octets.
    pub(super) octets: &'a [u8],
    /// They are all.
    pub(super) complete: bool,
}

/// Finds it.
pub(super) fn whose(
    sources: &[AccountSource],
    query: &str,
    headers: &HeaderMap,
    body: Body<'_>,
    claims: &[Box<str>],
) -> Result<Whose, Unreadable> {
    for source in sources {
        let found = match source {
            AccountSource::Basic => basic(headers)?,
            AccountSource::Bearer => bearer(headers, claims)?,
            AccountSource::Query(name) => named(field(query.as_bytes(), name, true), "query"),
            AccountSource::Header(name) => {
                named(headers.get(&**name).map(|value| value.as_bytes().into()), "header")
            }
            AccountSource::Form(name) => named(form_field(headers, body, name), "form"),
            AccountSource::FormToken(name) => {
                form_field(headers, body, name).map(|token| of_token(&token, claims))
            }
            AccountSource::FormCode(name) => {
                form_field(headers, body, name).map(|code| Whose::Code(Secret::new(code)))
            }
            AccountSource::Json(name) => named(json_string(headers, body, name), "json"),
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Ok(Whose::Nobody)
}

fn named(name: Option<Vec<u8>>, by: &'static str) -> Option<Whose> {
    let name = name.filter(|name| !name.is_empty() && name.len() <= MAX_NAME)?;
    Some(Whose::Named { name: name.into(), by_password: false, by })
}

/// The rest of `Authorization` behind its scheme, in any case.
fn authorization<'a>(headers: &'a HeaderMap, scheme: &[u8]) -> Option<&'a [u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes().trim_ascii_start();
    let (first, rest) = value.split_at_checked(scheme.len())?;
    let rest = rest.strip_prefix(b" ").filter(|_| first.eq_ignore_ascii_case(scheme))?;
    Some(rest.trim_ascii())
}

/// RFC 7617: the name ends at the first colon.
fn basic(headers: &HeaderMap) -> Result<Option<Whose>, Unreadable> {
    const WRONG: Unreadable = Unreadable("Basic authorization");
    let Some(text) = authorization(headers, b"basic") else { return Ok(None) };
    let decoded = decode_base64(text).map_err(|_| WRONG)?;
    let colon = decoded.expose().iter().position(|octet| *octet == b':').ok_or(WRONG)?;
    let name = decoded.expose().get(..colon).filter(|name| name.len() <= MAX_NAME).ok_or(WRONG)?;
    if name.is_empty() {
        // Some clients say it to be asked.
        return Ok(Some(Whose::Nobody));
    }
    Ok(Some(Whose::Named { name: name.into(), by_password: true, by: "basic" }))
}

/// RFC 6750 §2.1.
fn bearer(headers: &HeaderMap, claims: &[Box<str>]) -> Result<Option<Whose>, Unreadable> {
    let Some(token) = authorization(headers, b"bearer") else { return Ok(None) };
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(Unreadable("Bearer token"));
    }
    Ok(Some(of_token(token, claims)))
}

fn of_token(token: &[u8], claims: &[Box<str>]) -> Whose {
    let token = Secret::new(token.to_vec());
    match names_in_token(&token, claims) {
        Some(name) => Whose::Named { name, by_password: false, by: "token" },
        None => Whose::Token(token),
    }
}

fn has_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

fn form_field(headers: &HeaderMap, body: Body<'_>, name: &str) -> Option<Vec<u8>> {
    if !has_type(headers, "application/x-www-form-urlencoded") {
        return None;
    }
    field(body.octets, name, body.complete).filter(|value| !value.is_empty())
}

/// The value of a field in `application/x-www-form-urlencoded`, the first of that name. Of text that is not
/// complete, the last field may be cut off: it does not count.
pub(super) fn field(text: &[u8], name: &str, complete: bool) -> Option<Vec<u8>> {
    let mut pairs = text.split(|octet| *octet == b'&').peekable();
    while let Some(pair) = pairs.next() {
        if !complete && pairs.peek().is_none() {
            return None;
        }
        let mut halves = pair.splitn(2, |octet| *octet == b'=');
        let (key, value) = (halves.next()?, halves.next().unwrap_or_default());
        if url_decoded(key) == name.as_bytes() {
            return Some(url_decoded(value));
        }
    }
    None
}

fn url_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((octet, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        rest = after;
        match (octet, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.extend(u8::try_from(high * 16 + low));
                rest = after.get(2..).unwrap_or_default();
            }
            (b'+', _, _) => decoded.push(b' '),
            (plain, _, _) => decoded.push(*plain),
        }
    }
    decoded
}

fn json_string(headers: &HeaderMap, body: Body<'_>, name: &str) -> Option<Vec<u8>> {
    if !body.complete || !has_type(headers, "application/json") {
        return None;
    }
    let object: Value = serde_json::from_slice(body.octets).ok()?;
    Some(object.get(name)?.as_str()?.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const ANN: &str = "ann@example.org";

    fn headers(fields: &[(&str, &[u8])]) -> HeaderMap {
        let mut request = Request::builder();
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0.headers
    }

    /// What was found, for comparison.
    fn find(
        sources: &[&str],
        query: &str,
        fields: &[(&str, &[u8])],
        body: (&str, bool),
    ) -> Result<String, Unreadable> {
        let sources: Vec<_> =
            sources.iter().map(|text| AccountSource::parse(text).unwrap()).collect();
        let body = Body { octets: body.0.as_bytes(), complete: body.1 };
        let claims = ["email".into()];
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        Ok(match whose(&sources, query, &headers(fields), body, &claims)? {
            Whose::Named { name, by_password, by } => {
                format!("{} {by}{}", text(&name), if by_password { " password" } else { "" })
            }
            Whose::Token(token) => format!("token {}", text(token.expose())),
            Whose::Code(code) => format!("code {}", text(code.expose())),
            Whose::Nobody => "nobody".into(),
        })
    }

    const NONE: (&str, bool) = ("", true);
    const FORM: (&str, &[u8]) =
        ("content-type", b"application/x-www-form-urlencoded; charset=utf-8");

    #[test]
    fn basic_names_its_user_before_the_first_colon() {
        let basic = |value: &[u8]| find(&["basic"], "", &[("authorization", value)], NONE);
        assert_eq!(
            basic(b"Basic YW5uQGV4YW1wbGUub3JnOnB3OnB3").unwrap(),
            format!("{ANN} basic password")
        );
        assert_eq!(basic(b"bASIC  YW5uOg==").unwrap(), "ann basic password");
        assert_eq!(basic(b"Basic Ojo=").unwrap(), "nobody");
        for malformed in [&b"Basic YW5u"[..], b"Basic !!!", b"Basic "] {
            assert!(basic(malformed).is_err(), "{malformed:?}");
        }
        // Octets of no character, cut anywhere (the reference died of it).
        for odd in ["Basi\u{e9}", "\u{20ac}\u{20ac}", "Basic\u{e9} x", "\u{e9}"] {
            assert_eq!(basic(odd.as_bytes()).unwrap(), "nobody", "{odd}");
        }
    }

    #[test]
    fn a_token_names_its_account_or_is_asked_for() {
        let bearer = |value: &str| {
            find(&["basic", "bearer"], "", &[("authorization", value.as_bytes())], NONE)
        };
        assert_eq!(
            bearer("Bearer e30.eyJlbWFpbCI6ImFubkBleGFtcGxlLm9yZyJ9.x").unwrap(),
            format!("{ANN} token")
        );
        assert_eq!(bearer("Bearer opaque").unwrap(), "token opaque");
        assert!(
            bearer("Bearer ").is_ok_and(|found| found == "nobody") || bearer("Bearer ").is_err()
        );
        assert!(bearer("Bearer \u{e9}").is_err());
        assert_eq!(bearer("Negotiate abc").unwrap(), "nobody");
    }

    #[test]
    fn the_query_a_field_and_a_form_may_name_it() {
        assert_eq!(
            find(&["query:account"], "x=1&account=ann%40example.org", &[], NONE).unwrap(),
            format!("{ANN} query")
        );
        assert_eq!(find(&["query:account"], "account=", &[], NONE).unwrap(), "nobody");
        assert_eq!(
            find(&["header:X-User"], "", &[("x-user", ANN.as_bytes())], NONE).unwrap(),
            format!("{ANN} header")
        );
        let form =
            |text: &'static str, complete| find(&["form:user"], "", &[FORM], (text, complete));
        assert_eq!(form("pw=a%26b&user=ann%40example.org", true).unwrap(), format!("{ANN} form"));
        assert_eq!(form("pw=x&user=ann%40exam", false).unwrap(), "nobody", "it may be cut off");
        assert_eq!(form("user=ann%40example.org&pw=x", false).unwrap(), format!("{ANN} form"));
        assert_eq!(find(&["form:user"], "", &[], ("user=ann", true)).unwrap(), "nobody", "no form");
        assert_eq!(find(&["form-code:code"], "", &[FORM], ("code=abc", true)).unwrap(), "code abc");
        let refresh = "refresh_token=sw1.c2VhbGVk.YW5uQGV4YW1wbGUub3Jn";
        assert_eq!(
            find(&["form-token:refresh_token"], "", &[FORM], (refresh, true)).unwrap(),
            format!("{ANN} token")
        );
    }

    #[test]
    fn a_json_body_names_it_when_it_is_all_there() {
        const JSON: (&str, &[u8]) = ("content-type", b"application/json");
        let body = r#"{"login":"ann@example.org","x":[1]}"#;
        assert_eq!(
            find(&["json:login"], "", &[JSON], (body, true)).unwrap(),
            format!("{ANN} json")
        );
        assert_eq!(find(&["json:login"], "", &[JSON], (body, false)).unwrap(), "nobody");
        for other in ["", "[", r#"{"login":7}"#, "\u{feff}"] {
            assert_eq!(find(&["json:login"], "", &[JSON], (other, true)).unwrap(), "nobody");
        }
    }

    #[test]
    fn the_first_source_that_is_there_decides() {
        let fields: [(&str, &[u8]); 2] = [("authorization", b"Basic Ym9iOng="), FORM];
        let found = find(&["basic", "form:user"], "", &fields, ("user=ann", true));
        assert_eq!(found.unwrap(), "bob basic password");
    }
}
