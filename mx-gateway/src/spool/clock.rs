//! Times as they are kept in files: milliseconds of UNIX time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The latest time that is kept, some thousand years from now: any later one is a mistake.
const LATEST: u64 = 1 << 48;

/// The milliseconds of a time; 0 when it is before 1970.
pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    span(since).min(LATEST)
}

/// The time of so many milliseconds.
pub(super) fn time(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis.min(LATEST))).unwrap_or(UNIX_EPOCH)
}

/// The milliseconds of a duration.
pub(super) fn span(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Now, to the millisecond, so that it is the same after it was kept.
pub fn now() -> SystemTime {
    time(millis(SystemTime::now()))
}
