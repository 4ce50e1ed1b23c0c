//! The `<...>` of MAIL and RCPT (RFC 5321 §4.1.1.2, §4.1.1.3, §4.1.2).
//!
//! A path is read from its raw octets and never re-built from an unquoted form: what cannot be said again
//! octet for octet without danger is refused here. Source routes are stripped (RFC 5321 §3.3, appendix C).
//! Whether the domain is ours, and what `%` or `!` in a local part would mean, is for others to decide.

use std::fmt;

use crate::address::{Address, AddressError};

/// Longest path in octets, brackets not counted. RFC 5321 §4.5.3.1.3 asks for 256 with them; the long
/// local parts of VERP and SRS need more.
const MAX_PATH: usize = 520;
/// Longest source route that is read, in order to be stripped.
const MAX_ROUTE: usize = 1024;

/// Where a message comes from: MAIL's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReversePath {
    /// `<>`: a notification, which must never cause another one (RFC 5321 §4.5.5).
    Null,
    /// A mailbox exactly as received, source route removed. ASCII, and safe to be said between `<` and
    /// `>`. Its domain may be an address literal: senders may have such.
    Mailbox(Box<str>),
}

/// Whom a message is for: RCPT's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardPath {
    /// `<postmaster>` without a domain, in any case (RFC 5321 §4.5.1).
    Postmaster,
    /// A mailbox.
    Mailbox(Address),
}

/// Why something is no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No `<...>`, or not of the form `local@domain` in it.
    #[error("not of the form <local@domain>")]
    Syntax,
    /// Octets beyond ASCII, and SMTPUTF8 is not offered (RFC 6531 §3.5).
    #[error("address is not ASCII")]
    NotAscii,
    /// Longer than any address is.
    #[error("path too long")]
    TooLong,
    /// `<ann>`: only postmaster needs no domain.
    #[error("no domain")]
    NoDomain,
    /// `<>`, where somebody must be named.
    #[error("no recipient")]
    NoRecipient,
    /// `<ann@[192.0.2.1]>`: well-formed, but no domain of ours.
    #[error("address literal")]
    AddressLiteral,
}

impl ReversePath {
    /// Reads MAIL's path at the start of `text`; returns what follows its `>`.
    ///
    /// # Errors
    ///
    /// A [`PathError`].
    pub fn parse(text: &[u8]) -> Result<(Self, &[u8]), PathError> {
        let (inner, rest) = bracketed(text)?;
        if inner.is_empty() {
            return Ok((Self::Null, rest));
        }
        let mailbox = without_route(inner)?;
        let (local, domain) = split(mailbox)?;
        if local_part_is_safe(local) && (domain_is_safe(domain) || literal_is_safe(domain)) {
            Ok((Self::Mailbox(mailbox.into()), rest))
        } else {
            Err(PathError::Syntax)
        }
    }

    /// The mailbox without brackets; empty for `<>`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Null => "",
            Self::Mailbox(mailbox) => mailbox,
        }
    }
}

impl ForwardPath {
    /// Reads RCPT's path at the start of `text`; returns what follows its `>`.
    ///
    /// # Errors
    ///
    /// A [`PathError`].
    pub fn parse(text: &[u8]) -> Result<(Self, &[u8]), PathError> {
        let (inner, rest) = bracketed(text)?;
        if inner.is_empty() {
            return Err(PathError::NoRecipient);
        }
        let mailbox = without_route(inner)?;
        if mailbox.eq_ignore_ascii_case("postmaster") {
            return Ok((Self::Postmaster, rest));
        }
        let (local, domain) = split(mailbox)?;
        if local_part_is_safe(local) && literal_is_safe(domain) {
            return Err(PathError::AddressLiteral);
        }
        match Address::parse(mailbox) {
            Ok(address) => Ok((Self::Mailbox(address), rest)),
            Err(AddressError::TooLong) => Err(PathError::TooLong),
            Err(AddressError::Form | AddressError::LocalPart | AddressError::Domain) => {
                Err(PathError::Syntax)
            }
        }
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.as_str())
    }
}

impl fmt::Display for ForwardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postmaster => f.write_str("<postmaster>"),
            Self::Mailbox(address) => write!(f, "<{address}>"),
        }
    }
}

