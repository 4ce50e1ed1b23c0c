//! Message data after DATA: dot-stuffing and its end (RFC 5321 §4.5.2), both directions.
//!
//! Only CR LF `.` CR LF ends a message; the line that DATA was on counts as the first CR LF. A server that
//! sees an end where another does not lets a message smuggle a second one past it, so there is no other
//! way to read an end here, and none to write one by accident.
//!
//! **CR and LF stand only together** (RFC 5321 §2.3.8). A message with a bare CR or a bare LF is read on to
//! its true end and refused ([`Decoder::fault`]); the session then answers `550 5.6.0` and closes. There
//! is one rule for all of them, not only for those beside a dot, because each alternative breaks a promise:
//! sent on as it is, a bare line end is what the next server may be smuggled with; turned into CR LF, the
//! octets delivered are not the octets received (P8) and signatures over them fail. NUL and all other
//! octets are content.

/// Reads message data.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    faulty: bool,
}

/// Where in the data the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Behind a CR LF, or at the very start.
    #[default]
    LineStart,
    /// Behind a dot at the start of a line.
    Dot,
    /// Behind a dot at the start of a line and a CR.
    DotCr,
    /// Within a line.
    Text,
    /// Within a line, behind a CR.
    Cr,
    /// Behind the end.
    End,
}

/// How far a [`Decoder`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Everything was consumed, and the message goes on.
    GoesOn,
    /// The message ended; what is behind these octets is the next command.
    Ended {
        /// Octets consumed.
        consumed: usize,
    },
}

/// A CR without LF, or an LF without CR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bare CR or LF in the message")]
pub struct BareLineEnding;

impl Decoder {
    /// Reads `octets` and appends the content among them, without stuffing, to `content`. Nothing is
    /// appended any more once the message has a fault.
    pub fn decode(&mut self, octets: &[u8], content: &mut Vec<u8>) -> Progress {
        let mut rest = octets;
        while let Some((&octet, behind)) = rest.split_first() {
            if self.state == State::Text {
                // The hot path: to the next octet that means something, in one go.
                let run = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                if run > 0 {
                    let (text, behind) = rest.split_at(run);
                    self.take(text, content);
                    rest = behind;
                    continue;
                }
            }
            self.octet(octet, content);
            rest = behind;
            if self.state == State::End {
                return Progress::Ended { consumed: octets.len().saturating_sub(rest.len()) };
            }
        }
        Progress::GoesOn
    }

    /// What is wrong with the message so far. Known for certain at its end.
    pub fn fault(&self) -> Option<BareLineEnding> {
        self.faulty.then_some(BareLineEnding)
    }

    fn octet(&mut self, octet: u8, content: &mut Vec<u8>) {
        self.state = match (self.state, octet) {
            (State::LineStart, b'.') => State::Dot,
            (State::LineStart | State::Text, b'\r') => State::Cr,
            (State::Dot, b'\r') => State::DotCr,
            (State::DotCr, b'\n') => State::End,
            (State::Cr, b'\n') => {
                self.take(b"\r\n", content);
                State::LineStart
            }
            // Two CRs: the first was bare, the second may begin a line end, but never that of a dot.
            (State::Cr | State::DotCr, b'\r') => {
                self.faulty = true;
                State::Cr
            }
            (State::Cr | State::DotCr, _) => {
                self.faulty = true;
                State::Text
            }
            (State::LineStart | State::Text | State::Dot, b'\n') => {
                self.faulty = true;
                State::Text
            }
            // A dot before anything else was put there for the way.
            (State::LineStart | State::Text | State::Dot, _) => {
                self.take(&[octet], content);
                State::Text
            }
            (State::End, _) => State::End,
        };
    }

    fn take(&self, octets: &[u8], content: &mut Vec<u8>) {
        if !self.faulty {
            content.extend_from_slice(octets);
        }
    }
}

/// Writes message data.
#[derive(Debug, Default)]
pub struct Encoder {
    state: Written,
}

