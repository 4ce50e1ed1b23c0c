//! The certificates that listeners show, chosen by the name a client asks for (SNI).
//!
//! Exact names first, then wildcards of one label (RFC 6125 §6.4.3), then the first certificate: old mail
//! clients send no name, or the address they connect to. Files are read again when they change; what
//! cannot be used leaves the old ones in place.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::server::{
    ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache,
};
use tokio_rustls::rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::TlsError;
use super::tickets::SharedTickets;
use crate::config::{CertificateFiles, TlsConfig};

/// Sessions remembered for clients that resume by id instead of ticket (TLS 1.2).
const REMEMBERED_SESSIONS: usize = 4096;

/// All certificates of a node, and the one server configuration that shows them.
#[derive(Debug)]
pub struct Certificates {
    /// Keys of session tickets that other nodes have, too, and where they come from.
    tickets: Option<(PathBuf, Arc<SharedTickets>)>,
    read: Mutex<Read>,
    chosen: Arc<Chosen>,
    config: Arc<ServerConfig>,
}

/// What was read last.
#[derive(Debug)]
struct Read {
    files: Vec<CertificateFiles>,
    /// When each file was last changed.
    changed: Vec<Option<SystemTime>>,
}

#[derive(Debug)]
struct Chosen(ArcSwap<ByName>);

#[derive(Debug, Clone)]
struct ByName {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    /// Under what follows `*.`.
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl Certificates {
    /// Reads the configured certificates; `None` when none is configured.
    ///
    /// # Errors
    ///
    /// A [`TlsError`] that names the file.
    pub fn load(config: &TlsConfig) -> Result<Option<Arc<Self>>, TlsError> {
        let changed = changed(&config.certificates, config.ticket_key_file.as_deref());
        let by_name = if config.self_signed {
            tracing::warn!(
                "using a self-signed certificate: clients will not trust it (tls.self_signed)"
            );
            ByName::with(vec![self_signed()?])
        } else {
            ByName::with(read_all(&config.certificates)?)
        };
        let Some(by_name) = by_name else { return Ok(None) };
        let chosen = Arc::new(Chosen(ArcSwap::from_pointee(by_name)));
        let mut server = ServerConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&chosen) as Arc<dyn ResolvesServerCert>);
        server.ignore_client_order = true;
        let tickets = match &config.ticket_key_file {
            Some(file) => Some((file.clone(), Arc::new(SharedTickets::load(file)?))),
            None => None,
        };
        server.ticketer = match &tickets {
            Some((_, shared)) => Arc::clone(shared) as Arc<dyn ProducesTickets>,
            None => aws_lc_rs::Ticketer::new()?,
        };
        server.session_storage = ServerSessionMemoryCache::new(REMEMBERED_SESSIONS);
        Ok(Some(Arc::new(Self {
            tickets,
            read: Mutex::new(Read { files: config.certificates.clone(), changed }),
            chosen,
            config: Arc::new(server),
        })))
    }

    /// The configuration for accepting connections. Stays the same when certificates are read again.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    fn ticket_key_file(&self) -> Option<&Path> {
        self.tickets.as_ref().map(|(file, _)| file.as_path())
    }

    /// Reads the files again if one of them has changed. Says whether they were.
    ///
    /// # Errors
    ///
    /// A [`TlsError`]; the certificates in use stay.
    pub fn reload_if_changed(&self) -> Result<bool, TlsError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed(&read.files, self.ticket_key_file());
        if read.changed == now {
            return Ok(false);
        }
        // Noted even when they cannot be used, so that it is said once and not at every look.
        read.changed = now;
        if let Some((file, tickets)) = &self.tickets {
            tickets.reload(file)?;
        }
        let Some(by_name) = ByName::with(read_all(&read.files)?) else { return Ok(false) };
        self.chosen.0.store(Arc::new(by_name));
        Ok(true)
    }

    /// Reads other files, and shows what is in them from now on.
    ///
    /// # Errors
    ///
    /// A [`TlsError`]; the certificates in use stay.
    pub fn replace(&self, files: &[CertificateFiles]) -> Result<(), TlsError> {
        let changed = changed(files, self.ticket_key_file());
        // None: a self-signed one stays.
        let Some(by_name) = ByName::with(read_all(files)?) else { return Ok(()) };
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) =
            Read { files: files.to_vec(), changed };
        self.chosen.0.store(Arc::new(by_name));
        Ok(())
    }

    /// Everything that keeps certificates from being used.
    pub fn problems(files: &[CertificateFiles]) -> Vec<TlsError> {
        files.iter().filter_map(|files| read(files).err()).collect()
    }

    /// What keeps the tickets' key from being used.
    pub fn ticket_problem(config: &TlsConfig) -> Option<TlsError> {
        SharedTickets::load(config.ticket_key_file.as_deref()?).err()
    }
}

impl ByName {
    fn with(certificates: Vec<(CertifiedKey, Vec<String>)>) -> Option<Self> {
        let mut certificates =
            certificates.into_iter().map(|(certificate, names)| (Arc::new(certificate), names));
        let first = certificates.next()?;
        let mut by_name =
            Self { exact: HashMap::new(), wildcard: HashMap::new(), default: Arc::clone(&first.0) };
        // Of two certificates with one name the first one in the configuration is shown.
        for (certificate, names) in std::iter::once(first).chain(certificates) {
            for name in names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut by_name.wildcard, parent),
                    None => (&mut by_name.exact, name.as_str()),
                };
                names.entry(name.into()).or_insert_with(|| Arc::clone(&certificate));
            }
        }
        Some(by_name)
    }

    fn choose(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let chosen = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let parent = name.split_once('.').map(|(_, parent)| parent);
            self.exact
                .get(name.as_str())
                .or_else(|| parent.and_then(|parent| self.wildcard.get(parent)))
        });
        Arc::clone(chosen.unwrap_or(&self.default))
    }
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().choose(hello.server_name()))
    }
}

