//! ManageSieve before login (RFC 5804), as a pure state machine.
//!
//! AUTHENTICATE becomes an event; CAPABILITY, NOOP, STARTTLS and LOGOUT are answered here, and whatever
//! needs a login is refused. After login nothing of this file is involved any more: a client that asks for
//! capabilities then is answered by its own backend.

use shared::credentials::Secret;
use shared::dialogue::{Dialogue, Input, Output, Step, Violation};
use shared::sasl::{Mechanism, encode_base64};

use super::forwarded;
use super::sasl::{Exchange, Turn};
use super::{Event, Front, MAX_BAD_COMMANDS, Terms, Told};
use crate::backend::Welcome;
use crate::managesieve::{Limits, MAX_QUOTED, Parsed, Speaker, Word, parse, push_string};
use crate::refusal::{Farewell, Refusal};

/// What a client may say at once: a SASL response of 16 KiB is a third longer in base64.
const LIMITS: Limits = Limits { quoted: MAX_QUOTED, literal: 22 * 1024, line: 24 * 1024 };

/// A ManageSieve client that has not logged in.
#[derive(Debug)]
pub struct ManageSieveFront {
    terms: Terms,
    state: State,
    bad_commands: u32,
    told: Told,
}

#[derive(Debug)]
enum State {
    /// Between commands.
    Command,
    /// AUTHENTICATE waits for a response.
    Sasl(Exchange),
    /// Credentials were given; the driver has not answered yet.
    Answer,
}

impl ManageSieveFront {
    /// A client that has just connected.
    pub fn new(terms: Terms) -> Self {
        Self { terms, state: State::Command, bad_commands: 0, told: Told::default() }
    }

    /// What every backend has, and what this connection allows (RFC 5804 §1.7). Some clients read it now
    /// and never again.
    fn list_capabilities(&self, out: &mut Output) {
        let mechanisms: Vec<&str> = self.terms.usable().iter().map(Mechanism::as_str).collect();
        out.push("\"IMPLEMENTATION\" \"Mailshift\"\r\n");
        out.push(format!("\"SASL\" \"{}\"\r\n", mechanisms.join(" ")));
        for capability in &*self.terms.capabilities {
            out.push(format!("{capability}\r\n"));
        }
        if self.terms.offers_tls() {
            out.push("\"STARTTLS\"\r\n");
        }
        if self.terms.trusted {
            out.push("\"XCLIENT\"\r\n");
        }
    }

    /// One command.
    fn command(
        &mut self,
        words: &[Word],
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let (verb, arguments) = match words.split_first() {
            Some((Word::Atom(verb), arguments)) => (verb.to_ascii_uppercase(), arguments),
            Some(_) | None => (Vec::new(), &[][..]),
        };
        match (verb.as_slice(), arguments) {
            (b"CAPABILITY", []) => {
                self.list_capabilities(out);
                out.push("OK \"Capability completed.\"\r\n");
            }
            (b"NOOP", []) => out.push("OK \"NOOP completed.\"\r\n"),
            (b"NOOP", [tag]) => return self.noop(tag, out).map(|()| None),
            (b"LOGOUT", []) => {
                out.push("OK \"Logout completed.\"\r\n");
                return Ok(Some(Step::Close));
            }
            (b"STARTTLS", []) if self.terms.offers_tls() => {
                out.push("OK \"Begin TLS negotiation now.\"\r\n");
                return Ok(Some(Step::StartTls));
            }
            (b"STARTTLS", []) => {
                return self.bad("TLS is already active or not to be had.", out).map(|()| None);
            }
            (b"XCLIENT", attributes) if self.terms.trusted => {
                let atoms = attributes.iter().filter_map(|word| match word {
                    Word::Atom(atom) => Some(&**atom),
                    _ => None,
                });
                let attributes = atoms.collect::<Vec<_>>().join(&b' ');
                self.told.forwarded = forwarded::of_xclient(&attributes).map(Box::new);
                out.push("OK \"Updated.\"\r\n");
            }
            (b"AUTHENTICATE", [mechanism, response @ ..]) if response.len() < 2 => {
                return self.authenticate(mechanism, response.first(), out);
            }
            _ => return self.bad("Not a command before login.", out).map(|()| None),
        }
        Ok(None)
    }

