//! TLS configurations: certificates for listeners, trust for backend connections.
//!
//! One `Arc<ServerConfig>` for all listeners and one `Arc<ClientConfig>` for each trust policy, so that
//! sessions can be resumed. What is done with them is the wire's business. TLS 1.2 and 1.3 only.

mod certificates;
mod tickets;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::CipherSuite;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use certificates::Certificates;
pub use trust::{Trust, client_config};

/// Why certificates or trust cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("cannot read {}: {reason}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// A PEM file has nothing of what is looked for.
    #[error("{} holds no certificate", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The key is not the certificate's, or of a kind that cannot be used.
    #[error("{} and {} do not fit: {source}", cert.display(), key.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: tokio_rustls::rustls::Error,
    },
    /// No certificate could be made.
    #[error("cannot make a self-signed certificate: {0}")]
    SelfSigned(String),
    /// A secret is too short to be one.
    #[error("{} must hold at least {octets} random octets", file.display())]
    ShortSecret {
        /// The file.
        file: PathBuf,
        /// How long it must be.
        octets: usize,
    },
    /// The cryptography provider refused.
    #[error("TLS cannot be set up: {0}")]
    Provider(#[from] tokio_rustls::rustls::Error),
}

/// Algorithms, with AES-128 before AES-256. Nothing that mail needs is gained by the longer key, and it comes
/// with SHA-384, for which processors have no instructions: a tenth of what a login costs.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 0,
        _ => 1,
    });
    Arc::new(provider)
}
