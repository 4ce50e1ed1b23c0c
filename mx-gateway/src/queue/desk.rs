//! What operators see and change of the queue (`mailshift queue`, SPL-7).

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shared::admin::queue::{self as told, Adopted, Entry, Filter, Place, Selector, Summary};
use shared::admin::{Answers, Refusal};
use shared::ownership::{self, Name};
use shared::smtp::path::ReversePath;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::index::Id;
use super::{Queue, seconds};
use crate::admin::{self, Change};
use crate::spool::{
    self, Fate, Health, Progress, Recipient, Record, Route, SpoolError, State as Stage, Stored,
};

/// How long an operator waits for the end of an adoption: less than a command waits for an answer.
const ADOPTED_WITHIN: Duration = Duration::from_mins(8);

impl admin::Queue for Queue {
    async fn list(
        &self,
        place: Place,
        filter: &Filter,
        answers: &mut Answers,
    ) -> Result<u64, Refusal> {
        let mut listed = 0;
        let most = filter.limit.unwrap_or(u64::MAX);
        for id in self.ids(place).await? {
            if listed >= most {
                break;
            }
            let Some(entry) = self.entry(&id).await? else { continue };
            if filter.takes(&entry) {
                answers.entry(entry).await?;
                listed = listed.saturating_add(1);
            }
        }
        Ok(listed)
    }

    async fn show(&self, place: Place, id: &str) -> Result<Option<Entry>, Refusal> {
        if self.is_in(place, id) { self.entry(id).await } else { Ok(None) }
    }

    async fn cat(&self, place: Place, id: &str, answers: &mut Answers) -> Result<bool, Refusal> {
        if !self.is_in(place, id) {
            return Ok(false);
        }
        let message = match self.spool.content(id).await {
            Ok(message) => message,
            Err(SpoolError::Unknown(_)) => return Ok(false),
            Err(error) => return Err(failed(error)),
        };
        let (mut reader, mut piece) = (message.reader(), Vec::new());
        while reader.read(&mut piece).await.map_err(failed)? {
            answers.octets(&piece).await?;
            piece.clear();
        }
        Ok(true)
    }

    async fn summary(&self) -> Result<Summary, Refusal> {
        let mut summary = Summary::default();
        for id in self.ids(Place::Queue).await? {
            let Some(entry) = self.entry(&id).await? else { continue };
            summary.messages = summary.messages.saturating_add(1);
            summary.octets = summary.octets.saturating_add(entry.size);
            summary.oldest = Some(summary.oldest.map_or(entry.arrived, |o| o.min(entry.arrived)));
            summary.frozen = summary.frozen.saturating_add(u64::from(entry.frozen));
            let has = |state| entry.recipients.iter().any(|recipient| recipient.state == state);
            summary.held = summary.held.saturating_add(u64::from(has(told::State::Held)));
            let in_doubt = u64::from(has(told::State::InDoubt));
            summary.in_doubt = summary.in_doubt.saturating_add(in_doubt);
            let open = entry.recipients.iter().filter(|recipient| !recipient.state.is_final());
            let mut owners: Vec<_> = open.filter_map(|recipient| recipient.owner.clone()).collect();
            owners.sort_unstable();
            owners.dedup();
            for owner in owners {
                let count = summary.owners.entry(owner).or_default();
                *count = count.saturating_add(1);
            }
        }
        summary.dead = wide(self.spool.dead().await.map_err(failed)?.len());
        summary.corrupt = wide(self.spool.corrupt().await.map_err(failed)?);
        summary.unhealthy = match self.spool.health() {
            Health::Well if self.spool.has_room_for(0) => None,
            Health::Well => {
                Some("the disk has no more room than mx.queue.reserve keeps free".to_owned())
            }
            Health::Unhealthy(trouble) => Some(trouble.to_string()),
        };
        Ok(summary)
    }

    async fn change(&self, change: Change, which: &Selector, why: &str) -> Result<u64, Refusal> {
        let place = match change {
            Change::Retry | Change::Freeze | Change::Thaw => Place::Queue,
            Change::Drop(place) => place,
            Change::Release => Place::Dead,
        };
        let ids = match which {
            Selector::Id(id) if self.is_in(place, id) => vec![Id::from(id.as_str())],
            Selector::Id(_) => Vec::new(),
            Selector::Account(_) | Selector::Owner(_) | Selector::All => self.ids(place).await?,
        };
        let mut changed = 0_u64;
        for id in ids {
            // Dead letters wait for nobody, so only their names and all of them can be meant.
            let is_meant = match (which, place) {
                (Selector::Id(_) | Selector::All, _) => true,
                _ => self.entry(&id).await?.is_some_and(|entry| which.takes(&entry)),
            };
            if is_meant && self.change_one(change, &id, why).await? {
                changed = changed.saturating_add(1);
            }
        }
        self.wake.notify_one();
        Ok(changed)
    }

