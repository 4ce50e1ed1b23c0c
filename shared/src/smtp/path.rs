//! Reverse-path and forward-path: what stands between `<` and `>` (RFC 5321 §4.1.2).
//!
//! Octets are kept as they were received and are sent on as such; what could be read as a second argument
//! by the next server is refused. Whether an address is ours is not known here.

use std::fmt;

use crate::address::{Address, AddressError};

/// Longest path in octets with its brackets (RFC 5321 §4.5.3.1.3 says 256; VERP senders are longer).
const MAX_PATH: usize = 512;

/// Where a message came from: where reports of failure go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReversePath {
    /// `<>`: reports themselves; nothing is ever sent back.
    Null,
    /// As received, without brackets and source route. Its domain may be an address literal, or missing:
    /// the owner decides about that.
    Mailbox(Box<str>),
}

/// Whom a message is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardPath {
    /// `<postmaster>` without a domain, in any case (RFC 5321 §4.5.1).
    Postmaster,
    /// A mailbox.
    Mailbox(Address),
}

/// Why a path is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not `<...>`.
    #[error("no <path>")]
    Brackets,
    /// Not an address between them.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An address literal: no domain of ours.
    #[error("address literal")]
    Literal,
    /// Not ASCII, and SMTPUTF8 was not said.
    #[error("not ASCII")]
    NotAscii,
    /// Longer than any path.
    #[error("path too long")]
    TooLong,
}

/// Takes `<path>` off the front of a command's argument: the text between the brackets, and the rest.
///
/// A `>` inside a quoted local part does not end the path.
///
/// # Errors
///
/// A [`PathError`].
pub fn split(argument: &str) -> Result<(&str, &str), PathError> {
    let inner = argument.strip_prefix('<').ok_or(PathError::Brackets)?;
    let mut quoted = false;
    let mut escaped = false;
    for (at, octet) in inner.bytes().enumerate() {
        if at > MAX_PATH {
            return Err(PathError::TooLong);
        }
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => {
                let (path, rest) = inner.split_at(at);
                return Ok((path, rest.get(1..).unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(PathError::Brackets)
}

/// Without the source route, which must be accepted and ignored (RFC 5321 §4.1.2, Appendix C).
fn without_route(path: &str) -> &str {
    match path.split_once(':') {
        Some((route, mailbox)) if route.starts_with('@') => mailbox,
        Some(_) | None => path,
    }
}

impl ReversePath {
    /// Reads what stood between the brackets of MAIL FROM.
    ///
    /// # Errors
    ///
    /// A [`PathError`].
    pub fn parse(path: &str) -> Result<Self, PathError> {
        if path.is_ascii() { Self::parse_utf8(path) } else { Err(PathError::NotAscii) }
    }

    /// The same where SMTPUTF8 is spoken (RFC 6531 §3.3).
    ///
    /// # Errors
    ///
    /// A [`PathError`].
    pub fn parse_utf8(path: &str) -> Result<Self, PathError> {
        let mailbox = without_route(path);
        if path.is_empty() {
            return Ok(Self::Null);
        }
        // A domain of one's own making, to check the local part by the rule there is.
        let (local, domain) = match mailbox.rsplit_once('@') {
            Some((local, domain)) => (local, domain),
            None => (mailbox, "localhost"),
        };
        let domain = if is_literal(domain) { "localhost" } else { domain };
        Address::parse_utf8(&format!("{local}@{domain}"))?;
        Ok(Self::Mailbox(mailbox.into()))
    }
}

impl ForwardPath {
    /// Reads what stood between the brackets of RCPT TO.
    ///
    /// # Errors
    ///
    /// A [`PathError`].
    pub fn parse(path: &str) -> Result<Self, PathError> {
        if path.is_ascii() { Self::parse_utf8(path) } else { Err(PathError::NotAscii) }
    }

    /// The same where SMTPUTF8 is spoken (RFC 6531 §3.3).
    ///
    /// # Errors
    ///
    /// A [`PathError`].
    pub fn parse_utf8(path: &str) -> Result<Self, PathError> {
        let mailbox = without_route(path);
        if mailbox.eq_ignore_ascii_case("postmaster") {
            return Ok(Self::Postmaster);
        }
        if mailbox.rsplit_once('@').is_some_and(|(_, domain)| is_literal(domain)) {
            return Err(PathError::Literal);
        }
        Ok(Self::Mailbox(Address::parse_utf8(mailbox)?))
    }
}

/// `[192.0.2.1]`, `[IPv6:2001:db8::1]` (RFC 5321 §4.1.3).
fn is_literal(domain: &str) -> bool {
    let inner = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| {
        !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_alphanumeric() || b":.-".contains(&b))
    })
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("<>"),
            Self::Mailbox(mailbox) => write!(f, "<{mailbox}>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_at_its_own_bracket() {
        assert_eq!(split("<a@b> SIZE=1"), Ok(("a@b", " SIZE=1")));
        assert_eq!(split("<\"a>b\"@c>"), Ok(("\"a>b\"@c", "")));
        assert_eq!(split("<\"a\\\">b\"@c> X"), Ok(("\"a\\\">b\"@c", " X")));
        for bad in ["a@b", "<a@b", "<\"a>b@c", ""] {
            assert_eq!(split(bad), Err(PathError::Brackets), "{bad:?}");
        }
        assert_eq!(split(&format!("<{}>", "a".repeat(600))), Err(PathError::TooLong));
    }

    #[test]
    fn senders_are_kept_as_received() {
        for (path, shown) in [
            ("", "<>"),
            ("Ann@Example.org", "<Ann@Example.org>"),
            ("@relay.example,@b.example:ann@example.org", "<ann@example.org>"),
            ("cron", "<cron>"),
            ("ann@[192.0.2.1]", "<ann@[192.0.2.1]>"),
            ("\"a b\"@example.org", "<\"a b\"@example.org>"),
        ] {
            assert_eq!(ReversePath::parse(path).unwrap().to_string(), shown);
        }
        for bad in
            ["a b@example.org", "a@b c", "\"x@victim.example> NOTIFY=NEVER \"b@e", "ü@example.org"]
        {
            assert!(ReversePath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn recipients_have_a_domain_or_are_the_postmaster() {
        for path in ["postmaster", "PostMaster", "@a.example:postmaster"] {
            assert_eq!(ForwardPath::parse(path), Ok(ForwardPath::Postmaster));
        }
        let Ok(ForwardPath::Mailbox(address)) = ForwardPath::parse("@x.example:Ann@Example.ORG")
        else {
            panic!("no mailbox")
        };
        assert_eq!(address.to_string(), "Ann@example.org");
        assert_eq!(ForwardPath::parse("ann@[192.0.2.1]"), Err(PathError::Literal));
        for bad in ["", "ann", "ann@", "@example.org", "a@b@c d"] {
            assert!(ForwardPath::parse(bad).is_err(), "{bad:?}");
        }
    }
}
