//! When an account was given to another owner, in four octets, of which `None` needs no more.

use std::num::NonZeroU32;

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

    /// In seconds after the beginning of 1970.
    pub fn seconds(self) -> u32 {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_moment_before_1970_and_none_after_2106() {
        let seconds = |seconds| FlippedAt::of_seconds(seconds).map(FlippedAt::seconds);
        assert_eq!(seconds(1_700_000_000), Some(1_700_000_000));
        for none in [0, -1, i64::MIN] {
            assert_eq!(seconds(none), None, "{none}");
        }
        assert_eq!((seconds(u32::MAX.into()), seconds(i64::MAX)), (Some(u32::MAX), Some(u32::MAX)));
        assert_eq!(size_of::<Option<FlippedAt>>(), 4);
    }
}
