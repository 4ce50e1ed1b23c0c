//! What the log says of a login and of a session: one line each (OBS-1).

use std::net::{IpAddr, SocketAddr};

use shared::backend::LoginProtocol;
use shared::credentials::Credentials;
use shared::ownership::{self, Owner};
use shared::wire::{ConnectError, Joined};
use tokio::time::Instant;

use super::route::{Denied, Guess};
use crate::backend::AttachError;
use crate::guess_line::GuessLine;

/// What the log says of an attempt.
pub(super) struct Tried<'a> {
    pub(super) session: &'a str,
    pub(super) protocol: LoginProtocol,
    pub(super) address: SocketAddr,
    /// Whose guess it is, where that is known.
    pub(super) counted: Option<IpAddr>,
    pub(super) credentials: &'a Credentials,
    /// A trusted front's name for the session.
    pub(super) upstream: Option<&'a str>,
    pub(super) began: Instant,
}

impl Tried<'_> {
    pub(super) fn log_login(&self, owner: &Owner) {
        let Self { session, protocol, address, credentials, began, .. } = self;
        let user = String::from_utf8_lossy(credentials.mailbox());
        tracing::info!(
            session, %protocol, client = %address, ?user, method = credentials.method(),
            account = %owner.account, owner = %owner.backend.name, epoch = owner.epoch,
            // Without a row of its own it lives at its domain's default owner (NAM-6).
            row = owner.known, upstream = self.upstream, ms = began.elapsed().as_millis(), "login"
        );
    }

    pub(super) fn log_refusal(&self, denied: &Denied) {
        if let Some(guess) = denied.guess() {
            return self.log_guess(guess);
        }
        let Self { session, protocol, address, credentials, began, .. } = self;
        let (ms, method) = (began.elapsed().as_millis(), credentials.method());
        let user = String::from_utf8_lossy(credentials.mailbox());
        match denied {
            // Always a guess.
            Denied::Name(_) => {}
            Denied::Owner(
                why @ (ownership::Refusal::UnknownBackend { .. }
                | ownership::Refusal::Ambiguous { .. }),
            ) => {
                tracing::error!(session, %protocol, client = %address, ?user, method, %why, ms, "login refused");
            }
            Denied::Owner(why) => {
                tracing::info!(session, %protocol, client = %address, ?user, method, %why, ms, "login refused");
            }
            Denied::Held { account, why } => {
                tracing::info!(session, %protocol, client = %address, ?user, method, %account, %why, ms, "login refused: the account is held");
            }
            Denied::Backend { owner, why: why @ AttachError::Cancelled } => {
                let (account, owner) = (&owner.account, &owner.backend.name);
                tracing::info!(session, %protocol, client = %address, ?user, method, %account, %owner, %why, ms, "login refused");
            }
            Denied::Backend {
                owner,
                why: why @ AttachError::Connect(ConnectError::Own { .. }),
            } => {
                let (account, owner) = (&owner.account, &owner.backend.name);
                tracing::error!(session, %protocol, client = %address, ?user, method, %account, %owner, %why, ms, "login refused");
            }
            Denied::Backend { owner, why } => {
                let (account, owner) = (&owner.account, &owner.backend.name);
                tracing::warn!(session, %protocol, client = %address, ?user, method, %account, %owner, %why, ms, "login refused");
            }
            Denied::Loop => {
                tracing::error!(session, %protocol, client = %address, ?user, method, ms, "login refused: it has gone through too many proxies; does a backend's name lead to a proxy?");
            }
            Denied::Nameless => {
                tracing::warn!(session, %protocol, client = %address, method, ms, "login refused: the token names no account, nor does the client; see names.token_claims");
            }
            Denied::Contradiction { token } => {
                tracing::warn!(session, %protocol, client = %address, ?user, ?token, method, ms, "login refused: the client's name and its token's live at different servers");
            }
            Denied::Restless => {
                tracing::warn!(session, %protocol, client = %address, ?user, method, ms, "login refused: the account was moved meanwhile");
            }
        }
    }

    fn log_guess(&self, guess: Guess<'_>) {
        let Guess { reason, owner, why } = guess;
        let line = GuessLine {
            session: self.session,
            protocol: self.protocol.as_str(),
            client: self.address,
            counted: self.counted,
            method: self.credentials.method(),
            user: self.credentials.mailbox(),
            owner,
            reason,
            why,
            began: self.began,
        };
        line.write();
    }
}

/// What the log says of a session when it has ended.
pub(super) struct Record {
    pub(super) session: Box<str>,
    pub(super) protocol: LoginProtocol,
    pub(super) client: SocketAddr,
    pub(super) owner: Owner,
    pub(super) began: Instant,
}

impl Record {
    pub(super) fn write(&self, joined: &Joined) {
        let (session, protocol, client) = (&self.session, self.protocol, self.client);
        tracing::info!(
            %session, %protocol, %client, account = %self.owner.account,
            owner = %self.owner.backend.name, epoch = self.owner.epoch,
            octets_in = joined.octets_in, octets_out = joined.octets_out,
            ms = self.began.elapsed().as_millis(), ended = ?joined.ended, "session ended"
        );
    }
}
