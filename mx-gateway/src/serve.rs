//! Drives one client's session: asks, receives, delivers, answers.

use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shared::address::Address;
use shared::backend::MailProtocol;
use shared::config::MxConfig;
use shared::lifecycle::Lifecycle;
use shared::listener::Accepted;
use shared::ownership::{Epoch, Owner, Ownership};
use shared::smtp::path::{ForwardPath, ReversePath};
use shared::smtp::reply::{Class, Reply};
use shared::wire::{Deadlines, Wire, WireError};
use socket2::SockRef;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::rustls::ServerConfig;

use crate::body::{Body, Fault, Limits, Memory, Message};
use crate::delivery::{Introduction, Pool};
use crate::mail_log::{Client, Delays, MailLog, Named, Relay, Status, Tally};
use crate::outcome::{self, Verdict};
use crate::received::{Loops, Trace};
use crate::session::{Event, Session, Terms};
use crate::transaction::{Answer, Delivered, Transaction};

/// How long a client may take for a message, however steadily it sends. 50 MiB in this time are a line
/// of 60 kbit/s.
const LONGEST_DATA: Duration = Duration::from_hours(2);
/// A message of so many octets may be read to its end in order to be refused, whatever the limit is.
const ENDLESS: u64 = 1024 * 1024;

/// What every session works with.
#[derive(Debug)]
pub struct Context {
    /// Who owns each account.
    pub ownership: Arc<Ownership>,
    /// Tasks and their end.
    pub lifecycle: Lifecycle,
    /// Limits and names.
    pub rules: MxConfig,
    /// Certificates, if there are any.
    pub tls: Option<Arc<ServerConfig>>,
    /// TLS from the first octet.
    pub implicit_tls: bool,
    /// Longest wait for an owner's answer to a recipient.
    pub ask_timeout: Duration,
    /// Connections to owners.
    pub pool: Arc<Pool>,
    /// What messages may keep in memory together.
    pub memory: Arc<Memory>,
    /// Where large messages are kept while they are received.
    pub temporary: PathBuf,
    /// The log in Postfix' words.
    pub mail_log: Arc<MailLog>,
}

/// A message that is being received.
struct Incoming {
    body: Body,
    loops: Loops,
    began: Instant,
}

/// One client, from its greeting to its end.
struct Conversation<'a> {
    cx: &'a Context,
    id: String,
    wire: Wire,
    session: Session,
    transaction: Option<Transaction>,
    incoming: Option<Incoming>,
    /// What the log in Postfix' words calls the client, and what it is to know at the end.
    client: Client,
    tally: &'a mut Tally,
}

impl Context {
    /// Where mail to `<postmaster>` without a domain goes, and to a postmaster without an account
    /// (RFC 5321 §4.5.1).
    pub fn postmaster(&self) -> Option<Address> {
        self.rules
            .postmaster
            .clone()
            .or_else(|| Address::parse(&format!("postmaster@{}", self.rules.hostname)).ok())
    }
}

/// Speaks with one client until it is gone.
pub async fn serve(cx: Arc<Context>, accepted: Accepted) {
    let id = uuid::Uuid::now_v7().simple().to_string();
    let client = accepted.client;
    let deadlines =
        Deadlines { read: cx.rules.command_timeout, write: cx.rules.command_timeout, until: None };
    let early = !cx.implicit_tls && has_spoken(&accepted.socket);
    let Ok(wire) = Wire::new(accepted.socket, deadlines) else { return };
    let wire = wire.on_behalf_of(accepted.client, accepted.local);
    let (seen, mut tally) = (cx.mail_log.connected(client.ip()), Tally::default());
    let ended = converse(&cx, &id, wire, early, (seen, &mut tally)).await;
    cx.mail_log.disconnected(&seen, &tally);
    match ended {
        Ok(()) => tracing::debug!(session = id, %client, "disconnected"),
        Err(error) => tracing::info!(session = id, %client, %error, "disconnected"),
    }
    drop(accepted.seat);
}

/// True when a client did not wait for the greeting. Asked of the socket itself, since the runtime may
/// not have heard of it yet.
fn has_spoken(socket: &TcpStream) -> bool {
    let mut octet = [MaybeUninit::uninit()];
    SockRef::from(socket).peek(&mut octet).is_ok_and(|count| count > 0)
}

