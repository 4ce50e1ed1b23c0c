//! Whether the spool can keep what it takes (SPL-6).
//!
//! Whatever fails while something is written makes it unhealthy, because nobody knows what the disk does with
//! the next message. It is well again when a file could be written and synced, which is tried at most every
//! few seconds: no restart is needed.

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// Between two attempts to write something.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(3);

/// Whether the spool takes messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Well,
    /// It does not, for now.
    Unhealthy(Trouble),
}

/// What is wrong with the spool's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What it is.
    pub fault: Fault,
    /// What failed, in words.
    pub what: Box<str>,
}

/// Why the disk failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is full (ENOSPC).
    NoSpace,
    /// Our share of it is used up (EDQUOT).
    Quota,
    /// It is broken (EIO).
    Device,
    /// It is read-only now, as file systems become after an error (EROFS).
    ReadOnly,
    /// Anything else.
    Other,
}

/// The state of one spool.
#[derive(Debug, Default)]
pub(super) struct Condition(Mutex<Option<Illness>>);

#[derive(Debug)]
struct Illness {
    trouble: Trouble,
    probe_at: Instant,
}

impl Fault {
    /// The cause of an error.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC) => Self::NoSpace,
            Some(Errno::DQUOT) => Self::Quota,
            Some(Errno::IO) => Self::Device,
            Some(Errno::ROFS) => Self::ReadOnly,
            Some(_) | None => Self::Other,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSpace => "no space",
            Self::Quota => "quota exceeded",
            Self::Device => "device error",
            Self::ReadOnly => "read-only",
            Self::Other => "failure",
        })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault, self.what)
    }
}

impl Condition {
    /// What it is.
    pub(super) fn health(&self) -> Health {
        match &*self.lock() {
            Some(illness) => Health::Unhealthy(illness.trouble.clone()),
            None => Health::Well,
        }
    }

    /// Something failed.
    pub(super) fn fell_ill(&self, trouble: Trouble) {
        let mut illness = self.lock();
        if illness.as_ref().is_none_or(|known| known.trouble.fault != trouble.fault) {
            tracing::error!(%trouble, "spool unhealthy: nothing is accepted that would have to be kept");
        }
        *illness = Some(Illness { trouble, probe_at: after_a_while() });
    }

    /// A file could be written and synced.
    pub(super) fn recovered(&self) {
        if let Some(illness) = self.lock().take() {
            tracing::info!(was = %illness.trouble, "spool well again");
        }
    }

    /// It is unhealthy, and it is time to try. The caller does, nobody else meanwhile.
    pub(super) fn take_turn_to_probe(&self) -> bool {
        let mut illness = self.lock();
        let due = illness.as_mut().filter(|illness| illness.probe_at <= Instant::now());
        due.map(|illness| illness.probe_at = after_a_while()).is_some()
    }

    /// The next probe is due now.
    #[cfg(test)]
    pub(super) fn hasten(&self) {
        if let Some(illness) = &mut *self.lock() {
            illness.probe_at = Instant::now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Illness>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn after_a_while() -> Instant {
    let now = Instant::now();
    now.checked_add(PROBE_EVERY).unwrap_or(now)
}
