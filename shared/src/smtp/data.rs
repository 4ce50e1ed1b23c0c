//! Message data on the wire: where it ends, and dots at line starts (RFC 5321 §4.5.2).
//!
//! Only CR LF `.` CR LF ends data, counting the start of data as a line start. Everything that another
//! server might take for an end is refused (SMTP smuggling): a dot behind a lone LF or CR, a dot line that
//! ends with a lone LF or CR, and any lone CR. A lone LF elsewhere is sent on as it came: it ends nothing
//! for anybody when no dot follows it, and changing it would break signatures. NUL and 8-bit octets are
//! content.
//!
//! After a flaw the true end is still looked for, so that the refusal is the answer to this message and
//! to nothing else.

/// Takes data off the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDecoder {
    at: At,
    flawed: bool,
}

/// Where the decoder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Behind CR LF, or at the start of data.
    LineStart,
    /// Behind a dot at a line start, which is not content.
    Dot,
    /// Behind that dot and CR.
    DotCr,
    /// Inside a line.
    Line,
    /// Behind CR inside a line.
    Cr,
    /// Behind an LF without CR.
    LoneLf,
    /// Behind the end.
    End,
}

/// Puts data on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataEncoder {
    /// Octets of CR LF that were just written: 2 at a line start.
    line_end: u8,
}

impl Default for DataDecoder {
    fn default() -> Self {
        Self { at: At::LineStart, flawed: false }
    }
}

impl DataDecoder {
    /// Takes octets from the wire and appends their content to `content`. Returns how many were taken:
    /// all of them, or those up to and with the end of data.
    pub fn decode(&mut self, octets: &[u8], content: &mut Vec<u8>) -> usize {
        let mut taken = 0;
        while let Some(&octet) = octets.get(taken) {
            if self.at == At::End {
                break;
            }
            if self.at == At::Line {
                let rest = octets.get(taken..).unwrap_or_default();
                let plain = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                content.extend_from_slice(rest.get(..plain).unwrap_or_default());
                taken = taken.saturating_add(plain);
                if plain > 0 {
                    continue;
                }
            }
            self.octet(octet, content);
            taken = taken.saturating_add(1);
        }
        taken
    }

    /// True behind the end of data.
    pub fn is_done(&self) -> bool {
        self.at == At::End
    }

    /// True when something in the data could be taken for its end by another server: refuse it.
    pub fn is_flawed(&self) -> bool {
        self.flawed
    }

    fn octet(&mut self, octet: u8, content: &mut Vec<u8>) {
        self.at = match (self.at, octet) {
            (At::LineStart, b'.') => At::Dot,
            (At::Dot, b'\r') => At::DotCr,
            (At::DotCr, b'\n') => At::End,
            // CR LF . LF, CR LF . CR x, CR LF . CR CR LF
            (At::Dot, b'\n') => self.flaw(content, &[octet], At::LoneLf),
            (At::DotCr, b'\r') => self.flaw(content, b"\r", At::Cr),
            (At::DotCr, _) => self.flaw(content, &[b'\r', octet], At::Line),
            // A lone CR, which may have a dot behind it.
            (At::Cr, b'\r') => self.flaw(content, b"\r", At::Cr),
            (At::Cr, b'\n') => {
                content.extend_from_slice(b"\r\n");
                At::LineStart
            }
            (At::Cr, _) => self.flaw(content, &[b'\r', octet], At::Line),
            // LF . anything
            (At::LoneLf, b'.') => self.flaw(content, b".", At::Line),
            (At::LineStart | At::Line | At::LoneLf, b'\r') => At::Cr,
            (At::LineStart | At::Line | At::LoneLf, b'\n') => {
                content.push(octet);
                At::LoneLf
            }
            (At::LineStart | At::Line | At::LoneLf | At::Dot, _) => {
                content.push(octet);
                At::Line
            }
            (At::End, _) => At::End,
        };
    }

    fn flaw(&mut self, content: &mut Vec<u8>, octets: &[u8], at: At) -> At {
        self.flawed = true;
        content.extend_from_slice(octets);
        at
    }
}

impl Default for DataEncoder {
    fn default() -> Self {
        Self { line_end: 2 }
    }
}