async fn converse(
    cx: &Context,
    id: &str,
    mut wire: Wire,
    early: bool,
    (client, tally): (Client, &mut Tally),
) -> Result<(), WireError> {
    if let Some(tls) = &cx.tls {
        if cx.implicit_tls {
            wire.accept_tls(Arc::clone(tls)).await?;
        } else {
            wire.offer_tls(Arc::clone(tls));
        }
    }
    let terms = Terms {
        hostname: cx.rules.hostname.as_str().into(),
        max_size: cx.rules.max_message_size,
        starttls: cx.tls.is_some() && !cx.implicit_tls,
    };
    let mut session = Session::new(terms, wire.is_secured());
    session.greet(early, &mut wire.output);
    let mut conversation = Conversation {
        cx,
        id: id.to_owned(),
        wire,
        session,
        transaction: None,
        incoming: None,
        client,
        tally,
    };
    let ended = conversation.run().await;
    conversation.count_introductions();
    if let Some(transaction) = conversation.transaction.take() {
        transaction.abandon(cx).await;
    }
    conversation.wire.close().await;
    ended
}

impl Conversation<'_> {
    async fn run(&mut self) -> Result<(), WireError> {
        while let Some(event) = self.next().await? {
            let reply = match event {
                Event::Mail(mail) => {
                    self.transaction = Some(Transaction::new(mail));
                    self.tally.mail.add(true);
                    Reply::new(250, (1, 0), "Sender ok")
                }
                Event::Rcpt(path) => {
                    // An owner may take its time; what is answered already must not wait for it.
                    self.wire.flush().await?;
                    let reply = self.rcpt(path).await;
                    self.tally.rcpt.answered(&reply);
                    reply
                }
                Event::Data => self.begin_data(),
                Event::Body(octets) => {
                    self.keep(octets).await;
                    continue;
                }
                Event::EndOfData { flawed } => {
                    let reply = self.end_of_data(flawed).await;
                    self.tally.data.answered(&reply);
                    reply
                }
                Event::Reset => {
                    if let Some(transaction) = self.transaction.take() {
                        let flushed = self.wire.flush().await;
                        transaction.abandon(self.cx).await;
                        flushed?;
                    }
                    continue;
                }
            };
            self.session.answer(&reply, &mut self.wire.output);
        }
        Ok(())
    }

    /// Keeps a piece of the message. One that goes on and on far beyond what is allowed is not read to its
    /// end.
    async fn keep(&mut self, octets: Vec<u8>) {
        let Some(incoming) = &mut self.incoming else { return };
        incoming.loops.look(&octets);
        incoming.body.append(octets).await;
        if incoming.body.octets() > self.cx.rules.max_message_size.saturating_mul(2).max(ENDLESS) {
            let reply = Reply::new(552, (3, 4), "Message much too large");
            self.session.bid_farewell(&reply, &mut self.wire.output);
        }
    }

    /// The next event. When the service stops, a client that is not inside a message is told so; at the
    /// end of the grace also one that is.
    async fn next(&mut self) -> Result<Option<Event>, WireError> {
        let in_data = self.session.is_in_data();
        self.wire.deadlines.read =
            if in_data { self.cx.rules.data_timeout } else { self.cx.rules.command_timeout };
        let lifecycle = &self.cx.lifecycle;
        let stop = if in_data { lifecycle.end() } else { lifecycle.stop() };
        let driven = tokio::select! {
            biased;
            // First, so that no client can talk on and on.
            () = stop.cancelled() => {
                let reply = Reply::new(421, (3, 2), "Service is restarting, please connect again");
                self.session.bid_farewell(&reply, &mut self.wire.output);
                return self.wire.flush().await.map(|()| None);
            }
            driven = self.wire.drive(&mut self.session) => driven,
        };
        if matches!(driven, Err(WireError::Deadline)) {
            let reply = Reply::new(421, (4, 2), "Timeout, closing the connection");
            self.session.bid_farewell(&reply, &mut self.wire.output);
            let _ = self.wire.flush().await;
        }
        driven
    }

    async fn rcpt(&mut self, path: ForwardPath) -> Reply {
        let Some(mut transaction) = self.transaction.take() else {
            return Reply::new(503, (5, 1), "Say MAIL first");
        };
        let began = Instant::now();
        let introduction = self.introduction();
        let answer = transaction.add(self.cx, &introduction, path).await;
        if answer.reply.class() != Class::Accepted {
            self.record_refusal(&transaction.mail().from, &answer, began);
        }
        self.transaction = Some(transaction);
        answer.reply
    }

    fn begin_data(&mut self) -> Reply {
        let limits = Limits {
            max_size: self.cx.rules.max_message_size,
            in_memory: self.cx.rules.memory_per_message,
            memory: Arc::clone(&self.cx.memory),
            directory: self.cx.temporary.clone(),
        };
        self.wire.deadlines.until = Instant::now().checked_add(LONGEST_DATA);
        let (body, loops) = (Body::new(limits), Loops::default());
        self.incoming = Some(Incoming { body, loops, began: Instant::now() });
        Reply::bare(354, "End data with <CR><LF>.<CR><LF>")
    }

    async fn end_of_data(&mut self, flawed: bool) -> Reply {
        self.wire.deadlines.until = None;
        let (Some(transaction), Some(incoming)) = (self.transaction.take(), self.incoming.take())
        else {
            return Reply::new(503, (5, 1), "Say MAIL first");
        };
        let Incoming { body, loops, began } = incoming;
        let refusal = match (flawed, body.finish()) {
            (true, _) => Reply::new(550, (6, 0), "Lone CR, or LF before a dot, in the message"),
            (false, Err(Fault::TooLarge)) => Reply::new(552, (3, 4), "Message too large"),
            (false, Err(Fault::Storage)) => Reply::new(452, (3, 1), "Cannot keep the message now"),
            (false, Ok(_)) if loops.received() > self.cx.rules.max_received => {
                Reply::new(554, (4, 6), "Too many hops, the message loops")
            }
            (false, Ok(message)) => {
                return self.deliver(transaction, &message, &loops, began.elapsed()).await;
            }
        };
        let (client, from) = (self.wire.peer(), &transaction.mail().from);
        tracing::info!(session = self.id, %client, %from, reply = %refusal, "message refused");
        self.cx.mail_log.rejected(
            &self.client,
            &self.named("END-OF-MESSAGE", from, None),
            &refusal,
        );
        transaction.abandon(self.cx).await;
        refusal
    }

    /// Delivers and writes a line for each recipient. Goes on when the client has gone meanwhile: the
    /// owners may have the message already.
    async fn deliver(
        &mut self,
        transaction: Transaction,
        message: &Message,
        loops: &Loops,
        before: Duration,
    ) -> Reply {
        let began = Instant::now();
        let id = uuid::Uuid::now_v7().simple().to_string();
        let header = self.trace(&transaction, message, &id);
        let from = transaction.mail().from.clone();
        let introduction = self.introduction();
        let (log, octets) = (&self.cx.mail_log, message.octets());
        let (message_id, recipients) = (loops.message_id(), transaction.recipients());
        log.received(&self.client, &id, message_id.as_deref(), &from, octets, recipients);
        let record = |one: &Delivered| {
            self.record(&id, &from, one, octets, began);
            let delays = Delays { before, sending: began.elapsed(), ..Delays::default() };
            log_attempt(log, &id, one, delays);
        };
        let verdicts = transaction.deliver(self.cx, &introduction, &header, message, &record).await;
        log.removed(&id);
        outcome::reply(&verdicts, &id)
    }

    fn trace(&self, transaction: &Transaction, message: &Message, id: &str) -> String {
        let helo = self
            .session
            .helo()
            .cloned()
            .unwrap_or(crate::session::Helo { name: "unknown".into(), extended: false });
        Trace {
            helo: &helo,
            client: self.wire.peer(),
            by: self.cx.rules.hostname.as_str(),
            tls: self.wire.tls_description().map(|tls| tls.to_string()),
            id,
            only_recipient: transaction.only_recipient().map(Address::to_string),
            at: OffsetDateTime::now_utc(),
            first_octet: message.first_octet(),
        }
        .header()
    }

    /// A recipient that was refused when it was named.
    fn record_refusal(&self, from: &ReversePath, answer: &Answer, began: Instant) {
        let (session, client) = (&self.id, self.wire.peer());
        let to = answer.to.as_ref().map(Address::to_string).unwrap_or_default();
        let named = self.named("RCPT", from, answer.to.as_ref().map(|_| &*to));
        self.cx.mail_log.rejected(&self.client, &named, &answer.reply);
        let (account, owner, epoch) = place(answer.owner.as_ref());
        let (code, reply) = (answer.reply.code(), &answer.reply);
        let ms = began.elapsed().as_millis();
        match &answer.why {
            Some(why) if reply.class() == Class::Temporary => tracing::warn!(
                session, %client, %from, to, account, owner, epoch, code, ms, %reply, why,
                "recipient refused"
            ),
            Some(why) => tracing::info!(
                session, %client, %from, to, account, owner, epoch, code, ms, %reply, why,
                "recipient refused"
            ),
            None => tracing::info!(
                session, %client, %from, to, account, owner, epoch, code, ms, %reply,
                "recipient refused"
            ),
        }
    }

    /// What became of a recipient of a message.
    fn record(&self, id: &str, from: &ReversePath, one: &Delivered, size: u64, began: Instant) {
        let (session, client, to) = (&self.id, self.wire.peer(), &one.to);
        let (account, owner, epoch) = place(one.owner.as_ref());
        let ms = began.elapsed().as_millis();
        let why = one.why.as_deref().unwrap_or("no verdict");
        match &one.verdict {
            Verdict::Accepted => tracing::info!(
                session, id, %client, %from, %to, account, owner, epoch, code = 250, ms, size,
                "delivered"
            ),
            Verdict::Refused(reply) => tracing::info!(
                session, id, %client, %from, %to, account, owner, epoch, code = reply.code(), ms,
                size, %reply, why, "not delivered"
            ),
            Verdict::Unfinished => tracing::warn!(
                session, id, %client, %from, %to, account, owner, epoch, code = 451, ms, size, why,
                "not delivered"
            ),
        }
    }

    /// What was refused, for the log in Postfix' words.
    fn named<'b>(
        &'b self,
        command: &'b str,
        from: &'b ReversePath,
        to: Option<&'b str>,
    ) -> Named<'b> {
        let helo = self.session.helo();
        let protocol = if helo.is_some_and(|helo| helo.extended) { "ESMTP" } else { "SMTP" };
        Named { command, from, to, protocol, helo: helo.map_or("", |helo| &helo.name) }
    }

    /// How the client introduced itself, as far as that is known at the end.
    fn count_introductions(&mut self) {
        match self.session.helo() {
            Some(helo) if helo.extended => self.tally.ehlo.add(true),
            Some(_) => self.tally.helo.add(true),
            None => {}
        }
        if self.wire.is_secured() && !self.cx.implicit_tls {
            self.tally.starttls.add(true);
        }
    }

    fn introduction(&self) -> Introduction {
        let helo = self.session.helo();
        Introduction {
            hostname: self.cx.rules.hostname.as_str().into(),
            client: self.wire.peer(),
            local: self.wire.local(),
            helo: helo.map(|helo| helo.name.clone()).unwrap_or_default(),
            extended: helo.is_some_and(|helo| helo.extended),
        }
    }
}

