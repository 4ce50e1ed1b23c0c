//! Sealing what is delivered, for backends that trust our seal (ARC, RFC 8617).

use std::path::PathBuf;

use mail_auth::arc::ArcSealer;
use mail_auth::common::crypto::{DkimKey, Ed25519Key, HashAlgorithm, RsaKey, Sha256};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{Canonicalization, Done};
use mail_auth::{AuthenticatedMessage, AuthenticationResults, DkimResult, MessageAuthenticator};
use shared::config::ArcSealConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::body_hash;
use super::keys::Keys;
use super::signatures::verify_arc;

/// Headers that a seal covers, where they are there.
const SEALED: [&str; 12] = [
    "From",
    "To",
    "Cc",
    "Reply-To",
    "Subject",
    "Date",
    "Message-ID",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "DKIM-Signature",
];

/// Why there is nothing to seal with.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file.
    #[error("cannot read the key {}: {source}", file.display())]
    Unreadable {
        /// Its path.
        file: PathBuf,
        /// Why.
        source: tokio_rustls::rustls::pki_types::pem::Error,
    },
    /// What is in it.
    #[error("{} has no RSA or Ed25519 key that can be used", file.display())]
    Unusable {
        /// Its path.
        file: PathBuf,
    },
}

/// Seals messages with our key.
pub(super) struct Sealer(ArcSealer<DkimKey, Done>);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl Sealer {
    /// Reads the key.
    pub(super) fn new(config: &ArcSealConfig) -> Result<Self, SealError> {
        let file = || config.key_file.clone();
        let der = PrivateKeyDer::from_pem_file(&config.key_file)
            .map(Zeroizing::new)
            .map_err(|source| SealError::Unreadable { file: file(), source })?;
        let key = key_of(&der).ok_or_else(|| SealError::Unusable { file: file() })?;
        let sealer = ArcSealer::from_key(key)
            .domain(config.domain.as_str())
            .selector(&*config.selector)
            .headers(SEALED);
        Ok(Self(sealer))
    }

    /// The headers of a new set with these results; none where the chain is broken already, or cannot be
    /// judged now.
    pub(super) fn seal(
        &self,
        dns: &MessageAuthenticator,
        raw: &[u8],
        keys: &Keys,
        results: &str,
    ) -> Option<String> {
        let mut message = AuthenticatedMessage::parse(raw)?;
        let relaxed = (Canonicalization::Relaxed, HashAlgorithm::Sha256, 0);
        if !message.body_hashes.iter().any(|(c, h, l, _)| (*c, *h, *l) == relaxed) {
            let body = Canonicalization::Relaxed.canonical_body(message.raw_body(), 0);
            let hash = HashAlgorithm::Sha256.hash(body).as_ref().to_vec();
            message.body_hashes.push((relaxed.0, relaxed.1, relaxed.2, hash));
        }
        body_hash::put_right(&mut message);
        let chain = verify_arc(dns, &message, keys)?;
        if !matches!(chain.result(), DkimResult::Pass | DkimResult::None) {
            return None;
        }
        // The library signs what stands for our name as it is, so all of it is one line there; it is folded
        // only now, which relaxed form does not see.
        let results = AuthenticationResults::new(results);
        let set = self.0.seal(&message, &results, &chain).ok()?.to_header();
        let (others, results) = set.split_at(set.find("ARC-Authentication-Results:")?);
        Some(format!("{others}{}", results.replace("; ", ";\r\n\t")))
    }
}

/// The key in a file, which keeps its octets.
fn key_of(der: &PrivateKeyDer<'_>) -> Option<DkimKey> {
    let borrowed = match der {
        PrivateKeyDer::Pkcs1(der) => PrivateKeyDer::Pkcs1(der.secret_pkcs1_der().into()),
        PrivateKeyDer::Pkcs8(der) => {
            let octets = der.secret_pkcs8_der();
            if let Ok(key) = Ed25519Key::from_pkcs8_maybe_unchecked_der(octets) {
                return Some(DkimKey::Ed25519(key));
            }
            PrivateKeyDer::Pkcs8(octets.into())
        }
        _ => return None,
    };
    RsaKey::<Sha256>::from_key_der(borrowed).ok().map(DkimKey::Rsa)
}

#[cfg(test)]
mod tests {
    use shared::address::Domain;

    use super::*;

    #[test]
    fn without_a_key_nothing_is_sealed_in_silence() {
        let directory = tempfile::tempdir().unwrap();
        let config = |name: &str| ArcSealConfig {
            domain: Domain::parse("example.org").unwrap(),
            selector: "s1".into(),
            key_file: directory.path().join(name),
        };
        let begin = "-----BEGIN PRIVATE KEY-----\n";
        let end = "-----END PRIVATE KEY-----\n";
        std::fs::write(directory.path().join("junk"), format!("{begin}YWJj\n{end}")).unwrap();
        for (name, expected) in [("missing", "cannot read the key"), ("junk", "has no RSA")] {
            let error = Sealer::new(&config(name)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
