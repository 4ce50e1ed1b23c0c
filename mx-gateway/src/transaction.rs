//! A mail transaction: its recipients at their owners (RFC 5321 §3.3).
//!
//! Each recipient is asked at its owner when it is named, on the transaction that will carry the message,
//! so the owner's verdict is the client's and nothing has to be returned later. Before the message is
//! sent every owner is read again, registered this time (P4): what has moved since gets a new transaction
//! where it lives now.

use std::sync::Arc;

use futures_util::future::{join_all, select_all};
use shared::address::Address;
use shared::backend::{Backend, MailEndpoint};
use shared::ownership::{Name, Owner, Ownership, Refusal, Registration, Work};
use shared::smtp::command::Mail;
use shared::smtp::path::ForwardPath;
use shared::smtp::reply::{Class, Reply};
use tokio::time::{Instant, timeout};

use crate::body::Message;
use crate::delivery::{Connection, DeliveryError, Introduction};
use crate::outcome::Verdict;
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
    address: Address,
    name: Name,
}

/// An open transaction at one owner.
#[derive(Debug)]
struct Leg {
    backend: Arc<Backend>,
    /// `None` when the owner refused the sender or the connection broke.
    connection: Option<Connection>,
    /// What it said to MAIL when it refused the sender: the answer for each of its recipients.
    refused: Option<Reply>,
    /// Accepted recipients, by their place in the transaction.
    recipients: Vec<usize>,
}

/// One recipient on its way, with what is said of it in the log.
struct Sent {
    at: usize,
    owner: Owner,
    registration: Registration,
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

    /// The recipient, when there is exactly one.
    pub fn only_recipient(&self) -> Option<&Address> {
        match self.recipients.as_slice() {
            [only] => Some(&only.address),
            _ => None,
        }
    }

    /// Asks a recipient's owner, and returns what the client is answered.
    pub async fn add(
        &mut self,
        cx: &Context,
        introduction: Introduction<'_>,
        path: ForwardPath,
    ) -> Reply {
        if self.recipients.len() >= cx.rules.max_recipients {
            return Reply::new(452, (5, 3), "Too many recipients, send the rest separately");
        }
        let address = match path {
            ForwardPath::Mailbox(address) => address,
            ForwardPath::Postmaster => match cx.postmaster() {
                Some(address) => address,
                None => return Reply::new(451, (3, 5), "No postmaster is configured"),
            },
        };
        let name = Name::of_address(&address);
        let owner = match cx.ownership.look_up(&name) {
            Ok(owner) => owner,
            Err(refusal) => return refused(&refusal, &address),
        };
        if !owner.known && has_route_inside(&address) {
            return Reply::new(550, (7, 1), "Relaying denied");
        }
        let Some(endpoint) = &owner.backend.mail else {
            tracing::error!(to = %address, owner = %owner.backend.name, "owner has no mail endpoint");
            return Reply::new(451, (3, 5), "Not deliverable for now");
        };
        let reply = self.ask(cx, introduction, &owner.backend, endpoint, &address).await;
        match reply {
            Ok((leg, reply)) => {
                if reply.class() == Class::Accepted {
                    if let Some(leg) = self.legs.get_mut(leg) {
                        leg.recipients.push(self.recipients.len());
                    }
                    self.recipients.push(Recipient { address, name });
                    return Reply::new(250, (1, 5), "Recipient ok");
                }
                in_our_words(&reply, &address)
            }
            Err(error) => {
                tracing::warn!(to = %address, owner = %owner.backend.name, %error, "owner cannot be asked");
                Reply::new(
                    451,
                    (4, 1),
                    format!("<{address}>: not reachable for now, try again later"),
                )
            }
        }
    }

