//! Server and client configurations in real handshakes: names, trust, resumption, renewal; and
//! connecting to a backend with them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod peers;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use peers::*;
use sha2::{Digest, Sha256};
use shared::backend::{BackendTls, Endpoint, Host, Identity as Told, ProxyExtensions};
use shared::config::{CertificateFiles, TlsConfig};
use shared::proxy_protocol::{self, Extensions, Prefix};
use shared::tls::{Certificates, Trust, client_config};
use shared::wire::{ConnectError, Proxied, Wire};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::rustls::client::{Resumption, Tls12Resumption};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{
    CipherSuite, ClientConfig, HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

struct Made {
    files: CertificateFiles,
    der: Vec<u8>,
}

fn make(directory: &Path, name: &str, hosts: &[&str]) -> Made {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(hosts).unwrap();
    let files = CertificateFiles {
        cert_file: directory.join(format!("{name}.pem")),
        key_file: directory.join(format!("{name}.key")),
    };
    std::fs::write(&files.cert_file, made.cert.pem()).unwrap();
    std::fs::write(&files.key_file, made.signing_key.serialize_pem()).unwrap();
    Made { files, der: made.cert.der().to_vec() }
}

fn load(made: &[&Made]) -> Arc<Certificates> {
    load_with(made, None)
}

fn load_with(made: &[&Made], ticket_key_file: Option<&Path>) -> Arc<Certificates> {
    let certificates = made.iter().map(|made| made.files.clone()).collect();
    let ticket_key_file = ticket_key_file.map(Path::to_owned);
    let config = TlsConfig { certificates, self_signed: false, ticket_key_file };
    Certificates::load(&config).unwrap().unwrap()
}

fn pinned(made: &Made) -> Trust {
    Trust::Pins(vec![Sha256::digest(&made.der).into()])
}

/// One connection to a wire with `certificates`, up to its greeting.
async fn greeted(
    certificates: &Certificates,
    config: Arc<ClientConfig>,
    name: &str,
) -> Result<(HandshakeKind, Vec<u8>, CipherSuite), String> {
    let (mut wire, socket) = wire().await;
    let server = certificates.server_config();
    let serving = tokio::spawn(async move {
        wire.accept_tls(server).await?;
        wire.say("* OK\r\n").await?;
        wire.close().await;
        Ok::<_, shared::wire::WireError>(())
    });
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connected = TlsConnector::from(config).connect(name, socket).await;
    let mut stream = connected.map_err(|error| error.to_string())?;
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let kind = stream.get_ref().1.handshake_kind().unwrap();
    let suite = stream.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    drop(stream);
    serving.await.unwrap().unwrap();
    Ok((kind, shown, suite))
}

#[tokio::test]
async fn the_certificate_is_the_one_for_the_name() {
    let directory = tempfile::tempdir().unwrap();
    let first = make(directory.path(), "first", &["mail.example.org"]);
    let second = make(directory.path(), "second", &["*.example.net"]);
    let certificates = load(&[&first, &second]);
    for (name, made) in
        [("mail.example.org", &first), ("a.example.net", &second), ("192.0.2.1", &first)]
    {
        let config = client_config(&pinned(made), None).unwrap();
        let (_, shown, _) = greeted(&certificates, config, name).await.unwrap();
        assert!(shown == made.der, "{name}");
    }
}

#[tokio::test]
async fn a_private_authority_is_trusted_for_its_names_only() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let other = make(directory.path(), "other", &["mail.example.org"]);
    let certificates = load(&[&made]);
    let trusting = client_config(&Trust::CaFile(made.files.cert_file.clone()), None).unwrap();
    greeted(&certificates, trusting.clone(), "mail.example.org").await.unwrap();
    let error = greeted(&certificates, trusting, "imap.example.org").await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    let elsewhere = client_config(&Trust::CaFile(other.files.cert_file), None).unwrap();
    assert!(greeted(&certificates, elsewhere, "mail.example.org").await.is_err());
    let platform = client_config(&Trust::Platform, None).unwrap();
    assert!(greeted(&certificates, platform, "mail.example.org").await.is_err());
}

