//! The words of an IMAP command: atoms, strings, one level of list (RFC 3501 §9).

use zeroize::Zeroize;

/// One word.
#[derive(PartialEq, Eq)]
pub(super) enum Token {
    /// Octets without quotes; `NIL` is one, too.
    Atom(Vec<u8>),
    /// A quoted string or a literal.
    Text(Vec<u8>),
    /// What stands between brackets.
    List(Vec<Token>),
}

impl Token {
    /// The octets of a name or a password: atom or string (astring).
    pub(super) fn astring(&self) -> Option<&[u8]> {
        match self {
            Self::Atom(octets) | Self::Text(octets) => Some(octets),
            Self::List(_) => None,
        }
    }
}

/// A token may be a password.
impl Drop for Token {
    fn drop(&mut self) {
        match self {
            Self::Atom(octets) | Self::Text(octets) => octets.zeroize(),
            Self::List(_) => {}
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Takes a whole command, without its tag, apart. `None` when it is malformed.
pub(super) fn tokens(command: &[u8]) -> Option<Vec<Token>> {
    let mut reader = Reader { rest: command };
    let tokens = reader.sequence(false)?;
    matches!(reader.rest, b"\r\n" | b"\n").then_some(tokens)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn sequence(&mut self, in_list: bool) -> Option<Vec<Token>> {
        let mut tokens = Vec::new();
        loop {
            // Some clients put two spaces, or one before the line end.
            while let Some(rest) = self.rest.strip_prefix(b" ") {
                self.rest = rest;
            }
            match self.rest.first()? {
                b'\r' | b'\n' if !in_list => return Some(tokens),
                b')' if in_list => {
                    self.skip(1);
                    return Some(tokens);
                }
                b'(' if !in_list => {
                    self.skip(1);
                    tokens.push(Token::List(self.sequence(true)?));
                }
                b'"' => tokens.push(Token::Text(self.quoted()?)),
                b'{' => tokens.push(Token::Text(self.literal()?)),
                _ => tokens.push(Token::Atom(self.atom()?)),
            }
            // A word ends where something ends a word.
            if !matches!(self.rest.first()?, b' ' | b'\r' | b'\n' | b')') {
                return None;
            }
        }
    }

    /// Any octet but CR, LF and NUL; 8-bit ones come from real clients (passwords in Latin-1).
    fn quoted(&mut self) -> Option<Vec<u8>> {
        // Of its final size: a buffer that grows leaves its old block behind, and this may be a password.
        let mut text = Vec::with_capacity(quoted_length(self.rest.get(1..)?));
        let mut octets = self.rest.get(1..)?.iter().enumerate();
        loop {
            let (at, octet) = octets.next()?;
            match octet {
                b'"' => {
                    self.skip(at.saturating_add(2));
                    return Some(text);
                }
                b'\\' => match octets.next()? {
                    (_, escaped @ (b'"' | b'\\')) => text.push(*escaped),
                    _ => return None,
                },
                b'\r' | b'\n' | 0 => return None,
                other => text.push(*other),
            }
        }
    }

    /// `{n}` or `{n+}`, the line end, n octets. The frame has seen to it that they are there.
    fn literal(&mut self) -> Option<Vec<u8>> {
        let end = memchr::memchr(b'}', self.rest)?;
        let size = self.rest.get(1..end)?;
        let size = std::str::from_utf8(size.strip_suffix(b"+").unwrap_or(size)).ok()?;
        let size: usize = size.parse().ok()?;
        self.skip(end.checked_add(1)?);
        self.rest = self.rest.strip_prefix(b"\r").unwrap_or(self.rest).strip_prefix(b"\n")?;
        let text = self.rest.get(..size)?;
        if text.contains(&0) {
            return None;
        }
        self.skip(size);
        Some(text.to_vec())
    }

    fn atom(&mut self) -> Option<Vec<u8>> {
        let end = self.rest.iter().position(|octet| b" ()\r\n\"".contains(octet))?;
        let atom = self.rest.get(..end)?;
        if atom.is_empty() || atom.iter().any(u8::is_ascii_control) {
            return None;
        }
        self.skip(end);
        Some(atom.to_vec())
    }

    fn skip(&mut self, octets: usize) {
        self.rest = self.rest.get(octets..).unwrap_or_default();
    }
}

/// Octets up to the closing quote; an escaped one is passed over.
fn quoted_length(text: &[u8]) -> usize {
    let mut escaped = false;
    let closes = |octet: &u8| {
        let closes = *octet == b'"' && !escaped;
        escaped = *octet == b'\\' && !escaped;
        closes
    };
    text.iter().position(closes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_password_never_leaves_an_old_buffer_behind() {
        for (text, length) in [("abc\" d", 3), ("a\\\"b\" \"", 4), ("a\\\\\"", 3), ("open", 0)] {
            assert_eq!(quoted_length(text.as_bytes()), length, "{text:?}");
        }
        let long = format!("\"{}\"\r\n", "x".repeat(300));
        let mut reader = Reader { rest: long.as_bytes() };
        let text = reader.quoted().unwrap();
        assert_eq!((text.len(), text.capacity()), (300, 300));
    }

    fn words(command: &str) -> Option<Vec<String>> {
        let shown = |token: &Token| match token {
            Token::Atom(octets) => String::from_utf8_lossy(octets).into_owned(),
            Token::Text(octets) => format!("{:?}", String::from_utf8_lossy(octets)),
            Token::List(tokens) => format!("({} words)", tokens.len()),
        };
        tokens(command.as_bytes()).map(|tokens| tokens.iter().map(shown).collect())
    }

    #[test]
    fn words_are_atoms_strings_and_lists() {
        for (command, expected) in [
            ("LOGIN ann se%cret*\r\n", vec!["LOGIN", "ann", "se%cret*"]),
            ("LOGIN \"a b\" \"q\\\"\\\\\"\r\n", vec!["LOGIN", "\"a b\"", "\"q\\\"\\\\\""]),
            ("LOGIN {3}\r\na\"b {0+}\r\n\r\n", vec!["LOGIN", "\"a\\\"b\"", "\"\""]),
            ("ID (\"name\" NIL \"os\" {2+}\r\nme)\r\n", vec!["ID", "(4 words)"]),
            ("NOOP \n", vec!["NOOP"]),
        ] {
            let expected = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(words(command), Some(expected), "{command:?}");
        }
    }

    #[test]
    fn malformed_words_are_refused() {
        for command in [
            "LOGIN \"a\r\n",
            "LOGIN \"a\\b\"\r\n",
            "LOGIN \"a\0\"\r\n",
            "LOGIN {1}\r\n\0\r\n",
            "LOGIN \"a\"b\r\n",
            "ID (a (b))\r\n",
            "ID (a\r\n",
            "ID a)\r\n",
            "LOGIN a\x01 b\r\n",
            "LOGIN a\rb c\r\n",
        ] {
            assert_eq!(words(command), None, "{command:?}");
        }
    }
}
