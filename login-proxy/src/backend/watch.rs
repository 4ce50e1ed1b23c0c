//! Looks for UNAUTHENTICATE on a joined connection (RFC 8437 for IMAP, RFC 5804 §2.14 for ManageSieve).
//!
//! It would let the client log in as somebody else on a connection that was routed, and is fenced, for one
//! account (LOG-12). It is never offered; used anyway, the session ends. Only backends that offer it are
//! watched. COMPRESS (RFC 4978) would hide it, so with such a backend COMPRESS is neither offered nor
//! passed.
//!
//! Pure, and small: it holds a few octets however much is said. Literals are passed over, so that a message
//! with such words in it goes through. A synchronizing literal counts only once the backend has asked for
//! it: one that was refused is followed by commands.

use shared::wire::Watch;

/// Commands that must not pass.
const FORBIDDEN: [&[u8]; 2] = [b"UNAUTHENTICATE", b"COMPRESS"];
/// Octets of a verb that are kept: enough to know that it is none of those.
const VERB: usize = 16;
/// Octets at the end of a line that are kept: enough for `{18446744073709551615+}` and a CR.
const TAIL: usize = 24;

/// A watch on one joined connection.
#[derive(Debug)]
pub struct CommandWatch {
    /// Words before the verb: IMAP has a tag.
    before_verb: u8,
    client: Lines,
    backend: Lines,
    /// The client has announced a literal of so many octets and waits for the backend's leave.
    announced: Option<u64>,
}

/// Where in a stream of lines and literals we are.
#[derive(Debug, Default)]
struct Lines {
    /// Octets of a literal still to come.
    literal: u64,
    /// Spaces seen between words.
    words: u8,
    in_word: bool,
    /// The first octets of the word at hand, and how many it has.
    word: [u8; VERB],
    length: usize,
    quoted: bool,
    escaped: bool,
    tail: [u8; TAIL],
    tail_length: usize,
}

/// What a line turned out to be.
enum LineEnd {
    Plain,
    Literal { octets: u64, synchronizing: bool },
}

impl CommandWatch {
    /// For IMAP.
    pub fn imap() -> Self {
        Self::new(1)
    }

    /// For ManageSieve.
    pub fn managesieve() -> Self {
        Self::new(0)
    }

    fn new(before_verb: u8) -> Self {
        Self { before_verb, client: Lines::default(), backend: Lines::default(), announced: None }
    }
}

impl Watch for CommandWatch {
    fn client_says(&mut self, octets: &[u8]) -> bool {
        // The backend refused the literal, so commands follow; or it will ask for it, and what comes early
        // is looked at as commands, too.
        let mut rest = octets;
        while let Some((first, others)) = rest.split_first() {
            if self.client.literal > 0 {
                rest = self.client.skip(rest);
                continue;
            }
            rest = others;
            if self.client.ends_word(*first)
                && self.client.words == self.before_verb
                && self.client.is_forbidden()
            {
                return false;
            }
            if let Some(LineEnd::Literal { octets, synchronizing }) = self.client.take(*first) {
                if synchronizing {
                    self.announced = Some(octets);
                } else {
                    self.client.expect_literal(octets);
                }
            }
        }
        true
    }

    fn backend_says(&mut self, octets: &[u8]) {
        let mut rest = octets;
        while let Some((first, others)) = rest.split_first() {
            if self.backend.literal > 0 {
                rest = self.backend.skip(rest);
                continue;
            }
            rest = others;
            let asks = *first == b'+' && self.backend.is_at_start();
            if asks && let Some(octets) = self.announced.take() {
                self.client.expect_literal(octets);
            }
            if let Some(LineEnd::Literal { octets, .. }) = self.backend.take(*first) {
                self.backend.expect_literal(octets);
            }
        }
    }
}

impl Lines {
    fn is_at_start(&self) -> bool {
        self.words == 0 && !self.in_word && self.tail_length == 0
    }

    /// A command goes on behind its literal, so its words are not counted anew.
    fn expect_literal(&mut self, octets: u64) {
        self.literal = octets;
        self.words = u8::MAX;
    }

