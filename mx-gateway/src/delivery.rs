//! Delivering to one owner: a connection (new or kept), the transaction on it, its verdicts.
//!
//! Straight functions, since here we lead. Which recipients go to which owner is the transaction's
//! business; what their verdicts mean for the client is [`crate::outcome`]'s. An owner's yes counts only
//! while the row that led there stands (P3); once it does not, the connection is closed, and what it would
//! still say is ignored.

mod connection;
mod pool;

use std::sync::Arc;

use futures_util::future::select_all;
use shared::address::Address;
use shared::backend::Backend;
use shared::ownership::{Owner, Registration};
use shared::smtp::command::Mail;
use shared::smtp::reply::{Class, Reply};
use shared::wire::ConnectError;
use tokio::time::timeout;

pub use connection::{Connection, DeliveryError, Introduction};
pub use pool::Pool;

use crate::body::Message;
use crate::outcome::Verdict;
use crate::refusal;
use crate::serve::Context;
use crate::transaction::Delivered;

/// Why a verdict does not count.
const MOVED: &str = "the account was changed meanwhile";

/// A transaction at one owner, as far as its first recipient.
#[expect(clippy::large_enum_variant, reason = "few, and nearly always the large one")]
#[derive(Debug)]
pub enum Begun {
    /// The sender was taken; this is the answer to the recipient.
    Open(Connection, Reply),
    /// The sender or the size it declares was not: the answer for every recipient there.
    Refused(Reply),
}

/// Begins a transaction on a kept connection or a new one. A kept one may have been closed at the other
/// end without our knowing, or have had its share of messages; so what fails there is tried on a new one.
///
/// # Errors
///
/// A [`DeliveryError`].
pub async fn begin(
    cx: &Context,
    introduction: &Introduction,
    backend: &Backend,
    mail: &Mail,
    to: &Address,
) -> Result<Begun, DeliveryError> {
    let endpoint = backend.mail.as_ref().ok_or(DeliveryError::NoEndpoint)?;
    if let Some(kept) = cx.pool.take(&backend.name) {
        match begin_on(cx, backend, kept, mail, to).await {
            Ok(Begun::Refused(reply)) if reply.class() == Class::Temporary => {}
            Ok(Begun::Open(connection, reply)) if reply.class() == Class::Temporary => {
                connection.say_goodbye(cx);
            }
            Ok(begun) => return Ok(begun),
            Err(_) => {}
        }
    }
    let connection = match Connection::open(endpoint, introduction).await {
        // Another address may be up; if none is, that is known at once.
        Err(DeliveryError::Connect(ConnectError::WentDown { .. })) => {
            Connection::open(endpoint, introduction).await?
        }
        opened => opened?,
    };
    begin_on(cx, backend, connection, mail, to).await
}

async fn begin_on(
    cx: &Context,
    backend: &Backend,
    mut connection: Connection,
    mail: &Mail,
    to: &Address,
) -> Result<Begun, DeliveryError> {
    if mail.size.is_some_and(|octets| connection.is_too_large(octets)) {
        connection.keep(cx, &backend.name);
        return Ok(Begun::Refused(Reply::new(552, (3, 4), "Message too large")));
    }
    match connection.begin(mail, to).await? {
        (from, Some(reply)) if from.class() == Class::Accepted => {
            Ok(Begun::Open(connection, reply))
        }
        (from, _) => Ok(Begun::Refused(from)),
    }
}

/// A message on its way to one owner.
#[derive(Debug)]
pub struct Delivery<'a> {
    cx: &'a Context,
    introduction: &'a Introduction,
    mail: Mail,
    backend: Arc<Backend>,
    connection: Option<Connection>,
    recipients: Vec<Recipient>,
}

/// One recipient, registered where it has an owner.
#[derive(Debug)]
struct Recipient {
    address: Address,
    ownership: Option<(Owner, Registration)>,
}

/// Told of each verdict.
pub type Record<'a> = &'a (dyn Fn(&Delivered) + Sync);

/// What is known of each recipient so far, in their order.
type Verdicts = [Option<(Verdict, Option<String>)>];

impl<'a> Delivery<'a> {
    /// To this owner, without recipients.
    pub fn new(
        cx: &'a Context,
        introduction: &'a Introduction,
        mail: Mail,
        backend: Arc<Backend>,
    ) -> Self {
        Self { cx, introduction, mail, backend, connection: None, recipients: Vec::new() }
    }

    /// The owner.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Adds a recipient, registered before its owner was read; `None` where no row decides.
    pub fn add(&mut self, address: Address, ownership: Option<(Owner, Registration)>) {
        self.recipients.push(Recipient { address, ownership });
    }

    /// Sets the transaction that is open there with exactly these recipients; `None`: a new one is begun.
    pub fn go_on_with(&mut self, connection: Option<Connection>) {
        self.connection = connection;
    }

