//! What a client proves itself with: replayed to one backend, then wiped. Never printed.

use zeroize::Zeroize;

use crate::sasl::Mechanism;

/// Octets that are overwritten when dropped and that no log can show.
#[derive(Default)]
pub struct Secret(Vec<u8>);

/// Who wants to log in, and by what. All of it octets: nobody says that they are UTF-8 (RFC 3501 §6.2.3).
#[derive(Debug)]
pub struct Credentials {
    /// Who is authenticated (RFC 4422 §2): the name that the proof belongs to. Empty where only the token
    /// knows it.
    pub authcid: Box<[u8]>,
    /// As whom that one wants to act; `None` when it is the same.
    pub authzid: Option<Box<[u8]>>,
    /// By what.
    pub proof: Proof,
}

/// By what a client proves who it is.
#[derive(Debug)]
pub enum Proof {
    /// A password: any mechanism that a backend has will do to replay it.
    Password(Secret),
    /// A bearer token (RFC 6750).
    Bearer {
        /// XOAUTH2 or OAUTHBEARER.
        mechanism: Mechanism,
        /// The token alone.
        token: Secret,
        /// The response as it came, decoded.
        response: Secret,
    },
    /// An exchange that only its two ends can take part in (RFC 5802).
    Scram {
        /// Which SCRAM.
        mechanism: Mechanism,
        /// The client's first message as it came, decoded.
        first: Secret,
    },
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
        Self { authcid: authcid.into(), authzid: None, proof: Proof::Password(password) }
    }

    /// The name whose mailbox is asked for: it decides where the session goes (NAM-3).
    pub fn mailbox(&self) -> &[u8] {
        self.authzid.as_deref().unwrap_or(&self.authcid)
    }

    /// The password, if that is the proof.
    pub fn password(&self) -> Option<&Secret> {
        match &self.proof {
            Proof::Password(password) => Some(password),
            Proof::Bearer { .. } | Proof::Scram { .. } => None,
        }
    }

    /// The token, if that is the proof.
    pub fn token(&self) -> Option<&Secret> {
        match &self.proof {
            Proof::Bearer { token, .. } => Some(token),
            Proof::Password(_) | Proof::Scram { .. } => None,
        }
    }

    /// How it is proved, for logs.
    pub fn method(&self) -> &'static str {
        match &self.proof {
            Proof::Password(_) => "password",
            Proof::Bearer { mechanism, .. } | Proof::Scram { mechanism, .. } => mechanism.as_str(),
        }
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
