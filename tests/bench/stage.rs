//! Where the measurements of logins take place: a certificate, backends, and everybody by turns.

use std::path::PathBuf;
use std::sync::Arc;

use shared::backend::LoginProtocol;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::client::Client;
use crate::measure::Results;
use crate::peers::{Peer, Who};
use crate::tls::Tls;

/// In the order in which they are printed.
pub const PROTOCOLS: [LoginProtocol; 4] = [
    LoginProtocol::Imap,
    LoginProtocol::Pop3,
    LoginProtocol::Submission,
    LoginProtocol::ManageSieve,
];

/// Clients that log in at the same time.
const AT_ONCE: usize = 16;

/// One protocol, one kind of backend leg. Each has directories of its own.
pub struct Stage {
    pub protocol: LoginProtocol,
    pub backend_tls: bool,
    /// Sessions are resumed on both legs.
    resumes: bool,
    pub tls: Arc<Tls>,
    /// Where every login ends.
    pub backend: Backend,
    directory: TempDir,
}

impl Stage {
    /// All of them, the plain leg before the TLS one.
    pub async fn all() -> anyhow::Result<Vec<Self>> {
        let mut stages = Vec::new();
        for protocol in PROTOCOLS {
            for backend_tls in [false, true] {
                stages.push(Self::set(protocol, backend_tls, false)?);
            }
        }
        Ok(stages)
    }

    /// The one where everybody has been before.
    pub fn resuming() -> anyhow::Result<Self> {
        Self::set(LoginProtocol::Imap, true, true)
    }

    fn set(protocol: LoginProtocol, backend_tls: bool, resumes: bool) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let tls = Arc::new(Tls::new(directory.path(), resumes)?);
        let backend = Backend::start(protocol, "old", backend_tls.then(|| Arc::clone(&tls)))?;
        Ok(Self { protocol, backend_tls, resumes, tls, backend, directory })
    }

    /// `Imap, backend plain`.
    pub fn name(&self) -> String {
        let leg = if self.backend_tls { "TLS" } else { "plain" };
        let how = if self.resumes { ", resumed" } else { "" };
        format!("{:?}, client TLS → backend {leg}{how}", self.protocol)
    }

    /// A new directory.
    pub fn place(&self) -> anyhow::Result<PathBuf> {
        Ok(tempfile::tempdir_in(self.directory.path())?.keep())
    }

    /// Starts each of `whom` that can do this; says why another cannot.
    pub async fn start(&self, whom: &[Who]) -> anyhow::Result<Vec<Peer>> {
        let mut peers = Vec::new();
        for who in whom.iter().filter(|who| who.speaks(self.protocol)) {
            match who.start(self).await {
                Ok(peer) => peers.push(peer),
                Err(error) if *who == Who::Us => return Err(error),
                Err(error) => println!("{who}: not measured: {error:#}"),
            }
        }
        Ok(peers)
    }

    /// A client that is logged in.
    pub async fn log_in(&self, port: u16, number: usize) -> anyhow::Result<Client> {
        let user = format!("user{}@example.org", number % 100);
        Client::log_in(self.protocol, port, &self.tls, &user).await
    }

    /// Logs in `count` clients, several at once, and keeps what `keep` makes of each.
    pub async fn log_in_many<T: Send + 'static>(
        self: &Arc<Self>,
        port: u16,
        count: usize,
        keep: fn(Client) -> T,
    ) -> anyhow::Result<Vec<T>> {
        let mut workers = JoinSet::new();
        for worker in 0..AT_ONCE.min(count) {
            let stage = Arc::clone(self);
            workers.spawn(async move {
                let mut kept = Vec::new();
                for number in (worker..count).step_by(AT_ONCE) {
                    kept.push(keep(stage.log_in(port, number).await?));
                }
                anyhow::Ok(kept)
            });
        }
        let mut all = Vec::with_capacity(count);
        while let Some(done) = workers.join_next().await {
            all.extend(done??);
        }
        Ok(all)
    }
}

/// Measures everybody by turns, so that what else this machine does falls on all of them. A peer that fails
/// is left out from there on; a failure of our own is one of the whole measurement.
pub async fn by_turns<const N: usize>(
    runs: usize,
    mut peers: Vec<Peer>,
    measure: impl AsyncFn(&Peer) -> anyhow::Result<[f64; N]>,
) -> anyhow::Result<Results<N>> {
    let mut results = Results::default();
    for _ in 0..runs {
        let mut left = Vec::new();
        for peer in peers {
            match measure(&peer).await {
                Ok(values) => {
                    results.add(peer.who, values);
                    left.push(peer);
                }
                Err(error) if peer.who == Who::Us => return Err(error),
                Err(error) => println!("{}: given up: {error:#}", peer.who),
            }
        }
        peers = left;
    }
    Ok(results)
}
