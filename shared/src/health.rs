//! Whether one address of a backend is up, from what became of the connections to it (HLT-1).
//!
//! Up until [`FAILURES`] in a row; then down, where one connection at a time may try it, after a pause that
//! grows from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`]. A success is up again, whoever had it. What a client
//! breaks off says nothing.

use std::time::{Duration, Instant};

/// Failures in a row after which an address is down.
pub const FAILURES: u32 = 3;
/// From the last failure of an address that has just gone down to the first try.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two tries. A backend with one address serves nobody meanwhile, however short it was
/// away.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is known of one address.
#[derive(Debug, Default)]
pub struct Health {
    state: State,
    /// Somebody tries the address, or did when it was down before. Given back by the one who has it.
    is_tried: bool,
}

#[derive(Debug)]
enum State {
    /// So many failures since the last success.
    Up { failures: u32 },
    Down {
        /// How long the next pause is, without jitter.
        pause: Duration,
        /// Not tried before.
        until: Instant,
    },
}

/// Leave to connect, to be given back by one of the functions that take it.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Leave {
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The address is up.
    Ordinary,
    /// The one connection that tries an address that is down.
    Try,
}

/// A change to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// From up to down.
    WentDown {
        /// Until the first try.
        pause: Duration,
    },
    /// From down to up.
    CameUp,
}

impl Default for State {
    fn default() -> Self {
        Self::Up { failures: 0 }
    }
}

impl Health {
    /// Leave to connect now, or the time from which there may be one to try it.
    ///
    /// # Errors
    ///
    /// The address is down, and it is not time to try it, or somebody does.
    pub fn admit(&mut self, now: Instant) -> Result<Leave, Instant> {
        match self.state {
            State::Up { .. } => Ok(Leave { kind: Kind::Ordinary }),
            State::Down { until, .. } if until <= now && !self.is_tried => {
                self.is_tried = true;
                Ok(Leave { kind: Kind::Try })
            }
            State::Down { until, .. } => Err(until),
        }
    }

    /// It was connected to, and answered as a server of its protocol.
    pub fn succeeded(&mut self, leave: &Leave) -> Option<Change> {
        self.give_back(leave);
        match std::mem::take(&mut self.state) {
            State::Up { .. } => None,
            State::Down { .. } => Some(Change::CameUp),
        }
    }

    /// It did not take the connection, or broke it, or was silent. `jitter`, from 0 to 1, spreads the tries
    /// of several nodes.
    pub fn failed(&mut self, leave: &Leave, now: Instant, jitter: f64) -> Option<Change> {
        self.give_back(leave);
        match (&mut self.state, leave.kind) {
            (State::Up { failures }, _) if failures.saturating_add(1) < FAILURES => {
                *failures = failures.saturating_add(1);
                None
            }
            (State::Up { .. }, _) => {
                let pause = jittered(FIRST_PAUSE, jitter);
                self.state = State::Down { pause: FIRST_PAUSE, until: later(now, pause) };
                Some(Change::WentDown { pause })
            }
            (State::Down { pause, until }, Kind::Try) => {
                *pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                *until = later(now, jittered(*pause, jitter));
                None
            }
            // One that began before it went down says nothing new.
            (State::Down { .. }, Kind::Ordinary) => None,
        }
    }

    /// Another address was connected to first. One that is up may be a little slower; one that was tried
    /// and has not answered until then is down still.
    pub fn overtaken(&mut self, leave: &Leave, now: Instant, jitter: f64) {
        match leave.kind {
            Kind::Ordinary => {}
            Kind::Try => {
                self.failed(leave, now, jitter);
            }
        }
    }

    /// It was broken off for a reason that is not the address's; another may try at once.
    pub fn abandoned(&mut self, leave: &Leave) {
        self.give_back(leave);
    }

    /// True while connections need no leave of anybody.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// True when there is nothing that would be missed if this were forgotten.
    pub fn is_spotless(&self) -> bool {
        matches!(self.state, State::Up { failures: 0 }) && !self.is_tried
    }

    /// When an address that has failed is worth a look: at once, or from then on. `None`: it has not.
    pub fn worth_a_look(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Up { failures: 0 } => None,
            State::Up { .. } => Some(now),
            State::Down { until, .. } => Some(until),
        }
    }

    fn give_back(&mut self, leave: &Leave) {
        match leave.kind {
            Kind::Ordinary => {}
            Kind::Try => self.is_tried = false,
        }
    }
}

/// Three quarters of a pause to all of it.
fn jittered(pause: Duration, jitter: f64) -> Duration {
    pause.mul_f64(0.75 + 0.25 * jitter.clamp(0.0, 1.0))
}

