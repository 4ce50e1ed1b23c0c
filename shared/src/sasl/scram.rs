//! SCRAM's first message (RFC 5802 §7): whose account it is about. All else of the exchange is between
//! the client and the backend, and passed on as it is.

use super::{Mechanism, SaslError, decode_saslname};
use crate::credentials::{Credentials, Proof, Secret};

/// Reads `n,[a=authzid],n=user,r=nonce`.
///
/// # Errors
///
/// [`SaslError::Form`], also for a client that wants channel binding, which cannot pass through us.
pub fn decode_scram(mechanism: Mechanism, first: Secret) -> Result<Credentials, SaslError> {
    let mut parts = first.expose().splitn(4, |octet| *octet == b',');
    let (Some(binding), Some(authzid), Some(name), Some(_nonce)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(SaslError::Form);
    };
    if !matches!(binding, b"n" | b"y") {
        return Err(SaslError::Form);
    }
    let authcid = name.strip_prefix(b"n=").and_then(decode_saslname).ok_or(SaslError::Form)?;
    let authzid = match authzid.strip_prefix(b"a=") {
        Some(name) => Some(decode_saslname(name).ok_or(SaslError::Form)?),
        None if authzid.is_empty() => None,
        None => return Err(SaslError::Form),
    };
    if authcid.is_empty() {
        return Err(SaslError::Form);
    }
    let authzid = authzid.filter(|name| !name.is_empty() && *name != authcid);
    Ok(Credentials { authcid, authzid, proof: Proof::Scram { mechanism, first } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Credentials, SaslError> {
        decode_scram(Mechanism::ScramSha256, Secret::new(text.as_bytes().to_vec()))
    }

    #[test]
    fn the_name_is_found_and_the_message_kept_as_it_is() {
        let credentials = read("n,,n=an=2Cn,r=abc,x=y").unwrap();
        assert_eq!((&*credentials.authcid, credentials.mailbox()), (&b"an,n"[..], &b"an,n"[..]));
        let Proof::Scram { first, .. } = &credentials.proof else { panic!("{credentials:?}") };
        assert_eq!(first.expose(), b"n,,n=an=2Cn,r=abc,x=y");
        assert_eq!(read("y,a=bob,n=admin,r=abc").unwrap().mailbox(), b"bob");
        assert_eq!(read("n,a=ann,n=ann,r=abc").unwrap().authzid, None);
    }

    #[test]
    fn what_is_no_first_message_is_refused() {
        for bad in [
            "",
            "n,,n=,r=x",
            "n,,ann,r=x",
            "n,,n=a=b,r=x",
            "p=tls-unique,,n=ann,r=x",
            "n,b,n=a,r=x",
            "n,,n=ann",
        ] {
            assert_eq!(read(bad).unwrap_err(), SaslError::Form, "{bad:?}");
        }
    }
}
