//! Domains and mailbox addresses, each with one canonical form (RFC 5321 §4.1.2, RFC 5890).
//!
//! A domain is kept as a lower-case A-label without a trailing dot. A local part is kept exactly as
//! received, quotes included, because its owner may care (RFC 5321 §2.4); it is compared by
//! [`Address::canonical`]. Reading `<...>` paths with source routes is `smtp::path`'s business.

use std::fmt;

/// Longest domain in octets (RFC 5321 §4.5.3.1.2).
const MAX_DOMAIN: usize = 255;
/// Longest local part in octets. RFC 5321 §4.5.3.1.1 says 64; longer ones (VERP, SRS) are in use.
const MAX_LOCAL: usize = 255;

/// A domain name as a lower-case A-label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Box<str>);

/// A mailbox: local part as received, and its domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    local: Box<str>,
    domain: Domain,
}

/// Why something is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `@`, or nothing before it.
    #[error("not of the form local@domain")]
    Form,
    /// The local part is neither a dot-string nor a quoted string.
    #[error("bad local part")]
    LocalPart,
    /// The domain is not a host name, even after IDNA.
    #[error("bad domain")]
    Domain,
    /// A part is longer than its limit.
    #[error("too long")]
    TooLong,
}

impl Domain {
    /// Reads a domain in any case, as A-label or U-label, with or without a trailing dot.
    ///
    /// # Errors
    ///
    /// [`AddressError::Domain`] or [`AddressError::TooLong`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > MAX_DOMAIN {
            return Err(if text.is_empty() { AddressError::Domain } else { AddressError::TooLong });
        }
        let ascii = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(text).map_err(|_| AddressError::Domain)?
        };
        let label_is_good = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                // Underscores are no host names, but real domains of senders have them.
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if ascii.len() > MAX_DOMAIN || !ascii.split('.').all(label_is_good) {
            return Err(AddressError::Domain);
        }
        Ok(Self(ascii.into()))
    }

    /// `localhost`, for where no other name is known.
    pub fn localhost() -> Self {
        Self("localhost".into())
    }

    /// The lower-case A-label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Address {
    /// Reads `local@domain`. The local part is a dot-string or a quoted string (RFC 5321 §4.1.2);
    /// empty atoms (`a..b`) pass, because real mailboxes of that form exist.
    ///
    /// # Errors
    ///
    /// An [`AddressError`] that names the part at fault.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let address = Self::parse_utf8(text)?;
        if address.local.is_ascii() { Ok(address) } else { Err(AddressError::LocalPart) }
    }

    /// The same, with characters beyond ASCII in the local part: of a message with SMTPUTF8 (RFC 6531 §3.3).
    /// They are not normalized, as its owner may not do so either.
    ///
    /// # Errors
    ///
    /// As [`Self::parse`].
    pub fn parse_utf8(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = text.rsplit_once('@').ok_or(AddressError::Form)?;
        if local.is_empty() {
            return Err(AddressError::Form);
        }
        if local.len() > MAX_LOCAL {
            return Err(AddressError::TooLong);
        }
        if !local_part_is_good(local) {
            return Err(AddressError::LocalPart);
        }
        Ok(Self { local: local.into(), domain: Domain::parse(domain)? })
    }

    /// The local part exactly as received, quotes included.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The same local part, as received, in another domain.
    #[must_use]
    pub fn at(&self, domain: Domain) -> Self {
        Self { local: self.local.clone(), domain }
    }

    /// The form in which addresses are compared: unquoted, ASCII letters in lower case.
    pub fn canonical(&self) -> String {
        format!("{}@{}", unquoted(&self.local).to_ascii_lowercase(), self.domain)
    }
}

/// The local part without its quotes and escapes (RFC 5321 §4.1.2: they are not part of the name).
fn unquoted(local: &str) -> String {
    let Some(inner) = local.strip_prefix('"').and_then(|l| l.strip_suffix('"')) else {
        return local.to_owned();
    };
    let mut name = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        name.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    name
}

fn local_part_is_good(local: &str) -> bool {
    if let Some(inner) = local.strip_prefix('"') {
        return quoted_string_is_good(inner);
    }
    // atext of RFC 5322 §3.2.3, plus the dot.
    local.chars().all(|c| {
        c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c) || is_beyond_ascii(c)
    })
}

/// A character of RFC 6532 §3.1. No other line ends or control characters are among those of mailboxes.
fn is_beyond_ascii(c: char) -> bool {
    !c.is_ascii() && !c.is_control() && !c.is_whitespace()
}

/// Checks what follows the opening quote: printable characters, `\` before any of ASCII, and one closing
/// quote at the very end.
fn quoted_string_is_good(inner: &str) -> bool {
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return chars.next().is_none(),
            '\\' => match chars.next() {
                Some(' '..='~') => {}
                _ => return false,
            },
            ' '..='~' => {}
            c if is_beyond_ascii(c) => {}
            _ => return false,
        }
    }
    false
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_has_one_form() {
        for text in ["Example.ORG", "example.org.", "example.org"] {
            assert_eq!(Domain::parse(text).unwrap().as_str(), "example.org");
        }
        assert_eq!(Domain::parse("Bücher.example").unwrap().as_str(), "xn--bcher-kva.example");
        assert_eq!(
            Domain::parse("XN--BCHER-KVA.example").unwrap().as_str(),
            "xn--bcher-kva.example"
        );
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        let long = "a".repeat(64);
        for text in ["", ".", "a..b", "-a.b", "a-.b", "a b", "a\0b", "[192.0.2.1]", &long] {
            assert!(Domain::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_local_part_is_kept_as_received_and_compared_without_case_and_quotes() {
        let plain = Address::parse("Ann.Lee@Example.org").unwrap();
        assert_eq!(plain.to_string(), "Ann.Lee@example.org");
        let quoted = Address::parse("\"ann.\\lee\"@example.org").unwrap();
        assert_eq!(quoted.to_string(), "\"ann.\\lee\"@example.org");
        assert_eq!(plain.canonical(), quoted.canonical());
    }

    #[test]
    fn a_local_part_beyond_ascii_needs_smtputf8() {
        for text in ["\u{fc}nal@example.org", "\"\u{fc} nal\"@example.org"] {
            assert_eq!(Address::parse(text), Err(AddressError::LocalPart), "{text}");
            assert_eq!(Address::parse_utf8(text).unwrap().to_string(), text);
        }
        let upper = Address::parse_utf8("\u{dc}NAL@B\u{dc}CHER.example").unwrap();
        assert_eq!(upper.canonical(), "\u{dc}nal@xn--bcher-kva.example");
        for bad in ["a\u{a0}b@c.example", "a\u{85}b@c.example", "a\u{2028}b@c.example"] {
            assert_eq!(Address::parse_utf8(bad), Err(AddressError::LocalPart), "{bad:?}");
        }
    }

    #[test]
    fn an_address_cannot_smuggle_a_second_argument() {
        for text in [
            "ann> NOTIFY=NEVER <x@example.org",
            "ann\r\nRCPT TO:<x@example.org",
            "a b@example.org",
            "\"a\"b\"@example.org",
            "\"a\\\"@example.org",
            "ann@exam ple.org",
            "@example.org",
            "ann",
        ] {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
    }
}
