//! Joined sessions: byte-exact in every combination of legs, closing, kicks, limits.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod peers;

use std::time::Duration;

use peers::*;
use shared::wire::{AnswerGrace, Ended, JoinRules, Joined, Leg, Wire, join};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::SupportedProtocolVersion;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

type Version = Option<&'static SupportedProtocolVersion>;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A client and a backend with a joined session between them.
struct Lab {
    client: Box<dyn Stream>,
    backend: Box<dyn Stream>,
    joined: JoinHandle<Joined>,
    kick: CancellationToken,
    end: CancellationToken,
}

fn rules() -> JoinRules {
    JoinRules {
        idle: Duration::from_mins(1),
        kick: CancellationToken::new(),
        kick_grace: Duration::from_mins(1),
        answer: None,
        end: CancellationToken::new(),
        watch: None,
    }
}

async fn wires(
    client: Version,
    backend: Version,
) -> (Wire, Wire, Box<dyn Stream>, Box<dyn Stream>) {
    let identity = Identity::new();
    let (mut front, socket) = wire().await;
    let client_end = async {
        let Some(version) = client else { return Box::new(socket) as Box<dyn Stream> };
        let connector = TlsConnector::from(identity.client(version));
        Box::new(connector.connect(localhost(), socket).await.unwrap())
    };
    let front_end = async {
        if let Some(version) = client {
            front.accept_tls(identity.server(version)).await.unwrap();
            front.flush().await.unwrap();
        }
    };
    let (client_end, ()) = tokio::join!(client_end, front_end);

    let (mut back, socket) = wire().await;
    let backend_end = async {
        let Some(version) = backend else { return Box::new(socket) as Box<dyn Stream> };
        let acceptor = TlsAcceptor::from(identity.server(version));
        Box::new(acceptor.accept(socket).await.unwrap())
    };
    let joining_end = async {
        if let Some(version) = backend {
            back.connect_tls(identity.client(version), localhost()).await.unwrap();
            back.flush().await.unwrap();
        }
    };
    let (backend_end, ()) = tokio::join!(backend_end, joining_end);
    (front, back, client_end, backend_end)
}

async fn lab(client: Version, backend: Version, rules: JoinRules) -> Lab {
    let (front, back, client, backend) = wires(client, backend).await;
    let (kick, end) = (rules.kick.clone(), rules.end.clone());
    let joined = tokio::spawn(join(front, back, rules));
    Lab { client, backend, joined, kick, end }
}