    /// Sends, waits for the verdicts, judges whether they count, and records them.
    pub async fn run(
        mut self,
        header: &str,
        message: &Message,
        record: Record<'_>,
    ) -> Vec<Verdict> {
        let limit = self.cx.rules.delivery_timeout;
        let connection = self.connection.take();
        let mut verdicts = vec![None; self.recipients.len()];
        // Dropping the sending closes its connection, and discards what was not received there.
        let cut_short = tokio::select! {
            biased;
            () = any_outdated(&self.recipients) => Some(MOVED.to_owned()),
            () = self.cx.lifecycle.end().cancelled() => Some("the service ends".to_owned()),
            sent = timeout(limit, self.send(connection, header, message, &mut verdicts)) => match sent {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(DeliveryError::TimedOut.to_string()),
            },
        };
        let judged = self.recipients.into_iter().zip(verdicts).map(|(recipient, verdict)| {
            let (verdict, why) =
                verdict.unwrap_or_else(|| (Verdict::Unfinished, cut_short.clone()));
            let Recipient { address: to, ownership } = recipient;
            let (owner, registration) = ownership.unzip();
            let delivered = Delivered { to, owner, verdict, why };
            record(&delivered);
            // Recorded: only now a fence need not wait for it any more.
            drop(registration);
            delivered.verdict
        });
        judged.collect()
    }

    /// One transaction with the owner. Fills in the verdicts as they come.
    async fn send(
        &self,
        connection: Option<Connection>,
        header: &str,
        message: &Message,
        verdicts: &mut Verdicts,
    ) -> Result<(), DeliveryError> {
        let Some((mut connection, ready)) = self.ready(connection, verdicts).await? else {
            return Ok(());
        };
        if ready.class() != Class::GoOn {
            for (at, verdict) in verdicts.iter_mut().enumerate().filter(|(_, v)| v.is_none()) {
                *verdict = self.refused(at, &ready);
            }
            connection.reset_and_keep(self.cx, &self.backend.name).await;
            return Ok(());
        }
        // From here to the last verdict, whatever ends this takes back what is still under way (P5, P6).
        connection.discard_on_drop(true)?;
        connection.content(header, message, self.cx.rules.delivery_timeout).await?;
        let mut of_all = None;
        for (at, verdict) in verdicts.iter_mut().enumerate().filter(|(_, v)| v.is_none()) {
            let reply = match of_all.take() {
                Some(reply) => reply,
                None => connection.verdict().await?,
            };
            *verdict = self.judged(at, &reply);
            // SMTP has one verdict for all recipients, LMTP one for each.
            of_all = connection.has_one_verdict().then_some(reply);
        }
        connection.discard_on_drop(false)?;
        connection.keep(self.cx, &self.backend.name);
        Ok(())
    }

    /// A transaction to which DATA was answered, with that answer; `None` when nobody is left to send to.
    /// An owner may have given up the open one while the client sent its message, whether it hung up or
    /// answers something temporary: since nothing of the message was sent yet, another is begun, once.
    async fn ready(
        &self,
        connection: Option<Connection>,
        verdicts: &mut Verdicts,
    ) -> Result<Option<(Connection, Reply)>, DeliveryError> {
        if let Some(mut connection) = connection
            && let Ok(reply) = connection.data().await
        {
            match reply.class() {
                Class::GoOn | Class::Permanent => return Ok(Some((connection, reply))),
                Class::Accepted | Class::Temporary => connection.say_goodbye(self.cx),
            }
        }
        match self.begin_anew(verdicts).await? {
            Some(mut connection) => {
                let reply = connection.data().await?;
                Ok(Some((connection, reply)))
            }
            None => Ok(None),
        }
    }

    /// A new transaction with every recipient; a connection when at least one was accepted.
    async fn begin_anew(
        &self,
        verdicts: &mut Verdicts,
    ) -> Result<Option<Connection>, DeliveryError> {
        let Some(first) = self.recipients.first() else { return Ok(None) };
        let begun =
            begin(self.cx, self.introduction, &self.backend, &self.mail, &first.address).await?;
        let (mut connection, mut reply) = match begun {
            Begun::Open(connection, reply) => (connection, reply),
            Begun::Refused(reply) => {
                for (at, verdict) in verdicts.iter_mut().enumerate() {
                    *verdict = self.refused(at, &reply);
                }
                return Ok(None);
            }
        };
        for (at, (recipient, verdict)) in
            self.recipients.iter().zip(verdicts.iter_mut()).enumerate()
        {
            if at > 0 {
                reply = connection.add(&recipient.address).await?;
            }
            if reply.class() != Class::Accepted {
                *verdict = self.refused(at, &reply);
            }
        }
        if verdicts.iter().any(Option::is_none) {
            return Ok(Some(connection));
        }
        connection.reset_and_keep(self.cx, &self.backend.name).await;
        Ok(None)
    }

    /// An owner's verdict on the message, as it counts at the moment it arrived (P3).
    fn judged(&self, at: usize, reply: &Reply) -> Option<(Verdict, Option<String>)> {
        if reply.class() != Class::Accepted {
            return self.refused(at, reply);
        }
        let recipient = self.recipients.get(at)?;
        let stands = |(_, registration): &(Owner, Registration)| {
            self.cx.ownership.still_stands(registration)
        };
        if recipient.ownership.as_ref().is_none_or(stands) {
            Some((Verdict::Accepted, None))
        } else {
            Some((Verdict::Unfinished, Some(MOVED.to_owned())))
        }
    }

    fn refused(&self, at: usize, reply: &Reply) -> Option<(Verdict, Option<String>)> {
        let to = &self.recipients.get(at)?.address;
        Some((Verdict::Refused(refusal::by_owner(reply, to)), Some(reply.to_string())))
    }
}

/// Returns when one of them must not go on.
async fn any_outdated(recipients: &[Recipient]) {
    let registered: Vec<_> = recipients
        .iter()
        .filter_map(|recipient| recipient.ownership.as_ref())
        .map(|(_, registration)| Box::pin(registration.outdated()))
        .collect();
    if registered.is_empty() {
        return std::future::pending().await;
    }
    select_all(registered).await;
}
