//! One try of the queue to deliver a message: to whom the plan says, all backends at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shared::smtp::command::{Addressee, Mail};
use shared::smtp::dsn::{EnvelopeId, Notify, OriginalRecipient, Ret};
use shared::smtp::reply::{Class, Reply};

use super::failure::Refused;
use super::index::{Id, Wait};
use super::plan::Plan;
use super::{Content, DOUBT_PAUSE, KeepError, PAUSES, Queue, Stage};
use crate::custody::place_of;
use crate::delivery::{Round, Settled, Unsent, Warrant};
use crate::letter::Letter;
use crate::mail_log::Delays;
use crate::outcome::Verdict;
use crate::serve::Context;
use crate::spool::{Recipient, Record, SpoolError, Stored};

/// Tries a message; it waits again afterwards, or is done with.
pub(super) async fn run(queue: Arc<Queue>, cx: Arc<Context>, id: Id, plan: Plan) {
    let entered = plan.entered.clone();
    let mut unreachable = Vec::new();
    let wait = match try_once(&queue, &cx, &id, plan, &mut unreachable).await {
        Ok(wait) => wait,
        Err(KeepError::Spool(error @ (SpoolError::Damaged { .. } | SpoolError::Unknown(_)))) => {
            tracing::error!(%id, %error, "a queued message is not in the spool any more");
            queue.lock().index.remove(&id, Instant::now());
            Wait::default()
        }
        Err(error) => {
            tracing::error!(%id, %error, "cannot try a queued message");
            Wait::after(pause(3), Instant::now())
        }
    };
    let now = Instant::now();
    let mut state = queue.lock();
    for backend in entered {
        let reached = !unreachable.contains(&backend);
        let Some(gate) = state.gates.get_mut(&backend) else { continue };
        let room = gate.leave(now, reached, fastrand::f64());
        state.index.admit(&backend, room, now);
    }
    state.index.tried(&id, wait, now);
    let is_over = state.index.recipients(&id).is_none();
    drop(state);
    if is_over {
        cx.mail_log.removed(&id);
    }
    queue.wake.notify_one();
}

/// One try, and what the message waits for from then on.
async fn try_once(
    queue: &Arc<Queue>,
    cx: &Arc<Context>,
    id: &Id,
    plan: Plan,
    unreachable: &mut Vec<shared::backend::BackendName>,
) -> Result<Wait, KeepError> {
    let Plan { places, expired, held, mut wait, .. } = plan;
    let stored = queue.spool.read(id).await?;
    if let Some(held) = held
        && let Err(error) = queue.spool.append(id, &[Record::Held(held)], false).await
    {
        tracing::warn!(%id, %error, ?held, "cannot record for how long a message was held");
    }
    let letter = Arc::new(letter(&stored, queue.spool.content(id).await?));
    let mut try_ = Try {
        queue,
        cx,
        began: Instant::now(),
        id,
        stored: &stored,
        failed: Vec::new(),
        put_off: None,
        why: None,
    };
    let mut round = Round::new(cx, &letter);
    for place in places {
        let Some(recipient) = stored.recipients.get(place) else { continue };
        if expired {
            let text = match &recipient.state {
                // Whoever releases a dead letter has to know that it may come twice.
                Stage::InDoubt { owner, .. } => {
                    format!("not delivered in time, given up; {owner} may have it")
                }
                _ => "not delivered in time, given up".to_owned(),
            };
            let reply = Reply::new(554, (4, 7), text);
            try_.failed.push(Refused { place, reply, by_server: false });
            continue;
        }
        let Recipient { name, route, .. } = recipient;
        if let Err(unsent) = round.add(place, &addressee(recipient), name, route) {
            try_.unsent(place, recipient, &unsent);
        }
    }
    let mut settled = round.start();
    while let Some(one) = settled.recv().await {
        if one.unreachable && !unreachable.contains(&one.backend.name) {
            unreachable.push(one.backend.name.clone());
            wait.backends.push(one.backend.name.clone());
        }
        match one.verdict {
            // Whatever it is that broke may break again.
            Verdict::NotSent => wait.not_before(Instant::now().checked_add(pause(0))),
            Verdict::InDoubt => wait.not_before(Instant::now().checked_add(DOUBT_PAUSE)),
            Verdict::Accepted | Verdict::Refused(_) | Verdict::Held => {}
        }
        try_.settle(one).await;
    }
    try_.finish(&letter, wait).await
}

/// What a try has found so far.
struct Try<'a> {
    queue: &'a Arc<Queue>,
    cx: &'a Context,
    began: Instant,
    id: &'a Id,
    stored: &'a Stored,
    /// Who is refused for good.
    failed: Vec<Refused>,
    /// An owner has put somebody off.
    put_off: Option<Reply>,
    /// Why somebody is left.
    why: Option<String>,
}

