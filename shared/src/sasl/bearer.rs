//! Bearer tokens: XOAUTH2 (Google's form) and OAUTHBEARER (RFC 7628).
//!
//! A token's contents are read without being believed: they only choose the server that will verify it.

use serde_json::Value;
use zeroize::Zeroize;

use super::{Mechanism, SaslError, decode_saslname, encode_base64};
use crate::credentials::{Credentials, Proof, Secret};

/// Longest part of a token that is read for names, in octets.
const MAX_CLAIMS: usize = 16 * 1024;

/// Reads a client's first response of either mechanism. The name may be empty: the token may have it.
///
/// # Errors
///
/// [`SaslError::Form`].
pub fn decode_bearer(mechanism: Mechanism, response: Secret) -> Result<Credentials, SaslError> {
    let mut fields = response.expose().split(|octet| *octet == 1);
    let mut name = None;
    if mechanism == Mechanism::OAuthBearer {
        name = gs2_name(fields.next().ok_or(SaslError::Form)?)?;
    }
    // What stands there twice would be read by us in one way, and by the backend perhaps in the other.
    let mut token = None;
    for field in fields {
        if let Some(user) = after(field, b"user=")
            && mechanism == Mechanism::XOAuth2
        {
            once(&mut name, user.into())?;
        } else if let Some(value) = after(field, b"auth=") {
            let value = after(value, b"Bearer ").ok_or(SaslError::Form)?;
            once(&mut token, value.trim_ascii())?;
        }
    }
    let token = token.filter(|token| !token.is_empty()).ok_or(SaslError::Form)?;
    let token = Secret::new(token.to_vec());
    Ok(Credentials {
        authcid: name.unwrap_or_default(),
        authzid: None,
        proof: Proof::Bearer { mechanism, token, response },
    })
}

/// The first response of `mechanism` with that token, in base64, for a backend that does not take the form
/// in which it came.
pub fn encode_bearer(mechanism: Mechanism, name: &[u8], token: &Secret) -> Secret {
    let name = match mechanism {
        Mechanism::OAuthBearer if name.is_empty() => b"n,".to_vec(),
        Mechanism::OAuthBearer => [b"n,a=".as_slice(), &saslname(name)].concat(),
        _ => [b"user=".as_slice(), name].concat(),
    };
    let comma: &[u8] = if mechanism == Mechanism::OAuthBearer { b"," } else { b"" };
    let parts = [&*name, comma, b"\x01auth=Bearer ", token.expose(), b"\x01\x01"];
    let mut response = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        response.extend_from_slice(part);
    }
    let text = encode_base64(&response);
    response.zeroize();
    text
}

/// The names that a token tells: the last part of a Stalwart token (`sw1.…`), or those of a JWT's claims
/// (RFC 7519) that are looked at, the first one that is there.
pub fn names_in_token(token: &Secret, claims: &[Box<str>]) -> Option<Box<[u8]>> {
    let mut parts = token.expose().split(|octet| *octet == b'.');
    let (first, second, third) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || second.len() > MAX_CLAIMS {
        return None;
    }
    if first == b"sw1" {
        let name = decode_base64url(third)?;
        return Some(name.expose().into());
    }
    let payload = decode_base64url(second)?;
    let payload: Value = serde_json::from_slice(payload.expose()).ok()?;
    claims.iter().find_map(|claim| {
        let name = payload.get(&**claim)?.as_str()?;
        (!name.is_empty()).then(|| name.as_bytes().into())
    })
}

/// `n,a=name,` or `n,,`: without channel binding, which cannot pass through us.
fn gs2_name(header: &[u8]) -> Result<Option<Box<[u8]>>, SaslError> {
    let rest = after(header, b"n,").or_else(|| after(header, b"y,")).ok_or(SaslError::Form)?;
    let name = rest.strip_suffix(b",").unwrap_or(rest);
    if name.is_empty() {
        return Ok(None);
    }
    after(name, b"a=").and_then(decode_saslname).map(Some).ok_or(SaslError::Form)
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), SaslError> {
    if place.is_some() {
        return Err(SaslError::Form);
    }
    *place = Some(value);
    Ok(())
}

/// What follows `prefix`, in any case.
fn after<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (first, rest) = text.split_at_checked(prefix.len())?;
    first.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn saslname(name: &[u8]) -> Vec<u8> {
    let mut written = Vec::with_capacity(name.len());
    for octet in name {
        match octet {
            b',' => written.extend_from_slice(b"=2C"),
            b'=' => written.extend_from_slice(b"=3D"),
            other => written.push(*other),
        }
    }
    written
}

