//! What is in the queue and when each message is to be tried, pure: times are told, not asked for.
//!
//! A message waits for a time, for a backend, or for a change of a name that leads to one of its accounts;
//! whatever comes first makes it due. Messages for one account are tried one after the other, in the order
//! of their arrival as far as they are due together.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use shared::backend::BackendName;
use shared::ownership::Name;

/// A message's name.
pub type Id = Box<str>;

/// The order of arrival.
type Arrival = u64;

/// The queue's memory of what is on disk.
#[derive(Debug, Default)]
pub struct Index {
    entries: HashMap<Id, Entry>,
    timers: BTreeSet<(Instant, Arrival, Id)>,
    /// Which messages depend on a name.
    by_name: HashMap<Box<str>, HashSet<Id>>,
    /// Which messages wait for a backend.
    waiting: HashMap<BackendName, BTreeMap<Arrival, Id>>,
    /// Accounts that are being delivered to.
    delivering: HashSet<Box<str>>,
    /// Who waits for that, by account. One at a time gets its turn: with a thousand messages for one account it
    /// would be a thousand that are looked at for each that goes.
    behind: HashMap<Box<str>, BTreeMap<Arrival, Id>>,
    arrivals: Arrival,
    /// How many came in which second of the Unix epoch.
    came: BTreeMap<u64, u32>,
}

#[derive(Debug)]
struct Entry {
    arrival: Arrival,
    came: u64,
    recipients: Vec<Slot>,
    state: State,
    /// Somebody who made it may add recipients to it.
    open: bool,
    frozen: bool,
    /// Tries that left somebody waiting whom an owner had refused for now.
    tries: u32,
    /// When it is given up.
    expires: Instant,
    /// Since when an account of it is held.
    held: Option<Instant>,
}

/// A recipient as far as the index is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Where it goes.
    pub target: Target,
    /// The backend that may have it already, and until when it is not sent there again.
    pub doubt: Option<(BackendName, Instant)>,
    /// Nothing more is to be done for it.
    pub done: bool,
    /// It failed, and only a dead letter tells of that.
    pub dead: bool,
    /// Somebody else delivers to it at the moment.
    pub in_hand: bool,
}

/// A message that is added.
#[derive(Debug)]
pub struct New {
    /// Its recipients.
    pub recipients: Vec<Slot>,
    /// More may come.
    pub open: bool,
    /// When it came, in seconds of the Unix epoch.
    pub came: u64,
    /// When it is given up.
    pub expires: Instant,
}

/// Where a recipient's message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To the owner of this name.
    Owner(Name),
    /// To this backend.
    Via(BackendName),
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// It waits for whatever is to come.
    Waiting { at: Option<Instant>, backends: Vec<BackendName>, names: Vec<Box<str>> },
    /// It is being tried; `again` when something has changed meanwhile.
    Running { accounts: Vec<Box<str>>, names: Vec<Box<str>>, again: bool },
}

/// What a message waits for after it was tried, besides a change of a name it depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// To be tried again at that time.
    pub at: Option<Instant>,
    /// Or when one of these backends can be sent to.
    pub backends: Vec<BackendName>,
}

impl Wait {
    /// For so long.
    pub fn after(pause: Duration, now: Instant) -> Self {
        Self { at: now.checked_add(pause), backends: Vec::new() }
    }

    /// Until then at the latest.
    pub fn not_before(&mut self, at: Option<Instant>) {
        self.at = [self.at, at].into_iter().flatten().min();
    }
}

impl Slot {
    /// A recipient to whom the message is still to be sent.
    pub fn open(target: Target) -> Self {
        Self { target, doubt: None, done: false, dead: false, in_hand: false }
    }

    /// It is the queue's to send to it.
    pub fn is_due(&self) -> bool {
        !self.done && !self.in_hand
    }

    fn name(&self) -> Option<&str> {
        match &self.target {
            Target::Owner(name) => Some(name.as_str()),
            Target::Via(_) => None,
        }
    }
}