/// What was written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Written {
    /// CR LF, or nothing yet.
    #[default]
    LineEnd,
    /// Part of a line.
    Text,
    /// A CR whose LF has not come.
    Cr,
}

impl Encoder {
    /// Appends `content` to `octets`, with a dot before each line that begins with one.
    ///
    /// # Errors
    ///
    /// [`BareLineEnding`]: such a message is not sent on; what was appended must not be sent.
    pub fn encode(&mut self, content: &[u8], octets: &mut Vec<u8>) -> Result<(), BareLineEnding> {
        octets.reserve(content.len().saturating_add(content.len() / 64));
        let mut rest = content;
        while let Some(&first) = rest.first() {
            match (self.state, first) {
                (Written::Cr, b'\n') => {
                    octets.extend_from_slice(b"\r\n");
                    self.state = Written::LineEnd;
                    rest = rest.get(1..).unwrap_or_default();
                }
                (Written::Cr, _) | (Written::LineEnd | Written::Text, b'\n') => {
                    return Err(BareLineEnding);
                }
                (Written::LineEnd | Written::Text, b'\r') => {
                    self.state = Written::Cr;
                    rest = rest.get(1..).unwrap_or_default();
                }
                (state @ (Written::LineEnd | Written::Text), _) => {
                    if state == Written::LineEnd && first == b'.' {
                        octets.push(b'.');
                    }
                    let run = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                    let (text, behind) = rest.split_at(run);
                    octets.extend_from_slice(text);
                    self.state = Written::Text;
                    rest = behind;
                }
            }
        }
        Ok(())
    }

