//! A mail transaction: its recipients at their owners (RFC 5321 §3.3).
//!
//! Each recipient is asked at its owner when it is named, on the transaction that will carry the message,
//! so the owner's verdict is the client's and nothing has to be returned later. Before the message is
//! sent every owner is read again, registered this time (P4): what has moved since gets a new transaction
//! where it lives now.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use shared::address::{Address, Domain};
use shared::backend::Backend;
use shared::ownership::{Owner, Refusal};
use shared::smtp::command::{Addressee, Mail, Rcpt};
use shared::smtp::reply::{Class, Reply};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::custody::{Custody, Origin, Recipient};
use crate::delivery::{Begun, Connection, DeliveryError, Introduction, Round, begin};
use crate::fingerprint::{Receipt, Seen};
use crate::grace::{Refused, Terms};
use crate::letter::Letter;
use crate::outcome::{self, Verdict};
use crate::recipient::{self, Found, Place};
use crate::refusal;
use crate::serve::Context;
use crate::spool::Route;

/// How long a client may keep a connection to an owner that others wait for.
const MAY_KEEP: Duration = Duration::from_secs(5);

/// A transaction that was begun by MAIL.
#[derive(Debug)]
pub struct Transaction {
    mail: Mail,
    recipients: Vec<Recipient>,
    /// The recipients' places in the order in which they were accepted: twice when named twice.
    accepted: Vec<usize>,
    legs: Vec<Leg>,
}

/// A transaction at one owner.
#[derive(Debug)]
struct Leg {
    backend: Arc<Backend>,
    state: LegState,
    /// Since when a transaction is open there.
    opened: Option<Instant>,
    /// Accepted recipients, by their place in the transaction.
    recipients: Vec<usize>,
}

#[expect(clippy::large_enum_variant, reason = "few, and nearly always the large one")]
#[derive(Debug)]
enum LegState {
    /// Nothing was said there yet.
    Unasked,
    /// Exactly the leg's recipients were accepted on it.
    Open(Connection),
    /// The owner takes no such message from this sender: its answer for each of its recipients.
    Refused(Reply),
    /// It could not be connected to, or did not answer in time. Not tried again for every further recipient.
    Unreachable,
}

/// What was said of a recipient, and what the log is to know.
#[derive(Debug)]
pub struct Answer {
    /// The recipient; `None` when `<postmaster>` is nobody here.
    pub to: Option<Address>,
    /// Its owner, if there is one.
    pub owner: Option<Owner>,
    /// What the client is answered.
    pub reply: Reply,
    /// The cause of a temporary refusal of ours.
    pub why: Option<String>,
}

impl Transaction {
    /// A transaction without recipients.
    pub fn new(mail: Mail) -> Self {
        Self { mail, recipients: Vec::new(), accepted: Vec::new(), legs: Vec::new() }
    }

    /// What MAIL said.
    pub fn mail(&self) -> &Mail {
        &self.mail
    }

    /// The places of the recipients in the order in which they were accepted: LMTP has a reply for each
    /// (RFC 2033 §4.2), also for one that was named twice.
    pub fn accepted(&self) -> &[usize] {
        &self.accepted
    }

    /// How many recipients there are.
    pub fn recipients(&self) -> usize {
        self.recipients.len()
    }

    /// The recipient, when there is exactly one.
    pub fn only_recipient(&self) -> Option<&Address> {
        match self.recipients.as_slice() {
            [only] => Some(&only.to.address),
            _ => None,
        }
    }