impl DataEncoder {
    /// Appends `content` to `wire`, with every dot at a line start doubled.
    pub fn encode(&mut self, content: &[u8], wire: &mut Vec<u8>) {
        let mut rest = content;
        while let Some(&first) = rest.first() {
            if self.line_end == 2 && first == b'.' {
                wire.push(b'.');
            }
            let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at.saturating_add(1));
            let (line, following) = rest.split_at(line);
            wire.extend_from_slice(line);
            self.line_end = match line {
                [.., b'\r', b'\n'] => 2,
                [b'\n'] if self.line_end == 1 => 2,
                [.., b'\r'] => 1,
                _ => 0,
            };
            rest = following;
        }
    }

    /// Appends the end of data. Content that was decoded from the wire ends with CR LF; other content gets
    /// one, since there is no end without.
    pub fn finish(self, wire: &mut Vec<u8>) {
        if self.line_end != 2 {
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b".\r\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Got {
        Content(Vec<u8>),
        Refused,
    }

    /// Decodes `octets`, which end with the true end of data, cut at every place: the cut must not matter,
    /// and nothing behind the end may be taken.
    fn decode(octets: &[u8]) -> Got {
        let follow = b"MAIL FROM:<smuggled@example.org>\r\n";
        let sent = [octets, follow].concat();
        let outcome = |cut: usize| {
            let (mut decoder, mut content) = (DataDecoder::default(), Vec::new());
            let (first, rest) = sent.split_at(cut);
            let mut taken = decoder.decode(first, &mut content);
            if taken == first.len() {
                taken += decoder.decode(rest, &mut content);
            }
            assert!(decoder.is_done(), "cut at {cut}");
            assert_eq!(&sent[taken..], follow, "cut at {cut}");
            if decoder.is_flawed() { Got::Refused } else { Got::Content(content) }
        };
        let whole = outcome(0);
        (1..sent.len()).for_each(|cut| assert_eq!(outcome(cut), whole, "cut at {cut}"));
        whole
    }

    fn content(octets: &str) -> Got {
        Got::Content(octets.as_bytes().to_vec())
    }

    const SMUGGLED: &str =
        "MAIL FROM:<x@example.org>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nhello\r\n.\r\n";

    /// `vector` ends nothing: not what follows it, and the whole of it is refused at its true end.
    fn is_refused(vector: &str) {
        for before in ["", "a", "a\r\n"] {
            let sent = format!("{before}{vector}{SMUGGLED}");
            assert_eq!(decode(sent.as_bytes()), Got::Refused, "{before:?} + {vector:?}");
        }
    }

    #[test]
    fn vector_1_crlf_dot_crlf_is_the_end() {
        assert_eq!(decode(b"a\r\n.\r\n"), content("a\r\n"));
    }

    #[test]
    fn vector_2_dot_crlf_directly_behind_354_is_the_end_of_an_empty_message() {
        assert_eq!(decode(b".\r\n"), content(""));
    }

    #[test]
    fn vector_3_a_dot_is_removed_from_the_first_line_too() {
        assert_eq!(decode(b"..x\r\n.\r\n"), content(".x\r\n"));
    }

    #[test]
    fn vector_4_lf_dot_lf_is_refused() {
        is_refused("\n.\n");
    }

    #[test]
    fn vector_5_lf_dot_crlf_is_refused() {
        is_refused("\n.\r\n");
    }

    #[test]
    fn vector_6_crlf_dot_lf_is_refused() {
        is_refused("\r\n.\n");
    }

    #[test]
    fn vector_7_cr_dot_crlf_is_refused() {
        is_refused("\r.\r\n");
    }

    #[test]
    fn vector_8_cr_dot_cr_is_refused() {
        is_refused("\r.\r");
    }

    #[test]
    fn vector_9_crlf_dot_cr_is_refused() {
        is_refused("\r\n.\rtext");
        is_refused("\r\n.\r");
    }

    #[test]
    fn vector_10_crlf_dot_cr_crlf_is_refused() {
        is_refused("\r\n.\r\r\n");
        is_refused("\r\n.\r\r\r\n");
    }

    #[test]
    fn vector_11_cr_crlf_dot_crlf_is_an_end_whose_message_is_refused() {
        assert_eq!(decode(b"a\r\r\n.\r\n"), Got::Refused);
    }

    #[test]
    fn vector_12_nul_is_content_and_no_part_of_an_end() {
        assert_eq!(decode(b"a\r\n\0.\r\n.\r\n"), content("a\r\n\0.\r\n"));
        assert_eq!(decode(b"a\r\n.\0\r\n.\r\n"), content("a\r\n\0\r\n"));
    }

    #[test]
    fn vector_13_an_lf_apart_from_dots_is_content() {
        assert_eq!(decode(b"a\nb\n\n\r\n.\r\n"), content("a\nb\n\n\r\n"));
        is_refused("\n.x\n");
    }

    #[test]
    fn vector_14_a_lone_cr_is_refused_anywhere() {
        is_refused("a\rb");
        is_refused("\r");
        is_refused("\n\r");
    }

    // Vector 15, all of them cut at every octet, is what `decode` does.

    #[test]
    fn vector_16_the_end_is_found_behind_content_that_nobody_keeps() {
        let (mut decoder, mut content) = (DataDecoder::default(), Vec::new());
        let sent = [&b"x".repeat(5000)[..], b"\r\n.\r\nQUIT\r\n"].concat();
        let mut at = 0;
        while !decoder.is_done() {
            at += decoder.decode(&sent[at..(at + 7).min(sent.len())], &mut content);
            content.clear();
        }
        assert_eq!(&sent[at..], b"QUIT\r\n");
    }

    #[test]
    fn what_is_sent_never_ends_early_for_anybody() {
        let mut wire = Vec::new();
        let mut encoder = DataEncoder::default();
        for part in [&b".first\r"[..], b"\n.second\r\n", b".", b"\r\nlast\n\r\n"] {
            encoder.encode(part, &mut wire);
        }
        encoder.finish(&mut wire);
        assert_eq!(wire, b"..first\r\n..second\r\n..\r\nlast\n\r\n.\r\n");
    }

    proptest! {
        #[test]
        fn content_survives_the_wire(
            words in prop::collection::vec(prop_oneof![
                Just("."), Just("\r\n"), Just(".."), Just("\0"), Just("\u{fc}"), Just("a"),
            ], 0..40),
            cuts in prop::collection::vec(0usize..200, 0..8),
        ) {
            let mut message = words.concat().into_bytes();
            if !message.is_empty() && !message.ends_with(b"\r\n") {
                message.extend_from_slice(b"\r\n");
            }
            let (mut encoder, mut wire, mut at) = (DataEncoder::default(), Vec::new(), 0);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(message.len())).collect();
            cuts.sort_unstable();
            for cut in cuts.into_iter().chain([message.len()]) {
                encoder.encode(&message[at..cut], &mut wire);
                at = cut;
            }
            encoder.finish(&mut wire);
            prop_assert_eq!(decode(&wire), Got::Content(message));
        }

        /// Whatever a client sends and we accept, a server that takes the laxest ends there are sees
        /// them only where we put ours.
        #[test]
        fn nothing_accepted_can_be_smuggled_on(
            words in prop::collection::vec(prop_oneof![
                Just("."), Just("\r"), Just("\n"), Just("\r\n"), Just("a"), Just("\0"),
            ], 0..12),
        ) {
            let sent = [words.concat().as_bytes(), b"\r\n.\r\n"].concat();
            let (mut decoder, mut accepted) = (DataDecoder::default(), Vec::new());
            decoder.decode(&sent, &mut accepted);
            if decoder.is_done() && !decoder.is_flawed() {
                let mut wire = Vec::new();
                let mut encoder = DataEncoder::default();
                encoder.encode(&accepted, &mut wire);
                encoder.finish(&mut wire);
                // Any line break, a dot, any line break: the laxest end there is.
                let lax = |at: usize| {
                    wire[at] == b'.'
                        && (at == 0 || matches!(wire[at - 1], b'\r' | b'\n'))
                        && matches!(wire.get(at + 1), Some(b'\r' | b'\n'))
                };
                let ends: Vec<usize> = (0..wire.len()).filter(|at| lax(*at)).collect();
                prop_assert_eq!(ends, vec![wire.len() - 3]);
            }
        }
    }
}