/// Both sides send and read at once; the client closes first.
async fn passes_a_long_transfer_both_ways(client: Version, backend: Version) {
    let lab = lab(client, backend, rules()).await;
    let (inward, inward_hash) = noise(LONG, 21);
    let (outward, outward_hash) = noise(LONG, 22);
    let exchange = |stream: Box<dyn Stream>, seed, octets: std::sync::Arc<Vec<u8>>, expected| async move {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let writing = tokio::spawn(async move {
            write_in_chunks(&mut writer, &octets, seed).await;
            writer
        });
        assert_eq!(read_hash(&mut reader, LONG, seed).await, expected);
        (reader, writing.await.unwrap())
    };
    let client = tokio::spawn(exchange(lab.client, 1, inward, outward_hash));
    let backend = tokio::spawn(exchange(lab.backend, 2, outward, inward_hash));
    let (mut from_client, mut to_client) = backend.await.unwrap();
    let (mut from_backend, mut to_backend) = client.await.unwrap();
    to_backend.shutdown().await.unwrap();
    assert_eq!(from_client.read(&mut [0]).await.unwrap(), 0);
    to_client.shutdown().await.unwrap();
    assert_eq!(from_backend.read(&mut [0]).await.unwrap(), 0);
    let joined = lab.joined.await.unwrap();
    assert!(matches!(joined.ended, Ended::Client), "{joined:?}");
    assert_eq!((joined.octets_in, joined.octets_out), (LONG as u64, LONG as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_to_plain_is_byte_exact() {
    passes_a_long_transfer_both_ways(None, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls12_to_plain_is_byte_exact() {
    passes_a_long_transfer_both_ways(Some(TLS12), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls13_to_plain_is_byte_exact() {
    passes_a_long_transfer_both_ways(Some(TLS13), None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_to_tls13_is_byte_exact() {
    passes_a_long_transfer_both_ways(None, Some(TLS13)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls12_to_tls13_is_byte_exact() {
    passes_a_long_transfer_both_ways(Some(TLS12), Some(TLS13)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls13_to_tls12_is_byte_exact() {
    passes_a_long_transfer_both_ways(Some(TLS13), Some(TLS12)).await;
}

#[tokio::test]
async fn a_joined_session_is_a_small_task() {
    let (front, back, _client, _backend) = wires(Some(TLS13), Some(TLS13)).await;
    let session = join(front, back, rules());
    let octets = size_of_val(&session);
    assert!(octets <= 1024, "{octets} octets");
}

/// Expects `octets` and nothing else so far.
async fn expect(stream: &mut Box<dyn Stream>, octets: &[u8]) {
    let mut read = vec![0; octets.len()];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, octets);
}

async fn expect_end(stream: &mut Box<dyn Stream>) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
}

async fn say(stream: &mut Box<dyn Stream>, octets: &[u8]) {
    stream.write_all(octets).await.unwrap();
    stream.flush().await.unwrap();
}

#[tokio::test]
async fn what_was_read_or_queued_before_the_join_goes_first() {
    let (mut front, mut back, mut client, mut backend) = wires(Some(TLS13), Some(TLS12)).await;
    say(&mut client, b"a2 SELECT inbox\r\n").await;
    front.readable().await.unwrap();
    say(&mut backend, b"* CAPABILITY IMAP4rev1\r\n").await;
    back.readable().await.unwrap();
    front.output.push("a1 OK\r\n");
    let _session = tokio::spawn(join(front, back, rules()));
    expect(&mut backend, b"a2 SELECT inbox\r\n").await;
    expect(&mut client, b"a1 OK\r\n* CAPABILITY IMAP4rev1\r\n").await;
    say(&mut client, b"a3").await;
    expect(&mut backend, b"a3").await;
}

#[tokio::test]
async fn a_client_that_stops_sending_still_gets_its_answer() {
    for version in [None, Some(TLS12), Some(TLS13)] {
        let mut lab = lab(version, None, rules()).await;
        say(&mut lab.client, b"a1 LOGOUT\r\n").await;
        lab.client.shutdown().await.unwrap();
        expect(&mut lab.backend, b"a1 LOGOUT\r\n").await;
        expect_end(&mut lab.backend).await;
        say(&mut lab.backend, b"* BYE\r\n").await;
        lab.backend.shutdown().await.unwrap();
        if version.is_none() || version == Some(TLS13) {
            expect(&mut lab.client, b"* BYE\r\n").await;
            expect_end(&mut lab.client).await;
        }
        assert!(matches!(lab.joined.await.unwrap().ended, Ended::Client));
    }
}

#[tokio::test]
async fn a_backend_that_closes_ends_the_session_with_close_notify() {
    for backend in [None, Some(TLS12), Some(TLS13)] {
        let mut lab = lab(Some(TLS13), backend, rules()).await;
        say(&mut lab.backend, b"* BYE\r\n").await;
        lab.backend.shutdown().await.unwrap();
        expect(&mut lab.client, b"* BYE\r\n").await;
        // tokio-rustls makes an error of an end without close_notify.
        expect_end(&mut lab.client).await;
        lab.client.shutdown().await.unwrap();
        assert!(matches!(lab.joined.await.unwrap().ended, Ended::Backend));
    }
}

#[tokio::test]
async fn a_backend_that_vanishes_ends_the_session() {
    let (front, back, mut client, backend) = wires(Some(TLS13), None).await;
    drop(backend);
    let session = tokio::spawn(join(front, back, rules()));
    expect_end(&mut client).await;
    drop(client);
    assert!(matches!(session.await.unwrap().ended, Ended::Backend));
}

#[tokio::test]
async fn a_client_that_says_nothing_after_its_backend_closed_is_let_go() {
    let mut lab = lab(None, None, rules()).await;
    lab.backend.shutdown().await.unwrap();
    expect_end(&mut lab.client).await;
    // The client keeps its end open.
    assert!(matches!(lab.joined.await.unwrap().ended, Ended::Backend));
}

#[tokio::test]
async fn a_record_that_does_not_decrypt_fails_the_session() {
    let identity = Identity::new();
    let (mut front, mut socket) = wire().await;
    let connector = TlsConnector::from(identity.client(TLS13));
    let (stream, accepted) = tokio::join!(
        connector.connect(localhost(), &mut socket),
        front.accept_tls(identity.server(TLS13))
    );
    accepted.unwrap();
    drop(stream.unwrap());
    let (back, mut backend) = wire().await;
    let session = tokio::spawn(join(front, back, rules()));
    socket.write_all(b"\x17\x03\x03\x00\x20an octet string of no meaning...").await.unwrap();
    let Joined { ended, .. } = session.await.unwrap();
    assert!(matches!(ended, Ended::Failed(Leg::Client, _)), "{ended:?}");
    assert_eq!(backend.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_kick_ends_a_quiet_session_on_both_legs_without_a_word() {
    for (client, backend) in [(None, None), (Some(TLS13), Some(TLS13)), (Some(TLS12), None)] {
        let mut lab = lab(client, backend, rules()).await;
        say(&mut lab.client, b"a1 IDLE\r\n").await;
        expect(&mut lab.backend, b"a1 IDLE\r\n").await;
        lab.kick.cancel();
        expect_end(&mut lab.client).await;
        expect_end(&mut lab.backend).await;
        assert!(matches!(lab.joined.await.unwrap().ended, Ended::Kicked));
    }
}

#[tokio::test]
async fn a_kick_waits_for_the_first_quiet_moment() {
    let mut lab = lab(Some(TLS13), None, rules()).await;
    // The backend sends a literal in pieces; none must be lost.
    say(&mut lab.backend, b"piece").await;
    expect(&mut lab.client, b"piece").await;
    lab.kick.cancel();
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        say(&mut lab.backend, b"piece").await;
        expect(&mut lab.client, b"piece").await;
    }
    expect_end(&mut lab.client).await;
    assert!(matches!(lab.joined.await.unwrap().ended, Ended::Kicked));
}

#[tokio::test]
async fn a_kick_waits_no_longer_than_its_grace() {
    let short = JoinRules { kick_grace: Duration::from_millis(200), ..rules() };
    let mut lab = lab(None, None, short).await;
    lab.kick.cancel();
    // Never quiet, until the session is cut.
    let mut buffer = [0; 64];
    loop {
        if lab.backend.write_all(b"piece").await.is_err() {
            break;
        }
        match lab.client.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    assert!(matches!(lab.joined.await.unwrap().ended, Ended::Kicked));
}

/// A short grace, and a longer one for the backend's answer.
fn patient(longest: Duration, hurry: fn() -> bool) -> JoinRules {
    let answer = AnswerGrace { longest, hurry: Box::new(hurry) };
    JoinRules { kick_grace: Duration::from_millis(100), answer: Some(Box::new(answer)), ..rules() }
}

#[tokio::test]
async fn a_kick_waits_for_an_answer_that_is_owed() {
    let mut lab = lab(Some(TLS13), None, patient(Duration::from_mins(1), || false)).await;
    say(&mut lab.backend, b"354 go on\r\n").await;
    expect(&mut lab.client, b"354 go on\r\n").await;
    say(&mut lab.client, b"Subject: a\r\n").await;
    expect(&mut lab.backend, b"Subject: a\r\n").await;
    lab.kick.cancel();
    // Longer than any quiet moment, twice: the client hesitates, then the backend.
    tokio::time::sleep(Duration::from_millis(300)).await;
    say(&mut lab.client, b".\r\n").await;
    expect(&mut lab.backend, b".\r\n").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    say(&mut lab.backend, b"250 taken\r\n").await;
    expect(&mut lab.client, b"250 taken\r\n").await;
    expect_end(&mut lab.client).await;
    expect_end(&mut lab.backend).await;
    assert!(matches!(lab.joined.await.unwrap().ended, Ended::Kicked));
}

#[tokio::test]
async fn an_answer_that_never_comes_is_waited_for_no_longer_than_the_grace() {
    let never = patient(Duration::from_millis(200), || false);
    // Where there is no time, the longest grace does not count.
    let hurried = patient(Duration::from_mins(10), || true);
    for rules in [never, hurried] {
        let mut lab = lab(None, None, rules).await;
        say(&mut lab.client, b"DATA\r\n").await;
        expect(&mut lab.backend, b"DATA\r\n").await;
        lab.kick.cancel();
        expect_end(&mut lab.client).await;
        assert!(matches!(lab.joined.await.unwrap().ended, Ended::Kicked));
    }
}

#[tokio::test]
async fn a_kick_does_not_wait_for_a_client_that_does_not_read() {
    let short = JoinRules { kick_grace: Duration::from_millis(200), ..rules() };
    let lab = lab(Some(TLS13), None, short).await;
    let mut backend = lab.backend;
    let flood = tokio::spawn(async move { while backend.write_all(&[0; 4096]).await.is_ok() {} });
    lab.kick.cancel();
    assert!(matches!(lab.joined.await.unwrap().ended, Ended::Kicked));
    flood.await.unwrap();
    drop(lab.client);
}

/// P5: the kernel would go on sending for minutes what it has taken, to a backend that may have lost the
/// account by then.
#[tokio::test]
async fn what_a_backend_has_not_taken_by_the_kick_never_arrives() {
    let short = JoinRules { kick_grace: Duration::from_millis(200), ..rules() };
    let lab = lab(None, None, short).await;
    let mut client = lab.client;
    let flood = tokio::spawn(async move { while client.write_all(&[0; 4096]).await.is_ok() {} });
    // Until the backend, which does not read, has let everything on the way fill up.
    tokio::time::sleep(Duration::from_millis(300)).await;
    lab.kick.cancel();
    let joined = lab.joined.await.unwrap();
    assert!(matches!(joined.ended, Ended::Kicked), "{joined:?}");
    flood.await.unwrap();
    let (mut backend, mut arrived, mut buffer) = (lab.backend, 0_u64, vec![0; 64 * 1024]);
    let end = loop {
        match backend.read(&mut buffer).await {
            Ok(0) => panic!("an orderly end: everything was sent on"),
            Ok(octets) => arrived += octets as u64,
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(end, std::io::ErrorKind::ConnectionReset);
    assert!(arrived < joined.octets_in, "{arrived} of {}", joined.octets_in);
}

#[tokio::test]
async fn silence_on_both_legs_ends_at_the_idle_limit() {
    let short = JoinRules { idle: Duration::from_millis(200), ..rules() };
    let mut lab = lab(Some(TLS13), Some(TLS13), short).await;
    expect_end(&mut lab.client).await;
    expect_end(&mut lab.backend).await;
    assert!(matches!(lab.joined.await.unwrap().ended, Ended::Idle));
}

#[tokio::test]
async fn one_leg_that_speaks_keeps_both_open() {
    let short = JoinRules { idle: Duration::from_millis(600), ..rules() };
    let mut lab = lab(None, None, short).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        say(&mut lab.backend, b"* OK still here\r\n").await;
        expect(&mut lab.client, b"* OK still here\r\n").await;
    }
    assert!(!lab.joined.is_finished());
}

#[tokio::test]
async fn the_end_of_the_process_cuts_at_once() {
    let mut lab = lab(Some(TLS12), Some(TLS13), rules()).await;
    lab.end.cancel();
    expect_end(&mut lab.client).await;
    expect_end(&mut lab.backend).await;
    assert!(matches!(lab.joined.await.unwrap().ended, Ended::Shutdown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_updated_in_the_middle_of_a_transfer() {
    let identity = Identity::new();
    let (mut front, socket) = wire().await;
    let connector = TlsConnector::from(identity.client(TLS13));
    let (stream, accepted) = tokio::join!(
        connector.connect(localhost(), socket),
        front.accept_tls(identity.server(TLS13))
    );
    accepted.unwrap();
    let mut stream = stream.unwrap();
    let (back, backend) = wire().await;
    let session = tokio::spawn(join(front, back, rules()));
    let echo = tokio::spawn(async move {
        let (mut reader, mut writer) = backend.into_split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let (octets, _) = noise(4_000_000, 5);
    let mut read = vec![0; 50_000];
    for chunk in octets.chunks(50_000) {
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        stream.write_all(chunk).await.unwrap();
        stream.flush().await.unwrap();
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(read, chunk);
    }
    stream.shutdown().await.unwrap();
    assert!(matches!(session.await.unwrap().ended, Ended::Client));
    echo.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_stops_the_other_side_and_loses_nothing() {
    let (front, back, client, backend) = wires(Some(TLS13), None).await;
    let session = tokio::spawn(join(front, back, rules()));
    let (octets, hash) = noise(LONG, 9);
    let (_, mut to_client) = tokio::io::split(backend);
    let writing = tokio::spawn(async move {
        to_client.write_all(&octets).await.unwrap();
        to_client.shutdown().await.unwrap();
    });
    let mut slow = client;
    // Nothing is read for a while; more than all buffers together cannot have been taken.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!writing.is_finished());
    assert_eq!(read_hash(&mut slow, LONG, 4).await, hash);
    writing.await.unwrap();
    drop(slow);
    assert!(matches!(session.await.unwrap().ended, Ended::Backend));
}

#[tokio::test]
async fn what_a_client_says_last_reaches_the_backend_before_its_end() {
    for version in [None, Some(TLS13)] {
        let mut lab = lab(version, version, rules()).await;
        let (octets, hash) = noise(300_000, 6);
        let mut client = lab.client;
        let writing = tokio::spawn(async move {
            client.write_all(&octets).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        assert_eq!(read_hash(&mut lab.backend, 300_000, 1).await, hash);
        expect_end(&mut lab.backend).await;
        let _client = writing.await.unwrap();
    }
}
