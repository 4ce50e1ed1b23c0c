//! Buffers that a worker thread lends to whichever connection is being read or written right now.
//!
//! Socket readiness comes first, then octets are read, decrypted, encrypted and written within one
//! poll; so one set of buffers per thread serves every connection, and an idle one owns none.
//! What was used is overwritten with zeros when it is given back: it may have held passwords.

use std::cell::RefCell;

use zeroize::Zeroize;

/// Octets read from a socket at once.
pub(super) const READ: usize = 64 * 1024;
/// Octets of an incomplete record, or of a handshake message in pieces, kept for one connection.
pub(super) const MAX_PARTIAL: usize = 64 * 1024;

/// One thread's buffers.
pub(super) struct Scratch {
    pub(super) reading: Reading,
    /// Records to be written.
    pub(super) outgoing: Outgoing,
}

/// Where octets are read and decrypted.
pub(super) struct Reading {
    /// As read: an incomplete record from before, then what the socket had.
    pub(super) incoming: Vec<u8>,
    /// Octets at the front of `incoming` that were used.
    pub(super) used: usize,
    /// What the records held.
    pub(super) plain: Plain,
}

/// Plaintext of the records of one read, in a buffer that keeps its size.
pub(super) struct Plain {
    octets: Vec<u8>,
    filled: usize,
    /// Octets at the front of `octets` that were used.
    used: usize,
}

/// Records to be written, built up from the front of a buffer that keeps its size.
pub(super) struct Outgoing {
    octets: Vec<u8>,
    filled: usize,
}

thread_local! {
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

/// Lends this thread's buffers to `work`, which cannot await, and wipes what it used of them.
pub(super) fn lend<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with(|cell| {
        // A second loan within the first cannot happen; if it did, it would get buffers of its own.
        let Ok(mut kept) = cell.try_borrow_mut() else { return work(&mut Scratch::new()) };
        let scratch = kept.get_or_insert_with(|| Box::new(Scratch::new()));
        let result = work(scratch);
        // Not `outgoing`: what is there is encrypted.
        scratch.outgoing.clear();
        scratch.reading.wipe();
        result
    })
}

impl Scratch {
    fn new() -> Self {
        Self {
            reading: Reading {
                incoming: vec![0; MAX_PARTIAL + READ],
                used: 0,
                // What is decrypted is shorter than what was read.
                plain: Plain { octets: vec![0; MAX_PARTIAL + READ], filled: 0, used: 0 },
            },
            outgoing: Outgoing { octets: vec![0; 2 * READ], filled: 0 },
        }
    }
}

impl Reading {
    fn wipe(&mut self) {
        self.incoming.get_mut(..self.used).unwrap_or_default().zeroize();
        self.used = 0;
        self.plain.octets.get_mut(..self.plain.used).unwrap_or_default().zeroize();
        self.plain.used = 0;
        self.plain.filled = 0;
    }
}

impl Plain {
    /// What was put here.
    pub(super) fn octets(&self) -> &[u8] {
        self.octets.get(..self.filled).unwrap_or_default()
    }

    /// Makes room for the next read's plaintext.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Adds what a record held; false when there is no room, which cannot happen for octets that
    /// were decrypted from `incoming`.
    #[must_use]
    pub(super) fn put(&mut self, octets: &[u8]) -> bool {
        let until = self.filled.saturating_add(octets.len());
        let Some(room) = self.octets.get_mut(self.filled..until) else { return false };
        room.copy_from_slice(octets);
        self.filled = until;
        self.used = self.used.max(until);
        true
    }
}

impl Outgoing {
    /// What was put here.
    pub(super) fn queued(&self) -> &[u8] {
        self.octets.get(..self.filled).unwrap_or_default()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Adds `octets`.
    pub(super) fn put(&mut self, octets: &[u8]) {
        let count = octets.len();
        if let Some(room) = self.room(count).get_mut(..count) {
            room.copy_from_slice(octets);
            self.filled = self.filled.saturating_add(count);
        }
    }

    /// At least `count` free octets, to be written to and then claimed by [`Self::advance`].
    pub(super) fn room(&mut self, count: usize) -> &mut [u8] {
        let needed = self.filled.saturating_add(count);
        if self.octets.len() < needed {
            self.octets.resize(needed, 0);
        }
        self.octets.get_mut(self.filled..).unwrap_or_default()
    }

    /// Claims `count` octets that were written to [`Self::room`].
    pub(super) fn advance(&mut self, count: usize) {
        self.filled = self.filled.saturating_add(count).min(self.octets.len());
    }
}
