//! Asking the backends what they can: at start, and now and then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use shared::backend::{Backend, Backends, Endpoint, LoginProtocol};
use shared::config::Advertised;
use shared::lifecycle::Lifecycle;
use shared::probe::{self, AGAIN, EVERY};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{CurrentOffer, Offer};
use crate::backend::{Abilities, AttachError};
use crate::protocol::Protocol;

/// How long clients wait at start for the first answers, rather than be told less than there is.
const AT_START: Duration = Duration::from_secs(2);

/// What is offered in each protocol.
#[derive(Debug)]
pub struct Offers {
    current: BTreeMap<LoginProtocol, Arc<CurrentOffer>>,
    /// Has a message for each backend that has answered, or has not, for the first time.
    first: mpsc::Receiver<()>,
    expected: usize,
}

/// What the backends have said in one protocol.
struct Said {
    protocol: &'static Protocol,
    advertised: Advertised,
    backends: Mutex<BTreeMap<Box<str>, Abilities>>,
    current: Arc<CurrentOffer>,
}

/// Asks all backends from now on what they can in these protocols.
pub fn watch(
    lifecycle: &Lifecycle,
    backends: &Backends,
    advertised: &Advertised,
    protocols: impl IntoIterator<Item = &'static Protocol>,
) -> Offers {
    let (answered, first) = mpsc::channel(1);
    let mut offers = Offers { current: BTreeMap::new(), first, expected: 0 };
    for protocol in protocols {
        if offers.current.contains_key(&protocol.kind) {
            continue;
        }
        let modest = configured((protocol.modest)(), protocol.kind, advertised);
        let current = Arc::new(ArcSwap::from_pointee(modest));
        offers.current.insert(protocol.kind, Arc::clone(&current));
        let said = Arc::new(Said {
            protocol,
            advertised: advertised.clone(),
            backends: Mutex::default(),
            current,
        });
        for backend in backends.iter().filter(|backend| backend.login(protocol.kind).is_some()) {
            offers.expected = offers.expected.saturating_add(1);
            let (said, backend) = (Arc::clone(&said), Arc::clone(backend));
            let (answered, stop) = (answered.clone(), lifecycle.stop().clone());
            lifecycle.spawn_chore("probe", async move {
                tokio::select! {
                    () = said.ask_on(&backend, answered) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }
    offers
}

impl Offers {
    /// What is offered in `protocol`.
    pub fn of(&self, protocol: &Protocol) -> Arc<CurrentOffer> {
        let current = self.current.get(&protocol.kind).map(Arc::clone);
        current.unwrap_or_else(|| Arc::new(ArcSwap::from_pointee((protocol.modest)())))
    }

    /// Waits for the first answers, but not for long.
    pub async fn known(mut self) {
        let all = async {
            for _ in 0..self.expected {
                self.first.recv().await;
            }
        };
        // Who has not answered by then does not count yet.
        let _ = timeout(AT_START, all).await;
    }
}

impl Said {
    async fn ask_on(&self, backend: &Backend, answered: mpsc::Sender<()>) {
        let Some(endpoint) = backend.login(self.protocol.kind) else { return };
        let mut answered = Some(answered);
        let mut was_away = false;
        loop {
            let (name, protocol) = (&backend.name, self.protocol.kind);
            let pause = match self.ask(endpoint).await {
                Ok(abilities) => {
                    was_away = false;
                    self.note(backend, abilities);
                    EVERY
                }
                Err(error) => {
                    if !std::mem::replace(&mut was_away, true) {
                        tracing::warn!(
                            backend = %name, %protocol, %error,
                            "the backend does not say what it can; what it said before counts, if it ever did"
                        );
                    }
                    AGAIN
                }
            };
            if let Some(answered) = answered.take() {
                let _ = answered.send(()).await;
            }
            probe::rest(endpoint, pause).await;
        }
    }

    /// The abilities, as [`probe::ask`] finds them.
    async fn ask(&self, endpoint: &Endpoint) -> Result<Abilities, AttachError> {
        let asks = self.protocol.probe;
        probe::ask(endpoint, |address, until| async move { asks(&address, until).await }).await
    }

    /// Notes what a backend says; what changes by it is offered from the next connection on.
    fn note(&self, backend: &Backend, abilities: Abilities) {
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        let known = backends.get(backend.name.as_str());
        if known == Some(&abilities) {
            return;
        }
        tracing::info!(
            backend = %backend.name, protocol = %self.protocol.kind,
            capabilities = abilities.capabilities.join(", "), mechanisms = ?abilities.mechanisms,
            "what the backend can"
        );
        if abilities.believes_us == Some(false)
            && known.is_none_or(|k| k.believes_us != Some(false))
        {
            tracing::warn!(
                backend = %backend.name, protocol = %self.protocol.kind,
                "the backend takes no client's address from us, so it takes us for every client: name \
                 this host in its login_trusted_networks or smtpd_authorized_xclient_hosts, or set \
                 another identity for it"
            );
        }
        if abilities.mechanisms.is_empty() {
            tracing::warn!(
                backend = %backend.name, protocol = %self.protocol.kind,
                "the backend takes neither passwords nor tokens on such a connection, so nobody can log \
                 in to it: does it want TLS (`tls` of this endpoint)?"
            );
        }
        backends.insert(backend.name.as_str().into(), abilities);
        let all: Vec<_> = backends.values().cloned().collect();
        let offer = (self.protocol.merge)(&all);
        self.current.store(Arc::new(configured(offer, self.protocol.kind, &self.advertised)));
    }
}

/// What is configured wins.
fn configured(offer: Offer, kind: LoginProtocol, advertised: &Advertised) -> Offer {
    Offer {
        capabilities: advertised.of(kind).map_or(offer.capabilities, Into::into),
        mechanisms: advertised.mechanisms.unwrap_or(offer.mechanisms),
    }
}
