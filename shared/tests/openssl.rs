//! Wires and joined sessions against OpenSSL's own client and server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod peers;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use peers::*;
use sha2::{Digest, Sha256};
use shared::wire::{Ended, JoinRules, Wire, join};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;
use tokio_rustls::rustls::SupportedProtocolVersion;
use tokio_util::sync::CancellationToken;

type Version = &'static SupportedProtocolVersion;

/// A running `openssl`, ended when the test ends.
struct OpenSsl {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<BufReader<ChildStderr>>,
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn flag(version: Version) -> &'static str {
    if version == TLS12 { "-tls1_2" } else { "-tls1_3" }
}

impl OpenSsl {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is needed for this test");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr = child.stderr.take().map(BufReader::new);
        Self { child, stdin, stdout, stderr }
    }

    /// `s_client` that trusts `identity` and nothing else.
    fn client(identity: &Identity, version: Version, to: SocketAddr, more: &[&str]) -> Self {
        let (to, file) = (to.to_string(), identity.cert_file.to_str().unwrap());
        let fixed = ["s_client", flag(version), "-connect", &to, "-servername", "localhost"];
        let trust = ["-CAfile", file, "-verify_return_error"];
        Self::start(&[&fixed[..], &trust, more].concat())
    }

    /// `s_server` for one connection, and a wire to it.
    async fn server(identity: &Identity, version: Version, more: &[&str]) -> (Self, Wire) {
        // It cannot be asked for the port that the system chose; so one that was free is tried.
        for _ in 0..20 {
            let (listener, address) = listen().await;
            drop(listener);
            let accept = address.to_string();
            let fixed = ["s_server", flag(version), "-accept", &accept, "-naccept", "1", "-cert"];
            let files =
                [identity.cert_file.to_str().unwrap(), "-key", identity.key_file.to_str().unwrap()];
            let mut server = Self::start(&[&fixed[..], &files, more].concat());
            while server.child.try_wait().unwrap().is_none() {
                if let Ok(socket) = TcpStream::connect(address).await {
                    let mut wire = Wire::new(socket, patient()).unwrap();
                    let config = identity.client(version);
                    wire.connect_tls(config, localhost()).await.unwrap();
                    return (server, wire);
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        panic!("openssl s_server does not start");
    }

    /// Writes `octets` to it in chunks of random sizes; it has been given them when this ends.
    fn type_in(&mut self, octets: Arc<Vec<u8>>) -> JoinHandle<ChildStdin> {
        let mut stdin = self.stdin.take().unwrap();
        std::thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(11);
            let mut rest = &octets[..];
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(random.usize(1..=40_000).min(rest.len()));
                stdin.write_all(chunk).unwrap();
                rest = after;
            }
            stdin
        })
    }

    /// The SHA-256 of the next `count` octets it prints.
    fn printed(&mut self, count: usize) -> JoinHandle<(ChildStdout, [u8; 32])> {
        let mut stdout = self.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 64 * 1024];
            let mut left = count;
            while left > 0 {
                let room = buffer.len().min(left);
                let read = stdout.read(&mut buffer[..room]).unwrap();
                assert!(read > 0, "{left} octets are missing");
                hash.update(&buffer[..read]);
                left -= read;
            }
            (stdout, hash.finalize().into())
        })
    }
}

async fn done<T: Send + 'static>(thread: JoinHandle<T>) -> T {
    spawn_blocking(|| thread.join().unwrap()).await.unwrap()
}

async fn accept(listener: &TcpListener, identity: &Identity, version: Version) -> Wire {
    let (socket, _) = listener.accept().await.unwrap();
    let mut wire = Wire::new(socket, patient()).unwrap();
    wire.accept_tls(identity.server(version)).await.unwrap();
    wire
}

/// 50 MB to the wire, then 50 MB back.
async fn exchanges_long_transfers(openssl: &mut OpenSsl, wire: &mut Wire) {
    let (inward, inward_hash) = noise(LONG, 31);
    let (outward, outward_hash) = noise(LONG, 32);
    let typing = openssl.type_in(inward);
    let mut hash = Sha256::new();
    let mut seen = 0;
    while seen < LONG {
        assert!(wire.fill().await.unwrap() > 0);
        hash.update(wire.input.unread());
        seen += wire.input.len();
        wire.input.clear();
    }
    assert_eq!(<[u8; 32]>::from(hash.finalize()), inward_hash);
    openssl.stdin = Some(done(typing).await);
    let printed = openssl.printed(LONG);
    let mut random = fastrand::Rng::with_seed(12);
    let mut rest = &outward[..];
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(random.usize(1..=90_000).min(rest.len()));
        wire.say(chunk).await.unwrap();
        rest = after;
    }
    let (stdout, hash) = done(printed).await;
    assert_eq!(hash, outward_hash);
    openssl.stdout = Some(stdout);
    assert!(wire.owns_no_buffers());
}

