//! Octets queued for a peer.
//!
//! They may hold credentials on their way to a backend, so they are wiped when written or dropped.

use zeroize::Zeroize;

/// Octets after which a dialogue answers no more until they are written: a peer that asks much and reads
/// nothing must not make us keep all the answers.
const FULL: usize = 16 * 1024;

/// Octets queued for a peer. Owns no memory while empty.
#[derive(Default)]
pub struct Output {
    octets: Vec<u8>,
    /// Octets at the front of `octets` that were written and are zero now.
    written: usize,
}

impl Output {
    /// Queues `octets` as they are.
    pub fn push(&mut self, octets: impl AsRef<[u8]>) {
        let octets = octets.as_ref();
        if self.octets.len().saturating_add(octets.len()) > self.octets.capacity() {
            // A growing Vec leaves its old block behind as it is; so grow by hand and wipe the old one.
            let room = self.len().saturating_add(octets.len()).next_power_of_two().max(256);
            let mut moved = Vec::with_capacity(room);
            moved.extend_from_slice(self.queued());
            self.octets.as_mut_slice().zeroize();
            self.octets = moved;
            self.written = 0;
        }
        self.octets.extend_from_slice(octets);
    }

    /// What is queued.
    pub fn queued(&self) -> &[u8] {
        self.octets.get(self.written..).unwrap_or_default()
    }

    /// Octets queued.
    pub fn len(&self) -> usize {
        self.octets.len().saturating_sub(self.written)
    }

    /// True when nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when so much is queued that it should be written before more is.
    pub fn is_full(&self) -> bool {
        self.len() >= FULL
    }

    /// Wipes and forgets the first `count` octets, or all of them if there are fewer.
    pub fn consume(&mut self, count: usize) {
        let until = self.written.saturating_add(count).min(self.octets.len());
        if let Some(taken) = self.octets.get_mut(self.written..until) {
            taken.zeroize();
        }
        self.written = until;
        if self.is_empty() {
            self.octets = Vec::new();
            self.written = 0;
        }
    }

    /// Wipes and forgets everything, and gives the memory back.
    pub fn clear(&mut self) {
        self.consume(self.len());
    }

    /// Takes everything, leaving this output empty.
    pub fn take(&mut self) -> Vec<u8> {
        let octets = self.queued().to_vec();
        self.clear();
        octets
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.octets.as_mut_slice().zeroize();
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Output({} octets)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_octets_are_wiped_and_an_empty_output_owns_nothing() {
        let mut output = Output::default();
        output.push(b"secret rest");
        output.consume(7);
        assert_eq!(&output.octets[..7], &[0; 7]);
        assert_eq!(output.queued(), b"rest");
        output.push([b'x'; 300]);
        assert_eq!((output.len(), &output.queued()[..5]), (304, &b"restx"[..]));
        output.consume(999);
        assert_eq!((output.len(), output.octets.capacity()), (0, 0));
    }
}
