//! What was done with a message whose sender may not know it (SPL-8): an identical retry is answered with yes
//! and not delivered a second time.
//!
//! A reply that is lost makes its sender come again (RFC 1047); on the same node it is known by a fingerprint of
//! sender, recipient and content. Kept is only what a retry may come for: a [`Receipt`] says when. A client that
//! goes on after its reply has heard it, so what it sends again it means. Where the account lives does not
//! count: who has a message does not get it again because it was moved since.
//!
//! They are in memory, and in a [`journal`] beside the spool's messages, which is that process's alone; what a
//! process that has ended has left is taken over with its spool. Until then, while it finishes what it has in
//! hand, its successor does not know them. All of it spares duplicates (P9): where it fails, mail is delivered.

pub mod format;

mod content;
mod journal;
mod receipt;

#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use shared::address::Address;
use shared::smtp::path::ReversePath;
use tokio::runtime::Handle;
use uuid::Uuid;

use self::format::Record;
use self::journal::Journal;
use crate::spool;

pub use self::content::{ContentHash, Hashing};
pub use self::receipt::{Left, Receipt};

/// The file's name in the directory of a spool.
pub const FILE: &str = "fingerprints";
/// Most that are kept; the oldest leave first.
const MOST: usize = 200_000;
/// Most recipients in hand that are known.
const MOST_IN_HAND: usize = 50_000;
/// What is hashed first: another one for another way of making them.
const TAG: &[u8] = b"mailshift fingerprint 1";

/// A message of one sender for one recipient: SHA-256 of both and of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// What is known of a fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Never,
    /// It is done, by the message of this id.
    Done(Uuid),
    /// The message of this id is being delivered, and its client has gone.
    InHand(Uuid),
}

/// In the file, the id of what is not remembered any more.
const FORGOTTEN: Uuid = Uuid::max();

/// All of one process.
#[derive(Debug)]
pub struct Fingerprints {
    /// Milliseconds for which they are kept; 0: none are.
    keep: AtomicU64,
    /// How many there are, in hand or done.
    count: AtomicUsize,
    state: Mutex<State>,
    /// `None`: in memory only.
    journal: Option<Mutex<Journal>>,
}

#[derive(Debug, Default)]
struct State {
    done: HashMap<Fingerprint, Done>,
    /// As they came.
    order: VecDeque<Fingerprint>,
    in_hand: HashMap<Fingerprint, Uuid>,
    /// To be written down.
    pending: Vec<Record>,
    /// Somebody writes them down.
    writing: bool,
}

#[derive(Debug, Clone, Copy)]
struct Done {
    id: Uuid,
    at: u64,
}

impl Fingerprint {
    /// As it was written down.
    pub fn from_octets(octets: [u8; 32]) -> Self {
        Self(octets)
    }

    /// Of a message for a recipient.
    pub fn new(from: &ReversePath, to: &Address, content: &ContentHash) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(TAG);
        for text in [from.to_string(), to.to_string()] {
            // No text goes on where the other ends.
            context.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(text.as_bytes());
        }
        context.update(&content.0);
        Self(content::octets_of(context))
    }
}

impl Fingerprints {
    /// None yet, kept for so long (zero: not at all) and in memory only.
    pub fn in_memory(keep: Duration) -> Arc<Self> {
        Arc::new(Self::new(keep, None))
    }

    /// Those in a file, which no other process uses, and which need not be there.
    pub async fn open(path: &Path, keep: Duration) -> Arc<Self> {
        let journal = Journal::new(path.to_owned());
        let loaded = tokio::task::spawn_blocking(move || {
            let records = journal.read();
            (journal, records)
        });
        let Ok((journal, records)) = loaded.await else { return Self::in_memory(keep) };
        let store = Self::new(keep, Some(Mutex::new(journal)));
        store.enter(&records);
        Arc::new(store)
    }

    fn new(keep: Duration, journal: Option<Mutex<Journal>>) -> Self {
        let store = Self {
            keep: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            state: Mutex::default(),
            journal,
        };
        store.keep_for(keep);
        store
    }

