//! ManageSieve's words (RFC 5804 §1.2, §4), pure: clients and servers say what they say in the same ones.
//!
//! A line ends where no literal follows. Octets of a literal are never taken for words, also where the
//! line around it is wrong, so nobody can hide a command in one.

use shared::credentials::Secret;
use shared::dialogue::Output;

/// Longest quoted string in octets (RFC 5804 §4): a longer one is a literal.
pub const MAX_QUOTED: usize = 1024;
/// Most words of a line; no command and no response has nearly as many.
const MAX_WORDS: usize = 32;

/// How much a peer may say in one line, in octets.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In a quoted string.
    pub quoted: usize,
    /// In a literal.
    pub literal: usize,
    /// In all, literals and line ends included.
    pub line: usize,
}

/// What is at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A line of so many octets, its line end included.
    Whole {
        /// What it is made of.
        words: Vec<Word<'a>>,
        /// How long it is.
        octets: usize,
    },
    /// Part of a line.
    Part,
    /// A line of so many octets that is not made of words, or of too many or too long ones.
    Malformed {
        /// How long it is.
        octets: usize,
    },
    /// More than can be waited for: what follows cannot be told from lines.
    TooLarge {
        /// Octets allowed.
        limit: usize,
    },
}

/// A word of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word<'a> {
    /// A command, a status, a response code.
    Atom(&'a [u8]),
    /// What stands between quotes, escapes and all.
    Quoted(&'a [u8]),
    /// The octets of a literal.
    Literal(&'a [u8]),
    /// `(`
    Open,
    /// `)`
    Close,
}

/// Who writes a string: a client's literals say that they do not wait for leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// `{5+}`
    Client,
    /// `{5}`
    Server,
}

impl Word<'_> {
    /// The string, if it is one.
    pub fn string(&self) -> Option<Secret> {
        match self {
            Self::Literal(octets) => Some(Secret::new(octets.to_vec())),
            Self::Quoted(raw) => {
                // Never grows: it may be a secret.
                let mut text = Vec::with_capacity(raw.len());
                text.extend(unescaped(raw));
                Some(Secret::new(text))
            }
            Self::Atom(_) | Self::Open | Self::Close => None,
        }
    }
}

/// The strings of a line that is made of nothing else.
pub fn strings(words: &[Word]) -> Option<Vec<Secret>> {
    words.iter().map(Word::string).collect()
}

/// Looks at the octets that were not consumed yet.
pub fn parse(unread: &[u8], limits: Limits) -> Parsed<'_> {
    let mut line = Line { words: Vec::new(), is_good: true, limits };
    let mut at: usize = 0;
    loop {
        let rest = unread.get(at..).unwrap_or_default();
        let Some(length) = memchr::memchr(b'\n', rest) else {
            return if unread.len() > limits.line {
                Parsed::TooLarge { limit: limits.line }
            } else {
                Parsed::Part
            };
        };
        at = at.saturating_add(length).saturating_add(1);
        if at > limits.line {
            return Parsed::TooLarge { limit: limits.line };
        }
        let text = rest.get(..length).unwrap_or_default();
        let Some(literal) = line.read(text.strip_suffix(b"\r").unwrap_or(text)) else {
            return match line {
                Line { words, is_good: true, .. } => Parsed::Whole { words, octets: at },
                Line { is_good: false, .. } => Parsed::Malformed { octets: at },
            };
        };
        let end = at.saturating_add(literal);
        if literal > limits.literal {
            return Parsed::TooLarge { limit: limits.literal };
        }
        if end > limits.line {
            return Parsed::TooLarge { limit: limits.line };
        }
        let Some(octets) = unread.get(at..end) else { return Parsed::Part };
        line.push(Word::Literal(octets));
        at = end;
    }
}

/// Queues a string: quoted where it may be, else as a literal.
pub fn push_string(text: &[u8], speaker: Speaker, out: &mut Output) {
    let (before, behind) = around(text, speaker);
    out.push(before);
    out.push(text);
    out.push(behind);
}

