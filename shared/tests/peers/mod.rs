//! Peers to test wires against: certificates, rustls configurations, loopback sockets.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use shared::wire::{Deadlines, Wire};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version,
};

/// Octets of the long transfers.
pub(crate) const LONG: usize = 50 * 1000 * 1000;

pub(crate) static TLS12: &SupportedProtocolVersion = &version::TLS12;
pub(crate) static TLS13: &SupportedProtocolVersion = &version::TLS13;

/// A certificate for `localhost`, as files and as rustls configurations.
pub(crate) struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) cert_file: PathBuf,
    pub(crate) key_file: PathBuf,
    pub(crate) directory: tempfile::TempDir,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (cert_file, key_file) =
            (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        std::fs::write(&cert_file, made.cert.pem()).unwrap();
        let mut file = std::fs::File::create(&key_file).unwrap();
        file.write_all(made.signing_key.serialize_pem().as_bytes()).unwrap();
        Self {
            certificate: made.cert.der().clone(),
            key: PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap(),
            cert_file,
            key_file,
            directory,
        }
    }

    pub(crate) fn server(&self, version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_protocol_versions(&[version])
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .unwrap();
        Arc::new(config)
    }

    pub(crate) fn client(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }
}

pub(crate) fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

pub(crate) fn patient() -> Deadlines {
    let minute = Duration::from_mins(1);
    Deadlines { read: minute, write: minute, until: None }
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Two ends of one loopback connection.
pub(crate) async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listen().await;
    let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (connected, accepted) = (connected.unwrap(), accepted.unwrap().0);
    connected.set_nodelay(true).unwrap();
    accepted.set_nodelay(true).unwrap();
    (connected, accepted)
}

/// Two ends of one loopback connection that hold as little as the kernel allows.
pub(crate) async fn narrow_pair() -> (TcpStream, TcpStream) {
    let narrow = || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        socket.set_send_buffer_size(1).unwrap();
        socket
    };
    let listening = narrow();
    listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listening.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let (connected, accepted) = tokio::join!(narrow().connect(address), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

/// A wire and the socket on its other end.
pub(crate) async fn wire() -> (Wire, TcpStream) {
    let (ours, theirs) = pair().await;
    (Wire::new(ours, patient()).unwrap(), theirs)
}

/// Sends everything back until the peer closes, then closes; returns how many octets that were.
pub(crate) async fn echo(mut wire: Wire) -> u64 {
    let mut count = 0;
    while !wire.input.is_empty() || wire.fill().await.unwrap() > 0 {
        count += wire.input.len() as u64;
        let octets = wire.input.unread().to_vec();
        wire.input.clear();
        wire.say(octets).await.unwrap();
    }
    wire.close().await;
    count
}

/// Octets that look like anything, and their SHA-256.
pub(crate) fn noise(count: usize, seed: u64) -> (Arc<Vec<u8>>, [u8; 32]) {
    let mut octets = vec![0; count];
    fastrand::Rng::with_seed(seed).fill(&mut octets);
    let hash = Sha256::digest(&octets).into();
    (Arc::new(octets), hash)
}

/// Writes `octets` in chunks of random sizes, from 1 octet to 40 000.
pub(crate) async fn write_in_chunks(to: &mut (impl AsyncWrite + Unpin), octets: &[u8], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rest = octets;
    while !rest.is_empty() {
        let largest = if random.u8(..) < 16 { 40 } else { 40_000 };
        let (chunk, after) = rest.split_at(random.usize(1..=largest).min(rest.len()));
        to.write_all(chunk).await.unwrap();
        if random.u8(..) < 32 {
            to.flush().await.unwrap();
        }
        rest = after;
    }
    to.flush().await.unwrap();
}

/// Reads until `count` octets came, or less if the peer closes; in reads of random sizes.
pub(crate) async fn read_hash(
    from: &mut (impl AsyncRead + Unpin),
    count: usize,
    seed: u64,
) -> [u8; 32] {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 70_000];
    let mut left = count;
    while left > 0 {
        let room = random.usize(1..=buffer.len()).min(left);
        let read = from.read(&mut buffer[..room]).await.unwrap();
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        left -= read;
    }
    hash.finalize().into()
}
