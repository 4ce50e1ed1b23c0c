//! Who guesses passwords: real guesses are counted, for each client's address and for each account.
//!
//! A guess is a backend's "wrong credentials", or a name that no account has. A fault of ours is none. From an
//! address with too many of them nothing more is tried for a while. An account is never locked by what
//! strangers guess: the answers only come later, and not to an address that it has logged in from lately.
//!
//! What is counted lies in windows of time ([`shared::counts`]). No clock is looked at here.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shared::counts::{Count, Moment, count_in, make_room, take_from};
use shared::listener::network;

/// Longest delay of an answer: mail programs wait at least half a minute for one.
const MAX_DELAY: Duration = Duration::from_secs(15);
/// Guesses for one account that are answered after the usual delay; each one more doubles it.
const FEW: u32 = 5;
/// An address's answers are delayed the usual time for this part of what it may guess, and twice as long for
/// each part more: an office has somebody who mistypes nearly always.
const PARTS: u32 = 10;
/// How long an account's login speaks for its address.
const LATELY: Duration = Duration::from_hours(24 * 7);
/// Addresses, accounts, pairs of them and logins that are remembered, each. They take about 100 octets.
const MAX_ENTRIES: usize = 65_536;

/// What may be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Guesses within a window from one address; 0: any number.
    pub per_address: u32,
    /// The window.
    pub window: Duration,
    /// The usual delay of an answer. Nothing: answers are never delayed.
    pub delay: Duration,
}

/// What was guessed lately.
#[derive(Debug)]
pub struct Guesses {
    limits: ArcSwap<Limits>,
    began: Instant,
    max_entries: usize,
    /// Of this process alone, so that nobody can choose names that are taken for another's.
    hasher: RandomState,
    counters: Mutex<Counters>,
}

/// An account or a name that is none, by its hash.
type Account = u64;

#[derive(Debug, Default)]
struct Counters {
    addresses: HashMap<IpAddr, Count>,
    accounts: HashMap<Account, Count>,
    /// What an account's success forgives its address.
    pairs: HashMap<(Account, IpAddr), Count>,
    /// When an account logged in from an address.
    proven: HashMap<(Account, IpAddr), Instant>,
}

