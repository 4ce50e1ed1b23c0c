//! Puts the parts together: a listener and a context for each configured port.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shared::config::{Config, ListenerConfig, ListenerTls, MxConfig, MxKind, MxListener};
use shared::lifecycle::Lifecycle;
use shared::listener::{Listener, Refused};
use shared::service::{Program, Service, ServiceError};
use shared::state_dir::StateDir;
use tokio::time::sleep;

use crate::admin;
use crate::authentication::{Authenticator, AuthenticatorError};
use crate::body::Memory;
use crate::delivery::{FirstAnswers, Offers, Pool};
use crate::dnsbl::Dnsbl;
use crate::edge::Edge;
use crate::fingerprint::{self, Fingerprints};
use crate::grace::Grace;
use crate::lookup::server::{LookupError, Server};
use crate::mail_log::MailLog;
use crate::queue::{Queue, Rules};
use crate::serve::{Context, serve};
use crate::spool::{Spool, SpoolError};

/// Octets that all messages being received may keep in memory together.
const MEMORY: usize = 256 * 1024 * 1024;
/// Longest wait for an owner's answer to a recipient, everything counted: a kept connection that fails,
/// another one, TLS. Clients wait for 5 minutes (RFC 5321 §4.5.3.2.3).
const LONGEST_ASK: Duration = Duration::from_mins(2);
/// How often a spool that is in use is tried again at the start, and how long between two times.
const OPEN_ATTEMPTS: u32 = 20;
const OPEN_PAUSE: Duration = Duration::from_millis(250);
/// How often kept connections are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// The gateway.
#[derive(Debug)]
pub struct Gateway {
    lifecycle: Lifecycle,
    memory: Arc<Memory>,
    edge: Arc<Edge>,
    grace: Arc<Grace>,
    temporary: PathBuf,
    queue: Arc<Queue>,
    /// The spools of other processes of this service.
    others: Vec<PathBuf>,
    /// What the queue's deliveries work with.
    outbound: Option<Arc<ArcSwap<Context>>>,
    mail_log: ArcSwap<MailLog>,
    bound: Vec<Bound>,
    /// Backends are asked by it what they offer.
    asking: Mutex<Lifecycle>,
    /// Until they have said so for the first time.
    first: Mutex<Option<FirstAnswers>>,
    lookup: Server,
}

/// A listener, and what its sessions from now on work with.
#[derive(Debug)]
struct Bound {
    kind: MxKind,
    /// As it was bound.
    configured: ListenerConfig,
    listener: Listener,
    context: Arc<ArcSwap<Context>>,
}

/// What all listeners share until the configuration is changed.
#[derive(Debug, Clone, Copy)]
struct Parts<'a> {
    pool: &'a Arc<Pool>,
    offers: &'a Arc<Offers>,
    authenticator: Option<&'a Arc<Authenticator>>,
}

impl Program for Gateway {
    const NAME: &'static str = "mx-gateway";

