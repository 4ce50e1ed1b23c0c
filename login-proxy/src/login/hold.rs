//! Waiting out a hold (KIK-2). A login for a held account says nothing and serves nothing; it waits for the
//! next row, by which it is then routed.
//!
//! It stays registered while it waits: whatever changes the row wakes it at once. It has read the row that
//! holds, so the fence of that hold does not wait for it.

use std::sync::Arc;
use std::time::Duration;

use shared::ownership::Registration;
use shared::seats::{Full, Seat, Seats};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::within;

/// A login's place in the registry under the account that is held.
pub(crate) struct Held {
    pub(crate) account: Box<str>,
    pub(crate) registration: Registration,
}

/// How one attempt waits: however many holds it meets, they share one limit.
pub(crate) struct Waiting<'a> {
    rules: WaitRules<'a>,
    session: &'a str,
    login_until: Option<Instant>,
    /// Set by the first hold.
    until: Option<Instant>,
    seat: Option<Seat<Box<str>>>,
}

/// How long attempts wait, how many of them, and for whom else they stop.
#[derive(Clone, Copy)]
pub(crate) struct WaitRules<'a> {
    /// Places for those who wait, by account.
    pub(crate) places: &'a Arc<Seats<Box<str>>>,
    /// The longest time.
    pub(crate) limit: Duration,
    /// The node stops.
    pub(crate) stop: &'a CancellationToken,
    /// For logs.
    pub(crate) protocol: &'static str,
}

/// Why an attempt for a held account waits no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unserved {
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
    pub(crate) fn new(
        rules: WaitRules<'a>,
        session: &'a str,
        login_until: Option<Instant>,
    ) -> Self {
        Self { rules, session, login_until, until: None, seat: None }
    }

    /// Waits until the row that holds is not the newest any more.
    ///
    /// # Errors
    ///
    /// The account, and why it is waited for no longer.
    pub(crate) async fn wait_out(&mut self, held: Held) -> Result<(), (Box<str>, Unserved)> {
        let Held { account, registration } = held;
        let waited = match self.sit_down(&account) {
            Ok(()) => self.until_changed(&registration).await,
            Err(full) => Err(full.into()),
        };
        waited.map_err(|why| (account, why))
    }

    /// Gives the place back, where there is one: the account is served.
    pub(crate) fn leave(&mut self) {
        self.seat = None;
    }

    /// Takes a place among those who wait for the account, or stays in it.
    fn sit_down(&mut self, account: &str) -> Result<(), Full> {
        if self.seat.as_ref().is_some_and(|seat| **seat.key() == *account) {
            return Ok(());
        }
        self.seat = None;
        self.seat = Some(self.rules.places.take(account.into())?);
        let (session, protocol) = (self.session, self.rules.protocol);
        tracing::info!(session, protocol, account, "login waits for the end of a hold");
        Ok(())
    }

    async fn until_changed(&mut self, registration: &Registration) -> Result<(), Unserved> {
        let limit = self.rules.limit;
        let until = *self.until.get_or_insert_with(|| within(limit, self.login_until));
        tokio::select! {
            biased;
            () = registration.outdated() => Ok(()),
            // Whoever is joined now is cut off with the grace.
            () = self.rules.stop.cancelled() => Err(Unserved::Stopping),
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
