//! Puts the parts together: a listener and a context for each configured port.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use shared::config::{Config, ListenerConfig, ListenerTls};
use shared::lifecycle::Lifecycle;
use shared::listener::{Listener, Refused};
use shared::service::{Program, Service, ServiceError};
use tokio::time::sleep;

use crate::body::Memory;
use crate::delivery::Pool;
use crate::mail_log::MailLog;
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
    temporary: PathBuf,
    mail_log: ArcSwap<MailLog>,
    bound: Vec<Bound>,
}

/// A listener, and what its sessions from now on work with.
#[derive(Debug)]
struct Bound {
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
            temporary,
            mail_log: ArcSwap::from_pointee(mail_log(&config)),
            bound: Vec::new(),
        };
        let pool = gateway.pool();
        for configured in &config.mx.listeners {
            let context = gateway.context(service, &config, configured, &pool);
            gateway.bound.push(Bound {
                configured: configured.clone(),
                listener: Listener::bind_among(configured, &service.sockets)?,
                context: Arc::new(ArcSwap::new(context)),
            });
        }
        Ok(gateway)
    }

    async fn prepare(&self) {}

    fn serve(&self) {
        for Bound { listener, context, .. } in &self.bound {
            let (addresses, context) = (listener.addresses(), Arc::clone(context));
            tracing::info!(protocol = "smtp", ?addresses, "listening");
            listener
                .serve(&self.lifecycle, full, move |accepted| serve(context.load_full(), accepted));
        }
    }

    async fn reload(&self, service: &Service, config: &Arc<Config>) {
        // Connections that are kept lead where owners were before.
        let pool = self.pool();
        if !self.mail_log.load().goes_on_as(config.mx.mail_log.as_ref()) {
            self.mail_log.store(Arc::new(mail_log(config)));
        }
        for Bound { configured, listener, context } in &self.bound {
            context.store(self.context(service, config, configured, &pool));
            if let Some(changed) = config.mx.listeners.first() {
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
        listener: &ListenerConfig,
        pool: &Arc<Pool>,
    ) -> Arc<Context> {
        let tls = service.certificates.as_ref().filter(|_| listener.tls != ListenerTls::None);
        Arc::new(Context {
            ownership: Arc::clone(&service.ownership),
            lifecycle: service.lifecycle.clone(),
            rules: config.mx.clone(),
            tls: tls.map(|certificates| certificates.server_config()),
            implicit_tls: listener.tls == ListenerTls::Implicit,
            ask_timeout: LONGEST_ASK,
            pool: Arc::clone(pool),
            memory: Arc::clone(&self.memory),
            temporary: self.temporary.clone(),
            mail_log: self.mail_log.load_full(),
        })
    }
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