    async fn adopt(self: &Arc<Self>, directory: &Path) -> Result<Adopted, Refusal> {
        let refused =
            |why: String| Refusal::NotAdopted { directory: directory.display().to_string(), why };
        if self.lifecycle.draining().is_cancelled() {
            return Err(refused("this process does not deliver any more".to_owned()));
        }
        let spool = directory.join("spool");
        let spool = if spool.is_dir() { spool } else { directory.to_owned() };
        let (done, adopted) = oneshot::channel();
        let queue = Arc::clone(self);
        self.lifecycle.spawn("adoption", async move {
            // Whoever asked may have gone.
            let _ = done.send(queue.take_over(&spool).await);
        });
        match timeout(ADOPTED_WITHIN, adopted).await {
            Ok(Ok(adopted)) => adopted.map_err(|error| refused(not_adopted(&error, directory))),
            Ok(Err(_)) => Err(failed("it broke off; the log says why")),
            Err(_) => Err(failed(
                "it is still being taken over, and that goes on: `mailshift queue summary` shows how far it \
                 is, and the log (\"a spool was taken over\") when it is done",
            )),
        }
    }
}

/// Why nothing of another spool was adopted, and what helps.
fn not_adopted(error: &SpoolError, directory: &Path) -> String {
    let what = match error {
        SpoolError::InUse(_) => "that one delivers what is in it, unless it is stopped",
        SpoolError::Disk { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
            let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
            let (user, group) = (user.as_raw(), group.as_raw());
            return format!(
                "{error}; all of it must be the service's own: chown -R {user}:{group} {} (and the service must \
                 be let into the directories above it)",
                directory.display()
            );
        }
        SpoolError::Disk { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
            "the service cannot write there (ProtectSystem= of its unit allows its state directory alone): copy \
             it into that, beside the service's own, and adopt the copy"
        }
        SpoolError::Disk { .. }
        | SpoolError::NoSpool(_)
        | SpoolError::Ours(_)
        | SpoolError::Unhealthy(_)
        | SpoolError::Unknown(_)
        | SpoolError::Id(_)
        | SpoolError::Value(_)
        | SpoolError::Damaged { .. }
        | SpoolError::Body(_)
        | SpoolError::Ended => return error.to_string(),
    };
    format!("{error}; {what}")
}

impl Queue {
    /// The messages there, the oldest first.
    async fn ids(&self, place: Place) -> Result<Vec<Id>, Refusal> {
        match place {
            Place::Queue => Ok(self.lock().index.ids()),
            Place::Dead => {
                let dead = self.spool.dead().await.map_err(failed)?;
                Ok(dead.iter().map(|stored| stored.id().into()).collect())
            }
        }
    }

    fn is_in(&self, place: Place, id: &str) -> bool {
        let is_queued = self.lock().index.recipients(id).is_some();
        match place {
            Place::Queue => is_queued,
            // The spool knows whether there is one at all.
            Place::Dead => !is_queued,
        }
    }

