//! What the senders were told, what the owners got, and what that makes of each message.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use tokio::time::Instant;

use crate::owner::Got;

/// A message for one recipient.
pub(crate) type Key = (String, String);

/// All that happened.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    told: Mutex<Told>,
    /// Kills, when each began and when the service was back.
    kills: Mutex<Vec<(Instant, Instant)>>,
    /// Spans in which an owner must get nothing for an account: held, or flipped away, and settled.
    forbidden: Mutex<Vec<Forbidden>>,
}

#[derive(Debug, Default)]
struct Told {
    accepted: HashSet<Key>,
    /// Attempts that ended without a reply, after which the sender came again.
    unknown: HashSet<String>,
    refused: usize,
    sent: usize,
}

#[derive(Debug)]
struct Forbidden {
    account: String,
    /// `None`: every owner.
    owner: Option<&'static str>,
    from: Instant,
    to: Option<Instant>,
}

/// What is found at the end.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) sent: usize,
    pub(crate) accepted: usize,
    pub(crate) refused: usize,
    pub(crate) delivered: usize,
    pub(crate) kills: usize,
    pub(crate) lost: Vec<Key>,
    pub(crate) misplaced: Vec<Got>,
    /// Doubles by what explains them (P9).
    pub(crate) doubled: HashMap<&'static str, usize>,
    pub(crate) unexplained: Vec<Vec<Got>>,
}

impl Ledger {
    pub(crate) fn sent(&self) {
        self.told.lock().unwrap().sent += 1;
    }

    pub(crate) fn accepted(&self, id: &str, to: &[&str]) {
        let mut told = self.told.lock().unwrap();
        told.accepted.extend(to.iter().map(|to| (id.to_owned(), (*to).to_owned())));
    }

    pub(crate) fn refused(&self) {
        self.told.lock().unwrap().refused += 1;
    }

    pub(crate) fn unknown(&self, id: &str) {
        self.told.lock().unwrap().unknown.insert(id.to_owned());
    }

    pub(crate) fn killed(&self, from: Instant, to: Instant) {
        self.kills.lock().unwrap().push((from, to));
    }

    /// From now on this owner, or any, must get nothing for the account.
    pub(crate) fn forbid(&self, account: &str, owner: Option<&'static str>) {
        let (account, from) = (account.to_owned(), Instant::now());
        self.forbidden.lock().unwrap().push(Forbidden { account, owner, from, to: None });
    }

    /// That ends for this account.
    pub(crate) fn allow(&self, account: &str) {
        let now = Instant::now();
        let mut forbidden = self.forbidden.lock().unwrap();
        forbidden
            .iter_mut()
            .filter(|one| one.account == account)
            .for_each(|one| _ = one.to.get_or_insert(now));
    }

    /// Judges all. What is in `dead` was not lost.
    pub(crate) fn judge(&self, gotten: &[Got], dead: &HashSet<String>) -> Verdict {
        let told = self.told.lock().unwrap();
        let kills = self.kills.lock().unwrap();
        let mut copies: HashMap<Key, Vec<&Got>> = HashMap::new();
        for got in gotten {
            copies.entry((got.id.clone(), got.to.clone())).or_default().push(got);
        }
        let is_lost = |key: &&Key| !copies.contains_key(*key) && !dead.contains(&key.0);
        let mut verdict = Verdict {
            sent: told.sent,
            accepted: told.accepted.len(),
            refused: told.refused,
            delivered: gotten.len(),
            kills: kills.len(),
            lost: told.accepted.iter().filter(is_lost).cloned().collect(),
            misplaced: self.misplaced(gotten),
            ..Verdict::default()
        };
        for copies in copies.values().filter(|copies| copies.len() > 1) {
            let (first, last) = (copies[0].at, copies[copies.len() - 1].at);
            let why = if copies[..copies.len() - 1].iter().any(|copy| !copy.answered) {
                "an owner had it and did not say so"
            } else if kills.iter().any(|(from, to)| *from <= last && *to >= first) {
                // A sender who has no reply comes again: that alone explains nothing.
                if told.unknown.contains(&copies[0].id) {
                    "the service was killed, and a sender had no reply and came again"
                } else {
                    "the service was killed"
                }
            } else if copies.iter().any(|copy| copy.owner != copies[0].owner) {
                "an owner's yes came when the account had moved"
            } else {
                verdict.unexplained.push(copies.iter().copied().cloned().collect());
                continue;
            };
            *verdict.doubled.entry(why).or_default() += copies.len() - 1;
        }
        verdict
    }

    fn misplaced(&self, gotten: &[Got]) -> Vec<Got> {
        let forbidden = self.forbidden.lock().unwrap();
        let is_misplaced = |got: &&Got| {
            forbidden.iter().any(|one| {
                one.account == got.to
                    && one.owner.is_none_or(|owner| owner == got.owner)
                    && one.from < got.at
                    && one.to.is_none_or(|to| got.at < to)
            })
        };
        gotten.iter().filter(is_misplaced).cloned().collect()
    }
}
