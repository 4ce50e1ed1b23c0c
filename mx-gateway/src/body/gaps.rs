//! What of a content is left out when it is read.

use std::ops::Range;

/// Octets of a content that do not belong to the message.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// In ascending order; none is empty, and no two of them touch.
    ranges: Vec<Range<u64>>,
    octets: u64,
}

impl Gaps {
    /// Overlapping and touching ranges become one; what lies beyond the content does not count.
    pub(super) fn new(given: Vec<Range<u64>>, content: u64) -> Self {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for Range { start, end } in given {
            let end = end.min(content);
            match ranges.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ if start < end => ranges.push(start..end),
                _ => {}
            }
        }
        let octets = ranges.iter().map(|gap| gap.end.saturating_sub(gap.start)).sum();
        Self { ranges, octets }
    }

    /// How many they are.
    pub(super) fn octets(&self) -> u64 {
        self.octets
    }

    /// Appends the octets of a chunk that are in no gap; its first is the content's `from`th, and `next` the
    /// first gap that does not end before it. Returns that gap for the next chunk.
    pub(super) fn append_rest(
        &self,
        chunk: &[u8],
        from: u64,
        mut next: usize,
        into: &mut Vec<u8>,
    ) -> usize {
        let place = |at: u64| usize::try_from(at.saturating_sub(from)).unwrap_or(usize::MAX);
        let mut at = 0;
        while let Some(gap) = self.ranges.get(next) {
            let (start, end) = (place(gap.start), place(gap.end));
            if start >= chunk.len() {
                break;
            }
            into.extend_from_slice(chunk.get(at..start).unwrap_or_default());
            at = end.min(chunk.len());
            if end > chunk.len() {
                break;
            }
            next = next.saturating_add(1);
        }
        into.extend_from_slice(chunk.get(at..).unwrap_or_default());
        next
    }
}
