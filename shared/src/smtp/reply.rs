//! Replies: what a server says to a command (RFC 5321 §4.2, RFC 3463), written and read.
//!
//! A reply of ours is short, printable ASCII in lines of at most 512 octets. A reply of a backend is read
//! within bounds and cleaned, since its text may end in a log; its class, code and enhanced code are what
//! counts.

use std::borrow::Cow;
use std::fmt;

use crate::dialogue::{Line, Output};

/// Longest line of a backend's reply in octets with its line end. RFC 5321 §4.5.3.1.5 says 512.
pub const MAX_LINE: usize = 2048;
/// Most lines of a backend's reply.
const MAX_LINES: usize = 128;
/// Longest text in one line of ours, so that code and enhanced code fit in 512 octets as well.
const MAX_TEXT: usize = 480;

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<Enhanced>,
    /// Lines parted by LF.
    text: Cow<'static, str>,
}

/// The first digit of a code: what the client is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// 2xx: done.
    Success,
    /// 3xx: go on.
    Intermediate,
    /// 4xx: not now.
    Temporary,
    /// 5xx: not so.
    Permanent,
}

/// Subject and detail of an enhanced code (RFC 3463); its class is always that of the reply's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enhanced {
    /// Such as 1 for addresses, 7 for policy.
    pub subject: u16,
    /// What of it.
    pub detail: u16,
}

/// Why what a backend says is no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// A line without three digits and a space or hyphen behind them.
    #[error("a line that is no reply")]
    Syntax,
    /// A code that no reply has.
    #[error("reply code {0}")]
    Code(u16),
    /// The lines of one reply have different codes (RFC 5321 §4.2.1).
    #[error("one reply with the codes {0} and {1}")]
    Codes(u16, u16),
    /// More lines than any reply has.
    #[error("reply of more than {MAX_LINES} lines")]
    TooManyLines,
}

/// Puts a backend's lines together to a reply.
#[derive(Debug, Default)]
pub struct ReplyParser {
    code: Option<u16>,
    lines: usize,
    text: String,
}

impl Reply {
    /// A reply with an enhanced code, whose class is the code's: `Reply::new(550, (1, 1), …)` is
    /// `550 5.1.1 …`. For 2xx, 4xx and 5xx.
    pub const fn new(code: u16, (subject, detail): (u16, u16), text: &'static str) -> Self {
        debug_assert!(200 <= code && code < 600 && code / 100 != 3);
        let enhanced = Some(Enhanced { subject, detail });
        Self { code, enhanced, text: Cow::Borrowed(text) }
    }

    /// A reply without an enhanced code: greetings, EHLO, 3xx. `text` may have lines parted by LF.
    pub fn plain(code: u16, text: impl Into<Cow<'static, str>>) -> Self {
        debug_assert!((200..600).contains(&code));
        Self { code, enhanced: None, text: text.into() }
    }

    /// The same verdict in other words.
    pub fn with_text(self, text: impl Into<Cow<'static, str>>) -> Self {
        Self { text: text.into(), ..self }
    }

    /// The three digits.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The first of them.
    pub fn class(&self) -> Class {
        match self.code / 100 {
            2 => Class::Success,
            3 => Class::Intermediate,
            4 => Class::Temporary,
            _ => Class::Permanent,
        }
    }

    /// Subject and detail, if it has an enhanced code.
    pub fn enhanced(&self) -> Option<Enhanced> {
        self.enhanced
    }

    /// Its lines, parted by LF.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Queues it.
    pub fn write(&self, output: &mut Output) {
        output.push(self.to_octets());
    }

