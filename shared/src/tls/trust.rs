//! Whom a backend's certificate must come from (NET-7). There is no "accept anything".

use std::path::PathBuf;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use rustls_platform_verifier::BuilderVerifierExt;
use sha2::{Digest, Sha256};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use x509_parser::prelude::FromDer;

use super::TlsError;
use super::certificates::{read_chain, read_key};
use crate::config::CertificateFiles;

/// Backend sessions remembered for resumption.
const REMEMBERED_SESSIONS: usize = 1024;

/// Whom a backend's certificate must come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// An authority that the operating system trusts, for the expected name.
    Platform,
    /// An authority in this PEM file, for the expected name.
    CaFile(PathBuf),
    /// The certificate, or its public key (SubjectPublicKeyInfo), has one of these SHA-256 digests.
    /// Name and dates do not count then: the operator has said which key it is.
    Pins(Vec<[u8; 32]>),
}

/// A client configuration for one policy. Make one for each policy and keep it, else nothing is resumed.
/// With `identity` we prove who we are to a server that asks for it.
///
/// # Errors
///
/// A [`TlsError`] that names the file.
pub fn client_config(
    trust: &Trust,
    identity: Option<&CertificateFiles>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = super::provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Platform => builder.with_platform_verifier()?,
        Trust::CaFile(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in read_chain(file)? {
                roots.add(certificate).map_err(|error| TlsError::Unreadable {
                    file: file.clone(),
                    reason: error.to_string(),
                })?;
            }
            builder.with_root_certificates(roots)
        }
        Trust::Pins(pins) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { pins: pins.clone(), provider })),
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(files) => {
            builder.with_client_auth_cert(read_chain(&files.cert_file)?, read_key(files)?)?
        }
    };
    config.resumption = Resumption::in_memory_sessions(REMEMBERED_SESSIONS);
    Ok(Arc::new(config))
}

/// Accepts exactly the pinned certificates or keys. The handshake's signature is still checked, so the
/// backend has to hold the key.
#[derive(Debug)]
struct Pinned {
    pins: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate: [u8; 32] = Sha256::digest(end_entity).into();
        let key = x509_parser::certificate::X509Certificate::from_der(end_entity)
            .map(|(_, parsed)| <[u8; 32]>::from(Sha256::digest(parsed.public_key().raw)));
        let pinned =
            self.pins.contains(&certificate) || key.is_ok_and(|key| self.pins.contains(&key));
        if pinned {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_of_the_certificate_or_of_its_key() {
        let made = rcgen::generate_simple_self_signed(vec!["mail.example.org".to_owned()]).unwrap();
        let der = made.cert.der().clone();
        let of_certificate: [u8; 32] = Sha256::digest(&der).into();
        let of_key: [u8; 32] = Sha256::digest(
            x509_parser::certificate::X509Certificate::from_der(&der).unwrap().1.public_key().raw,
        )
        .into();
        let verdict = |pins: Vec<[u8; 32]>| {
            let verifier = Pinned { pins, provider: super::super::provider() };
            let name = ServerName::try_from("elsewhere.example").unwrap();
            verifier.verify_server_cert(&der, &[], &name, &[], UnixTime::now()).is_ok()
        };
        assert!(verdict(vec![of_certificate]));
        assert!(verdict(vec![[0; 32], of_key]));
        assert!(!verdict(vec![[0; 32]]));
    }

    #[test]
    fn a_ca_file_that_is_not_there_is_named() {
        let said =
            client_config(&Trust::CaFile("/nowhere/ca.pem".into()), None).unwrap_err().to_string();
        assert!(said.contains("/nowhere/ca.pem"), "{said}");
    }
}
