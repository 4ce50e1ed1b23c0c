//! What strangers may do at the edge: so much from one address, and no guessing of recipients (MX-14).
//!
//! Counts are kept for each address (IPv6: its /64) in bounded memory; who does most is forgotten last. What is
//! over a limit is refused for now, never for good. No clock is looked at here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shared::config::LimitsConfig;
use shared::counts::{Count, Moment, count_in, make_room};
use shared::listener::network;

/// What connections and messages are counted over.
const MINUTE: Duration = Duration::from_mins(1);
/// Parts of the budget for refused recipients: in the first nobody is delayed, with each further one the delay
/// doubles.
const PARTS: u32 = 10;
/// The first delay, and the longest one: senders wait at least five minutes (RFC 5321 §4.5.3.2.3).
const DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// How long a failed handshake is remembered.
const WITHOUT_TLS: Duration = Duration::from_hours(1);
/// Addresses that are remembered, for each purpose. They take about 100 octets.
const MAX_ENTRIES: usize = 65_536;

/// What was done lately, and from where.
#[derive(Debug)]
pub struct Edge {
    limits: ArcSwap<LimitsConfig>,
    began: Instant,
    max_entries: usize,
    counters: Mutex<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    connections: HashMap<IpAddr, Count>,
    messages: HashMap<IpAddr, Count>,
    refused: HashMap<IpAddr, Count>,
    /// When a TLS handshake failed.
    handshakes: HashMap<IpAddr, Instant>,
}

/// What follows from one more refused recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guessed {
    /// How long the answer is to wait.
    pub delay: Duration,
    /// The client is to be sent away.
    pub is_over: bool,
}

impl Edge {
    /// Nothing was done so far.
    pub fn new(limits: LimitsConfig, now: Instant) -> Self {
        Self {
            limits: ArcSwap::from_pointee(limits),
            began: now,
            max_entries: MAX_ENTRIES,
            counters: Mutex::default(),
        }
    }

    /// Other limits from now on. What was counted in windows of another length does not count any more.
    pub fn limit(&self, limits: LimitsConfig) {
        let window = limits.refused_window;
        if self.limits.swap(Arc::new(limits)).refused_window != window {
            self.counters().refused.clear();
        }
    }

    /// True when no limit applies to this client.
    pub fn exempts(&self, client: IpAddr) -> bool {
        self.limits.load().exempt_networks.iter().any(|network| network.contains(&client))
    }

    /// Counts a connection; false when it is one too many.
    pub fn may_connect(&self, client: IpAddr, now: Instant) -> bool {
        let limit = self.limits.load().connections_per_minute;
        self.counts(client, limit, now, |counters| &mut counters.connections)
    }

    /// Counts a message; false when it is one too many.
    pub fn may_send(&self, client: IpAddr, now: Instant) -> bool {
        let limit = self.limits.load().messages_per_minute;
        self.counts(client, limit, now, |counters| &mut counters.messages)
    }

    /// True when a client has had so many recipients refused that it is sent away at once.
    pub fn is_guessing(&self, client: IpAddr, now: Instant) -> bool {
        let limits = self.limits.load();
        let (limit, moment) = (limits.refused_recipients, self.moment(limits.refused_window, now));
        if limit == 0 || self.exempts(client) {
            return false;
        }
        let count = self.counters().refused.get(&network(client)).copied();
        count.is_some_and(|count| count.at(moment) >= limit)
    }

    /// Counts a recipient that was refused.
    pub fn note_refused(&self, client: IpAddr, now: Instant) -> Guessed {
        let limits = self.limits.load();
        let limit = limits.refused_recipients;
        if limit == 0 || self.exempts(client) {
            return Guessed { delay: Duration::ZERO, is_over: false };
        }
        let moment = self.moment(limits.refused_window, now);
        let mut counters = self.counters();
        let count = count_in(&mut counters.refused, network(client), self.max_entries, moment);
        let doublings = count.saturating_sub(1) / (limit / PARTS).max(1);
        let factor = doublings.checked_sub(1).map(|by| 1_u32.checked_shl(by).unwrap_or(u32::MAX));
        let delay = factor.map_or(Duration::ZERO, |by| DELAY.0.saturating_mul(by)).min(DELAY.1);
        Guessed { delay, is_over: count >= limit }
    }

    /// Remembers that a TLS handshake with this client has failed.
    pub fn note_failed_handshake(&self, client: IpAddr, now: Instant) {
        let mut counters = self.counters();
        if !counters.handshakes.contains_key(&network(client)) {
            make_room(&mut counters.handshakes, self.max_entries, |at| *at);
        }
        counters.handshakes.insert(network(client), now);
    }

    /// True when a TLS handshake with this client has failed lately (MX-19).
    pub fn has_failed_handshake(&self, client: IpAddr, now: Instant) -> bool {
        let at = self.counters().handshakes.get(&network(client)).copied();
        at.is_some_and(|at| now.saturating_duration_since(at) < WITHOUT_TLS)
    }

