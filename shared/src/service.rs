//! The life of either service, from its configuration to its last session.
//!
//! Lock a state directory, read certificates, bind every listener, open the ownership table, load it,
//! serve, wait for a signal or for a process that takes over, finish what is in hand, take the node out of
//! the table. A process that takes over does the same, but serves only when it has loaded the table. What a
//! service does with its connections is its own business: [`Program`].

pub mod cli;
mod hand_over;
mod passing;
mod reload;
mod systemd;
mod table;
mod take_over;

use std::fmt::Debug;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::hand_over::{HandOver, Relieved, Successor};
pub use self::passing::HandOverError;
use self::reload::Reload;
use self::table::{digests, start_feed};
use self::take_over::Predecessor;
use crate::config::{Config, LoadError, NamesConfig};
use crate::lifecycle::Lifecycle;
use crate::listener::{BindError, Sockets};
use crate::ownership::Ownership;
use crate::ownership::feed::Feed;
use crate::ownership::store::{Known, StoreError};
use crate::state_dir::{StateDir, StateDirError};
use crate::telemetry::Log;
use crate::tls::{Certificates, TlsError};

/// What a service works with.
#[derive(Debug, Clone)]
pub struct Service {
    /// The configuration of now.
    pub config: Arc<ArcSwap<Config>>,
    /// Its tasks.
    pub lifecycle: Lifecycle,
    /// Who owns each account.
    pub ownership: Arc<Ownership>,
    /// Certificates for listeners; `None` when none is configured.
    pub certificates: Option<Arc<Certificates>>,
    /// Its own directory.
    pub state: Arc<StateDir>,
    /// Its listening sockets.
    pub sockets: Arc<Sockets>,
}

/// What a service does with its connections.
pub trait Program: Debug + Send + Sync + Sized + 'static {
    /// `mx-gateway` or `login-proxy`.
    const NAME: &'static str;

    /// What is to be configured where there would be nothing to do.
    fn idle(config: &Config) -> Option<&'static str>;

    /// Binds every listener, and opens what is on disk.
    ///
    /// # Errors
    ///
    /// A [`ServiceError`] that names the listener, or what is on disk.
    fn bind(service: &Service) -> impl Future<Output = Result<Self, ServiceError>> + Send;

    /// Returns when clients can be told all there is, or have waited for it long enough.
    fn prepare(&self) -> impl Future<Output = ()> + Send;

    /// Begins to accept connections.
    fn serve(&self);

    /// Takes a changed configuration for connections from now on.
    fn reload(&self, service: &Service, config: &Arc<Config>) -> impl Future<Output = ()> + Send;
}

