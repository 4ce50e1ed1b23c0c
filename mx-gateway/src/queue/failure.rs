//! Who failed for good, and who is told of it (SPL-5): the sender by a report, or the operator by a dead letter.
//!
//! What tells of a failure is durable before the failure is written down: a crash between the two repeats the
//! report, and never swallows it.

use std::io;
use std::sync::Arc;

use shared::address::Address;
use shared::ownership::{Name, Refusal};
use shared::smtp::path::ReversePath;
use shared::smtp::reply::Reply;
use time::OffsetDateTime;

use super::{Added, Content, KeepError, Queue};
use crate::body::Message;
use crate::delivery::Introduction;
use crate::report::{self, Due, News, Report, Reported};
use crate::spool::{
    self, Envelope, Failure, Fate, Recipient, Record, Route, SpoolError, State as Stage, Stored,
};

/// A recipient that failed.
#[derive(Debug)]
struct Failed {
    recipient: Recipient,
    reply: Reply,
    /// The owner said so, not we.
    by_server: bool,
}

/// A refusal for good.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    pub(super) place: usize,
    pub(super) reply: Reply,
    /// The owner said so, not we.
    pub(super) by_server: bool,
}

impl Content<'_> {
    /// As much of it as a report returns.
    async fn beginning(&self) -> io::Result<Vec<u8>> {
        let (mut octets, mut reader) = (self.header.as_bytes().to_vec(), self.message.reader());
        while octets.len() < report::WANTED && reader.read(&mut octets).await? {}
        octets.truncate(report::WANTED);
        Ok(octets)
    }
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
        let failed = refused.iter().map(|(added, reply)| {
            let recipient = added.recipient.clone();
            Failed { recipient, reply: reply.clone(), by_server: true }
        });
        let fates = self.fates(envelope, content, &failed.collect::<Vec<_>>()).await?;
        let at = spool::now();
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
        refused: Vec<Refused>,
    ) -> Result<(), KeepError> {
        let (mut failed, mut places) = (Vec::new(), Vec::new());
        for Refused { place, reply, by_server } in refused {
            if let Some(recipient) = stored.recipients.get(place).cloned() {
                failed.push(Failed { recipient, reply, by_server });
                places.push(place);
            }
        }
        let fates = self.fates(&stored.envelope, content, &failed).await?;
        let records: Vec<_> = places
            .into_iter()
            .zip(failed)
            .zip(fates)
            .map(|((recipient, failed), fate)| Record::Failed {
                recipient,
                reply: failed.reply,
                fate,
            })
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
        let reported: Vec<_> = due
            .iter()
            .zip(failed)
            .filter(|(due, _)| **due == Due::Report)
            .map(|(_, f)| f)
            .collect();
        let report = match self.way_back(&envelope.from) {
            Some(way) if !reported.is_empty() => {
                Some(self.report(envelope, content, &reported, way).await?)
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
        let address = Address::parse_utf8(text).ok()?;
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
        failed: &[&Failed],
        (address, route): (Address, Route),
    ) -> Result<Box<str>, KeepError> {
        let id: Box<str> = uuid::Uuid::now_v7().simple().to_string().into();
        let rules = self.rules.load_full();
        let recipients: Vec<_> = failed
            .iter()
            .map(|Failed { recipient, reply, by_server }| Reported {
                address: &recipient.address,
                orcpt: recipient.orcpt.as_deref(),
                reply,
                by_server: *by_server,
            })
            .collect();
        let text = report::text(&Report {
            id: &id,
            hostname: &rules.hostname,
            to: &address.to_string(),
            news: News::Failure,
            at: OffsetDateTime::now_utc(),
            message: &envelope.id,
            arrived: envelope.arrived.into(),
            envid: envelope.envid.as_deref(),
            ret: envelope.ret.as_deref(),
            recipients: &recipients,
            content: &content.beginning().await.map_err(SpoolError::Body)?,
        });
        let (to, text) = (address.to_string(), Message::of_octets(text));
        let report = Envelope {
            id: id.clone(),
            from: ReversePath::Null,
            eight_bit: true,
            smtputf8: false,
            ret: None,
            envid: None,
            introduction: Introduction {
                helo: rules.hostname.clone(),
                hostname: rules.hostname.clone(),
                ..envelope.introduction.clone()
            },
            arrived: spool::now(),
            may_report: false,
        };
        let name = Name::of_address(&address);
        let recipient =
            Recipient { address, name, route, notify: None, orcpt: None, state: Stage::Waiting };
        let added = Added { place: 0, recipient, in_hand: false, soon: true };
        let content = Content { header: "", message: &text };
        // The queue sends it from here on.
        drop(self.keep(report, content, vec![added]).await?);
        tracing::info!(id = %envelope.id, report = %id, to, "a report of failure goes to the sender");
        Ok(id)
    }
}