    /// What is left behind the literal.
    fn skip<'a>(&mut self, octets: &'a [u8]) -> &'a [u8] {
        let count = usize::try_from(self.literal).unwrap_or(usize::MAX).min(octets.len());
        self.literal = self.literal.saturating_sub(count as u64);
        octets.get(count..).unwrap_or_default()
    }

    fn ends_word(&self, octet: u8) -> bool {
        self.in_word && matches!(octet, b' ' | b'\t' | b'\r' | b'\n')
    }

    fn is_forbidden(&self) -> bool {
        let word = self.word.get(..self.length).unwrap_or_default();
        FORBIDDEN.iter().any(|forbidden| forbidden.eq_ignore_ascii_case(word))
    }

    /// Takes one octet of a line; says how the line ended, if it did.
    fn take(&mut self, octet: u8) -> Option<LineEnd> {
        if octet == b'\n' {
            let end = self.ending();
            let literal = self.literal;
            *self = Self { literal, ..Self::default() };
            return Some(end);
        }
        match octet {
            b' ' | b'\t' | b'\r' => {
                if std::mem::take(&mut self.in_word) {
                    self.words = self.words.saturating_add(1);
                }
            }
            _ => {
                if !std::mem::replace(&mut self.in_word, true) {
                    self.length = 0;
                }
                if let Some(place) = self.word.get_mut(self.length) {
                    *place = octet;
                }
                // One more than fits says that the word is longer.
                self.length = self.length.saturating_add(1).min(VERB + 1);
            }
        }
        match octet {
            b'"' if !self.escaped => self.quoted = !self.quoted,
            _ => {}
        }
        self.escaped = octet == b'\\' && self.quoted && !self.escaped;
        if self.tail_length == TAIL {
            self.tail.rotate_left(1);
            self.tail_length -= 1;
        }
        if let Some(place) = self.tail.get_mut(self.tail_length) {
            *place = octet;
            self.tail_length += 1;
        }
        None
    }

    /// `{n}` or `{n+}` at the end of a line announces a literal, but not within a quoted string.
    fn ending(&self) -> LineEnd {
        let tail = self.tail.get(..self.tail_length).unwrap_or_default();
        let tail = tail.strip_suffix(b"\r").unwrap_or(tail);
        let read = || {
            let inner = tail.strip_suffix(b"}")?;
            let at = inner.iter().rposition(|octet| *octet == b'{')?;
            let digits = inner.get(at.checked_add(1)?..)?;
            let (digits, synchronizing) = match digits.strip_suffix(b"+") {
                Some(digits) => (digits, false),
                None => (digits.strip_suffix(b"-").unwrap_or(digits), true),
            };
            let octets = std::str::from_utf8(digits).ok()?.parse().ok()?;
            Some(LineEnd::Literal { octets, synchronizing })
        };
        if self.quoted { LineEnd::Plain } else { read().unwrap_or(LineEnd::Plain) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `C:` and `S:` say who speaks; true when all of it passed.
    fn passes(conversation: &[&str]) -> bool {
        let said = |sizes: usize| {
            let mut watch = CommandWatch::imap();
            conversation.iter().all(|line| {
                let (who, octets) = line.split_at(2);
                octets.as_bytes().chunks(sizes).all(|part| match who {
                    "C:" => watch.client_says(part),
                    _ => {
                        watch.backend_says(part);
                        true
                    }
                })
            })
        };
        let whole = said(usize::MAX);
        for size in 1..40 {
            assert_eq!(said(size), whole, "{conversation:?} in pieces of {size}");
        }
        whole
    }

    #[test]
    fn unauthenticate_and_compress_do_not_pass() {
        for line in [
            "C:a UNAUTHENTICATE\r\n",
            "C:a unauthenticate\n",
            "C:a  Unauthenticate \r\n",
            "C:a NOOP\r\nb UNAUTHENTICATE\r\n",
            "C:a COMPRESS DEFLATE\r\n",
            "C:a LOGIN \"{20+}\"\r\nb UNAUTHENTICATE\r\n",
            "C:a X \"{20+}\r\nb UNAUTHENTICATE\r\n",
            "C:a APPEND x {3+}\r\nabc\r\nb UNAUTHENTICATE\r\n",
        ] {
            assert!(!passes(&[line]), "{line:?}");
        }
    }

    #[test]
    fn in_managesieve_the_verb_comes_first() {
        for (line, passed) in [
            ("UNAUTHENTICATE\r\n", false),
            ("PUTSCRIPT \"a\" {16+}\r\nUNAUTHENTICATE\r\n\r\nunauthenticate\r\n", false),
            ("PUTSCRIPT \"a\" {16+}\r\nUNAUTHENTICATE\r\n\r\n", true),
            ("NOOP \"UNAUTHENTICATE\"\r\nNOOP UNAUTHENTICATE\r\n", true),
        ] {
            let mut watch = CommandWatch::managesieve();
            assert_eq!(watch.client_says(line.as_bytes()), passed, "{line:?}");
        }
    }

    #[test]
    fn everything_else_passes() {
        for line in [
            "C:a NOOP UNAUTHENTICATE\r\n",
            "C:UNAUTHENTICATE NOOP\r\n",
            "C:a UNAUTHENTICATED\r\n",
            "C:a UNAUTHENTICATE_NOT_QUITE_THIS\r\n",
            "C:a APPEND x {20+}\r\nb UNAUTHENTICATE\r\n.\r\n",
            "C:a SEARCH TEXT {2+}\r\nxx UNAUTHENTICATE\r\n",
            "C:DONE\r\n",
        ] {
            assert!(passes(&[line]), "{line:?}");
        }
    }

    #[test]
    fn a_literal_counts_once_the_backend_has_asked_for_it() {
        let append = "C:a APPEND x {18}\r\n";
        let message = "C:b UNAUTHENTICATE\r\n\r\n";
        assert!(passes(&[append, "S:+ go on\r\n", message]));
        assert!(!passes(&[append, "S:a NO too large\r\n", message]));
        assert!(!passes(&[append, message]), "it was not asked for");
        assert!(!passes(&[append, "S:* 1 FETCH (BODY[] {7}\r\n+ go on)\r\n", message]));
        let after = "C:b UNAUTHENTICATE\r\n\r\nc UNAUTHENTICATE\r\n";
        assert!(!passes(&[append, "S:+ go on\r\n", after]));
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_panics_or_depends_on_its_pieces(
            said in prop::collection::vec(
                prop_oneof![
                    4 => prop::sample::select(vec![
                        "a ", "UNAUTHENTICATE", "{3}\r\n", "{9+}\r\n", "\"", "\\", " ", "\r\n", "+ x\r\n",
                        "{99999999999999999999}\r\n", "{18446744073709551615+}\r\n",
                    ]).prop_map(|text| text.as_bytes().to_vec()),
                    1 => prop::collection::vec(any::<u8>(), 0..40),
                ],
                0..20,
            ),
            size in 1..50_usize,
        ) {
            let said = said.concat();
            let (mut whole, mut cut) = (CommandWatch::imap(), CommandWatch::imap());
            let passed = whole.client_says(&said);
            prop_assert_eq!(said.chunks(size).all(|part| cut.client_says(part)), passed);
            whole.backend_says(&said);
            said.chunks(size).for_each(|part| cut.backend_says(part));
            if passed {
                prop_assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
            }
        }
    }
}
