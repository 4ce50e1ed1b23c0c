//! Drives one client's session: asks, receives, delivers, answers.

mod repeats;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use shared::address::Address;
use shared::config::{MxConfig, MxKind};
use shared::lifecycle::Lifecycle;
use shared::listener::{Accepted, Seat, network};
use shared::ownership::Ownership;
use shared::smtp::command::Rcpt;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::{Class, Reply};
use shared::smtp::xclient::Told;
use shared::wire::{Deadlines, Wire, WireError};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_rustls::rustls::ServerConfig;

use crate::authentication::{Authenticator, Policy, Standing, Subject};
use crate::body::{Body, Fault, Limits, Memory, Message};
use crate::custody::{Origin, place_of};
use crate::delivery::{Introduction, Offers, Pool};
use crate::dnsbl::Dnsbl;
use crate::edge::{Edge, Guessed};
use crate::fingerprint::{ContentHash, Fingerprint, Fingerprints, Hashing, Receipt};
use crate::grace::Grace;
use crate::hop::{self, Hops};
use crate::letter::Letter;
use crate::mail_log::{Client, MailLog, Named, Tally};
use crate::queue::Queue;
use crate::received::{Loops, Trace, with_fields};
use crate::session::{Event, Protocol, Session, Terms};
use crate::transaction::{Answer, Transaction};
use crate::welcome::speaks_early;

use self::repeats::{Answered, ToldAgain};

/// How long a client may take for a message, however steadily it sends. 50 MiB in this time are a line
/// of 60 kbit/s.
const LONGEST_DATA: Duration = Duration::from_hours(2);
/// A message of so many octets may be read to its end in order to be refused, whatever the limit is.
const ENDLESS: u64 = 1024 * 1024;

/// How often it is looked whether others wait for what a client keeps.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    /// What is spoken, and with whom.
    pub kind: MxKind,
    /// Longest wait for an owner's answer to a recipient.
    pub ask_timeout: Duration,
    /// What was done lately, and from where.
    pub edge: Arc<Edge>,
    /// Lists of addresses from which nothing is taken.
    pub lists: Dnsbl,
    /// Connections to owners.
    pub pool: Arc<Pool>,
    /// What cannot be delivered at once. Without one nothing is kept: the sender has to.
    pub queue: Option<Arc<Queue>>,
    /// What is known of messages that may come again.
    pub fingerprints: Arc<Fingerprints>,
    /// What owners offer.
    pub offers: Arc<Offers>,
    /// Owners that do not know yet what they have been given.
    pub grace: Arc<Grace>,
    /// What messages may keep in memory together.
    pub memory: Arc<Memory>,
    /// Where large messages are kept while they are received.
    pub temporary: PathBuf,
    /// Finds out about senders; `None`: nothing is.
    pub authenticator: Option<Arc<Authenticator>>,
    /// The log in Postfix' words.
    pub mail_log: Arc<MailLog>,
}

/// A message that is being received.
struct Incoming {
    body: Body,
    loops: Box<Loops>,
    hashing: Hashing,
    began: Instant,
}

/// What was heard of a message besides its octets.
struct Heard<'a> {
    loops: &'a Loops,
    /// How often it was through us before.
    before: u32,
    content: ContentHash,
    took: Duration,
}

/// One client, from its greeting to its end.
struct Conversation<'a> {
    cx: &'a Arc<Context>,
    id: String,
    wire: Wire,
    /// The client's place among the connections.
    seat: Seat,
    /// The client's name by the DNS, where a trusted peer has told it.
    name: Option<Box<str>>,
    session: Session,
    transaction: Option<Transaction>,
    incoming: Option<Incoming>,
    /// The last message, until its client is known to have heard the reply.
    answered: Option<Answered>,
    /// Those of it that had the message before.
    told_again: Option<ToldAgain>,
    /// When it is over, a message in hand apart.
    ends: Option<Instant>,
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

