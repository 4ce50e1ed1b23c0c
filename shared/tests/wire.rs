//! Wires against tokio-rustls: transfers, handshakes, records in pieces, closing, STARTTLS.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod peers;

use peers::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::SupportedProtocolVersion;
use tokio_rustls::{TlsAcceptor, TlsConnector};

async fn echoes_a_long_transfer(version: &'static SupportedProtocolVersion) {
    let identity = Identity::new();
    let (mut wire, socket) = wire().await;
    let server = identity.server(version);
    let echo = tokio::spawn(async move {
        wire.accept_tls(server).await.unwrap();
        assert_eq!(wire.sni(), Some("localhost"));
        echo(wire).await
    });
    let connector = TlsConnector::from(identity.client(version));
    let stream = connector.connect(localhost(), socket).await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (sent, hash) = noise(LONG, 7);
    let writing = tokio::spawn(async move {
        write_in_chunks(&mut writer, &sent, 1).await;
        writer.shutdown().await.unwrap();
    });
    assert_eq!(read_hash(&mut reader, LONG, 2).await, hash);
    assert_eq!(reader.read(&mut [0]).await.unwrap(), 0, "close_notify ends it");
    writing.await.unwrap();
    assert_eq!(echo.await.unwrap(), LONG as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls12_client_gets_50_megabytes_back() {
    echoes_a_long_transfer(TLS12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls13_client_gets_50_megabytes_back() {
    echoes_a_long_transfer(TLS13).await;
}

async fn gets_a_long_transfer_back(version: &'static SupportedProtocolVersion) {
    let identity = Identity::new();
    let (mut wire, socket) = wire().await;
    let acceptor = TlsAcceptor::from(identity.server(version));
    let echo = tokio::spawn(async move {
        let stream = acceptor.accept(socket).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let count = tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
        count
    });
    wire.connect_tls(identity.client(version), localhost()).await.unwrap();
    let (octets, _) = noise(LONG, 8);
    let (mut sent, mut seen) = (0, 0);
    let mut random = fastrand::Rng::with_seed(3);
    while seen < LONG {
        let chunk = random.usize(1..40_000).min(LONG - sent);
        wire.say(&octets[sent..sent + chunk]).await.unwrap();
        sent += chunk;
        while sent - seen > 30_000 || (sent == LONG && seen < LONG) {
            assert!(wire.fill().await.unwrap() > 0);
            let unread = wire.input.unread();
            assert!(unread == &octets[seen..seen + unread.len()], "differs after {seen}");
            seen += unread.len();
            wire.input.clear();
        }
    }
    assert!(wire.owns_no_buffers());
    wire.close().await;
    assert_eq!(echo.await.unwrap(), LONG as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls12_server_returns_50_megabytes() {
    gets_a_long_transfer_back(TLS12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls13_server_returns_50_megabytes() {
    gets_a_long_transfer_back(TLS13).await;
}
