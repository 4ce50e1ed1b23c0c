//! Messages that come again because their sender did not hear what became of them ([`crate::fingerprint`]).

use std::sync::Arc;

use futures_util::FutureExt;
use shared::smtp::reply::{Class, Reply};
use tokio::sync::oneshot;

use super::{Conversation, Heard};
use crate::body::Message;
use crate::custody::note_repeated;
use crate::fingerprint::{Fingerprint, Receipt, Seen};
use crate::outcome;
use crate::session::Protocol;
use crate::transaction::Transaction;

/// A message that was answered, and what its client had said by then.
pub(super) struct Answered {
    receipt: Arc<Receipt>,
    /// Octets of the client's.
    said: u64,
    /// Some of them are not looked at yet: sent without waiting for the reply.
    ahead: bool,
}

/// Recipients who had the message before, as the client was told.
pub(super) struct ToldAgain {
    prints: Vec<Fingerprint>,
    said: u64,
    ahead: bool,
}

impl Conversation<'_> {
    /// Notes who had a message before, where that was a part of a yes.
    pub(super) fn note_told(&mut self, prints: &[Fingerprint], seen: &[Seen], replies: &[Reply]) {
        let known = prints.iter().zip(seen).filter(|(_, seen)| matches!(seen, Seen::Done(_)));
        let prints: Vec<_> = known.map(|(print, _)| *print).collect();
        let accepted = replies.iter().all(|reply| reply.class() == Class::Accepted);
        if !prints.is_empty() && accepted {
            let (said, ahead) = (self.wire.said(), !self.wire.input.is_empty());
            self.told_again = Some(ToldAgain { prints, said, ahead });
        }
    }

    /// Whoever has heard that a message came before, and sends it again, means it.
    pub(super) fn forget_what_was_heard(&mut self, ended_well: bool) {
        if let Some(ToldAgain { prints, said, ahead }) = self.told_again.take()
            && (self.wire.said() != said || ahead && ended_well)
        {
            self.cx.fingerprints.forget(&prints);
        }
    }

    /// The replies to a message of which nobody is to get anything: all recipients have it, or, where one reply
    /// stands for all, somebody is just being delivered to. `None`: it goes the usual way, but for those.
    pub(super) fn repeated(
        &self,
        transaction: &Transaction,
        (id, message): (&str, &Message),
        heard: &Heard<'_>,
        seen: &[Seen],
    ) -> Option<Vec<Reply>> {
        let from = &transaction.mail().from;
        let each = self.session.protocol() == Protocol::Lmtp;
        let in_hand = seen.iter().find_map(|seen| match seen {
            Seen::InHand(former) => Some(former.simple()),
            Seen::Never | Seen::Done(_) => None,
        });
        if let (Some(former), false) = (in_hand, each) {
            let (session, client, reply) = (&self.id, self.wire.peer(), outcome::being_delivered());
            tracing::info!(
                session, id, %client, %from, %former, %reply,
                "message put off: the same is being delivered, and its client has gone"
            );
            let named = self.named("END-OF-MESSAGE", from, None);
            self.cx.mail_log.rejected(&self.client, &named, &reply);
            return Some(vec![reply]);
        }
        let done = |seen: &Seen| match seen {
            Seen::Done(former) => Some(*former),
            Seen::Never | Seen::InHand(_) => None,
        };
        let formers: Vec<_> = seen.iter().map(done).collect::<Option<_>>()?;
        let first = formers.first()?;
        let (log, message_id) = (&self.cx.mail_log, heard.loops.message_id());
        let (octets, recipients) = (message.octets(), transaction.recipients());
        log.received(&self.client, id, message_id.as_deref(), from, octets, recipients);
        for (to, former) in transaction.addresses().zip(&formers) {
            note_repeated(self.cx, (&self.id, self.wire.peer()), (id, from), to, *former);
        }
        log.removed(id);
        let reply = |place: &usize| {
            outcome::delivered_before(&formers.get(*place).unwrap_or(first).simple())
        };
        let accepted = transaction.accepted();
        Some(if each { accepted.iter().map(reply).collect() } else { vec![reply(&0)] })
    }

    /// Does something for a message, and notices when its client goes away meanwhile.
    pub(super) async fn watched<T>(
        &self,
        receipt: &Receipt,
        mut work: impl Future<Output = T> + Unpin,
    ) -> T {
        tokio::select! {
            biased;
            done = &mut work => done,
            () = self.wire.hung_up() => {
                receipt.unheard();
                work.await
            }
        }
    }

    /// Waits for the replies to a message.
    pub(super) async fn replies(
        &mut self,
        receipt: Arc<Receipt>,
        replies: oneshot::Receiver<Vec<Reply>>,
    ) -> Vec<Reply> {
        let replied = self.watched(&receipt, replies).await;
        if self.wire.hung_up().now_or_never().is_some() {
            receipt.unheard();
        }
        let (said, ahead) = (self.wire.said(), !self.wire.input.is_empty());
        self.answered = Some(Answered { receipt, said, ahead });
        // None come when the task has panicked: what it had done it has recorded.
        replied.unwrap_or_default()
    }

    /// The session has ended. Whoever has said something after the last reply has heard it; so has, as far as
    /// anybody can tell, who said goodbye in advance and was there to be answered.
    pub(super) fn note_unheard(&mut self, ended_well: bool) {
        self.forget_what_was_heard(ended_well);
        if let Some(Answered { receipt, said, ahead }) = self.answered.take() {
            let has_gone_on = self.wire.said() != said || ahead && ended_well;
            if !has_gone_on {
                receipt.unheard();
            }
        }
    }
}