#[tokio::test]
async fn another_key_than_the_pinned_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let other = make(directory.path(), "other", &["mail.example.org"]);
    let certificates = load(&[&made]);
    let config = client_config(&pinned(&other), None).unwrap();
    assert!(greeted(&certificates, config, "mail.example.org").await.is_err());
}

/// As `client_config` does it, but for one version of TLS.
fn one_version(made: &Made, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(made.der.clone().into()).unwrap();
    ClientConfig::builder_with_protocol_versions(&[version])
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[tokio::test]
async fn clients_without_tickets_resume_by_id() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let certificates = load(&[&made]);
    let mut config = one_version(&made, TLS12);
    config.resumption =
        Resumption::in_memory_sessions(8).tls12_resumption(Tls12Resumption::SessionIdOnly);
    let config = Arc::new(config);
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (kind, ..) = greeted(&certificates, config.clone(), "mail.example.org").await.unwrap();
        assert_eq!(kind, expected);
    }
}

/// Two nodes have the same file, a third one another, and a fourth none.
#[tokio::test]
async fn clients_resume_at_every_node_with_the_same_ticket_keys_and_at_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let (file, another) = (directory.path().join("one.key"), directory.path().join("two.key"));
    std::fs::write(&file, [1; 32]).unwrap();
    std::fs::write(&another, [2; 32]).unwrap();
    let nodes = [Some(&*file), Some(&file), Some(&another), None];
    let nodes = nodes.map(|file| load_with(&[&made], file));
    for version in [TLS12, TLS13] {
        let config = Arc::new(one_version(&made, version));
        for (node, expected) in [
            (0, HandshakeKind::Full),
            (1, HandshakeKind::Resumed),
            (0, HandshakeKind::Resumed),
            (2, HandshakeKind::Full),
            (0, HandshakeKind::Full),
            (3, HandshakeKind::Full),
        ] {
            let greeted = greeted(&nodes[node], config.clone(), "mail.example.org").await;
            assert_eq!(greeted.unwrap().0, expected, "{version:?} {node}");
        }
    }
}

#[tokio::test]
async fn a_new_file_of_ticket_keys_ends_the_old_tickets() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let file = directory.path().join("tickets.key");
    std::fs::write(&file, [1; 32]).unwrap();
    let node = load_with(&[&made], Some(&file));
    let config = Arc::new(one_version(&made, TLS13));
    greeted(&node, config.clone(), "mail.example.org").await.unwrap();
    std::fs::write(&file, [2; 32]).unwrap();
    let later = SystemTime::now() + Duration::from_secs(2);
    std::fs::File::open(&file).unwrap().set_modified(later).unwrap();
    assert!(node.reload_if_changed().unwrap());
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (kind, ..) = greeted(&node, config.clone(), "mail.example.org").await.unwrap();
        assert_eq!(kind, expected);
    }
}

#[tokio::test]
async fn clients_resume_their_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let certificates = load(&[&made]);
    for version in [TLS12, TLS13] {
        let config = Arc::new(one_version(&made, version));
        let (first, ..) = greeted(&certificates, config.clone(), "mail.example.org").await.unwrap();
        assert_eq!(first, HandshakeKind::Full);
        let (second, ..) = greeted(&certificates, config, "mail.example.org").await.unwrap();
        assert_eq!(second, HandshakeKind::Resumed);
    }
}

