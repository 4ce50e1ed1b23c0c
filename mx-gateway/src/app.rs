//! Puts the parts together: a listener and a context for each configured port.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::config::{Config, ListenerConfig, ListenerTls};
use shared::listener::{Listener, Refused};
use shared::service::{self, Service, ServiceError};
use tokio::time::sleep;

use crate::body::Memory;
use crate::delivery::Pool;
use crate::serve::{Context, serve};

/// Octets that all messages being received may keep in memory together.
const MEMORY: usize = 256 * 1024 * 1024;
/// Longest wait for an owner's answer to a recipient, everything counted: a kept connection that fails,
/// another one, TLS. Clients wait for 5 minutes (RFC 5321 §4.5.3.2.3).
const LONGEST_ASK: Duration = Duration::from_mins(2);
/// How often kept connections are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Runs the gateway until it is told to stop.
///
/// # Errors
///
/// A [`ServiceError`] when it cannot start.
pub async fn run(config: Config) -> Result<(), ServiceError> {
    service::run("mx-gateway", config, |service| {
        if let Some(missing) = idle(&service.config) {
            return Err(ServiceError::Idle(missing));
        }
        let temporary = service.state.path().join("incoming");
        std::fs::create_dir_all(&temporary)?;
        let (pool, memory) = (Arc::new(Pool::default()), Memory::new(MEMORY));
        let mut bound = Vec::new();
        for listener in &service.config.mx.listeners {
            let storage = (Arc::clone(&memory), temporary.clone());
            let cx = context(service, listener, Arc::clone(&pool), storage);
            bound.push((cx, Listener::bind(listener)?));
        }
        let lifecycle = service.lifecycle.clone();
        Ok(move || {
            for (cx, listener) in bound {
                let addresses = listener.addresses();
                tracing::info!(protocol = "smtp", ?addresses, "listening");
                listener.serve(&lifecycle, full, move |accepted| serve(Arc::clone(&cx), accepted));
            }
            let stop = lifecycle.stop().clone();
            lifecycle.spawn("pool", async move {
                while stop.run_until_cancelled(sleep(SWEEP_EVERY)).await.is_some() {
                    for connection in pool.expired() {
                        connection.quit().await;
                    }
                }
            });
        })
    })
    .await
}

/// What is to be configured where there would be nothing to do.
pub fn idle(config: &Config) -> Option<&'static str> {
    config.mx.listeners.is_empty().then_some("set mx.smtp.listen")
}

/// What the sessions of one listener work with. `storage` is where messages are kept while they are
/// received: memory, and a directory.
pub fn context(
    service: &Service,
    listener: &ListenerConfig,
    pool: Arc<Pool>,
    (memory, temporary): (Arc<Memory>, PathBuf),
) -> Arc<Context> {
    let tls = service.certificates.as_ref().filter(|_| listener.tls != ListenerTls::None);
    Arc::new(Context {
        ownership: Arc::clone(&service.ownership),
        lifecycle: service.lifecycle.clone(),
        rules: service.config.mx.clone(),
        tls: tls.map(|certificates| certificates.server_config()),
        implicit_tls: listener.tls == ListenerTls::Implicit,
        ask_timeout: LONGEST_ASK,
        pool,
        memory,
        temporary,
    })
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
