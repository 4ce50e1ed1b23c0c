//! Puts the parts together: a listener and a context for each configured port.

use std::sync::Arc;

use shared::backend::Backend;
use shared::config::{Config, ListenerConfig, ListenerTls};
use shared::listener::Listener;
use shared::service::{self, Service, ServiceError};

use crate::login::{Context, Shared, serve};
use crate::offer::{self, CurrentOffer};
use crate::protocol::{self, Protocol};

/// Runs the login proxy until it is told to stop.
///
/// # Errors
///
/// A [`ServiceError`] when it cannot start.
pub async fn run(config: Config) -> Result<(), ServiceError> {
    service::run("login-proxy", config, |service| {
        if let Some(missing) = idle(&service.config) {
            return Err(ServiceError::Idle(missing));
        }
        complain(&service.config);
        let mut bound = Vec::new();
        for configured in &service.config.login.listeners {
            let listener = Listener::bind(&configured.listener)?;
            bound.push((protocol::of(configured.protocol), configured.listener.clone(), listener));
        }
        let service = service.clone();
        Ok(move || listen(&service, bound))
    })
    .await
}

/// Says which owners' users will be refused because nobody has said where their backend speaks a protocol.
fn complain(config: &Config) {
    for listener in &config.login.listeners {
        let without = |backend: &&Arc<Backend>| backend.login(listener.protocol).is_none();
        for backend in config.backends.iter().filter(without) {
            tracing::warn!(
                backend = %backend.name, protocol = %listener.protocol,
                "the backend has no endpoint for it, so its users cannot log in by it"
            );
        }
    }
}

/// Serves clients as soon as the backends have said what they can, or have had time to.
fn listen(service: &Service, bound: Vec<(&'static Protocol, ListenerConfig, Listener)>) {
    let protocols = bound.iter().map(|(protocol, ..)| *protocol);
    let (config, lifecycle) = (&service.config, service.lifecycle.clone());
    let offers = offer::watch(&lifecycle, &config.backends, &config.login.advertised, protocols);
    let shared = Shared::new(&config.login);
    let bound: Vec<_> = bound
        .into_iter()
        .map(|(protocol, configured, listener)| {
            let offer = offers.of(protocol);
            (context(service, &configured, protocol, offer, shared.clone()), listener)
        })
        .collect();
    service.lifecycle.spawn("start", async move {
        offers.known().await;
        for (cx, listener) in bound {
            let (addresses, full) = (listener.addresses(), cx.protocol.full);
            tracing::info!(protocol = %cx.protocol.kind, ?addresses, "listening");
            listener.serve(&lifecycle, full, move |accepted| serve(Arc::clone(&cx), accepted));
        }
    });
}

/// What is to be configured where there would be nothing to do.
pub fn idle(config: &Config) -> Option<&'static str> {
    const NOTHING: &str = "set login.imaps.listen, or that of another protocol";
    config.login.listeners.is_empty().then_some(NOTHING)
}

/// What the connections of one listener work with.
pub fn context(
    service: &Service,
    listener: &ListenerConfig,
    protocol: &'static Protocol,
    offer: Arc<CurrentOffer>,
    shared: Shared,
) -> Arc<Context> {
    let tls = service.certificates.as_ref().filter(|_| listener.tls != ListenerTls::None);
    Arc::new(Context {
        ownership: Arc::clone(&service.ownership),
        shared,
        lifecycle: service.lifecycle.clone(),
        rules: service.config.login.clone(),
        names: service.config.names.clone(),
        tls: tls.map(|certificates| certificates.server_config()),
        implicit_tls: listener.tls == ListenerTls::Implicit,
        protocol,
        offer,
    })
}
