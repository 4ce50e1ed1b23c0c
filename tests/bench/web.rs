//! HTTP through reverse proxies, TLS to the client and none to the backend: CPU and rate, what is added to a
//! request, what an idle connection and an open event stream keep in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::client::TlsStream;

use crate::measure::{self, Results, percentile};
use crate::peers::{Peer, Who};
use crate::stage::by_turns;
use crate::tls::{HOST, Tls};

const RUNS: usize = 5;
/// Connections that ask at the same time.
const AT_ONCE: usize = 16;
/// Octets of an answer, and how often it is asked for in a run.
const SIZES: [(usize, usize); 2] = [(1024, 16_000), (64 * 1024, 4_000)];
const TRIPS: usize = 2_000;
const IDLE: usize = 2_000;
const STREAMS: usize = 1_000;
/// What the first connections allocate for ever is not theirs.
const FIRST: usize = 50;
const SETTLE: Duration = Duration::from_secs(1);
const WHOM: [Who; 3] = [Who::Us, Who::HaProxy, Who::Nginx];

pub async fn run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let tls = Arc::new(Tls::new(directory.path(), false)?);
    let backend = serve(None)?;
    for (size, count) in SIZES {
        println!("\n# HTTP requests for {size} octets (medians of {RUNS} runs of {count})");
        let peers = start(&WHOM, &tls, directory.path(), backend).await?;
        let results = by_turns(RUNS, peers, async |peer| {
            let before = measure::cpu_of_tree(peer.pid)?;
            let began = Instant::now();
            ask_many(&tls, peer.port, size, count).await?;
            let rate = count as f64 / began.elapsed().as_secs_f64();
            let used = measure::cpu_of_tree(peer.pid)?.saturating_sub(before);
            Ok([used.as_secs_f64() * 1e6 / count as f64, rate])
        });
        results.await?.print(["µs CPU per request", "requests/s"]);
    }
    added(&tls, directory.path(), backend).await?;
    println!("\n# idle HTTP connections ({IDLE}, medians of 3 runs)");
    kept(&tls, directory.path(), backend, IDLE, "/1").await?.print(["KiB RSS per connection"]);
    println!("\n# open event streams ({STREAMS}, medians of 3 runs)");
    kept(&tls, directory.path(), backend, STREAMS, "/sse").await?.print(["KiB RSS per stream"]);
    Ok(())
}

async fn start(
    whom: &[Who],
    tls: &Tls,
    directory: &Path,
    backend: u16,
) -> anyhow::Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for who in whom {
        let state = tempfile::tempdir_in(directory)?.keep();
        match who.start_web(tls, &state, backend).await {
            Ok(peer) => peers.push(peer),
            Err(error) if *who == Who::Us => return Err(error),
            Err(error) => println!("{who}: not measured: {error:#}"),
        }
    }
    Ok(peers)
}

/// What is added to a request: through a proxy and straight to a backend that speaks TLS, by turns.
async fn added(tls: &Arc<Tls>, directory: &Path, backend: u16) -> anyhow::Result<()> {
    println!("\n# added to an HTTP request for 1024 octets (medians of {RUNS} runs of {TRIPS})");
    let direct = serve(Some(Arc::clone(tls)))?;
    let peers = start(&WHOM, tls, directory, backend).await?;
    let results = by_turns(RUNS, peers, async |peer| {
        let mut straight = Client::connect(tls, direct).await?;
        let mut through = Client::connect(tls, peer.port).await?;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..TRIPS {
            without.push(straight.trip().await?);
            with.push(through.trip().await?);
        }
        let [p50, p99] =
            [50.0, 99.0].map(|p| percentile(&mut with, p) - percentile(&mut without, p));
        Ok([p50, p99, percentile(&mut without, 50.0)])
    });
    results.await?.print(["µs added, p50", "µs added, p99", "µs direct, p50"]);
    Ok(())
}

