//! What the owners offer: asked at start and each minute, and heard on every connection (HLT-3).
//!
//! What a client is offered has to be kept by whichever owner gets its message, so it is what all have, and
//! one that has not said anything yet has nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shared::backend::{Backend, BackendName, Backends, Identity, MailEndpoint};
use shared::lifecycle::Lifecycle;
use shared::probe::{self, AGAIN, EVERY};
use shared::smtp::ehlo::Extensions;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Connection, DeliveryError};

/// How long clients wait at start for the first answers, rather than be offered less than there is.
const AT_START: Duration = Duration::from_secs(2);

/// What each backend with a mail endpoint offered last; `None` before it said anything.
#[derive(Debug)]
pub struct Offers {
    backends: Mutex<BTreeMap<BackendName, Option<Extensions>>>,
    /// Largest message in octets that clients may send.
    max_message_size: u64,
}

/// Ends when each backend has answered, or has not, for the first time.
#[derive(Debug)]
pub struct FirstAnswers(mpsc::Receiver<()>);

impl Offers {
    /// Nothing is known of these backends yet.
    pub fn new(backends: &Backends, max_message_size: u64) -> Arc<Self> {
        let with_mail = backends.iter().filter(|backend| backend.mail.is_some());
        let unknown = with_mail.map(|backend| (backend.name.clone(), None)).collect();
        Arc::new(Self { backends: Mutex::new(unknown), max_message_size })
    }

    /// True when every backend takes the parameters of DSN (RFC 3461).
    pub fn all_have_dsn(&self) -> bool {
        self.all_have(|offered| offered.dsn)
    }

    /// True when every backend takes SMTPUTF8 (RFC 6531).
    pub fn all_have_smtputf8(&self) -> bool {
        self.all_have(|offered| offered.smtputf8)
    }

    fn all_have(&self, what: impl Fn(&Extensions) -> bool) -> bool {
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        !backends.is_empty() && backends.values().all(|said| said.as_ref().is_some_and(&what))
    }

    /// What a backend offered last, if it ever said.
    pub fn of(&self, backend: &BackendName) -> Option<Extensions> {
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        backends.get(backend).cloned().flatten()
    }

    /// Notes what a backend offers, on a connection on which no client was named: to one, it may offer
    /// something else.
    pub fn note(&self, backend: &Backend, offered: &Extensions) {
        let before = {
            let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(known) = backends.get_mut(&backend.name) else { return };
            if known.as_ref() == Some(offered) {
                return;
            }
            known.replace(offered.clone())
        };
        tracing::info!(backend = %backend.name, ?offered, "what the backend offers for mail");
        let complaints = complaints(backend, offered, self.max_message_size);
        let told = before.map(|before| self::complaints(backend, &before, self.max_message_size));
        for complaint in complaints {
            if told.as_ref().is_none_or(|told| !told.contains(&complaint)) {
                tracing::warn!(backend = %backend.name, "{complaint}");
            }
        }
    }

    /// Asks every backend from now on what it offers, until `asking` is stopped.
    pub fn watch(
        self: &Arc<Self>,
        asking: &Lifecycle,
        backends: &Backends,
        hostname: &str,
    ) -> FirstAnswers {
        let (answered, first) = mpsc::channel(1);
        for backend in backends.iter() {
            let Some(mail) = backend.mail.clone() else { continue };
            let (offers, backend) = (Arc::clone(self), Arc::clone(backend));
            let (answered, hostname) = (answered.clone(), Box::from(hostname));
            let stop = asking.stop().clone();
            asking.spawn_chore("probe", async move {
                let asked = offers.ask_on(&backend, &mail, hostname, answered);
                stop.run_until_cancelled(asked).await;
            });
        }
        FirstAnswers(first)
    }

