//! The SMTP and LMTP server (RFC 5321 §4.1, §4.3, RFC 2033) as a pure state machine.
//!
//! Order of commands, what is offered and the end of data are decided here. Who a recipient belongs to
//! and what becomes of the message are [`Event`]s: the driver answers each before the next command is
//! looked at, so pipelined commands (RFC 2920) are answered in their order by construction.

mod chunks;
mod commands;

use shared::dialogue::{Dialogue, Input, LineEnding, Output, Step, Violation};
use shared::smtp::command::{self, MAX_LINE, Mail, Rcpt};
use shared::smtp::data::DataDecoder;
use shared::smtp::reply::{Class, Reply};
use shared::smtp::xclient::Told;

use self::chunks::{Chunks, Unwanted};

/// Wrong commands before a client is sent away.
const MAX_BAD_COMMANDS: u32 = 20;
/// Recipients that were refused before a client is sent away: it is guessing.
const MAX_REFUSED_RECIPIENTS: u32 = 100;
/// The first octet of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// Most octets of data that are handed on at once.
const PIECE: usize = 64 * 1024;

/// What a session offers and allows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is to be had or not by itself")]
pub struct Terms {
    /// Our name.
    pub hostname: Box<str>,
    /// What is spoken.
    pub protocol: Protocol,
    /// Largest message in octets (RFC 1870).
    pub max_size: u64,
    /// STARTTLS is to be had.
    pub starttls: bool,
    /// DSN (RFC 3461): every owner has it.
    pub dsn: bool,
    /// SMTPUTF8 (RFC 6531): every owner has it.
    pub smtputf8: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// The peer may tell who its clients are (XCLIENT).
    pub trusted: bool,
}

/// What is spoken with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// SMTP: one reply to a message.
    Smtp,
    /// LMTP: a reply for each recipient of a message (RFC 2033 §4.2).
    Lmtp,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    secured: bool,
    /// What the client said of itself, or a trusted peer of it.
    helo: Option<Helo>,
    /// Extensions were offered: it was EHLO or LHLO.
    extended: bool,
    /// What a trusted peer has told.
    told: Told,
    state: State,
    bad_commands: u32,
    small_talk: u32,
    refused_recipients: u32,
    /// Octets of chunks that nobody wanted, since the last message.
    unwanted: u64,
}

/// How a client introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helo {
    /// The name it gave.
    pub name: Box<str>,
    /// By EHLO or LHLO: it knows extensions.
    pub extended: bool,
}

/// What the driver has to answer with [`Session::answer`], [`Event::Body`] and [`Event::Reset`] apart.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// MAIL: begin a transaction.
    Mail(Mail),
    /// RCPT: may it be delivered?
    Rcpt(Rcpt),
    /// DATA or the first chunk: 354, or why not.
    Data,
    /// Some of the message, dots removed. Nothing is answered.
    Body(Vec<u8>),
    /// The message is whole: deliver it. A flawed one is refused, and the session ends. LMTP's answer is
    /// [`Session::answer_each`].
    EndOfData {
        /// It holds what another server could take for the end of data.
        flawed: bool,
    },
    /// The transaction is over without a message. Nothing is answered.
    Reset,
    /// A trusted peer has told who its client is; this is all that it has told. The answer is
    /// [`Session::begin_anew`], or a refusal.
    Xclient(Box<Told>),
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// No transaction.
    Idle,
    /// MAIL was accepted, and these recipients were named.
    Open(Named),
    /// After 354.
    Data(Named, DataDecoder),
    /// A message comes in chunks.
    Chunks(Chunks),
    /// A chunk was refused, which is the end of its transaction; more of its message may be under way.
    Failed(Named),
    /// A refused chunk is read to its end.
    Unwanted(Unwanted),
    /// An event waits for its answer.
    Asked(Asked),
    /// The session has ended for its client.
    Closing,
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Mail { smtputf8: bool },
    Rcpt(Named),
    Data(Named),
    Chunk(Named, command::Chunk),
    EndOfData { named: Named, flawed: bool },
    Xclient,
}

/// The recipients of a transaction so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Named {
    accepted: usize,
    /// One was refused for now, so the transaction must not fail for good.
    postponed: bool,
    /// MAIL said SMTPUTF8.
    smtputf8: bool,
}

impl Named {
    fn and(self, reply: &Reply) -> Self {
        let accepted = usize::from(reply.class() == Class::Accepted);
        Self {
            accepted: self.accepted.saturating_add(accepted),
            postponed: self.postponed || reply.class() == Class::Temporary,
            ..self
        }
    }
}