/// What is between `<` and the `>` that closes it (a quoted one does not), and what follows.
fn bracketed(text: &[u8]) -> Result<(&str, &[u8]), PathError> {
    let text = text.strip_prefix(b"<").ok_or(PathError::Syntax)?;
    let mut quoted = false;
    let mut escaped = false;
    for (at, octet) in text.iter().enumerate() {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => {
                let (inner, rest) = text.split_at(at);
                let inner = std::str::from_utf8(inner).map_err(|_| PathError::NotAscii)?;
                if !inner.is_ascii() {
                    return Err(PathError::NotAscii);
                }
                return Ok((inner, rest.get(1..).unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(PathError::Syntax)
}

/// Strips `@one,@two:` from the front.
fn without_route(path: &str) -> Result<&str, PathError> {
    if !path.starts_with('@') {
        return Ok(path);
    }
    let (route, mailbox) = path.split_once(':').ok_or(PathError::Syntax)?;
    let hop_is_good = |hop: &str| {
        hop.strip_prefix('@').is_some_and(|host| domain_is_safe(host) || literal_is_safe(host))
    };
    if route.len() > MAX_ROUTE {
        Err(PathError::TooLong)
    } else if route.split(',').all(hop_is_good) {
        Ok(mailbox)
    } else {
        Err(PathError::Syntax)
    }
}

/// Local part and domain. The last `@` outside quotes and brackets parts them; since a domain holds no
/// `@`, that is the last one.
fn split(mailbox: &str) -> Result<(&str, &str), PathError> {
    if mailbox.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    match mailbox.rsplit_once('@') {
        Some((local, domain)) if !local.is_empty() && !domain.is_empty() => Ok((local, domain)),
        Some(_) => Err(PathError::Syntax),
        None if local_part_is_safe(mailbox) => Err(PathError::NoDomain),
        None => Err(PathError::Syntax),
    }
}

/// One quoted string, or printable octets that mean nothing to a parser of paths. Wider than RFC 5321's
/// dot-string, because senders are; but nothing in it can end the path or the line.
fn local_part_is_safe(local: &str) -> bool {
    let Some(inner) = local.strip_prefix('"') else {
        return local.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),:;<>@[\\]".contains(&b));
    };
    let mut octets = inner.bytes();
    while let Some(octet) = octets.next() {
        match octet {
            b'"' => return octets.next().is_none(),
            b'\\' if octets.next().is_some_and(|b| matches!(b, b' '..=b'~')) => {}
            b'\\' => return false,
            b' '..=b'~' => {}
            _ => return false,
        }
    }
    false
}

/// A host name, also of a form that no registry would take.
fn domain_is_safe(domain: &str) -> bool {
    !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// `[192.0.2.1]`, `[IPv6:2001:db8::1]`, or anything else in brackets.
fn literal_is_safe(domain: &str) -> bool {
    let inner = domain.strip_prefix('[').and_then(|d| d.strip_suffix(']'));
    let dtext = |b: u8| b.is_ascii_graphic() && !b"[\\]<>\"@".contains(&b);
    inner.is_some_and(|inner| !inner.is_empty() && inner.bytes().all(dtext))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reverse(text: &str) -> Result<String, PathError> {
        ReversePath::parse(text.as_bytes())
            .map(|(path, rest)| format!("{path}{}", String::from_utf8_lossy(rest)))
    }

    fn forward(text: &str) -> Result<String, PathError> {
        ForwardPath::parse(text.as_bytes())
            .map(|(path, rest)| format!("{path}{}", String::from_utf8_lossy(rest)))
    }

    #[test]
    fn a_sender_is_kept_exactly_as_received() {
        for text in [
            "<>",
            "<> SIZE=1",
            "<Ann.Lee@Example.ORG> BODY=8BITMIME",
            "<\"ann > lee\"@example.org>",
            "<\"a\\\"@b\"@example.org>",
            "<bounce+ann=example.org@[192.0.2.1]>",
            "<a@[IPv6:2001:db8::1]>",
            "<a..b.@docomo.example>",
            "<x/y%z!w@-odd_.example>",
        ] {
            assert_eq!(reverse(text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn a_source_route_is_stripped() {
        assert_eq!(reverse("<@a.example,@b.example:ann@c.example>").unwrap(), "<ann@c.example>");
        assert_eq!(forward("<@a.example:ann@c.example> X").unwrap(), "<ann@c.example> X");
        assert_eq!(forward("<@a.example:postmaster>").unwrap(), "<postmaster>");
        for text in ["<@a.example>", "<@:ann@c.example>", "<@a,b:ann@c.example>", "<@a@b:c@d>"] {
            assert_eq!(forward(text), Err(PathError::Syntax), "{text}");
        }
    }

    #[test]
    fn only_a_sender_may_be_null() {
        assert_eq!(ReversePath::parse(b"<>").unwrap().0, ReversePath::Null);
        assert_eq!(forward("<>"), Err(PathError::NoRecipient));
    }

    #[test]
    fn postmaster_needs_no_domain_and_nobody_else_goes_without() {
        for text in ["<postmaster>", "<Postmaster>", "<POSTMASTER>"] {
            assert_eq!(ForwardPath::parse(text.as_bytes()).unwrap().0, ForwardPath::Postmaster);
        }
        assert_eq!(forward("<ann>"), Err(PathError::NoDomain));
        assert_eq!(reverse("<postmaster>"), Err(PathError::NoDomain));
        assert_eq!(forward("<postmaster@Example.org>").unwrap(), "<postmaster@example.org>");
    }

    #[test]
    fn a_recipient_keeps_its_local_part_and_its_quotes() {
        for (text, expected) in [
            ("<Ann.Lee@Example.ORG.>", "<Ann.Lee@example.org>"),
            ("<\"Ann Lee\"@example.org>", "<\"Ann Lee\"@example.org>"),
            ("<\"ann@evil.example\"@example.org>", "<\"ann@evil.example\"@example.org>"),
            ("<ann%evil.example@example.org>", "<ann%evil.example@example.org>"),
            ("<evil.example!ann@example.org>", "<evil.example!ann@example.org>"),
        ] {
            assert_eq!(forward(text).unwrap(), expected);
        }
    }

    #[test]
    fn an_address_literal_is_well_formed_and_nobody_of_ours() {
        assert_eq!(forward("<ann@[192.0.2.1]>"), Err(PathError::AddressLiteral));
        assert_eq!(forward("<ann@[IPv6:::1]>"), Err(PathError::AddressLiteral));
        assert_eq!(forward("<ann@[]>"), Err(PathError::Syntax));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in [
            "",
            "ann@example.org",
            "<ann@example.org",
            "<<ann@example.org>>",
            "<ann @example.org>",
            "<ann@example.org\0>",
            "<ann\r@example.org>",
            "<\"ann@example.org>",
            "<ann@>",
            "<@example.org>",
            "<a@b@c>",
            "<\"a\"b@example.org>",
            "<ann@exam ple.org>",
            "< >",
        ] {
            assert_eq!(forward(text), Err(PathError::Syntax), "{text:?}");
            assert_eq!(reverse(text), Err(PathError::Syntax), "{text:?}");
        }
        assert_eq!(forward("<änn@example.org>"), Err(PathError::NotAscii));
        assert_eq!(ReversePath::parse(b"<\xff@example.org>"), Err(PathError::NotAscii));
        let long = format!("<{}@example.org>", "a".repeat(600));
        assert_eq!(
            (forward(&long), reverse(&long)),
            (Err(PathError::TooLong), Err(PathError::TooLong))
        );
    }

    proptest! {
        #[test]
        fn a_path_that_is_said_again_is_the_same_path(text in "<?[ -~]{0,40}>?[ -~]{0,4}") {
            if let Ok((path, _)) = ReversePath::parse(text.as_bytes()) {
                let said = path.to_string();
                prop_assert_eq!(ReversePath::parse(said.as_bytes()), Ok((path, &b""[..])));
            }
            if let Ok((path, _)) = ForwardPath::parse(text.as_bytes()) {
                let said = path.to_string();
                prop_assert_eq!(ForwardPath::parse(said.as_bytes()), Ok((path, &b""[..])));
            }
        }

        #[test]
        fn no_octets_make_a_path_that_could_end_its_line(octets in proptest::collection::vec(any::<u8>(), 0..60)) {
            let text = [b"<", octets.as_slice(), b"@example.org>"].concat();
            for said in [
                ReversePath::parse(&text).map(|(p, _)| p.to_string()),
                ForwardPath::parse(&text).map(|(p, _)| p.to_string()),
            ].into_iter().flatten() {
                prop_assert!(said.bytes().all(|b| matches!(b, b' '..=b'~')), "{:?}", said);
            }
        }
    }
}
