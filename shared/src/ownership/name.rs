//! The name under which an account is asked for: a recipient's address or a login (DESIGN §2).
//!
//! A [`Name`] is in canonical form (domain a lower-case A-label, local part unquoted, ASCII letters in
//! lower case) and free of control characters. Which account it leads to is the map's answer.

use crate::address::{Address, Domain};

/// Longest login name in octets that is looked up at all.
const MAX_LOGIN: usize = 512;

/// A recipient's address or a login in canonical form: `local@domain`, or a bare login.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    text: Box<str>,
    purpose: Purpose,
}

/// What a name is asked for. A row with `login = false` takes mail but no logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To deliver a message.
    Mail,
    /// To join a session.
    Login,
}

/// Why a login is no name that could be looked up. All of these are the client's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No name at all.
    #[error("empty name")]
    Empty,
    /// Longer than any name is.
    #[error("name of more than {MAX_LOGIN} octets")]
    TooLong,
    /// NUL, CR, LF or another control character (NAM-7).
    #[error("control character in the name")]
    Control,
    /// Not UTF-8: no row could have that name.
    #[error("name is not UTF-8")]
    NotUtf8,
    /// What follows the `@` is no domain.
    #[error("bad domain in the name")]
    Domain,
}

impl Name {
    /// The name of a recipient.
    pub fn of_address(address: &Address) -> Self {
        Self { text: address.canonical().into(), purpose: Purpose::Mail }
    }

    /// The name in a login, as the client typed it. A bare name gets `default_domain`, if there is one,
    /// only when it is no name by itself: that is the map's decision, so it stays bare here.
    ///
    /// # Errors
    ///
    /// A [`NameError`].
    pub fn of_login(typed: &[u8]) -> Result<Self, NameError> {
        if typed.is_empty() {
            return Err(NameError::Empty);
        }
        if typed.len() > MAX_LOGIN {
            return Err(NameError::TooLong);
        }
        let typed = std::str::from_utf8(typed).map_err(|_| NameError::NotUtf8)?;
        if typed.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        let text = match typed.rsplit_once('@') {
            Some(("", _)) => return Err(NameError::Empty),
            Some((local, domain)) => {
                let domain = Domain::parse(domain).map_err(|_| NameError::Domain)?;
                format!("{}@{domain}", local.to_ascii_lowercase())
            }
            None => typed.to_ascii_lowercase(),
        };
        Ok(Self { text: text.into(), purpose: Purpose::Login })
    }

    /// The name in a login that a master user may have typed, as in `ann@example.org*admin`: the mailbox is
    /// what stands before the first of `separators` (NAM-3).
    ///
    /// # Errors
    ///
    /// A [`NameError`].
    pub fn of_master_login(typed: &[u8], separators: &str) -> Result<Self, NameError> {
        let separators = separators.as_bytes();
        let at = typed.iter().position(|octet| separators.contains(octet));
        match at.and_then(|at| typed.split_at_checked(at)) {
            // With nobody before or behind it, it is no such form.
            Some((mailbox, [_, _, ..])) if !mailbox.is_empty() => {
                // The master's name is looked up nowhere, but logged like the rest.
                if typed.len() > MAX_LOGIN {
                    return Err(NameError::TooLong);
                }
                Self::of_login(mailbox)
            }
            Some(_) | None => Self::of_login(typed),
        }
    }

    /// The name of a row of the table, which is canonical there, asked for as mail asks for it.
    pub(super) fn of_row(key: &str) -> Self {
        Self { text: key.into(), purpose: Purpose::Mail }
    }

    /// The name of a recipient whose canonical text was kept ([`Self::as_str`]).
    ///
    /// # Errors
    ///
    /// A [`NameError`]: it is no such text.
    pub fn of_kept(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.chars().any(char::is_control) {
            return Err(NameError::Control);
        }
        Ok(Self { text: text.into(), purpose: Purpose::Mail })
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it is asked for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Local part and domain; `None` for a bare login.
    pub fn split(&self) -> Option<(&str, &str)> {
        self.text.rsplit_once('@')
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_and_an_address_meet_in_one_form() {
        let login = Name::of_login("ANN@Bücher.example".as_bytes()).unwrap();
        let address = Name::of_address(&Address::parse("Ann@xn--bcher-kva.EXAMPLE").unwrap());
        assert_eq!(login.as_str(), address.as_str());
    }

    #[test]
    fn a_name_that_was_kept_is_the_same_name() {
        for address in ["Ann@Example.org", "\"b @ c\"@example.org"] {
            let name = Name::of_address(&Address::parse(address).unwrap());
            assert_eq!(Name::of_kept(name.as_str()), Ok(name));
        }
        assert_eq!(Name::of_kept(""), Err(NameError::Empty));
        assert_eq!(Name::of_kept("a\r@example.org"), Err(NameError::Control));
    }

    #[test]
    fn the_mailbox_of_a_master_users_login_decides() {
        for (typed, mailbox) in [
            ("ann@example.org*admin", "ann@example.org"),
            ("Ann%admin@example.org", "ann"),
            ("ann*admin*x", "ann"),
            ("ann@example.org", "ann@example.org"),
            ("*admin", "*admin"),
            ("ann*", "ann*"),
        ] {
            let name = Name::of_master_login(typed.as_bytes(), "*%").unwrap();
            assert_eq!(name.as_str(), mailbox, "{typed}");
        }
        assert_eq!(Name::of_master_login(b"ann*admin", "").unwrap().as_str(), "ann*admin");
        let long = format!("ann*{}", "x".repeat(MAX_LOGIN));
        assert_eq!(Name::of_master_login(long.as_bytes(), "*"), Err(NameError::TooLong));
    }

    #[test]
    fn a_name_that_could_break_a_log_line_is_refused() {
        for (typed, error) in [
            (&b""[..], NameError::Empty),
            (b"@example.org", NameError::Empty),
            (b"ann\n@example.org", NameError::Control),
            (b"ann\0@example.org", NameError::Control),
            ("ann\u{85}@example.org".as_bytes(), NameError::Control),
            (b"ann\xff@example.org", NameError::NotUtf8),
            (b"ann@exa mple", NameError::Domain),
            (&[b'a'; 513], NameError::TooLong),
        ] {
            assert_eq!(Name::of_login(typed), Err(error), "{typed:?}");
        }
    }
}