    /// RFC 5804 §2.13: the tag comes back, so that a client knows where it is.
    fn noop(&mut self, tag: &Word, out: &mut Output) -> Result<(), Violation> {
        let Some(tag) = tag.string() else {
            return self.bad("Error in NOOP: a string expected.", out);
        };
        out.push("OK (TAG ");
        push_string(tag.expose(), Speaker::Server, out);
        out.push(") \"Done.\"\r\n");
        Ok(())
    }

    /// RFC 5804 §2.1.
    fn authenticate(
        &mut self,
        mechanism: &Word,
        response: Option<&Word>,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let Some(mechanism) = mechanism.string() else {
            return self.bad("Error in AUTHENTICATE: strings expected.", out).map(|()| None);
        };
        let Some(mechanism) = self.terms.mechanism(mechanism.expose()) else {
            return self.bad("Unsupported authentication mechanism.", out).map(|()| None);
        };
        if mechanism.is_cleartext() && !self.terms.takes_passwords() {
            self.refuse_plaintext(out);
            return Ok(None);
        }
        let initial = match response.map(Word::string) {
            None => None,
            Some(Some(initial)) => Some(initial),
            Some(None) => {
                return self.bad("Error in AUTHENTICATE: strings expected.", out).map(|()| None);
            }
        };
        self.turn(Exchange::begin(mechanism, initial.as_ref().map(Secret::expose)), out)
    }

    fn turn(&mut self, turn: Turn, out: &mut Output) -> Result<Option<Step<Event>>, Violation> {
        self.state = State::Command;
        match turn {
            Turn::Ask(exchange, challenge) => {
                out.push(format!("\"{challenge}\"\r\n"));
                self.state = State::Sasl(exchange);
                Ok(None)
            }
            Turn::Event(event) => {
                self.state = State::Answer;
                Ok(Some(Step::Event(event)))
            }
            Turn::Cancelled => {
                out.push(refusal_words(Refusal::Cancelled));
                self.count_bad(out).map(|()| None)
            }
            Turn::Malformed => self.bad("Invalid SASL response.", out).map(|()| None),
        }
    }

    fn say_no(&mut self, words: &str, out: &mut Output) {
        // A client that was asked something may be refused before it has answered.
        if matches!(self.state, State::Command) {
            return;
        }
        self.state = State::Command;
        out.push(words);
    }

    fn refuse_plaintext(&self, out: &mut Output) {
        let how = if self.terms.starttls { "use STARTTLS first" } else { "use TLS" };
        out.push(format!("NO (ENCRYPT-NEEDED) \"No passwords in the clear, {how}.\"\r\n"));
    }

    /// Refuses a command that is wrong, whoever says it.
    fn bad(&mut self, why: &str, out: &mut Output) -> Result<(), Violation> {
        out.push(format!("NO \"{why}\"\r\n"));
        self.count_bad(out)
    }

    fn count_bad(&mut self, out: &mut Output) -> Result<(), Violation> {
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands < MAX_BAD_COMMANDS {
            return Ok(());
        }
        out.push("BYE \"Too many wrong commands.\"\r\n");
        Err(Violation::TooManyBadCommands { count: self.bad_commands })
    }

    /// What is in the input, up to the first event.
    fn take_in(
        &mut self,
        input: &mut Input,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let octets = match parse(input.unread(), LIMITS) {
            Parsed::Whole { octets, .. } | Parsed::Malformed { octets } => octets,
            Parsed::Part => return Ok(Some(Step::NeedInput)),
            Parsed::TooLarge { limit } => {
                out.push("BYE \"Command too large.\"\r\n");
                return Err(Violation::TooLarge { what: "a command", limit });
            }
        };
        // Taken out first: what was taken is wiped when it has been read.
        let Some(line) = input.take(octets) else { return Ok(Some(Step::NeedInput)) };
        let words = match parse(line.octets(), LIMITS) {
            Parsed::Whole { words, .. } => Some(words),
            Parsed::Part | Parsed::Malformed { .. } | Parsed::TooLarge { .. } => None,
        };
        if matches!(self.state, State::Sasl(_))
            && let State::Sasl(exchange) = std::mem::replace(&mut self.state, State::Command)
        {
            return self.turn(respond(exchange, words.as_deref()), out);
        }
        match words {
            Some(words) => self.command(&words, out),
            None => self.bad("Error in command: syntax.", out).map(|()| None),
        }
    }
}

