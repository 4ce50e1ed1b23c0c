//! How a fuzzer's octets are read: what is said, where it is cut, how the scene is set.

/// What a peer says, and in which pieces it arrives.
#[derive(Debug, Clone)]
pub struct Cut<'a> {
    said: &'a [u8],
    sizes: &'a [u8],
    scene: u8,
}

impl<'a> Cut<'a> {
    /// Reads a corpus file.
    pub fn read(octets: &'a [u8]) -> Self {
        match octets.iter().rposition(|octet| *octet == 0xff) {
            Some(at) => {
                let (said, behind) = octets.split_at(at);
                let (scene, sizes) = behind[1..].split_first().unwrap_or((&0, &[]));
                Self { said, sizes, scene: *scene }
            }
            None => Self { said: octets, sizes: &[], scene: 0 },
        }
    }

    /// All that is said.
    pub fn said(&self) -> &'a [u8] {
        self.said
    }

    /// True when that bit of the scene is set.
    pub fn has(&self, bit: u8) -> bool {
        self.scene & (1 << bit) != 0
    }

    /// What is said between two points at which the peer waits.
    pub fn turns(&self) -> impl Iterator<Item = &'a [u8]> {
        self.said.split(|octet| *octet == 0xfe)
    }

    /// `octets` in the sizes that the file names, again and again.
    pub fn pieces<'o>(&self, octets: &'o [u8]) -> Vec<&'o [u8]> {
        let sizes = if self.sizes.is_empty() { &[0] } else { self.sizes };
        let mut rest = octets;
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((usize::from(*size) + 1).min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_is_said_and_behind_it_how_it_arrives() {
        let cut = Cut::read(b"a\xffbcdefg\xff\x02\x01\x00");
        assert_eq!(cut.said(), b"a\xffbcdefg");
        assert_eq!(cut.pieces(cut.said()), [&b"a\xff"[..], b"b", b"cd", b"e", b"fg"]);
        assert!(cut.has(1) && !cut.has(0));
        let plain = Cut::read(b"ab\xfec");
        assert_eq!(plain.turns().collect::<Vec<_>>(), [&b"ab"[..], b"c"]);
        assert_eq!(plain.pieces(b"ab"), [b"a", b"b"]);
    }
}
