//! Counting what somebody did lately, in bounded memory.
//!
//! What is counted lies in windows of time. The count is that of the window at hand and, of the one before
//! it, the part that is not over for as long as a window lasts. No clock is looked at here.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::time::{Duration, Instant};

/// What was counted in the newest window that has any, and in the one before.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    window: u64,
    here: u32,
    before: u32,
    last: Instant,
}

/// A moment among the windows.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    now: Instant,
    window: u64,
    /// How much of the window before is still to be counted, in thousandths.
    left: u32,
}

impl Moment {
    /// Where `now` lies among windows of this length, the first of which began at `began`.
    pub fn of(began: Instant, length: Duration, now: Instant) -> Self {
        let since = now.saturating_duration_since(began).as_millis();
        let length = length.as_millis().max(1);
        let over = (since % length).saturating_mul(1000) / length;
        Self {
            now,
            window: u64::try_from(since / length).unwrap_or(u64::MAX),
            left: 1000_u32.saturating_sub(u32::try_from(over).unwrap_or(1000)),
        }
    }
}

impl Count {
    /// As it is seen from another moment.
    fn seen(self, moment: Moment) -> Self {
        let (here, before) = match moment.window.saturating_sub(self.window) {
            0 => (self.here, self.before),
            1 => (0, self.here),
            _ => (0, 0),
        };
        Self { window: moment.window, here, before, last: self.last }
    }

    /// How many there are at this moment.
    pub fn at(self, moment: Moment) -> u32 {
        let seen = self.seen(moment);
        let before = u64::from(seen.before).saturating_mul(moment.left.into()) / 1000;
        seen.here.saturating_add(u32::try_from(before).unwrap_or(u32::MAX))
    }
}

/// Counts one more, and returns how many there are.
pub fn count_in<K: Eq + Hash, S: BuildHasher>(
    counts: &mut HashMap<K, Count, S>,
    key: K,
    max: usize,
    moment: Moment,
) -> u32 {
    if !counts.contains_key(&key) {
        make_room(counts, max, |count| (count.at(moment), count.last));
    }
    let none = Count { window: moment.window, here: 0, before: 0, last: moment.now };
    let count = counts.entry(key).or_insert(none);
    *count = count.seen(moment);
    count.here = count.here.saturating_add(1);
    count.last = moment.now;
    count.at(moment)
}

/// Takes back what was counted for somebody else, too.
pub fn take_from<K: Eq + Hash, S: BuildHasher>(
    counts: &mut HashMap<K, Count, S>,
    key: &K,
    theirs: Count,
    moment: Moment,
) {
    let Some(count) = counts.get_mut(key) else { return };
    let theirs = theirs.seen(moment);
    *count = count.seen(moment);
    count.here = count.here.saturating_sub(theirs.here);
    count.before = count.before.saturating_sub(theirs.before);
    if count.here == 0 && count.before == 0 {
        counts.remove(key);
    }
}

/// Makes room for one more where none is left: the quarter that is worth least is forgotten at once, so that
/// it is rarely looked for.
pub fn make_room<K: Eq + Hash, V, W: Ord + Copy, S: BuildHasher>(
    entries: &mut HashMap<K, V, S>,
    max: usize,
    worth: impl Fn(&V) -> W,
) {
    if entries.len() < max {
        return;
    }
    let mut worths: Vec<W> = entries.values().map(&worth).collect();
    let quarter = worths.len() / 4;
    if quarter < worths.len() {
        let (_, least, _) = worths.select_nth_unstable(quarter);
        let least = *least;
        entries.retain(|_, entry| worth(entry) > least);
    }
}
