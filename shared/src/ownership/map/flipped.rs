//! When an account was given to another owner, in four octets, of which `None` needs no more.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// When an account was last given to another owner, by the database's clock, in whole seconds. Later than in
/// the year 2106 is then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlippedAt(NonZeroU32);

impl FlippedAt {
    /// So many seconds after the beginning of 1970; `None` for that moment itself and all before it.
    pub fn of_seconds(seconds: i64) -> Option<Self> {
        let seconds = u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
        NonZeroU32::new(seconds).map(Self)
    }

    /// The second that this moment lies in.
    pub fn of_time(time: SystemTime) -> Option<Self> {
        let seconds = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
        Self::of_seconds(i64::try_from(seconds).unwrap_or(i64::MAX))
    }

    /// The moment.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.get().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_kept_to_the_second_and_there_is_none_before_1970() {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_900);
        let flipped = FlippedAt::of_time(time).unwrap();
        assert_eq!(FlippedAt::of_seconds(1_700_000_000), Some(flipped));
        assert_eq!(flipped.time(), UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        for none in [0, -1, i64::MIN] {
            assert_eq!(FlippedAt::of_seconds(none), None, "{none}");
        }
        assert_eq!(FlippedAt::of_seconds(i64::MAX), FlippedAt::of_seconds(u32::MAX.into()));
    }
}