fn read_all(files: &[CertificateFiles]) -> Result<Vec<(CertifiedKey, Vec<String>)>, TlsError> {
    files.iter().map(read).collect()
}

fn read(files: &CertificateFiles) -> Result<(CertifiedKey, Vec<String>), TlsError> {
    let chain = read_chain(&files.cert_file)?;
    let key = read_key(files)?;
    let names = chain.first().map(names_of).unwrap_or_default();
    let certificate =
        CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|source| {
            TlsError::Mismatch {
                cert: files.cert_file.clone(),
                key: files.key_file.clone(),
                source,
            }
        })?;
    Ok((certificate, names))
}

/// Reads the private key of a certificate.
pub(super) fn read_key(files: &CertificateFiles) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(&files.key_file)
        .map_err(|error| unreadable(&files.key_file, &error))
}

/// Reads all certificates of a PEM file.
pub(super) fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(file, &error))?;
    if chain.is_empty() {
        return Err(TlsError::Empty { file: file.to_owned() });
    }
    Ok(chain)
}

fn unreadable(file: &Path, error: &rustls_pki_types::pem::Error) -> TlsError {
    TlsError::Unreadable { file: file.to_owned(), reason: error.to_string() }
}

/// The host names a certificate is for, in lower case. The subject's common name does not count
/// (RFC 9525 §2).
fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// When each file was last changed. Reads through links, which certbot moves instead of the files.
fn changed(files: &[CertificateFiles], more: Option<&Path>) -> Vec<Option<SystemTime>> {
    let of = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let pairs = files.iter().flat_map(|f| [of(&f.cert_file), of(&f.key_file)]);
    pairs.chain(more.map(of)).collect()
}

fn self_signed() -> Result<(CertifiedKey, Vec<String>), TlsError> {
    let failed = |error: &dyn std::fmt::Display| TlsError::SelfSigned(error.to_string());
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
        .map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(|e| failed(&e))?;
    let chain = vec![made.cert.der().clone()];
    let certificate = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|error| failed(&error))?;
    Ok((certificate, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, hosts: &[&str]) -> CertificateFiles {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(hosts).unwrap();
        let files = CertificateFiles {
            cert_file: directory.join(format!("{name}.pem")),
            key_file: directory.join(format!("{name}.key")),
        };
        std::fs::write(&files.cert_file, made.cert.pem()).unwrap();
        std::fs::write(&files.key_file, made.signing_key.serialize_pem()).unwrap();
        files
    }

    fn load(files: Vec<CertificateFiles>) -> Result<Option<Arc<Certificates>>, TlsError> {
        let ticket_key_file = None;
        Certificates::load(&TlsConfig { certificates: files, self_signed: false, ticket_key_file })
    }

    #[test]
    fn the_certificate_is_chosen_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let files = vec![
            write(directory.path(), "first", &["mail.example.org"]),
            write(directory.path(), "second", &["*.example.net", "IMAP.example.org"]),
        ];
        let certificates = load(files).unwrap().unwrap();
        let by_name = certificates.chosen.0.load();
        let first = by_name.choose(None);
        let second = by_name.choose(Some("imap.example.org"));
        assert!(!Arc::ptr_eq(&first, &second));
        for (name, expected) in [
            ("MAIL.example.org", &first),
            ("any.example.net", &second),
            ("two.labels.example.net", &first),
            ("elsewhere.example", &first),
        ] {
            assert!(Arc::ptr_eq(&by_name.choose(Some(name)), expected), "{name}");
        }
    }

    #[test]
    fn changed_files_are_read_again_and_bad_ones_leave_the_old() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(directory.path(), "mail", &["mail.example.org"]);
        let certificates = load(vec![files.clone()]).unwrap().unwrap();
        assert!(!certificates.reload_if_changed().unwrap());
        let before = certificates.chosen.0.load().choose(None);
        write(directory.path(), "mail", &["mail.example.org"]);
        // Two writes may fall into one tick of the file system's clock.
        let later = SystemTime::now() + std::time::Duration::from_secs(2);
        std::fs::File::open(&files.cert_file).unwrap().set_modified(later).unwrap();
        assert!(certificates.reload_if_changed().unwrap());
        let renewed = certificates.chosen.0.load().choose(None);
        assert!(!Arc::ptr_eq(&before, &renewed));
        std::fs::write(&files.cert_file, "no certificate").unwrap();
        assert!(certificates.reload_if_changed().is_err());
        assert!(Arc::ptr_eq(&renewed, &certificates.chosen.0.load().choose(None)));
    }

    #[test]
    fn a_certificate_without_its_key_is_refused_with_both_names() {
        let directory = tempfile::tempdir().unwrap();
        let one = write(directory.path(), "one", &["a.example"]);
        let other = write(directory.path(), "other", &["b.example"]);
        let mixed = CertificateFiles { cert_file: one.cert_file, key_file: other.key_file };
        let said = load(vec![mixed]).unwrap_err().to_string();
        assert!(said.contains("one.pem") && said.contains("other.key"), "{said}");
    }

    #[test]
    fn nothing_configured_is_no_certificate() {
        assert!(load(Vec::new()).unwrap().is_none());
    }
}
