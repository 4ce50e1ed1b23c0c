//! What runs under each name: sessions and deliveries, registered before the owner is read (P4).
//!
//! A change *marks* the work that depends on the changed row and read a copy without it. Marked
//! work ends itself (a session closes both legs, a delivery is recorded or in doubt); until its
//! registration is dropped it counts as draining, which is what a fence waits for (P5).

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Epoch;
use super::map::{Trail, Version};

/// Locks over which names are spread.
const SHARDS: usize = 64;

/// What is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A login attempt or a joined session.
    Session,
    /// A message on its way to the owner.
    Delivery,
}

/// Some names with what runs under each, by number: all accounts of a domain that have no row share a
/// name, so whoever leaves must not have to look for its entry.
type Shard = HashMap<Box<str>, HashMap<u64, Arc<Entry>>>;

/// What runs under each name.
#[derive(Debug)]
pub struct Registry {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    /// The number of the next entry.
    next: AtomicU64,
    draining: Mutex<HashMap<Box<str>, Draining>>,
    /// Told when something has drained.
    drained: Notify,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    work: Work,
    /// Version of the copy that was read; 0 while nothing was read yet.
    read: AtomicU64,
    outdated: AtomicBool,
    token: CancellationToken,
    /// The account it turned out to be for, once that was read.
    account: OnceLock<Box<str>>,
    /// The account it drains under: set when it is marked.
    drains_as: Mutex<Option<Box<str>>>,
}

/// Marked work of one account that has not ended yet: a row of `busy`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Busy {
    /// The account; the name that was looked up where no account was read yet.
    pub account: Box<str>,
    /// The newest change it must give way to.
    pub epoch: Epoch,
    /// Sessions not closed yet.
    pub sessions: u32,
    /// Deliveries without a recorded verdict.
    pub deliveries: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Draining {
    epoch: Epoch,
    sessions: u32,
    deliveries: u32,
}

/// A place in the registry. Dropping it says that the work has ended *and its end is recorded*.
#[derive(Debug)]
pub struct Registration {
    registry: Arc<Registry>,
    entry: Arc<Entry>,
    names: Box<[Box<str>]>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            next: AtomicU64::new(0),
            draining: Mutex::default(),
            drained: Notify::new(),
        }
    }
}

impl Registry {
    /// Registers work under every name of `trail`. What was read is told by [`Registration::read`].
    pub(super) fn enter(registry: &Arc<Self>, trail: Trail, work: Work) -> Registration {
        let entry = Arc::new(Entry {
            number: registry.next.fetch_add(1, Ordering::Relaxed),
            work,
            read: AtomicU64::new(0),
            outdated: AtomicBool::new(false),
            token: CancellationToken::new(),
            account: OnceLock::new(),
            drains_as: Mutex::default(),
        });
        let names = trail.into_boxed_slice();
        for name in &names {
            let mut shard = registry.shard(name);
            shard.entry(name.clone()).or_default().insert(entry.number, Arc::clone(&entry));
        }
        Registration { registry: Arc::clone(registry), entry, names }
    }

    /// Marks the work under `name` that read a copy older than `version`, or nothing yet. The map must
    /// have the change already; `epoch` is its number in the table.
    pub(super) fn mark(&self, name: &str, epoch: Epoch, version: Version) {
        let shard = self.shard(name);
        for entry in shard.get(name).into_iter().flat_map(HashMap::values) {
            if entry.read.load(Ordering::Acquire) < version {
                self.drain(entry, name, epoch);
            }
        }
    }

