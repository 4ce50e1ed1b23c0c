//! A message in the spool that is being delivered to: by the session that brought it, or by a try of the queue.
//! Here verdicts become records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::index::{Id, Slot};
use super::{DOUBT_PAUSE, KeepError, PAUSES, Queue};
use crate::delivery::Settled;
use crate::outcome::Verdict;
use crate::spool::{Recipient, Record};

/// A message whose client's session may still add recipients to it, and delivers to some.
#[derive(Debug)]
pub struct InHand {
    queue: Arc<Queue>,
    id: Id,
}

/// A recipient as a session hands it over.
#[derive(Debug, Clone)]
pub struct Added {
    /// Its place in the session's transaction.
    pub place: usize,
    /// The recipient.
    pub recipient: Recipient,
    /// The session still delivers to it.
    pub in_hand: bool,
    /// It can be tried at once: its owner has not just put it off.
    pub soon: bool,
}

impl Added {
    pub(super) fn slot(&self) -> Slot {
        Slot { in_hand: self.in_hand, ..super::slot(&self.recipient) }
    }

    /// When a message with these is tried first.
    pub(super) fn first_try(added: &[Self]) -> Instant {
        let now = Instant::now();
        let soon = added.iter().any(|added| added.soon && !added.in_hand);
        let pause = PAUSES.first().copied().unwrap_or_default();
        if soon { now } else { now.checked_add(Duration::from_secs(pause)).unwrap_or(now) }
    }
}

impl InHand {
    pub(super) fn new(queue: &Arc<Queue>, id: Id) -> Self {
        Self { queue: Arc::clone(queue), id }
    }

    /// Adds recipients; returns the place of the first. Durable when this returns.
    ///
    /// # Errors
    ///
    /// A [`KeepError`]; they are not kept then.
    pub async fn add(&mut self, added: Vec<Added>) -> Result<usize, KeepError> {
        let records: Vec<_> =
            added.iter().map(|added| Record::Added(added.recipient.clone())).collect();
        self.queue.spool.append(&self.id, &records, true).await?;
        let at = Added::first_try(&added);
        let slots = added.iter().map(Added::slot).collect();
        let first = self.queue.lock().index.add(&self.id, slots, at);
        self.queue.wake.notify_one();
        first.ok_or(KeepError::Gone)
    }

    /// Nobody adds recipients or delivers to them any more. True when nothing is left to be done: then it is
    /// out of the queue.
    pub async fn close(mut self) -> bool {
        let id = std::mem::take(&mut self.id);
        let is_done = self.queue.lock().index.close(&id, Instant::now());
        if is_done {
            self.queue.clear(&id).await;
        }
        self.queue.wake.notify_one();
        is_done
    }

    /// What the session has found for a recipient that it had in hand. Recorded when this returns.
    pub async fn settle(&self, place: usize, one: &Settled) {
        self.queue.record(&self.id, place, one).await;
        self.queue.lock().index.let_go(&self.id, place, Instant::now());
        self.queue.wake.notify_one();
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let (queue, id) = (Arc::clone(&self.queue), std::mem::take(&mut self.id));
        if id.is_empty() {
            return;
        }
        if queue.lock().index.close(&id, Instant::now()) {
            let lifecycle = queue.lifecycle.clone();
            lifecycle.spawn("clear", async move { queue.clear(&id).await });
        } else {
            queue.wake.notify_one();
        }
    }
}

impl Queue {
    /// Records what was found for a recipient, apart from a refusal for good, of which the sender has to be
    /// told first. What cannot be written is done again after a restart (P9).
    pub(super) async fn record(&self, id: &str, place: usize, one: &Settled) {
        let owner = one.backend.name.clone();
        let record = match &one.verdict {
            Verdict::Accepted => Record::Delivered { recipient: place, owner },
            Verdict::InDoubt => Record::InDoubt { recipient: place, owner },
            Verdict::Refused(_) | Verdict::NotSent | Verdict::Held => {
                Record::Waiting { recipient: place }
            }
        };
        let (last, changes) = {
            let mut state = self.lock();
            let doubt = (one.verdict == Verdict::InDoubt)
                .then(|| (one.backend.name.clone(), Instant::now().checked_add(DOUBT_PAUSE)));
            let was_in_doubt = state.index.is_in_doubt(id, place);
            state.index.doubt(id, place, doubt.and_then(|(owner, until)| Some((owner, until?))));
            let last = one.verdict == Verdict::Accepted && state.index.done(id, place);
            // A recipient that waits as before needs no record.
            (last, !matches!(record, Record::Waiting { .. }) || was_in_doubt)
        };
        if last {
            // The message as a whole is done with.
            self.clear(id).await;
        } else if changes {
            let sync = matches!(record, Record::InDoubt { .. } | Record::Delivered { .. });
            if let Err(error) = self.spool.append(id, &[record], sync).await {
                tracing::error!(id, %error, "cannot record what became of a recipient");
            }
        }
    }
}
