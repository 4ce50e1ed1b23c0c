//! Octets from a peer that were not consumed yet: bounded, and wiped when consumed.
//!
//! They may hold passwords, so what is taken is overwritten with zeros. An empty `Input` owns no
//! memory: an idle session costs nothing here.

use zeroize::Zeroize;

use super::Violation;

/// Octets from a peer that were not consumed yet.
#[derive(Default)]
pub struct Input {
    octets: Vec<u8>,
    /// Octets at the front of `octets` that were consumed and are zero now.
    consumed: usize,
}

/// One line without its line end. Wiped when dropped.
#[derive(PartialEq, Eq)]
pub struct Line {
    octets: Vec<u8>,
    ending: LineEnding,
}

/// How a line ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnding {
    /// CR LF, as every mail protocol asks.
    CrLf,
    /// LF alone, which some clients send by hand.
    Lf,
}

impl Input {
    /// An input that already holds `octets`.
    pub fn from_octets(octets: &[u8]) -> Self {
        let mut input = Self::default();
        input.push(octets);
        input
    }

    /// Adds what was read. The caller (the wire) bounds the total.
    pub fn push(&mut self, octets: &[u8]) {
        if self.consumed == self.octets.len() {
            self.octets.clear();
            self.consumed = 0;
        }
        // A growing Vec leaves its old block behind as it is; so grow by hand and wipe the old one.
        if self.octets.len().saturating_add(octets.len()) > self.octets.capacity() {
            let unread = self.octets.get(self.consumed..).unwrap_or_default();
            let room = unread.len().saturating_add(octets.len()).next_power_of_two().max(256);
            let mut moved = Vec::with_capacity(room);
            moved.extend_from_slice(unread);
            self.octets.as_mut_slice().zeroize();
            self.octets = moved;
            self.consumed = 0;
        }
        self.octets.extend_from_slice(octets);
    }

    /// What was not consumed yet.
    pub fn unread(&self) -> &[u8] {
        self.octets.get(self.consumed..).unwrap_or_default()
    }

    /// Octets not consumed yet.
    pub fn len(&self) -> usize {
        self.octets.len().saturating_sub(self.consumed)
    }

    /// True when everything was consumed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes one line that ends with LF or CR LF; `None` while its end has not come.
    ///
    /// # Errors
    ///
    /// [`Violation::LineTooLong`] when `limit` octets, the line end included, hold no line end.
    pub fn line(&mut self, limit: usize) -> Result<Option<Line>, Violation> {
        let unread = self.unread();
        let window = unread.get(..limit.min(unread.len())).unwrap_or_default();
        let Some(end) = memchr::memchr(b'\n', window) else {
            return if unread.len() >= limit {
                Err(Violation::LineTooLong { limit })
            } else {
                Ok(None)
            };
        };
        let (octets, ending) = match window.get(..end).unwrap_or_default() {
            [head @ .., b'\r'] => (head.to_vec(), LineEnding::CrLf),
            head => (head.to_vec(), LineEnding::Lf),
        };
        self.consume(end.saturating_add(1));
        Ok(Some(Line { octets, ending }))
    }

    /// Takes exactly `count` octets; `None` while fewer are there.
    pub fn take(&mut self, count: usize) -> Option<Line> {
        let octets = self.unread().get(..count)?.to_vec();
        self.consume(count);
        Some(Line { octets, ending: LineEnding::CrLf })
    }

    /// Drops `count` octets, or all of them if there are fewer, and overwrites them with zeros.
    pub fn consume(&mut self, count: usize) {
        let until = self.consumed.saturating_add(count).min(self.octets.len());
        if let Some(taken) = self.octets.get_mut(self.consumed..until) {
            taken.zeroize();
        }
        self.consumed = until;
        if self.is_empty() {
            self.octets = Vec::new();
            self.consumed = 0;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.consume(self.len());
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.octets.as_mut_slice().zeroize();
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Input({} octets)", self.len())
    }
}

impl Line {
    /// The line without its line end.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// How it ended.
    pub fn ending(&self) -> LineEnding {
        self.ending
    }

    /// The first word and what follows the space behind it, kept as it is.
    pub fn split_verb(&self) -> (&[u8], &[u8]) {
        match memchr::memchr(b' ', &self.octets) {
            Some(space) => {
                let (verb, rest) = self.octets.split_at(space);
                (verb, rest.get(1..).unwrap_or_default())
            }
            None => (&self.octets, &[]),
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.octets.as_mut_slice().zeroize();
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({} octets)", self.octets.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_whole_or_not_at_all() {
        let mut input = Input::default();
        input.push(b"NOOP\r");
        assert_eq!(input.line(512), Ok(None));
        input.push(b"\nQUIT\n");
        let line = input.line(512).unwrap().unwrap();
        assert_eq!((line.octets(), line.ending()), (&b"NOOP"[..], LineEnding::CrLf));
        let line = input.line(512).unwrap().unwrap();
        assert_eq!((line.octets(), line.ending()), (&b"QUIT"[..], LineEnding::Lf));
        assert!(input.is_empty());
    }

    #[test]
    fn a_line_without_end_is_a_violation_at_its_limit() {
        let mut input = Input::from_octets(&[b'x'; 9]);
        assert_eq!(input.line(10), Ok(None));
        input.push(b"x");
        assert_eq!(input.line(10), Err(Violation::LineTooLong { limit: 10 }));
    }

    #[test]
    fn the_line_end_counts_towards_the_limit() {
        assert!(Input::from_octets(b"12345678\r\n").line(10).unwrap().is_some());
        assert!(Input::from_octets(b"123456789\r\n").line(10).is_err());
    }

    #[test]
    fn consumed_octets_are_wiped_and_an_empty_input_owns_nothing() {
        let mut input = Input::from_octets(b"secret rest");
        input.consume(7);
        assert_eq!(&input.octets[..7], &[0; 7]);
        assert_eq!(input.unread(), b"rest");
        input.consume(99);
        assert_eq!(input.octets.capacity(), 0);
    }
}