#[tokio::test]
async fn the_cheaper_cipher_is_chosen_whatever_the_client_likes_best() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let certificates = load(&[&made]);
    for (version, cheaper) in [
        (TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        (TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256),
    ] {
        let config = one_version(&made, version);
        let first = config.crypto_provider().cipher_suites.first().unwrap().suite();
        assert_ne!(first, CipherSuite::TLS13_AES_128_GCM_SHA256, "else this shows nothing");
        let greeted = greeted(&certificates, Arc::new(config), "mail.example.org").await;
        assert_eq!(greeted.unwrap().2, cheaper);
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_and_open_sessions_stay() {
    let directory = tempfile::tempdir().unwrap();
    let before = make(directory.path(), "mail", &["mail.example.org"]);
    let certificates = load(&[&before]);
    let (mut wire, socket) = wire().await;
    let connector = TlsConnector::from(client_config(&pinned(&before), None).unwrap());
    let name = ServerName::try_from("mail.example.org").unwrap();
    let (stream, accepted) = tokio::join!(
        connector.connect(name, socket),
        wire.accept_tls(certificates.server_config())
    );
    accepted.unwrap();

    let after = make(directory.path(), "mail", &["mail.example.org"]);
    // Two writes may fall into one tick of the file system's clock.
    let later = SystemTime::now() + Duration::from_secs(2);
    std::fs::File::open(&after.files.cert_file).unwrap().set_modified(later).unwrap();
    assert!(certificates.reload_if_changed().unwrap());
    let config = client_config(&pinned(&after), None).unwrap();
    let (_, shown, _) = greeted(&certificates, config, "mail.example.org").await.unwrap();
    assert!(shown == after.der);

    wire.say("* OK still here\r\n").await.unwrap();
    let mut read = [0; 17];
    stream.unwrap().read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"* OK still here\r\n");
}

fn endpoint(address: SocketAddr, tls: BackendTls, identity: Told) -> Endpoint {
    Endpoint {
        tls,
        identity,
        reply_timeout: Duration::from_secs(10),
        ..Endpoint::plain(Host::new(&address.ip().to_string(), address.port()))
    }
}

#[tokio::test]
async fn a_backend_is_told_the_client_before_the_handshake() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let certificates = load(&[&made]);
    let (listener, address) = listen().await;
    let name = ServerName::try_from("mail.example.org").unwrap();
    let tls = BackendTls::Implicit(client_config(&pinned(&made), None).unwrap(), name);
    let client = Proxied {
        client: "203.0.113.9:5000".parse().unwrap(),
        local: "192.0.2.1:993".parse().unwrap(),
    };
    let backend = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut header = vec![0; proxy_protocol::encode(Some(client), Extensions::default()).len()];
        socket.read_exact(&mut header).await.unwrap();
        let octets = header.len();
        let expected = Prefix::Header { octets, client: Some(client) };
        assert_eq!(proxy_protocol::parse(&header), Ok(expected));
        let acceptor = TlsAcceptor::from(certificates.server_config());
        let mut stream = acceptor.accept(socket).await.unwrap();
        stream.write_all(b"* OK\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let endpoint = endpoint(address, tls, Told::Proxy);
    let mut wire = Wire::connect(&endpoint, Some(client), patient()).await.unwrap().wire;
    assert!(wire.is_secured());
    assert_eq!(wire.line(100).await.unwrap().octets(), b"* OK");
    backend.await.unwrap();
}

/// What a backend that is told by PROXY hears first, up to its LF or as much as comes at once.
async fn told_first(wanted: ProxyExtensions, identity: Told) -> Vec<u8> {
    let (listener, address) = listen().await;
    let client = Proxied {
        client: "203.0.113.9:5000".parse().unwrap(),
        local: "192.0.2.1:993".parse().unwrap(),
    };
    let facts = Extensions {
        authority: Some("imap.example.org"),
        unique_id: Some("session-1"),
        tls: Some("TLSv1.3"),
    };
    let mut endpoint = endpoint(address, BackendTls::Plain, identity);
    endpoint.proxy_extensions = wanted;
    let wire = Wire::connect_telling(&endpoint, Some(client), facts, patient()).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    drop(wire);
    let mut said = Vec::new();
    socket.read_to_end(&mut said).await.unwrap();
    said
}

#[tokio::test]
async fn a_proxy_header_says_what_the_backend_wants_and_no_more() {
    let none = told_first(ProxyExtensions::default(), Told::Proxy).await;
    assert_eq!(none.len(), 28, "two IPv4 addresses and nothing else");
    let some = ProxyExtensions { unique_id: true, ..ProxyExtensions::default() };
    let some = told_first(some, Told::Proxy).await;
    assert!(some.ends_with(b"session-1") && !some.windows(4).any(|w| w == b"imap"), "{some:?}");
    let v1 = told_first(ProxyExtensions::default(), Told::ProxyV1).await;
    assert_eq!(v1, b"PROXY TCP4 203.0.113.9 192.0.2.1 5000 993\r\n");
}

#[tokio::test]
async fn a_backend_that_asks_for_a_certificate_gets_ours() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let ours = make(directory.path(), "proxy", &["proxy.example.org"]);
    let mut roots = RootCertStore::empty();
    roots.add(ours.der.clone().into()).unwrap();
    let verifier = WebPkiClientVerifier::builder(roots.into()).build().unwrap();
    let key = PrivateKeyDer::from_pem_file(&made.files.key_file).unwrap();
    let server = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![made.der.clone().into()], key)
        .unwrap();
    let server = Arc::new(server);
    for (identity, taken) in [(Some(&ours.files), true), (None, false)] {
        let (listener, address) = listen().await;
        let acceptor = TlsAcceptor::from(Arc::clone(&server));
        let backend = tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(socket).await?;
            stream.write_all(b"* OK\r\n").await
        });
        let name = ServerName::try_from("mail.example.org").unwrap();
        let tls = BackendTls::Implicit(client_config(&pinned(&made), identity).unwrap(), name);
        let endpoint = endpoint(address, tls, Told::None);
        let greeted = async {
            let mut wire = Wire::connect(&endpoint, None, patient()).await.map_err(drop)?.wire;
            wire.line(100).await.map(drop).map_err(drop)
        };
        assert_eq!(greeted.await.is_ok(), taken);
        assert_eq!(backend.await.unwrap().is_ok(), taken);
    }
}

