//! Waiting out a hold (KIK-2). A login for a held account says nothing and serves nothing; it waits for the
//! next row, by which it is then routed.
//!
//! It stays registered while it waits: whatever changes the row wakes it at once. It has read the row that
//! holds, so the fence of that hold does not wait for it.

use shared::ownership::Registration;
use shared::seats::{Full, Seat};
use tokio::time::{Instant, sleep_until};

use super::route::Denied;
use super::{Context, within};

/// A login's place in the registry under the account that is held.
pub(super) struct Held {
    pub(super) account: Box<str>,
    pub(super) registration: Registration,
}

/// How one attempt waits: however many holds it meets, they share one limit.
pub(super) struct Waiting<'a> {
    cx: &'a Context,
    session: &'a str,
    login_until: Option<Instant>,
    /// Set by the first hold.
    until: Option<Instant>,
    seat: Option<Seat<Box<str>>>,
}

/// Why an attempt for a held account waits no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unserved {
    #[error("it did not end within the time that a login waits (login.hold_wait)")]
    TooLong,
    #[error("too many logins wait for it (login.max_held_per_account)")]
    TooMany,
    #[error("too many logins wait for held accounts (login.max_held)")]
    TooManyInAll,
    #[error("this node stops")]
    Stopping,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(cx: &'a Context, session: &'a str, login_until: Option<Instant>) -> Self {
        Self { cx, session, login_until, until: None, seat: None }
    }

    /// Waits until the row that holds is not the newest any more.
    pub(super) async fn wait_out(&mut self, held: Held) -> Result<(), Denied> {
        let Held { account, registration } = held;
        let waited = match self.sit_down(&account) {
            Ok(()) => self.until_changed(&registration).await,
            Err(full) => Err(full.into()),
        };
        waited.map_err(|why| Denied::Held { account, why })
    }

    /// Gives the place back, where there is one: the account is served.
    pub(super) fn leave(&mut self) {
        self.seat = None;
    }

    /// Takes a place among those who wait for the account, or stays in it.
    fn sit_down(&mut self, account: &str) -> Result<(), Full> {
        if self.seat.as_ref().is_some_and(|seat| **seat.key() == *account) {
            return Ok(());
        }
        self.seat = None;
        self.seat = Some(self.cx.shared.held.take(account.into())?);
        let (session, protocol) = (self.session, self.cx.protocol.kind);
        tracing::info!(session, %protocol, account, "login waits for the end of a hold");
        Ok(())
    }

    async fn until_changed(&mut self, registration: &Registration) -> Result<(), Unserved> {
        let limit = self.cx.rules.hold_wait;
        let until = *self.until.get_or_insert_with(|| within(limit, self.login_until));
        tokio::select! {
            biased;
            () = registration.outdated() => Ok(()),
            // Whoever is joined now is cut off with the grace.
            () = self.cx.lifecycle.stop().cancelled() => Err(Unserved::Stopping),
            () = sleep_until(until) => Err(Unserved::TooLong),
        }
    }
}

impl From<Full> for Unserved {
    fn from(full: Full) -> Self {
        match full {
            Full::InAll => Self::TooManyInAll,
            Full::ForKey => Self::TooMany,
        }
    }
}