    /// Marks everything: the copy may not be used any more (the lease ended).
    pub fn mark_all(&self) {
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (name, entries) in shard.iter() {
                for entry in entries.values() {
                    self.drain(entry, name, Epoch::MAX);
                }
            }
        }
    }

    /// Marked work that has not ended, by account and in its order.
    pub fn busy(&self) -> Vec<Busy> {
        let draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        let mut busy: Vec<Busy> = draining
            .iter()
            .map(|(account, d)| Busy {
                account: account.clone(),
                epoch: d.epoch,
                sessions: d.sessions,
                deliveries: d.deliveries,
            })
            .collect();
        busy.sort_unstable();
        busy
    }

    /// Waits until the last marked work of some account has ended.
    pub async fn drained(&self) {
        self.drained.notified().await;
    }

    /// Sessions and deliveries registered now.
    pub fn counts(&self) -> (usize, usize) {
        let mut seen = HashSet::new();
        let (mut sessions, mut deliveries) = (0, 0);
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in shard.values().flat_map(HashMap::values) {
                if seen.insert(entry.number) {
                    match entry.work {
                        Work::Session => sessions += 1,
                        Work::Delivery => deliveries += 1,
                    }
                }
            }
        }
        (sessions, deliveries)
    }

    /// Marks one entry, once. The caller holds the shard's lock, so the entry cannot leave meanwhile.
    fn drain(&self, entry: &Entry, name: &str, epoch: Epoch) {
        let mut draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        let mut drains_as = entry.drains_as.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = drains_as.as_ref() {
            if let Some(d) = draining.get_mut(known) {
                d.epoch = d.epoch.max(epoch);
            }
            return;
        }
        let account = entry.account.get().map_or(name, |account| &**account);
        let d = draining.entry(account.into()).or_default();
        d.epoch = d.epoch.max(epoch);
        match entry.work {
            Work::Session => d.sessions = d.sessions.saturating_add(1),
            Work::Delivery => d.deliveries = d.deliveries.saturating_add(1),
        }
        *drains_as = Some(account.into());
        entry.outdated.store(true, Ordering::Release);
        drop((draining, drains_as));
        entry.token.cancel();
    }

    fn leave(&self, entry: &Entry, names: &[Box<str>]) {
        for name in names {
            let mut shard = self.shard(name);
            if let Some(entries) = shard.get_mut(name) {
                entries.remove(&entry.number);
                if entries.is_empty() {
                    shard.remove(name);
                }
            }
        }
        // Out of every shard: nobody can mark it from here on.
        let drains_as = entry.drains_as.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(name) = drains_as else { return };
        let mut draining = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(d) = draining.get_mut(&name) {
            match entry.work {
                Work::Session => d.sessions = d.sessions.saturating_sub(1),
                Work::Delivery => d.deliveries = d.deliveries.saturating_sub(1),
            }
            if d.sessions == 0 && d.deliveries == 0 {
                draining.remove(&name);
                self.drained.notify_one();
            }
        }
    }

    fn shard(&self, name: &str) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(self.hasher.hash_one(name)).unwrap_or_default() % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "the index is below SHARDS")]
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    /// True once a change went over what this work read.
    pub fn is_outdated(&self) -> bool {
        self.entry.outdated.load(Ordering::Acquire)
    }

    /// Waits until a change goes over what this work read.
    pub async fn outdated(&self) {
        self.entry.token.cancelled().await;
    }

    /// The token that is cancelled then, for parts that select on several.
    pub fn token(&self) -> &CancellationToken {
        &self.entry.token
    }

    /// True when it is registered under the names of `trail`, no less and no more.
    pub(super) fn is_under(&self, trail: &Trail) -> bool {
        *self.names == **trail
    }

    /// Records what was read after registering: the account, in that version of the copy. The account
    /// comes first, so that whoever is marked by the version drains as its account.
    pub(super) fn read(&self, account: &str, version: Version) {
        self.entry.account.get_or_init(|| account.into());
        self.entry.read.store(version, Ordering::Release);
    }
}

#[cfg(test)]
impl Registration {
    /// The names it is registered under, what it is, and the version of the copy it has read.
    pub(super) fn seen(&self) -> (&[Box<str>], Work, Version) {
        (&self.names, self.entry.work, self.entry.read.load(Ordering::Acquire))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.leave(&self.entry, &self.names);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: &str = "ann@example.org";

    /// Work of the account named last, which read that version of the copy.
    fn enter(registry: &Arc<Registry>, work: Work, names: &[&str], read: Version) -> Registration {
        let trail: Trail = names.iter().map(|name| (*name).into()).collect();
        let registration = Registry::enter(registry, trail, work);
        registration.read(names.last().unwrap(), read);
        registration
    }

    #[test]
    fn a_change_marks_only_what_read_an_older_copy() {
        let registry = Arc::new(Registry::default());
        let before = enter(&registry, Work::Session, &[ANN], 4);
        let after = enter(&registry, Work::Session, &[ANN], 7);
        let other = enter(&registry, Work::Session, &["bob@example.org"], 4);
        registry.mark(ANN, 100, 7);
        assert!(before.is_outdated() && before.token().is_cancelled());
        assert!(!after.is_outdated() && !other.is_outdated());
    }

    #[test]
    fn work_that_has_read_nothing_yet_is_marked_by_any_change() {
        let registry = Arc::new(Registry::default());
        let pending = Registry::enter(&registry, vec![ANN.into()], Work::Session);
        registry.mark(ANN, 1, 1);
        assert!(pending.is_outdated());
    }

    #[test]
    fn a_change_of_an_alias_marks_the_session_that_came_by_it() {
        let registry = Arc::new(Registry::default());
        let by_alias = enter(&registry, Work::Session, &["lee@old.example", ANN], 9);
        let by_name = enter(&registry, Work::Session, &[ANN], 9);
        registry.mark("lee@old.example", 30, 10);
        assert!(by_alias.is_outdated() && !by_name.is_outdated());
        assert_eq!(&*registry.busy()[0].account, ANN, "it drains as its account");
    }

    #[test]
    fn marked_work_drains_until_it_is_dropped() {
        let registry = Arc::new(Registry::default());
        let session = enter(&registry, Work::Session, &[ANN], 4);
        let delivery = enter(&registry, Work::Delivery, &[ANN], 4);
        registry.mark(ANN, 50, 5);
        registry.mark(ANN, 60, 6);
        assert_eq!(
            registry.busy(),
            [Busy { account: ANN.into(), epoch: 60, sessions: 1, deliveries: 1 }]
        );
        drop(session);
        assert_eq!(registry.busy()[0].sessions, 0);
        drop(delivery);
        assert!(registry.busy().is_empty());
        assert_eq!(registry.counts(), (0, 0));
    }
}