/// A response is a string alone in its line; `"*"` gives up.
fn respond(exchange: Exchange, words: Option<&[Word]>) -> Turn {
    match words {
        Some([Word::Atom(b"*")]) => exchange.respond(b"*"),
        Some([word]) => match word.string() {
            Some(text) => exchange.respond(text.expose()),
            None => exchange.garbled(),
        },
        Some(_) | None => exchange.garbled(),
    }
}

impl Dialogue for ManageSieveFront {
    type Event = Event;

    fn step(&mut self, input: &mut Input, output: &mut Output) -> Result<Step<Event>, Violation> {
        super::steps(output, |output| self.take_in(input, output))
    }

    /// RFC 5804 §2.2: the capabilities are told again, unasked.
    fn secured(&mut self, out: &mut Output) {
        let terms = Terms { secured: true, ..self.terms.clone() };
        let bad_commands = self.bad_commands;
        *self = Self { bad_commands, ..Self::new(terms) };
        self.list_capabilities(out);
        out.push("OK \"TLS negotiation successful.\"\r\n");
    }
}

impl Front for ManageSieveFront {
    fn greet(&mut self, out: &mut Output) {
        self.list_capabilities(out);
        out.push(format!("OK \"{} ready.\"\r\n", self.terms.hostname));
    }

    fn challenge(&mut self, challenge: &[u8], out: &mut Output) {
        if !matches!(self.state, State::Answer) {
            return;
        }
        push_string(encode_base64(challenge).expose(), Speaker::Server, out);
        out.push("\r\n");
        self.state = State::Sasl(Exchange::Challenged);
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Output) {
        self.say_no(refusal_words(refusal), out);
    }

    fn reject(&mut self, reason: &str, out: &mut Output) {
        self.say_no(&format!("NO \"{reason}\"\r\n"), out);
    }

    fn welcome(&mut self, welcome: &Welcome, out: &mut Output) {
        if !matches!(self.state, State::Answer) {
            return;
        }
        self.state = State::Command;
        out.push("OK ");
        if let Some(last) = &welcome.sasl {
            out.push("(SASL ");
            push_string(encode_base64(last).expose(), Speaker::Server, out);
            out.push(") ");
        }
        out.push("\"Logged in.\"\r\n");
    }

    fn bid_farewell(&mut self, farewell: Farewell, out: &mut Output) {
        out.push(farewell_words(farewell));
    }

    fn told(&self) -> &Told {
        &self.told
    }
}

/// The answer to credentials (RFC 5804 §1.3).
fn refusal_words(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::BadCredentials => "NO \"Authentication failed.\"\r\n",
        Refusal::Unavailable => {
            "NO (TRYLATER) \"Account is temporarily unavailable. Please try again later.\"\r\n"
        }
        Refusal::TooManySessions => "NO (TRYLATER) \"Too many connections of this user.\"\r\n",
        Refusal::Misconfigured => {
            "NO \"Logins do not work at the moment. Please tell your administrator.\"\r\n"
        }
        Refusal::NeedsTls => "NO (ENCRYPT-NEEDED) \"No passwords in the clear.\"\r\n",
        Refusal::Cancelled => "NO \"Authentication exchange cancelled.\"\r\n",
        Refusal::TooManyGuesses => {
            "NO (TRYLATER) \"Too many failed logins from your address. Please try again later.\"\r\n"
        }
    }
}

/// The last line of a connection.
pub fn farewell_words(farewell: Farewell) -> &'static str {
    match farewell {
        Farewell::ShuttingDown => {
            "BYE (TRYLATER) \"Server is restarting, please connect again.\"\r\n"
        }
        Farewell::TooSlow => "BYE \"Disconnected for inactivity during login.\"\r\n",
        Farewell::TooManyFailures => "BYE \"Too many failed logins.\"\r\n",
        Farewell::TooManyConnections => {
            "BYE (TRYLATER) \"Too many connections, try again later.\"\r\n"
        }
    }
}

#[cfg(test)]
mod tests;
