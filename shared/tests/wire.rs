//! Wires against tokio-rustls: transfers, handshakes, records in pieces, closing, STARTTLS.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod peers;

use std::time::Duration;

use peers::*;
use shared::dialogue::{Dialogue, Input, Output, Step, Violation};
use shared::wire::{MAX_UNREAD, Wire, WireError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
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

/// A dialogue of lines: STARTTLS, QUIT, and anything else is an event.
#[derive(Default)]
struct Lines {
    secured: bool,
}

impl Dialogue for Lines {
    type Event = Vec<u8>;

    fn step(&mut self, input: &mut Input, output: &mut Output) -> Result<Step<Vec<u8>>, Violation> {
        let Some(line) = input.line(100)? else { return Ok(Step::NeedInput) };
        match line.octets() {
            b"STARTTLS" => {
                output.push("220 go ahead\r\n");
                Ok(Step::StartTls)
            }
            b"QUIT" => {
                output.push("221 bye\r\n");
                Ok(Step::Close)
            }
            other => Ok(Step::Event(other.to_vec())),
        }
    }

    fn secured(&mut self, _: &mut Output) {
        self.secured = true;
    }
}

async fn expect(stream: &mut (impl AsyncRead + Unpin), octets: &[u8]) {
    let mut read = vec![0; octets.len()];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, octets);
}