    /// What is told of a message; `None` when it is gone.
    async fn entry(&self, id: &str) -> Result<Option<Entry>, Refusal> {
        let stored = match self.spool.read(id).await {
            Ok(stored) => stored,
            Err(SpoolError::Unknown(_) | SpoolError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let next = self.lock().index.next_try(id);
        Ok(Some(self.told(&stored, next)))
    }

    fn told(&self, stored: &Stored, next: Option<Instant>) -> Entry {
        let Progress { attempts, last, frozen, .. } = &stored.progress;
        let (since, why) = match last {
            Some(tried) => (Some(seconds(tried.at)), Some(tried.why.to_string())),
            None => (None, None),
        };
        let sender = match &stored.envelope.from {
            ReversePath::Null => String::new(),
            ReversePath::Mailbox(mailbox) => mailbox.to_string(),
        };
        let recipients = stored.recipients.iter();
        Entry {
            id: stored.id().into(),
            arrived: seconds(stored.envelope.arrived),
            size: stored.octets,
            sender,
            attempts: u64::from(*attempts),
            next_attempt: next.map(|next| {
                let pause = next.saturating_duration_since(Instant::now());
                seconds(SystemTime::now().checked_add(pause).unwrap_or(UNIX_EPOCH))
            }),
            frozen: *frozen,
            why: None,
            recipients: recipients
                .map(|recipient| self.told_recipient(recipient, since, why.as_deref()))
                .collect(),
        }
    }

    fn told_recipient(
        &self,
        recipient: &Recipient,
        tried: Option<u64>,
        why: Option<&str>,
    ) -> told::Recipient {
        let (account, owner, held) = self.whereabouts(&recipient.name, &recipient.route);
        let (state, since, error) = match &recipient.state {
            Stage::Waiting if held => (told::State::Held, tried, None),
            Stage::Waiting => (told::State::Waiting, tried, why.map(str::to_owned)),
            Stage::InDoubt { owner, since } => {
                let error = format!("{owner} may have it, and has not said so");
                (told::State::InDoubt, Some(seconds(*since)), Some(error))
            }
            Stage::Delivered => (told::State::Delivered, None, None),
            Stage::Failed(failure) => {
                let told = match &failure.fate {
                    Fate::Reported(id) => format!("; reported to the sender as {id}"),
                    Fate::Dead => String::new(),
                    Fate::Unwanted => "; the sender did not want to know".to_owned(),
                };
                let error = format!("{}{told}", failure.reply);
                (told::State::Failed, Some(seconds(failure.at)), Some(error))
            }
            Stage::Dropped => (told::State::Dropped, None, None),
        };
        let address = recipient.address.to_string();
        told::Recipient { address, account, owner, state, since, error }
    }

    /// The account a recipient leads to now, who owns it, and whether it is held.
    fn whereabouts(&self, name: &Name, route: &Route) -> (Option<String>, Option<String>, bool) {
        if let Route::Via(backend) = route {
            return (None, Some(backend.to_string()), false);
        }
        match self.ownership.look_up(name) {
            Ok(owner) => (Some(owner.account.into()), Some(owner.backend.name.to_string()), false),
            Err(ownership::Refusal::Held { account }) => (Some(account.into()), None, true),
            Err(_) => (None, None, false),
        }
    }

    /// Changes one message; false when it is gone.
    async fn change_one(&self, change: Change, id: &str, why: &str) -> Result<bool, Refusal> {
        let now = Instant::now();
        let changed = match change {
            Change::Retry => {
                let mut state = self.lock();
                state.index.forget_doubts(id);
                // A backend that was away is tried now, whatever the pause.
                let rooms: Vec<_> = state
                    .gates
                    .iter_mut()
                    .map(|(name, gate)| (name.clone(), gate.answers()))
                    .collect();
                for (backend, room) in rooms {
                    state.index.admit(&backend, room, now);
                }
                state.index.schedule(id, now);
                return Ok(state.index.recipients(id).is_some());
            }
            Change::Freeze => self.freeze(id, true).await,
            Change::Thaw => self.freeze(id, false).await,
            Change::Drop(place) => self.discard(place, id, why).await,
            Change::Release => self.spool.release(id).await.map(|stored| self.enter(&stored)),
        };
        match changed {
            Ok(()) => Ok(true),
            Err(SpoolError::Unknown(_)) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    async fn freeze(&self, id: &str, frozen: bool) -> Result<(), SpoolError> {
        let record = if frozen { Record::Frozen } else { Record::Thawed };
        self.spool.append(id, &[record], true).await?;
        self.lock().index.freeze(id, frozen, Instant::now());
        Ok(())
    }

    async fn discard(&self, place: Place, id: &str, why: &str) -> Result<(), SpoolError> {
        let stored = self.spool.read(id).await?;
        // First, so that no try of it begins meanwhile.
        self.lock().index.remove(id, Instant::now());
        self.spool.remove(id).await?;
        let recipients =
            stored.recipients.iter().filter(|to| to.state.is_open() || place == Place::Dead);
        let to: Vec<_> = recipients.map(|recipient| recipient.address.to_string()).collect();
        let from = &stored.envelope.from;
        tracing::warn!(id, %from, to = to.join(", "), ?place, why, "message dropped by an operator");
        Ok(())
    }

    /// Takes over the messages of a spool whose process has ended. Delivery of each begins at once.
    pub(super) async fn take_over(self: &Arc<Self>, spool: &Path) -> Result<Adopted, SpoolError> {
        let queue = Arc::clone(self);
        let taken = move |stored: &Stored| {
            queue.enter(stored);
            queue.wake.notify_one();
        };
        let adopted = self.spool.adopt(spool, taken).await?;
        self.fingerprints.adopt(&adopted.prints);
        if !adopted.prints.is_empty() {
            let count = adopted.prints.len();
            tracing::info!(spool = %spool.display(), count, "fingerprints were taken over");
        }
        let left = adopted.left;
        if let Some(error) = &adopted.failed {
            tracing::error!(spool = %spool.display(), %error, left, "only a part of a spool was taken over");
        } else if left > 0 {
            tracing::error!(spool = %spool.display(), left, "files of a spool cannot be read and were left there");
        } else if let Some(id) =
            spool.parent().and_then(|state| std::fs::read_to_string(state.join("id")).ok())
        {
            self.ownership.spool().adopted(id.trim());
        }
        let told = told(&adopted);
        let Adopted { messages, recipients, dead, known, corrupt, .. } = told;
        if [messages, dead, known, corrupt].iter().any(|count| *count > 0) {
            tracing::info!(spool = %spool.display(), messages, recipients, dead, known, corrupt,
                "a spool was taken over");
        }
        Ok(told)
    }
}

/// What came of another spool, as it is told.
fn told(adopted: &spool::Adopted) -> Adopted {
    let recipients = adopted.messages.iter().flat_map(|stored| &stored.recipients);
    Adopted {
        messages: wide(adopted.messages.len()),
        recipients: wide(recipients.filter(|recipient| recipient.state.is_open()).count()),
        dead: wide(adopted.dead),
        known: wide(adopted.known),
        corrupt: wide(adopted.aside),
        left: wide(adopted.left),
        failed: adopted.failed.as_ref().map(SpoolError::to_string),
    }
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Failed { why: error.to_string() }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
