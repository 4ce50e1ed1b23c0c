//! A message's content as one number, found while the message is received.

use std::fmt::Write;

use aws_lc_rs::digest::{Context, SHA256};

/// What the field is called.
const FIELD: &str = "Mailshift-Delivery-Id";
/// Octets of the digest that are told in it.
const TOLD: usize = 16;

/// Hashes a message as it comes.
pub struct Hashing(Box<Context>);

/// SHA-256 of a message as its client sent it, dots apart: before anything of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentHash(pub(super) [u8; 32]);

impl Default for Hashing {
    fn default() -> Self {
        Self(Box::new(Context::new(&SHA256)))
    }
}

impl Hashing {
    /// More of the message.
    pub fn add(&mut self, octets: &[u8]) {
        self.0.update(octets);
    }

    /// It is whole.
    pub fn finish(self) -> ContentHash {
        ContentHash(octets_of(*self.0))
    }
}

impl ContentHash {
    /// The header field, with its CR LF, that every delivery of the message has: the same at each try and at
    /// each owner. Together with the recipient it names a delivery, so whoever meets two copies knows them.
    pub fn field(&self) -> String {
        let mut field = format!("{FIELD}: ");
        self.0.iter().take(TOLD).for_each(|octet| _ = write!(field, "{octet:02x}"));
        field.push_str("\r\n");
        field
    }
}

pub(super) fn octets_of(context: Context) -> [u8; 32] {
    let mut octets = [0; 32];
    octets.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_contents_however_it_came() {
        let whole = |pieces: &[&[u8]]| {
            let mut hashing = Hashing::default();
            for piece in pieces {
                hashing.add(piece);
            }
            hashing.finish()
        };
        // FIPS 180-2, B.1.
        let field = "Mailshift-Delivery-Id: ba7816bf8f01cfea414140de5dae2223\r\n";
        assert_eq!(whole(&[b"abc"]).field(), field);
        assert_eq!(whole(&[b"a", b"", b"bc"]).field(), field);
        assert_ne!(whole(&[b"abd"]), whole(&[b"abc"]));
    }
}