impl Session {
    /// A session with a client that has just connected.
    pub fn new(terms: Terms, secured: bool) -> Self {
        Self {
            terms,
            secured,
            helo: None,
            extended: false,
            told: Told::default(),
            state: State::Idle,
            bad_commands: 0,
            small_talk: 0,
            refused_recipients: 0,
            unwanted: 0,
        }
    }

    /// Queues the greeting. A client that was `early`, which is to say spoke before it, does not wait for
    /// answers, whatever it is told; so its session ends (RFC 5321 §4.3.1).
    pub fn greet(&mut self, early: bool, out: &mut Output) {
        if early {
            self.bid_farewell(&Reply::new(554, (5, 0), "Wait for the greeting"), out);
        } else {
            let protocol = match self.terms.protocol {
                Protocol::Smtp => "ESMTP",
                Protocol::Lmtp => "LMTP",
            };
            say(out, &Reply::bare(220, format!("{} {protocol}", self.terms.hostname)));
        }
    }

    /// How the client introduced itself last, or a trusted peer has introduced it.
    pub fn helo(&self) -> Option<&Helo> {
        self.helo.as_ref()
    }

    /// What is spoken.
    pub fn protocol(&self) -> Protocol {
        self.terms.protocol
    }

    /// True while a message is being received.
    pub fn is_in_data(&self) -> bool {
        matches!(self.state, State::Data(..) | State::Chunks(_))
    }

    /// Ends the session at the next turn, in the protocol's words (RFC 5321 §3.8).
    pub fn bid_farewell(&mut self, reply: &Reply, out: &mut Output) {
        say(out, reply);
        self.state = State::Closing;
    }

    /// Answers the event that was asked last. After a message, LMTP's client gets this reply for each of its
    /// recipients.
    pub fn answer(&mut self, reply: &Reply, out: &mut Output) {
        self.answer_each(std::slice::from_ref(reply), out);
    }

    /// Answers the end of data for each recipient, in the order in which they were accepted: one that was
    /// accepted twice counts twice (RFC 2033 §4.2). Where replies are missing, the last one stands for them
    /// too; SMTP's client gets the first one only.
    pub fn answer_each(&mut self, replies: &[Reply], out: &mut Output) {
        let nothing = Reply::new(451, (3, 0), "No verdict, try again later");
        let reply = replies.first().unwrap_or(&nothing);
        let asked = match std::mem::replace(&mut self.state, State::Idle) {
            State::Asked(asked) => asked,
            // Answered without being asked: nothing is said.
            other => {
                self.state = other;
                return;
            }
        };
        let accepted = reply.class() == Class::Accepted;
        let begins = reply.class() == Class::GoOn;
        let mut times = 1;
        self.state = match asked {
            Asked::Mail { smtputf8 } if accepted => {
                State::Open(Named { smtputf8, ..Named::default() })
            }
            Asked::Mail { .. } | Asked::Xclient => State::Idle,
            Asked::Rcpt(named) => {
                let refused = u32::from(reply.class() == Class::Permanent);
                self.refused_recipients = self.refused_recipients.saturating_add(refused);
                State::Open(named.and(reply))
            }
            Asked::Data(named) if begins => State::Data(named, DataDecoder::default()),
            Asked::Data(named) => State::Open(named),
            Asked::Chunk(named, chunk) if begins => {
                // A chunk is here already: it is not waited for.
                self.state = State::Chunks(Chunks::new(named, chunk));
                return;
            }
            Asked::Chunk(named, chunk) => {
                let then = State::Open(named);
                self.state = State::Unwanted(Unwanted::new(chunk, reply.clone(), then));
                return;
            }
            Asked::EndOfData { named, flawed } => {
                times = self.replies_to(named);
                (self.small_talk, self.unwanted) = (0, 0);
                if flawed { State::Closing } else { State::Idle }
            }
        };
        let each = replies.iter().chain(std::iter::repeat(replies.last().unwrap_or(&nothing)));
        for reply in each.take(times) {
            say(out, reply);
            if reply.code() == 421 {
                self.state = State::Closing;
            }
        }
        if self.refused_recipients >= MAX_REFUSED_RECIPIENTS {
            self.bid_farewell(&Reply::new(421, (7, 0), "Too many unknown recipients"), out);
        }
    }

    /// Answers [`Event::Xclient`]: who the client is, is believed, and the session begins anew.
    /// `trusted`: that client in turn may tell who its clients are.
    pub fn begin_anew(&mut self, trusted: bool, out: &mut Output) {
        self.terms.trusted = trusted;
        (self.helo, self.extended, self.state) = (None, false, State::Idle);
        self.greet(false, out);
    }

