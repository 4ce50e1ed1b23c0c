//! How fast the queue sends to one backend, pure: a breaker, a limit that grows, a pace.
//!
//! A backend that cannot be reached is left alone for a moment that doubles; then one message tries it. When
//! it answers, more are sent at once with each that it takes (slow start), so that a server that has just come
//! back is not run over by what has waited for it.

use std::time::{Duration, Instant};

/// The first pause after a backend could not be reached.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Deliveries at once to a backend that has just come back.
const SLOW_START: u32 = 2;

/// Whether a message may be sent to a backend now.
#[derive(Debug)]
pub struct Gate {
    state: State,
    /// Deliveries under way.
    under_way: u32,
    most: u32,
    /// Between the beginnings of two deliveries; zero: none.
    pace: Duration,
    next: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It answers: so many at once.
    Open { limit: u32 },
    /// It could not be reached; tried again at `until`.
    Shut { until: Instant, pause: Duration },
    /// One delivery finds out.
    Trial { pause: Duration },
}

/// What a gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Send; tell the gate when it is done.
    Go,
    /// Not before then.
    At(Instant),
    /// When one of those under way is done.
    Later,
}

impl Gate {
    /// To a backend of which nothing is known: at most `most` deliveries at once, `pace` apart.
    pub fn new(most: u32, pace: Duration) -> Self {
        let most = most.max(1);
        let limit = SLOW_START.min(most);
        Self { state: State::Open { limit }, under_way: 0, most, pace, next: None }
    }

    /// Asks for a delivery at `now`.
    pub fn enter(&mut self, now: Instant) -> Pass {
        match self.state {
            State::Open { limit } if self.under_way >= limit => return Pass::Later,
            State::Open { .. } => {
                if let Some(next) = self.next.filter(|next| *next > now) {
                    return Pass::At(next);
                }
            }
            State::Shut { until, .. } if until > now => return Pass::At(until),
            State::Shut { pause, .. } => self.state = State::Trial { pause },
            State::Trial { .. } => return Pass::Later,
        }
        self.under_way = self.under_way.saturating_add(1);
        self.next = (!self.pace.is_zero()).then(|| now.checked_add(self.pace)).flatten();
        Pass::Go
    }

    /// A delivery is done; `reached` is whether the backend answered as it should. `jitter` is between 0 and
    /// 1: it spreads the trials of several nodes. Returns how many more may be sent now.
    pub fn leave(&mut self, now: Instant, reached: bool, jitter: f64) -> u32 {
        self.under_way = self.under_way.saturating_sub(1);
        self.state = match (self.state, reached) {
            (State::Open { limit }, true) => {
                State::Open { limit: limit.saturating_add(1).min(self.most) }
            }
            (State::Shut { .. } | State::Trial { .. }, true) => {
                State::Open { limit: SLOW_START.min(self.most) }
            }
            (State::Open { .. }, false) => shut(now, FIRST_PAUSE, jitter),
            (State::Trial { pause }, false) => {
                shut(now, pause.saturating_mul(2).min(LONGEST_PAUSE), jitter)
            }
            // One of those that began before it was shut.
            (shut @ State::Shut { .. }, false) => shut,
        };
        self.room()
    }

    /// The backend was seen to answer, by somebody else. Returns how many may be sent now.
    pub fn answers(&mut self) -> u32 {
        if self.is_shut() {
            self.state = State::Open { limit: SLOW_START.min(self.most) };
        }
        self.room()
    }

    /// When it lets somebody in who waits, as far as that is a time: in the past, if it does so now. `None`
    /// while a delivery under way will tell.
    pub fn opens_at(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Shut { until, .. } => Some(until),
            State::Trial { .. } => None,
            State::Open { limit } if self.under_way >= limit => None,
            State::Open { .. } => Some(self.next.unwrap_or(now)),
        }
    }

    /// True while it is taken for unreachable.
    pub fn is_shut(&self) -> bool {
        matches!(self.state, State::Shut { .. } | State::Trial { .. })
    }

    fn room(&self) -> u32 {
        match self.state {
            State::Open { limit } => limit.saturating_sub(self.under_way),
            State::Shut { .. } | State::Trial { .. } => 0,
        }
    }
}

fn shut(now: Instant, pause: Duration, jitter: f64) -> State {
    let spread = pause.mul_f64(0.2 * jitter.clamp(0.0, 1.0));
    State::Shut { until: now.checked_add(pause.saturating_add(spread)).unwrap_or(now), pause }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_backend_that_does_not_answer_is_tried_by_one_message_after_a_growing_pause() {
        let (mut gate, mut now) = (Gate::new(20, Duration::ZERO), Instant::now());
        assert_eq!(gate.enter(now), Pass::Go);
        gate.leave(now, false, 0.0);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(gate.enter(now), Pass::At(now + seconds(pause)));
            now += seconds(pause);
            assert_eq!(gate.enter(now), Pass::Go, "after {pause} s");
            assert_eq!(gate.enter(now), Pass::Later, "only one tries");
            gate.leave(now, false, 0.0);
        }
    }

    #[test]
    fn what_comes_back_is_not_run_over() {
        let (mut gate, now) = (Gate::new(5, Duration::ZERO), Instant::now());
        gate.enter(now);
        gate.leave(now, false, 0.0);
        let later = now + seconds(2);
        assert_eq!(gate.enter(later), Pass::Go);
        assert_eq!(gate.leave(later, true, 0.0), 2);
        let mut most = 0;
        for _ in 0..10 {
            let mut entered = 0;
            while gate.enter(later) == Pass::Go {
                entered += 1;
            }
            most = entered;
            for _ in 0..entered {
                gate.leave(later, true, 0.0);
            }
        }
        assert_eq!(most, 5);
    }

    #[test]
    fn a_late_failure_of_an_older_delivery_does_not_lengthen_the_pause() {
        let (mut gate, now) = (Gate::new(5, Duration::ZERO), Instant::now());
        assert_eq!([gate.enter(now), gate.enter(now)], [Pass::Go; 2]);
        gate.leave(now, false, 0.0);
        gate.leave(now + seconds(1), false, 0.0);
        assert_eq!(gate.enter(now), Pass::At(now + seconds(1)));
    }

    #[test]
    fn whoever_else_reaches_it_opens_the_gate() {
        let (mut gate, now) = (Gate::new(5, Duration::ZERO), Instant::now());
        gate.enter(now);
        gate.leave(now, false, 0.0);
        assert!(gate.is_shut());
        assert_eq!(gate.answers(), 2);
        assert_eq!(gate.enter(now), Pass::Go);
    }

    #[test]
    fn a_pace_is_kept() {
        let (mut gate, now) = (Gate::new(5, seconds(1)), Instant::now());
        assert_eq!(gate.enter(now), Pass::Go);
        assert_eq!(gate.enter(now), Pass::At(now + seconds(1)));
        assert_eq!(gate.enter(now + seconds(1)), Pass::Go);
    }
}
