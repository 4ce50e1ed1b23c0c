//! The SMTP server (RFC 5321 §4.1, §4.3) as a pure state machine.
//!
//! Order of commands, what is offered and the end of data are decided here. Who a recipient belongs to
//! and what becomes of the message are [`Event`]s: the driver answers each before the next command is
//! looked at, so pipelined commands (RFC 2920) are answered in their order by construction.

use shared::dialogue::{Dialogue, Input, LineEnding, Output, Step, Violation};
use shared::smtp::command::{self, Command, MAX_LINE, Mail, Rcpt};
use shared::smtp::data::DataDecoder;
use shared::smtp::parameters::Takes;
use shared::smtp::reply::{Class, Reply};

/// Wrong commands before a client is sent away.
const MAX_BAD_COMMANDS: u32 = 20;
/// Commands between two messages that lead to none, such as NOOP and RSET, before more of them count as
/// wrong ones.
const MAX_SMALL_TALK: u32 = 100;
/// Recipients that were refused before a client is sent away: it is guessing.
const MAX_REFUSED_RECIPIENTS: u32 = 100;
/// The first octet of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// Most octets of data that are handed on at once.
const CHUNK: usize = 64 * 1024;

/// What a session offers and allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Our name.
    pub hostname: Box<str>,
    /// Largest message in octets (RFC 1870).
    pub max_size: u64,
    /// STARTTLS is to be had.
    pub starttls: bool,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    secured: bool,
    helo: Option<Helo>,
    state: State,
    bad_commands: u32,
    small_talk: u32,
    refused_recipients: u32,
}

/// How a client introduced itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helo {
    /// The name it gave.
    pub name: Box<str>,
    /// By EHLO: it knows extensions.
    pub extended: bool,
}

/// What the driver has to answer with [`Session::answer`], [`Event::Body`] and [`Event::Reset`] apart.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// MAIL: begin a transaction.
    Mail(Mail),
    /// RCPT: may it be delivered?
    Rcpt(Rcpt),
    /// DATA: 354, or why not.
    Data,
    /// Some of the message, dots removed. Nothing is answered.
    Body(Vec<u8>),
    /// The message is whole: deliver it. A flawed one is refused, and the session ends.
    EndOfData {
        /// It holds what another server could take for the end of data.
        flawed: bool,
    },
    /// The transaction is over without a message. Nothing is answered.
    Reset,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// No transaction.
    Idle,
    /// MAIL was accepted, and these recipients were named.
    Open(Named),
    /// After 354.
    Data(DataDecoder),
    /// An event waits for its answer.
    Asked(Asked),
    /// The session has ended for its client.
    Closing,
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Mail,
    Rcpt(Named),
    Data(Named),
    EndOfData { flawed: bool },
}

/// The recipients of a transaction so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Named {
    accepted: usize,
    /// One was refused for now, so the transaction must not fail for good.
    postponed: bool,
}

impl Named {
    fn and(self, reply: &Reply) -> Self {
        let accepted = usize::from(reply.class() == Class::Accepted);
        Self {
            accepted: self.accepted.saturating_add(accepted),
            postponed: self.postponed || reply.class() == Class::Temporary,
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
            state: State::Idle,
            bad_commands: 0,
            small_talk: 0,
            refused_recipients: 0,
        }
    }

    /// Queues the greeting. A client that was `early`, which is to say spoke before it, does not wait for
    /// answers, whatever it is told; so its session ends (RFC 5321 §4.3.1).
    pub fn greet(&mut self, early: bool, out: &mut Output) {
        if early {
            self.bid_farewell(&Reply::new(554, (5, 0), "Wait for the greeting"), out);
        } else {
            say(out, &Reply::bare(220, format!("{} ESMTP", self.terms.hostname)));
        }
    }

    /// How the client introduced itself last.
    pub fn helo(&self) -> Option<&Helo> {
        self.helo.as_ref()
    }