impl Try<'_> {
    fn unsent(&mut self, place: usize, to: &Recipient, unsent: &Unsent) {
        match unsent.verdict(&to.address) {
            Verdict::Refused(reply) if reply.class() == Class::Permanent => {
                self.failed.push(Refused { place, reply, by_server: false });
            }
            Verdict::Refused(reply) => self.put_off = Some(reply),
            // A change of the account makes it due again.
            Verdict::Held | Verdict::NotSent | Verdict::InDoubt | Verdict::Accepted => {}
        }
        self.why = Some(unsent.to_string());
    }

    async fn settle(&mut self, one: Settled) {
        self.log(&one);
        if let Some(to) = self.stored.recipients.get(one.place) {
            let age = self.stored.envelope.arrived.elapsed().unwrap_or_default();
            let sending = self.began.elapsed();
            let queued = age.saturating_sub(sending);
            let delays = Delays { queued, sending, ..Delays::default() };
            self.cx.mail_log.settled(self.id, &to.address, &one, &delays);
        }
        match &one.verdict {
            Verdict::Refused(reply) if reply.class() == Class::Permanent => {
                let (place, reply) = (one.place, reply.clone());
                self.failed.push(Refused { place, reply, by_server: true });
            }
            Verdict::Refused(reply) => self.put_off = Some(reply.clone()),
            Verdict::Accepted | Verdict::NotSent | Verdict::Held | Verdict::InDoubt => {}
        }
        if one.verdict != Verdict::Accepted {
            // It is told of every recipient of the message that waits, whoever owns it.
            let why = one.why.as_ref();
            self.why = why.map(|why| format!("{}: {why}", one.backend.name));
        }
        self.queue.record(self.id, one.place, &one).await;
        if let Warrant::Row(_, registration) = one.warrant {
            // Recorded: only now a fence need not wait for it any more.
            drop(registration);
        }
    }

    /// Tells of those who failed, notes the try, and says what is waited for.
    async fn finish(self, letter: &Letter, mut wait: Wait) -> Result<Wait, KeepError> {
        let Self { queue, id, stored, failed, put_off, why, .. } = self;
        if !failed.is_empty() {
            let content = Content { header: &letter.header, message: &letter.message };
            queue.fail(stored, content, failed).await?;
        }
        if put_off.is_some() {
            let tries = queue.lock().index.put_off(id);
            wait.not_before(Instant::now().checked_add(pause(tries)));
        }
        if let Some(why) = why {
            queue.spool.append(id, &[Record::Tried { why: why.into() }], false).await?;
        }
        Ok(wait)
    }

    fn log(&self, one: &Settled) {
        let (id, from) = (self.id, &self.stored.envelope.from);
        let to = self.stored.recipients.get(one.place).map(|to| to.address.to_string());
        let to = to.unwrap_or_default();
        let backend = one.backend.name.as_str();
        let (account, _, epoch) = place_of(one.warrant.owner());
        let age = self.stored.envelope.arrived.elapsed().unwrap_or_default().as_secs();
        let why = one.why.as_deref().unwrap_or_default();
        match &one.verdict {
            Verdict::Accepted => {
                tracing::info!(id, %from, to, account, owner = backend, epoch, age, "delivered from the queue");
            }
            Verdict::Refused(reply) => tracing::info!(
                id, %from, to, account, owner = backend, epoch, age, %reply, why, "not delivered from the queue"
            ),
            Verdict::NotSent | Verdict::Held | Verdict::InDoubt => tracing::info!(
                id, %from, to, account, owner = backend, epoch, age, verdict = ?one.verdict, why,
                "not delivered from the queue"
            ),
        }
    }
}

fn letter(stored: &Stored, message: crate::body::Message) -> Letter {
    let envelope = &stored.envelope;
    Letter {
        id: envelope.id.clone(),
        mail: Mail {
            from: envelope.from.clone(),
            size: Some(stored.octets),
            eight_bit: envelope.eight_bit,
            smtputf8: envelope.smtputf8,
            ret: envelope.ret.as_deref().and_then(|ret| Ret::parse(ret).ok()),
            envid: envelope.envid.as_deref().and_then(|envid| EnvelopeId::parse(envid).ok()),
        },
        introduction: envelope.introduction.clone(),
        header: String::new(),
        message,
    }
}

fn addressee(to: &Recipient) -> Addressee {
    Addressee {
        address: to.address.clone(),
        notify: to.notify.as_deref().and_then(|notify| Notify::parse(notify).ok()),
        orcpt: to.orcpt.as_deref().and_then(|orcpt| OriginalRecipient::parse(orcpt, true).ok()),
    }
}

/// How long to wait after so many tries, a little spread.
fn pause(tries: u32) -> Duration {
    let at = usize::try_from(tries).unwrap_or(usize::MAX).min(PAUSES.len().saturating_sub(1));
    let seconds = PAUSES.get(at).copied().unwrap_or_default();
    Duration::from_secs(seconds).mul_f64(1.0 + 0.2 * (fastrand::f64() - 0.5))
}
