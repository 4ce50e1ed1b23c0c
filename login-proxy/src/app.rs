//! Puts the parts together: a listener and a context for each configured port.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use shared::backend::Backend;
use shared::config::{Config, ListenerConfig, ListenerTls};
use shared::lifecycle::Lifecycle;
use shared::listener::Listener;
use shared::service::{Program, Service, ServiceError};

use crate::login::{Context, Shared, serve};
use crate::offer::{self, CurrentOffer, Offers};
use crate::protocol::{self, Protocol};
use crate::web;

/// The login proxy.
#[derive(Debug)]
pub struct Proxy {
    lifecycle: Lifecycle,
    /// What all logins have in common.
    shared: Shared,
    bound: Vec<Bound>,
    /// Listeners of HTTP.
    web: Vec<WebBound>,
    /// What they have in common.
    common: web::Common,
    /// Backends are asked by it what they can.
    asking: Mutex<Lifecycle>,
    /// Until they have said so for the first time.
    first: Mutex<Option<Offers>>,
}

/// A listener, and what its logins from now on work with.
#[derive(Debug)]
struct Bound {
    key: Box<str>,
    protocol: &'static Protocol,
    /// As it was bound.
    configured: ListenerConfig,
    listener: Listener,
    context: Arc<ArcSwap<Context>>,
}

/// A listener of HTTP, and what its requests from now on work with.
#[derive(Debug)]
struct WebBound {
    key: Box<str>,
    configured: ListenerConfig,
    listener: Listener,
    context: Arc<ArcSwap<web::Context>>,
}

impl Program for Proxy {
    const NAME: &'static str = "login-proxy";

    fn idle(config: &Config) -> Option<&'static str> {
        const NOTHING: &str = "set login.imaps.listen, or that of another protocol";
        let login = &config.login;
        (login.listeners.is_empty() && login.web_listeners.is_empty()).then_some(NOTHING)
    }

    async fn bind(service: &Service) -> Result<Self, ServiceError> {
        let config = service.config();
        if let Some(missing) = Self::idle(&config) {
            return Err(ServiceError::Idle(missing));
        }
        complain(&config);
        let mut listeners = Vec::new();
        for configured in &config.login.listeners {
            let listener = Listener::bind_among(&configured.listener, &service.sockets)?;
            listeners.push((configured, protocol::of(configured.protocol), listener));
        }
        let mut web_listeners = Vec::new();
        for configured in &config.login.web_listeners {
            let listener = Listener::bind_among(&configured.listener, &service.sockets)?;
            web_listeners.push((configured, listener));
        }
        let protocols = listeners.iter().map(|(_, protocol, _)| *protocol);
        let (asking, offers) = ask(&service.lifecycle, &config, protocols);
        let shared = Shared::new(&config.login);
        let bound = listeners.into_iter().map(|(configured, protocol, listener)| {
            let offer = offers.of(protocol);
            let context =
                context(service, &config, &configured.listener, protocol, offer, shared.clone());
            Bound {
                key: configured.key.clone(),
                protocol,
                configured: configured.listener.clone(),
                listener,
                context: Arc::new(ArcSwap::new(context)),
            }
        });
        let bound = bound.collect();
        let common = web::Common::new(&service.lifecycle);
        let web = web_listeners.into_iter().map(|(configured, listener)| {
            let context =
                web_context(service, &config, &configured.listener, &shared, common.clone());
            WebBound {
                key: configured.key.clone(),
                configured: configured.listener.clone(),
                listener,
                context: Arc::new(ArcSwap::new(context)),
            }
        });
        Ok(Self {
            bound,
            web: web.collect(),
            common,
            lifecycle: service.lifecycle.clone(),
            shared,
            asking: Mutex::new(asking),
            first: Mutex::new(Some(offers)),
        })
    }

    /// Waits until the backends have said what they can, or have had time to.
    async fn prepare(&self) {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(offers) = first {
            offers.known().await;
        }
    }

    fn serve(&self) {
        for Bound { protocol, listener, context, .. } in &self.bound {
            let (addresses, context) = (listener.addresses(), Arc::clone(context));
            tracing::info!(protocol = %protocol.kind, ?addresses, "listening");
            listener.serve(&self.lifecycle, protocol.full, move |accepted| {
                serve(context.load_full(), accepted)
            });
        }
        for WebBound { listener, context, .. } in &self.web {
            let (addresses, context) = (listener.addresses(), Arc::clone(context));
            tracing::info!(protocol = "http", ?addresses, "listening");
            listener.serve(&self.lifecycle, web::full, move |accepted| {
                web::serve(Arc::clone(&context), accepted)
            });
        }
    }

    async fn reload(&self, service: &Service, config: &Arc<Config>) {
        complain(config);
        let protocols = self.bound.iter().map(|bound| bound.protocol);
        let (asking, offers) = ask(&self.lifecycle, config, protocols);
        let new: Vec<_> = self.bound.iter().map(|bound| offers.of(bound.protocol)).collect();
        // Clients are offered what was known before until all is known that was known then.
        offers.known().await;
        self.shared.limit(&config.login);
        for (bound, offer) in self.bound.iter().zip(new) {
            let Bound { key, protocol, configured, listener, context: current } = bound;
            let shared = self.shared.clone();
            current.store(context(service, config, configured, protocol, offer, shared));
            let changed = config.login.listeners.iter().find(|listener| listener.key == *key);
            if let Some(changed) = changed {
                listener.reload(&changed.listener);
            }
        }
        for WebBound { key, configured, listener, context } in &self.web {
            let common = self.common.clone();
            context.store(web_context(service, config, configured, &self.shared, common));
            let changed = config.login.web_listeners.iter().find(|web| web.key == *key);
            if let Some(changed) = changed {
                listener.reload(&changed.listener);
            }
        }
        let mut current = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, asking).stop().cancel();
    }
}

/// Asks the backends of a configuration what they can, until what is returned is stopped.
fn ask(
    lifecycle: &Lifecycle,
    config: &Config,
    protocols: impl Iterator<Item = &'static Protocol>,
) -> (Lifecycle, Offers) {
    let asking = lifecycle.branch();
    let offers = offer::watch(&asking, &config.backends, &config.login.advertised, protocols);
    (asking, offers)
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

/// What the connections of one listener work with.
fn context(
    service: &Service,
    config: &Config,
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
        rules: config.login.clone(),
        names: config.names.clone(),
        tls: tls.map(|certificates| certificates.server_config()),
        implicit_tls: listener.tls == ListenerTls::Implicit,
        protocol,
        offer,
    })
}

/// What the requests of one HTTP listener work with.
fn web_context(
    service: &Service,
    config: &Config,
    listener: &ListenerConfig,
    shared: &Shared,
    common: web::Common,
) -> Arc<web::Context> {
    let tls = service.certificates.as_ref().filter(|_| listener.tls == ListenerTls::Implicit);
    Arc::new(web::Context {
        ownership: Arc::clone(&service.ownership),
        shared: shared.clone(),
        lifecycle: service.lifecycle.clone(),
        rules: config.login.clone(),
        names: config.names.clone(),
        tls: tls.map(|certificates| web::with_alpn(&certificates.server_config())),
        via: web::pseudonym(&config.node.name),
        published: web::published(config),
        common,
    })
}