    /// True while message data is being received.
    pub fn is_in_data(&self) -> bool {
        matches!(self.state, State::Data(_))
    }

    /// Ends the session at the next turn, in the protocol's words (RFC 5321 §3.8).
    pub fn bid_farewell(&mut self, reply: &Reply, out: &mut Output) {
        say(out, reply);
        self.state = State::Closing;
    }

    /// Answers the event that was asked last.
    pub fn answer(&mut self, reply: &Reply, out: &mut Output) {
        let accepted = match (&self.state, reply.class()) {
            (State::Asked(Asked::Data(_)), Class::GoOn) => true,
            (State::Asked(Asked::Data(_)), _) => false,
            (_, class) => class == Class::Accepted,
        };
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Asked(Asked::Mail) if accepted => State::Open(Named::default()),
            State::Asked(Asked::Rcpt(named)) => {
                let refused = u32::from(reply.class() == Class::Permanent);
                self.refused_recipients = self.refused_recipients.saturating_add(refused);
                State::Open(named.and(reply))
            }
            State::Asked(Asked::Data(_)) if accepted => State::Data(DataDecoder::default()),
            State::Asked(Asked::Data(named)) => State::Open(named),
            State::Asked(Asked::EndOfData { flawed: true }) => State::Closing,
            State::Asked(Asked::EndOfData { flawed: false }) => {
                self.small_talk = 0;
                State::Idle
            }
            State::Asked(Asked::Mail) => State::Idle,
            // Answered without being asked: nothing is said.
            other => {
                self.state = other;
                return;
            }
        };
        say(out, reply);
        if reply.code() == 421 {
            self.state = State::Closing;
        } else if self.refused_recipients >= MAX_REFUSED_RECIPIENTS {
            self.bid_farewell(&Reply::new(421, (7, 0), "Too many unknown recipients"), out);
        }
    }

    /// The parameters that may be given now.
    fn takes(&self) -> Takes {
        Takes { size: true, eight_bit: true, smtputf8: false, dsn: false }
    }

    fn command(
        &mut self,
        line: &[u8],
        input: &Input,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let command = match command::parse(line, self.takes()) {
            Ok(command) => command,
            Err(refusal) => return self.bad(&refusal, line, out).map(|()| None),
        };
        if is_small_talk(&command) && !self.ends_postponed(&command) {
            self.small_talk = self.small_talk.saturating_add(1);
            if self.small_talk > MAX_SMALL_TALK {
                let refusal = Reply::new(450, (7, 0), "Too many commands without a message");
                return self.bad(&refusal, line, out).map(|()| None);
            }
        }
        match command {
            Command::Ehlo(name) => {
                self.introduce(Helo { name, extended: true }, out);
                return Ok(Some(Step::Event(Event::Reset)));
            }
            Command::Helo(name) => {
                self.introduce(Helo { name, extended: false }, out);
                return Ok(Some(Step::Event(Event::Reset)));
            }
            Command::Mail(mail) => return self.mail(mail, out),
            Command::Rcpt(to) => return self.rcpt(to, out),
            Command::Data => return self.data(input, out),
            Command::Rset => {
                self.state = State::Idle;
                say(out, &Reply::new(250, (0, 0), "Ok"));
                return Ok(Some(Step::Event(Event::Reset)));
            }
            Command::Noop => say(out, &Reply::new(250, (0, 0), "Ok")),
            Command::Vrfy => say(out, &Reply::new(252, (0, 0), "Send it and see")),
            Command::Help => say(out, &Reply::new(214, (0, 0), "RFC 5321")),
            Command::Bdat => {
                // What follows is a piece of a message, and a message must never be read as commands.
                self.bid_farewell(&Reply::new(502, (5, 1), "CHUNKING is not offered"), out);
                return Ok(Some(Step::Close));
            }
            Command::Quit => {
                say(out, &Reply::new(221, (0, 0), "Bye"));
                self.state = State::Closing;
                return Ok(Some(Step::Close));
            }
            Command::StartTls if self.terms.starttls && !self.secured => {
                if input.is_empty() {
                    say(out, &Reply::new(220, (0, 0), "Go ahead"));
                }
                // With more behind it, the wire ends the connection: that is an injection (RFC 3207).
                return Ok(Some(Step::StartTls));
            }
            Command::StartTls => {
                let refusal = Reply::new(503, (5, 1), "TLS is already active or not to be had");
                return self.bad(&refusal, line, out).map(|()| None);
            }
        }
        Ok(None)
    }

    /// EHLO and HELO end a transaction, too (RFC 5321 §4.1.4).
    fn introduce(&mut self, helo: Helo, out: &mut Output) {
        let hostname = &self.terms.hostname;
        if helo.extended {
            let size = format!("SIZE {}", self.terms.max_size);
            let starttls = self.terms.starttls && !self.secured;
            let lines = [hostname.as_ref(), "PIPELINING", &size, "8BITMIME", "ENHANCEDSTATUSCODES"];
            let last = if starttls { "STARTTLS" } else { "ENHANCEDSTATUSCODES" };
            for line in lines.iter().filter(|line| **line != last) {
                out.push(format!("250-{line}\r\n"));
            }
            out.push(format!("250 {last}\r\n"));
        } else {
            say(out, &Reply::bare(250, hostname.clone()));
        }
        self.helo = Some(helo);
        self.state = State::Idle;
    }

    fn mail(&mut self, mail: Mail, out: &mut Output) -> Result<Option<Step<Event>>, Violation> {
        let refusal = match (&self.helo, &self.state) {
            (None, _) => Reply::new(503, (5, 1), "Say EHLO first"),
            (Some(_), State::Open(_)) => Reply::new(503, (5, 1), "Sender already given"),
            (Some(_), _) if mail.size.is_some_and(|size| size > self.terms.max_size) => {
                Reply::new(552, (3, 4), "Message too large")
            }
            (Some(_), _) => {
                self.state = State::Asked(Asked::Mail);
                return Ok(Some(Step::Event(Event::Mail(mail))));
            }
        };
        self.bad(&refusal, b"MAIL", out).map(|()| None)
    }

    fn rcpt(&mut self, to: Rcpt, out: &mut Output) -> Result<Option<Step<Event>>, Violation> {
        let State::Open(named) = self.state else {
            return self
                .bad(&Reply::new(503, (5, 1), "Say MAIL first"), b"RCPT", out)
                .map(|()| None);
        };
        self.state = State::Asked(Asked::Rcpt(named));
        Ok(Some(Step::Event(Event::Rcpt(to))))
    }

    fn data(&mut self, input: &Input, out: &mut Output) -> Result<Option<Step<Event>>, Violation> {
        let refusal = match self.state {
            State::Open(Named { accepted: 0, postponed: true }) => {
                // It may have been pipelined, and it is we who take none: no error of the client's.
                say(
                    out,
                    &Reply::new(451, (3, 0), "No recipient is taken for now, try again later"),
                );
                return Ok(None);
            }
            State::Open(Named { accepted: 0, postponed: false }) => {
                Reply::new(554, (5, 1), "No valid recipients")
            }
            State::Open(named) => {
                // Data before 354 (RFC 2920 §3.1): whatever it is, it was not meant as commands.
                if !input.is_empty() {
                    self.bid_farewell(&Reply::new(554, (5, 0), "Wait for 354"), out);
                    return Err(Violation::EarlyInput);
                }
                self.state = State::Asked(Asked::Data(named));
                return Ok(Some(Step::Event(Event::Data)));
            }
            State::Idle | State::Data(_) | State::Asked(_) | State::Closing => {
                Reply::new(503, (5, 1), "Say MAIL and RCPT first")
            }
        };
        self.bad(&refusal, b"DATA", out).map(|()| None)
    }

    /// Ends a transaction that we put off: there was a message, so this is no small talk.
    fn ends_postponed(&self, command: &Command) -> bool {
        matches!(command, Command::Rset | Command::Ehlo(_) | Command::Helo(_))
            && matches!(self.state, State::Open(Named { postponed: true, .. }))
    }

    /// Refuses a command, and after too many of them the client.
    fn bad(&mut self, refusal: &Reply, line: &[u8], out: &mut Output) -> Result<(), Violation> {
        if let Some(foreign) = command::foreign_word(line) {
            return self.foreign(foreign, out);
        }
        say(out, refusal);
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

    fn take_data(&mut self, input: &mut Input) -> Step<Event> {
        let State::Data(decoder) = &mut self.state else { return Step::NeedInput };
        if input.is_empty() {
            return Step::NeedInput;
        }
        let unread = input.unread();
        let chunk = unread.get(..CHUNK.min(unread.len())).unwrap_or_default();
        let mut content = Vec::with_capacity(chunk.len());
        let taken = decoder.decode(chunk, &mut content);
        let done = decoder.is_done().then(|| decoder.is_flawed());
        input.consume(taken);
        match done {
            // The rest of the content comes first, its end at the next step.
            Some(_) if !content.is_empty() => Step::Event(Event::Body(content)),
            Some(flawed) => self.end_of_data(flawed),
            None => Step::Event(Event::Body(content)),
        }
    }

    fn end_of_data(&mut self, flawed: bool) -> Step<Event> {
        self.state = State::Asked(Asked::EndOfData { flawed });
        Step::Event(Event::EndOfData { flawed })
    }
}

