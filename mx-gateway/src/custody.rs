//! A message between its end and the reply for it, and what comes after (P3, DESIGN §3.2).
//!
//! A custody is a task of its own, so it goes on when the client has gone: the owners may have the message
//! already. It hears every verdict of the deliveries. When all are known, or when the client has waited long
//! enough, the outcome is decided; whom we answer for from then on is committed to the spool, and only then is
//! the client told. Deliveries that still wait for their owner go on; what they find is recorded in the spool.
//!
//! A recipient that is in doubt is committed at once, before its registration is dropped: a fence must not wait
//! for other owners (P5).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shared::address::Address;
use shared::ownership::{Epoch, Name, Owner};
use shared::smtp::command::Addressee;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::{Class, Reply};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use crate::delivery::{Settled, Warrant};
use crate::fingerprint::{Left, Receipt};
use crate::letter::Letter;
use crate::mail_log::Delays;
use crate::outcome::{self, Outcome, Verdict};
use crate::queue::{Added, Content, InHand, KeepError};
use crate::serve::Context;
use crate::spool::{self, Envelope, State};

/// How long a client waits for the reply when nothing can be kept. Many give up after five minutes, and a
/// reply that nobody waits for any more makes a duplicate (RFC 1047).
const LONGEST_REPLY: Duration = Duration::from_mins(4);

/// Whom a message is for.
#[derive(Debug, Clone)]
pub struct Recipient {
    /// As its owner is told of it.
    pub to: Addressee,
    /// By which it is looked up, as the client named it.
    pub name: Name,
    /// Where it goes.
    pub route: spool::Route,
}

/// Who brought a message, as the log has it.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The session.
    pub session: Box<str>,
    /// The client.
    pub client: SocketAddr,
    /// Each recipient has a reply of its own (LMTP).
    pub each: bool,
    /// A report of failure may go to the sender.
    pub may_report: bool,
    /// How long it took to receive the message.
    pub took: Duration,
}

/// One message.
#[derive(Debug)]
pub struct Custody {
    cx: Arc<Context>,
    letter: Arc<Letter>,
    origin: Origin,
    began: Instant,
    arrived: SystemTime,
    recipients: Vec<Recipient>,
    verdicts: Vec<Option<Verdict>>,
    /// The backend that a recipient in doubt may be at.
    doubts: Vec<Option<spool::State>>,
    /// Its place in the spool, once it has one.
    stored: Vec<Option<usize>>,
    spooled: Option<InHand>,
    client: Option<oneshot::Sender<Vec<Reply>>>,
    /// What is remembered for a retry of the message.
    receipt: Arc<Receipt>,
}

impl Drop for Custody {
    fn drop(&mut self) {
        self.receipt.ended();
    }
}

impl Custody {
    /// Of a message for these recipients. The reply, or with LMTP the replies, come out of the channel.
    pub fn new(
        cx: &Arc<Context>,
        letter: &Arc<Letter>,
        origin: Origin,
        recipients: Vec<Recipient>,
        receipt: &Arc<Receipt>,
    ) -> (Self, oneshot::Receiver<Vec<Reply>>) {
        let (client, replies) = oneshot::channel();
        let custody = Self {
            cx: Arc::clone(cx),
            letter: Arc::clone(letter),
            origin,
            began: Instant::now(),
            arrived: spool::now(),
            verdicts: vec![None; recipients.len()],
            doubts: vec![None; recipients.len()],
            stored: vec![None; recipients.len()],
            recipients,
            spooled: None,
            client: Some(client),
            receipt: Arc::clone(receipt),
        };
        (custody, replies)
    }

    /// A recipient that got an identical message before, and does not get it again.
    pub fn settle_repeated(&mut self, place: usize, former: Uuid) {
        if let Some(recipient) = self.recipients.get(place) {
            let (letter, to) = (&self.letter, &recipient.to.address);
            let Origin { session, client, .. } = &self.origin;
            note_repeated(
                &self.cx,
                (session, *client),
                (&letter.id, &letter.mail.from),
                to,
                former,
            );
        }
        if let Some(known) = self.verdicts.get_mut(place) {
            *known = Some(Verdict::Accepted);
        }
    }

    /// A verdict that was known before anything was sent.
    pub fn settle_unsent(&mut self, place: usize, verdict: Verdict, why: &str) {
        self.record(place, &verdict, None, Some(why));
        if let Some(recipient) = self.recipients.get(place) {
            let delays = Delays { before: self.origin.took, ..Delays::default() };
            let (log, id) = (&self.cx.mail_log, &self.letter.id);
            log.unsent(id, &recipient.to.address, &verdict, why, &delays);
        }
        if let Some(known) = self.verdicts.get_mut(place) {
            *known = Some(verdict);
        }
    }

