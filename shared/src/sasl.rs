//! SASL (RFC 4422): mechanisms, and how their first responses are read and written.
//!
//! A client's response is taken apart to find the account, and put together anew, or passed on as it
//! came, for the backend. Nothing is verified here; the backend does that.

mod bearer;
mod plain;
mod scram;

use std::fmt;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroize;

pub use self::bearer::{decode_bearer, encode_bearer, names_in_token};
pub use self::plain::{decode_plain, encode_plain};
pub use self::scram::decode_scram;
use crate::credentials::Secret;

/// Clients leave padding out or put spaces in; what we send is canonical.
const TOLERANT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A mechanism that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mechanism {
    /// Name and password in one response (RFC 4616).
    Plain,
    /// Name and password in two responses; never standardised, still used.
    Login,
    /// Google's form of a bearer token.
    XOAuth2,
    /// RFC 7628's form of a bearer token.
    OAuthBearer,
    /// RFC 5802: relayed, since only who knows the password can take part.
    ScramSha1,
    /// RFC 7677.
    ScramSha256,
}

/// A set of mechanisms.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Mechanisms(u8);

/// Why a client's response is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    /// Not base64.
    #[error("not base64")]
    Encoding,
    /// Not of the mechanism's form, or without a name or a secret.
    #[error("not a response of this mechanism")]
    Form,
}

impl Mechanism {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 6] = [
        Self::Plain,
        Self::Login,
        Self::XOAuth2,
        Self::OAuthBearer,
        Self::ScramSha1,
        Self::ScramSha256,
    ];

    /// The mechanism of that name, in any case.
    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str().as_bytes().eq_ignore_ascii_case(name))
    }

    /// Its registered name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Login => "LOGIN",
            Self::XOAuth2 => "XOAUTH2",
            Self::OAuthBearer => "OAUTHBEARER",
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::ScramSha256 => "SCRAM-SHA-256",
        }
    }

    /// True where the password or token itself is sent, so that the connection must be secured.
    pub fn is_cleartext(self) -> bool {
        match self {
            Self::Plain | Self::Login | Self::XOAuth2 | Self::OAuthBearer => true,
            Self::ScramSha1 | Self::ScramSha256 => false,
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Mechanisms {
    /// Those that carry a password.
    pub const PASSWORDS: Self = Self(1 << Mechanism::Plain as u8 | 1 << Mechanism::Login as u8);

    /// Adds one.
    pub fn insert(&mut self, mechanism: Mechanism) {
        self.0 |= 1 << mechanism as u8;
    }

    /// Takes one out.
    pub fn remove(&mut self, mechanism: Mechanism) {
        self.0 &= !(1 << mechanism as u8);
    }

    /// True when it is in the set.
    pub fn contains(self, mechanism: Mechanism) -> bool {
        self.0 & (1 << mechanism as u8) != 0
    }

    /// Those in both.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those in either.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True when there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that it has, in the order of [`Mechanism::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Mechanism> {
        Mechanism::ALL.into_iter().filter(move |mechanism| self.contains(*mechanism))
    }

    /// Those that we know among a server's words, such as `PLAIN LOGIN X-OTHER`. A SCRAM that is also
    /// offered with channel binding is left out: a client that could bind says so, but cannot bind through
    /// us, which the server takes for a downgrade (RFC 5802 §6).
    pub fn of_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut known, mut binding) = (Self::default(), Self::default());
        for word in words {
            let word = word.as_bytes();
            if let Some(mechanism) = Mechanism::parse(word) {
                known.insert(mechanism);
            } else if let Some((name, plus)) = word.split_at_checked(word.len().saturating_sub(5))
                && plus.eq_ignore_ascii_case(b"-PLUS")
            {
                binding.extend(Mechanism::parse(name));
            }
        }
        Self(known.0 & !binding.0)
    }
}

impl FromIterator<Mechanism> for Mechanisms {
    fn from_iter<I: IntoIterator<Item = Mechanism>>(mechanisms: I) -> Self {
        let mut set = Self::default();
        set.extend(mechanisms);
        set
    }
}

impl Extend<Mechanism> for Mechanisms {
    fn extend<I: IntoIterator<Item = Mechanism>>(&mut self, mechanisms: I) {
        mechanisms.into_iter().for_each(|mechanism| self.insert(mechanism));
    }
}

impl fmt::Debug for Mechanisms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Decodes base64 as clients write it.
///
/// # Errors
///
/// [`SaslError::Encoding`].
pub fn decode_base64(text: &[u8]) -> Result<Secret, SaslError> {
    // Buffers of their final size: one that grows leaves its old block behind as it is.
    let mut packed = Vec::with_capacity(text.len());
    packed.extend(text.iter().copied().filter(|octet| !matches!(octet, b' ' | b'\t')));
    let mut decoded = vec![0; base64::decoded_len_estimate(packed.len())];
    let written = TOLERANT.decode_slice(&packed, &mut decoded);
    packed.zeroize();
    if let Ok(written) = written {
        decoded.truncate(written);
        return Ok(Secret::new(decoded));
    }
    decoded.zeroize();
    Err(SaslError::Encoding)
}

/// Base64 without line ends.
pub fn encode_base64(octets: &[u8]) -> Secret {
    let mut text = vec![0; octets.len().div_ceil(3).saturating_mul(4)];
    let written = TOLERANT.encode_slice(octets, &mut text).unwrap_or_default();
    text.truncate(written);
    Secret::new(text)
}

/// Replaces `=2C` and `=3D` in a name of a GS2 header (RFC 5801 §4).
fn decode_saslname(text: &[u8]) -> Option<Box<[u8]>> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'=' {
            name.push(*first);
            continue;
        }
        name.push(match tail.get(..2)?.to_ascii_uppercase().as_slice() {
            b"2C" => b',',
            b"3D" => b'=',
            _ => return None,
        });
        rest = tail.get(2..)?;
    }
    Some(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_keeps_what_both_have_in_the_order_they_are_listed() {
        let old = Mechanisms::of_words("login PLAIN CRAM-MD5 scram-sha-256".split(' '));
        let new = Mechanisms::of_words("PLAIN OAUTHBEARER SCRAM-SHA-256".split(' '));
        let names = |set: Mechanisms| set.iter().map(Mechanism::as_str).collect::<Vec<_>>();
        assert_eq!(names(old), ["PLAIN", "LOGIN", "SCRAM-SHA-256"]);
        assert_eq!(names(old.intersection(new)), ["PLAIN", "SCRAM-SHA-256"]);
        assert!(Mechanisms::of_words(["X"]).is_empty());
        let binding =
            Mechanisms::of_words("SCRAM-SHA-1 scram-sha-256-plus SCRAM-SHA-256".split(' '));
        assert_eq!(names(binding), ["SCRAM-SHA-1"]);
    }

    #[test]
    fn commas_and_equals_signs_in_names_are_escaped() {
        assert_eq!(decode_saslname(b"a=2Cb=3d").as_deref(), Some(&b"a,b="[..]));
        for bad in [&b"a="[..], b"a=2", b"a=41", b"a=="] {
            assert_eq!(decode_saslname(bad), None);
        }
    }
}
