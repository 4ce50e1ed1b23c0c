//! An authority of our own and certificates by it (ECDSA P-256), as files and as rustls configurations.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::place::Place;

/// A throw-away authority.
#[derive(Debug)]
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    place: Place,
}

/// A certificate and its key in PEM files. Every user may read them: they protect nothing.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

impl TestCa {
    /// Makes an authority.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn new() -> Result<Self> {
        let place = Place::new()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = named("Mailshift test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        place.write("ca.pem", &issuer.pem(), 0o644, None)?;
        Ok(Self { issuer, place })
    }

    /// Its own certificate.
    pub fn file(&self) -> PathBuf {
        self.place.join("ca.pem")
    }

    /// Issues a certificate for `name`, a host name or an address.
    ///
    /// # Errors
    ///
    /// `name` is neither.
    pub fn issue(&self, name: &str) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate =
            CertificateParams::new([name.to_owned()])?.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            cert_file: self.place.write(
                &format!("{name}.cert.pem"),
                &certificate.pem(),
                0o644,
                None,
            )?,
            key_file: self.place.write(
                &format!("{name}.key.pem"),
                &key.serialize_pem(),
                0o644,
                None,
            )?,
        })
    }

    /// For clients: trusts this authority alone and never resumes a session.
    ///
    /// # Errors
    ///
    /// The authority's file is gone.
    pub fn connector(&self) -> Result<TlsConnector> {
        connector_trusting(&self.file())
    }
}

impl Identity {
    /// For fake servers.
    ///
    /// # Errors
    ///
    /// The files are gone.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let chain = vec![CertificateDer::from_pem_file(&self.cert_file)?];
        let key = PrivateKeyDer::from_pem_file(&self.key_file)?;
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A client's configuration that trusts one authority's file.
///
/// # Errors
///
/// It is not there, or no certificate.
pub fn connector_trusting(ca_file: &Path) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca_file)?)?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A name to check a certificate by.
///
/// # Errors
///
/// It is none.
pub fn server_name(name: &str) -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(name.to_owned())?)
}