    async fn ask_on(
        &self,
        backend: &Backend,
        mail: &MailEndpoint,
        hostname: Box<str>,
        answered: mpsc::Sender<()>,
    ) {
        let mut answered = Some(answered);
        let mut was_away = false;
        loop {
            let probe =
                |endpoint, _| ask(MailEndpoint { endpoint, ..mail.clone() }, hostname.clone());
            let pause = match probe::ask(&mail.endpoint, probe).await {
                Ok(offered) => {
                    was_away = false;
                    self.note(backend, &offered);
                    EVERY
                }
                Err(error) => {
                    if !std::mem::replace(&mut was_away, true) {
                        tracing::warn!(
                            backend = %backend.name, %error,
                            "the backend does not say what it offers for mail; what it said before counts, \
                             if it ever did"
                        );
                    }
                    AGAIN
                }
            };
            answered.take();
            probe::rest(&mail.endpoint, pause).await;
        }
    }
}

impl FirstAnswers {
    /// Waits for the first answers, but not for long.
    pub async fn known(mut self) {
        // Closed when the last one is there. Who has not answered by then has nothing yet.
        let _ = timeout(AT_START, self.0.recv()).await;
    }
}

/// What one address offers, without a client and without a transaction.
async fn ask(mail: MailEndpoint, hostname: Box<str>) -> Result<Extensions, DeliveryError> {
    let connection = Connection::open(&mail, &hostname, None).await?;
    let offered = connection.offered().clone();
    connection.quit().await;
    Ok(offered)
}

/// What an operator should mend.
fn complaints(backend: &Backend, offered: &Extensions, max_message_size: u64) -> Vec<String> {
    let mut complaints = Vec::new();
    if !offered.eight_bit {
        complaints.push(
            "the backend does not offer 8BITMIME: it gets 8-bit mail all the same".to_owned(),
        );
    }
    if offered.is_too_large(max_message_size) {
        complaints.push(format!(
            "the backend takes messages of {} octets, and mx.max_message_size is {max_message_size}: what is \
             larger is refused when its recipient is named, or at its end",
            offered.size
        ));
    }
    let identity = backend.mail.as_ref().map(|mail| mail.endpoint.identity);
    let (word, offers, setting) = match identity {
        Some(Identity::Xclient) => {
            ("XCLIENT", offered.takes_xclient("ADDR"), "smtpd_authorized_xclient_hosts")
        }
        Some(Identity::Xforward) => {
            ("XFORWARD", offered.takes_xforward("ADDR"), "smtpd_authorized_xforward_hosts")
        }
        Some(
            Identity::None
            | Identity::DovecotId
            | Identity::Proxy
            | Identity::ProxyV1
            | Identity::Forwarded,
        )
        | None => {
            return complaints;
        }
    };
    if !offers {
        complaints.push(format!(
            "the backend offers no {word} to us, so it takes us for every client: name this host in its \
             {setting} or login_trusted_networks, or set another identity for it"
        ));
    }
    complaints
}

#[cfg(test)]
mod tests {
    use shared::backend::{Endpoint, Host, MailProtocol};

    use super::*;

    fn complained(identity: Identity, keywords: &[&str]) -> String {
        let mut endpoint = Endpoint::plain(Host::new("127.0.0.1", 25));
        endpoint.identity = identity;
        let mut backend = Backend::new(BackendName::parse("old").unwrap());
        backend.mail = Some(MailEndpoint::new(endpoint, MailProtocol::Smtp));
        let mut offered = Extensions::default();
        for line in keywords {
            offered.add(line);
        }
        complaints(&backend, &offered, 1000).join("\n")
    }

    #[test]
    fn what_an_operator_should_mend_is_named() {
        assert_eq!(complained(Identity::None, &["8BITMIME", "SIZE 1000"]), "");
        assert!(complained(Identity::None, &["SIZE"]).contains("8BITMIME"));
        assert!(complained(Identity::None, &["8BITMIME", "SIZE 999"]).contains("999 octets"));
        let both = ["8BITMIME", "XCLIENT ADDR", "XFORWARD ADDR"];
        for (identity, word) in [(Identity::Xclient, "XCLIENT"), (Identity::Xforward, "XFORWARD")] {
            assert!(complained(identity, &["8BITMIME"]).contains(word));
            assert_eq!(complained(identity, &both), "");
        }
    }
}