impl Context {
    /// What is offered to a peer.
    fn terms(&self, peer: IpAddr) -> Terms {
        Terms {
            hostname: self.rules.hostname.as_str().into(),
            protocol: match self.kind {
                MxKind::Smtp | MxKind::Internal => Protocol::Smtp,
                MxKind::Lmtp => Protocol::Lmtp,
            },
            max_size: self.rules.max_message_size,
            starttls: self.tls.is_some() && !self.implicit_tls && !self.spares_tls(peer),
            dsn: self.offers.all_have_dsn(),
            smtputf8: self.offers.all_have_smtputf8(),
            chunking: true,
            trusted: self.rules.is_trusted(peer),
        }
    }
}

/// Speaks with one client until it is gone.
pub async fn serve(cx: Arc<Context>, accepted: Accepted) {
    let id = uuid::Uuid::now_v7().simple().to_string();
    let client = accepted.client;
    let deadlines =
        Deadlines { read: cx.rules.command_timeout, write: cx.rules.command_timeout, until: None };
    let early = !cx.implicit_tls && speaks_early(&cx, &accepted).await;
    let Ok(wire) = Wire::new(accepted.socket, deadlines) else { return };
    let wire = wire.on_behalf_of(accepted.client, accepted.local);
    let (seen, mut tally) = (cx.mail_log.connected(client.ip()), Tally::default());
    let ended = converse(&cx, &id, wire, accepted.seat, early, (seen, &mut tally)).await;
    cx.mail_log.disconnected(&seen, &tally);
    match ended {
        Ok(()) => tracing::debug!(session = id, %client, "disconnected"),
        Err(error) => tracing::info!(session = id, %client, %error, "disconnected"),
    }
}

