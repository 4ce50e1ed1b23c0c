//! A mail transaction: its recipients at their owners (RFC 5321 §3.3).
//!
//! Each recipient is asked at its owner when it is named, on the transaction that will carry the message,
//! so the owner's verdict is the client's and nothing has to be returned later. Before the message is
//! sent every owner is read again, registered this time (P4): what has moved since gets a new transaction
//! where it lives now.

use std::sync::Arc;

use futures_util::future::{join, join_all};
use shared::address::Address;
use shared::backend::Backend;
use shared::ownership::{Name, Owner, Refusal, Work};
use shared::smtp::command::Mail;
use shared::smtp::path::ForwardPath;
use shared::smtp::reply::{Class, Reply};
use shared::wire::ConnectError;
use tokio::time::timeout;

use crate::body::Message;
use crate::delivery::{Begun, Connection, Delivery, DeliveryError, Introduction, Record, begin};
use crate::outcome::Verdict;
use crate::recipient::{self, Found};
use crate::refusal;
use crate::serve::Context;

/// A transaction that was begun by MAIL.
#[derive(Debug)]
pub struct Transaction {
    mail: Mail,
    recipients: Vec<Recipient>,
    legs: Vec<Leg>,
}

/// A recipient whose owner has accepted it.
#[derive(Debug, Clone)]
struct Recipient {
    /// As its owner gets it.
    address: Address,
    /// By which it is looked up, as the client named it.
    name: Name,
}

/// A transaction at one owner.
#[derive(Debug)]
struct Leg {
    backend: Arc<Backend>,
    state: LegState,
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

/// What became of one recipient.
#[derive(Debug)]
pub struct Delivered {
    /// The recipient.
    pub to: Address,
    /// Its owner when the message was sent; `None` when there was none.
    pub owner: Option<Owner>,
    /// Its verdict.
    pub verdict: Verdict,
    /// Why there is none.
    pub why: Option<String>,
}

impl Transaction {
    /// A transaction without recipients.
    pub fn new(mail: Mail) -> Self {
        Self { mail, recipients: Vec::new(), legs: Vec::new() }
    }

    /// What MAIL said.
    pub fn mail(&self) -> &Mail {
        &self.mail
    }

    /// How many recipients there are.
    pub fn recipients(&self) -> usize {
        self.recipients.len()
    }

    /// The recipient, when there is exactly one.
    pub fn only_recipient(&self) -> Option<&Address> {
        match self.recipients.as_slice() {
            [only] => Some(&only.address),
            _ => None,
        }
    }

    /// Asks a recipient's owner.
    pub async fn add(
        &mut self,
        cx: &Context,
        introduction: &Introduction,
        path: ForwardPath,
    ) -> Answer {
        let Found { named, address, name, owner } = match recipient::find(cx, path) {
            Ok(found) => found,
            Err(answer) => return *answer,
        };
        let plain = |to, reply| Answer { to: Some(to), owner: None, reply, why: None };
        if self.recipients.iter().any(|recipient| recipient.address == address) {
            // Named twice, it is meant once (MX-2); also when once by a routing domain.
            return plain(named, Reply::new(250, (1, 5), "Recipient ok"));
        }
        if self.recipients.len() >= cx.rules.max_recipients {
            let reply = Reply::new(452, (5, 3), "Too many recipients, send the rest separately");
            return plain(named, reply);
        }
        let (reply, why) = match self.ask(cx, introduction, &owner.backend, &address).await {
            Ok(reply) if reply.class() == Class::Accepted => {
                cx.ownership.note_served(&owner);
                self.recipients.push(Recipient { address, name });
                (Reply::new(250, (1, 5), "Recipient ok"), None)
            }
            Ok(reply) => (refusal::by_owner(&reply, &named), Some(reply.to_string())),
            Err(error @ DeliveryError::NoEndpoint) => {
                (refusal::misconfigured(&named), Some(error.to_string()))
            }
            Err(error @ DeliveryError::Connect(ConnectError::Own { .. })) => {
                tracing::error!(owner = %owner.backend.name, %error, "nothing is delivered there");
                (refusal::misconfigured(&named), Some(error.to_string()))
            }
            Err(error) => (refusal::unreachable(&named), Some(error.to_string())),
        };
        Answer { to: Some(named), owner: Some(owner), reply, why }
    }