/// What is put around a string.
fn around(text: &[u8], speaker: Speaker) -> (String, &'static str) {
    let is_quotable = |octet: &u8| matches!(octet, b' '..=b'~') && !b"\"\\".contains(octet);
    if text.len() <= MAX_QUOTED && text.iter().all(is_quotable) {
        return ("\"".to_owned(), "\"");
    }
    let plus = if speaker == Speaker::Client { "+" } else { "" };
    (format!("{{{}{plus}}}\r\n", text.len()), "")
}

/// One thing that a server can (RFC 5804 §1.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// In upper case.
    pub name: String,
    /// What is said of it, if anything.
    pub value: Option<String>,
}

impl Capability {
    /// A name, and a value if there is one.
    pub fn of(strings: &[Secret]) -> Option<Self> {
        let text = |string: &Secret| String::from_utf8_lossy(string.expose()).into_owned();
        let (name, values) = strings.split_first()?;
        Some(Self { name: text(name).to_ascii_uppercase(), value: values.first().map(text) })
    }

    /// As a server says it, without the line end.
    pub fn to_line(&self) -> Box<str> {
        let strings = [Some(&self.name), self.value.as_ref()];
        let strings = strings.into_iter().flatten().map(|text| {
            let (before, behind) = around(text.as_bytes(), Speaker::Server);
            format!("{before}{text}{behind}")
        });
        strings.collect::<Vec<_>>().join(" ").into()
    }
}

/// A line that is being read.
struct Line<'a> {
    words: Vec<Word<'a>>,
    is_good: bool,
    limits: Limits,
}

impl<'a> Line<'a> {
    /// Reads words up to the line end. Returns the size of the literal that follows it, if one does.
    fn read(&mut self, text: &'a [u8]) -> Option<usize> {
        let mut rest = text;
        while let Some((first, tail)) = rest.split_first() {
            let here = std::mem::replace(&mut rest, tail);
            match first {
                b' ' | b'\t' => {}
                b'(' => self.push(Word::Open),
                b')' => self.push(Word::Close),
                b'"' => rest = self.quoted(tail)?,
                b'{' => match announced(tail) {
                    Some(octets) => return Some(octets),
                    None => self.is_good = false,
                },
                _ => {
                    let end = here.iter().position(|octet| b" \t()\"{".contains(octet));
                    let (atom, behind) = here.split_at(end.unwrap_or(here.len()));
                    self.is_good &= atom.iter().all(u8::is_ascii_graphic);
                    self.push(Word::Atom(atom));
                    rest = behind;
                }
            }
        }
        None
    }