    /// How many replies the last octets of a message get.
    fn replies_to(&self, named: Named) -> usize {
        match self.terms.protocol {
            Protocol::Smtp => 1,
            Protocol::Lmtp => named.accepted,
        }
    }

    /// Refuses a command, and after too many of them the client.
    fn bad(&mut self, refusal: &Reply, line: &[u8], out: &mut Output) -> Result<(), Violation> {
        if let Some(foreign) = command::foreign_word(line) {
            return self.foreign(foreign, out);
        }
        say(out, refusal);
        // Whatever it is that follows, it was not meant as commands.
        if command::announces_chunk(line) {
            self.state = State::Closing;
            return Ok(());
        }
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands < MAX_BAD_COMMANDS {
            return Ok(());
        }
        self.bid_farewell(&Reply::new(421, (7, 0), "Too many errors"), out);
        Err(Violation::TooManyBadCommands { count: self.bad_commands })
    }

    fn foreign<T>(&mut self, words: &'static str, out: &mut Output) -> Result<T, Violation> {
        self.bid_farewell(&Reply::new(521, (5, 1), "This is SMTP"), out);
        Err(Violation::ForeignProtocol(words))
    }

    /// One line of a client between messages, up to what it leads to.
    fn take_line(
        &mut self,
        input: &mut Input,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        // A client that reads nothing is asked to, before it hears more.
        if out.is_full() {
            return Ok(Some(Step::NeedInput));
        }
        if self.helo.is_none() && input.unread().first() == Some(&TLS_HANDSHAKE) {
            return self.foreign("TLS", out);
        }
        let line = match input.line(MAX_LINE) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(Some(Step::NeedInput)),
            Err(violation) => {
                self.bid_farewell(&Reply::new(500, (5, 2), "Line too long"), out);
                return Err(violation);
            }
        };
        // A lone LF ends no command (SMTP smuggling works by such leniency).
        if line.ending() == LineEnding::Lf {
            let refusal = Reply::new(500, (5, 2), "Lines end with CR LF");
            let verb = line.octets().get(..4).filter(|_| command::announces_chunk(line.octets()));
            return self.bad(&refusal, verb.unwrap_or_default(), out).map(|()| None);
        }
        self.command(line.octets(), input, out)
    }

    fn take_data(&mut self, input: &mut Input) -> Step<Event> {
        let State::Data(named, decoder) = &mut self.state else { return Step::NeedInput };
        let mut content = Vec::new();
        if !decoder.is_done() {
            if input.is_empty() {
                return Step::NeedInput;
            }
            let unread = input.unread();
            let piece = unread.get(..PIECE.min(unread.len())).unwrap_or_default();
            content.reserve(piece.len());
            let taken = decoder.decode(piece, &mut content);
            input.consume(taken);
        }
        // The rest of the content comes first, its end at the next step.
        if !decoder.is_done() || !content.is_empty() {
            return Step::Event(Event::Body(content));
        }
        let (named, flawed) = (*named, decoder.is_flawed());
        self.end_of_data(named, flawed)
    }

    fn end_of_data(&mut self, named: Named, flawed: bool) -> Step<Event> {
        self.state = State::Asked(Asked::EndOfData { named, flawed });
        Step::Event(Event::EndOfData { flawed })
    }
}

impl Dialogue for Session {
    type Event = Event;

    fn step(&mut self, input: &mut Input, output: &mut Output) -> Result<Step<Event>, Violation> {
        loop {
            let step = match &self.state {
                State::Closing => return Ok(Step::Close),
                // Whoever drives this answers first.
                State::Asked(_) => return Ok(Step::NeedInput),
                State::Data(..) => return Ok(self.take_data(input)),
                State::Chunks(chunks) if chunks.is_within() => self.take_chunk(input, output),
                State::Unwanted(_) => self.take_unwanted(input, output)?,
                State::Idle | State::Open(_) | State::Chunks(_) | State::Failed(_) => {
                    self.take_line(input, output)?
                }
            };
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    fn secured(&mut self, _: &mut Output) {
        // Patience is not forgotten, or STARTTLS would renew it; nor is who the client is.
        let Self { bad_commands, small_talk, refused_recipients, unwanted, .. } = *self;
        let told = std::mem::take(&mut self.told);
        let forgetful = Self::new(self.terms.clone(), true);
        *self = Self { told, bad_commands, small_talk, refused_recipients, unwanted, ..forgetful };
    }
}

fn say(out: &mut Output, reply: &Reply) {
    out.push(format!("{reply}\r\n"));
}

#[cfg(test)]
mod tests;