    /// From now on they are kept for so long; zero: not at all.
    pub fn keep_for(&self, keep: Duration) {
        self.keep.store(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What is known of each. Nothing when this is empty: there is nothing to know.
    pub fn look_up(&self, prints: &[Fingerprint]) -> Vec<Seen> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let now = now();
        let mut state = self.lock();
        state.forget(|at| self.is_old(at, now));
        let seen = |print: &Fingerprint| match (state.done.get(print), state.in_hand.get(print)) {
            (Some(done), _) if !self.is_old(done.at, now) => Seen::Done(done.id),
            (_, Some(id)) if !self.is_off() => Seen::InHand(*id),
            (_, _) => Seen::Never,
        };
        let seen = prints.iter().map(seen).collect();
        self.note_count(&state);
        seen
    }

    /// Takes over what a process that has ended has left, written down here as well.
    pub fn adopt(self: &Arc<Self>, records: &[Record]) {
        let entered = self.enter(records);
        if !entered.is_empty() && self.journal.is_some() {
            self.lock().pending.extend(entered);
            self.write_down();
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.lock().done.len()
    }

    /// Recipients that are being delivered to while their client has gone.
    pub fn in_hand(&self) -> usize {
        self.lock().in_hand.len()
    }

    /// True when none is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn remember(self: &Arc<Self>, print: Fingerprint, id: Uuid) {
        let (now, record) = (now(), Record { print, id, at: now() });
        if self.is_off() {
            return;
        }
        let mut state = self.lock();
        state.forget(|at| self.is_old(at, now));
        if !state.enter(&record, |at| self.is_old(at, now)) {
            return;
        }
        self.note_count(&state);
        if self.journal.is_some() {
            state.pending.push(record);
            drop(state);
            self.write_down();
        }
    }

    /// Forgets messages whose sender has heard what became of them: the same once more is meant.
    pub fn forget(self: &Arc<Self>, prints: &[Fingerprint]) {
        let (at, id) = (now(), FORGOTTEN);
        let records = prints.iter().map(|print| Record { print: *print, id, at });
        let mut state = self.lock();
        for print in prints {
            state.done.remove(print);
        }
        self.note_count(&state);
        if self.journal.is_some() {
            state.pending.extend(records);
            drop(state);
            self.write_down();
        }
    }

    fn take_in_hand(&self, print: Fingerprint, id: Uuid) {
        let mut state = self.lock();
        if !self.is_off() && state.in_hand.len() < MOST_IN_HAND {
            // Of two that came at once the first counts.
            state.in_hand.entry(print).or_insert(id);
            self.note_count(&state);
        }
    }

    fn let_go(&self, print: Fingerprint, id: Uuid) {
        let mut state = self.lock();
        if state.in_hand.get(&print) == Some(&id) {
            state.in_hand.remove(&print);
        }
        self.note_count(&state);
    }

    /// Takes these in; those that were not known.
    fn enter(&self, records: &[Record]) -> Vec<Record> {
        let now = now();
        // A clock that was set back must not keep them for ever.
        let dated = records.iter().map(|record| Record { at: record.at.min(now), ..*record });
        let fresh = dated.filter(|record| !self.is_old(record.at, now));
        let mut state = self.lock();
        let entered =
            fresh.filter(|record| state.enter(record, |at| self.is_old(at, now))).collect();
        self.note_count(&state);
        entered
    }

    /// Has a thread write down what is pending, unless one does: a disk may be slow.
    fn write_down(self: &Arc<Self>) {
        if std::mem::replace(&mut self.lock().writing, true) {
            return;
        }
        let store = Arc::clone(self);
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || store.write_all())),
            Err(_) => store.write_all(),
        }
    }

    fn write_all(&self) {
        let Some(journal) = &self.journal else { return };
        let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (pending, live) = {
                let mut state = self.lock();
                let pending = std::mem::take(&mut state.pending);
                state.writing = !pending.is_empty();
                if pending.is_empty() {
                    return;
                }
                (pending, state.done.len())
            };
            journal.add(&pending, live, || self.all());
        }
    }

    fn all(&self) -> Vec<Record> {
        let state = self.lock();
        let record = |print: &Fingerprint| {
            let Done { id, at } = *state.done.get(print)?;
            Some(Record { print: *print, id, at })
        };
        state.order.iter().filter_map(record).collect()
    }

    fn is_off(&self) -> bool {
        self.keep.load(Ordering::Relaxed) == 0
    }

    fn is_old(&self, at: u64, now: u64) -> bool {
        now.saturating_sub(at) >= self.keep.load(Ordering::Relaxed)
    }

    fn note_count(&self, state: &State) {
        let count = state.done.len().saturating_add(state.in_hand.len());
        self.count.store(count, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Drops the oldest, as long as they are too old.
    fn forget(&mut self, is_old: impl Fn(u64) -> bool) {
        while let Some(first) = self.order.front() {
            if self.done.get(first).is_some_and(|done| !is_old(done.at)) {
                return;
            }
            self.drop_oldest();
        }
    }

    /// False: it is known already.
    fn enter(&mut self, record: &Record, is_old: impl Fn(u64) -> bool) -> bool {
        let Record { print, id, at } = *record;
        if id == FORGOTTEN {
            self.done.remove(&print);
            return false;
        }
        match self.done.entry(print) {
            Entry::Occupied(known) if !is_old(known.get().at) => return false,
            // It has its place in the order.
            Entry::Occupied(mut known) => _ = known.insert(Done { id, at }),
            Entry::Vacant(free) => {
                free.insert(Done { id, at });
                self.order.push_back(print);
            }
        }
        if self.order.len() > MOST {
            self.drop_oldest();
        }
        true
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.order.pop_front() {
            self.done.remove(&oldest);
        }
    }
}

/// Takes the records of a process that has ended out of the directory of its spool. Whoever calls has the
/// spool's lock. That it fails costs duplicates at worst.
///
/// # Errors
///
/// The disk's.
pub fn take(directory: &Path) -> io::Result<Vec<Record>> {
    journal::take(&directory.join(FILE))
}

fn now() -> u64 {
    spool::millis(spool::now())
}
