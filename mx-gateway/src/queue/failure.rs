//! Who failed for good, and who is told of it (SPL-5): the sender by a report, or the operator by a dead letter.
//!
//! What tells of a failure is durable before the failure is written down: a crash between the two repeats the
//! report, and never swallows it.

use std::sync::Arc;
use std::time::SystemTime;

use shared::address::Address;
use shared::ownership::{Name, Refusal};
use shared::smtp::path::ReversePath;
use shared::smtp::reply::Reply;

use super::{Added, Content, KeepError, Queue};
use crate::report::{self, Due};
use crate::spool::{Envelope, Failure, Fate, Recipient, Record, Route, State as Stage, Stored};

/// A recipient that failed.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    recipient: Recipient,
    reply: Reply,
}

impl Queue {
    /// Tells whoever is to be told that these recipients were refused for good. They come back as failed.
    ///
    /// # Errors
    ///
    /// A [`KeepError`]: nobody was told.
    pub async fn tell(
        self: &Arc<Self>,
        envelope: &Envelope,
        content: Content<'_>,
        refused: Vec<(Added, Reply)>,
    ) -> Result<Vec<Added>, KeepError> {
        let failed: Vec<_> = refused
            .iter()
            .map(|(added, reply)| Failed {
                recipient: added.recipient.clone(),
                reply: reply.clone(),
            })
            .collect();
        let fates = self.fates(envelope, content, &failed).await?;
        let at = SystemTime::now();
        let told = refused.into_iter().zip(fates).map(|((mut added, reply), fate)| {
            added.recipient.state = Stage::Failed(Box::new(Failure { reply, fate, at }));
            added
        });
        Ok(told.collect())
    }

    /// The same for recipients of a message in the queue, by their places; then they are done with.
    pub(super) async fn fail(
        self: &Arc<Self>,
        stored: &Stored,
        content: Content<'_>,
        refused: Vec<(usize, Reply)>,
    ) -> Result<(), KeepError> {
        let recipient = |place: usize| stored.recipients.get(place).cloned();
        let failed: Vec<_> = refused
            .iter()
            .filter_map(|(place, reply)| {
                Some(Failed { recipient: recipient(*place)?, reply: reply.clone() })
            })
            .collect();
        let fates = self.fates(&stored.envelope, content, &failed).await?;
        let places = refused.into_iter().zip(fates);
        let records: Vec<_> = places
            .map(|((recipient, reply), fate)| Record::Failed { recipient, reply, fate })
            .collect();
        let id = stored.id();
        self.spool.append(id, &records, true).await?;
        let mut last = false;
        for record in &records {
            if let Record::Failed { recipient, fate, .. } = record {
                last |= self.lock().index.failed(id, *recipient, *fate == Fate::Dead);
            }
        }
        if last {
            self.clear(id).await;
        }
        Ok(())
    }

    /// What becomes of each failure. The report, if there is one, is in the queue when this returns.
    async fn fates(
        self: &Arc<Self>,
        envelope: &Envelope,
        content: Content<'_>,
        failed: &[Failed],
    ) -> Result<Vec<Fate>, KeepError> {
        let due: Vec<_> = failed
            .iter()
            .map(|Failed { recipient, .. }| {
                report::is_due(recipient.notify.as_deref(), &envelope.from, envelope.may_report)
            })
            .collect();
        let sender = self.way_back(&envelope.from);
        let reported: Vec<_> = due
            .iter()
            .zip(failed)
            .filter(|(due, _)| **due == Due::Report && sender.is_some())
            .map(|(_, failed)| failed.clone())
            .collect();
        let report = match sender {
            Some((address, route)) if !reported.is_empty() => {
                Some(self.report(envelope, content, &reported, address, route).await?)
            }
            Some(_) | None => None,
        };
        Ok(due
            .into_iter()
            .map(|due| match (due, &report) {
                (Due::Nothing, _) => Fate::Unwanted,
                (Due::Report, Some(id)) => Fate::Reported(id.clone()),
                (Due::Report, None) | (Due::DeadLetter(_), _) => Fate::Dead,
            })
            .collect())
    }

    /// Where a report to a sender goes: to its owner when it is ours, else the configured way. `None`: nowhere.
    fn way_back(&self, from: &ReversePath) -> Option<(Address, Route)> {
        let ReversePath::Mailbox(text) = from else { return None };
        let address = Address::parse(text).ok()?;
        let route = match self.ownership.look_up(&Name::of_address(&address)) {
            Err(Refusal::ForeignDomain) => Route::Via(self.rules.load().report_via.clone()?),
            Err(Refusal::NoSuchAccount) => return None,
            // Whoever it is now, it is looked up again when it is sent.
            Ok(_) | Err(_) => Route::Owner,
        };
        Some((address, route))
    }

    /// Puts a report into the queue; its id.
    async fn report(
        self: &Arc<Self>,
        envelope: &Envelope,
        content: Content<'_>,
        failed: &[Failed],
        to: Address,
        route: Route,
    ) -> Result<Box<str>, KeepError> {
        todo!()
    }
}