    /// The owner's answer to this recipient, within the time allowed for it. When it is yes, the recipient
    /// is entered in the leg under the place it is about to get.
    async fn ask(
        &mut self,
        cx: &Context,
        introduction: &Introduction,
        backend: &Arc<Backend>,
        to: &Address,
    ) -> Result<Reply, DeliveryError> {
        let place = self.recipients.len();
        let at = self.legs.iter().position(|leg| leg.backend.name == backend.name);
        let mut leg = match at {
            Some(at) => self.legs.swap_remove(at),
            None => Leg::new(Arc::clone(backend)),
        };
        let asked = timeout(cx.ask_timeout, leg.ask(cx, introduction, &self.mail, to));
        let answer = asked.await.unwrap_or(Err(DeliveryError::TimedOut));
        if matches!(&answer, Ok(reply) if reply.class() == Class::Accepted) {
            leg.recipients.push(place);
        }
        self.legs.push(leg);
        answer
    }

    /// Sends the message to every owner at once and returns what became of each recipient. `record` is
    /// told of each as soon as that is known, whatever the others wait for; until then a fence waits for
    /// it (P5).
    pub async fn deliver(
        mut self,
        cx: &Context,
        introduction: &Introduction,
        header: &str,
        message: &Message,
        record: Record<'_>,
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(self.recipients.len());
        let mut deliveries: Vec<(Delivery<'_>, Vec<usize>)> = Vec::new();
        for (place, recipient) in self.recipients.iter().enumerate() {
            let Recipient { address, name } = recipient;
            // Registered before the owner is read: a change from here on finds this delivery (P4).
            match cx.ownership.enter(name, Work::Delivery) {
                Ok((owner, registration)) => {
                    let backend = &owner.backend.name;
                    let at = deliveries.iter().position(|(d, _)| d.backend().name == *backend);
                    let at = at.unwrap_or_else(|| {
                        let backend = Arc::clone(&owner.backend);
                        let delivery = Delivery::new(cx, introduction, self.mail.clone(), backend);
                        deliveries.push((delivery, Vec::new()));
                        deliveries.len().saturating_sub(1)
                    });
                    if let Some((delivery, places)) = deliveries.get_mut(at) {
                        delivery.add(address.clone(), owner, registration);
                        places.push(place);
                    }
                }
                Err(refusal) => {
                    let unowned = unowned(&refusal, address);
                    record(&unowned);
                    verdicts.push(unowned.verdict);
                }
            }
        }
        for (delivery, places) in &mut deliveries {
            delivery.go_on_with(connection_for(&mut self.legs, delivery.backend(), places));
        }
        // A transaction in which somebody was accepted who has moved ends here, before any data is sent;
        // where nobody was, the connection may serve the next message.
        self.legs.retain(|leg| leg.recipients.is_empty());
        let unused = join_all(self.legs.into_iter().map(|leg| leg.reset(cx)));
        let sent =
            deliveries.into_iter().map(|(delivery, _)| delivery.run(header, message, record));
        let (sent, _) = join(join_all(sent), unused).await;
        verdicts.extend(sent.into_iter().flatten());
        verdicts
    }

    /// Ends the transaction without a message; connections that can be used again are kept.
    pub async fn abandon(self, cx: &Context) {
        join_all(self.legs.into_iter().map(|leg| leg.reset(cx))).await;
    }
}

impl Leg {
    fn new(backend: Arc<Backend>) -> Self {
        Self { backend, state: LegState::Unasked, recipients: Vec::new() }
    }

    /// The owner's answer, on the transaction that is open there or a new one. A leg whose answer is not
    /// waited for to its end is unreachable, and its connection closed: half an answer may be unread there.
    async fn ask(
        &mut self,
        cx: &Context,
        introduction: &Introduction,
        mail: &Mail,
        to: &Address,
    ) -> Result<Reply, DeliveryError> {
        match std::mem::replace(&mut self.state, LegState::Unreachable) {
            LegState::Unasked => {}
            LegState::Refused(reply) => {
                self.state = LegState::Refused(reply.clone());
                return Ok(reply);
            }
            LegState::Unreachable => return Err(DeliveryError::Unreachable),
            LegState::Open(mut connection) => {
                if let Ok(reply) = connection.add(to).await {
                    self.state = LegState::Open(connection);
                    return Ok(reply);
                }
                // Closed, for instance after too many unknown recipients. This one is asked anew; the
                // others are, too, when the message is sent, since the leg forgets them here.
                self.recipients.clear();
            }
        }
        let (state, reply) = match begin(cx, introduction, &self.backend, mail, to).await? {
            Begun::Open(connection, reply) => (LegState::Open(connection), reply),
            Begun::Refused(reply) => (LegState::Refused(reply.clone()), reply),
        };
        self.state = state;
        Ok(reply)
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

fn unowned(refusal: &Refusal, to: &Address) -> Delivered {
    Delivered {
        to: to.clone(),
        owner: None,
        verdict: Verdict::Refused(refusal::by_table(refusal, to)),
        why: Some(refusal.to_string()),
    }
}
