//! Until when the copy of the table may be used (DESIGN §2a, "Lease").
//!
//! Counted on a clock that goes on while the machine sleeps: a laptop lid or a paused VM whose guest
//! clock runs must not make an old copy look fresh.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Until when the copy may be used. Starts out ended.
#[derive(Debug, Default)]
pub struct Lease {
    /// [`Moment`] in milliseconds until which the copy may be used; 0: it may not.
    valid_until: AtomicU64,
    /// Whoever changes it holds this.
    terms: Mutex<Terms>,
}

#[derive(Debug, Default)]
struct Terms {
    /// [`Moment`] in milliseconds until which work that runs may go on; 0: none may.
    work_until: u64,
    /// How often the lease has ended or was suspended.
    interruptions: u64,
}

/// A lease that was asked for and is not granted yet.
#[derive(Debug)]
pub struct Request {
    sent: Moment,
    interruptions: u64,
}

/// A point on the clock that includes suspend, in milliseconds since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or_default();
        Self(seconds.saturating_mul(1000).saturating_add(millis))
    }
}

impl Lease {
    /// True while the copy may be used.
    pub fn is_valid(&self) -> bool {
        Moment::now().0 < self.valid_until.load(Ordering::Acquire)
    }

    /// A lease is about to be asked for; it will count from this moment.
    pub fn request(&self) -> Request {
        Request { sent: Moment::now(), interruptions: self.terms().interruptions }
    }

    /// The request was granted: the lease runs `length` from when it was sent. Says no when the lease was
    /// interrupted meanwhile: what was read for it may be from before the interruption.
    pub fn grant(&self, request: &Request, length: Duration) -> bool {
        let mut terms = self.terms();
        if terms.interruptions != request.interruptions {
            return false;
        }
        let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        terms.work_until = request.sent.0.saturating_add(length);
        self.valid_until.store(terms.work_until, Ordering::Release);
        true
    }

    /// The copy was found to be wrong: it may not be used until the next grant, while work that runs may
    /// go on as long as the lease would have. Says whether the copy could be used until now.
    pub fn suspend(&self) -> bool {
        let mut terms = self.terms();
        terms.interruptions = terms.interruptions.saturating_add(1);
        self.valid_until.swap(0, Ordering::AcqRel) != 0
    }

    /// Ends it, for all work too. Says whether any could run until now.
    pub fn end(&self) -> bool {
        self.suspend();
        std::mem::take(&mut self.terms().work_until) != 0
    }

    /// Ends it if its time is over. True for the first caller who finds that: it has to end the work.
    pub fn lapse(&self) -> bool {
        let mut terms = self.terms();
        if terms.work_until == 0 || Moment::now().0 < terms.work_until {
            return false;
        }
        terms.work_until = 0;
        terms.interruptions = terms.interruptions.saturating_add(1);
        self.valid_until.store(0, Ordering::Release);
        true
    }

    /// How long work that runs may still go on.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.terms().work_until.saturating_sub(Moment::now().0))
    }

    fn terms(&self) -> MutexGuard<'_, Terms> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn asked(lease: &Lease, ago: u64) -> Request {
        Request { sent: Moment(Moment::now().0 - ago), ..lease.request() }
    }

    #[test]
    fn a_lease_counts_from_the_moment_it_was_asked_for() {
        let lease = Lease::default();
        assert!(!lease.is_valid(), "a lease starts out ended");
        assert!(lease.grant(&asked(&lease, 10_000), Duration::from_secs(9)));
        assert!(!lease.is_valid(), "granted too late to be of use");
        assert!(lease.grant(&asked(&lease, 10_000), MINUTE));
        assert!(lease.is_valid());
    }

    #[test]
    fn the_end_of_a_lease_is_found_once() {
        let lease = Lease::default();
        assert!(!lease.lapse(), "it never began");
        lease.grant(&asked(&lease, 0), MINUTE);
        assert!(!lease.lapse(), "it runs");
        lease.grant(&asked(&lease, 10_000), Duration::from_secs(9));
        assert!(lease.lapse());
        assert!(!lease.lapse() && !lease.end());
        lease.grant(&asked(&lease, 0), MINUTE);
        assert!(lease.end());
        assert!(!lease.end() && !lease.lapse() && !lease.is_valid());
    }

    #[test]
    fn a_poll_that_began_before_an_interruption_prolongs_nothing() {
        let interruptions: [fn(&Lease) -> bool; 3] = [Lease::suspend, Lease::end, Lease::lapse];
        for interrupt in interruptions {
            let lease = Lease::default();
            lease.grant(&asked(&lease, 10_000), Duration::from_secs(9));
            let request = lease.request();
            assert!(interrupt(&lease));
            assert!(!lease.grant(&request, MINUTE));
            assert!(!lease.is_valid());
            assert!(lease.grant(&lease.request(), MINUTE), "the next one does");
            assert!(lease.is_valid());
        }
    }

    #[test]
    fn work_goes_on_while_a_lease_is_suspended_but_not_past_its_end() {
        let lease = Lease::default();
        lease.grant(&asked(&lease, 0), MINUTE);
        assert!(lease.suspend());
        assert!(!lease.is_valid() && !lease.lapse());
        assert!(lease.remaining() > Duration::from_secs(50));
        lease.grant(&asked(&lease, 10_000), Duration::from_secs(9));
        lease.suspend();
        assert!(lease.lapse());
    }
}
