//! The line in the log by which fail2ban bans (config/fail2ban, docs/operations.md): its words and their order
//! are not to be changed. What the client has chosen comes last of them, quoted, so that it cannot pass for an
//! address.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use shared::ownership::Owner;
use tokio::time::Instant;

/// What was guessed wrong. The words are those of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Guessed {
    /// The account's owner rejected the credentials.
    #[error("credentials")]
    Credentials,
    /// There is no such account.
    #[error("no-account")]
    NoAccount,
    /// No account can have such a name.
    #[error("bad-name")]
    BadName,
}

/// What is said of a guess.
pub(crate) struct GuessLine<'a> {
    pub(crate) session: &'a str,
    pub(crate) protocol: &'static str,
    pub(crate) client: SocketAddr,
    /// Whose guess it is, where that is known.
    pub(crate) counted: Option<IpAddr>,
    pub(crate) method: &'static str,
    /// The name, as it was typed.
    pub(crate) user: &'a [u8],
    /// Whose account it was for, where there is one.
    pub(crate) owner: Option<&'a Owner>,
    pub(crate) reason: Guessed,
    pub(crate) why: &'a dyn Display,
    pub(crate) began: Instant,
}

impl GuessLine<'_> {
    /// The line.
    pub(crate) fn write(&self) {
        let Self { session, protocol, client, method, owner, reason, why, began, .. } = self;
        let ms = began.elapsed().as_millis();
        let user = String::from_utf8_lossy(self.user);
        let rip = self.counted.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
        let account = owner.map(|owner| &*owner.account);
        let owner = owner.map(|owner| owner.backend.name.as_str());
        tracing::info!(
            session, client = %client, method, account, owner, %why, ms,
            "login failed: rip={rip} protocol={protocol} reason={reason} user={user:?}"
        );
    }
}
