//! Whether a client's connection is idle: what bounds how long it may stay without a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// What goes on on one connection.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    in_flight: AtomicUsize,
    served: AtomicU64,
    /// When something was last begun, taken or ended, in milliseconds since the beginning.
    last: AtomicU64,
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            in_flight: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            last: AtomicU64::new(0),
        })
    }

    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.note();
        Busy(Arc::clone(self))
    }

    /// When it will have been idle for too long; `None` while it is not idle.
    pub(super) fn idle_until(&self, first: Duration, keepalive: Duration) -> Option<Instant> {
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let limit = if self.served.load(Ordering::Relaxed) == 0 { first } else { keepalive };
        let last = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed));
        last.checked_add(limit)
    }
}

impl Activity {
    fn note(&self) {
        let elapsed = self.began.elapsed().as_millis();
        self.last.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When requests in flight will have gone on for too long without anything of an answer being taken.
    pub(super) fn stuck_at(&self, limit: Duration) -> Option<Instant> {
        let last = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed));
        last.checked_add(limit)
    }
}

impl Busy {
    /// Something of an answer was taken.
    pub(super) fn goes_on(&self) {
        self.0.note();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.note();
        self.0.served.fetch_add(1, Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