#[tokio::test]
async fn a_backend_with_another_certificate_is_not_talked_to() {
    let directory = tempfile::tempdir().unwrap();
    let made = make(directory.path(), "mail", &["mail.example.org"]);
    let other = make(directory.path(), "other", &["mail.example.org"]);
    let certificates = load(&[&made]);
    let (listener, address) = listen().await;
    let backend = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(certificates.server_config()).accept(socket).await.map(drop)
    });
    let name = ServerName::try_from("mail.example.org").unwrap();
    let tls = BackendTls::Implicit(client_config(&pinned(&other), None).unwrap(), name);
    let endpoint = endpoint(address, tls, Told::None);
    let error = Wire::connect(&endpoint, None, patient()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Secure { .. }), "{error}");
    assert!(backend.await.unwrap().is_err());
}

#[tokio::test]
async fn a_backend_that_is_not_there_is_named() {
    let (listener, address) = listen().await;
    drop(listener);
    let gone = endpoint(address, BackendTls::Plain, Told::None);
    let error = Wire::connect(&gone, None, patient()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Connect { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");

    // No resolver is asked for a label of 64 octets.
    let nowhere = Endpoint { hosts: vec![Host::new(&"x".repeat(64), 143)], ..gone };
    let error = Wire::connect(&nowhere, None, patient()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. }), "{error}");
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_given_up_in_time() {
    // The one place in the queue of connections is taken, so the kernel answers no more.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener: TcpListener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut full = endpoint(address, BackendTls::Plain, Told::None);
    full.connect_timeout = Duration::from_millis(300);
    let mut kept = Vec::new();
    let error = loop {
        match Wire::connect(&full, None, patient()).await {
            Ok(wire) => kept.push(wire),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ConnectError::Timeout(_)), "{error}");
}
