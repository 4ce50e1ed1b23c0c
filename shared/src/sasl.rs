//! SASL PLAIN (RFC 4616): taken apart to find the account, put together for the backend. Nothing is
//! verified here; the backend does that.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroize;

use crate::credentials::{Credentials, Secret};

/// Clients leave padding out or put spaces in; what we send is canonical.
const TOLERANT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Why a client's response is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    /// Not base64.
    #[error("not base64")]
    Encoding,
    /// Not two NULs, or an empty name or password.
    #[error("not a PLAIN response")]
    Form,
}

/// Decodes base64 as clients write it.
///
/// # Errors
///
/// [`SaslError::Encoding`].
pub fn decode_base64(text: &[u8]) -> Result<Secret, SaslError> {
    // Buffers of their final size: one that grows leaves its old block behind as it is.
    let mut packed = Vec::with_capacity(text.len());
    packed.extend(text.iter().copied().filter(|octet| !matches!(octet, b' ' | b'\t')));
    let mut decoded = vec![0; base64::decoded_len_estimate(packed.len())];
    let written = TOLERANT.decode_slice(&packed, &mut decoded);
    packed.zeroize();
    if let Ok(written) = written {
        decoded.truncate(written);
        return Ok(Secret::new(decoded));
    }
    decoded.zeroize();
    Err(SaslError::Encoding)
}

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
pub fn encode_plain(credentials: &Credentials) -> Secret {
    let authzid = credentials.authzid.as_deref().unwrap_or_default();
    let mut plain = Vec::with_capacity(
        authzid.len() + credentials.authcid.len() + credentials.password.expose().len() + 2,
    );
    for part in [authzid, b"\0", &credentials.authcid, b"\0", credentials.password.expose()] {
        plain.extend_from_slice(part);
    }
    let mut text = vec![0; plain.len().div_ceil(3).saturating_mul(4)];
    let written = TOLERANT.encode_slice(&plain, &mut text).unwrap_or_default();
    text.truncate(written);
    plain.zeroize();
    Secret::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Credentials, SaslError> {
        decode_plain(&decode_base64(text)?)
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
            assert_eq!(credentials.password.expose(), b"secre");
            assert_eq!(encode_plain(&credentials).expose(), b"AGFubgBzZWNyZQ==");
        }
        assert_eq!(read(b"no base64!").unwrap_err(), SaslError::Encoding);
    }

    #[test]
    fn a_password_is_octets() {
        let credentials = Credentials::new(b"ann", Secret::new(b"gr\xfcn \xff".to_vec()));
        let replayed = read(encode_plain(&credentials).expose()).unwrap();
        assert_eq!(replayed.password.expose(), b"gr\xfcn \xff");
    }
}