impl Index {
    /// Adds a message, which is due at `at` unless nobody in it is.
    pub fn insert(&mut self, id: &str, new: New, at: Instant) {
        let New { recipients, open, came, expires } = new;
        self.remove(id, at);
        self.arrivals = self.arrivals.saturating_add(1);
        let state = State::Waiting { at: None, backends: Vec::new(), names: Vec::new() };
        let arrival = self.arrivals;
        let (frozen, tries, held) = (false, 0, None);
        let entry = Entry { arrival, came, recipients, state, open, frozen, tries, expires, held };
        let count = self.came.entry(came).or_default();
        *count = count.saturating_add(1);
        self.entries.insert(id.into(), entry);
        self.schedule(id, at);
    }

    /// Messages in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the oldest message came, in seconds of the Unix epoch.
    pub fn oldest(&self) -> Option<u64> {
        self.came.first_key_value().map(|(came, _)| *came)
    }

    /// Whoever may have a message already is sent it again, whatever that doubles.
    pub fn forget_doubts(&mut self, id: &str) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.recipients.iter_mut().for_each(|slot| slot.doubt = None);
        }
    }

    /// All messages, in the order of their arrival.
    pub fn ids(&self) -> Vec<Id> {
        let mut ids: Vec<_> = self.entries.iter().map(|(id, e)| (e.arrival, id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id.clone()).collect()
    }

    /// A message's recipients.
    pub fn recipients(&self, id: &str) -> Option<&[Slot]> {
        self.entries.get(id).map(|entry| &*entry.recipients)
    }

    /// When it is given up.
    pub fn expires(&self, id: &str) -> Option<Instant> {
        self.entries.get(id).map(|entry| entry.expires)
    }

    /// Says whether an account of it is held. Returns for how long it was, when it is no more: so much later
    /// is it given up.
    pub fn held(&mut self, id: &str, held: bool, now: Instant) -> Option<Duration> {
        let entry = self.entries.get_mut(id)?;
        if held {
            entry.held.get_or_insert(now);
            return None;
        }
        let time = now.saturating_duration_since(entry.held.take()?);
        entry.expires = entry.expires.checked_add(time).unwrap_or(entry.expires);
        Some(time)
    }

    /// Counts one more try that an owner has put off; how many there were before.
    pub fn put_off(&mut self, id: &str) -> u32 {
        let Some(entry) = self.entries.get_mut(id) else { return 0 };
        entry.tries = entry.tries.saturating_add(1);
        entry.tries.saturating_sub(1)
    }

    /// A recipient may be at a backend already, and is not sent there again before `until`.
    pub fn doubt(&mut self, id: &str, place: usize, doubt: Option<(BackendName, Instant)>) {
        if let Some(slot) = self.entries.get_mut(id).and_then(|e| e.recipients.get_mut(place)) {
            slot.doubt = doubt;
        }
    }

    /// When it is tried next, where that is a time.
    pub fn next_try(&self, id: &str) -> Option<Instant> {
        match &self.entries.get(id)?.state {
            State::Waiting { at, .. } => *at,
            State::Running { .. } => None,
        }
    }

    /// When the next message is due.
    pub fn next(&self) -> Option<Instant> {
        self.timers.first().map(|(at, ..)| *at)
    }

    /// Takes out the next message that is due at `now`: it is being tried from here on, until
    /// [`Self::tried`]. Those whose accounts are being delivered to by others wait for them.
    pub fn take_due(&mut self, now: Instant) -> Option<Id> {
        loop {
            let (at, arrival, id) = self.timers.first()?.clone();
            if at > now {
                return None;
            }
            self.timers.remove(&(at, arrival, id.clone()));
            if self.start(&id) {
                return Some(id);
            }
        }
    }

    /// Says which names lead to a message's accounts, before they are looked up: whatever changes from here
    /// on makes it due again.
    pub fn depends_on(&mut self, id: &str, trail: impl IntoIterator<Item = Box<str>>) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let State::Running { names, .. } = &mut entry.state else { return };
        for name in trail {
            self.by_name.entry(name.clone()).or_default().insert(id.into());
            names.push(name);
        }
    }

    /// A message was tried. It waits from here on, unless something has changed meanwhile.
    pub fn tried(&mut self, id: &str, wait: Wait, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let idle = State::Waiting { at: None, backends: Vec::new(), names: Vec::new() };
        let (names, accounts, again) = match std::mem::replace(&mut entry.state, idle) {
            State::Running { names, accounts, again } => (names, accounts, again),
            waiting @ State::Waiting { .. } => {
                entry.state = waiting;
                return;
            }
        };
        let Wait { at, backends } = wait;
        let is_due = !entry.frozen && entry.recipients.iter().any(Slot::is_due);
        let expires = at.map_or(entry.expires, |at| at.min(entry.expires));
        let at = if again { now } else { expires };
        let at = Some(at).filter(|_| is_due && (again || entry.held.is_none()));
        for backend in &backends {
            self.waiting.entry(backend.clone()).or_default().insert(entry.arrival, id.into());
        }
        if let Some(at) = at {
            self.timers.insert((at, entry.arrival, id.into()));
        }
        entry.state = State::Waiting { at, backends, names };
        let all = names_of(&entry.recipients);
        self.pass_on(&accounts, &all, now);
    }

    /// A name was changed: what depends on it is due. False when nothing does.
    pub fn changed(&mut self, name: &str, now: Instant) -> bool {
        let Some(ids) = self.by_name.get(name).cloned() else { return false };
        for id in ids {
            self.schedule(&id, now);
        }
        true
    }

    /// True for a recipient that a backend may have already.
    pub fn is_in_doubt(&self, id: &str, place: usize) -> bool {
        let slot = self.recipients(id).and_then(|recipients| recipients.get(place));
        slot.is_some_and(|slot| slot.doubt.is_some())
    }

    /// `count` more messages can be sent to a backend: those that wait longest are due.
    pub fn admit(&mut self, backend: &BackendName, count: u32, now: Instant) {
        for _ in 0..count {
            let Some(waiting) = self.waiting.get_mut(backend) else { return };
            let Some((_, id)) = waiting.pop_first() else { return };
            self.schedule(&id, now);
        }
    }

    /// The backends that somebody waits for.
    pub fn awaited(&self) -> Vec<BackendName> {
        self.waiting.iter().filter(|(_, ids)| !ids.is_empty()).map(|(b, _)| b.clone()).collect()
    }

    /// Makes a message due, or tried again at once if it is being tried. A frozen one is not.
    pub fn schedule(&mut self, id: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        match &mut entry.state {
            State::Running { again, .. } => *again = true,
            State::Waiting { at, .. } => {
                if entry.frozen || !entry.recipients.iter().any(Slot::is_due) {
                    return;
                }
                if let Some(at) = at.replace(now) {
                    self.timers.remove(&(at, entry.arrival, id.into()));
                }
                self.timers.insert((now, entry.arrival, id.into()));
            }
        }
    }

    /// Adds recipients to a message that is open; returns the place of the first.
    pub fn add(&mut self, id: &str, recipients: Vec<Slot>, now: Instant) -> Option<usize> {
        let entry = self.entries.get_mut(id)?;
        let first = entry.recipients.len();
        entry.recipients.extend(recipients);
        self.schedule(id, now);
        Some(first)
    }

    /// Nobody adds recipients any more, or has any in hand. True when nothing is left to be done.
    pub fn close(&mut self, id: &str, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        entry.open = false;
        entry.recipients.iter_mut().for_each(|slot| slot.in_hand = false);
        self.schedule(id, now);
        self.is_done(id)
    }

    /// Somebody delivers no more to a recipient: it is the queue's from here on.
    pub fn let_go(&mut self, id: &str, place: usize, now: Instant) {
        let slot = self.entries.get_mut(id).and_then(|entry| entry.recipients.get_mut(place));
        if let Some(slot) = slot {
            slot.in_hand = false;
            self.schedule(id, now);
        }
    }

    /// Nothing more is to be done for a recipient. True when that is so for the whole message.
    pub fn done(&mut self, id: &str, place: usize) -> bool {
        if let Some(slot) = self.entries.get_mut(id).and_then(|e| e.recipients.get_mut(place)) {
            slot.done = true;
        }
        self.is_done(id)
    }

    /// A recipient failed; `dead` when only a dead letter tells of that. True when nothing is left to be done
    /// for the whole message.
    pub fn failed(&mut self, id: &str, place: usize, dead: bool) -> bool {
        if let Some(slot) = self.entries.get_mut(id).and_then(|e| e.recipients.get_mut(place)) {
            slot.dead = dead;
        }
        self.done(id, place)
    }

    /// True for a message that is to stay as a dead letter.
    pub fn has_dead(&self, id: &str) -> bool {
        self.recipients(id).is_some_and(|recipients| recipients.iter().any(|slot| slot.dead))
    }

    /// Freezes or thaws a message; false when there is none. One that is being tried is tried to its end.
    pub fn freeze(&mut self, id: &str, frozen: bool, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        entry.frozen = frozen;
        if frozen {
            if let State::Waiting { at, .. } = &mut entry.state
                && let Some(at) = at.take()
            {
                self.timers.remove(&(at, entry.arrival, id.into()));
            }
            let names = names_of(&entry.recipients);
            self.pass_on(&[], &names, now);
        } else {
            self.schedule(id, now);
        }
        true
    }

    /// True for a message that is frozen.
    pub fn is_frozen(&self, id: &str) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.frozen)
    }

    /// Forgets a message.
    pub fn remove(&mut self, id: &str, now: Instant) {
        let Some(entry) = self.entries.remove(id) else { return };
        self.leave_behind(&entry.recipients, entry.arrival);
        if let Some(count) = self.came.get_mut(&entry.came) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.came.remove(&entry.came);
            }
        }
        let (names, accounts) = match entry.state {
            State::Waiting { at, backends, names } => {
                if let Some(at) = at {
                    self.timers.remove(&(at, entry.arrival, id.into()));
                }
                for backend in backends {
                    if let Some(waiting) = self.waiting.get_mut(&backend) {
                        waiting.remove(&entry.arrival);
                    }
                }
                (names, Vec::new())
            }
            State::Running { accounts, names, .. } => (names, accounts),
        };
        self.forget_names(id, &names);
        self.pass_on(&accounts, &names_of(&entry.recipients), now);
    }

    fn is_done(&self, id: &str) -> bool {
        self.entries.get(id).is_some_and(|e| !e.open && e.recipients.iter().all(|slot| slot.done))
    }

    /// From waiting to being tried; false when it has to wait for another one.
    fn start(&mut self, id: &str) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let State::Waiting { at, backends, names } = &mut entry.state else { return false };
        *at = None;
        let due = entry.recipients.iter().filter(|slot| slot.is_due());
        let mut accounts: Vec<Box<str>> = due.filter_map(Slot::name).map(Into::into).collect();
        accounts.sort_unstable();
        accounts.dedup();
        if let Some(busy) = accounts.iter().find(|name| self.delivering.contains(*name)) {
            self.behind.entry(busy.clone()).or_default().insert(entry.arrival, id.into());
            return false;
        }
        for backend in std::mem::take(backends) {
            if let Some(waiting) = self.waiting.get_mut(&backend) {
                waiting.remove(&entry.arrival);
            }
        }
        let names = std::mem::take(names);
        self.delivering.extend(accounts.iter().cloned());
        entry.state = State::Running { accounts, names: Vec::new(), again: false };
        self.forget_names(id, &names);
        true
    }

    fn forget_names(&mut self, id: &str, names: &[Box<str>]) {
        for name in names {
            if let Some(ids) = self.by_name.get_mut(name) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_name.remove(name);
                }
            }
        }
    }

    /// Accounts are not delivered to any more, or not by whose turn it was: of those who wait for one of `names`
    /// the first is due.
    fn pass_on(&mut self, accounts: &[Box<str>], names: &[Box<str>], now: Instant) {
        for account in accounts {
            self.delivering.remove(account);
        }
        for name in names {
            while !self.delivering.contains(name)
                && let Some(id) = self.next_behind(name)
            {
                self.schedule(&id, now);
                // Whoever is frozen, or has had its turn meanwhile, passes it on.
                if self.next_try(&id) == Some(now) {
                    break;
                }
            }
        }
    }

    fn next_behind(&mut self, account: &str) -> Option<Id> {
        let waiting = self.behind.get_mut(account)?;
        let next = waiting.pop_first().map(|(_, id)| id);
        if waiting.is_empty() {
            self.behind.remove(account);
        }
        next
    }

    /// It waits for nobody's delivery any more.
    fn leave_behind(&mut self, recipients: &[Slot], arrival: Arrival) {
        for name in recipients.iter().filter_map(Slot::name) {
            if let Some(waiting) = self.behind.get_mut(name) {
                waiting.remove(&arrival);
                if waiting.is_empty() {
                    self.behind.remove(name);
                }
            }
        }
    }
}

