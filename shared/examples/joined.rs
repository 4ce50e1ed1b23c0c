//! What joined sessions cost: resident memory of an idle one, CPU seconds for a gibibyte.
//!
//! Run `cargo run --release -p shared --example joined`. The peers run in a child process, so that only
//! the joining side is measured here. Numbers of one machine compare with one another only.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    reason = "a measurement for people at a terminal"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use shared::wire::{Deadlines, JoinRules, Wire, join};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

const SESSIONS: usize = 1000;
const GIBIBYTE: usize = 1 << 30;

fn main() {
    let workers = std::thread::available_parallelism().map_or(1, Into::into);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .unwrap();
    match std::env::args().nth(1).as_deref() {
        Some("peers") => runtime.block_on(peers()),
        Some(tls) => runtime.block_on(measure(tls == "tls")),
        None => {
            println!("backend leg  KiB/idle session  CPU s/GiB to client  CPU s/GiB to backend");
            for tls in ["plain", "tls"] {
                // A process of its own: freed memory of one measurement would serve the next.
                let this = std::env::current_exe().unwrap();
                assert!(Command::new(this).arg(tls).status().unwrap().success());
            }
        }
    }
}

/// The joining side: idle sessions, then a long transfer in each direction.
async fn measure(tls: bool) {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(directory.path().join("cert"), made.cert.pem()).unwrap();
    std::fs::write(directory.path().join("key"), made.signing_key.serialize_pem()).unwrap();
    let (listener, address) = listen().await;
    let leg = if tls { "tls" } else { "plain" };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["peers", leg, &address.to_string(), directory.path().to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut orders = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap());
    let mut answer = move || {
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    let backend: SocketAddr = answer().parse().unwrap();
    let (server, client) = (server(&made.cert, &made.signing_key), trusting(&made.cert));
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (server, client) = (Arc::clone(&server), Arc::clone(&client));
            tokio::spawn(async move {
                let mut front = Wire::new(socket, deadlines()).unwrap();
                front.accept_tls(server).await.unwrap();
                let socket = TcpStream::connect(backend).await.unwrap();
                let mut back = Wire::new(socket, deadlines()).unwrap();
                if tls {
                    back.connect_tls(client, localhost()).await.unwrap();
                }
                tokio::spawn(join(front, back, rules()));
            });
        }
    });
    let mut order = |order: &str| {
        writeln!(orders, "{order}").unwrap();
        assert_eq!(tokio::task::block_in_place(&mut answer), "done");
    };
    // What the first sessions allocate for ever is not theirs.
    order("sessions 100");
    let before = resident();
    order(&format!("sessions {SESSIONS}"));
    let idle = (resident() - before) / SESSIONS as f64;
    let mut seconds = [0.0; 2];
    for (seconds, direction) in seconds.iter_mut().zip(["download", "upload"]) {
        let before = cpu_seconds();
        order(direction);
        *seconds = cpu_seconds() - before;
    }
    println!("{leg:11}  {idle:16.2}  {:19.2}  {:20.2}", seconds[0], seconds[1]);
    drop(orders);
    child.wait().unwrap();
}

/// Clients and backend.
async fn peers() {
    let arguments = std::env::args().collect::<Vec<_>>();
    let (tls, proxy, directory) = (&arguments[2] == "tls", &arguments[3], &arguments[4]);
    let certificate = CertificateDer::from_pem_file(format!("{directory}/cert")).unwrap();
    let key = PrivateKeyDer::from_pem_file(format!("{directory}/key")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(client));
    let server = ServerConfig::builder().with_no_client_auth();
    let server = server.with_single_cert(vec![certificate], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if tls {
                    serve(acceptor.accept(socket).await.unwrap()).await;
                } else {
                    serve(socket).await;
                }
            });
        }
    });
    println!("{address}");
    let mut kept = Vec::new();
    let mut orders = std::io::stdin().lines();
    while let Some(Ok(order)) = tokio::task::block_in_place(|| orders.next()) {
        let open = async || {
            let socket = TcpStream::connect(proxy).await.unwrap();
            let mut stream = connector.connect(localhost(), socket).await.unwrap();
            stream.write_all(b"n").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'n');
            stream
        };
        let mut buffer = vec![0; 256 * 1024];
        match order.split_once(' ') {
            Some(("sessions", count)) => {
                for _ in 0..count.parse().unwrap() {
                    kept.push(open().await);
                }
            }
            Some(_) => unreachable!(),
            None => {
                let mut stream = open().await;
                stream.write_all(&order.as_bytes()[..1]).await.unwrap();
                let mut left = GIBIBYTE;
                while left > 0 && order == "download" {
                    let room = left.min(buffer.len());
                    left -= stream.read(&mut buffer[..room]).await.unwrap();
                }
                while left > 0 {
                    stream.write_all(&buffer).await.unwrap();
                    left -= buffer.len();
                }
                stream.flush().await.unwrap();
                assert_eq!(stream.read_u8().await.unwrap(), b'.');
            }
        }
        println!("done");
    }
}

/// The backend: echoes `n`, sends a gibibyte for `d`, takes one for `u`.
async fn serve(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(order) = stream.read_u8().await {
        let mut left = GIBIBYTE;
        match order {
            b'd' => {
                while left > 0 {
                    stream.write_all(&buffer).await.unwrap();
                    left -= buffer.len();
                }
                stream.write_all(b".").await.unwrap();
            }
            b'u' => {
                while left > 0 {
                    left -= stream.read(&mut buffer).await.unwrap();
                }
                stream.write_all(b".").await.unwrap();
            }
            other => stream.write_all(&[other]).await.unwrap(),
        }
        stream.flush().await.unwrap();
    }
}

fn server(certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![certificate.der().clone()], key).unwrap())
}

fn trusting(certificate: &rcgen::Certificate) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

fn deadlines() -> Deadlines {
    Deadlines { read: Duration::from_mins(1), write: Duration::from_mins(1), until: None }
}

fn rules() -> JoinRules {
    JoinRules {
        idle: Duration::from_hours(1),
        kick: CancellationToken::new(),
        kick_grace: Duration::from_secs(2),
        answer: None,
        end: CancellationToken::new(),
        watch: None,
    }
}

/// Resident memory of this process, in KiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time of this process so far, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').collect::<Vec<_>>();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / rustix::param::clock_ticks_per_second() as f64
}