    /// Addresses of its recipients, in their places.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.recipients.iter().map(|recipient| &recipient.to.address)
    }

    /// Domains of its recipients.
    pub fn domains(&self) -> Vec<&Domain> {
        self.addresses().map(Address::domain).collect()
    }

    /// Asks a recipient's owner. One that is held or cannot be reached is not needed for a yes where the
    /// account has a row: it is known, and the spool keeps the message for it.
    pub async fn add(&mut self, cx: &Context, introduction: &Introduction, rcpt: Rcpt) -> Answer {
        let Rcpt { path, notify, orcpt } = rcpt;
        let Found { named, address, name, place } = match recipient::find(cx, path) {
            Ok(found) => found,
            Err(answer) => return *answer,
        };
        let plain = |to, reply| Answer { to: Some(to), owner: None, reply, why: None };
        let same = |one: &Recipient| one.to.address == address || one.name == name;
        if let Some(known) = self.recipients.iter().position(same) {
            self.accepted.push(known);
            // Named twice, it is meant once (MX-2); also when once by a routing domain, or in capitals.
            return plain(named, Reply::new(250, (1, 5), "Recipient ok"));
        }
        if self.recipients.len() >= cx.rules.max_recipients {
            let reply = Reply::new(452, (5, 3), "Too many recipients, send the rest separately");
            return plain(named, reply);
        }
        let octets = self.mail.size.unwrap_or_default();
        let may_keep = cx.queue.as_ref().is_some_and(|queue| queue.has_room_for(octets));
        let to = Addressee { address, notify, orcpt };
        let (backend, owner) = match place {
            Place::Owned(owner) => (Arc::clone(&owner.backend), Some(owner)),
            Place::Via(backend) => (backend, None),
            Place::Held(account) if may_keep => {
                self.accept(Recipient { to, name, route: Route::Owner });
                let reply = Reply::new(250, (1, 5), "Recipient ok");
                return Answer {
                    why: Some(format!("account {account} is held")),
                    ..plain(named, reply)
                };
            }
            Place::Held(account) => {
                let refusal = Refusal::Held { account };
                let reply = match cx.queue {
                    Some(_) => refusal::no_room(&named),
                    None => refusal::by_table(&refusal, &named),
                };
                return Answer { why: Some(refusal.to_string()), ..plain(named, reply) };
            }
        };
        let route = if owner.is_some() { Route::Owner } else { Route::Via(backend.name.clone()) };
        let recipient = Recipient { to, name, route };
        let is_sick = cx.queue.is_some() && !may_keep;
        if is_sick && self.legs.iter().any(|leg| leg.is_of_another(&backend)) {
            // With nothing to keep what one owner takes and another does not, it goes to one at a time.
            let reply = Reply::new(452, (5, 3), "Send this recipient separately");
            return Answer { owner, ..plain(named, reply) };
        }
        // Mail to others is known to nobody here, but comes from a mail system of ours.
        let is_known = owner.as_ref().is_none_or(|owner| owner.known);
        let answer = self.ask(cx, introduction, &backend, &recipient.to).await;
        let (reply, why) = match answer {
            Ok((reply, _)) if reply.class() == Class::Accepted => {
                if let Some(owner) = &owner {
                    cx.ownership.note_served(owner);
                }
                self.accept(recipient);
                (Reply::new(250, (1, 5), "Recipient ok"), None)
            }
            Ok((reply, refused)) => {
                let terms = Terms::of(cx.rules.flip_grace);
                let told = cx.grace.refusal(&reply, refused, &named, owner.as_ref(), terms);
                (told, Some(reply.to_string()))
            }
            Err(error) if error.is_misconfigured() => {
                tracing::error!(owner = %backend.name, %error, "nothing is delivered there");
                (refusal::misconfigured(&named), Some(error.to_string()))
            }
            Err(error) if is_known && may_keep => {
                self.accept(recipient);
                (Reply::new(250, (1, 5), "Recipient ok"), Some(error.to_string()))
            }
            Err(error) if is_known && cx.queue.is_some() => {
                let why = format!("{error}; and nothing is kept: see `mailshift queue summary`");
                (refusal::no_room(&named), Some(why))
            }
            Err(error) => (refusal::unreachable(&named), Some(error.to_string())),
        };
        Answer { to: Some(named), owner, reply, why }
    }

    fn accept(&mut self, recipient: Recipient) {
        self.accepted.push(self.recipients.len());
        self.recipients.push(recipient);
    }

    /// The owner's answer to this recipient, within the time allowed for it, and to what it was. When it is yes, the recipient
    /// is entered in the leg under the place it is about to get.
    async fn ask(
        &mut self,
        cx: &Context,
        introduction: &Introduction,
        backend: &Arc<Backend>,
        to: &Addressee,
    ) -> Result<(Reply, Refused), DeliveryError> {
        let place = self.recipients.len();
        let at = self.legs.iter().position(|leg| leg.backend.name == backend.name);
        let mut leg = match at {
            Some(at) => self.legs.swap_remove(at),
            None => Leg::new(Arc::clone(backend)),
        };
        let asked = timeout(cx.ask_timeout, leg.ask(cx, introduction, &self.mail, to));
        let answer = asked.await.unwrap_or(Err(DeliveryError::TimedOut));
        if matches!(&answer, Ok((reply, _)) if reply.class() == Class::Accepted) {
            leg.recipients.push(place);
        }
        self.legs.push(leg);
        answer
    }

    /// Sends the message to every owner at once, but not to recipients who are `seen` to have it, in their
    /// places. The reply to the client, or with LMTP the replies, come out of the channel; what is done until
    /// then and after it is [`Custody`]'s.
    pub fn deliver(
        mut self,
        cx: &Arc<Context>,
        letter: &Arc<Letter>,
        origin: Origin,
        (seen, receipt): (&[Seen], &Arc<Receipt>),
    ) -> oneshot::Receiver<Vec<Reply>> {
        let recipients = std::mem::take(&mut self.recipients);
        let (mut custody, replies) = Custody::new(cx, letter, origin, recipients.clone(), receipt);
        let mut round = Round::new(cx, letter);
        for (place, recipient) in recipients.iter().enumerate() {
            let Recipient { to, name, route } = recipient;
            match seen.get(place) {
                None | Some(Seen::Never) => {
                    if let Err(unsent) = round.add(place, to, name, route) {
                        let verdict = unsent.verdict(&to.address);
                        custody.settle_unsent(place, verdict, &unsent.to_string());
                    }
                }
                Some(Seen::Done(former)) => custody.settle_repeated(place, *former),
                Some(Seen::InHand(former)) => {
                    let verdict = Verdict::Refused(outcome::being_delivered());
                    let why = format!("the same message is being delivered as {}", former.simple());
                    custody.settle_unsent(place, verdict, &why);
                }
            }
        }
        for delivery in round.deliveries() {
            let places: Vec<_> = delivery.places().collect();
            delivery.go_on_with(connection_for(&mut self.legs, delivery.backend(), &places));
        }
        // A transaction in which somebody was accepted who has moved ends here, before any data is sent;
        // where nobody was, the connection may serve the next message.
        self.legs.retain(|leg| leg.recipients.is_empty());
        if !self.legs.is_empty() {
            let cx = Arc::clone(cx);
            cx.lifecycle.clone().spawn("reset", async move { self.abandon(&cx).await });
        }
        cx.lifecycle.spawn("custody", custody.run(round.start()));
        replies
    }

    /// True when it keeps a connection to an owner.
    pub fn keeps_any(&self) -> bool {
        self.legs.iter().any(|leg| matches!(leg.state, LegState::Open(_)))
    }

    /// Gives back connections that others wait for, if it has kept them for long: a client that says nothing
    /// more, or little, must not keep everybody else's mail from their owners. Its recipients are asked again
    /// when the message is sent.
    pub fn give_back(&mut self, cx: &Arc<Context>) {
        for leg in &mut self.legs {
            let long = leg.opened.is_some_and(|opened| opened.elapsed() >= MAY_KEEP);
            if !long || !cx.pool.is_wanted(&leg.backend.name) {
                continue;
            }
            if let LegState::Open(connection) = std::mem::replace(&mut leg.state, LegState::Unasked)
            {
                leg.opened = None;
                // They are not those of the next transaction there.
                leg.recipients.clear();
                let (cx, owner) = (Arc::clone(cx), leg.backend.name.clone());
                cx.lifecycle.clone().spawn("give back", async move {
                    connection.reset_and_keep(&cx, &owner).await;
                });
            }
        }
    }

    /// Ends the transaction without a message; connections that can be used again are kept.
    pub async fn abandon(self, cx: &Context) {
        join_all(self.legs.into_iter().map(|leg| leg.reset(cx))).await;
    }
}