    /// Its octets, CRLFs included.
    pub fn to_octets(&self) -> Vec<u8> {
        let mut octets = Vec::with_capacity(self.text.len() + 16);
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            octets.extend(self.code.to_string().bytes());
            octets.push(if lines.peek().is_some() { b'-' } else { b' ' });
            if let Some(Enhanced { subject, detail }) = self.enhanced {
                octets.extend(format!("{}.{subject}.{detail} ", self.code / 100).bytes());
            }
            let printable = |b: u8| if matches!(b, b' '..=b'~') { b } else { b'?' };
            octets.extend(line.bytes().take(MAX_TEXT).map(printable));
            octets.extend(b"\r\n");
        }
        octets
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.code)?;
        if let Some(Enhanced { subject, detail }) = self.enhanced {
            write!(f, "{}.{subject}.{detail} ", self.code / 100)?;
        }
        f.write_str(&self.text.replace('\n', " / "))
    }
}

impl ReplyParser {
    /// Takes the next line; returns the reply with its last one, and is ready for another then.
    ///
    /// # Errors
    ///
    /// A [`ReplyError`], after which the connection is of no use.
    pub fn line(&mut self, line: &Line) -> Result<Option<Reply>, ReplyError> {
        let octets = line.octets();
        let (digits, rest) = octets.split_at_checked(3).ok_or(ReplyError::Syntax)?;
        let code = digits.iter().try_fold(0_u16, |code, digit| {
            digit.is_ascii_digit().then(|| code * 10 + u16::from(digit - b'0'))
        });
        let code = code.ok_or(ReplyError::Syntax)?;
        if !(200..600).contains(&code) {
            return Err(ReplyError::Code(code));
        }
        let (last, text) = match rest {
            [] => (true, rest),
            [b' ', text @ ..] => (true, text),
            [b'-', text @ ..] => (false, text),
            [_, ..] => return Err(ReplyError::Syntax),
        };
        match self.code {
            None => self.code = Some(code),
            Some(first) if first == code => self.text.push('\n'),
            Some(first) => return Err(ReplyError::Codes(first, code)),
        }
        self.lines += 1;
        if self.lines > MAX_LINES {
            return Err(ReplyError::TooManyLines);
        }
        let clean = |c: char| if c.is_control() { '?' } else { c };
        self.text.extend(String::from_utf8_lossy(text).chars().map(clean));
        Ok(last.then(|| std::mem::take(self).finish(code)))
    }

    fn finish(self, code: u16) -> Reply {
        let enhanced = self.text.split(' ').next().and_then(|word| Enhanced::parse(word, code));
        let Some(enhanced) = enhanced else {
            return Reply { code, enhanced: None, text: self.text.into() };
        };
        let text: Vec<&str> = self
            .text
            .split('\n')
            .map(|line| match line.split_once(' ') {
                Some((word, rest)) if Enhanced::parse(word, code) == Some(enhanced) => rest,
                Some(_) | None => line,
            })
            .collect();
        Reply { code, enhanced: Some(enhanced), text: text.join("\n").into() }
    }
}

