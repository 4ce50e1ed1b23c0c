//! Puts the parts together: a listener and a context for each configured port.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shared::config::{Config, ListenerConfig, ListenerTls, MxKind, MxListener};
use shared::lifecycle::Lifecycle;
use shared::listener::{Listener, Refused};
use shared::service::{Program, Service, ServiceError};
use tokio::time::sleep;

use crate::body::Memory;
use crate::delivery::Pool;
use crate::dnsbl::Dnsbl;
use crate::edge::Edge;
use crate::lookup::server::{LookupError, Server};
use crate::serve::{Context, serve};

/// Octets that all messages being received may keep in memory together.
const MEMORY: usize = 256 * 1024 * 1024;
/// Longest wait for an owner's answer to a recipient, everything counted: a kept connection that fails,
/// another one, TLS. Clients wait for 5 minutes (RFC 5321 §4.5.3.2.3).
const LONGEST_ASK: Duration = Duration::from_mins(2);
/// How often kept connections are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// The gateway.
#[derive(Debug)]
pub struct Gateway {
    lifecycle: Lifecycle,
    memory: Arc<Memory>,
    edge: Arc<Edge>,
    temporary: PathBuf,
    bound: Vec<Bound>,
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

impl Program for Gateway {
    const NAME: &'static str = "mx-gateway";

    fn idle(config: &Config) -> Option<&'static str> {
        config.mx.listeners.is_empty().then_some("set mx.smtp.listen")
    }

    fn bind(service: &Service) -> Result<Self, ServiceError> {
        let config = service.config();
        if let Some(missing) = Self::idle(&config) {
            return Err(ServiceError::Idle(missing));
        }
        let temporary = service.state.path().join("incoming");
        std::fs::create_dir_all(&temporary)?;
        let mut gateway = Self {
            lifecycle: service.lifecycle.clone(),
            memory: Memory::new(MEMORY),
            edge: Arc::new(Edge::new(config.mx.limits.clone(), Instant::now())),
            temporary,
            bound: Vec::new(),
            lookup: Server::bind(&config.mx.lookup, &service.ownership, &service.sockets).map_err(
                |error| match error {
                    LookupError::Bind(error) => ServiceError::from(error),
                    LookupError::Local(error) => error.into(),
                },
            )?,
        };
        let pool = gateway.pool();
        for MxListener { kind, config: configured } in &config.mx.listeners {
            let context = gateway.context(service, &config, *kind, configured, &pool);
            gateway.bound.push(Bound {
                kind: *kind,
                configured: configured.clone(),
                listener: Listener::bind_among(configured, &service.sockets)?,
                context: Arc::new(ArcSwap::new(context)),
            });
        }
        Ok(gateway)
    }

    async fn prepare(&self) {}

    fn serve(&self) {
        for Bound { kind, listener, context, .. } in &self.bound {
            let (addresses, context) = (listener.addresses(), Arc::clone(context));
            let protocol = match kind {
                MxKind::Smtp => "smtp",
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
        self.edge.limit(config.mx.limits.clone());
        self.lookup.reload(&config.mx.lookup, &service.ownership);
        for Bound { kind, configured, listener, context } in &self.bound {
            context.store(self.context(service, config, *kind, configured, &pool));
            if let Some(changed) = config.mx.listener(*kind) {
                listener.reload(changed);
            }
        }
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
        pool: &Arc<Pool>,
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
            pool: Arc::clone(pool),
            memory: Arc::clone(&self.memory),
            temporary: self.temporary.clone(),
        })
    }
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