/// The names that lead to a message's accounts.
fn names_of(recipients: &[Slot]) -> Vec<Box<str>> {
    recipients.iter().filter_map(Slot::name).map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use shared::address::Address;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const ANN: &str = "ann@example.org";
    const BEN: &str = "ben@example.org";

    fn old() -> BackendName {
        BackendName::parse("old").unwrap()
    }

    fn to(name: &str) -> Slot {
        Slot::open(Target::Owner(Name::of_address(&Address::parse(name).unwrap())))
    }

    fn new(recipients: Vec<Slot>, open: bool, now: Instant) -> New {
        New { recipients, open, came: 7, expires: now + DAY }
    }

    fn index(messages: &[(&str, &[&str])], now: Instant) -> Index {
        let mut index = Index::default();
        for (id, names) in messages {
            let slots = names.iter().map(|name| to(name)).collect();
            index.insert(id, new(slots, false, now), now);
        }
        index
    }

    fn due(index: &mut Index, now: Instant) -> Vec<Id> {
        std::iter::from_fn(|| index.take_due(now)).collect()
    }

    fn at(at: Instant) -> Wait {
        Wait { at: Some(at), ..Wait::default() }
    }

    #[test]
    fn what_is_due_comes_in_the_order_of_its_arrival() {
        let now = Instant::now();
        let mut index = index(&[("b", &[ANN]), ("a", &[BEN]), ("c", &["cat@example.org"])], now);
        assert_eq!(due(&mut index, now).iter().map(|id| &**id).collect::<String>(), "bac");
        assert_eq!(index.next(), None);
        index.tried("a", at(now + Duration::from_secs(9)), now);
        assert_eq!(index.next(), Some(now + Duration::from_secs(9)));
        assert!(due(&mut index, now).is_empty());
    }

    #[test]
    fn messages_for_one_account_are_tried_one_after_the_other() {
        let now = Instant::now();
        let mut index = index(&[("1", &[ANN]), ("2", &[ANN, BEN]), ("3", &[BEN])], now);
        assert_eq!(due(&mut index, now), ["1".into(), "3".into()]);
        index.remove("1", now);
        // Due again, it has to wait for the other account.
        assert!(due(&mut index, now).is_empty());
        index.tried("3", at(now + Duration::from_secs(5)), now);
        assert_eq!(due(&mut index, now), ["2".into()]);
    }

    #[test]
    fn a_change_while_a_message_is_tried_makes_it_due_again() {
        let now = Instant::now();
        let mut index = index(&[("1", &[ANN])], now);
        assert_eq!(due(&mut index, now).len(), 1);
        index.depends_on("1", ["@example.org".into(), ANN.into()]);
        index.changed(ANN, now);
        index.tried("1", at(now + Duration::from_mins(10)), now);
        assert_eq!(due(&mut index, now).len(), 1, "at once");
        index.tried("1", Wait::default(), now);
        index.changed(ANN, now);
        assert!(due(&mut index, now).is_empty(), "the new try has not asked for that name");
    }

    /// Looking at all of them for each one that goes took minutes with thousands.
    #[test]
    fn of_those_who_wait_for_one_account_one_at_a_time_is_due() {
        let now = Instant::now();
        let names: Vec<String> = (0..5).map(|number| number.to_string()).collect();
        let messages: Vec<(&str, &[&str])> =
            names.iter().map(|name| (name.as_str(), &[ANN][..])).collect();
        let mut index = index(&messages, now);
        assert_eq!(due(&mut index, now), ["0".into()]);
        assert!(index.timers.is_empty());
        index.freeze("1", true, now);
        index.remove("2", now);
        index.remove("0", now);
        assert_eq!(index.timers.len(), 1, "one of the two that are left");
        assert_eq!(due(&mut index, now), ["3".into()]);
        index.tried("3", at(now + Duration::from_mins(1)), now);
        assert_eq!(due(&mut index, now), ["4".into()], "who waits for a time lets the next one go");
        index.freeze("1", false, now);
        index.remove("4", now);
        assert_eq!(due(&mut index, now), ["1".into()]);
    }

    #[test]
    fn whose_turn_it_was_and_who_cannot_take_it_gives_it_to_the_next() {
        let now = Instant::now();
        let mut index = index(&[("0", &[ANN]), ("1", &[ANN]), ("2", &[ANN]), ("3", &[ANN])], now);
        assert_eq!(due(&mut index, now), ["0".into()]);
        index.remove("0", now);
        index.freeze("1", true, now);
        index.remove("2", now);
        assert_eq!(due(&mut index, now), ["3".into()]);
    }

    #[test]
    fn a_change_while_a_message_waits_makes_it_due() {
        let now = Instant::now();
        let mut index = index(&[("1", &[ANN]), ("2", &[BEN])], now);
        for id in due(&mut index, now) {
            let name = if &*id == "1" { ANN } else { BEN };
            index.depends_on(&id, [name.into()]);
            index.tried(&id, at(now + Duration::from_mins(10)), now);
        }
        index.changed(ANN, now);
        assert_eq!(due(&mut index, now), ["1".into()]);
    }

    #[test]
    fn who_waits_for_a_backend_is_admitted_in_order() {
        let now = Instant::now();
        let mut index = index(
            &[("1", &["a@x.example"]), ("2", &["b@x.example"]), ("3", &["c@x.example"])],
            now,
        );
        for id in due(&mut index, now) {
            index.tried(&id, Wait { at: None, backends: vec![old()] }, now);
        }
        assert_eq!(index.awaited(), [old()]);
        index.admit(&old(), 2, now);
        assert_eq!(due(&mut index, now), ["1".into(), "2".into()]);
        index.admit(&old(), 2, now);
        assert_eq!(due(&mut index, now), ["3".into()]);
        assert!(index.awaited().is_empty());
    }

    #[test]
    fn recipients_in_hand_are_not_tried_and_keep_the_message() {
        let now = Instant::now();
        let mut index = Index::default();
        let in_hand = Slot { in_hand: true, ..to(ANN) };
        index.insert("1", new(vec![in_hand], true, now), now);
        assert!(due(&mut index, now).is_empty());
        assert_eq!(index.add("1", vec![to(BEN)], now), Some(1));
        assert_eq!(due(&mut index, now).len(), 1);
        assert!(!index.done("1", 1) && !index.done("1", 0), "it is open");
        index.tried("1", Wait::default(), now);
        assert!(index.close("1", now));
    }

    #[test]
    fn what_waits_for_something_else_is_due_when_it_expires_and_while_it_is_held_never() {
        let now = Instant::now();
        let mut index = index(&[("1", &[ANN])], now);
        index.take_due(now);
        index.tried("1", Wait { at: None, backends: vec![old()] }, now);
        assert_eq!(index.next(), Some(now + DAY));
        assert_eq!(due(&mut index, now + DAY).len(), 1);
        index.held("1", true, now + DAY);
        index.tried("1", Wait::default(), now + DAY);
        assert_eq!(index.next(), None);
        index.schedule("1", now + 3 * DAY);
        assert_eq!(due(&mut index, now + 3 * DAY).len(), 1);
        assert_eq!(index.held("1", false, now + 3 * DAY), Some(2 * DAY));
        index.tried("1", Wait::default(), now + 3 * DAY);
        assert_eq!((index.next(), index.expires("1")), (Some(now + 3 * DAY), Some(now + 3 * DAY)));
    }

    #[test]
    fn a_frozen_message_is_not_tried_whatever_happens() {
        let now = Instant::now();
        let mut index = index(&[("1", &[ANN])], now);
        assert!(index.freeze("1", true, now));
        index.schedule("1", now);
        index.changed(ANN, now);
        assert!(due(&mut index, now).is_empty());
        index.freeze("1", false, now);
        assert_eq!(due(&mut index, now).len(), 1);
        assert!(!index.freeze("2", true, now));
    }

    #[test]
    fn nothing_is_left_of_a_message_that_is_removed() {
        let now = Instant::now();
        let mut index = index(&[("1", &[ANN]), ("2", &[ANN])], now);
        index.take_due(now);
        index.depends_on("1", [ANN.into()]);
        index.remove("1", now);
        due(&mut index, now);
        index.depends_on("2", [ANN.into()]);
        index.tried("2", Wait { at: Some(now), backends: vec![old()] }, now);
        index.remove("2", now);
        assert!(index.is_empty() && index.timers.is_empty() && index.by_name.is_empty());
        assert_eq!(index.oldest(), None);
        assert!(index.delivering.is_empty() && index.behind.is_empty());
        assert!(index.awaited().is_empty());
    }
}