    /// Appends the end. A last line without CR LF gets it; nothing else is added.
    ///
    /// # Errors
    ///
    /// [`BareLineEnding`] when the content ended with a CR.
    pub fn finish(self, octets: &mut Vec<u8>) -> Result<(), BareLineEnding> {
        match self.state {
            Written::LineEnd => octets.extend_from_slice(b".\r\n"),
            Written::Text => octets.extend_from_slice(b"\r\n.\r\n"),
            Written::Cr => return Err(BareLineEnding),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What became of a message: its content or its fault, and what was left for the next command.
    #[derive(Debug, PartialEq)]
    enum Read {
        Content(Vec<u8>),
        Fault,
        Unended,
    }

    fn decode(parts: &[&[u8]]) -> (Read, Vec<u8>) {
        let (mut decoder, mut content) = (Decoder::default(), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            match decoder.decode(part, &mut content) {
                Progress::GoesOn => {}
                Progress::Ended { consumed } => {
                    let rest = [&part[consumed..], &parts[index + 1..].concat()].concat();
                    let read = match decoder.fault() {
                        Some(BareLineEnding) => Read::Fault,
                        None => Read::Content(content),
                    };
                    return (read, rest);
                }
            }
        }
        (Read::Unended, Vec::new())
    }

    /// Decodes `data` whole, in two parts cut at every octet, and octet by octet: all must be the same.
    fn read(data: &[u8]) -> (Read, Vec<u8>) {
        let whole = decode(&[data]);
        for cut in 0..=data.len() {
            let (first, rest) = data.split_at(cut);
            assert_eq!(decode(&[first, rest]), whole, "{data:?} cut at {cut}");
        }
        let octets: Vec<&[u8]> = data.chunks(1).collect();
        assert_eq!(decode(&octets), whole, "{data:?} octet by octet");
        whole
    }

    const SMUGGLED: &[u8] =
        b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nevil\r\n";
    const END: &[u8] = b".\r\n";

    /// Content, then a vector, then a smuggled transaction, then the true end.
    fn with_smuggled(before: &[u8], vector: &[u8]) -> Vec<u8> {
        [before, vector, SMUGGLED, END].concat()
    }

    /// The vector does not end the message, and the message is refused at its true end.
    fn is_refused(vector: &[u8]) {
        for before in [&b"text"[..], b"text\r\n", b""] {
            let data = with_smuggled(before, vector);
            assert_eq!(read(&data), (Read::Fault, Vec::new()), "{:?} + {vector:?}", before);
        }
    }

    #[test]
    fn vector_1_crlf_dot_crlf_ends_a_message() {
        let (content, rest) = read(b"text\r\n.\r\nQUIT\r\n");
        assert_eq!((content, &rest[..]), (Read::Content(b"text\r\n".to_vec()), &b"QUIT\r\n"[..]));
    }

    #[test]
    fn vector_2_a_dot_directly_behind_data_ends_an_empty_message() {
        assert_eq!(read(b".\r\nQUIT\r\n"), (Read::Content(Vec::new()), b"QUIT\r\n".to_vec()));
    }

    #[test]
    fn vector_3_the_first_line_is_unstuffed_too() {
        assert_eq!(read(b"..x\r\n.\r\n").0, Read::Content(b".x\r\n".to_vec()));
    }

    #[test]
    fn vector_4_lf_dot_lf_is_no_end() {
        is_refused(b"\n.\n");
    }

    #[test]
    fn vector_5_lf_dot_crlf_is_no_end() {
        is_refused(b"\n.\r\n");
    }

    #[test]
    fn vector_6_crlf_dot_lf_is_no_end() {
        is_refused(b"\r\n.\n");
    }

    #[test]
    fn vector_7_cr_dot_crlf_is_no_end() {
        is_refused(b"\r.\r\n");
    }

    #[test]
    fn vector_8_cr_dot_cr_is_no_end() {
        is_refused(b"\r.\r");
    }

    #[test]
    fn vector_9_crlf_dot_cr_is_no_end() {
        is_refused(b"\r\n.\r");
    }

    #[test]
    fn vector_10_crlf_dot_cr_crlf_is_no_end() {
        is_refused(b"\r\n.\r\r\n");
        is_refused(b"\r\n.\r\r\r\r\n");
    }

    #[test]
    fn vector_11_cr_crlf_dot_crlf_ends_a_message_that_is_refused() {
        let (content, rest) = read(b"text\r\r\n.\r\nQUIT\r\n");
        assert_eq!((content, &rest[..]), (Read::Fault, &b"QUIT\r\n"[..]));
    }

    #[test]
    fn vector_12_nul_is_content_and_ends_nothing() {
        for vector in [&b"\r\n\0.\r\n"[..], b"\r\n.\0\r\n"] {
            let data = with_smuggled(b"text", vector);
            let unstuffed = vector.strip_prefix(b"\r\n.\0").map_or(vector, |_| b"\r\n\0\r\n");
            let content = [b"text", unstuffed, SMUGGLED].concat();
            assert_eq!(read(&data), (Read::Content(content), Vec::new()));
        }
    }

    #[test]
    fn vector_13_a_bare_lf_anywhere_is_refused() {
        is_refused(b"a\nb\r\n");
        assert_eq!(read(b"\n.\r\n.\r\n").0, Read::Fault);
    }

    #[test]
    fn vector_14_a_bare_cr_anywhere_is_refused() {
        is_refused(b"a\rb\r\n");
        is_refused(b"\r");
    }

    // Vector 15, each of them split at every octet, is what `read` does in all of these.

    #[test]
    fn vector_16_the_end_is_seen_wherever_the_content_is_cut_off() {
        // The session drops content beyond its limit; the decoder must stay in step with the peer.
        let (mut decoder, mut content) = (Decoder::default(), Vec::new());
        let data = [&b"x".repeat(5000)[..], b"\r\n.\r\nQUIT\r\n"].concat();
        for (index, octet) in data.iter().enumerate() {
            let progress = decoder.decode(&[*octet], &mut content);
            content.clear();
            if progress == (Progress::Ended { consumed: 1 }) {
                assert_eq!(&data[index + 1..], b"QUIT\r\n");
                return;
            }
        }
        panic!("no end");
    }

    #[test]
    fn nothing_is_appended_once_there_is_a_fault() {
        let (mut decoder, mut content) = (Decoder::default(), Vec::new());
        decoder.decode(b"good\r\nbad\nlost\r\n", &mut content);
        assert_eq!(
            (content.as_slice(), decoder.fault()),
            (&b"good\r\nbad"[..], Some(BareLineEnding))
        );
    }

    fn encode(parts: &[&[u8]]) -> Result<Vec<u8>, BareLineEnding> {
        let (mut encoder, mut octets) = (Encoder::default(), Vec::new());
        for part in parts {
            encoder.encode(part, &mut octets)?;
        }
        encoder.finish(&mut octets)?;
        Ok(octets)
    }

    #[test]
    fn dots_are_stuffed_at_the_start_and_behind_crlf_only() {
        assert_eq!(encode(&[b".a.\r\n.\r\n..b\r\n"]).unwrap(), b"..a.\r\n..\r\n...b\r\n.\r\n");
        assert_eq!(encode(&[b".", b"a\r", b"\n", b".b\r\n"]).unwrap(), b"..a\r\n..b\r\n.\r\n");
    }

    #[test]
    fn no_line_is_added_to_a_message() {
        assert_eq!(encode(&[b"a\r\n"]).unwrap(), b"a\r\n.\r\n");
        assert_eq!(encode(&[b"a"]).unwrap(), b"a\r\n.\r\n");
        assert_eq!(encode(&[]).unwrap(), b".\r\n");
    }

    #[test]
    fn a_bare_line_end_is_never_written() {
        for content in [&b"a\nb"[..], b"a\rb", b"a\r", b"\n", b"\r\r\n", b".\n.\r\n"] {
            for cut in 0..=content.len() {
                let (first, rest) = content.split_at(cut);
                assert_eq!(encode(&[first, rest]), Err(BareLineEnding), "{content:?} at {cut}");
            }
        }
    }

    /// Content of the pieces in which line ends and dots meet.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = proptest::sample::select(vec![
            &b"\r\n"[..],
            b".",
            b"..",
            b"a",
            b"\0",
            b"\xff",
            b"text",
        ]);
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_to_the_same_octets(content in pieces(), cut in 0..200_usize) {
            let (first, rest) = content.split_at(cut.min(content.len()));
            let octets = encode(&[first, rest]).unwrap();
            let whole = content.is_empty() || content.ends_with(b"\r\n");
            let expected = if whole { content.clone() } else { [&content[..], b"\r\n"].concat() };
            let (first, rest) = octets.split_at(cut.min(octets.len()));
            prop_assert_eq!(decode(&[first, rest, b"QUIT"]), (Read::Content(expected), b"QUIT".to_vec()));
        }

        #[test]
        fn the_end_is_where_crlf_dot_crlf_first_is(
            octets in proptest::collection::vec(proptest::sample::select(b"\r\n.a".to_vec()), 0..60)
        ) {
            let primed = [b"\r\n", octets.as_slice()].concat();
            let end = primed.windows(5).position(|w| w == b"\r\n.\r\n").map(|at| at + 5 - 2);
            let (read, rest) = read(&octets);
            match end {
                Some(end) => prop_assert_eq!(rest, &octets[end..]),
                None => prop_assert_eq!(read, Read::Unended),
            }
        }

        #[test]
        fn a_fault_is_found_exactly_when_cr_and_lf_stand_apart(
            octets in proptest::collection::vec(proptest::sample::select(b"\r\n.a".to_vec()), 0..40)
        ) {
            let data = [octets.as_slice(), b"\r\n.\r\n"].concat();
            let (found, rest) = decode(&[&data]);
            let message = &data[..data.len() - rest.len()];
            let together = message.windows(2).filter(|w| w == b"\r\n").count();
            let apart = message.iter().filter(|b| b"\r\n".contains(b)).count() != together * 2;
            prop_assert_eq!(found == Read::Fault, apart);
        }
    }
}
