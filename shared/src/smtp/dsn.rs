//! What a sender wants to hear of its message: the parameters of DSN (RFC 3461).
//!
//! Each is kept as it was received and said again as such: only the last server on the way is to
//! understand an identifier or an original recipient, and an encoding of ours would be another one.

use std::fmt;

use super::xtext;

/// Longest ENVID in octets, as it is written (RFC 3461 §4.4).
const MAX_ENVID: usize = 100;
/// Longest ORCPT in octets, as it is written (RFC 3461 §5).
const MAX_ORCPT: usize = 500;

/// RET: how much of the message a report of failure returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ret {
    /// The whole message.
    Full,
    /// Its headers only.
    Headers,
}

/// ENVID: the sender's own name for its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvelopeId(Box<str>);

/// NOTIFY: of what the sender wants to hear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    written: Box<str>,
    events: Events,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Events {
    success: bool,
    failure: bool,
    delay: bool,
}

/// ORCPT: the address that the sender itself gave, before anybody forwarded the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalRecipient {
    written: Box<str>,
    /// Where the `;` is.
    semicolon: usize,
}

/// Why a value is none. The words stand behind the parameter's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DsnError {
    /// Not FULL and not HDRS.
    #[error("is FULL or HDRS")]
    Ret,
    /// Neither NEVER alone nor a list of the others, each once.
    #[error("is NEVER, or a list of SUCCESS, FAILURE and DELAY")]
    Notify,
    /// Not xtext, or it stands for what cannot be printed.
    #[error("is no xtext of printable characters")]
    Xtext,
    /// No `type;address`.
    #[error("is no type;address")]
    Form,
    /// Longer than it may be.
    #[error("is too long")]
    TooLong,
}

impl Ret {
    /// Reads the value of RET.
    ///
    /// # Errors
    ///
    /// [`DsnError::Ret`].
    pub fn parse(value: &str) -> Result<Self, DsnError> {
        match value.to_ascii_uppercase().as_str() {
            "FULL" => Ok(Self::Full),
            "HDRS" => Ok(Self::Headers),
            _ => Err(DsnError::Ret),
        }
    }

    /// As it is written in a command.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Headers => "HDRS",
        }
    }
}

impl EnvelopeId {
    /// Reads the value of ENVID.
    ///
    /// # Errors
    ///
    /// [`DsnError::TooLong`] or [`DsnError::Xtext`].
    pub fn parse(value: &str) -> Result<Self, DsnError> {
        if value.len() > MAX_ENVID {
            return Err(DsnError::TooLong);
        }
        printable(value).map(|_| Self(value.into()))
    }

    /// As it is written in a command.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it stands for: printable ASCII, for a report's Original-Envelope-Id.
    pub fn decoded(&self) -> String {
        printable(&self.0).unwrap_or_default()
    }
}

impl Notify {
    /// Reads the value of NOTIFY. NEVER excludes the others, and nothing is named twice.
    ///
    /// # Errors
    ///
    /// [`DsnError::Notify`].
    pub fn parse(value: &str) -> Result<Self, DsnError> {
        let mut events = Events::default();
        if !value.eq_ignore_ascii_case("NEVER") {
            for word in value.split(',') {
                let event = match word.to_ascii_uppercase().as_str() {
                    "SUCCESS" => &mut events.success,
                    "FAILURE" => &mut events.failure,
                    "DELAY" => &mut events.delay,
                    _ => return Err(DsnError::Notify),
                };
                if std::mem::replace(event, true) {
                    return Err(DsnError::Notify);
                }
            }
        }
        Ok(Self { written: value.into(), events })
    }

    /// As it is written in a command.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The sender wants to hear of a delivery.
    pub fn of_success(&self) -> bool {
        self.events.success
    }

    /// The sender wants to hear of a failure.
    pub fn of_failure(&self) -> bool {
        self.events.failure
    }

    /// The sender wants to hear of a delay.
    pub fn of_delay(&self) -> bool {
        self.events.delay
    }
}

impl OriginalRecipient {
    /// Reads the value of ORCPT: `rfc822;ann+2Btag@example.org`, or `utf-8;` with what RFC 6533 §3 makes of
    /// an address there. Characters beyond ASCII may stand in the latter only, and only where SMTPUTF8 is
    /// spoken (`utf8`).
    ///
    /// # Errors
    ///
    /// A [`DsnError`].
    pub fn parse(value: &str, utf8: bool) -> Result<Self, DsnError> {
        if value.len() > MAX_ORCPT {
            return Err(DsnError::TooLong);
        }
        let semicolon = value.find(';').ok_or(DsnError::Form)?;
        let (kind, address) = value.split_at(semicolon);
        let is_atom = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-';
        if kind.is_empty() || !kind.bytes().all(is_atom) || address.len() < 2 {
            return Err(DsnError::Form);
        }
        let parsed = Self { written: value.into(), semicolon };
        let unencoded = utf8 && parsed.kind().eq_ignore_ascii_case("utf-8");
        let checked: String = parsed
            .encoded()
            .chars()
            .filter(|c| !unencoded || c.is_ascii() || c.is_control())
            .collect();
        if !checked.is_empty() {
            printable(&checked)?;
        }
        Ok(parsed)
    }

