//! POP3 before login (RFC 1939 §4, RFC 2449, RFC 2595 §4, RFC 5034), as a pure state machine.
//!
//! USER with PASS, and AUTH, become an event; CAPA, STLS, NOOP and QUIT are answered here, and nothing
//! else is known. After login nothing of this file is involved any more.

use shared::credentials::{Credentials, Secret};
use shared::dialogue::{Dialogue, Input, Line, Output, Step, Violation};
use shared::sasl::{Mechanism, encode_base64};

use super::forwarded;
use super::sasl::{self, Exchange, Turn};
use super::{Event, Front, MAX_BAD_COMMANDS, Terms, Told};
use crate::backend::Welcome;
use crate::refusal::{Farewell, Refusal};

/// A POP3 client that has not logged in.
#[derive(Debug)]
pub struct Pop3Front {
    terms: Terms,
    state: State,
    /// From USER, for the next PASS.
    name: Option<Box<[u8]>>,
    bad_commands: u32,
    told: Told,
}

#[derive(Debug)]
enum State {
    /// Between commands.
    Command,
    /// AUTH waits for a response.
    Sasl(Exchange),
    /// Credentials were given; the driver has not answered yet.
    Answer,
}

impl Pop3Front {
    /// A client that has just connected.
    pub fn new(terms: Terms) -> Self {
        let told = Told::default();
        Self { terms, state: State::Command, name: None, bad_commands: 0, told }
    }

    fn command(&mut self, line: &Line, out: &mut Output) -> Result<Option<Step<Event>>, Violation> {
        let (verb, argument) = line.split_verb();
        if self.terms.trusted && verb.eq_ignore_ascii_case(b"XCLIENT") {
            self.told.forwarded = forwarded::of_xclient(argument).map(Box::new);
            answer(out, "+OK Updated");
            return Ok(None);
        }
        // Every command has four letters; what else stands there may be a password, which is not copied.
        let verb = <[u8; 4]>::try_from(verb).unwrap_or_default();
        match (&verb.map(|letter| letter.to_ascii_uppercase()), argument) {
            (b"USER", name) => return self.user(name, out).map(|()| None),
            (b"PASS", password) => return self.pass(password, out),
            (b"AUTH", b"") => {
                let usable = self.terms.usable().iter();
                list(out, "Mechanisms follow.", usable.map(Mechanism::as_str));
            }
            (b"AUTH", argument) => return self.auth(argument, out),
            (b"CAPA", _) => self.capabilities(out),
            (b"NOOP", _) => answer(out, "+OK"),
            (b"STLS", b"") if self.terms.offers_tls() => {
                answer(out, "+OK Begin TLS negotiation now.");
                return Ok(Some(Step::StartTls));
            }
            (b"STLS", _) => {
                answer(out, "-ERR TLS is already active or not to be had.");
                return self.bad(out).map(|()| None);
            }
            (b"QUIT", _) => {
                answer(out, "+OK Logging out.");
                return Ok(Some(Step::Close));
            }
            // APOP needs what no backend can be given; UTF8 and LANG (RFC 6856) would have to be said again
            // to a backend, and many refuse them.
            _ => {
                answer(out, "-ERR Not a command before login.");
                return self.bad(out).map(|()| None);
            }
        }
        Ok(None)
    }

    /// What every backend has, and what this connection allows. After login the client's own backend
    /// answers CAPA.
    fn capabilities(&self, out: &mut Output) {
        let usable = self.terms.usable();
        let mut lines: Vec<&str> = self.terms.capabilities.iter().map(|line| &**line).collect();
        if self.terms.offers_tls() {
            lines.push("STLS");
        }
        if usable.contains(Mechanism::Plain) {
            lines.push("USER");
        }
        let mut sasl = String::from("SASL");
        for mechanism in usable.iter() {
            sasl.push(' ');
            sasl.push_str(mechanism.as_str());
        }
        if !usable.is_empty() {
            lines.push(&sasl);
        }
        list(out, "Capability list follows.", lines.into_iter());
    }

    /// The name is everything behind the first space, spaces included. Where no password may be sent, that
    /// is said before the client sends it.
    fn user(&mut self, name: &[u8], out: &mut Output) -> Result<(), Violation> {
        if !self.terms.takes_passwords() {
            self.refuse_plaintext(out);
        } else if name.is_empty() || name.contains(&0) {
            answer(out, "-ERR A name belongs behind USER.");
            return self.bad(out);
        } else {
            self.name = Some(name.into());
            answer(out, "+OK");
        }
        Ok(())
    }

    /// The password is everything behind the first space, spaces included. An empty one is wrong
    /// everywhere, and some servers' directories take it for an anonymous login; so no backend is asked.
    fn pass(
        &mut self,
        password: &[u8],
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        if !self.terms.takes_passwords() {
            self.refuse_plaintext(out);
            return Ok(None);
        }
        let Some(name) = self.name.take() else {
            answer(out, "-ERR USER comes first.");
            return self.bad(out).map(|()| None);
        };
        if password.is_empty() || password.contains(&0) {
            answer(out, refusal_words(Refusal::BadCredentials));
            return self.bad(out).map(|()| None);
        }
        self.state = State::Answer;
        let credentials = Credentials::new(&name, Secret::new(password.to_vec()));
        Ok(Some(Step::Event(Event::Credentials(credentials))))
    }

    /// RFC 5034 §4.
    fn auth(
        &mut self,
        argument: &[u8],
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let mut parts = argument.splitn(2, |octet| *octet == b' ');
        let mechanism = parts.next().unwrap_or_default();
        let initial = parts.next().filter(|initial| !initial.is_empty());
        let Some(mechanism) = self.terms.mechanism(mechanism) else {
            answer(out, "-ERR Unsupported authentication mechanism.");
            return self.bad(out).map(|()| None);
        };
        if mechanism.is_cleartext() && !self.terms.takes_passwords() {
            self.refuse_plaintext(out);
            return Ok(None);
        }
        self.name = None;
        self.turn(Exchange::begin(mechanism, initial), out)
    }

