//! Logins through the proxy: CPU and rate with full TLS 1.3 handshakes, memory of idle sessions, round
//! trips. Backends and clients run in this process, the proxy in its own, so its numbers are its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::imap::{Backend, Client};
use crate::proxy::{Service, free_port};
use crate::tls::{HOST, Tls};
use crate::{measure, peers, table};

const RUNS: usize = 5;
const LOGINS: usize = 2_000;
const AT_ONCE: usize = 16;
const SESSIONS: usize = 2_000;
const ROUND_TRIPS: usize = 5_000;

/// Who is measured: a running proxy, and how to find its processes.
pub struct Peer {
    pub name: String,
    pub port: u16,
    pub pid: u32,
}

pub async fn run() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let tls = Arc::new(Tls::new(directory.path())?);
    for backend_tls in [false, true] {
        let leg = if backend_tls { "TLS" } else { "plain" };
        println!("\n# logins, client TLS 1.3 → backend {leg}, ECDSA P-256, full handshakes");
        let backend = Backend::start("old", backend_tls.then(|| Arc::clone(&tls))).await?;
        let state = directory.path().join(leg);
        let table = table::sqlite(&state, 100).await?;
        let port = free_port()?;
        let config = config(&state, &table, &tls, port, &[("old", backend.port)], backend_tls);
        let service = Service::start("login-proxy", &config, &state, port).await?;
        let direct = round_trips(backend.port, &tls, backend_tls).await?;
        let peer = Peer { name: "login-proxy".into(), port, pid: service.pid() };
        measure_peer(&peer, &tls, direct).await?;
        match peers::DovecotProxy::start(&tls, backend.port, backend_tls).await {
            Ok(proxy) => {
                let peer =
                    Peer { name: "Dovecot's proxy".into(), port: proxy.port, pid: proxy.pid()? };
                measure_peer(&peer, &tls, direct).await?;
            }
            Err(error) => println!("Dovecot's proxy: not measured: {error:#}"),
        }
    }
    Ok(())
}

/// Everything that is measured of one proxy.
pub async fn measure_peer(peer: &Peer, tls: &Arc<Tls>, direct: f64) -> anyhow::Result<()> {
    let (mut cpu, mut rate) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let before = measure::cpu_of_tree(peer.pid)?;
        let began = Instant::now();
        log_in_many(peer.port, tls, LOGINS).await?;
        rate.push(LOGINS as f64 / began.elapsed().as_secs_f64());
        let used = measure::cpu_of_tree(peer.pid)?.saturating_sub(before);
        cpu.push(used.as_secs_f64() * 1e6 / LOGINS as f64);
    }
    println!(
        "{}: {:.0} µs CPU per login, {:.0} logins/s (medians of {RUNS} runs of {LOGINS})",
        peer.name,
        measure::median(cpu),
        measure::median(rate)
    );
    sleep(Duration::from_millis(500)).await;
    let before = measure::resident_of_tree(peer.pid);
    let sessions = idle(peer.port, tls, SESSIONS).await?;
    sleep(Duration::from_millis(500)).await;
    let per_session =
        measure::resident_of_tree(peer.pid).saturating_sub(before) as f64 / SESSIONS as f64;
    println!(
        "{}: {:.1} KiB RSS per idle session, {SESSIONS} sessions",
        peer.name,
        per_session / 1024.0
    );
    drop(sessions);
    sleep(Duration::from_millis(500)).await;
    let mut client = Client::log_in(peer.port, tls, "user0@example.org").await?;
    let through = trip_times(&mut client).await?;
    println!(
        "{}: {:.0} µs added to a round trip (p50 {through:.0} against {direct:.0} µs direct)",
        peer.name,
        through - direct
    );
    Ok(())
}

async fn log_in_many(port: u16, tls: &Arc<Tls>, logins: usize) -> anyhow::Result<()> {
    let mut workers = JoinSet::new();
    for worker in 0..AT_ONCE {
        let tls = Arc::clone(tls);
        workers.spawn(async move {
            for number in 0..logins / AT_ONCE {
                let user = format!("user{}@example.org", (worker + number) % 100);
                Client::log_in(port, &tls, &user).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    Ok(())
}

/// Opens sessions and keeps them.
async fn idle(port: u16, tls: &Arc<Tls>, sessions: usize) -> anyhow::Result<Vec<Client>> {
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let tls = Arc::clone(tls);
        workers.spawn(async move {
            let mut clients = Vec::new();
            for number in 0..sessions / AT_ONCE {
                let user = format!("user{}@example.org", number % 100);
                clients.push(Client::log_in(port, &tls, &user).await?);
            }
            anyhow::Ok(clients)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = workers.join_next().await {
        all.extend(done??);
    }
    Ok(all)
}

/// The same client without a proxy: what a round trip costs by itself.
async fn round_trips(port: u16, tls: &Arc<Tls>, backend_tls: bool) -> anyhow::Result<f64> {
    if backend_tls {
        return trip_times(&mut Client::log_in(port, tls, "user0@example.org").await?).await;
    }
    // A plain backend has no TLS to compare with; so measure a TLS one of the same kind.
    let backend = Backend::start("direct", Some(Arc::clone(tls))).await?;
    trip_times(&mut Client::log_in(backend.port, tls, "user0@example.org").await?).await
}

async fn trip_times(client: &mut Client) -> anyhow::Result<f64> {
    let mut micros = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        client.noop().await?;
        micros.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(measure::median(micros))
}

/// A login proxy's configuration, for backends of those names and ports.
pub fn config(
    state: &std::path::Path,
    table: &str,
    tls: &Tls,
    port: u16,
    backends: &[(&str, u16)],
    backend_tls: bool,
) -> String {
    let leg = if backend_tls {
        format!("tls = \"implicit\"\nserver_name = \"{HOST}\"\nca_file = {:?}", tls.ca_file)
    } else {
        "tls = \"plain\"".to_owned()
    };
    let backends: String = backends
        .iter()
        .map(|(name, port)| {
            format!("[backends.{name}.imap]\nhost = \"127.0.0.1\"\nport = {port}\n{leg}\n")
        })
        .collect();
    format!(
        "[node]\nname = {state:?}\nstate_dir = {state:?}\n[ownership]\nurl = {table:?}\n\
         [tls]\ncertificates = [{{ cert_file = {cert:?}, key_file = {key:?} }}]\n{backends}\
         [login]\nhostname = \"{HOST}\"\n[login.imaps]\nlisten = [\"127.0.0.1:{port}\"]\n\
         max_per_address = 20000\n[log]\nlevel = \"warn\"\n",
        cert = tls.cert_file,
        key = tls.key_file,
    )
}