impl Dialogue for Session {
    type Event = Event;

    fn step(&mut self, input: &mut Input, output: &mut Output) -> Result<Step<Event>, Violation> {
        loop {
            match &self.state {
                State::Closing => return Ok(Step::Close),
                State::Data(decoder) if decoder.is_done() => {
                    let flawed = decoder.is_flawed();
                    return Ok(self.end_of_data(flawed));
                }
                State::Data(_) => return Ok(self.take_data(input)),
                // Whoever drives this answers first.
                State::Asked(_) => return Ok(Step::NeedInput),
                State::Idle | State::Open(_) => {}
            }
            // A client that reads nothing is asked to, before it hears more.
            if output.is_full() {
                return Ok(Step::NeedInput);
            }
            if self.helo.is_none() && input.unread().first() == Some(&TLS_HANDSHAKE) {
                return self.foreign("TLS", output);
            }
            let line = match input.line(MAX_LINE) {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(Step::NeedInput),
                Err(violation) => {
                    self.bid_farewell(&Reply::new(500, (5, 2), "Line too long"), output);
                    return Err(violation);
                }
            };
            // A lone LF ends no command (SMTP smuggling works by such leniency).
            if line.ending() == LineEnding::Lf {
                let refusal = Reply::new(500, (5, 2), "Lines end with CR LF");
                self.bad(&refusal, b"", output)?;
                continue;
            }
            if let Some(step) = self.command(line.octets(), input, output)? {
                return Ok(step);
            }
        }
    }

    fn secured(&mut self, _: &mut Output) {
        // Patience is not forgotten, or STARTTLS would renew it.
        let Self { bad_commands, small_talk, refused_recipients, .. } = *self;
        let forgetful = Self::new(self.terms.clone(), true);
        *self = Self { bad_commands, small_talk, refused_recipients, ..forgetful };
    }
}

/// Commands that may be repeated for ever without a message.
fn is_small_talk(command: &Command) -> bool {
    match command {
        Command::Ehlo(_)
        | Command::Helo(_)
        | Command::Rset
        | Command::Noop
        | Command::Vrfy
        | Command::Help => true,
        Command::Mail(_)
        | Command::Rcpt(_)
        | Command::Data
        | Command::Quit
        | Command::StartTls
        | Command::Bdat => false,
    }
}

fn say(out: &mut Output, reply: &Reply) {
    out.push(format!("{reply}\r\n"));
}

#[cfg(test)]
mod tests;
