//! Puts the parts together: a listener and a context for each configured port.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use shared::backend::Backend;
use shared::config::{Config, ListenerConfig, ListenerTls};
use shared::credentials::Credentials;
use shared::listener::Listener;
use shared::service::{self, Service, ServiceError};
use tokio::time::Instant;

use crate::backend::{self, AttachError, Attached, Client};
use crate::front::imap::{ImapFront, farewell_words};
use crate::login::{Context, Protocol, serve};
use crate::refusal::Farewell;

/// Logs in to a backend, for one protocol.
pub type Attach =
    for<'a> fn(
        &'a Backend,
        &'a Credentials,
        Client<'a>,
        Instant,
    ) -> Pin<Box<dyn Future<Output = Result<Attached, AttachError>> + Send + 'a>>;

/// IMAP.
pub static IMAP: Protocol = Protocol {
    name: "imap",
    front: |terms| Box::new(ImapFront::new(terms)),
    capabilities: |rules| &rules.imap_capabilities,
    full: |_| farewell_words(Farewell::TooManyConnections).into(),
    attach: |backend, credentials, client, until| {
        Box::pin(async move {
            let Some(endpoint) = &backend.imap else {
                let backend = backend.name.as_str().into();
                return Err(AttachError::NoEndpoint { backend, protocol: "imap" });
            };
            backend::imap::log_in(endpoint, credentials, client, until).await
        })
    },
};

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
        let mut bound = Vec::new();
        for listener in &service.config.login.imap {
            bound.push((context(service, listener, &IMAP), Listener::bind(listener)?));
        }
        let lifecycle = service.lifecycle.clone();
        Ok(move || {
            for (cx, listener) in bound {
                let (addresses, full) = (listener.addresses(), cx.protocol.full);
                tracing::info!(protocol = cx.protocol.name, ?addresses, "listening");
                listener.serve(&lifecycle, full, move |accepted| serve(Arc::clone(&cx), accepted));
            }
        })
    })
    .await
}

/// What is to be configured where there would be nothing to do.
pub fn idle(config: &Config) -> Option<&'static str> {
    config.login.imap.is_empty().then_some("set login.imap.listen or login.imaps.listen")
}

/// What the connections of one listener work with.
pub fn context(
    service: &Service,
    listener: &ListenerConfig,
    protocol: &'static Protocol,
) -> Arc<Context> {
    let tls = service.certificates.as_ref().filter(|_| listener.tls != ListenerTls::None);
    Arc::new(Context {
        ownership: Arc::clone(&service.ownership),
        lifecycle: service.lifecycle.clone(),
        rules: service.config.login.clone(),
        tls: tls.map(|certificates| certificates.server_config()),
        implicit_tls: listener.tls == ListenerTls::Implicit,
        protocol,
    })
}
