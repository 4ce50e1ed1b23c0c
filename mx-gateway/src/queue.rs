//! What could not be delivered at once (SPL-2, SPL-4): messages in the spool, tried again and again until they
//! are delivered, refused for good, or too old.
//!
//! The owner is looked up at each try. A message waits for a time, for a backend that can be reached, or for a
//! change of what leads to its account, so a flip, a release and a recovered backend start it at once.
//! [`index`] says when, [`gate`] how fast; [`attempt`] tries one message; [`InHand`] is a message whose client's
//! session still delivers to some recipients.

mod attempt;
mod desk;
mod failure;
pub mod gate;
mod hand;
pub mod index;
mod plan;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use shared::backend::BackendName;
use shared::lifecycle::Lifecycle;
use shared::ownership::spool::Spooled;
use shared::ownership::{Ownership, Watch};
use tokio::sync::Notify;
use tokio::time::sleep_until;

use self::gate::Gate;
pub use self::hand::{Added, InHand};
use self::index::{Id, Index, New, Slot, Target};
use crate::body::Message;
use crate::fingerprint::{self, Fingerprints};
use crate::serve::Context;
use crate::spool::{Envelope, Recipient, Route, Spool, SpoolError, State as Stage, Stored};

/// How long a backend that may have a message is not sent it again: whoever still works on it then has
/// finished, as far as anybody can tell.
const DOUBT_PAUSE: Duration = Duration::from_mins(5);
/// Before a message is tried again that an owner has put off: the first times, and from then on.
const PAUSES: [u64; 6] = [15, 30, 60, 120, 300, 600];
/// How often the spools of processes that have ended are looked for.
const ADOPT_EVERY: Duration = Duration::from_secs(5);

/// The queue.
#[derive(Debug)]
pub struct Queue {
    spool: Spool,
    ownership: Arc<Ownership>,
    lifecycle: Lifecycle,
    state: Mutex<State>,
    /// Told when something may be due.
    wake: Notify,
    rules: ArcSwap<Rules>,
    fingerprints: Arc<Fingerprints>,
}

/// Why a message is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// There is no queue.
    #[error("nothing is kept here")]
    NoQueue,
    /// The spool cannot.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// It was taken out of the queue meanwhile, by an operator.
    #[error("the message was taken out of the queue")]
    Gone,
}

/// What the queue goes by.
#[derive(Debug, Clone)]
pub struct Rules {
    /// A message that is older is given up; time that it was held does not count.
    pub expire: Duration,
    /// Deliveries to one backend at once.
    pub most: u32,
    /// Between the beginnings of two deliveries to one backend; zero: none.
    pub pace: Duration,
    /// The backend by which reports go to senders who are not ours.
    pub report_via: Option<BackendName>,
    /// Our name.
    pub hostname: Box<str>,
}

/// What a message holds: our trace, and the message itself.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// Header fields of ours.
    pub header: &'a str,
    /// The message.
    pub message: &'a Message,
}

#[derive(Debug, Default)]
struct State {
    index: Index,
    gates: HashMap<BackendName, Gate>,
}

impl Queue {
    /// A queue of what a spool has. Fingerprints come with the spools that are taken over.
    pub fn new(
        (spool, fingerprints): (Spool, Arc<Fingerprints>),
        stored: &[Stored],
        rules: Rules,
        ownership: &Arc<Ownership>,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        let queue = Self {
            spool,
            ownership: Arc::clone(ownership),
            lifecycle: lifecycle.clone(),
            state: Mutex::default(),
            wake: Notify::new(),
            rules: ArcSwap::from_pointee(rules),
            fingerprints,
        };
        for stored in stored {
            queue.enter(stored);
        }
        let queue = Arc::new(queue);
        let watch: Weak<dyn Watch> = Arc::downgrade(&queue) as _;
        ownership.watch_changes(watch);
        queue
    }

    /// Takes other rules from now on.
    pub fn set_rules(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
        // What was learned of the backends is forgotten with the old limits.
        self.lock().gates.clear();
        self.wake.notify_one();
    }

    /// The spool.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// What is known of messages that may come again.
    pub fn fingerprints(&self) -> &Arc<Fingerprints> {
        &self.fingerprints
    }

    /// True while the spool can keep a message of so many octets.
    pub fn has_room_for(&self, octets: u64) -> bool {
        self.spool.has_room_for(octets)
    }

