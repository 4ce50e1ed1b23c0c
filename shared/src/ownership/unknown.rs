//! Names without a row that somebody asked for (NAM-6): what a migration's list of accounts lacks.
//!
//! Kept in memory and written to the table by the feed, never on the way of a login or a message. Everybody
//! may ask for names, so what is kept is bounded: whoever tries a dictionary brings many names once, while
//! those that matter come again or were confirmed by a backend, and these take the others' place.
//!
//! People type passwords where the name belongs. So a bare name is noted only where it looks like a login,
//! and nothing else that was typed ever is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::name::Name;
use crate::address::Address;

/// Names kept between two reports.
const MAX_NOTED: usize = 1_000;
/// Names in one report.
const MAX_REPORTED: usize = 100;
/// Among these, names that were refused and came only once.
const MAX_NEW: usize = 20;
/// Longest local part that is noted (RFC 5321 §4.5.3.1.1).
const MAX_LOCAL: usize = 64;
/// Longest address that is noted (RFC 5321 §4.5.3.1.3).
const MAX_ADDRESS: usize = 254;
/// Longest bare name that is noted; the user names of Unix are no longer.
const MAX_BARE: usize = 32;

/// What became of whoever asked for a name without a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its domain's default owner took it: a login was granted there, or a recipient accepted.
    Default,
    /// Nobody's: no such account, or not a domain of ours.
    Refused,
}

/// A name and how often it was asked for since the last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The account's name: sub-addresses and routing domains are resolved.
    pub name: Box<str>,
    /// What became of it at last.
    pub outcome: Outcome,
    /// How often.
    pub seen: u32,
}

/// The names that were noted since the last report.
#[derive(Debug, Default)]
pub struct UnknownNames {
    noted: Mutex<HashMap<Box<str>, (Outcome, u32)>>,
}

impl Outcome {
    /// As the table has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Refused => "refused",
        }
    }
}

impl UnknownNames {
    /// Notes that `account` was asked for, if that can be anybody's name.
    pub(super) fn note(&self, account: &str, outcome: Outcome) {
        if is_name(account) {
            self.add(account.into(), outcome, 1);
        }
    }

    /// What a report says: confirmed names first, then those that came most. Whatever does not fit in is
    /// forgotten; a name that matters comes again.
    pub fn take(&self) -> Vec<Sighting> {
        let noted = std::mem::take(&mut *self.lock());
        let sightings = noted.into_iter();
        let mut sightings: Vec<Sighting> =
            sightings.map(|(name, (outcome, seen))| Sighting { name, outcome, seen }).collect();
        sightings.sort_by_key(|s| (s.outcome == Outcome::Refused, std::cmp::Reverse(s.seen)));
        let mut new = 0;
        sightings.retain(|s| {
            new += usize::from(is_cheap((s.outcome, s.seen)));
            new <= MAX_NEW
        });
        sightings.truncate(MAX_REPORTED);
        sightings
    }

    /// Takes back what could not be written.
    pub(super) fn give_back(&self, sightings: Vec<Sighting>) {
        for Sighting { name, outcome, seen } in sightings {
            self.add(name, outcome, seen);
        }
    }

    fn add(&self, name: Box<str>, outcome: Outcome, seen: u32) {
        let mut noted = self.lock();
        if noted.len() >= MAX_NOTED && !noted.contains_key(&name) {
            // Any of them, since which of them came first says nothing.
            let worst = noted.iter().find(|(_, old)| is_cheap(**old));
            let Some(worst) = worst.map(|(name, _)| name.clone()) else { return };
            noted.remove(&worst);
        }
        match noted.entry(name) {
            Entry::Occupied(mut entry) => {
                let (last, count) = entry.get_mut();
                *last = outcome;
                *count = count.saturating_add(seen);
            }
            Entry::Vacant(entry) => {
                entry.insert((outcome, seen));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, (Outcome, u32)>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a dictionary brings.
fn is_cheap((outcome, seen): (Outcome, u32)) -> bool {
    outcome == Outcome::Refused && seen <= 1
}

/// Whether a login that was refused may be noted as it was typed: a bare one gets the default domain before
/// it is refused, and would look like an address from there on.
pub(super) fn may_be_noted(typed: &Name) -> bool {
    is_name(typed.as_str())
}

fn is_name(name: &str) -> bool {
    if name.contains('@') {
        let short = |address: &Address| address.local().len() <= MAX_LOCAL;
        return name.len() <= MAX_ADDRESS && Address::parse(name).is_ok_and(|a| short(&a));
    }
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
    name.len() <= MAX_BARE
        && name.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
        && name.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sightings: &[Sighting]) -> Vec<(&str, u32)> {
        sightings.iter().map(|s| (&*s.name, s.seen)).collect()
    }

    #[test]
    fn what_came_most_is_said_first_and_what_was_confirmed_before_it() {
        let unknown = UnknownNames::default();
        for (name, outcome) in [
            ("once@example.org", Outcome::Refused),
            ("often@example.org", Outcome::Refused),
            ("ann@example.org", Outcome::Default),
            ("often@example.org", Outcome::Refused),
        ] {
            unknown.note(name, outcome);
        }
        let sightings = unknown.take();
        assert_eq!(
            names(&sightings),
            [("ann@example.org", 1), ("often@example.org", 2), ("once@example.org", 1)]
        );
        assert!(unknown.take().is_empty());
        unknown.note("ann@example.org", Outcome::Refused);
        unknown.give_back(sightings);
        assert_eq!(unknown.take().iter().find(|s| &*s.name == "ann@example.org").unwrap().seen, 2);
    }

    #[test]
    fn a_dictionary_does_not_push_out_what_came_twice_or_was_confirmed() {
        let unknown = UnknownNames::default();
        let attack = |round: usize| {
            for word in 0..5_000 {
                unknown.note(&format!("w{round}x{word}@example.org"), Outcome::Refused);
            }
        };
        unknown.note("twice@example.org", Outcome::Refused);
        unknown.note("twice@example.org", Outcome::Refused);
        unknown.note("ann@example.org", Outcome::Default);
        attack(1);
        // Also what comes while it goes on.
        unknown.note("bob@example.org", Outcome::Default);
        attack(2);
        assert_eq!(unknown.lock().len(), MAX_NOTED);
        let sightings = unknown.take();
        assert_eq!(sightings.len(), 3 + MAX_NEW);
        for name in ["twice@example.org", "ann@example.org", "bob@example.org"] {
            assert!(sightings.iter().any(|s| &*s.name == name), "{name}");
        }
    }

    #[test]
    fn a_report_is_bounded_also_where_a_backend_takes_everything() {
        let unknown = UnknownNames::default();
        for word in 0..5_000 {
            unknown.note(&format!("w{word}@example.org"), Outcome::Default);
        }
        assert_eq!(unknown.lock().len(), MAX_NOTED);
        assert_eq!(unknown.take().len(), MAX_REPORTED);
    }

    #[test]
    fn what_is_no_name_is_not_noted() {
        let long = format!("{}@example.org", "x".repeat(65));
        for junk in [
            "",
            "Tr0ub4dor&3",
            "hunter2!",
            "12345678",
            "correct horse",
            "pässword",
            "a b@example.org",
            "ann@",
            "x@exa mple",
            "averyveryveryveryverylongpassword",
            "\"a b\"@example.org\"",
            &long,
        ] {
            assert!(!is_name(junk), "{junk}");
        }
        for name in ["ann", "ann.lee", "u-1_x", "ann@example.org", "o'neil@example.org"] {
            assert!(is_name(name), "{name}");
        }
    }
}
