//! Delivering to one owner: a connection (new or kept), the transaction on it, its verdicts.
//!
//! Straight functions, since here we lead. Which recipients go to which owner is decided by whoever makes a
//! [`Delivery`]: the transaction of a client, or an attempt of the queue; what their verdicts mean is theirs,
//! too. An owner's yes counts only while the row that led there stands (P3); once it does not, the
//! connection is closed, and what it would still say is ignored.

mod connection;
mod offers;
mod pool;
mod round;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::select_all;
use shared::backend::{Backend, MailEndpoint};
use shared::ownership::{Owner, Registration};
use shared::smtp::command::{Addressee, Mail};
use shared::smtp::reply::{Class, Reply};
use shared::wire::ConnectError;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{sleep, timeout};

pub use connection::{Connection, DeliveryError, Introduction};
pub use offers::{FirstAnswers, Offers};
use pool::Obtained;
pub use pool::Pool;
pub use round::{Round, Unsent};

use crate::grace::{self, Refused, Terms};
use crate::letter::Letter;
use crate::outcome::Verdict;
use crate::serve::Context;

/// Why a verdict does not count.
const MOVED: &str = "the account was changed meanwhile";
/// How long the verdict on a whole message is waited for when only some of its recipients have moved: for the
/// others it counts, and without it they would get the message twice. A fence waits as long.
const VERDICT_GRACE: Duration = Duration::from_secs(2);

/// A transaction at one owner, as far as its first recipients.
#[expect(clippy::large_enum_variant, reason = "few, and nearly always the large one")]
#[derive(Debug)]
pub enum Begun {
    /// The sender was taken; these are the answers to the recipients, in their order.
    Open(Connection, Vec<Reply>),
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
    to: &[&Addressee],
) -> Result<Begun, DeliveryError> {
    let endpoint = backend.mail.as_ref().ok_or(DeliveryError::NoEndpoint)?;
    let (name, patience) = (&backend.name, cx.ask_timeout / 2);
    let obtained = cx.pool.obtain(name, endpoint, patience).await?;
    let seat = match obtained {
        Obtained::Seat(seat) => seat,
        Obtained::Kept(kept) => {
            warm(cx, backend, endpoint);
            match begin_on(cx, introduction, backend, kept, mail, to).await {
                Ok(Begun::Refused(reply)) if reply.class() == Class::Temporary => {}
                Ok(Begun::Open(connection, replies)) if is_put_off(&replies) => {
                    connection.say_goodbye(cx);
                }
                Ok(begun) => return Ok(begun),
                Err(_) => {}
            }
            cx.pool.seat(name, endpoint, patience).await?
        }
    };
    let open = || Connection::open(endpoint, &introduction.hostname, Some(introduction.proxied()));
    let mut connection = match open().await {
        // Another address may be up; if none is, that is known at once.
        Err(DeliveryError::Connect(ConnectError::WentDown { .. })) => open().await?,
        opened => opened?,
    };
    connection.occupy(seat);
    if !connection.is_bound() {
        cx.offers.note(backend, connection.offered());
    }
    warm(cx, backend, endpoint);
    begin_on(cx, introduction, backend, connection, mail, to).await
}

/// True when nobody was accepted, and somebody not for good.
fn is_put_off(replies: &[Reply]) -> bool {
    replies.iter().all(|reply| reply.class() != Class::Accepted)
        && replies.iter().any(|reply| reply.class() == Class::Temporary)
}

async fn begin_on(
    cx: &Context,
    introduction: &Introduction,
    backend: &Backend,
    mut connection: Connection,
    mail: &Mail,
    to: &[&Addressee],
) -> Result<Begun, DeliveryError> {
    if mail.size.is_some_and(|octets| connection.is_too_large(octets)) {
        connection.keep(cx, &backend.name);
        return Ok(Begun::Refused(Reply::new(552, (3, 4), "Message too large")));
    }
    connection.name_client(introduction).await?;
    let (from, replies) = connection.begin(introduction, mail, to).await?;
    if from.class() == Class::Accepted {
        return Ok(Begun::Open(connection, replies));
    }
    match from.class() {
        Class::Permanent => connection.keep(cx, &backend.name),
        // It may have had its share of messages.
        Class::Accepted | Class::GoOn | Class::Temporary => connection.say_goodbye(cx),
    }
    Ok(Begun::Refused(from))
}