    /// Hears the deliveries to their end.
    pub async fn run(mut self, mut settled: UnboundedReceiver<Settled>) {
        let patience = self.began.checked_add(self.cx.rules.patience);
        let longest = self.began.checked_add(self.cx.rules.delivery_timeout.min(LONGEST_REPLY));
        let (patience, longest) = (patience.unwrap_or(self.began), longest.unwrap_or(self.began));
        loop {
            if self.client.is_some() && self.verdicts.iter().all(Option::is_some) {
                self.conclude().await;
            }
            let until = if self.may_keep() { patience } else { longest };
            tokio::select! {
                one = settled.recv() => match one {
                    Some(one) => self.settle(one).await,
                    None => break,
                },
                () = sleep_until(until), if self.client.is_some() => self.conclude().await,
            }
        }
        // A delivery that panicked has told nothing: its recipients are in doubt.
        if self.client.is_some() {
            self.conclude().await;
        }
        let is_over = match self.spooled.take() {
            Some(spooled) => spooled.close().await,
            None => true,
        };
        if is_over {
            self.cx.mail_log.removed(&self.letter.id);
        }
    }

    /// One verdict. It is recorded when this returns; then its registration is dropped.
    async fn settle(&mut self, one: Settled) {
        let Settled { place, verdict, why, backend, warrant, .. } = &one;
        self.record(*place, verdict, warrant.owner(), why.as_deref());
        if let Some(recipient) = self.recipients.get(*place) {
            let (before, sending) = (self.origin.took, self.began.elapsed());
            let delays = Delays { before, sending, ..Delays::default() };
            let log = &self.cx.mail_log;
            log.settled(&self.letter.id, &recipient.to.address, &one, &delays);
        }
        if *verdict == Verdict::InDoubt
            && let Some(doubt) = self.doubts.get_mut(*place)
        {
            *doubt = Some(State::InDoubt { owner: backend.name.clone(), since: spool::now() });
        }
        if let Some(known) = self.verdicts.get_mut(*place) {
            *known = Some(verdict.clone());
        }
        let stored = self.stored.get(*place).copied().flatten();
        if let (Some(spooled), Some(stored)) = (&mut self.spooled, stored) {
            spooled.settle(stored, &one).await;
        } else if *verdict == Verdict::InDoubt
            && self.client.is_some()
            && self.may_keep()
            && let Err(error) = self.keep(&[*place], &[]).await
        {
            tracing::error!(id = %self.letter.id, %error, "cannot keep a message that is in doubt");
        }
        self.receipt.settled(one.place, one.verdict == Verdict::Accepted);
        if let Warrant::Row(_, registration) = one.warrant {
            // Recorded: only now a fence need not wait for it any more.
            drop(registration);
        }
    }

    /// Decides, keeps whom we answer for, and tells the client.
    async fn conclude(&mut self) {
        let Some(client) = self.client.take() else { return };
        let mut outcome = self.outcome(self.may_keep());
        if !(outcome.kept.is_empty() && outcome.failed.is_empty())
            && let Err(error) = self.keep(&outcome.kept, &outcome.failed).await
        {
            tracing::error!(id = %self.letter.id, %error, "cannot keep a message, its sender has to");
            outcome = self.outcome(false);
        }
        self.receipt.answered(left_by(&self.verdicts, &outcome.replies));
        // A client that has gone comes again.
        if client.send(outcome.replies).is_err() {
            self.receipt.unheard();
        }
    }

    fn outcome(&self, spool: bool) -> Outcome {
        let decide = if self.origin.each { outcome::of_each } else { outcome::of_all };
        decide(&self.verdicts, spool, &self.letter.id)
    }

    fn may_keep(&self) -> bool {
        let octets = self.letter.message.octets();
        self.cx.queue.as_ref().is_some_and(|queue| queue.has_room_for(octets))
    }

    /// Commits recipients to the spool, and sees to it that the sender learns of those who failed. Those who
    /// are there already stay.
    async fn keep(&mut self, kept: &[usize], failed: &[usize]) -> Result<(), KeepError> {
        let Some(queue) = self.cx.queue.clone() else { return Err(KeepError::NoQueue) };
        let envelope = self.envelope();
        let mut added: Vec<_> = kept.iter().filter_map(|place| self.waiting(*place)).collect();
        let refused: Vec<_> = failed.iter().filter_map(|place| self.refused(*place)).collect();
        let content = Content { header: &self.letter.header, message: &self.letter.message };
        let failed = queue.tell(&envelope, content, refused).await?;
        // Of whom the sender was told nothing is left to do.
        added.extend(failed.into_iter().filter(|added| added.recipient.state.is_dead()));
        if added.is_empty() {
            return Ok(());
        }
        let places: Vec<_> = added.iter().map(|added| added.place).collect();
        let first = match &mut self.spooled {
            Some(spooled) => spooled.add(added).await?,
            None => {
                self.spooled = Some(queue.keep(envelope, content, added).await?);
                0
            }
        };
        for (at, place) in places.into_iter().enumerate() {
            if let Some(stored) = self.stored.get_mut(place) {
                *stored = Some(first.saturating_add(at));
            }
        }
        Ok(())
    }

