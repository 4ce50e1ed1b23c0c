//! Signs messages as their senders do (DKIM), and publishes the keys.

use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_auth::common::crypto::{DkimKey, Ed25519Key, RsaKey, Sha256};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{Canonicalization, DkimSigner, Done};
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize};
use rustls_pki_types::PrivateKeyDer;

use crate::dns_zone::DnsZone;

/// Its selector, in every domain.
pub const SELECTOR: &str = "s1";

/// A domain that signs.
pub struct Signer {
    signer: DkimSigner<DkimKey, Done>,
    /// The private key, PEM.
    pub private_key: String,
}

/// What it signs with.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// RSA of 2048 bits.
    Rsa,
    /// Ed25519.
    Ed25519,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Signer {
    /// One for this domain, whose key is in `zone`.
    ///
    /// # Errors
    ///
    /// No key can be made.
    pub fn new(zone: &DnsZone, domain: &str, kind: Kind) -> Result<Self> {
        let (key, record, private_key) = match kind {
            Kind::Rsa => rsa()?,
            Kind::Ed25519 => ed25519()?,
        };
        zone.txt(&format!("{SELECTOR}._domainkey.{domain}"), &record);
        let signer = DkimSigner::from_key(key)
            .domain(domain)
            .selector(SELECTOR)
            .headers(["From", "To", "Subject", "Date"])
            .header_canonicalization(Canonicalization::Relaxed)
            .body_canonicalization(Canonicalization::Relaxed);
        Ok(Self { signer, private_key })
    }

    /// The signature of a message, as a header.
    ///
    /// # Errors
    ///
    /// It has no headers.
    pub fn header(&self, message: &str) -> Result<String> {
        let signature = self.signer.sign(message.as_bytes()).map_err(|e| anyhow!("{e}"))?;
        Ok(signature.to_header())
    }

    /// A message with its signature before it.
    ///
    /// # Errors
    ///
    /// As [`Self::header`].
    pub fn sign(&self, message: &str) -> Result<String> {
        Ok(format!("{}{message}", self.header(message)?))
    }
}

type Key = (DkimKey, String, String);

fn rsa() -> Result<Key> {
    let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
    let der = PrivateKeyDer::try_from(pair.serialize_der()).map_err(|e| anyhow!(e))?;
    let key = RsaKey::<Sha256>::from_key_der(der).map_err(|e| anyhow!("{e}"))?;
    let record = format!("v=DKIM1; p={}", STANDARD.encode(pair.subject_public_key_info()));
    Ok((DkimKey::Rsa(key), record, pair.serialize_pem()))
}

fn ed25519() -> Result<Key> {
    let der = Ed25519Key::generate_pkcs8().map_err(|e| anyhow!("{e}"))?;
    let key =
        Ed25519Key::from_pkcs8_der(&der).map_err(|e| anyhow!("{e}")).context("its own key")?;
    let record = format!("v=DKIM1; k=ed25519; p={}", STANDARD.encode(key.public_key()));
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(&der)
    );
    Ok((DkimKey::Ed25519(key), record, pem))
}