/// Has connections greeted for the clients to come, where each is for one.
fn warm(cx: &Context, backend: &Backend, mail: &MailEndpoint) {
    if !cx.pool.is_cold(&backend.name, mail) {
        return;
    }
    let (pool, offers) = (Arc::clone(&cx.pool), Arc::clone(&cx.offers));
    let (backend, hostname) = (backend.clone(), cx.rules.hostname.clone());
    let stop = cx.lifecycle.stop().clone();
    cx.lifecycle.spawn_chore("warm", async move {
        stop.run_until_cancelled(pool.warm(&backend, hostname.as_str(), &offers)).await;
    });
}

/// A message on its way to one owner.
#[derive(Debug)]
pub struct Delivery {
    cx: Arc<Context>,
    letter: Arc<Letter>,
    backend: Arc<Backend>,
    connection: Option<Connection>,
    recipients: Vec<Recipient>,
}

/// One recipient of a delivery.
#[derive(Debug)]
pub struct Recipient {
    /// Its place among those of whoever made the delivery.
    pub place: usize,
    /// As its owner is told of it.
    pub to: Addressee,
    /// Why it goes to this backend.
    pub warrant: Warrant,
}

/// Why a recipient goes to a backend.
#[derive(Debug)]
pub enum Warrant {
    /// The table says so, and the delivery was registered before it was read (P4).
    Row(Owner, Registration),
    /// It is sent that way whatever the table says: a report, or mail to others.
    Configured,
}

/// What became of one recipient. Whoever gets it records it and only then drops it: until then a fence waits
/// for it (P5).
#[derive(Debug)]
pub struct Settled {
    /// Its place.
    pub place: usize,
    /// Its verdict.
    pub verdict: Verdict,
    /// What the owner said, or why there is no verdict.
    pub why: Option<String>,
    /// The owner's own words.
    pub reply: Option<Reply>,
    /// The backend could not be reached or gave us no service: it is not worth asking for the next message.
    pub unreachable: bool,
    /// Where it was sent.
    pub backend: Arc<Backend>,
    /// Why it was sent there.
    pub warrant: Warrant,
}

/// A verdict with what it rests on.
#[derive(Debug, Clone)]
struct Found {
    verdict: Verdict,
    reply: Option<Reply>,
    /// Why there is none.
    why: Option<String>,
}

/// What is known of each recipient so far, in their order.
type Verdicts = [Option<Found>];

impl Recipient {
    /// True once a change went over what it was sent by.
    fn is_outdated(&self) -> bool {
        match &self.warrant {
            Warrant::Row(_, registration) => registration.is_outdated(),
            Warrant::Configured => false,
        }
    }

    /// Waits until then.
    async fn outdated(&self) {
        match &self.warrant {
            Warrant::Row(_, registration) => registration.outdated().await,
            Warrant::Configured => std::future::pending().await,
        }
    }

    /// True when a verdict that has just arrived counts (P3).
    fn still_stands(&self, cx: &Context) -> bool {
        match &self.warrant {
            Warrant::Row(_, registration) => cx.ownership.still_stands(registration),
            Warrant::Configured => true,
        }
    }
}

impl Found {
    fn without(verdict: Verdict, why: Option<String>) -> Self {
        Self { verdict, reply: None, why }
    }
}

impl Warrant {
    /// The owner, where the table has one.
    pub fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Row(owner, _) => Some(owner),
            Self::Configured => None,
        }
    }
}

impl Delivery {
    /// To this backend, without recipients.
    pub fn new(cx: Arc<Context>, letter: Arc<Letter>, backend: Arc<Backend>) -> Self {
        Self { cx, letter, backend, connection: None, recipients: Vec::new() }
    }