    /// The owner's answer to this recipient, on the transaction that is open there or a new one.
    async fn ask(
        &mut self,
        cx: &Context,
        introduction: Introduction<'_>,
        backend: &Arc<Backend>,
        endpoint: &MailEndpoint,
        to: &Address,
    ) -> Result<(usize, Reply), DeliveryError> {
        if let Some(at) = self.legs.iter().position(|leg| leg.backend.name == backend.name) {
            let Some(leg) = self.legs.get_mut(at) else { return Err(DeliveryError::TimedOut) };
            if let Some(refused) = &leg.refused {
                return Ok((at, refused.clone()));
            }
            if let Some(connection) = &mut leg.connection {
                let reply = connection.add(to).await;
                if reply.is_err() {
                    // The recipients it has accepted get a new transaction when the message is sent.
                    leg.connection = None;
                }
                return reply.map(|reply| (at, reply));
            }
        }
        let (connection, from, reply) =
            begin(cx, introduction, backend, endpoint, &self.mail, to).await?;
        let size = self.mail.size.unwrap_or_default();
        let too_large = connection.is_too_large(size);
        let refused = (from.class() != Class::Accepted).then_some(from);
        let answer = match (&refused, reply) {
            (Some(refused), _) => refused.clone(),
            (None, Some(_)) if too_large => Reply::new(552, (3, 4), "Message too large"),
            (None, Some(reply)) => reply,
            (None, None) => return Err(DeliveryError::Protocol("no reply to RCPT")),
        };
        let leg = Leg {
            backend: Arc::clone(backend),
            connection: refused.is_none().then_some(connection),
            refused,
            recipients: Vec::new(),
        };
        match self.legs.iter().position(|leg| leg.backend.name == backend.name) {
            Some(at) => {
                // In place of a broken one, whose recipients this one does not have.
                if let Some(place) = self.legs.get_mut(at) {
                    *place = leg;
                }
                Ok((at, answer))
            }
            None => {
                self.legs.push(leg);
                Ok((self.legs.len().saturating_sub(1), answer))
            }
        }
    }

    /// Sends the message to every owner at once and returns what became of each recipient.
    pub async fn deliver(
        mut self,
        cx: &Context,
        introduction: Introduction<'_>,
        header: &str,
        message: &Message,
    ) -> Vec<Delivered> {
        let mut delivered = Vec::with_capacity(self.recipients.len());
        let mut groups: Vec<(Arc<Backend>, Vec<Sent>)> = Vec::new();
        for (at, recipient) in self.recipients.iter().enumerate() {
            // Registered before the owner is read: a change from here on finds this delivery.
            match cx.ownership.enter(&recipient.name, Work::Delivery) {
                Ok((owner, registration)) => {
                    let backend = Arc::clone(&owner.backend);
                    let sent = Sent { at, owner, registration };
                    match groups.iter_mut().find(|(b, _)| b.name == backend.name) {
                        Some((_, group)) => group.push(sent),
                        None => groups.push((backend, vec![sent])),
                    }
                }
                Err(refusal) => delivered.push(Delivered {
                    to: recipient.address.clone(),
                    owner: None,
                    verdict: Verdict::Refused(refused(&refusal, &recipient.address)),
                    why: Some(refusal.to_string()),
                }),
            }
        }
        let mut deliveries = Vec::with_capacity(groups.len());
        for (backend, group) in groups {
            let connection = self.connection_for(&backend, &group);
            let addresses = group
                .iter()
                .filter_map(|sent| self.recipients.get(sent.at))
                .map(|recipient| recipient.address.clone())
                .collect();
            deliveries.push(Delivery {
                cx,
                introduction,
                mail: self.mail.clone(),
                backend,
                connection,
                group,
                addresses,
            });
        }
        // Transactions that nobody needs any more end here, before any data is sent.
        self.legs.clear();
        let sent = deliveries.into_iter().map(|delivery| delivery.run(header, message));
        for group in join_all(sent).await {
            delivered.extend(group);
        }
        delivered
    }

    /// The open transaction at `backend`, if it has exactly these recipients: with one that has moved, it
    /// must not get the message.
    fn connection_for(&mut self, backend: &Backend, group: &[Sent]) -> Option<Connection> {
        let leg = self.legs.iter_mut().find(|leg| leg.backend.name == backend.name)?;
        let same = leg.recipients.iter().eq(group.iter().map(|sent| &sent.at));
        if same { leg.connection.take() } else { None }
    }