async fn s_client_talks_to_a_wire(version: Version) {
    let identity = Identity::new();
    let (listener, address) = listen().await;
    let mut client = OpenSsl::client(&identity, version, address, &["-quiet"]);
    let mut wire = accept(&listener, &identity, version).await;
    assert_eq!(wire.sni(), Some("localhost"));
    exchanges_long_transfers(&mut client, &mut wire).await;
    wire.close().await;
    // It ends by our close_notify, and without complaint.
    assert!(spawn_blocking(move || client.child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_client_and_a_wire_exchange_50_megabytes_over_tls12() {
    s_client_talks_to_a_wire(TLS12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_client_and_a_wire_exchange_50_megabytes_over_tls13() {
    s_client_talks_to_a_wire(TLS13).await;
}

async fn a_wire_talks_to_s_server(version: Version) {
    let identity = Identity::new();
    let (mut server, mut wire) = OpenSsl::server(&identity, version, &["-quiet"]).await;
    exchanges_long_transfers(&mut server, &mut wire).await;
    wire.close().await;
    assert!(spawn_blocking(move || server.child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_and_s_server_exchange_50_megabytes_over_tls12() {
    a_wire_talks_to_s_server(TLS12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_and_s_server_exchange_50_megabytes_over_tls13() {
    a_wire_talks_to_s_server(TLS13).await;
}

/// OpenSSL's client and server with a joined session between them; both send at once.
async fn openssl_talks_to_openssl(client: Version, backend: Version) {
    let identity = Identity::new();
    let (listener, address) = listen().await;
    let mut one = OpenSsl::client(&identity, client, address, &["-quiet", "-nbio"]);
    let front = accept(&listener, &identity, client).await;
    let (mut other, back) = OpenSsl::server(&identity, backend, &["-quiet", "-nbio"]).await;
    let rules = JoinRules {
        idle: Duration::from_mins(1),
        kick: CancellationToken::new(),
        kick_grace: Duration::from_mins(1),
        answer: None,
        end: CancellationToken::new(),
        watch: None,
    };
    let kick = rules.kick.clone();
    let session = tokio::spawn(join(front, back, rules));
    let (inward, inward_hash) = noise(LONG, 41);
    let (outward, outward_hash) = noise(LONG, 42);
    let (at_one, at_other) = (one.printed(LONG), other.printed(LONG));
    let (from_one, from_other) = (one.type_in(inward), other.type_in(outward));
    let (stdin_of_one, stdin_of_other) = (done(from_one).await, done(from_other).await);
    assert_eq!(done(at_other).await.1, inward_hash);
    assert_eq!(done(at_one).await.1, outward_hash);
    kick.cancel();
    let joined = session.await.unwrap();
    assert!(matches!(joined.ended, Ended::Kicked), "{joined:?}");
    assert_eq!((joined.octets_in, joined.octets_out), (LONG as u64, LONG as u64));
    // The kick reaches both with close_notify.
    let ended = |mut openssl: OpenSsl| spawn_blocking(move || openssl.child.wait().unwrap());
    assert!(ended(one).await.unwrap().success());
    assert!(ended(other).await.unwrap().success());
    drop((stdin_of_one, stdin_of_other));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_client_and_s_server_exchange_50_megabytes_through_a_join_12_to_13() {
    openssl_talks_to_openssl(TLS12, TLS13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_client_and_s_server_exchange_50_megabytes_through_a_join_13_to_12() {
    openssl_talks_to_openssl(TLS13, TLS12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_client_updates_its_keys_and_asks_for_ours() {
    let identity = Identity::new();
    let (listener, address) = listen().await;
    let mut client = OpenSsl::client(&identity, TLS13, address, &[]);
    let mut wire = accept(&listener, &identity, TLS13).await;
    let mut stdin = client.stdin.take().unwrap();
    let mut stderr = client.stderr.take().unwrap();
    let mut stdout = BufReader::new(client.stdout.take().unwrap());
    // `k` updates its keys, `K` asks for ours, too.
    for command in ["k\n", "K\n", "K\n"] {
        stdin.write_all(command.as_bytes()).unwrap();
        let until_done = spawn_blocking(move || {
            let mut line = String::new();
            while line != "KEYUPDATE\n" {
                line.clear();
                assert!(stderr.read_line(&mut line).unwrap() > 0);
            }
            stderr
        });
        stderr = until_done.await.unwrap();
        stdin.write_all(b"under new keys\n").unwrap();
        assert_eq!(wire.line(100).await.unwrap().octets(), b"under new keys");
        wire.say("answered\n").await.unwrap();
        let until_answered = spawn_blocking(move || {
            let mut line = Vec::new();
            while line != b"answered\n" {
                line.clear();
                assert!(stdout.read_until(b'\n', &mut line).unwrap() > 0);
            }
            stdout
        });
        stdout = until_answered.await.unwrap();
    }
}