impl Guesses {
    /// None so far.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits: ArcSwap::from_pointee(limits),
            began: now,
            max_entries: MAX_ENTRIES,
            hasher: RandomState::new(),
            counters: Mutex::default(),
        }
    }

    /// Other limits from now on. What was counted in windows of another length does not count any more.
    pub fn limit(&self, limits: Limits) {
        let before = self.limits.swap(Arc::new(limits));
        if before.window != limits.window {
            let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
            let proven = std::mem::take(&mut counters.proven);
            *counters = Counters { proven, ..Counters::default() };
        }
    }

    /// True when nothing more is to be tried for this client now.
    pub fn refuses(&self, client: Option<IpAddr>, now: Instant) -> bool {
        let per_address = self.limits.load().per_address;
        let (Some(client), 1..) = (client, per_address) else { return false };
        let moment = self.moment(now);
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counters.addresses.get(&network(client));
        count.is_some_and(|count| count.at(moment) >= per_address)
    }

    /// Counts a guess of this client, `None` where only a front is known, for an account or what was named
    /// instead of one. Returns how long its answer is to be delayed.
    pub fn note(&self, client: Option<IpAddr>, account: &[u8], now: Instant) -> Duration {
        let (moment, account) = (self.moment(now), self.account(account));
        let (limits, max) = (**self.limits.load(), self.max_entries);
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = &mut *counters;
        let for_account = count_in(&mut counters.accounts, account, max, moment);
        let mut doublings = for_account.saturating_sub(FEW);
        if let Some(client) = client.map(network) {
            let pair = (account, client);
            count_in(&mut counters.pairs, pair, max, moment);
            let lately = |at: &Instant| now.saturating_duration_since(*at) <= LATELY;
            if counters.proven.get(&pair).is_some_and(lately) {
                doublings = 0;
            }
            if limits.per_address > 0 {
                let from_address = count_in(&mut counters.addresses, client, max, moment);
                let part = (limits.per_address / PARTS).max(1);
                doublings = doublings.max(from_address.saturating_sub(1) / part);
            }
        }
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        limits.delay.saturating_mul(factor).min(MAX_DELAY.max(limits.delay))
    }

    /// The account has logged in from there: what was guessed for it from there was its owner's.
    pub fn forgive(&self, client: Option<IpAddr>, account: &[u8], now: Instant) {
        let Some(client) = client.map(network) else { return };
        let (moment, account) = (self.moment(now), self.account(account));
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = &mut *counters;
        if let Some(theirs) = counters.pairs.remove(&(account, client)) {
            take_from(&mut counters.addresses, &client, theirs, moment);
            take_from(&mut counters.accounts, &account, theirs, moment);
        }
        if !counters.proven.contains_key(&(account, client)) {
            make_room(&mut counters.proven, self.max_entries, |at| *at);
        }
        counters.proven.insert((account, client), now);
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment::of(self.began, self.limits.load().window, now)
    }

    fn account(&self, name: &[u8]) -> Account {
        self.hasher.hash_one(name.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_mins(10);
    const USUAL: Duration = Duration::from_secs(2);

    fn guesses(per_address: u32) -> (Guesses, Instant) {
        let began = Instant::now();
        (Guesses::new(Limits { per_address, window: WINDOW, delay: USUAL }, began), began)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The client of that number; each has an address of its own.
    fn client(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn over_its_limit_an_address_is_refused_until_the_window_has_passed() {
        let (guesses, began) = guesses(20);
        for name in 0..20_u32 {
            assert!(!guesses.refuses(Some(ip("192.0.2.1")), began));
            guesses.note(Some(ip("192.0.2.1")), &name.to_be_bytes(), began);
        }
        assert!(guesses.refuses(Some(ip("192.0.2.1")), began));
        assert!(!guesses.refuses(Some(ip("192.0.2.2")), began), "nobody else is");
        assert!(!guesses.refuses(None, began), "nor the front that somebody comes through");
        assert!(guesses.refuses(Some(ip("192.0.2.1")), began + WINDOW));
        // A part of what was long ago is forgotten with each moment.
        assert!(!guesses.refuses(Some(ip("192.0.2.1")), began + WINDOW + WINDOW / 10));
        assert!(!guesses.refuses(Some(ip("192.0.2.1")), began + 20 * WINDOW));
    }

    #[test]
    fn other_limits_count_at_once() {
        let (guesses, began) = guesses(2);
        for name in 0..2_u32 {
            guesses.note(Some(client(1)), &name.to_be_bytes(), began);
        }
        let limits = Limits { per_address: 3, window: WINDOW, delay: USUAL };
        guesses.limit(limits);
        assert!(!guesses.refuses(Some(client(1)), began));
        guesses.note(Some(client(1)), b"ann", began);
        assert!(guesses.refuses(Some(client(1)), began), "what was counted counts");
        guesses.limit(Limits { window: WINDOW / 2, ..limits });
        assert!(!guesses.refuses(Some(client(1)), began), "not in other windows");
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let (guesses, began) = guesses(1);
        guesses.note(Some(ip("2001:db8::1")), b"ann", began);
        assert!(guesses.refuses(Some(ip("2001:db8::ffff")), began));
        assert!(!guesses.refuses(Some(ip("2001:db8:0:1::1")), began));
    }

    #[test]
    fn without_a_limit_no_address_is_refused_or_delayed() {
        let (guesses, began) = guesses(0);
        for name in 0..1000_u32 {
            assert_eq!(guesses.note(Some(ip("192.0.2.1")), &name.to_be_bytes(), began), USUAL);
        }
        assert!(!guesses.refuses(Some(ip("192.0.2.1")), began));
    }

    #[test]
    fn the_more_an_address_guesses_the_later_it_is_answered() {
        let (guesses, began) = guesses(50);
        let delays: Vec<u64> = (0..25_u32)
            .map(|name| guesses.note(Some(ip("192.0.2.1")), &name.to_be_bytes(), began).as_secs())
            .collect();
        let expected = [[2; 5], [4; 5], [8; 5], [15; 5], [15; 5]].concat();
        assert_eq!(delays, expected);
        assert_eq!(guesses.note(Some(ip("192.0.2.2")), b"another", began), USUAL);
    }

    #[test]
    fn an_account_that_many_addresses_guess_is_answered_late_and_never_refused() {
        let (guesses, began) = guesses(50);
        let delays: Vec<u64> =
            (0..10).map(|n| guesses.note(Some(client(n)), b"ann", began).as_secs()).collect();
        assert_eq!(delays, [2, 2, 2, 2, 2, 4, 8, 15, 15, 15]);
        assert!(!guesses.refuses(Some(client(99)), began));
        assert_eq!(guesses.note(Some(client(99)), b"bob", began), USUAL);
        assert_eq!(guesses.note(Some(client(99)), b"ANN", began), MAX_DELAY, "whatever its case");
        assert_eq!(
            guesses.note(Some(client(100)), b"ann", began + 2 * WINDOW),
            USUAL,
            "it is over"
        );
    }

    #[test]
    fn strangers_do_not_delay_an_address_that_the_account_has_logged_in_from() {
        let (guesses, began) = guesses(50);
        guesses.forgive(Some(client(1)), b"ann", began);
        for stranger in 10..50 {
            guesses.note(Some(client(stranger)), b"ann", began);
        }
        assert_eq!(guesses.note(Some(client(1)), b"ann", began), USUAL);
        assert_eq!(guesses.note(Some(client(2)), b"ann", began), MAX_DELAY);
        let later = began + LATELY + WINDOW;
        for stranger in 10..50 {
            guesses.note(Some(client(stranger)), b"ann", later);
        }
        assert_eq!(guesses.note(Some(client(1)), b"ann", later), MAX_DELAY, "that was long ago");
    }

    #[test]
    fn a_success_forgives_what_was_mistyped_for_that_account_from_that_address() {
        let (guesses, began) = guesses(10);
        for _ in 0..6 {
            guesses.note(Some(client(1)), b"ann", began);
        }
        for _ in 0..3 {
            guesses.note(Some(client(1)), b"bob", began);
        }
        guesses.forgive(Some(client(1)), b"ann", began);
        for _ in 0..6 {
            assert!(!guesses.refuses(Some(client(1)), began));
            guesses.note(Some(client(1)), b"bob", began);
        }
        // Nine for bob stand, and bob's success elsewhere forgives none of them.
        guesses.forgive(Some(client(2)), b"bob", began);
        guesses.note(Some(client(1)), b"carl", began);
        assert!(guesses.refuses(Some(client(1)), began));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_who_guesses_most_is_not_forgotten() {
        let (mut guesses, began) = guesses(20);
        guesses.max_entries = 100;
        for _ in 0..20 {
            guesses.note(Some(client(1)), b"ann", began);
        }
        for number in 0..10_000_u32 {
            let now = began + Duration::from_millis(number.into());
            let name = number.to_be_bytes();
            guesses.note(Some(client(1000 + number)), &name, now);
            guesses.forgive(Some(client(1_000_000 + number)), &name, now);
            let counters = guesses.counters.lock().unwrap();
            for entries in [
                counters.addresses.len(),
                counters.accounts.len(),
                counters.pairs.len(),
                counters.proven.len(),
            ] {
                assert!(entries <= 100, "{entries}");
            }
        }
        assert!(guesses.refuses(Some(client(1)), began + Duration::from_secs(10)));
        assert_eq!(guesses.note(Some(client(2)), b"ann", began), MAX_DELAY);
    }

    #[test]
    fn no_delay_stays_none() {
        let limits = Limits { per_address: 10, window: WINDOW, delay: Duration::ZERO };
        let began = Instant::now();
        let guesses = Guesses::new(limits, began);
        assert!((0..100).all(|_| guesses.note(Some(client(1)), b"ann", began).is_zero()));
    }
}