/// What became of a recipient, in Postfix' words.
fn log_attempt(log: &MailLog, id: &str, one: &Delivered, delays: Delays) {
    let backend = one.owner.as_ref().map(|owner| &owner.backend);
    let relay = backend.map(|backend| Relay {
        daemon: match backend.mail.as_ref().map(|mail| mail.protocol) {
            Some(MailProtocol::Lmtp) => "lmtp",
            Some(MailProtocol::Smtp) | None => "smtp",
        },
        name: backend.name.as_str(),
        address: None,
    });
    let taken = Reply::new(250, (0, 0), "Ok");
    let status = match &one.verdict {
        Verdict::Accepted => Status::Sent(&taken),
        Verdict::Refused(reply) if reply.class() == Class::Permanent => Status::Bounced(reply),
        Verdict::Refused(reply) => Status::Deferred(reply),
        Verdict::Unfinished => Status::Unanswered(one.why.as_deref().unwrap_or("no verdict")),
    };
    log.attempted(id, &one.to, relay.as_ref(), &delays, &status);
}

/// Account, owner and epoch as the log has them.
fn place(owner: Option<&Owner>) -> (&str, &str, Epoch) {
    match owner {
        Some(owner) => (&owner.account, owner.backend.name.as_str(), owner.epoch),
        None => ("", "", 0),
    }
}