/// How a service is to be started.
#[derive(Debug)]
pub struct Start {
    /// The configuration.
    pub config: Config,
    /// The file that it was read from.
    pub file: PathBuf,
    /// The program's path.
    pub program: PathBuf,
    /// Take the place of the process that serves now.
    pub take_over: bool,
    /// The log.
    pub log: Arc<Log>,
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
    /// What it keeps on disk.
    #[error("{0}")]
    Disk(Box<str>),
    /// The process that serves does not hand over.
    #[error("cannot take over: {0}")]
    TakeOver(#[from] HandOverError),
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

/// The signals that end a service.
#[derive(Debug)]
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

impl Service {
    /// Names lead to accounts by these rules from now on.
    fn resolve_by(&self, names: &NamesConfig) {
        let map = self.ownership.map();
        map.set_default_domain(names.default_domain.clone());
        map.set_routing_domains(names.routing_domains.clone());
    }

    /// The configuration of now.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }
}

/// Runs a service until it is told to stop, or another process has taken its place and all is finished.
///
/// # Errors
///
/// A [`ServiceError`] when it cannot start. A database that is away is waited for.
pub async fn run<P: Program>(start: Start) -> Result<(), ServiceError> {
    // From here on none of them ends this process by itself.
    let ends = Ends::listen()?;
    let (hangup, asked) = (signal(SignalKind::hangup())?, signal(SignalKind::user_defined2())?);
    let Start { config, file, program: path, take_over, log } = start;
    let (base, config) = (config.node.state_dir.clone(), Arc::new(config));
    let (predecessor, sockets, state) = if take_over {
        let (predecessor, sockets) = Predecessor::find(&base, P::NAME).await?;
        (Some(predecessor), sockets, StateDir::lock_beside(&base, P::NAME)?)
    } else {
        (None, Sockets::from_environment()?, StateDir::lock(&base, P::NAME)?)
    };
    let service = Service {
        state: Arc::new(state),
        sockets: Arc::new(sockets),
        lifecycle: Lifecycle::default(),
        ownership: Ownership::new(config.backends.clone()),
        certificates: Certificates::load(&config.tls)?,
        config: Arc::new(ArcSwap::new(Arc::clone(&config))),
    };
    service.resolve_by(&config.names);
    raise_descriptor_limit();
    for warning in config.loops() {
        tracing::error!("{warning}");
    }
    let program = Arc::new(P::bind(&service).await?);
    let unused = service.sockets.close_unused();
    match &predecessor {
        Some(_) if !unused.is_empty() => tracing::info!(?unused, "not listened on any more"),
        None if !unused.is_empty() => {
            return Err(BindError::NotConfigured { addresses: unused }.into());
        }
        Some(_) | None => {}
    }
    let command = Successor { program: path, file: file.clone() };
    let hand_over = HandOver::new(&service.state, Arc::clone(&service.sockets), asked, command);
    let known = Known::from(digests(&config.backends));
    let reload = Arc::new(Reload {
        service: service.clone(),
        program: Arc::clone(&program),
        file,
        at_start: config,
        log,
        known: known.clone(),
        predecessor: Mutex::default(),
    });
    service.lifecycle.spawn_chore("reload", Arc::clone(&reload).watch(hangup));
    systemd::feed_watchdog(&service.lifecycle);
    let life = Life { service, program, reload, ends };
    life.live(predecessor, hand_over, known).await
}

/// A service that has its listeners.
struct Life<P> {
    service: Service,
    program: Arc<P>,
    reload: Arc<Reload<P>>,
    ends: Ends,
}

/// What keeps the copy of the table current, in a task of its own.
struct Following {
    feed: JoinHandle<Feed>,
    end: CancellationToken,
}

impl<P: Program> Life<P> {
    async fn live(
        mut self,
        predecessor: Option<Predecessor>,
        hand_over: HandOver,
        known: Known,
    ) -> Result<(), ServiceError> {
        if predecessor.is_none() {
            // Clients get an answer from here on: until the table is loaded, that it is not for now.
            let program = Arc::clone(&self.program);
            self.service.lifecycle.spawn_chore("start", async move {
                program.prepare().await;
                program.serve();
            });
        }
        let Some(mut following) = self.load(known).await? else { return Ok(()) };
        if let Some(mut predecessor) = predecessor {
            let program = &self.program;
            let relieved = async {
                program.prepare().await;
                predecessor.relieve(|| program.serve()).await
            };
            let relieved = tokio::select! {
                relieved = relieved => relieved.map(|()| None),
                signal = self.ends.next() => Ok(Some(signal)),
            };
            if !matches!(relieved, Ok(None)) {
                self.end(following, Duration::ZERO).await;
                return relieved.map(drop).map_err(ServiceError::from);
            }
            *self.reload.predecessor.lock().await = Some(predecessor);
        }
        systemd::notify("READY=1");
        tracing::info!(service = P::NAME, version = env!("CARGO_PKG_VERSION"), "ready");
        let successor = tokio::select! {
            signal = self.ends.next() => {
                tracing::info!(signal, "stopping");
                None
            }
            successor = hand_over.done() => Some(successor),
            _ = &mut following.feed => return self.end_without_feed().await,
        };
        if let Some(successor) = successor {
            // What is in hand goes on only as long as it is told of flips, and of the end of the lease.
            tokio::select! {
                () = self.drain(successor) => {}
                _ = &mut following.feed => return self.end_without_feed().await,
            }
        }
        systemd::notify("STOPPING=1");
        let grace = self.service.config().node.shutdown_grace;
        self.end(following, grace).await;
        tracing::info!("stopped");
        Ok(())
    }

    /// Loads the table. Nothing when the service was stopped before that was done.
    async fn load(&mut self, known: Known) -> Result<Option<Following>, ServiceError> {
        let service = &self.service;
        let end = CancellationToken::new();
        let mut starting = Box::pin(start_feed(P::NAME, service, known, &end));
        let started = tokio::select! {
            feed = &mut starting => feed?,
            signal = self.ends.next() => {
                tracing::info!(signal, "stopped before the table was loaded");
                service.ownership.stop_serving();
                if may_leave(service.lifecycle.shut_down(Duration::ZERO).await) {
                    end.cancel();
                    if let Some(feed) = starting.await? {
                        feed.leave().await;
                    }
                }
                return Ok(None);
            }
        };
        drop(starting);
        // It goes on while sessions finish: they may be told of a flip until the last one has ended.
        Ok(started.map(|mut feed| {
            let until = end.clone();
            let feed = tokio::spawn(async move {
                Box::pin(feed.run(until)).await;
                feed
            });
            Following { feed, end }
        }))
    }

    /// Another process serves: finishes what is in hand here, as if nothing had happened.
    async fn drain(&mut self, mut successor: Relieved) {
        let pid = successor.pid;
        if let Some(pid) = pid {
            systemd::notify(&format!("MAINPID={pid}"));
        }
        self.service.sockets.close();
        let sessions = self.service.lifecycle.drain().await;
        // What the new one knows of the backends this one is to know as well, or no flip would be allowed.
        self.reload.reload().await;
        let grace = self.service.config().node.handover_grace;
        tracing::info!(
            pid,
            sessions,
            ?grace,
            "handed over to a new process; what is in hand goes on here, up to node.handover_grace"
        );
        let over = sleep(grace);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = self.service.lifecycle.drained() => {
                    tracing::info!("nothing is in hand any more");
                }
                () = &mut over => tracing::warn!("node.handover_grace is over"),
                signal = self.ends.next() => tracing::info!(signal, "stopping"),
                () = successor.reloaded() => {
                    self.reload.reload().await;
                    continue;
                }
            }
            return;
        }
    }

