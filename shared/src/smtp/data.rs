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

    #[test]
    fn the_sixteen_smuggling_vectors() {
        let smuggled =
            "MAIL FROM:<x@example.org>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nhello\r\n.\r\n";
        for (vector, expected) in [
            ("a\r\n.\r\n", content("a\r\n")),
            (".\r\n", content("")),
            ("..x\r\n.\r\n", content(".x\r\n")),
        ] {
            assert_eq!(decode(vector.as_bytes()), expected, "{vector:?}");
        }
        for vector in [
            "\n.\n",
            "\n.\r\n",
            "\r\n.\n",
            "\r.\r\n",
            "\r.\r",
            "\r\n.\rtext",
            "\r\n.\r\r\n",
            "\r\r\n",
            "\r\n.\r\r\r\n",
            "a\rb",
            "\n.x\n",
        ] {
            let sent = format!("a{vector}{smuggled}");
            assert_eq!(decode(sent.as_bytes()), Got::Refused, "{vector:?}");
        }
        for (vector, expected) in [
            ("a\r\n\0.\r\n.\r\n", content("a\r\n\0.\r\n")),
            ("a\r\n.\0\r\n.\r\n", content("a\r\n\0\r\n")),
            ("a\nb\r\n.\r\n", content("a\nb\r\n")),
        ] {
            assert_eq!(decode(vector.as_bytes()), expected, "{vector:?}");
        }
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
