//! What may be true of each account at any time: which owners a login may find, and when a session may end.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Changes by what they are about, in their order.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<String, Vec<Change>>>);

#[derive(Debug)]
struct Change {
    /// Who owns it from then on.
    owner: String,
    /// Just before the change was committed.
    began: Instant,
    /// Once nobody could see the state before it any more.
    settled: Option<Instant>,
}

impl Ledger {
    /// Notes that a change is about to be made after which `owner` owns `name`.
    pub fn begin(&self, name: &str, owner: &str) {
        let change = Change { owner: owner.to_owned(), began: Instant::now(), settled: None };
        self.lock().entry(name.to_owned()).or_default().push(change);
    }

    /// Notes that the newest change of `name` is seen everywhere.
    pub fn settle(&self, name: &str) {
        if let Some(newest) = self.lock().get_mut(name).and_then(|changes| changes.last_mut()) {
            newest.settled = Some(Instant::now());
        }
    }

    /// Who owns `name` after its newest change.
    pub fn owner(&self, name: &str) -> String {
        let changes = self.lock();
        changes.get(name).and_then(|c| c.last()).map(|c| c.owner.clone()).unwrap_or_default()
    }

    /// Whether a login that began then may have been joined to `owner`.
    pub fn may_be_at(&self, name: &str, owner: &str, from: Instant) -> bool {
        let changes = self.lock();
        let changes = changes.get(name).map(Vec::as_slice).unwrap_or_default();
        changes.iter().enumerate().any(|(number, change)| {
            let gone = changes.get(number + 1).and_then(|next| next.settled);
            change.owner == owner && gone.is_none_or(|gone| gone >= from)
        })
    }

    /// Whether something has happened to `name` since then.
    pub fn is_disturbed(&self, name: &str, from: Instant) -> bool {
        let changes = self.lock();
        let mut changes = changes.get(name).into_iter().flatten();
        changes.any(|change| change.began >= from || change.settled.is_none_or(|at| at >= from))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Change>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
