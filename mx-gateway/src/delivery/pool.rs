//! Connections to owners: how many at once, and those that are kept for the next message.
//!
//! Kept are those on which no client was named: the owner takes all that follows XCLIENT or a PROXY header
//! for that client's. A kept connection is looked at before it is used; what the owner said meanwhile ends
//! it.
//!
//! Where XCLIENT is said, connections are greeted ahead of their use instead, and wait for a client to be
//! named. A PROXY header is the first thing that is said, so only TCP could go ahead of it, and servers wait
//! for the header for a few seconds (Postfix 5, Dovecot 3): there, nothing is done ahead.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::backend::{Backend, BackendName, Identity, MailEndpoint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::{Connection, DeliveryError, Offers};

/// How long a connection is kept without use. Servers wait longer (RFC 5321 §4.5.3.2.7: 5 minutes).
const IDLE: Duration = Duration::from_secs(20);
/// Connections kept to one owner.
const MOST_KEPT: usize = 50;

/// All connections, by backend.
#[derive(Debug, Default)]
pub struct Pool {
    backends: Mutex<HashMap<BackendName, Arc<Connections>>>,
}

/// One backend's connections.
#[derive(Debug)]
struct Connections {
    kept: Mutex<Vec<(Connection, Instant)>>,
    /// For each connection that may be made besides those that there are.
    seats: Arc<Semaphore>,
    /// One more is kept.
    returned: Notify,
    /// How many wait for one.
    waiting: AtomicUsize,
    /// Held by the one who greets connections ahead of their use.
    warming: tokio::sync::Mutex<()>,
}

/// A connection, or leave to make one.
#[expect(clippy::large_enum_variant, reason = "taken apart at once")]
#[derive(Debug)]
pub(super) enum Obtained {
    /// It was kept, and can be used.
    Kept(Connection),
    /// A new one may be made, to be occupied by this.
    Seat(OwnedSemaphorePermit),
}

impl Pool {
    /// A connection that was kept, if there is one that can be used; or leave to make one, as soon as there
    /// are fewer than `mail` allows.
    ///
    /// # Errors
    ///
    /// [`DeliveryError::Busy`] after `patience`.
    pub(super) async fn obtain(
        &self,
        backend: &BackendName,
        mail: &MailEndpoint,
        patience: Duration,
    ) -> Result<Obtained, DeliveryError> {
        let connections = self.of(backend, mail);
        if let Some(kept) = connections.take() {
            return Ok(Obtained::Kept(kept));
        }
        let _waiting = Waiting::of(&connections);
        let obtained = async {
            loop {
                if let Some(kept) = connections.take() {
                    return Ok(Obtained::Kept(kept));
                }
                let seats = Arc::clone(&connections.seats);
                tokio::select! {
                    biased;
                    seat = seats.acquire_owned() => {
                        return seat.map(Obtained::Seat).map_err(|_| DeliveryError::Busy);
                    }
                    () = connections.returned.notified() => {}
                }
            }
        };
        timeout(patience, obtained).await.unwrap_or(Err(DeliveryError::Busy))
    }

    /// Leave to make a connection, although others may be kept: one of those goes where there are too many.
    ///
    /// # Errors
    ///
    /// As [`Self::obtain`].
    pub(super) async fn seat(
        &self,
        backend: &BackendName,
        mail: &MailEndpoint,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit, DeliveryError> {
        if let Ok(seat) = Arc::clone(&self.of(backend, mail).seats).try_acquire_owned() {
            return Ok(seat);
        }
        loop {
            match self.obtain(backend, mail, patience).await? {
                Obtained::Kept(connection) => connection.quit().await,
                Obtained::Seat(seat) => return Ok(seat),
            }
        }
    }

    /// True when somebody waits for a connection to a backend: all that are allowed are in use.
    pub(crate) fn is_wanted(&self, backend: &BackendName) -> bool {
        let backends = self.lock();
        backends.get(backend).is_some_and(|one| one.waiting.load(Ordering::Relaxed) > 0)
    }

    /// Keeps a connection on which no transaction is open; returns it when it cannot be used again or
    /// there are enough.
    pub fn keep(&self, owner: &BackendName, mut connection: Connection) -> Option<Connection> {
        let Some(connections) = self.lock().get(owner).map(Arc::clone) else {
            return Some(connection);
        };
        if !connection.is_reusable() {
            return Some(connection);
        }
        let mut kept = connections.kept();
        if kept.len() >= MOST_KEPT {
            return Some(connection);
        }
        kept.push((connection, Instant::now()));
        drop(kept);
        connections.returned.notify_one();
        None
    }

    /// Takes out the connections that were kept too long.
    pub fn expired(&self) -> Vec<Connection> {
        let all: Vec<_> = self.lock().values().map(Arc::clone).collect();
        let mut expired = Vec::new();
        for connections in all {
            let mut kept = connections.kept();
            let old = kept.iter().take_while(|(_, since)| since.elapsed() >= IDLE).count();
            expired.extend(kept.drain(..old).map(|(connection, _)| connection));
        }
        expired
    }

    /// True when fewer connections wait for a client than should.
    pub(super) fn is_cold(&self, backend: &BackendName, mail: &MailEndpoint) -> bool {
        mail.endpoint.identity == Identity::Xclient
            && self.of(backend, mail).kept().len() < mail.warm
    }

    /// Greets connections ahead of their use, until as many wait as should. Whatever fails here is found by
    /// the next delivery, too, so it is not told.
    pub(super) async fn warm(&self, backend: &Backend, hostname: &str, offers: &Offers) {
        let Some(mail) = &backend.mail else { return };
        let connections = self.of(&backend.name, mail);
        let Ok(_warming) = connections.warming.try_lock() else { return };
        while self.is_cold(&backend.name, mail) {
            let seat = Arc::clone(&connections.seats).try_acquire_owned();
            let (Ok(seat), Ok(mut connection)) =
                (seat, Connection::open(mail, hostname, None).await)
            else {
                return;
            };
            connection.occupy(seat);
            offers.note(backend, connection.offered());
            if let Some(unused) = self.keep(&backend.name, connection) {
                return unused.quit().await;
            }
        }
    }

    fn of(&self, backend: &BackendName, mail: &MailEndpoint) -> Arc<Connections> {
        let mut backends = self.lock();
        let connections = backends.entry(backend.clone()).or_insert_with(|| {
            Arc::new(Connections {
                kept: Mutex::default(),
                seats: Arc::new(Semaphore::new(mail.max_connections)),
                returned: Notify::new(),
                waiting: AtomicUsize::new(0),
                warming: tokio::sync::Mutex::default(),
            })
        });
        Arc::clone(connections)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BackendName, Arc<Connections>>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn of(connections: &'a Connections) -> Self {
        connections.waiting.fetch_add(1, Ordering::Relaxed);
        Self(&connections.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// The youngest one that can be used, so that the others grow old.
    fn take(&self) -> Option<Connection> {
        loop {
            let (mut connection, since) = self.kept().pop()?;
            if since.elapsed() < IDLE && connection.is_reusable() {
                return Some(connection);
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