    fn turn(&mut self, turn: Turn, out: &mut Output) -> Result<Option<Step<Event>>, Violation> {
        match turn {
            Turn::Ask(exchange, challenge) => {
                // With the space: some clients do not take a bare "+".
                answer(out, &format!("+ {challenge}"));
                self.state = State::Sasl(exchange);
                Ok(None)
            }
            Turn::Event(event) => {
                self.state = State::Answer;
                Ok(Some(Step::Event(event)))
            }
            Turn::Cancelled => {
                answer(out, refusal_words(Refusal::Cancelled));
                self.bad(out).map(|()| None)
            }
            Turn::Malformed => {
                answer(out, "-ERR [AUTH] Invalid SASL response.");
                self.bad(out).map(|()| None)
            }
        }
    }

    /// One line, if it is there.
    fn take_in(
        &mut self,
        input: &mut Input,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let line =
            input.line(sasl::MAX_LINE).inspect_err(|_| answer(out, "-ERR Line too long."))?;
        let Some(line) = line else { return Ok(Some(Step::NeedInput)) };
        match std::mem::replace(&mut self.state, State::Command) {
            State::Sasl(exchange) => self.turn(exchange.respond(line.octets()), out),
            State::Command | State::Answer => self.command(&line, out),
        }
    }

    fn refuse_plaintext(&self, out: &mut Output) {
        let how = if self.terms.starttls { "use STLS first" } else { "use the TLS port" };
        answer(out, &format!("-ERR [AUTH] No passwords in the clear, {how}."));
    }

    /// Counts a wrong command.
    fn bad(&mut self, out: &mut Output) -> Result<(), Violation> {
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands < MAX_BAD_COMMANDS {
            return Ok(());
        }
        answer(out, "-ERR Too many wrong commands.");
        Err(Violation::TooManyBadCommands { count: self.bad_commands })
    }
}

impl Dialogue for Pop3Front {
    type Event = Event;

    fn step(&mut self, input: &mut Input, output: &mut Output) -> Result<Step<Event>, Violation> {
        super::steps(output, |output| self.take_in(input, output))
    }

    fn secured(&mut self, _: &mut Output) {
        let terms = Terms { secured: true, ..self.terms.clone() };
        let bad_commands = self.bad_commands;
        *self = Self { bad_commands, ..Self::new(terms) };
    }
}

impl Front for Pop3Front {
    /// Without a timestamp in angle brackets, so that nobody tries APOP.
    fn greet(&mut self, out: &mut Output) {
        // Who may say for whom it speaks is told so, as Dovecot does it.
        let xclient = if self.terms.trusted { "[XCLIENT] " } else { "" };
        answer(out, &format!("+OK {xclient}{} ready.", self.terms.hostname));
    }

    fn challenge(&mut self, challenge: &[u8], out: &mut Output) {
        out.push("+ ");
        out.push(encode_base64(challenge).expose());
        out.push("\r\n");
        self.state = State::Sasl(Exchange::Challenged);
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Output) {
        // A client that was asked something may be refused before it has answered.
        self.state = State::Command;
        answer(out, refusal_words(refusal));
    }

    fn reject(&mut self, reason: &str, out: &mut Output) {
        self.state = State::Command;
        answer(out, &format!("-ERR [AUTH] {reason}"));
    }

    fn welcome(&mut self, _: &Welcome, out: &mut Output) {
        self.state = State::Command;
        answer(out, "+OK Logged in.");
    }

    fn bid_farewell(&mut self, farewell: Farewell, out: &mut Output) {
        out.push(farewell_words(farewell));
    }

    fn told(&self) -> &Told {
        &self.told
    }
}

/// RFC 3206, RFC 2449 §8.
fn refusal_words(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::BadCredentials => "-ERR [AUTH] Authentication failed.",
        Refusal::Unavailable => {
            "-ERR [SYS/TEMP] Account is temporarily unavailable. Please try again later."
        }
        Refusal::TooManySessions => {
            "-ERR [IN-USE] The mailbox is locked, or has too many connections."
        }
        Refusal::Misconfigured => {
            "-ERR [SYS/PERM] Logins do not work at the moment. Please tell your administrator."
        }
        Refusal::NeedsTls => "-ERR [AUTH] No passwords in the clear.",
        Refusal::Cancelled => "-ERR Authentication exchange cancelled.",
        Refusal::TooManyGuesses => {
            "-ERR [SYS/TEMP] Too many failed logins from your address. Please try again later."
        }
    }
}

/// The last line of a connection.
pub fn farewell_words(farewell: Farewell) -> &'static str {
    match farewell {
        Farewell::ShuttingDown => "-ERR [SYS/TEMP] Server is restarting, please connect again.\r\n",
        Farewell::TooSlow => "-ERR Disconnected for inactivity during login.\r\n",
        Farewell::TooManyFailures => "-ERR Too many failed logins.\r\n",
        Farewell::TooManyConnections => {
            "-ERR [SYS/TEMP] Too many connections, try again later.\r\n"
        }
    }
}

/// A multi-line answer (RFC 1939 §3).
fn list<'a>(out: &mut Output, what: &str, lines: impl Iterator<Item = &'a str>) {
    answer(out, &format!("+OK {what}"));
    lines.for_each(|line| answer(out, line));
    answer(out, ".");
}

fn answer(out: &mut Output, words: &str) {
    out.push(words);
    out.push("\r\n");
}

#[cfg(test)]
mod tests;
