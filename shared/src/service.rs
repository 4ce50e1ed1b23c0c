//! The life of either service, from its configuration to its last session.
//!
//! Lock the state directory, read certificates, bind every listener, open the ownership table, load it,
//! serve, wait for a signal, finish what is in hand, take the node out of the table. What a service does
//! with its connections is its own business.

pub mod cli;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backend::Backends;
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::listener::BindError;
use crate::ownership::Ownership;
use crate::ownership::feed::Feed;
use crate::ownership::store::{Node, Store, StoreError};
use crate::state_dir::{StateDir, StateDirError};
use crate::tls::{Certificates, TlsError};

/// Waits between attempts to open a database that is away.
const REOPEN: Duration = Duration::from_secs(1);
/// How often certificate files are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_mins(1);

/// What a service works with.
#[derive(Debug, Clone)]
pub struct Service {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its tasks.
    pub lifecycle: Lifecycle,
    /// Who owns each account.
    pub ownership: Arc<Ownership>,
    /// Certificates for listeners; `None` when none is configured.
    pub certificates: Option<Arc<Certificates>>,
    /// Its own directory.
    pub state: Arc<StateDir>,
}

/// Why a service cannot start or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Its directory.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The ownership table is there, but cannot be used.
    #[error("the ownership table cannot be used: {0}")]
    Ownership(#[from] StoreError),
    /// Nothing is configured for it to listen on.
    #[error("nothing to do: {0}")]
    Idle(&'static str),
    /// Signals or the runtime.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Runs a service until it is told to stop. `bind` binds its listeners and returns what serves them.
///
/// # Errors
///
/// A [`ServiceError`] when it cannot start. A database that is away is waited for.
pub async fn run<B, S>(name: &'static str, config: Config, bind: B) -> Result<(), ServiceError>
where
    B: FnOnce(&Service) -> Result<S, ServiceError>,
    S: FnOnce(),
{
    let config = Arc::new(config);
    let service = Service {
        state: Arc::new(StateDir::lock(&config.node.state_dir, name)?),
        lifecycle: Lifecycle::default(),
        ownership: Ownership::new(config.backends.clone()),
        certificates: Certificates::load(&config.tls)?,
        config,
    };
    service.ownership.map().set_default_domain(service.config.default_domain.clone());
    let serve = bind(&service)?;
    let signal = Lifecycle::until_signal();
    tokio::pin!(signal);
    let starting = tokio::select! {
        feed = start_feed(name, &service) => feed?,
        signal = &mut signal => { tracing::info!(signal = signal?, "stopped before it served"); return Ok(()); }
    };
    // The feed goes on while sessions finish: they may be told of a flip until the last one has ended.
    let end_of_feed = CancellationToken::new();
    let feed = tokio::spawn(starting.run(end_of_feed.clone()));
    watch_certificates(&service);
    serve();
    tracing::info!(service = name, version = env!("CARGO_PKG_VERSION"), "ready");
    let signal = signal.await?;
    tracing::info!(signal, "stopping");
    let left = service.lifecycle.shut_down(service.config.node.shutdown_grace).await;
    if left > 0 {
        tracing::warn!(tasks = left, "tasks did not end");
    }
    end_of_feed.cancel();
    let _ = feed.await;
    tracing::info!("stopped");
    Ok(())
}

async fn start_feed(name: &'static str, service: &Service) -> Result<Feed, ServiceError> {
    let ownership = &service.config.ownership;
    let node = Node {
        name: service.config.node.name.clone(),
        service: name,
        incarnation: format!("{}/{}", service.state.id(), uuid::Uuid::new_v4()).into(),
        backends: digests(&service.config.backends),
    };
    let store = loop {
        match Store::open(ownership, node.clone()).await {
            Ok(store) => break store,
            Err(error @ StoreError::Schema(_)) => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "cannot open the ownership table; trying again");
                sleep(REOPEN).await;
            }
        }
    };
    Ok(Feed::start(
        store,
        Arc::clone(&service.ownership),
        ownership.max_staleness,
        ownership.poll_interval,
    )
    .await)
}

fn watch_certificates(service: &Service) {
    let Some(certificates) = service.certificates.clone() else { return };
    let stop = service.lifecycle.stop().clone();
    service.lifecycle.spawn("certificates", async move {
        while stop.run_until_cancelled(sleep(CERTIFICATES_EVERY)).await.is_some() {
            match certificates.reload_if_changed() {
                Ok(true) => tracing::info!("certificates were read again"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "changed certificates cannot be used; the old ones stay"),
            }
        }
    });
}

/// What this node knows of each backend, so that a difference between nodes is seen: JSON, name →
/// digest of its addresses.
fn digests(backends: &Backends) -> String {
    let digests: BTreeMap<&str, String> = backends
        .iter()
        .map(|backend| {
            let digest = Sha256::digest(format!("{:?} {:?}", backend.mail, backend.imap));
            let first = digest.first_chunk::<8>().copied().unwrap_or_default();
            (backend.name.as_str(), format!("{:016x}", u64::from_be_bytes(first)))
        })
        .collect();
    serde_json::to_string(&digests).unwrap_or_default()
}