    /// As it is written in a command.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The type of the address: `rfc822`, `utf-8`.
    pub fn kind(&self) -> &str {
        self.written.get(..self.semicolon).unwrap_or_default()
    }

    /// The address, decoded from xtext, for a report's Original-Recipient. No control characters are in it.
    pub fn address(&self) -> String {
        printable(self.encoded()).unwrap_or_else(|_| self.encoded().to_owned())
    }

    fn encoded(&self) -> &str {
        self.written.get(self.semicolon.saturating_add(1)..).unwrap_or_default()
    }
}

/// What a word of xtext stands for, if that can be printed: a report has it in a header.
fn printable(word: &str) -> Result<String, DsnError> {
    let octets = xtext::decode(word).filter(|octets| !octets.is_empty()).ok_or(DsnError::Xtext)?;
    if !octets.iter().all(|octet| matches!(octet, b' '..=b'~')) {
        return Err(DsnError::Xtext);
    }
    String::from_utf8(octets).map_err(|_| DsnError::Xtext)
}

impl fmt::Display for Ret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for EnvelopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for OriginalRecipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_excludes_the_others_and_nothing_is_named_twice() {
        let never = Notify::parse("Never").unwrap();
        assert!(!never.of_success() && !never.of_failure() && !never.of_delay());
        let list = Notify::parse("success,DELAY").unwrap();
        assert!(list.of_success() && !list.of_failure() && list.of_delay());
        assert_eq!(list.to_string(), "success,DELAY");
        for bad in ["", "NEVER,SUCCESS", "FAILURE,NEVER", "DELAY,DELAY", "SUCCESS,", "ALWAYS"] {
            assert_eq!(Notify::parse(bad), Err(DsnError::Notify), "{bad:?}");
        }
    }

    #[test]
    fn an_envelope_id_is_kept_as_it_was_written() {
        let id = EnvelopeId::parse("QQ+3d314+2B159").unwrap();
        assert_eq!((id.as_str(), &*id.decoded()), ("QQ+3d314+2B159", "QQ=314+159"));
        assert!(EnvelopeId::parse(&"x".repeat(100)).is_ok());
        assert_eq!(EnvelopeId::parse(&"x".repeat(101)), Err(DsnError::TooLong));
        for bad in ["", "a=b", "a+0Ab", "a+C3+BC", "+", "a\u{fc}"] {
            assert_eq!(EnvelopeId::parse(bad), Err(DsnError::Xtext), "{bad:?}");
        }
    }

    #[test]
    fn an_original_recipient_keeps_its_type_and_its_encoding() {
        let of = |value| OriginalRecipient::parse(value, false);
        let given = of("RFC822;ann+2Btag@example.org").unwrap();
        assert_eq!(given.to_string(), "RFC822;ann+2Btag@example.org");
        assert_eq!((given.kind(), &*given.address()), ("RFC822", "ann+tag@example.org"));
        let international = of(r"utf-8;\x{FC}nal@example.org").unwrap();
        assert_eq!(international.address(), r"\x{FC}nal@example.org");
        for (bad, error) in [
            ("ann@example.org", DsnError::Form),
            (";ann@example.org", DsnError::Form),
            ("rfc822;", DsnError::Form),
            ("rfc 822;ann", DsnError::Form),
            ("rfc822;ann+tag@example.org", DsnError::Xtext),
            ("rfc822;ann+0D+0Abcc", DsnError::Xtext),
            ("utf-8;\u{fc}nal@example.org", DsnError::Xtext),
            (&*format!("rfc822;{}", "x".repeat(500)), DsnError::TooLong),
        ] {
            assert_eq!(of(bad), Err(error), "{bad:?}");
        }
    }

    #[test]
    fn characters_beyond_ascii_stand_in_an_international_address_only() {
        let of = |value| OriginalRecipient::parse(value, true);
        assert_eq!(of("utf-8;\u{fc}nal@example.org").unwrap().address(), "\u{fc}nal@example.org");
        assert!(of("utf-8;\u{fc}").is_ok());
        assert_eq!(of("rfc822;\u{fc}nal@example.org"), Err(DsnError::Xtext));
        assert_eq!(of("utf-8;a\u{85}b"), Err(DsnError::Xtext), "a control character");
    }
}