fn decode_base64url(text: &[u8]) -> Option<Secret> {
    let standard = text.iter().map(|octet| match octet {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    });
    super::decode_base64(&standard.collect::<Vec<u8>>()).ok()
}

#[cfg(test)]
mod tests {
    use super::super::decode_base64;
    use super::*;

    fn read(mechanism: Mechanism, text: &str) -> Result<(String, String), SaslError> {
        let credentials = decode_bearer(mechanism, Secret::new(text.as_bytes().to_vec()))?;
        let Proof::Bearer { token, .. } = &credentials.proof else { panic!("{credentials:?}") };
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        Ok((text(&credentials.authcid), text(token.expose())))
    }

    #[test]
    fn xoauth2_names_its_user() {
        let read = |text: &str| read(Mechanism::XOAuth2, text);
        let (name, token) = ("ann@example.org".to_owned(), "t0ken".to_owned());
        assert_eq!(read("user=ann@example.org\x01auth=Bearer t0ken\x01\x01"), Ok((name, token)));
        assert_eq!(read("auth=bearer t\x01\x01"), Ok((String::new(), "t".to_owned())));
        for bad in [
            "",
            "user=ann\x01\x01",
            "user=ann\x01auth=Basic x\x01\x01",
            "user=a\x01auth=Bearer \x01",
            "user=a\x01auth=Bearer  \t \x01\x01",
            "user=a\x01user=b\x01auth=Bearer t\x01\x01",
            "user=a\x01auth=Bearer t\x01auth=Bearer u\x01\x01",
        ] {
            assert_eq!(read(bad), Err(SaslError::Form), "{bad:?}");
        }
    }

    #[test]
    fn oauthbearer_names_its_user_in_its_header_if_at_all() {
        let read = |text: &str| read(Mechanism::OAuthBearer, text);
        let said = |name: &str| Ok((name.to_owned(), "t0ken".to_owned()));
        let rest = "\x01host=mail.example.org\x01port=143\x01auth=Bearer t0ken\x01\x01";
        assert_eq!(read(&format!("n,a=ann@example.org,{rest}")), said("ann@example.org"));
        assert_eq!(read(&format!("n,a=a=2Cb=3Dc,{rest}")), said("a,b=c"));
        assert_eq!(read(&format!("n,,{rest}")), said(""));
        for bad in ["p=tls-unique,,", "n,b=ann,", "a=ann,", ""] {
            assert_eq!(read(&format!("{bad}{rest}")), Err(SaslError::Form), "{bad:?}");
        }
    }

    #[test]
    fn a_token_is_written_in_either_form() {
        let token = Secret::new(b"t0ken".to_vec());
        for mechanism in [Mechanism::XOAuth2, Mechanism::OAuthBearer] {
            for name in ["a,b=c@example.org", ""] {
                let text = encode_bearer(mechanism, name.as_bytes(), &token);
                let response = decode_base64(text.expose()).unwrap();
                let response = String::from_utf8(response.expose().to_vec()).unwrap();
                assert_eq!(read(mechanism, &response), Ok((name.to_owned(), "t0ken".to_owned())));
            }
        }
    }

    #[test]
    fn names_are_found_in_tokens_that_have_them() {
        let claims = ["email".into(), "upn".into()];
        let named = |token: &str| {
            let name = names_in_token(&Secret::new(token.as_bytes().to_vec()), &claims)?;
            Some(String::from_utf8_lossy(&name).into_owned())
        };
        let url = |text: &str| {
            let text = encode_base64(text.as_bytes());
            let text = String::from_utf8(text.expose().to_vec()).unwrap();
            text.trim_end_matches('=').replace('+', "-").replace('/', "_")
        };
        let jwt = |payload: &str| format!("e30.{}.c2ln", url(payload));
        assert_eq!(named(&jwt(r#"{"upn":"u@x","email":"e@x"}"#)).as_deref(), Some("e@x"));
        assert_eq!(named(&jwt(r#"{"upn":"u@x","email":""}"#)).as_deref(), Some("u@x"));
        assert_eq!(named(&jwt(r#"{"email":7}"#)), None);
        assert_eq!(
            named(&format!("sw1.c2VhbGVk.{}", url("ann@example.org"))).as_deref(),
            Some("ann@example.org")
        );
        for opaque in ["", "opaque", "a.b", "a.b.c.d", "e30.!!.x", &jwt("no json")] {
            assert_eq!(named(opaque), None, "{opaque:?}");
        }
    }
}