impl Enhanced {
    /// Reads `5.1.1`, if it is of the class of `code` (RFC 2034 §4: it must be).
    fn parse(word: &str, code: u16) -> Option<Self> {
        let mut parts = word.split('.');
        let mut number = |digits: usize| {
            let part = parts.next()?;
            let good =
                (1..=digits).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
            if good { part.parse::<u16>().ok() } else { None }
        };
        let (class, subject, detail) = (number(1)?, number(3)?, number(3)?);
        let matches = class == code / 100 && matches!(class, 2 | 4 | 5) && parts.next().is_none();
        matches.then_some(Self { subject, detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialogue::Input;
    use proptest::prelude::*;

    fn read(octets: &[u8]) -> Result<Option<Reply>, ReplyError> {
        let (mut input, mut parser) = (Input::from_octets(octets), ReplyParser::default());
        while let Some(line) = input.line(MAX_LINE).unwrap() {
            if let Some(reply) = parser.line(&line)? {
                assert!(input.is_empty(), "more than one reply");
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    fn written(reply: &Reply) -> String {
        String::from_utf8(reply.to_octets()).unwrap()
    }

    #[test]
    fn a_reply_is_written_with_its_enhanced_code_on_every_line() {
        let reply = Reply::new(550, (1, 1), "No such recipient here");
        assert_eq!(written(&reply), "550 5.1.1 No such recipient here\r\n");
        let reply = Reply::new(250, (0, 0), "one\ntwo");
        assert_eq!(written(&reply), "250-2.0.0 one\r\n250 2.0.0 two\r\n");
        let reply = Reply::plain(250, "mx.example.org\nSIZE 1000\nPIPELINING");
        assert_eq!(written(&reply), "250-mx.example.org\r\n250-SIZE 1000\r\n250 PIPELINING\r\n");
    }

    #[test]
    fn no_text_can_add_a_line_or_a_long_one() {
        let reply = Reply::plain(550, "a\r\nb\0ü");
        assert_eq!(written(&reply), "550-a?\r\n550 b???\r\n");
        assert!(written(&Reply::plain(550, "x".repeat(9000))).len() <= 512);
    }

    #[test]
    fn a_backends_reply_is_read_over_several_lines() {
        let reply =
            read(b"550-5.7.1 first\r\n550-5.7.1 second\r\n550 5.7.1 third\r\n").unwrap().unwrap();
        assert_eq!((reply.code(), reply.class()), (550, Class::Permanent));
        assert_eq!(reply.enhanced(), Some(Enhanced { subject: 7, detail: 1 }));
        assert_eq!(reply.text(), "first\nsecond\nthird");
        let reply = read(b"250\r\n").unwrap().unwrap();
        assert_eq!((reply.code(), reply.enhanced(), reply.text()), (250, None, ""));
        assert_eq!(read(b"250-more\r\n"), Ok(None));
    }

    #[test]
    fn an_enhanced_code_of_another_class_is_text() {
        let reply = read(b"550 4.1.1 odd\r\n").unwrap().unwrap();
        assert_eq!((reply.enhanced(), reply.text()), (None, "4.1.1 odd"));
        for word in ["5.1", "5.1.1.1", "5.1111.1", "5..1", "5.1.a", "x.1.1"] {
            assert_eq!(Enhanced::parse(word, 550), None, "{word}");
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        assert_eq!(read(b"hello\r\n"), Err(ReplyError::Syntax));
        assert_eq!(read(b"25\r\n"), Err(ReplyError::Syntax));
        assert_eq!(read(b"250x\r\n"), Err(ReplyError::Syntax));
        assert_eq!(read(b"199 x\r\n"), Err(ReplyError::Code(199)));
        assert_eq!(read(b"250-a\r\n550 b\r\n"), Err(ReplyError::Codes(250, 550)));
        assert_eq!(read(&b"250-a\r\n".repeat(200)), Err(ReplyError::TooManyLines));
    }

    #[test]
    fn a_backends_text_is_clean_in_a_log() {
        let reply = read(b"550 5.1.1 a\x1b[2J\xff\tb\r\n").unwrap().unwrap();
        assert_eq!(reply.text(), "a?[2J\u{fffd}?b");
    }

    proptest! {
        #[test]
        fn a_reply_that_was_written_reads_the_same(
            code in 200_u16..600, codes in proptest::option::of((0_u16..1000, 0_u16..1000)),
            lines in proptest::collection::vec("([!-~][ -~]{0,40})?", 1..6),
        ) {
            let text = lines.join("\n");
            // A text that begins like an enhanced code is one, when there is no other before it.
            prop_assume!(codes.is_some() || lines.iter().all(|l| !l.contains('.')));
            let mut reply = Reply::plain(code, text);
            reply.enhanced = codes.filter(|_| code / 100 != 3)
                .map(|(subject, detail)| Enhanced { subject, detail });
            prop_assert_eq!(read(&reply.to_octets()), Ok(Some(reply)));
        }

        #[test]
        fn no_line_panics_the_parser(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            let line = [b"55", octets.as_slice(), b"\r\n"].concat();
            let mut input = Input::from_octets(&line);
            let mut parser = ReplyParser::default();
            while let Ok(Some(line)) = input.line(MAX_LINE) {
                let _ = parser.line(&line);
            }
        }
    }
}
