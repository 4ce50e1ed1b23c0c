//! Parameters of MAIL and RCPT: `KEY=value` and `KEY` (RFC 5321 §4.1.2).

use super::reply::Reply;

/// The extensions whose parameters a server takes: what we offer to a client, or an owner to us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an extension that is there or not")]
pub struct Takes {
    /// SIZE (RFC 1870).
    pub size: bool,
    /// BODY of 8BITMIME (RFC 6152).
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// RET, ENVID, NOTIFY and ORCPT of DSN (RFC 3461).
    pub dsn: bool,
}

/// One parameter.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parameter<'a> {
    /// Its key in upper case.
    pub(super) key: String,
    /// What is behind the `=`.
    pub(super) value: Option<&'a str>,
}

impl Takes {
    /// Everything that there is.
    pub const ALL: Self = Self { size: true, eight_bit: true, smtputf8: true, dsn: true };
    /// Nothing: no ESMTP is spoken.
    pub const NONE: Self = Self { size: false, eight_bit: false, smtputf8: false, dsn: false };
}

/// Splits what stands behind a path.
///
/// # Errors
///
/// The reply to a key that is given twice.
pub(super) fn split(text: &str) -> Result<Vec<Parameter<'_>>, Reply> {
    let mut parameters: Vec<Parameter<'_>> = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        };
        let key = key.to_ascii_uppercase();
        if parameters.iter().any(|before| before.key == key) {
            return Err(Reply::new(501, (5, 4), "A parameter twice"));
        }
        parameters.push(Parameter { key, value });
    }
    Ok(parameters)
}

/// The value of SIZE (RFC 1870 §4).
pub(super) fn size(value: &str) -> Result<u64, Reply> {
    octets(value).ok_or_else(|| Reply::new(501, (5, 4), "SIZE is a number of octets"))
}

/// A number of octets in digits alone; more of them than any message has are none.
pub(super) fn octets(word: &str) -> Option<u64> {
    let digits = (1..=18).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_digit());
    word.parse().ok().filter(|_| digits)
}

/// What was not offered is not known, however well it is written.
pub(super) fn unknown() -> Reply {
    Reply::new(555, (5, 4), "Unsupported parameter")
}