impl Leg {
    fn new(backend: Arc<Backend>) -> Self {
        Self { backend, state: LegState::Unasked, opened: None, recipients: Vec::new() }
    }

    /// The owner's answer, on the transaction that is open there or a new one. A leg whose answer is not
    /// waited for to its end is unreachable, and its connection closed: half an answer may be unread there.
    async fn ask(
        &mut self,
        cx: &Context,
        introduction: &Introduction,
        mail: &Mail,
        to: &Addressee,
    ) -> Result<(Reply, Refused), DeliveryError> {
        match std::mem::replace(&mut self.state, LegState::Unreachable) {
            LegState::Unasked => {}
            LegState::Refused(reply) => {
                self.state = LegState::Refused(reply.clone());
                return Ok((reply, Refused::Transaction));
            }
            LegState::Unreachable => return Err(DeliveryError::Unreachable),
            LegState::Open(mut connection) => {
                if let Ok(reply) = connection.add(to).await {
                    self.state = LegState::Open(connection);
                    return Ok((reply, Refused::Recipient));
                }
                // Closed, for instance after too many unknown recipients. This one is asked anew; the
                // others are, too, when the message is sent, since the leg forgets them here.
                self.recipients.clear();
            }
        }
        let (state, reply, refused) = match begin(cx, introduction, &self.backend, mail, &[to])
            .await?
        {
            Begun::Open(connection, mut replies) => {
                let reply = replies.pop().ok_or(DeliveryError::Protocol("no answer to RCPT"))?;
                (LegState::Open(connection), reply, Refused::Recipient)
            }
            Begun::Refused(reply) => {
                (LegState::Refused(reply.clone()), reply, Refused::Transaction)
            }
        };
        self.state = state;
        self.opened = Some(Instant::now());
        Ok((reply, refused))
    }

    /// True when somebody was accepted there, and it is not this backend.
    fn is_of_another(&self, backend: &Backend) -> bool {
        self.backend.name != backend.name && !self.recipients.is_empty()
    }

    async fn reset(self, cx: &Context) {
        if let LegState::Open(connection) = self.state {
            connection.reset_and_keep(cx, &self.backend.name).await;
        }
    }
}

/// The open transaction at `backend`, if it has exactly these recipients. With one that has moved away it
/// must not get the message: what was accepted there cannot be taken back.
fn connection_for(legs: &mut [Leg], backend: &Backend, places: &[usize]) -> Option<Connection> {
    let leg = legs.iter_mut().find(|leg| leg.backend.name == backend.name)?;
    if leg.recipients != places {
        return None;
    }
    match std::mem::replace(&mut leg.state, LegState::Unreachable) {
        LegState::Open(connection) => Some(connection),
        LegState::Unasked | LegState::Refused(_) | LegState::Unreachable => None,
    }
}
