//! One try to send a letter to several recipients: a delivery for each backend, all at once.

use std::sync::Arc;

use shared::address::Address;
use shared::backend::{Backend, BackendName};
use shared::ownership::{Entered, Name, Refusal, Work};
use shared::smtp::command::Addressee;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Delivery, Recipient, Settled, Warrant};
use crate::letter::Letter;
use crate::outcome::Verdict;
use crate::refusal;
use crate::serve::Context;
use crate::spool::Route;

/// Deliveries that are about to begin.
#[derive(Debug)]
pub struct Round {
    cx: Arc<Context>,
    letter: Arc<Letter>,
    deliveries: Vec<Delivery>,
}

/// Why a recipient is not sent to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// Its account is held.
    #[error("account {account} is held")]
    Held {
        /// The account.
        account: Box<str>,
    },
    /// The table has no owner for it.
    #[error(transparent)]
    Refused(Refusal),
    /// It is to go by a backend that is not configured any more.
    #[error("there is no backend {name}")]
    NoBackend {
        /// The backend's name.
        name: BackendName,
    },
}

impl Unsent {
    /// What it means for the recipient.
    pub fn verdict(&self, to: &Address) -> Verdict {
        match self {
            Self::Held { .. } => Verdict::Held,
            Self::Refused(refusal) => Verdict::Refused(refusal::by_table(refusal, to)),
            Self::NoBackend { .. } => Verdict::Refused(refusal::misconfigured(to)),
        }
    }
}

impl Round {
    /// For this letter, without recipients.
    pub fn new(cx: &Arc<Context>, letter: &Arc<Letter>) -> Self {
        Self { cx: Arc::clone(cx), letter: Arc::clone(letter), deliveries: Vec::new() }
    }

    /// Adds a recipient. Where the table decides, it is registered before the owner is read: a change from
    /// here on finds this delivery (P4).
    ///
    /// # Errors
    ///
    /// [`Unsent`]: there is nobody who could be sent to.
    pub fn add(
        &mut self,
        place: usize,
        to: &Addressee,
        name: &Name,
        route: &Route,
    ) -> Result<(), Unsent> {
        if let Route::Via(name) = route {
            let backend = self.cx.ownership.backends().get(name).cloned();
            let backend = backend.ok_or_else(|| Unsent::NoBackend { name: name.clone() })?;
            self.put(place, to, &backend, Warrant::Configured);
            return Ok(());
        }
        match self.cx.ownership.enter_held(name, Work::Delivery) {
            Ok(Entered::Owned(owner, registration)) => {
                let backend = Arc::clone(&owner.backend);
                self.put(place, to, &backend, Warrant::Row(owner, registration));
                Ok(())
            }
            Ok(Entered::Held { account, .. }) => Err(Unsent::Held { account }),
            Err(refusal) => Err(Unsent::Refused(refusal)),
        }
    }

    /// The deliveries, to be given connections.
    pub fn deliveries(&mut self) -> &mut [Delivery] {
        &mut self.deliveries
    }

    /// Begins all deliveries, each a task of its own: whoever waits for one owner waits for no other. What
    /// they find comes out of the channel, which ends with the last of them.
    pub fn start(self) -> UnboundedReceiver<Settled> {
        let (settled, found) = unbounded_channel();
        for delivery in self.deliveries {
            self.cx.lifecycle.spawn("delivery", delivery.run(settled.clone()));
        }
        found
    }

    fn put(&mut self, place: usize, to: &Addressee, backend: &Arc<Backend>, warrant: Warrant) {
        let at = self.deliveries.iter().position(|d| d.backend().name == backend.name);
        let at = at.unwrap_or_else(|| {
            let (cx, letter) = (Arc::clone(&self.cx), Arc::clone(&self.letter));
            self.deliveries.push(Delivery::new(cx, letter, Arc::clone(backend)));
            self.deliveries.len().saturating_sub(1)
        });
        if let Some(delivery) = self.deliveries.get_mut(at) {
            delivery.add(Recipient { place, to: to.clone(), warrant });
        }
    }
}
