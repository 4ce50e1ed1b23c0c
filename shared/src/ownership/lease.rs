//! Until when the copy of the table may be used (DESIGN §2a, "Lease").
//!
//! Counted on a clock that goes on while the machine sleeps: a laptop lid or a paused VM whose guest
//! clock runs must not make an old copy look fresh.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Until when the copy may be used. Starts out ended.
#[derive(Debug, Default)]
pub struct Lease {
    /// [`Moment`] in milliseconds at which it ends; 0 is "never began".
    ends: AtomicU64,
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
        Moment::now().0 < self.ends.load(Ordering::Acquire)
    }

    /// The lease was asked for at `sent` and granted: it runs `length` from there.
    pub fn renew(&self, sent: Moment, length: Duration) {
        let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        self.ends.store(sent.0.saturating_add(length), Ordering::Release);
    }

    /// Ends it now: the copy was found to be wrong.
    pub fn end(&self) {
        self.ends.store(0, Ordering::Release);
    }

    /// How long it still runs.
    pub fn remaining(&self) -> Duration {
        let ends = self.ends.load(Ordering::Acquire);
        Duration::from_millis(ends.saturating_sub(Moment::now().0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_moment_it_was_asked_for() {
        let lease = Lease::default();
        assert!(!lease.is_valid(), "a lease starts out ended");
        let sent = Moment(Moment::now().0 - 10_000);
        lease.renew(sent, Duration::from_secs(9));
        assert!(!lease.is_valid(), "granted too late to be of use");
        lease.renew(sent, Duration::from_mins(1));
        assert!(lease.is_valid());
        lease.end();
        assert!(!lease.is_valid());
    }
}
