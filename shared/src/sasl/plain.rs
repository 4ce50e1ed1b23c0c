//! PLAIN (RFC 4616).

use zeroize::Zeroize;

use super::{SaslError, encode_base64};
use crate::credentials::{Credentials, Secret};

/// Takes a decoded PLAIN response apart: `authzid NUL authcid NUL password`.
///
/// # Errors
///
/// [`SaslError::Form`].
pub fn decode_plain(response: &Secret) -> Result<Credentials, SaslError> {
    let mut parts = response.expose().split(|octet| *octet == 0);
    let (Some(authzid), Some(authcid), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SaslError::Form);
    };
    if authcid.is_empty() || password.is_empty() {
        return Err(SaslError::Form);
    }
    let mut credentials = Credentials::new(authcid, Secret::new(password.to_vec()));
    // Many clients send their own name twice; that is no request to act as somebody else.
    if !authzid.is_empty() && authzid != authcid {
        credentials.authzid = Some(authzid.into());
    }
    Ok(credentials)
}

/// The PLAIN response for a backend, in base64 without line end.
pub fn encode_plain(authzid: &[u8], authcid: &[u8], password: &Secret) -> Secret {
    let parts = [authzid, b"\0", authcid, b"\0", password.expose()];
    let mut plain = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        plain.extend_from_slice(part);
    }
    let text = encode_base64(&plain);
    plain.zeroize();
    text
}

#[cfg(test)]
mod tests {
    use super::super::decode_base64;
    use super::*;

    fn read(text: &[u8]) -> Result<Credentials, SaslError> {
        decode_plain(&decode_base64(text)?)
    }

    fn password(credentials: &Credentials) -> &Secret {
        credentials.password().unwrap()
    }

    #[test]
    fn plain_has_exactly_two_nuls_and_no_empty_part_but_the_first() {
        for bad in ["", "ann", "\0ann", "\0ann\0", "\0\0secret", "\0ann\0se\0cret"] {
            let response = Secret::new(bad.as_bytes().to_vec());
            assert_eq!(decode_plain(&response).unwrap_err(), SaslError::Form, "{bad:?}");
        }
    }

    #[test]
    fn the_mailbox_that_is_acted_for_decides() {
        let own = read(b"YW5uAGFubgBzZWNyZXQ=").unwrap();
        assert_eq!((own.mailbox(), own.authzid.as_deref()), (&b"ann"[..], None));
        let other = read(b"Ym9iAGFkbWluAHNlY3JldA==").unwrap();
        assert_eq!((other.mailbox(), &*other.authcid), (&b"bob"[..], &b"admin"[..]));
    }

    #[test]
    fn base64_is_read_as_clients_write_it_and_written_as_it_should_be() {
        for text in [&b"AGFubgBzZWNyZQ=="[..], b"AGFubgBzZWNyZQ", b" AGFubgBz ZWNyZQ==\t"] {
            let credentials = read(text).unwrap();
            assert_eq!(password(&credentials).expose(), b"secre");
            let written = encode_plain(b"", &credentials.authcid, password(&credentials));
            assert_eq!(written.expose(), b"AGFubgBzZWNyZQ==");
        }
        assert_eq!(read(b"no base64!").unwrap_err(), SaslError::Encoding);
    }

    #[test]
    fn a_password_is_octets() {
        let secret = Secret::new(b"gr\xfcn \xff".to_vec());
        let replayed = read(encode_plain(b"", b"ann", &secret).expose()).unwrap();
        assert_eq!(password(&replayed).expose(), b"gr\xfcn \xff");
    }
}
