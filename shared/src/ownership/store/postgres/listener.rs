//! LISTEN: wakes the feed when a change is committed. Nothing depends on it but time.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::StoreError;
use super::session::{Connections, PATIENCE};

/// The channel on which the table's triggers tell of changes.
const CHANNEL: &str = "mailshift";
/// How often a listener proves that notifications come through.
const PROVE_EVERY: Duration = Duration::from_mins(1);
/// Longest wait for the proof, and between attempts to listen again.
const PROVE_WITHIN: Duration = Duration::from_secs(3);

/// Waits for notifications on a connection of its own, while it is asked ([`Listener::told`]).
pub struct Listener {
    heard: Arc<Notify>,
    listening: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Listener {
    pub(super) fn new(connections: Arc<Connections>, listening: Arc<AtomicBool>) -> Self {
        let heard = Arc::new(Notify::new());
        let listening = Box::pin(listen(connections, Arc::clone(&heard), listening));
        Self { heard, listening }
    }

    pub(in super::super) async fn told(&mut self) {
        tokio::select! {
            () = self.heard.notified() => {}
            () = &mut self.listening => {}
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

/// Listens for ever, on a new connection when one is lost. Each gap ends with a wake-up, because what
/// was said in it was not heard.
async fn listen(connections: Arc<Connections>, heard: Arc<Notify>, listening: Arc<AtomicBool>) {
    loop {
        if let Err(error) = listen_once(&connections, &heard, &listening).await
            && listening.swap(false, Ordering::Relaxed)
        {
            tracing::warn!(%error, "notifications lost; changes are found by polling");
        }
        heard.notify_one();
        sleep(PROVE_WITHIN).await;
    }
}

async fn listen_once(
    connections: &Connections,
    heard: &Notify,
    listening: &AtomicBool,
) -> Result<(), StoreError> {
    let direct = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(connections.direct());
    // A pooler may swallow what we listen for; so talk to ourselves, on a channel nobody else has.
    let own = format!("mailshift_{}", uuid::Uuid::new_v4().simple());
    let connected = async {
        let mut listener = PgListener::connect_with(&direct).await?;
        listener.listen_all([CHANNEL, own.as_str()]).await?;
        Ok(listener)
    };
    let mut listener = in_time(PATIENCE, connected).await?;
    loop {
        in_time(PROVE_WITHIN, prove(&mut listener, connections, &own, heard)).await?;
        if !listening.swap(true, Ordering::Relaxed) {
            tracing::info!("notifications come through");
            heard.notify_one();
        }
        let quiet = async {
            while let Some(told) = listener.try_recv().await? {
                if told.channel() == CHANNEL {
                    heard.notify_one();
                }
            }
            Err::<(), _>(StoreError::Timeout)
        };
        if let Ok(lost) = timeout(PROVE_EVERY, quiet).await {
            return lost;
        }
    }
}

/// Says a word and waits for it to come back.
async fn prove(
    listener: &mut PgListener,
    connections: &Connections,
    own: &str,
    heard: &Notify,
) -> Result<(), StoreError> {
    let mut session = connections.session().await?;
    sqlx::query("SELECT pg_notify($1, '')")
        .bind(own)
        .persistent(connections.keep_statements())
        .execute(session.connection())
        .await?;
    session.end().await?;
    while let Some(told) = listener.try_recv().await? {
        if told.channel() == own {
            return Ok(());
        }
        heard.notify_one();
    }
    Err(StoreError::Timeout)
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, work).await.unwrap_or(Err(StoreError::Timeout))
}