    /// Counts one more against a limit for a minute. What is refused counts, too.
    fn counts(
        &self,
        client: IpAddr,
        limit: u32,
        now: Instant,
        of: impl FnOnce(&mut Counters) -> &mut HashMap<IpAddr, Count>,
    ) -> bool {
        if limit == 0 || self.exempts(client) {
            return true;
        }
        let moment = self.moment(MINUTE, now);
        let mut counters = self.counters();
        count_in(of(&mut counters), network(client), self.max_entries, moment) <= limit
    }

    fn moment(&self, window: Duration, now: Instant) -> Moment {
        Moment::of(self.began, window, now)
    }

    fn counters(&self) -> MutexGuard<'_, Counters> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_mins(10);

    fn edge(limits: LimitsConfig) -> (Edge, Instant) {
        let began = Instant::now();
        (Edge::new(LimitsConfig { refused_window: WINDOW, ..limits }, began), began)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_may_connect_and_send_so_often_within_a_minute() {
        let limits = LimitsConfig {
            connections_per_minute: 3,
            messages_per_minute: 2,
            ..LimitsConfig::default()
        };
        let (edge, began) = edge(limits);
        let client = ip("2001:db8::1");
        let connects: Vec<bool> = (0..5).map(|_| edge.may_connect(client, began)).collect();
        assert_eq!(connects, [true, true, true, false, false]);
        let sends: Vec<bool> = (0..3).map(|_| edge.may_send(client, began)).collect();
        assert_eq!(sends, [true, true, false], "counted by themselves");
        assert!(!edge.may_connect(ip("2001:db8::2"), began), "it is one /64");
        assert!(edge.may_connect(ip("2001:db8:0:1::1"), began), "nobody else is");
        assert!(edge.may_connect(client, began + 3 * MINUTE));
    }

    #[test]
    fn who_guesses_recipients_is_answered_later_and_later_and_then_sent_away() {
        let limits = LimitsConfig { refused_recipients: 50, ..LimitsConfig::default() };
        let (edge, began) = edge(limits);
        let client = ip("192.0.2.1");
        let guesses: Vec<Guessed> = (0..50).map(|_| edge.note_refused(client, began)).collect();
        let delays: Vec<u64> = guesses.iter().map(|guessed| guessed.delay.as_secs()).collect();
        let expected = [0, 1, 2, 4, 8, 15, 15, 15, 15, 15].map(|seconds| [seconds; 5]).concat();
        assert_eq!(delays, expected);
        assert!(guesses.iter().take(49).all(|guessed| !guessed.is_over));
        assert!(guesses[49].is_over && edge.is_guessing(client, began));
        assert!(!edge.is_guessing(ip("192.0.2.2"), began));
        assert!(!edge.is_guessing(client, began + 2 * WINDOW), "it is over");
    }

    #[test]
    fn no_limit_and_exempt_networks_are_never_refused() {
        let (unlimited, began) = edge(LimitsConfig::default());
        let limits = LimitsConfig {
            connections_per_minute: 1,
            messages_per_minute: 1,
            refused_recipients: 1,
            exempt_networks: vec!["192.0.2.0/24".parse().unwrap()],
            ..LimitsConfig::default()
        };
        let (exempting, _) = edge(limits);
        for edge in [&unlimited, &exempting] {
            for _ in 0..100 {
                let client = ip("192.0.2.1");
                assert!(edge.may_connect(client, began) && edge.may_send(client, began));
                assert!(!edge.note_refused(client, began).is_over);
                assert!(!edge.is_guessing(client, began));
            }
        }
    }

    #[test]
    fn a_failed_handshake_is_remembered_for_an_hour() {
        let (edge, began) = edge(LimitsConfig::default());
        edge.note_failed_handshake(ip("192.0.2.1"), began);
        assert!(edge.has_failed_handshake(ip("192.0.2.1"), began + WITHOUT_TLS / 2));
        assert!(!edge.has_failed_handshake(ip("192.0.2.1"), began + WITHOUT_TLS));
        assert!(!edge.has_failed_handshake(ip("192.0.2.2"), began));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_who_does_most_is_not_forgotten() {
        let limits = LimitsConfig {
            connections_per_minute: 1000,
            messages_per_minute: 1000,
            refused_recipients: 20,
            ..LimitsConfig::default()
        };
        let (mut edge, began) = edge(limits);
        edge.max_entries = 100;
        for _ in 0..20 {
            edge.note_refused(ip("192.0.2.1"), began);
        }
        for number in 0..5_000_u32 {
            let client = std::net::Ipv4Addr::from_bits(number).into();
            edge.may_connect(client, began);
            edge.may_send(client, began);
            edge.note_refused(client, began);
            edge.note_failed_handshake(client, began + Duration::from_millis(number.into()));
            let counters = edge.counters();
            let kept = [&counters.connections, &counters.messages, &counters.refused];
            assert!(kept.iter().all(|counts| counts.len() <= 100));
            assert!(counters.handshakes.len() <= 100);
        }
        assert!(edge.is_guessing(ip("192.0.2.1"), began));
    }
}