    /// Messages in it.
    pub fn len(&self) -> usize {
        self.lock().index.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A backend was seen to answer: what waits for it may go.
    pub fn answers(&self, backend: &BackendName) {
        let mut state = self.lock();
        let Some(gate) = state.gates.get_mut(backend).filter(|gate| gate.is_shut()) else { return };
        let room = gate.answers();
        state.index.admit(backend, room, Instant::now());
        drop(state);
        self.wake.notify_one();
    }

    /// Commits a message for these recipients. Durable when this returns.
    ///
    /// # Errors
    ///
    /// A [`KeepError`]; nothing is kept then.
    pub async fn keep(
        self: &Arc<Self>,
        envelope: Envelope,
        content: Content<'_>,
        added: Vec<Added>,
    ) -> Result<InHand, KeepError> {
        let recipients: Vec<Recipient> =
            added.iter().map(|added| added.recipient.clone()).collect();
        let Content { header, message } = content;
        self.spool.commit(&envelope, &recipients, header, message).await?;
        let (recipients, at) = (added.iter().map(Added::slot).collect(), Added::first_try(&added));
        let (came, expires) =
            (seconds(envelope.arrived), self.expiry(envelope.arrived, Duration::ZERO));
        let new = New { recipients, open: true, came, expires };
        self.lock().index.insert(&envelope.id, new, at);
        self.wake.notify_one();
        Ok(InHand::new(self, envelope.id))
    }

    /// Tries what is due until the service stops. `others` are the spools that other processes of this
    /// service may leave behind.
    pub async fn run(self: Arc<Self>, contexts: Arc<ArcSwap<Context>>, others: Vec<PathBuf>) {
        let mut adopt = tokio::time::interval(ADOPT_EVERY);
        loop {
            let next = self.start_due(&contexts);
            self.tell_size();
            let timer = async {
                match next {
                    Some(next) => sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.lifecycle.draining().cancelled() => return,
                () = self.wake.notified() => {}
                () = timer => {}
                _ = adopt.tick() => self.adopt_ended(&others).await,
            }
        }
    }

    /// Begins what is due; when something is due next.
    fn start_due(self: &Arc<Self>, contexts: &ArcSwap<Context>) -> Option<Instant> {
        let cx = contexts.load_full();
        let now = Instant::now();
        let mut state = self.lock();
        loop {
            let trial = state.admit_trials(now);
            let Some(id) = state.index.take_due(now) else {
                return [state.index.next(), trial].into_iter().flatten().min();
            };
            if let Some(plan) = self.plan(&mut state, &cx, &id, now) {
                let (queue, cx) = (Arc::clone(self), Arc::clone(&cx));
                cx.lifecycle.clone().spawn("attempt", attempt::run(queue, cx, id, plan));
            }
        }
    }

    /// Takes a message with which nothing is left to be done out of the spool.
    async fn clear(&self, id: &str) {
        let dead = self.lock().index.has_dead(id);
        let cleared = if dead {
            self.spool.bury(id, &[]).await.map(drop)
        } else {
            self.spool.remove(id).await
        };
        match cleared {
            Ok(()) | Err(SpoolError::Unknown(_)) => {}
            Err(error) => {
                tracing::error!(%id, %error, "cannot take a message out of the spool; it is delivered again after a restart");
            }
        }
        self.lock().index.remove(id, Instant::now());
        self.wake.notify_one();
    }

    /// Takes over the spools of processes of this service that have ended: nobody else delivers what is in
    /// them.
    async fn adopt_ended(self: &Arc<Self>, others: &[PathBuf]) {
        for spool in others {
            let is_empty = |place: &str| {
                std::fs::read_dir(spool.join(place))
                    .map_or(true, |mut files| files.next().is_none())
            };
            let has_prints = spool.join(fingerprint::FILE).exists();
            if is_empty("messages") && is_empty("dead") && !has_prints {
                continue;
            }
            match self.take_over(spool).await {
                Ok(_) | Err(SpoolError::InUse(_)) => {}
                Err(error) => {
                    let spool = spool.display();
                    tracing::error!(%spool, %error, "cannot take over the spool of a process that has ended");
                }
            }
        }
    }

    /// Says how much there is, for the table of nodes.
    fn tell_size(&self) {
        let state = self.lock();
        let messages = u64::try_from(state.index.len()).unwrap_or(u64::MAX);
        let oldest = state.index.oldest();
        drop(state);
        self.ownership.spool().set(Spooled { messages, oldest });
    }

    /// Enters a message that is in the spool.
    fn enter(&self, stored: &Stored) {
        let recipients = stored.recipients.iter().map(slot).collect();
        let expires = self.expiry(stored.since(), stored.progress.held);
        let new = New { recipients, open: false, came: seconds(stored.envelope.arrived), expires };
        let id: Id = stored.id().into();
        let mut state = self.lock();
        state.index.insert(&id, new, Instant::now());
        if stored.progress.frozen {
            state.index.freeze(&id, true, Instant::now());
        }
    }

    fn expiry(&self, since: SystemTime, held: Duration) -> Instant {
        at(since, self.rules.load().expire.saturating_add(held))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Queue {
    /// What waits for an account that has changed is due.
    fn changed(&self, name: &str) {
        let mut state = self.lock();
        if !state.index.is_empty() && state.index.changed(name, Instant::now()) {
            drop(state);
            self.wake.notify_one();
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A recipient in the spool, as the index has it.
fn slot(recipient: &Recipient) -> Slot {
    let target = match &recipient.route {
        Route::Owner => Target::Owner(recipient.name.clone()),
        Route::Via(backend) => Target::Via(backend.clone()),
    };
    let doubt = match &recipient.state {
        Stage::InDoubt { owner, since } => Some((owner.clone(), at(*since, DOUBT_PAUSE))),
        Stage::Waiting | Stage::Delivered | Stage::Failed(_) | Stage::Dropped => None,
    };
    let (done, dead) = (!recipient.state.is_open(), recipient.state.is_dead());
    Slot { target, doubt, done, dead, in_hand: false }
}

/// The moment that is so long after a time. A clock that was set is believed no further than that.
fn at(since: SystemTime, pause: Duration) -> Instant {
    let passed = since.elapsed().unwrap_or_default();
    let now = Instant::now();
    now.checked_add(pause.saturating_sub(passed)).unwrap_or(now)
}
