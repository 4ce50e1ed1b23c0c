//! Octets queued for a peer.
//!
//! They may hold credentials on their way to a backend, so they are wiped when written or dropped.

use zeroize::Zeroize;

/// Octets queued for a peer. Owns no memory while empty.
#[derive(Default)]
pub struct Output {
    octets: Vec<u8>,
}

impl Output {
    /// Queues `octets` as they are.
    pub fn push(&mut self, octets: impl AsRef<[u8]>) {
        let octets = octets.as_ref();
        if self.octets.len().saturating_add(octets.len()) > self.octets.capacity() {
            let room = self.octets.len().saturating_add(octets.len()).next_power_of_two().max(256);
            let mut moved = Vec::with_capacity(room);
            moved.extend_from_slice(&self.octets);
            self.octets.zeroize();
            self.octets = moved;
        }
        self.octets.extend_from_slice(octets);
    }

    /// What is queued.
    pub fn queued(&self) -> &[u8] {
        &self.octets
    }

    /// True when nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// Wipes and forgets everything, and gives the memory back.
    pub fn clear(&mut self) {
        self.octets.zeroize();
        self.octets = Vec::new();
    }

    /// Takes everything, leaving this output empty. Used by tests and by the wire.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.octets)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.octets.zeroize();
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Output({} octets)", self.octets.len())
    }
}
