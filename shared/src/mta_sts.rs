//! The policy of MTA-STS (RFC 8461 §3.2): which servers may take a domain's mail, and that they have TLS.
//! Senders ask for it at `https://mta-sts.DOMAIN/.well-known/mta-sts.txt`. Pure.

use std::fmt;
use std::time::Duration;

use crate::address::Domain;

/// Longest time a policy may be kept, in seconds (RFC 8461 §3.2).
const MAX_AGE: u64 = 31_557_600;

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MtaSts {
    mode: Mode,
    mx: Vec<MxPattern>,
    max_age: Duration,
}

/// How it is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Mail is not delivered otherwise.
    Enforce,
    /// What would fail is only reported.
    Testing,
    /// There is no policy any more.
    None,
}

/// Names of mail servers: one, or all directly below one (`*.example.org`), in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MxPattern(Box<str>);

/// Why something is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MtaStsError {
    /// No such mode.
    #[error("{0:?} is none of enforce, testing, none")]
    Mode(Box<str>),
    /// No name of a server.
    #[error("{0:?} is neither a host name nor \"*.\" and one")]
    Mx(Box<str>),
    /// Without servers nobody could take the mail.
    #[error("is missing: the names of the MX records")]
    NoMx,
    /// Longer than RFC 8461 allows.
    #[error("must be at most a year ({MAX_AGE}s)")]
    MaxAge,
}

impl Mode {
    /// Reads `enforce`, `testing` or `none`.
    ///
    /// # Errors
    ///
    /// [`MtaStsError::Mode`].
    pub fn parse(text: &str) -> Result<Self, MtaStsError> {
        match text {
            "enforce" => Ok(Self::Enforce),
            "testing" => Ok(Self::Testing),
            "none" => Ok(Self::None),
            other => Err(MtaStsError::Mode(other.into())),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Testing => "testing",
            Self::None => "none",
        }
    }
}

impl MxPattern {
    /// Reads a host name or `*.` and one. Names beyond ASCII become A-labels, as senders compare them.
    ///
    /// # Errors
    ///
    /// [`MtaStsError::Mx`].
    pub fn parse(text: &str) -> Result<Self, MtaStsError> {
        let (star, name) = text.strip_prefix("*.").map_or(("", text), |name| ("*.", name));
        match Domain::parse(name) {
            Ok(domain) if !domain.as_str().contains('_') => {
                Ok(Self(format!("{star}{domain}").into()))
            }
            Ok(_) | Err(_) => Err(MtaStsError::Mx(text.into())),
        }
    }
}

impl MtaSts {
    /// A policy. Without names only one that says there is none.
    ///
    /// # Errors
    ///
    /// [`MtaStsError::NoMx`] or [`MtaStsError::MaxAge`].
    pub fn new(mode: Mode, mx: Vec<MxPattern>, max_age: Duration) -> Result<Self, MtaStsError> {
        if mx.is_empty() && mode != Mode::None {
            return Err(MtaStsError::NoMx);
        }
        if max_age.as_secs() > MAX_AGE {
            return Err(MtaStsError::MaxAge);
        }
        Ok(Self { mode, mx, max_age })
    }
}

/// The policy's text.
impl fmt::Display for MtaSts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version: STSv1\r\nmode: {}\r\n", self.mode.as_str())?;
        for MxPattern(name) in &self.mx {
            write!(f, "mx: {name}\r\n")?;
        }
        write!(f, "max_age: {}\r\n", self.max_age.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEEK: Duration = Duration::from_hours(7 * 24);

    fn patterns(names: &[&str]) -> Vec<MxPattern> {
        names.iter().map(|name| MxPattern::parse(name).unwrap()).collect()
    }

    #[test]
    fn a_policy_is_written_as_senders_read_it() {
        let names = patterns(&["MX1.example.org.", "*.example.net", "mx.b\u{fc}cher.example"]);
        let policy = MtaSts::new(Mode::parse("enforce").unwrap(), names, WEEK).unwrap();
        assert_eq!(
            policy.to_string(),
            "version: STSv1\r\nmode: enforce\r\nmx: mx1.example.org\r\nmx: *.example.net\r\n\
             mx: mx.xn--bcher-kva.example\r\nmax_age: 604800\r\n"
        );
    }

    #[test]
    fn that_there_is_no_policy_any_more_needs_no_names() {
        let policy = MtaSts::new(Mode::None, Vec::new(), Duration::from_hours(24)).unwrap();
        assert_eq!(policy.to_string(), "version: STSv1\r\nmode: none\r\nmax_age: 86400\r\n");
        for mode in [Mode::Enforce, Mode::Testing] {
            assert_eq!(MtaSts::new(mode, Vec::new(), WEEK), Err(MtaStsError::NoMx));
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for mode in ["", "Enforce", "off"] {
            assert_eq!(Mode::parse(mode), Err(MtaStsError::Mode(mode.into())));
        }
        for name in
            ["", "*", "*.", "*.*.example.org", "a.*.org", "a b", "mx\r\nmode: none", "a_b.example"]
        {
            assert_eq!(MxPattern::parse(name), Err(MtaStsError::Mx(name.into())));
        }
        let names = || patterns(&["mx.example.org"]);
        assert!(MtaSts::new(Mode::Testing, names(), Duration::from_secs(MAX_AGE)).is_ok());
        let longer = Duration::from_secs(MAX_AGE + 1);
        assert_eq!(MtaSts::new(Mode::Testing, names(), longer), Err(MtaStsError::MaxAge));
    }

    proptest! {
        #[test]
        fn a_name_adds_no_line(name in "\\PC{0,20}(\r|\n|: |\\PC){0,5}") {
            if let Ok(pattern) = MxPattern::parse(&name) {
                let policy = MtaSts::new(Mode::Enforce, vec![pattern], WEEK).unwrap().to_string();
                prop_assert_eq!(policy.lines().count(), 4);
                prop_assert!(policy.is_ascii());
            }
        }
    }
}
