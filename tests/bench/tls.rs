//! A throw-away authority and certificate (ECDSA P-256), and clients that trust it. Nobody resumes,
//! unless that is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs::Ticketer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The name in the certificate.
pub const HOST: &str = "mail.example.org";

/// PEM files in a directory, and what is made from them.
pub struct Tls {
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub acceptor: TlsAcceptor,
    pub connector: TlsConnector,
}

impl Tls {
    /// With `resume`, clients and backends remember their sessions.
    pub fn new(directory: &Path, resume: bool) -> anyhow::Result<Self> {
        let mut authority = CertificateParams::new(Vec::<String>::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate whose issuer has its own name for one that signed itself.
        authority.distinguished_name.push(DnType::CommonName, "the bench's authority");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![HOST.to_owned(), "localhost".to_owned()])?
            .signed_by(&key, &authority)?;
        let file = |name: &str, pem: String| -> anyhow::Result<PathBuf> {
            let path = directory.join(name);
            std::fs::write(&path, pem)?;
            Ok(path)
        };
        let ca_file = file("ca.pem", authority.pem())?;
        let cert_file = file("cert.pem", certificate.pem())?;
        let key_file = file("key.pem", key.serialize_pem())?;
        let chain = vec![CertificateDer::from_pem_file(&cert_file)?];
        let mut server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(&key_file)?)?;
        if resume {
            server.ticketer = Ticketer::new()?;
        } else {
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        }
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&ca_file)?)?;
        let mut client =
            ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        if !resume {
            client.resumption = Resumption::disabled();
        }
        Ok(Self {
            ca_file,
            cert_file,
            key_file,
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }

    pub fn name() -> ServerName<'static> {
        ServerName::try_from(HOST).expect("a host name")
    }
}