    fn idle(config: &Config) -> Option<&'static str> {
        config.mx.listeners.is_empty().then_some("set mx.smtp.listen or mx.lmtp.listen")
    }

    async fn bind(service: &Service) -> Result<Self, ServiceError> {
        let config = service.config();
        if let Some(missing) = Self::idle(&config) {
            return Err(ServiceError::Idle(missing));
        }
        let temporary = service.state.path().join("incoming");
        std::fs::create_dir_all(&temporary)?;
        let queue = open_queue(service, &config).await?;
        if let Err(error) =
            admin::open(service.state.path(), &service.lifecycle, Arc::clone(&queue))
        {
            tracing::error!(%error, "no admin socket: mailshift queue cannot ask this process");
        }
        let others = StateDir::candidates(&config.node.state_dir, Self::NAME);
        let others = others.filter(|path| path != service.state.path());
        let others = others.map(|path| path.join("spool")).collect();
        let (asking, offers, first) = ask(&service.lifecycle, &config);
        let mut gateway = Self {
            queue,
            others,
            outbound: None,
            lifecycle: service.lifecycle.clone(),
            memory: Memory::new(MEMORY),
            edge: Arc::new(Edge::new(config.mx.limits.clone(), Instant::now())),
            grace: Arc::default(),
            temporary,
            mail_log: ArcSwap::from_pointee(mail_log(&config)),
            bound: Vec::new(),
            asking: Mutex::new(asking),
            first: Mutex::new(Some(first)),
            lookup: Server::bind(&config.mx.lookup, &service.ownership, &service.sockets).map_err(
                |error| match error {
                    LookupError::Bind(error) => ServiceError::from(error),
                    LookupError::Local(error) => error.into(),
                },
            )?,
        };
        let pool = gateway.pool();
        let authenticator =
            authenticator(&config).map_err(|error| ServiceError::Disk(error.to_string().into()))?;
        for MxListener { kind, config: configured } in &config.mx.listeners {
            let parts =
                Parts { pool: &pool, offers: &offers, authenticator: authenticator.as_ref() };
            let context = gateway.context(service, &config, *kind, configured, parts);
            gateway.outbound.get_or_insert_with(|| Arc::new(ArcSwap::new(Arc::clone(&context))));
            gateway.bound.push(Bound {
                kind: *kind,
                configured: configured.clone(),
                listener: Listener::bind_among(configured, &service.sockets)?,
                context: Arc::new(ArcSwap::new(context)),
            });
        }
        Ok(gateway)
    }

    /// Waits until the backends have said what they offer, or have had time to.
    async fn prepare(&self) {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(first) = first {
            first.known().await;
        }
    }

    fn serve(&self) {
        if let Some(outbound) = &self.outbound {
            let queue = Arc::clone(&self.queue);
            let run = queue.run(Arc::clone(outbound), self.others.clone());
            self.lifecycle.spawn_chore("queue", run);
        }
        for Bound { kind, listener, context, .. } in &self.bound {
            let (addresses, context) = (listener.addresses(), Arc::clone(context));
            let protocol = match kind {
                MxKind::Smtp => "smtp",
                MxKind::Lmtp => "lmtp",
                MxKind::Internal => "internal",
            };
            tracing::info!(protocol, ?addresses, "listening");
            listener
                .serve(&self.lifecycle, full, move |accepted| serve(context.load_full(), accepted));
        }
        self.lookup.serve(&self.lifecycle);
    }

    async fn reload(&self, service: &Service, config: &Arc<Config>) {
        // Connections that are kept lead where owners were before.
        let pool = self.pool();
        let (asking, offers, first) = ask(&self.lifecycle, config);
        // Clients are offered what was known before until all is known that was known then.
        first.known().await;
        if !self.mail_log.load().goes_on_as(config.mx.mail_log.as_ref()) {
            self.mail_log.store(Arc::new(mail_log(config)));
        }
        self.queue.set_rules(rules(&config.mx));
        self.queue.fingerprints().keep_for(config.mx.queue.remember);
        self.edge.limit(config.mx.limits.clone());
        self.lookup.reload(&config.mx.lookup, &service.ownership);
        let authenticator = authenticator(config);
        if let Err(error) = &authenticator {
            tracing::error!(%error, "senders are looked at as they were before");
        }
        for (at, Bound { kind, configured, listener, context }) in self.bound.iter().enumerate() {
            let before = || context.load().authenticator.clone();
            let authenticator = authenticator.as_ref().map_or_else(|_| before(), Option::clone);
            let parts =
                Parts { pool: &pool, offers: &offers, authenticator: authenticator.as_ref() };
            let changed = self.context(service, config, *kind, configured, parts);
            if let Some(outbound) = self.outbound.as_ref().filter(|_| at == 0) {
                outbound.store(Arc::clone(&changed));
            }
            context.store(changed);
            if let Some(changed) = config.mx.listener(*kind) {
                listener.reload(changed);
            }
        }
        let mut current = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, asking).stop().cancel();
    }
}

impl Gateway {
    /// Kept connections, which are swept as long as there are sessions to use them.
    fn pool(&self) -> Arc<Pool> {
        let pool = Arc::new(Pool::default());
        let (kept, stop) = (Arc::downgrade(&pool), self.lifecycle.stop().clone());
        self.lifecycle.spawn_chore("pool", async move {
            while stop.run_until_cancelled(sleep(SWEEP_EVERY)).await.is_some() {
                let Some(pool) = kept.upgrade() else { return };
                for connection in pool.expired() {
                    connection.quit().await;
                }
            }
        });
        pool
    }

