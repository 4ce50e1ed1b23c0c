//! Where an IMAP command ends: at the line end that no literal follows (RFC 3501 §4.3, RFC 7888).

/// Largest literal before login, in octets: names, passwords and ID values.
pub(super) const MAX_LITERAL: usize = 4096;
/// Largest command with its literals, in octets: a SASL initial response of 16 KiB in base64.
pub(super) const MAX_COMMAND: usize = 24 * 1024;

/// What is at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A command of so many octets, its line end included, with so many synchronizing literals.
    Whole { octets: usize, literals: usize },
    /// Part of a command, in which so many synchronizing literals were announced.
    Part { literals: usize },
    /// A synchronizing literal that is too large was announced; the command so far has so many octets.
    LiteralTooLarge { command: usize, literals: usize },
    /// More than can be waited for: the octets that follow cannot be told from commands.
    TooLarge { limit: usize, literals: usize },
}

/// How a line of a command ends.
enum Ending {
    Command,
    Literal { octets: usize, synchronizing: bool },
}

/// Looks at the octets that were not consumed yet.
pub(super) fn next(unread: &[u8]) -> Frame {
    let mut at = 0;
    let mut literals = 0;
    loop {
        let rest = unread.get(at..).unwrap_or_default();
        let Some(length) = memchr::memchr(b'\n', rest) else {
            return if unread.len() > MAX_COMMAND {
                Frame::TooLarge { limit: MAX_COMMAND, literals }
            } else {
                Frame::Part { literals }
            };
        };
        at = at.saturating_add(length).saturating_add(1);
        if at > MAX_COMMAND {
            return Frame::TooLarge { limit: MAX_COMMAND, literals };
        }
        match ending(rest.get(..length).unwrap_or_default()) {
            Ending::Command => return Frame::Whole { octets: at, literals },
            Ending::Literal { octets, synchronizing } => {
                let too_large = octets > MAX_LITERAL || at.saturating_add(octets) > MAX_COMMAND;
                match (too_large, synchronizing) {
                    (true, true) => return Frame::LiteralTooLarge { command: at, literals },
                    (true, false) => {
                        return Frame::TooLarge { limit: MAX_LITERAL, literals };
                    }
                    (false, true) => literals += 1,
                    (false, false) => {}
                }
                at = at.saturating_add(octets);
                if at > unread.len() {
                    return Frame::Part { literals };
                }
            }
        }
    }
}

/// `{123}` and `{123+}` at the end of a line announce a literal, but not inside a quoted string.
fn ending(line: &[u8]) -> Ending {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Some(inner) = line.strip_suffix(b"}") else { return Ending::Command };
    let (inner, synchronizing) = match inner.strip_suffix(b"+") {
        Some(inner) => (inner, false),
        None => (inner, true),
    };
    let Some(brace) = memchr::memrchr(b'{', inner) else { return Ending::Command };
    let digits = inner.get(brace.saturating_add(1)..).unwrap_or_default();
    if digits.is_empty()
        || !digits.iter().all(u8::is_ascii_digit)
        || inside_quotes(line.get(..brace).unwrap_or_default())
    {
        return Ending::Command;
    }
    // A number too long to read is in any case too large.
    let octets = std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok());
    Ending::Literal { octets: octets.unwrap_or(usize::MAX), synchronizing }
}

fn inside_quotes(line: &[u8]) -> bool {
    let mut quoted = false;
    let mut octets = line.iter();
    while let Some(octet) = octets.next() {
        match octet {
            b'"' => quoted = !quoted,
            b'\\' if quoted => drop(octets.next()),
            _ => {}
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_ends_where_no_literal_follows() {
        for (text, expected) in [
            ("a NOOP\r\n", Frame::Whole { octets: 8, literals: 0 }),
            ("a NOOP\nb NOOP\n", Frame::Whole { octets: 7, literals: 0 }),
            ("a NOOP", Frame::Part { literals: 0 }),
            ("a LOGIN {3}\r\n", Frame::Part { literals: 1 }),
            ("a LOGIN {3+}\r\n", Frame::Part { literals: 0 }),
            ("a LOGIN {3}\r\nann {6}\r\n", Frame::Part { literals: 2 }),
            ("a LOGIN {3+}\r\nann {6+}\r\nsecret\r\nb", Frame::Whole { octets: 32, literals: 0 }),
            ("a LOGIN {3+}\r\n\r\n\n\r\n", Frame::Whole { octets: 19, literals: 0 }),
            ("a LOGIN \"{3}\r\n", Frame::Whole { octets: 14, literals: 0 }),
            ("a LOGIN \"x\\\"{3}\r\n", Frame::Whole { octets: 17, literals: 0 }),
            ("a LOGIN {}\r\n", Frame::Whole { octets: 12, literals: 0 }),
            ("a LOGIN {4097}\r\n", Frame::LiteralTooLarge { command: 16, literals: 0 }),
            (
                "a LOGIN {99999999999999999999}\r\n",
                Frame::LiteralTooLarge { command: 32, literals: 0 },
            ),
            ("a LOGIN {4097+}\r\n", Frame::TooLarge { limit: MAX_LITERAL, literals: 0 }),
        ] {
            assert_eq!(next(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn an_endless_line_is_not_waited_for() {
        assert_eq!(
            next(&vec![b'x'; MAX_COMMAND + 1]),
            Frame::TooLarge { limit: MAX_COMMAND, literals: 0 }
        );
    }

    #[test]
    fn many_small_literals_are_one_large_command() {
        let bomb = "{4000+}\r\n".to_owned() + &"x".repeat(4000);
        assert_eq!(
            next(bomb.repeat(8).as_bytes()),
            Frame::TooLarge { limit: MAX_LITERAL, literals: 0 }
        );
    }
}