fn later(now: Instant, pause: Duration) -> Instant {
    now.checked_add(pause).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fail(health: &mut Health, now: Instant) -> Option<Change> {
        let leave = health.admit(now).unwrap();
        health.failed(&leave, now, 1.0)
    }

    fn down(now: Instant) -> Health {
        let mut health = Health::default();
        for _ in 1..FAILURES {
            assert_eq!(fail(&mut health, now), None);
        }
        assert_eq!(fail(&mut health, now), Some(Change::WentDown { pause: FIRST_PAUSE }));
        health
    }

    #[test]
    fn failures_in_a_row_are_down_and_a_success_between_them_is_not() {
        let now = Instant::now();
        assert!(down(now).admit(now).is_err());
        let mut health = Health::default();
        for _ in 0..10 {
            assert_eq!(fail(&mut health, now), None);
            let leave = health.admit(now).unwrap();
            assert_eq!(health.succeeded(&leave), None);
            assert!(health.is_spotless());
        }
    }

    #[test]
    fn one_at_a_time_tries_what_is_down_and_its_success_is_up() {
        let now = Instant::now();
        let mut health = down(now);
        let then = now + FIRST_PAUSE;
        let leave = health.admit(then).unwrap();
        assert_eq!(health.admit(then), Err(then));
        assert_eq!(health.succeeded(&leave), Some(Change::CameUp));
        assert!(health.is_spotless());
    }

    #[test]
    fn the_pause_grows_to_its_longest() {
        let mut now = Instant::now();
        let mut health = down(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let next = health.admit(now).unwrap_err();
            pauses.push((next - now).as_secs());
            now = next;
            assert_eq!(fail(&mut health, now), None);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10, 10]);
    }

    #[test]
    fn who_is_broken_off_says_nothing_and_leaves_the_try_to_another() {
        let now = Instant::now();
        let mut health = Health::default();
        for _ in 0..10 {
            let leave = health.admit(now).unwrap();
            health.abandoned(&leave);
        }
        assert!(health.is_spotless());
        let mut health = down(now);
        let then = now + FIRST_PAUSE;
        let leave = health.admit(then).unwrap();
        health.abandoned(&leave);
        assert!(health.admit(then).is_ok());
    }

    #[test]
    fn who_is_overtaken_counts_only_where_it_was_down() {
        let now = Instant::now();
        let mut health = Health::default();
        for _ in 0..10 {
            let leave = health.admit(now).unwrap();
            health.overtaken(&leave, now, 1.0);
        }
        assert!(health.is_spotless());
        let mut health = down(now);
        let then = now + FIRST_PAUSE;
        let leave = health.admit(then).unwrap();
        health.overtaken(&leave, then, 1.0);
        assert_eq!(health.admit(then), Err(then + FIRST_PAUSE * 2));
    }

    #[test]
    fn a_try_of_an_earlier_time_down_keeps_the_next_one_waiting() {
        let now = Instant::now();
        let mut health = Health::default();
        let early = health.admit(now).unwrap();
        for _ in 0..FAILURES {
            fail(&mut health, now);
        }
        let then = now + FIRST_PAUSE;
        let slow = health.admit(then).unwrap();
        // Who began before it went down has got through meanwhile, and it goes down again.
        assert_eq!(health.succeeded(&early), Some(Change::CameUp));
        for _ in 0..FAILURES {
            fail(&mut health, then);
        }
        let later = then + FIRST_PAUSE;
        assert!(health.admit(later).is_err());
        health.abandoned(&slow);
        assert!(health.admit(later).is_ok());
    }

    proptest! {
        /// Whatever happens in whatever order: what is down is tried by one at a time, never before its
        /// time, and every change is told once.
        #[test]
        fn down_is_tried_by_one_at_a_time(
            steps in prop::collection::vec((0u8..5, 0u64..3000, 0.0f64..1.0), 1..200)
        ) {
            let mut now = Instant::now();
            let mut health = Health::default();
            let mut running: Vec<Leave> = Vec::new();
            let mut told_up = true;
            for (what, ms, jitter) in steps {
                now += Duration::from_millis(ms);
                let was_up = health.is_up();
                let change = if what < 2 {
                    if let Ok(leave) = health.admit(now) {
                        prop_assert_eq!(leave.kind == Kind::Ordinary, was_up);
                        running.push(leave);
                    }
                    None
                } else if running.is_empty() {
                    None
                } else {
                    let leave = running.remove(0);
                    match what {
                        2 => health.succeeded(&leave),
                        3 => health.failed(&leave, now, jitter),
                        _ => { health.abandoned(&leave); None }
                    }
                };
                match change {
                    Some(Change::CameUp) => { prop_assert!(!told_up); told_up = true; }
                    Some(Change::WentDown { .. }) => { prop_assert!(told_up); told_up = false; }
                    None => {}
                }
                prop_assert_eq!(told_up, health.is_up());
                prop_assert!(running.iter().filter(|l| l.kind == Kind::Try).count() <= 1);
                if let Some(next) = health.worth_a_look(now) {
                    prop_assert!(next <= now + LONGEST_PAUSE);
                }
            }
        }
    }
}
