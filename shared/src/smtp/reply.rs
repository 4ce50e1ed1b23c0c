//! Replies: what a server answers, with enhanced status codes (RFC 5321 §4.2, RFC 3463, RFC 2034).

use std::fmt;

/// Longest text of one line that is sent on or logged, in octets.
const MAX_TEXT: usize = 400;

/// A server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<Enhanced>,
    text: Box<str>,
}

/// An enhanced status code (RFC 3463), its class left out: that is the reply's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enhanced {
    /// What it is about: 1 addressing, 2 mailbox, 3 system, 4 network, 5 protocol, 6 content, 7 policy.
    pub subject: u16,
    /// Which of it.
    pub detail: u16,
}

/// What a reply means for what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// 2yz.
    Accepted,
    /// 3yz.
    GoOn,
    /// 4yz: not now.
    Temporary,
    /// 5yz: never.
    Permanent,
}

/// One line of a reply.
#[derive(Debug, PartialEq, Eq)]
pub struct ReplyLine<'a> {
    /// The code.
    pub code: u16,
    /// More lines follow.
    pub more: bool,
    /// What follows the code.
    pub text: &'a str,
}

impl Reply {
    /// A reply with an enhanced code of its own class. `text` is one line of ASCII.
    pub fn new(code: u16, (subject, detail): (u16, u16), text: impl Into<Box<str>>) -> Self {
        Self { code, enhanced: Some(Enhanced { subject, detail }), text: text.into() }
    }

    /// A reply without one: greetings, EHLO, 354 (RFC 2034 §4).
    pub fn bare(code: u16, text: impl Into<Box<str>>) -> Self {
        Self { code, enhanced: None, text: text.into() }
    }

    /// What a server's lines say; the last line's text counts. `None` when they are no reply.
    pub fn of_lines(code: u16, text: &str) -> Self {
        let (enhanced, text) = Enhanced::split(code, text);
        let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
        Self { code, enhanced, text: text.into() }
    }

    /// The code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The enhanced code, if it has one.
    pub fn enhanced(&self) -> Option<Enhanced> {
        self.enhanced
    }

    /// The text behind the codes.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it means.
    pub fn class(&self) -> Class {
        match self.code / 100 {
            2 => Class::Accepted,
            3 => Class::GoOn,
            5 => Class::Permanent,
            // Whatever a broken server says otherwise is no verdict.
            _ => Class::Temporary,
        }
    }

    /// The same codes with a text of ours.
    pub fn saying(&self, text: impl Into<Box<str>>) -> Self {
        Self { code: self.code, enhanced: self.enhanced, text: text.into() }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.enhanced {
            Some(Enhanced { subject, detail }) => {
                write!(f, "{} {}.{subject}.{detail} {}", self.code, self.code / 100, self.text)
            }
            None => write!(f, "{} {}", self.code, self.text),
        }
    }
}

impl Enhanced {
    /// Takes an enhanced code off the front of a text, if it is one of the reply's class.
    fn split(code: u16, text: &str) -> (Option<Self>, &str) {
        let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut numbers = first
            .split('.')
            .map(|part| (1..=3).contains(&part.len()).then(|| part.parse::<u16>().ok()).flatten());
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Some(class)), Some(Some(subject)), Some(Some(detail)), None)
                if class == code / 100 =>
            {
                (Some(Self { subject, detail }), rest)
            }
            _ => (None, text),
        }
    }
}

impl<'a> ReplyLine<'a> {
    /// Reads `250-text`, `250 text` or `250`.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).unwrap_or_else(|error| {
            // What is not UTF-8 is text for people; the codes before it count.
            line.get(..error.valid_up_to()).and_then(|l| std::str::from_utf8(l).ok()).unwrap_or("")
        });
        let (digits, rest) = line.split_at_checked(3)?;
        let code: u16 = digits.parse().ok().filter(|code| (200..600).contains(code))?;
        let (more, text) = match rest.split_at_checked(1) {
            None => (false, ""),
            Some((" ", text)) => (false, text),
            Some(("-", text)) => (true, text),
            Some(_) => return None,
        };
        Some(Self { code, more, text })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reply_is_written_with_its_class_in_both_codes() {
        let reply = Reply::new(550, (1, 1), "No such user");
        assert_eq!(reply.to_string(), "550 5.1.1 No such user");
        assert_eq!(Reply::bare(354, "Go on").to_string(), "354 Go on");
    }

    #[test]
    fn a_servers_codes_are_kept_and_its_text_is_tamed() {
        let reply = Reply::of_lines(452, "4.2.2 quota\u{7}");
        assert_eq!(
            (reply.class(), reply.enhanced()),
            (Class::Temporary, Some(Enhanced { subject: 2, detail: 2 }))
        );
        assert_eq!(reply.text(), "quota");
        assert_eq!(reply.saying("Mailbox full").to_string(), "452 4.2.2 Mailbox full");
        let other_class = Reply::of_lines(550, "4.2.2 quota");
        assert_eq!(other_class.enhanced(), None, "an enhanced code of another class is text");
    }

    #[test]
    fn a_line_has_three_digits_and_a_sign() {
        let parse = |line: &'static str| ReplyLine::parse(line.as_bytes());
        assert_eq!(
            parse("250-SIZE 10"),
            Some(ReplyLine { code: 250, more: true, text: "SIZE 10" })
        );
        assert_eq!(parse("250"), Some(ReplyLine { code: 250, more: false, text: "" }));
        for bad in ["25", "2x0 ok", "250ok", "199 x", "600 x", "", "ok", "２50 x"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_line_of_a_server_panics_or_gets_past_its_own_line(
            octets in prop::collection::vec(any::<u8>(), 0..60)
        ) {
            let line = [b"550 ", octets.as_slice()].concat();
            if let Some(line) = ReplyLine::parse(&line) {
                let reply = Reply::of_lines(line.code, line.text).to_string();
                prop_assert!(!reply.contains(['\r', '\n', '\0']), "{:?}", reply);
            }
            let _ = ReplyLine::parse(&octets);
        }
    }
}