    /// A recipient as it is kept; none when it is kept already.
    fn waiting(&self, place: usize) -> Option<Added> {
        if self.stored.get(place)?.is_some() {
            return None;
        }
        let state = self.doubts.get(place)?.clone().unwrap_or(State::Waiting);
        let (in_hand, soon) = match self.verdicts.get(place)? {
            None => (true, false),
            Some(Verdict::Refused(_)) => (false, false),
            Some(Verdict::NotSent | Verdict::Held | Verdict::InDoubt | Verdict::Accepted) => {
                (false, true)
            }
        };
        Some(Added { place, recipient: self.recipient(place, state)?, in_hand, soon })
    }

    /// A recipient that was refused for good, and by what.
    fn refused(&self, place: usize) -> Option<(Added, Reply)> {
        let Some(Verdict::Refused(reply)) = self.verdicts.get(place)? else { return None };
        let recipient = self.recipient(place, State::Waiting)?;
        Some((Added { place, recipient, in_hand: false, soon: false }, reply.clone()))
    }

    fn recipient(&self, place: usize, state: State) -> Option<spool::Recipient> {
        let Recipient { to, name, route } = self.recipients.get(place)?.clone();
        let Addressee { address, notify, orcpt } = to;
        let notify = notify.map(|notify| notify.as_str().into());
        let orcpt = orcpt.map(|orcpt| orcpt.as_str().into());
        Some(spool::Recipient { address, name, notify, orcpt, route, state })
    }

    fn envelope(&self) -> Envelope {
        let Letter { id, mail, introduction, .. } = &*self.letter;
        Envelope {
            id: id.clone(),
            from: mail.from.clone(),
            eight_bit: mail.eight_bit,
            smtputf8: mail.smtputf8,
            ret: mail.ret.map(|ret| ret.as_str().into()),
            envid: mail.envid.as_ref().map(|envid| envid.as_str().into()),
            introduction: introduction.clone(),
            arrived: self.arrived,
            may_report: self.origin.may_report,
        }
    }

    /// A line of the log for what became of a recipient.
    fn record(&self, place: usize, verdict: &Verdict, owner: Option<&Owner>, why: Option<&str>) {
        let Origin { session, client, .. } = &self.origin;
        let Letter { id, mail, message, .. } = &*self.letter;
        let to = self.recipients.get(place).map(|recipient| recipient.to.address.to_string());
        let to = to.unwrap_or_default();
        let (account, owner, epoch) = place_of(owner);
        let (from, size, ms) = (&mail.from, message.octets(), self.began.elapsed().as_millis());
        let why = why.unwrap_or("no verdict");
        match verdict {
            Verdict::Accepted => tracing::info!(
                session, id, %client, %from, to, account, owner, epoch, code = 250, ms, size, "delivered"
            ),
            Verdict::Refused(reply) => tracing::info!(
                session, id, %client, %from, to, account, owner, epoch, code = reply.code(), ms, size,
                %reply, why, "not delivered"
            ),
            Verdict::Held => tracing::info!(
                session, id, %client, %from, to, account, owner, epoch, ms, size, why, "not delivered: held"
            ),
            Verdict::NotSent => tracing::warn!(
                session, id, %client, %from, to, account, owner, epoch, ms, size, why, "not delivered"
            ),
            Verdict::InDoubt => tracing::warn!(
                session, id, %client, %from, to, account, owner, epoch, ms, size, why,
                "not delivered: the owner may have it, and has not said so"
            ),
        }
    }
}

/// What these replies, one for all or one for each, leave the recipients with.
fn left_by(verdicts: &[Option<Verdict>], replies: &[Reply]) -> Vec<Left> {
    let each = replies.iter().chain(std::iter::repeat_with(|| replies.last()).flatten());
    let left = |(verdict, reply): (&Option<Verdict>, &Reply)| match verdict {
        _ if reply.class() == Class::Accepted => Left::Accepted,
        Some(Verdict::Accepted) => Left::Doubled,
        None => Left::Open,
        Some(Verdict::Refused(_) | Verdict::NotSent | Verdict::Held | Verdict::InDoubt) => {
            Left::Senders
        }
    };
    verdicts.iter().zip(each).map(left).collect()
}

/// Lines of the logs for a recipient that does not get again what it has.
pub fn note_repeated(
    cx: &Context,
    (session, client): (&str, SocketAddr),
    (id, from): (&str, &ReversePath),
    to: &Address,
    former: Uuid,
) {
    let former = former.simple();
    tracing::info!(
        session, id, %client, %from, %to, %former, "not delivered again: the same message came before"
    );
    let reply = outcome::delivered_before(&former);
    cx.mail_log.repeated(id, to, &reply);
}

/// Account, owner and epoch as the log has them.
pub fn place_of(owner: Option<&Owner>) -> (&str, &str, Epoch) {
    match owner {
        Some(owner) => (&owner.account, owner.backend.name.as_str(), owner.epoch),
        None => ("", "", 0),
    }
}
