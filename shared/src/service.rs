//! The life of either service, from its configuration to its last session.
//!
//! Lock the state directory, read certificates, bind every listener, open the ownership table, load it,
//! serve, wait for a signal, finish what is in hand, take the node out of the table. What a service does
//! with its connections is its own business.

pub mod cli;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::backend::Backends;
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::listener::BindError;
use crate::ownership::Ownership;
use crate::ownership::feed::Feed;
use crate::ownership::schema::SchemaError;
use crate::ownership::store::{Node, Store, StoreError};
use crate::state_dir::{StateDir, StateDirError};
use crate::tls::{Certificates, TlsError};

/// Waits between attempts to open a database that is away.
const REOPEN: Duration = Duration::from_secs(1);
/// That it is away is said this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
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
    /// What keeps the copy of the table current has ended: without it nothing may be served for long.
    #[error("the feed of the ownership table ended unexpectedly; start the service again")]
    FeedEnded,
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
    let (map, names) = (service.ownership.map(), &service.config.names);
    map.set_default_domain(names.default_domain.clone());
    map.set_routing_domains(names.routing_domains.clone());
    raise_descriptor_limit();
    let serve = bind(&service)?;
    let signal = Lifecycle::until_signal();
    tokio::pin!(signal);
    watch_certificates(&service)?;
    // From here on clients get an answer: until the table is loaded, that it is not for now.
    serve();
    let end_of_feed = CancellationToken::new();
    let mut starting = Box::pin(start_feed(name, &service, &end_of_feed));
    let started = tokio::select! {
        feed = &mut starting => feed?,
        signal = &mut signal => {
            tracing::info!(signal = signal?, "stopped before the table was loaded");
            service.ownership.stop_serving();
            if may_leave(service.lifecycle.shut_down(Duration::ZERO).await) {
                end_of_feed.cancel();
                if let Some(feed) = starting.await? {
                    feed.leave().await;
                }
            }
            return Ok(());
        }
    };
    let Some(mut feed) = started else { return Ok(()) };
    // The feed goes on while sessions finish: they may be told of a flip until the last one has ended.
    let end = end_of_feed.clone();
    let mut feed = tokio::spawn(async move {
        Box::pin(feed.run(end)).await;
        feed
    });
    tracing::info!(service = name, version = env!("CARGO_PKG_VERSION"), "ready");
    let signal = tokio::select! {
        signal = signal => signal?,
        _ = &mut feed => {
            service.ownership.stop_serving();
            service.lifecycle.shut_down(Duration::ZERO).await;
            return Err(ServiceError::FeedEnded);
        }
    };
    tracing::info!(signal, "stopping");
    let left = service.lifecycle.shut_down(service.config.node.shutdown_grace).await;
    end_of_feed.cancel();
    if let Ok(feed) = feed.await
        && may_leave(left)
    {
        feed.leave().await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Whether the node's row may be taken out of the table while so many tasks are left. They may still send
/// something to a backend, so that no fence may pass before their node's lease has ended.
fn may_leave(left: usize) -> bool {
    if left > 0 {
        tracing::warn!(
            tasks = left,
            "tasks did not end, so this node stays in the table: fences wait until its lease ends"
        );
    } else {
        tracing::info!("all tasks have ended: this node leaves the table");
    }
    left == 0
}

/// Opens and loads the table. Nothing when `stop` was cancelled before that was done; then the node's row
/// is not in it.
async fn start_feed(
    name: &'static str,
    service: &Service,
    stop: &CancellationToken,
) -> Result<Option<Feed>, ServiceError> {
    let ownership = &service.config.ownership;
    let node = Node {
        name: service.config.node.name.clone(),
        service: name,
        incarnation: format!("{}/{}", service.state.id(), uuid::Uuid::new_v4()).into(),
        backends: digests(&service.config.backends),
    };
    let mut complained = None;
    let store = loop {
        let Some(opened) = stop.run_until_cancelled(Store::open(ownership, node.clone())).await
        else {
            return Ok(None);
        };
        match opened {
            Ok(store) => break store,
            // Not there yet, or not mounted yet: that may change.
            Err(
                error @ StoreError::Schema(
                    SchemaError::Newer { .. }
                    | SchemaError::Older { .. }
                    | SchemaError::Migration(_),
                ),
            ) => return Err(error.into()),
            Err(error) => {
                if complained.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN_EVERY) {
                    complained = Some(Instant::now());
                    let table = ownership.shown();
                    tracing::error!(%error, table, "cannot open the ownership table; trying again, and refusing everything for now");
                }
                stop.run_until_cancelled(sleep(REOPEN)).await;
            }
        }
    };
    Ok(Feed::start(
        store,
        Arc::clone(&service.ownership),
        ownership.max_staleness,
        ownership.poll_interval,
        stop,
    )
    .await)
}

/// Reads certificates again when their files have changed: now and then, and at SIGHUP, which must not
/// end the service in any case.
fn watch_certificates(service: &Service) -> Result<(), ServiceError> {
    let certificates = service.certificates.clone();
    let mut hangup = signal(SignalKind::hangup())?;
    let stop = service.lifecycle.stop().clone();
    service.lifecycle.spawn("certificates", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(CERTIFICATES_EVERY) => {}
                _ = hangup.recv() => tracing::info!(
                    "SIGHUP: looking for changed certificates; other settings need a restart"
                ),
            }
            match certificates.as_ref().map(|certificates| certificates.reload_if_changed()) {
                Some(Ok(true)) => tracing::info!("certificates were read again"),
                Some(Ok(false)) | None => {}
                Some(Err(error)) => {
                    tracing::error!(%error, "changed certificates cannot be used; the old ones stay");
                }
            }
        }
    });
    Ok(())
}

/// A joined session needs two descriptors, and the usual soft limit is 1,024: takes what it may have.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    tracing::info!(limit = ?getrlimit(Resource::Nofile).current, "open files allowed");
}

/// What this node knows of each backend, so that a difference between nodes is seen: JSON, name →
/// digest of its addresses.
fn digests(backends: &Backends) -> String {
    let digests: BTreeMap<&str, String> = backends
        .iter()
        .map(|backend| {
            let digest = Sha256::digest(format!("{backend:?}"));
            let first = digest.first_chunk::<8>().copied().unwrap_or_default();
            (backend.name.as_str(), format!("{:016x}", u64::from_be_bytes(first)))
        })
        .collect();
    serde_json::to_string(&digests).unwrap_or_default()
}