async fn converse(
    cx: &Arc<Context>,
    id: &str,
    mut wire: Wire,
    seat: Seat,
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
    let mut session = Session::new(cx.terms(wire.peer().ip()), wire.is_secured());
    match cx.turn_away(wire.peer().ip()).await {
        None => session.greet(early, &mut wire.output),
        Some(refusal) => {
            let client = wire.peer();
            tracing::info!(session = id, %client, reply = %refusal, "client turned away");
            session.bid_farewell(&refusal, &mut wire.output);
        }
    }
    let lasts = cx.rules.limits.session_time;
    let is_limited = !lasts.is_zero() && cx.limits(wire.peer().ip());
    let ends = is_limited.then(|| Instant::now().checked_add(lasts)).flatten();
    let mut conversation = Conversation {
        cx,
        id: id.to_owned(),
        wire,
        seat,
        name: None,
        session,
        transaction: None,
        incoming: None,
        answered: None,
        told_again: None,
        ends,
        client,
        tally,
    };
    let ended = conversation.run().await;
    conversation.note_unheard(ended.is_ok());
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
                Event::Mail(_) if !self.may_send() => {
                    Reply::new(450, (7, 0), "Too many messages from your address, try again later")
                }
                Event::Mail(mail) => {
                    self.transaction = Some(Transaction::new(mail));
                    self.tally.mail.add(true);
                    Reply::new(250, (1, 0), "Sender ok")
                }
                Event::Rcpt(rcpt) => {
                    // An owner may take its time; what is answered already must not wait for it.
                    self.wire.flush().await?;
                    let reply = self.rcpt(rcpt).await;
                    self.tally.rcpt.answered(&reply);
                    reply
                }
                Event::Data => self.begin_data(),
                Event::Body(octets) => {
                    self.keep(octets).await;
                    continue;
                }
                Event::EndOfData { flawed } => {
                    let replies = self.end_of_data(flawed).await;
                    replies.first().into_iter().for_each(|reply| self.tally.data.answered(reply));
                    self.session.answer_each(&replies, &mut self.wire.output);
                    continue;
                }
                Event::Xclient(told) => match self.believe(&told) {
                    Some(refusal) => refusal,
                    None => continue,
                },
                Event::Reset => {
                    self.wire.deadlines.until = None;
                    self.incoming = None;
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
        incoming.hashing.add(&octets);
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
        let ends = self.ends.filter(|_| !in_data);
        let over = async {
            match ends {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let heard = {
            let Self { wire, session, transaction, cx, .. } = self;
            let (mut over, mut driving) = (pin!(over), pin!(wire.drive(session)));
            loop {
                let keeps = transaction.as_mut().filter(|transaction| transaction.keeps_any());
                let keeps = keeps.map(|transaction| transaction.give_back(cx)).is_some();
                tokio::select! {
                    biased;
                    // First, so that no client can talk on and on.
                    () = stop.cancelled() => {
                        break Err("Service is restarting, please connect again");
                    }
                    () = &mut over => break Err("Long enough, please connect again"),
                    driven = &mut driving => break Ok(driven),
                    () = sleep(LOOK_EVERY), if keeps => {}
                }
            }
        };
        let driven = match heard {
            Ok(driven) => driven,
            Err(farewell) => {
                let reply = Reply::new(421, (3, 2), farewell);
                self.session.bid_farewell(&reply, &mut self.wire.output);
                return self.wire.flush().await.map(|()| None);
            }
        };
        if matches!(driven, Err(WireError::Deadline)) {
            let reply = Reply::new(421, (4, 2), "Timeout, closing the connection");
            self.session.bid_farewell(&reply, &mut self.wire.output);
            let _ = self.wire.flush().await;
        }
        if matches!(driven, Err(WireError::Tls(_))) && !self.wire.is_secured() {
            let now = std::time::Instant::now();
            self.cx.edge.note_failed_handshake(self.wire.peer().ip(), now);
        }
        driven
    }

    /// Counts a message of this client's.
    fn may_send(&self) -> bool {
        let client = self.wire.peer().ip();
        !self.cx.limits(client) || self.cx.edge.may_send(client, std::time::Instant::now())
    }

    /// What a client hears of a recipient that was refused: the more there are, the later, and at last that
    /// these are enough.
    async fn refused(&self, reply: Reply) -> Reply {
        let client = self.wire.peer().ip();
        if reply.class() != Class::Permanent || !self.cx.limits(client) {
            return reply;
        }
        let Guessed { delay, is_over } =
            self.cx.edge.note_refused(client, std::time::Instant::now());
        self.cx.lifecycle.stop().run_until_cancelled(sleep(delay)).await;
        if is_over {
            tracing::warn!(session = self.id, %client, "too many unknown recipients from this address");
            return Reply::new(421, (7, 0), "Too many unknown recipients from your address");
        }
        reply
    }

    async fn rcpt(&mut self, rcpt: Rcpt) -> Reply {
        let Some(mut transaction) = self.transaction.take() else {
            return Reply::new(503, (5, 1), "Say MAIL first");
        };
        let began = Instant::now();
        let introduction = self.introduction();
        let answer = transaction.add(self.cx, &introduction, rcpt).await;
        if answer.reply.class() != Class::Accepted {
            self.record_refusal(&transaction.mail().from, &answer, began);
        }
        self.transaction = Some(transaction);
        self.refused(answer.reply).await
    }

    /// Takes the client for the one that a trusted peer names, from now on and for everything. It has a
    /// place among the connections of its own address then, or is refused.
    fn believe(&mut self, told: &Told) -> Option<Reply> {
        let (peer, local) = (self.wire.peer(), self.wire.local());
        let client = told_address(told.client_ip, told.client_port, peer);
        if self.seat.move_to(network(client.ip())).is_err() {
            return Some(Reply::new(421, (7, 0), "Too many connections from your address"));
        }
        self.wire.speak_for(client, told_address(told.local_ip, told.local_port, local));
        self.name.clone_from(&told.name);
        let (session, client) = (&self.id, self.wire.peer());
        tracing::debug!(session, %peer, %client, name = told.name.as_deref(), "the client is another");
        let trusted = self.cx.rules.is_trusted(client.ip());
        self.session.begin_anew(trusted, &mut self.wire.output);
        None
    }

    fn begin_data(&mut self) -> Reply {
        let limits = Limits {
            max_size: self.cx.rules.max_message_size,
            in_memory: self.cx.rules.memory_per_message,
            memory: Arc::clone(&self.cx.memory),
            directory: self.cx.temporary.clone(),
        };
        self.wire.deadlines.until = Instant::now().checked_add(LONGEST_DATA);
        let (body, loops, hashing) = (Body::new(limits), Box::default(), Hashing::default());
        self.incoming = Some(Incoming { body, loops, hashing, began: Instant::now() });
        Reply::bare(354, "End data with <CR><LF>.<CR><LF>")
    }

    /// The reply for the message, or with LMTP those for its recipients; a refusal of ours stands for all.
    async fn end_of_data(&mut self, flawed: bool) -> Vec<Reply> {
        self.wire.deadlines.until = None;
        let (Some(transaction), Some(incoming)) = (self.transaction.take(), self.incoming.take())
        else {
            return vec![Reply::new(503, (5, 1), "Say MAIL first")];
        };
        let Incoming { body, loops, hashing, began } = incoming;
        let refusal = match (flawed, body.finish()) {
            (true, _) => Reply::new(550, (6, 0), "Lone CR, or LF before a dot, in the message"),
            (false, Err(Fault::TooLarge)) => Reply::new(552, (3, 4), "Message too large"),
            (false, Err(Fault::Storage)) => Reply::new(452, (3, 1), "Cannot keep the message now"),
            (false, Ok(_)) if loops.received() > self.cx.rules.max_received => {
                Reply::new(554, (4, 6), "Too many hops, the message loops")
            }
            (false, Ok(message)) => {
                let before = self.hops().count(loops.hops());
                match hop::refusal(before, self.cx.kind) {
                    Some(refusal) => refusal,
                    None => {
                        let (content, took) = (hashing.finish(), began.elapsed());
                        let heard = Heard { loops: &loops, before, content, took };
                        return self.deliver(transaction, message, heard).await;
                    }
                }
            }
        };
        let (client, from) = (self.wire.peer(), &transaction.mail().from);
        let loops = refusal.enhanced().is_some_and(|code| (code.subject, code.detail) == (4, 6));
        if loops && self.cx.kind == MxKind::Internal {
            // A mail system of ours takes another one, or us, for an account's owner.
            tracing::error!(session = self.id, %client, %from, reply = %refusal, "message loops");
        } else {
            tracing::info!(session = self.id, %client, %from, reply = %refusal, "message refused");
        }
        self.cx.mail_log.rejected(
            &self.client,
            &self.named("END-OF-MESSAGE", from, None),
            &refusal,
        );
        transaction.abandon(self.cx).await;
        vec![refusal]
    }

    /// Finds out about the sender, delivers, and waits for the reply.
    async fn deliver(
        &mut self,
        transaction: Transaction,
        message: Message,
        heard: Heard<'_>,
    ) -> Vec<Reply> {
        let uuid = uuid::Uuid::now_v7();
        let id: Box<str> = uuid.simple().to_string().into();
        let from = transaction.mail().from.clone();
        let print = |to| Fingerprint::new(&from, to, &heard.content);
        let prints: Vec<_> = transaction.addresses().map(print).collect();
        // This one comes after what was said to the one before.
        self.forget_what_was_heard(true);
        let seen = self.cx.fingerprints.look_up(&prints);
        if let Some(replies) = self.repeated(&transaction, (&id, &message), &heard, &seen) {
            transaction.abandon(self.cx).await;
            self.note_told(&prints, &seen, &replies);
            return replies;
        }
        let trace = self.trace(&transaction, &message, &id, heard.before);
        let receipt = Receipt::new(&self.cx.fingerprints, uuid, &prints);
        let looking = Box::pin(self.authenticated(&transaction, trace, &message, &id));
        let looked_at = self.watched(&receipt, looking).await;
        let (header, message, may_report) = match looked_at {
            Ok(authenticated) => authenticated,
            Err(refusal) => {
                let named = self.named("END-OF-MESSAGE", &from, None);
                self.cx.mail_log.rejected(&self.client, &named, &refusal);
                transaction.abandon(self.cx).await;
                return vec![refusal];
            }
        };
        let (message_id, recipients) = (heard.loops.message_id(), transaction.recipients());
        let (log, octets) = (&self.cx.mail_log, message.octets());
        log.received(&self.client, &id, message_id.as_deref(), &from, octets, recipients);
        let letter = Arc::new(Letter {
            header: with_fields(&header, &heard.content.field()),
            id,
            mail: transaction.mail().clone(),
            introduction: self.introduction(),
            message,
        });
        let origin = Origin {
            session: self.id.as_str().into(),
            client: self.wire.peer(),
            each: self.session.protocol() == Protocol::Lmtp,
            may_report,
            took: heard.took,
        };
        let (each, accepted) = (origin.each, transaction.accepted().to_vec());
        let replies = transaction.deliver(self.cx, &letter, origin, (&seen, &receipt));
        let replies = self.replies(receipt, replies).await;
        let lost = || Reply::new(451, (3, 0), "Internal error, try again later");
        let of = |place: usize| replies.get(place).cloned().unwrap_or_else(lost);
        let replies = if each { accepted.into_iter().map(of).collect() } else { vec![of(0)] };
        self.note_told(&prints, &seen, &replies);
        replies
    }

    /// Finds out about the sender: the header, what is delivered behind it, and whether the sender may be told
    /// of a failure; or a refusal.
    async fn authenticated(
        &self,
        transaction: &Transaction,
        trace: String,
        message: &Message,
        id: &str,
    ) -> Result<(String, Message, bool), Reply> {
        let Some(authenticator) = &self.cx.authenticator else {
            // Mail systems of ours are told of failures, strangers are not.
            return Ok((trace, message.clone(), self.cx.kind == MxKind::Internal));
        };
        let (client, from) = (self.wire.peer(), &transaction.mail().from);
        let helo = self.session.helo().map_or("", |helo| &helo.name);
        let recipients = transaction.domains();
        let subject = Subject { client: client.ip(), helo, from, recipients, message };
        let findings = authenticator.examine(subject).await;
        let passed = findings.sender == Standing::Passed;
        let (session, auth, policy) = (&self.id, &findings.summary, findings.policy.as_str());
        tracing::info!(session, id, %client, %from, auth, policy, "sender looked at");
        match &findings.policy {
            Policy::Reject(reply) => Err(reply.clone()),
            Policy::Deliver | Policy::Quarantine => match findings.apply(&trace, message).await {
                Ok((header, message)) => Ok((header, message, passed)),
                Err(_) => Err(Reply::new(452, (3, 1), "Cannot keep the message now")),
            },
        }
    }

    fn hops(&self) -> Hops {
        Hops::of_database(&self.cx.ownership.database())
    }

    fn trace(&self, transaction: &Transaction, message: &Message, id: &str, hops: u32) -> String {
        let helo = self
            .session
            .helo()
            .cloned()
            .unwrap_or(crate::session::Helo { name: "unknown".into(), extended: false });
        Trace {
            helo: &helo,
            client: self.wire.peer(),
            name: self.name.as_deref(),
            protocol: self.session.protocol(),
            smtputf8: transaction.mail().smtputf8,
            by: self.cx.rules.hostname.as_str(),
            tls: self.wire.tls_description().map(|tls| tls.to_string()),
            id,
            only_recipient: transaction.only_recipient().map(Address::to_string),
            at: OffsetDateTime::now_utc(),
            first_octet: message.first_octet(),
            hop: &self.hops().field(hops, self.cx.rules.hostname.as_str()),
        }
        .header()
    }

    /// A recipient that was refused when it was named.
    fn record_refusal(&self, from: &ReversePath, answer: &Answer, began: Instant) {
        let (session, client) = (&self.id, self.wire.peer());
        let to = answer.to.as_ref().map(Address::to_string).unwrap_or_default();
        let named = self.named("RCPT", from, answer.to.as_ref().map(|_| &*to));
        self.cx.mail_log.rejected(&self.client, &named, &answer.reply);
        let (account, owner, epoch) = place_of(answer.owner.as_ref());
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

    /// What was refused, for the log in Postfix' words.
    fn named<'b>(
        &'b self,
        command: &'b str,
        from: &'b ReversePath,
        to: Option<&'b str>,
    ) -> Named<'b> {
        let helo = self.session.helo();
        let protocol = match (self.session.protocol(), helo.is_some_and(|helo| helo.extended)) {
            (Protocol::Lmtp, _) => "LMTP",
            (Protocol::Smtp, true) => "ESMTP",
            (Protocol::Smtp, false) => "SMTP",
        };
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
            session: self.id.as_str().into(),
        }
    }
}

/// What is told of an address, or what was there before. A port without its address is nobody's.
fn told_address(ip: Option<IpAddr>, port: Option<u16>, before: SocketAddr) -> SocketAddr {
    match ip {
        Some(ip) => SocketAddr::new(ip, port.unwrap_or_default()),
        None => before,
    }
}