    /// The backend.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Adds a recipient.
    pub fn add(&mut self, recipient: Recipient) {
        self.recipients.push(recipient);
    }

    /// The places of its recipients.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.recipients.iter().map(|recipient| recipient.place)
    }

    /// Sets the transaction that is open there with exactly these recipients; `None`: a new one is begun.
    pub fn go_on_with(&mut self, connection: Option<Connection>) {
        self.connection = connection;
    }

    /// Sends, waits for the verdicts, judges whether they count, and tells them: each recipient's once, all
    /// when the connection is done with.
    pub async fn run(mut self, settled: UnboundedSender<Settled>) {
        let limit = self.cx.rules.delivery_timeout;
        let connection = self.connection.take();
        let mut verdicts = vec![None; self.recipients.len()];
        let ended = AtomicBool::new(false);
        // Dropping the sending closes its connection, and discards what was not received there.
        let cut_short = tokio::select! {
            biased;
            () = overtaken(&self.recipients, &ended) => Some((MOVED.to_owned(), false)),
            () = self.cx.lifecycle.end().cancelled() => Some(("the service ends".to_owned(), false)),
            sent = timeout(limit, self.send(connection, &mut verdicts, &ended)) => match sent {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some((error.to_string(), error.is_unreachable())),
                Err(_) => Some((DeliveryError::TimedOut.to_string(), true)),
            },
        };
        let (why, unreachable) = cut_short.map_or((None, false), |(why, un)| (Some(why), un));
        // Without the end of the message nobody can have taken it.
        let ended = ended.load(Ordering::Acquire);
        if let (false, Some(queue)) = (unreachable, &self.cx.queue) {
            queue.answers(&self.backend.name);
        }
        for (recipient, verdict) in self.recipients.into_iter().zip(verdicts) {
            let unreachable = unreachable && verdict.is_none();
            let without = if ended { Verdict::InDoubt } else { Verdict::NotSent };
            let found = verdict.unwrap_or_else(|| Found::without(without, why.clone()));
            let Found { verdict, reply, why } = found;
            let why = why.or_else(|| reply.as_ref().map(Reply::to_string));
            let Recipient { place, warrant, .. } = recipient;
            let backend = Arc::clone(&self.backend);
            // Nobody to tell: whoever made the delivery has ended, and with it the process.
            let _ =
                settled.send(Settled { place, verdict, why, reply, unreachable, backend, warrant });
        }
    }

    /// One transaction with the owner. Fills in the verdicts as they come.
    async fn send(
        &self,
        connection: Option<Connection>,
        verdicts: &mut Verdicts,
        ended: &AtomicBool,
    ) -> Result<(), DeliveryError> {
        let Some((mut connection, ready)) = self.ready(connection, verdicts).await? else {
            return Ok(());
        };
        if ready.class() != Class::GoOn {
            let refused = self.of_all(verdicts, &ready);
            for (recipient, verdict) in self.open(verdicts) {
                *verdict = Some(self.refused(recipient, &ready, refused));
            }
            connection.reset_and_keep(&self.cx, &self.backend.name).await;
            return Ok(());
        }
        // From here to the last verdict, whatever ends this takes back what is still under way (P5, P6).
        connection.discard_on_drop(true)?;
        connection.content(&self.letter.header, &self.letter.message).await?;
        ended.store(true, Ordering::Release);
        connection.finish(self.cx.rules.delivery_timeout).await?;
        // SMTP has one verdict for all recipients, LMTP one for each.
        if connection.has_one_verdict() {
            let reply = connection.verdict().await?;
            let refused = self.of_all(verdicts, &reply);
            for (recipient, verdict) in self.open(verdicts) {
                *verdict = Some(self.judged(recipient, &reply, refused));
            }
        } else {
            for (recipient, verdict) in self.open(verdicts) {
                let reply = connection.verdict().await?;
                *verdict = Some(self.judged(recipient, &reply, Refused::Message));
            }
        }
        connection.discard_on_drop(false)?;
        connection.keep(&self.cx, &self.backend.name);
        Ok(())
    }

    /// Recipients without a verdict.
    fn open<'a>(
        &'a self,
        verdicts: &'a mut Verdicts,
    ) -> impl Iterator<Item = (&'a Recipient, &'a mut Option<Found>)> {
        self.recipients.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_none())
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
                Class::Accepted | Class::Temporary => connection.say_goodbye(&self.cx),
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
        let to: Vec<&Addressee> = self.recipients.iter().map(|recipient| &recipient.to).collect();
        if to.is_empty() {
            return Ok(None);
        }
        let Letter { introduction, mail, .. } = &*self.letter;
        let begun = begin(&self.cx, introduction, &self.backend, mail, &to).await?;
        let (connection, replies) = match begun {
            Begun::Open(connection, replies) => (connection, replies),
            Begun::Refused(reply) => {
                for (recipient, verdict) in self.open(verdicts) {
                    *verdict = Some(self.refused(recipient, &reply, Refused::Transaction));
                }
                return Ok(None);
            }
        };
        let answered = self.recipients.iter().zip(&replies).zip(verdicts.iter_mut());
        for ((recipient, reply), verdict) in answered {
            if reply.class() != Class::Accepted {
                *verdict = Some(self.refused(recipient, reply, Refused::Recipient));
            }
        }
        if verdicts.iter().any(Option::is_none) {
            return Ok(Some(connection));
        }
        connection.reset_and_keep(&self.cx, &self.backend.name).await;
        Ok(None)
    }

    /// What one reply for all who are left is a no to. Nobody can tell which of them it means, so it is about
    /// their mailboxes only where each of them may be meant.
    fn of_all(&self, verdicts: &mut Verdicts, reply: &Reply) -> Refused {
        let terms = Terms::of(self.cx.rules.flip_grace);
        let may_be_meant = |recipient: &Recipient| {
            let flipped = recipient.warrant.owner().and_then(|owner| owner.flipped);
            grace::softened(reply, Refused::Message, flipped, terms).is_some()
        };
        let concerned = self.open(verdicts).map(|(recipient, _)| recipient);
        let mut concerned = concerned.filter(|recipient| recipient.still_stands(&self.cx));
        if concerned.all(may_be_meant) { Refused::Message } else { Refused::Transaction }
    }

    /// An owner's verdict on the message, as it counts at the moment it arrived (P3).
    fn judged(&self, recipient: &Recipient, reply: &Reply, refused: Refused) -> Found {
        if reply.class() != Class::Accepted {
            return self.refused(recipient, reply, refused);
        }
        if recipient.still_stands(&self.cx) {
            Found { verdict: Verdict::Accepted, reply: Some(reply.clone()), why: None }
        } else {
            Found::without(Verdict::InDoubt, Some(MOVED.to_owned()))
        }
    }

    /// A no counts as long as a yes: the owner of now may think otherwise.
    fn refused(&self, recipient: &Recipient, reply: &Reply, refused: Refused) -> Found {
        if recipient.still_stands(&self.cx) {
            let (to, owner) = (&recipient.to.address, recipient.warrant.owner());
            let terms = Terms::of(self.cx.rules.flip_grace);
            let verdict = Verdict::Refused(self.cx.grace.refusal(reply, refused, to, owner, terms));
            Found { verdict, reply: Some(reply.clone()), why: None }
        } else {
            Found::without(Verdict::NotSent, Some(MOVED.to_owned()))
        }
    }
}

/// Returns when the sending must not go on because an account was changed. Once the whole message was sent,
/// the verdict for those who have not moved is waited for a little.
async fn overtaken(recipients: &[Recipient], ended: &AtomicBool) {
    if recipients.is_empty() {
        return std::future::pending().await;
    }
    select_all(recipients.iter().map(|recipient| Box::pin(recipient.outdated()))).await;
    if ended.load(Ordering::Acquire) && !recipients.iter().all(Recipient::is_outdated) {
        sleep(VERDICT_GRACE).await;
    }
}