    /// What the sessions of one listener work with.
    fn context(
        &self,
        service: &Service,
        config: &Config,
        kind: MxKind,
        listener: &ListenerConfig,
        parts: Parts<'_>,
    ) -> Arc<Context> {
        let tls = service.certificates.as_ref().filter(|_| listener.tls != ListenerTls::None);
        Arc::new(Context {
            kind,
            ownership: Arc::clone(&service.ownership),
            lifecycle: service.lifecycle.clone(),
            rules: config.mx.clone(),
            tls: tls.map(|certificates| certificates.server_config()),
            implicit_tls: listener.tls == ListenerTls::Implicit,
            ask_timeout: LONGEST_ASK,
            edge: Arc::clone(&self.edge),
            lists: Dnsbl::of_system(&config.mx.limits.dnsbl),
            pool: Arc::clone(parts.pool),
            queue: Some(Arc::clone(&self.queue)),
            fingerprints: Arc::clone(self.queue.fingerprints()),
            offers: Arc::clone(parts.offers),
            grace: Arc::clone(&self.grace),
            memory: Arc::clone(&self.memory),
            temporary: self.temporary.clone(),
            // What mail systems of ours hand on was looked at where it came from.
            authenticator: parts.authenticator.filter(|_| kind != MxKind::Internal).cloned(),
            mail_log: self.mail_log.load_full(),
        })
    }
}

/// What was left in the spool is tried as soon as the table is loaded.
async fn open_queue(service: &Service, config: &Config) -> Result<Arc<Queue>, ServiceError> {
    let directory = service.state.path().join("spool");
    let mut opened = Spool::open(&directory, config.mx.queue.reserve).await;
    for _ in 0..OPEN_ATTEMPTS {
        if !matches!(opened, Err(SpoolError::InUse(_))) {
            break;
        }
        // Another process may be taking over what the last one here has left.
        sleep(OPEN_PAUSE).await;
        opened = Spool::open(&directory, config.mx.queue.reserve).await;
    }
    let (spool, stored) = opened.map_err(|error| ServiceError::Disk(error.to_string().into()))?;
    if !stored.is_empty() {
        tracing::info!(messages = stored.len(), "messages are in the queue");
    }
    let path = directory.join(fingerprint::FILE);
    let prints = Fingerprints::open(&path, config.mx.queue.remember).await;
    let rules = rules(&config.mx);
    Ok(Queue::new((spool, prints), &stored, rules, &service.ownership, &service.lifecycle))
}

/// What the queue goes by.
pub fn rules(config: &MxConfig) -> Rules {
    let queue = &config.queue;
    let pace = Duration::from_secs(1).checked_div(queue.max_per_second);
    Rules {
        expire: queue.expire,
        most: queue.max_per_backend,
        pace: pace.unwrap_or_default(),
        report_via: queue.report_via.clone(),
        hostname: config.hostname.as_str().into(),
    }
}

/// Asks the backends of a configuration what they offer, until the first of what is returned is stopped.
fn ask(lifecycle: &Lifecycle, config: &Config) -> (Lifecycle, Arc<Offers>, FirstAnswers) {
    let asking = lifecycle.branch();
    let offers = Offers::new(&config.backends, config.mx.max_message_size);
    let first = offers.watch(&asking, &config.backends, config.mx.hostname.as_str());
    (asking, offers, first)
}

/// What finds out about senders, if that is wanted.
fn authenticator(config: &Config) -> Result<Option<Arc<Authenticator>>, AuthenticatorError> {
    let wanted = config.mx.authentication.as_ref();
    let authenticator = wanted.map(|wanted| Authenticator::new(wanted, &config.mx.hostname));
    Ok(authenticator.transpose()?.map(Arc::new))
}

fn mail_log(config: &Config) -> MailLog {
    MailLog::start(config.mx.mail_log.as_ref(), config.mx.hostname.as_str())
}

/// What a connection over the limits is told (RFC 5321 §3.8).
pub fn full(refused: Refused) -> Vec<u8> {
    match refused {
        Refused::TooMany => b"421 4.3.2 Too many connections, try again later\r\n".to_vec(),
        Refused::TooManyFromAddress => {
            b"421 4.7.0 Too many connections from your address\r\n".to_vec()
        }
    }
}