#[tokio::test]
async fn a_dialogue_goes_on_under_tls_after_starttls() {
    for version in [TLS12, TLS13] {
        let identity = Identity::new();
        let (mut wire, mut socket) = wire().await;
        wire.offer_tls(identity.server(version));
        let client = tokio::spawn(async move {
            socket.write_all(b"STARTTLS\r\n").await.unwrap();
            expect(&mut socket, b"220 go ahead\r\n").await;
            let connector = TlsConnector::from(identity.client(version));
            let mut stream = connector.connect(localhost(), socket).await.unwrap();
            stream.write_all(b"EHLO a\r\n").await.unwrap();
            stream.write_all(b"QUIT\r\n").await.unwrap();
            expect(&mut stream, b"221 bye\r\n").await;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"");
        });
        let mut dialogue = Lines::default();
        assert_eq!(wire.drive(&mut dialogue).await.unwrap(), Some(b"EHLO a".to_vec()));
        assert!(dialogue.secured && wire.is_secured());
        let description = wire.tls_description().unwrap().to_string();
        let expected = if version == TLS12 {
            "TLSv1.2 with cipher TLS_"
        } else {
            "TLSv1.3 with cipher TLS_AES_"
        };
        assert!(description.starts_with(expected), "{description}");
        assert_eq!(wire.drive(&mut dialogue).await.unwrap(), None);
        wire.close().await;
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_says_more_behind_starttls_is_cut() {
    let identity = Identity::new();
    let (mut wire, mut socket) = wire().await;
    wire.offer_tls(identity.server(TLS13));
    socket.write_all(b"STARTTLS\r\nMAIL FROM:<eve@example.org>\r\n").await.unwrap();
    let error = wire.drive(&mut Lines::default()).await.unwrap_err();
    assert!(matches!(error, WireError::PlaintextAfterStartTls), "{error}");
    assert!(wire.input.is_empty());
}

#[tokio::test]
async fn plaintext_that_comes_late_fails_the_handshake() {
    let identity = Identity::new();
    let (mut wire, mut socket) = wire().await;
    wire.offer_tls(identity.server(TLS13));
    let mut dialogue = Lines::default();
    let client = async {
        socket.write_all(b"STARTTLS\r\n").await.unwrap();
        expect(&mut socket, b"220 go ahead\r\n").await;
        socket.write_all(b"MAIL FROM:<eve@example.org>\r\n").await.unwrap();
    };
    let (driven, ()) = tokio::join!(wire.drive(&mut dialogue), client);
    assert!(matches!(driven.unwrap_err(), WireError::Tls(_)));
    assert!(!dialogue.secured);
}

#[tokio::test]
async fn a_backend_that_says_more_behind_its_yes_to_starttls_is_cut() {
    let identity = Identity::new();
    let (mut wire, mut socket) = wire().await;
    socket.write_all(b"220 go ahead\r\n250 injected\r\n").await.unwrap();
    wire.say("STARTTLS\r\n").await.unwrap();
    assert_eq!(wire.line(100).await.unwrap().octets(), b"220 go ahead");
    let error = wire.connect_tls(identity.client(TLS13), localhost()).await.unwrap_err();
    assert!(matches!(error, WireError::PlaintextAfterStartTls), "{error}");
    assert!(!wire.is_secured());
    expect(&mut socket, b"STARTTLS\r\n").await;
}

#[tokio::test]
async fn an_untrusted_certificate_is_refused_and_the_server_told() {
    let (ours, theirs) = (Identity::new(), Identity::new());
    let (mut wire, socket) = wire().await;
    let acceptor = TlsAcceptor::from(theirs.server(TLS13));
    let (connected, accepted) =
        tokio::join!(wire.connect_tls(ours.client(TLS13), localhost()), acceptor.accept(socket));
    assert!(matches!(connected.unwrap_err(), WireError::Tls(_)));
    let told = accepted.unwrap_err().to_string();
    assert!(told.contains("alert"), "{told}");
}

#[tokio::test]
async fn an_idle_wire_owns_no_buffers() {
    for version in [TLS12, TLS13] {
        let identity = Identity::new();
        let (mut wire, socket) = wire().await;
        let connector = TlsConnector::from(identity.client(version));
        let (stream, accepted) = tokio::join!(
            connector.connect(localhost(), socket),
            wire.accept_tls(identity.server(version))
        );
        accepted.unwrap();
        let mut stream = stream.unwrap();
        wire.say("* OK ready\r\n").await.unwrap();
        expect(&mut stream, b"* OK ready\r\n").await;
        stream.write_all(b"a1 NOOP\r\n").await.unwrap();
        assert_eq!(wire.line(100).await.unwrap().octets(), b"a1 NOOP");
        assert!(wire.owns_no_buffers());
    }
}

#[tokio::test]
async fn a_peer_may_close_with_or_without_close_notify() {
    for says_so in [true, false] {
        let identity = Identity::new();
        let (mut wire, socket) = wire().await;
        let connector = TlsConnector::from(identity.client(TLS13));
        let (stream, accepted) = tokio::join!(
            connector.connect(localhost(), socket),
            wire.accept_tls(identity.server(TLS13))
        );
        accepted.unwrap();
        let mut stream = stream.unwrap();
        stream.write_all(b"a1 LOGOUT\r\n").await.unwrap();
        if says_so {
            stream.shutdown().await.unwrap();
        } else {
            stream.flush().await.unwrap();
            stream.get_mut().0.shutdown().await.unwrap();
        }
        assert_eq!(wire.line(100).await.unwrap().octets(), b"a1 LOGOUT");
        assert_eq!(wire.fill().await.unwrap(), 0);
        assert!(matches!(wire.line(100).await.unwrap_err(), WireError::Closed));
    }
}

#[tokio::test]
async fn a_peer_that_closes_in_the_handshake_is_noticed() {
    let identity = Identity::new();
    let (mut wire, socket) = wire().await;
    drop(socket);
    let error = wire.accept_tls(identity.server(TLS13)).await.unwrap_err();
    assert!(matches!(error, WireError::Closed), "{error}");
}

#[tokio::test]
async fn a_silent_peer_is_waited_for_no_longer_than_allowed() {
    let identity = Identity::new();
    let (mut plain, _socket) = wire().await;
    plain.deadlines.read = Duration::from_millis(50);
    assert!(matches!(plain.fill().await.unwrap_err(), WireError::Deadline));
    let error = plain.accept_tls(identity.server(TLS13)).await.unwrap_err();
    assert!(matches!(error, WireError::Deadline), "{error}");

    let (mut phase, _socket) = wire().await;
    phase.deadlines.until = Some(Instant::now() + Duration::from_millis(50));
    assert!(matches!(phase.fill().await.unwrap_err(), WireError::Deadline));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_waited_for_no_longer_than_allowed() {
    let (mut wire, _socket) = wire().await;
    wire.deadlines.write = Duration::from_millis(100);
    let error = wire.say(vec![b'x'; 30_000_000]).await.unwrap_err();
    assert!(matches!(error, WireError::Deadline), "{error}");
}

#[tokio::test]
async fn a_peer_may_send_so_much_ahead_and_no_more() {
    for version in [None, Some(TLS13)] {
        let identity = Identity::new();
        let (mut wire, socket) = wire().await;
        let flood = async |mut to: Box<dyn AsyncWrite + Unpin + Send>| {
            while to.write_all(&[b'x'; 10_000]).await.is_ok() {}
        };
        let flooding = if let Some(version) = version {
            let connector = TlsConnector::from(identity.client(version));
            let (stream, accepted) = tokio::join!(
                connector.connect(localhost(), socket),
                wire.accept_tls(identity.server(version))
            );
            accepted.unwrap();
            tokio::spawn(flood(Box::new(stream.unwrap())))
        } else {
            tokio::spawn(flood(Box::new(socket)))
        };
        let error = loop {
            if let Err(error) = wire.fill().await {
                break error;
            }
        };
        assert!(matches!(error, WireError::InputFull), "{error}");
        assert!(wire.input.len() < MAX_UNREAD + 16 * 1024 + 1, "{} octets", wire.input.len());
        drop(wire);
        flooding.await.unwrap();
    }
}

#[tokio::test]
async fn two_that_both_send_first_both_get_through() {
    let (one, other) = narrow_pair().await;
    let (mut one, mut other) =
        (Wire::new(one, patient()).unwrap(), Wire::new(other, patient()).unwrap());
    // More than the sockets take, and no more than a peer may send ahead.
    let exchange = async |wire: &mut Wire| {
        wire.say(vec![b'x'; MAX_UNREAD]).await.unwrap();
        while wire.input.len() < MAX_UNREAD {
            assert!(wire.fill().await.unwrap() > 0);
        }
    };
    tokio::join!(exchange(&mut one), exchange(&mut other));
}

#[tokio::test]
async fn a_kept_connection_shows_when_its_peer_speaks_or_closes() {
    let (mut wire, mut socket) = wire().await;
    tokio::select! {
        biased;
        waited = wire.readable() => panic!("{waited:?}"),
        () = tokio::task::yield_now() => {}
    }
    socket.write_all(b"* BYE\r\n").await.unwrap();
    wire.readable().await.unwrap();
    assert_eq!(wire.line(100).await.unwrap().octets(), b"* BYE");
    drop(socket);
    wire.readable().await.unwrap();
    assert_eq!(wire.fill().await.unwrap(), 0);
}