    /// Ends everything at once: nothing tells of flips any more, nor of the end of the lease.
    async fn end_without_feed(&self) -> Result<(), ServiceError> {
        self.service.ownership.stop_serving();
        self.service.lifecycle.shut_down(Duration::ZERO).await;
        Err(ServiceError::FeedEnded)
    }

    /// Ends what is in hand and leaves the table.
    async fn end(&self, following: Following, grace: Duration) {
        let left = self.service.lifecycle.shut_down(grace).await;
        following.end.cancel();
        if let Ok(feed) = following.feed.await
            && may_leave(left)
        {
            feed.leave().await;
        }
    }
}

/// Reads and checks a configuration file, with everything that it needs of others.
///
/// # Errors
///
/// All problems, a line each.
fn read(file: &Path, idle: fn(&Config) -> Option<&'static str>) -> Result<Config, Vec<String>> {
    let (config, mut problems, certificates) = match Config::load(file) {
        Ok(config) => {
            let certificates = config.tls.certificates.clone();
            (Some(config), Vec::new(), certificates)
        }
        Err(LoadError::Wrong(error)) => {
            let problems = error.to_string().lines().map(str::to_owned).collect();
            (None, problems, error.certificates().to_vec())
        }
        Err(error @ LoadError::Unreadable { .. }) => (None, vec![error.to_string()], Vec::new()),
    };
    let shown = file.display();
    let missing = config.as_ref().and_then(idle);
    problems.extend(missing.map(|missing| format!("{shown}: nothing to do: {missing}")));
    let unusable = Certificates::problems(&certificates);
    problems.extend(unusable.iter().map(|error| format!("{shown}: tls.certificates: {error}")));
    let tickets = config.as_ref().and_then(|config| Certificates::ticket_problem(&config.tls));
    problems.extend(tickets.map(|error| format!("{shown}: tls.ticket_key_file: {error}")));
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        Some(_) | None => Err(problems),
    }
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