/// What so many connections keep in memory after a request for `path`. Every run is one of a new process.
async fn kept(
    tls: &Arc<Tls>,
    directory: &Path,
    backend: u16,
    count: usize,
    path: &str,
) -> anyhow::Result<Results<1>> {
    let mut results = Results::default();
    for who in WHOM {
        for _ in 0..3 {
            let peers = start(&[who], tls, directory, backend).await?;
            let measured = by_turns(1, peers, async |peer| {
                let _first = open(tls, peer.port, FIRST, path).await?;
                sleep(SETTLE).await;
                let before = measure::resident_of_tree(peer.pid);
                let more = open(tls, peer.port, count, path).await?;
                sleep(SETTLE).await;
                let grown = measure::resident_of_tree(peer.pid).saturating_sub(before);
                Ok([grown as f64 / more.len() as f64 / 1024.0])
            });
            results.extend(measured.await?);
        }
    }
    Ok(results)
}

async fn open(tls: &Tls, port: u16, count: usize, path: &str) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = Client::connect(tls, port).await?;
        client.say(path).await?;
        let length = client.head().await?;
        client.skip(length.unwrap_or(0)).await?;
        clients.push(client);
    }
    Ok(clients)
}

/// A proxy that answers.
pub async fn ready(port: u16, tls: &Tls) -> anyhow::Result<()> {
    Client::connect(tls, port).await?.get("/1", 1).await
}

async fn ask_many(tls: &Arc<Tls>, port: u16, size: usize, count: usize) -> anyhow::Result<()> {
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let tls = Arc::clone(tls);
        workers.spawn(async move {
            let mut client = Client::connect(&tls, port).await?;
            let path = format!("/{size}");
            for _ in 0..count / AT_ONCE {
                client.get(&path, size).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    Ok(())
}

/// A client's connection.
struct Client {
    stream: BufReader<TlsStream<TcpStream>>,
    authorization: String,
}

impl Client {
    async fn connect(tls: &Tls, port: u16) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        let stream = tls.connector.connect(Tls::name(), socket).await?;
        let authorization = BASE64_STANDARD.encode("user0@example.org:secret");
        Ok(Self { stream: BufReader::with_capacity(4096, stream), authorization })
    }

    async fn say(&mut self, path: &str) -> anyhow::Result<()> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Basic {}\r\nAccept: */*\r\n\r\n",
            self.authorization
        );
        self.stream.write_all(request.as_bytes()).await?;
        Ok(self.stream.flush().await?)
    }

    /// The length of the body behind it, where that is said.
    async fn head(&mut self) -> anyhow::Result<Option<usize>> {
        let (mut line, mut length) = (String::new(), None);
        self.stream.read_line(&mut line).await?;
        ensure!(line.starts_with("HTTP/1.1 200"), "{line:?}");
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line).await? > 0, "closed");
            if line == "\r\n" {
                return Ok(length);
            }
            let (name, value) = line.split_once(':').context("a field")?;
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse()?);
            }
        }
    }

    async fn skip(&mut self, octets: usize) -> anyhow::Result<()> {
        let mut left = octets;
        while left > 0 {
            let there = self.stream.fill_buf().await?.len().min(left);
            ensure!(there > 0, "closed");
            self.stream.consume(there);
            left -= there;
        }
        Ok(())
    }

    async fn get(&mut self, path: &str, size: usize) -> anyhow::Result<()> {
        self.say(path).await?;
        let length = self.head().await?;
        ensure!(length == Some(size), "{length:?} octets");
        self.skip(size).await
    }

    /// How long one request takes, in microseconds.
    async fn trip(&mut self) -> anyhow::Result<f64> {
        let began = Instant::now();
        self.get("/1024", 1024).await?;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }
}

/// The smallest server that a proxy can be in front of, in a thread of its own: `/N` is answered with N
/// octets, `/sse` begins and goes on. Returns its port.
fn serve(tls: Option<Arc<Tls>>) -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener)?;
            while let Ok((socket, _)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => answer(tls.acceptor.accept(socket).await?).await,
                        None => answer(socket).await,
                    }
                });
            }
            anyhow::Ok(())
        })
    });
    Ok(port)
}

async fn answer(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
) -> anyhow::Result<()> {
    let mut stream = BufReader::with_capacity(2048, stream);
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
        }
        if path == "sse" {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n: hi\n\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            stream.flush().await?;
            let mut rest = [0; 1];
            let _ = stream.read(&mut rest).await?;
            return Ok(());
        }
        let size: usize = path.parse()?;
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + size, b'x');
        stream.write_all(&answer).await?;
        stream.flush().await?;
    }
}
