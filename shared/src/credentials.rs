//! What a client proves itself with: replayed to one backend, then wiped. Never printed.

use zeroize::Zeroize;

/// Octets that are overwritten when dropped and that no log can show.
#[derive(Default)]
pub struct Secret(Vec<u8>);

/// A user name and a password, as octets: nobody says that they are UTF-8 (RFC 3501 §6.2.3).
#[derive(Debug)]
pub struct Credentials {
    /// Who is authenticated (RFC 4422 §2): the name that the password belongs to.
    pub authcid: Box<[u8]>,
    /// As whom that one wants to act; `None` when it is the same.
    pub authzid: Option<Box<[u8]>>,
    /// The password.
    pub password: Secret,
}

impl Secret {
    /// Takes `octets` over; no copy of them is made.
    pub fn new(octets: Vec<u8>) -> Self {
        Self(octets)
    }

    /// The octets. Do not put them anywhere that is not wiped.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.as_mut_slice().zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Credentials {
    /// A name and its password.
    pub fn new(authcid: &[u8], password: Secret) -> Self {
        Self { authcid: authcid.into(), authzid: None, password }
    }

    /// The name whose mailbox is asked for: it decides where the session goes (NAM-3).
    pub fn mailbox(&self) -> &[u8] {
        self.authzid.as_deref().unwrap_or(&self.authcid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_printed() {
        let credentials = Credentials::new(b"ann", Secret::new(b"hunter2".to_vec()));
        let printed = format!("{credentials:?}");
        assert!(printed.contains("Secret(..)") && !printed.contains("hunter2"), "{printed}");
        assert!(!printed.contains("104, 117"), "not as numbers either: {printed}");
    }
}