    /// Ends the transaction without a message; connections that can be used again are kept.
    pub async fn abandon(self, cx: &Context) {
        for leg in self.legs {
            if let Some(mut connection) = leg.connection
                && connection.reset().await.is_ok()
            {
                cx.pool.keep(&leg.backend.name, connection);
            }
        }
    }
}

/// A message on its way to one owner.
struct Delivery<'a> {
    cx: &'a Context,
    introduction: Introduction<'a>,
    mail: Mail,
    backend: Arc<Backend>,
    connection: Option<Connection>,
    group: Vec<Sent>,
    addresses: Vec<Address>,
}

impl Delivery<'_> {
    /// Sends, waits for the verdicts, and judges whether they count.
    async fn run(mut self, header: &str, message: &Message) -> Vec<Delivered> {
        let limit = self.cx.rules.delivery_timeout;
        let connection = self.connection.take();
        let changed = any_outdated(&self.group);
        let sending = timeout(limit, self.send(connection, header, message));
        let verdicts = tokio::select! {
            biased;
            // The connection is dropped: what it would still say is ignored (P3).
            () = changed => Err("the account was moved meanwhile".to_owned()),
            sent = sending => match sent {
                Ok(Ok(verdicts)) => Ok(verdicts),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(DeliveryError::TimedOut.to_string()),
            },
        };
        let Self { cx, group, addresses, .. } = self;
        let ownership = &cx.ownership;
        let judged = group.into_iter().zip(addresses).enumerate().map(|(at, (sent, to))| {
            let (verdict, why) = match &verdicts {
                Ok(verdicts) => match verdicts.get(at) {
                    Some(Verdict::Accepted) => counted(ownership, &sent.registration),
                    Some(verdict) => (verdict.clone(), None),
                    None => (Verdict::Unfinished, None),
                },
                Err(why) => (Verdict::Unfinished, Some(why.clone())),
            };
            // The verdict is recorded in what is returned; the registration ends only now.
            drop(sent.registration);
            Delivered { to, owner: Some(sent.owner), verdict, why }
        });
        judged.collect()
    }

    /// One transaction with the owner: a verdict for each recipient of the group, in their order.
    async fn send(
        &self,
        connection: Option<Connection>,
        header: &str,
        message: &Message,
    ) -> Result<Vec<Verdict>, DeliveryError> {
        let mut verdicts = vec![Verdict::Accepted; self.addresses.len()];
        let mut connection = match connection {
            Some(connection) => connection,
            None => match self.begin_anew(&mut verdicts).await? {
                Some(connection) => connection,
                None => return Ok(verdicts),
            },
        };
        let accepted = verdicts.iter().filter(|v| **v == Verdict::Accepted).count();
        let patience = self.cx.rules.delivery_timeout;
        let replies = connection.send(header, message, accepted, patience).await?;
        let open =
            verdicts.iter_mut().zip(&self.addresses).filter(|(v, _)| **v == Verdict::Accepted);
        for ((verdict, address), reply) in open.zip(replies) {
            if reply.class() != Class::Accepted {
                *verdict = Verdict::Refused(in_our_words(&reply, address));
            }
        }
        self.cx.pool.keep(&self.backend.name, connection);
        Ok(verdicts)
    }

    /// A new transaction with every recipient of the group, since they live here only now. Without a
    /// connection in return nobody is left to send to.
    async fn begin_anew(
        &self,
        verdicts: &mut [Verdict],
    ) -> Result<Option<Connection>, DeliveryError> {
        let Some(endpoint) = &self.backend.mail else {
            verdicts.fill(Verdict::Unfinished);
            return Ok(None);
        };
        let mut recipients = verdicts.iter_mut().zip(&self.addresses);
        let Some((first, to)) = recipients.next() else { return Ok(None) };
        let begun =
            begin(self.cx, self.introduction, &self.backend, endpoint, &self.mail, to).await?;
        let (mut connection, from, reply) = begun;
        if from.class() != Class::Accepted {
            *first = Verdict::Refused(in_our_words(&from, to));
            for (verdict, to) in recipients {
                *verdict = Verdict::Refused(in_our_words(&from, to));
            }
            return Ok(None);
        }
        if let Some(reply) = reply.filter(|reply| reply.class() != Class::Accepted) {
            *first = Verdict::Refused(in_our_words(&reply, to));
        }
        for (verdict, to) in recipients {
            let reply = connection.add(to).await?;
            if reply.class() != Class::Accepted {
                *verdict = Verdict::Refused(in_our_words(&reply, to));
            }
        }
        if verdicts.contains(&Verdict::Accepted) {
            return Ok(Some(connection));
        }
        if connection.reset().await.is_ok() {
            self.cx.pool.keep(&self.backend.name, connection);
        }
        Ok(None)
    }
}