    /// Reads a string up to its closing quote and returns what is behind it; `None` when there is none.
    fn quoted(&mut self, tail: &'a [u8]) -> Option<&'a [u8]> {
        let mut octets = tail.iter().enumerate();
        while let Some((at, octet)) = octets.next() {
            match octet {
                b'"' => {
                    let (raw, behind) = tail.split_at(at);
                    self.is_good &= unescaped(raw).count() <= self.limits.quoted;
                    self.push(Word::Quoted(raw));
                    return behind.get(1..);
                }
                b'\\' => drop(octets.next()),
                b'\0' | b'\r' => self.is_good = false,
                _ => {}
            }
        }
        self.is_good = false;
        None
    }

    fn push(&mut self, word: Word<'a>) {
        if self.words.len() < MAX_WORDS {
            self.words.push(word);
        } else {
            self.is_good = false;
        }
    }
}

/// `{5+}` announces a literal at the end of a line; the brace has been read. So does `{5}`, which a client
/// must not say: who does so anyway does not wait, or would wait for ever.
fn announced(tail: &[u8]) -> Option<usize> {
    let inner = tail.strip_suffix(b"}")?;
    let digits = inner.strip_suffix(b"+").unwrap_or(inner);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // A number too long to read is in any case too large.
    Some(std::str::from_utf8(digits).ok()?.parse().unwrap_or(usize::MAX))
}

/// The octets of a quoted string without the backslashes that escape others.
fn unescaped(raw: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut octets = raw.iter().copied();
    std::iter::from_fn(move || match octets.next() {
        Some(b'\\') => octets.next(),
        octet => octet,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { quoted: 8, literal: 20, line: 60 };

    fn words(text: &str) -> Option<Vec<String>> {
        let Parsed::Whole { words, octets } = parse(text.as_bytes(), LIMITS) else { return None };
        assert_eq!(octets, text.len(), "{text:?}");
        let show = |word: &Word| match word {
            Word::Atom(atom) => String::from_utf8_lossy(atom).into_owned(),
            Word::Open => "(".to_owned(),
            Word::Close => ")".to_owned(),
            string => {
                let string = string.string().unwrap();
                format!("<{}>", String::from_utf8_lossy(string.expose()))
            }
        };
        Some(words.iter().map(show).collect())
    }

    #[test]
    fn a_line_is_made_of_atoms_strings_and_parentheses() {
        for (text, expected) in [
            ("NOOP\r\n", "NOOP"),
            ("NOOP\n", "NOOP"),
            ("\r\n", ""),
            ("OK (TRYLATER/NORETRY) \"a b\"\r\n", "OK ( TRYLATER/NORETRY ) <a b>"),
            ("OK (SASL \"cg==\")\r\n", "OK ( SASL <cg==> )"),
            ("\"a\\\"\\\\b\" \"\"\r\n", "<a\"\\b> <>"),
            ("A \"P\" {4+}\r\na\r\nb\r\n", "A <P> <a\r\nb>"),
            ("{2}\r\nab {0+}\r\n X\r\n", "<ab> <> X"),
            ("\"{3+}\"\r\n", "<{3+}>"),
        ] {
            let said = words(text).unwrap_or_else(|| panic!("{text:?}"));
            assert_eq!(said.join(" "), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_that_is_not_made_of_words_ends_where_no_literal_follows() {
        for text in [
            "\"a\r\n",
            "\"a {3+}\r\n",
            "\"a\\\"\r\n",
            "a{3\r\n",
            "{}\r\n",
            "{3+}x\r\n",
            "{-3}\r\n",
            "\"a\0\"\r\n",
            "\"a\rb\"\r\n",
            "NO\0OP\r\n",
            "\u{fc}\r\n",
            "\"123456789\"\r\n",
            "\"123456789\" {8+}\r\n\r\nLOGOUT\r\n",
            "\u{fc} {8+}\r\n\r\nLOGOUT\r\n",
            &format!("{}\r\n", "(".repeat(33)),
        ] {
            let parsed = parse(text.as_bytes(), LIMITS);
            assert_eq!(parsed, Parsed::Malformed { octets: text.len() }, "{text:?}");
        }
        assert!(words("\"1234567\\\"\"\r\n").is_some(), "an escape counts once");
    }

    #[test]
    fn what_is_too_large_is_not_waited_for() {
        for (text, limit) in [
            ("{21+}\r\n", 20),
            ("{21}\r\n", 20),
            ("{99999999999999999999999+}\r\n", 20),
            (&"{20+}\r\n12345678901234567890".repeat(3), 60),
            (&"x".repeat(61), 60),
            (&format!("{}\r\n", "x".repeat(59)), 60),
        ] {
            assert_eq!(parse(text.as_bytes(), LIMITS), Parsed::TooLarge { limit }, "{text:?}");
        }
        for part in ["", "NOOP\r", "\"a", "{20+}\r", "{20+}\r\n1", "{1+}\r\n1", &"x".repeat(60)] {
            assert_eq!(parse(part.as_bytes(), LIMITS), Parsed::Part, "{part:?}");
        }
    }

    #[test]
    fn a_string_is_quoted_where_it_may_be() {
        assert_eq!(around(b"a b=", Speaker::Client), ("\"".to_owned(), "\""));
        assert_eq!(around(&[b'x'; 1024], Speaker::Client).0, "\"");
        assert_eq!(around(&[b'x'; 1025], Speaker::Client), ("{1025+}\r\n".to_owned(), ""));
        for odd in [&b"\""[..], b"\\", b"\r", b"\0", b"\xfc"] {
            assert_eq!(around(odd, Speaker::Server), ("{1}\r\n".to_owned(), ""));
        }
    }
}