/// P3: an owner's yes counts only if the row that led there still stands after it has arrived.
fn counted(ownership: &Ownership, registration: &Registration) -> (Verdict, Option<String>) {
    if ownership.still_stands(registration) {
        (Verdict::Accepted, None)
    } else {
        (Verdict::Unfinished, Some("the account was moved meanwhile".to_owned()))
    }
}

/// Returns when one of them must not go on.
async fn any_outdated(group: &[Sent]) {
    let outdated = group.iter().map(|sent| Box::pin(sent.registration.outdated()));
    select_all(outdated).await;
}

/// Begins a transaction on a kept connection or a new one. A kept one may have been closed at the other
/// end without our knowing; so its failure is tried again on a new one.
async fn begin(
    cx: &Context,
    introduction: Introduction<'_>,
    backend: &Backend,
    endpoint: &MailEndpoint,
    mail: &Mail,
    to: &Address,
) -> Result<(Connection, Reply, Option<Reply>), DeliveryError> {
    if let Some(mut kept) = cx.pool.take(&backend.name)
        && let Ok((from, reply)) = kept.begin(mail, to).await
    {
        return Ok((kept, from, reply));
    }
    let began = Instant::now();
    let mut connection = Connection::open(endpoint, introduction).await?;
    tracing::debug!(owner = %backend.name, ms = began.elapsed().as_millis(), "connected");
    let (from, reply) = connection.begin(mail, to).await?;
    Ok((connection, from, reply))
}

/// `user%elsewhere@ours`, `elsewhere!user@ours`, `"user@elsewhere"@ours`: a server that trusts us may still
/// take these for orders to relay. With a row of their own they are names like others.
fn has_route_inside(address: &Address) -> bool {
    address.local().contains(['%', '!', '@'])
}

/// The owner's codes with our words: its own may name hosts that are nobody's business.
fn in_our_words(reply: &Reply, to: &Address) -> Reply {
    let subject = reply.enhanced().map(|enhanced| enhanced.subject);
    let words = match (reply.class(), subject) {
        (Class::Permanent, Some(1)) => "no such recipient",
        (Class::Permanent, _) => "refused by the recipient's server",
        (Class::Temporary, Some(2)) => "the recipient's mailbox takes no mail for now",
        (Class::Accepted | Class::GoOn | Class::Temporary, _) => {
            "not taken for now by the recipient's server, try again later"
        }
    };
    reply.saying(format!("<{to}>: {words}"))
}

/// What a client is told when there is no owner.
fn refused(refusal: &Refusal, to: &Address) -> Reply {
    match refusal {
        Refusal::Stale | Refusal::Unsettled => {
            tracing::warn!(%to, why = %refusal, "recipient refused");
            Reply::new(451, (3, 0), format!("<{to}>: not deliverable for now, try again later"))
        }
        Refusal::Held { .. } => {
            Reply::new(451, (2, 1), format!("<{to}>: mailbox is being moved, try again later"))
        }
        Refusal::UnknownBackend { .. } => {
            tracing::error!(%to, why = %refusal, "recipient refused");
            Reply::new(451, (3, 5), format!("<{to}>: not deliverable for now, try again later"))
        }
        Refusal::NoSuchAccount => Reply::new(550, (1, 1), format!("<{to}>: no such recipient")),
        // Only logins are told so.
        Refusal::NoLogin { .. } => Reply::new(550, (1, 1), format!("<{to}>: no such recipient")),
        Refusal::ForeignDomain => Reply::new(550, (7, 1), format!("<{to}>: relaying denied")),
    }
}
