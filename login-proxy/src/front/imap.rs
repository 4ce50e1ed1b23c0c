//! IMAP before login (RFC 3501 §6.1, §6.2; RFC 9051), as a pure state machine.
//!
//! LOGIN and AUTHENTICATE become an event; everything else that a client may say before login is
//! answered here: CAPABILITY, ID (RFC 2971), ENABLE, NOOP, STARTTLS, LOGOUT. Framing is [`frame`]'s
//! business, words are [`token`]'s. After login nothing of this file is involved any more.

mod frame;
mod token;

use shared::credentials::{Credentials, Secret};
use shared::dialogue::{Dialogue, Input, Output, Step, Violation};
use shared::sasl::encode_base64;

use super::forwarded;
use super::sasl::{self, Exchange, Turn};
use super::{Event, Front, MAX_BAD_COMMANDS, Terms, Told};
use crate::backend::Welcome;
use crate::refusal::{Farewell, Refusal};
use frame::Frame;
use token::{Token, tokens};

/// Longest tag in octets; Dovecot has the same.
const MAX_TAG: usize = 126;
/// Pairs of a client's ID that are kept (RFC 2971 §3.3).
const MAX_ID_PAIRS: usize = 30;
/// What somebody who types by hand is told.
const TAG_FIRST: &str = "BAD A tag comes first, as in: a1 LOGIN name password";

/// An IMAP client that has not logged in.
#[derive(Debug)]
pub struct ImapFront {
    terms: Terms,
    state: State,
    bad_commands: u32,
    /// Literals of the command at hand that were asked for with `+`.
    invited: usize,
    asked_capability: bool,
    told: Told,
}

#[derive(Debug)]
enum State {
    /// Between commands.
    Command,
    /// AUTHENTICATE waits for a response.
    Sasl { tag: Box<str>, exchange: Exchange },
    /// Credentials were given under this tag; the driver has not answered yet.
    Answer { tag: Box<str> },
}

impl ImapFront {
    /// A client that has just connected.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            state: State::Command,
            bad_commands: 0,
            invited: 0,
            asked_capability: false,
            told: Told::default(),
        }
    }

    /// What every backend has, and what this connection allows. After login the client gets its own
    /// backend's.
    fn capabilities(&self) -> String {
        let mut words = self.terms.capabilities.join(" ");
        if self.terms.offers_tls() {
            words.push_str(" STARTTLS");
        }
        for mechanism in self.terms.usable().iter() {
            words.push_str(" AUTH=");
            words.push_str(mechanism.as_str());
        }
        if !self.terms.takes_passwords() {
            words.push_str(" LOGINDISABLED");
        }
        words
    }

    /// One whole command, line ends of literals and the last one included.
    fn command(
        &mut self,
        command: &[u8],
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let Some((tag, rest)) = split_tag(command) else {
            answer(out, "*", TAG_FIRST);
            return self.bad(out).map(|()| None);
        };
        let Some(words) = tokens(rest) else {
            answer(out, tag, "BAD Error in IMAP command: syntax");
            return self.bad(out).map(|()| None);
        };
        let (verb, arguments) = match words.split_first() {
            Some((Token::Atom(verb), arguments)) => (verb.to_ascii_uppercase(), arguments),
            Some(_) | None => (Vec::new(), &[][..]),
        };
        match (verb.as_slice(), arguments) {
            (b"CAPABILITY", []) => {
                self.asked_capability = true;
                out.push(format!("* CAPABILITY {}\r\n", self.capabilities()));
                answer(out, tag, "OK Capability completed.");
            }
            (b"NOOP", []) => answer(out, tag, "OK NOOP completed."),
            (b"ID", [parameters]) => return self.id(tag, parameters, out).map(|()| None),
            // Not promised: the backend decides after login. Clients that ask early go on (as with Dovecot).
            (b"ENABLE", [_, ..]) => {
                out.push("* ENABLED\r\n");
                answer(out, tag, "OK Enable completed.");
            }
            (b"LOGOUT", []) => {
                out.push("* BYE Logging out\r\n");
                answer(out, tag, "OK Logout completed.");
                return Ok(Some(Step::Close));
            }
            (b"STARTTLS", []) if self.terms.offers_tls() => {
                answer(out, tag, "OK Begin TLS negotiation now.");
                return Ok(Some(Step::StartTls));
            }
            (b"STARTTLS", []) => {
                answer(out, tag, "BAD TLS is already active or not to be had.");
                return self.bad(out).map(|()| None);
            }
            (b"LOGIN", [name, password]) => {
                if !self.terms.takes_passwords() {
                    self.refuse_plaintext(tag, out);
                } else if let (Some(name), Some(password)) = (name.astring(), password.astring()) {
                    return self.log_in(tag, name, password, out);
                } else {
                    answer(out, tag, "BAD Error in IMAP command LOGIN: a name and a password");
                    return self.bad(out).map(|()| None);
                }
            }
            (b"AUTHENTICATE", [Token::Atom(mechanism), response @ ..]) if response.len() < 2 => {
                return self.authenticate(tag, mechanism, response.first(), out);
            }
            _ if is_command(tag) => {
                answer(out, tag, TAG_FIRST);
                return self.bad(out).map(|()| None);
            }
            _ => {
                answer(out, tag, "BAD Not a command before login.");
                return self.bad(out).map(|()| None);
            }
        }
        Ok(None)
    }

    /// An empty name or password is wrong everywhere, and some servers' directories take an empty
    /// password for an anonymous login; so no backend is asked.
    fn log_in(
        &mut self,
        tag: &str,
        name: &[u8],
        password: &[u8],
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        if name.is_empty() || password.is_empty() {
            answer(out, tag, refusal_words(Refusal::BadCredentials));
            return self.bad(out).map(|()| None);
        }
        let credentials = Credentials::new(name, Secret::new(password.to_vec()));
        Ok(Some(self.attempt(tag, credentials)))
    }

    /// RFC 3501 §6.2.2, with the initial response of RFC 4959.
    fn authenticate(
        &mut self,
        tag: &str,
        mechanism: &[u8],
        response: Option<&Token>,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        let Some(mechanism) = self.terms.mechanism(mechanism) else {
            answer(out, tag, "NO [CANNOT] Unsupported authentication mechanism.");
            return self.bad(out).map(|()| None);
        };
        if mechanism.is_cleartext() && !self.terms.takes_passwords() {
            self.refuse_plaintext(tag, out);
            return Ok(None);
        }
        let initial = match response {
            None => None,
            Some(Token::Atom(text)) => Some(&**text),
            Some(Token::Text(_) | Token::List(_)) => {
                answer(out, tag, "BAD Error in IMAP command AUTHENTICATE: base64 expected");
                return self.bad(out).map(|()| None);
            }
        };
        self.turn(tag, Exchange::begin(mechanism, initial), out)
    }

    fn turn(
        &mut self,
        tag: &str,
        turn: Turn,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        match turn {
            Turn::Ask(exchange, challenge) => {
                // With the space: some clients do not take a bare "+".
                out.push(format!("+ {challenge}\r\n"));
                self.state = State::Sasl { tag: tag.into(), exchange };
                Ok(None)
            }
            Turn::Event(event) => {
                self.state = State::Answer { tag: tag.into() };
                Ok(Some(Step::Event(event)))
            }
            Turn::Cancelled => {
                answer(out, tag, refusal_words(Refusal::Cancelled));
                self.bad(out).map(|()| None)
            }
            Turn::Malformed => {
                answer(out, tag, "NO [AUTHENTICATIONFAILED] Invalid SASL response.");
                self.bad(out).map(|()| None)
            }
        }
    }

    fn attempt(&mut self, tag: &str, credentials: Credentials) -> Step<Event> {
        self.state = State::Answer { tag: tag.into() };
        Step::Event(Event::Credentials(credentials))
    }

    /// RFC 2971: NIL, or a list of strings in pairs.
    fn id(&mut self, tag: &str, parameters: &Token, out: &mut Output) -> Result<(), Violation> {
        let pairs = match parameters {
            Token::Atom(nil) if nil.eq_ignore_ascii_case(b"NIL") => &[][..],
            Token::List(pairs)
                if pairs.len().is_multiple_of(2) && pairs.len() <= 2 * MAX_ID_PAIRS =>
            {
                pairs
            }
            Token::Atom(_) | Token::Text(_) | Token::List(_) => {
                answer(out, tag, "BAD Error in IMAP command ID: a list of pairs, or NIL");
                return self.bad(out);
            }
        };
        // Only the first ID counts, as with Dovecot. A NIL value tells nothing.
        if self.told.id.is_empty() {
            self.told.id = pairs
                .chunks_exact(2)
                .filter_map(|pair| match pair {
                    [_, Token::Atom(nil)] if nil.eq_ignore_ascii_case(b"NIL") => None,
                    [key, value] => Some((key.astring()?.to_vec(), value.astring()?.to_vec())),
                    _ => None,
                })
                .collect();
        }
        if self.terms.trusted && self.told.forwarded.is_none() {
            self.told.forwarded = forwarded::of_id(&self.told.id).map(Box::new);
        }
        out.push("* ID NIL\r\n");
        answer(out, tag, "OK ID completed.");
        Ok(())
    }

    fn say_no(&mut self, words: &str, out: &mut Output) {
        // A client that was asked something may be refused before it has answered.
        let (State::Answer { tag } | State::Sasl { tag, .. }) =
            std::mem::replace(&mut self.state, State::Command)
        else {
            return;
        };
        answer(out, &tag, words);
    }

    fn refuse_plaintext(&self, tag: &str, out: &mut Output) {
        let how = if self.terms.starttls { "use STARTTLS first" } else { "use the TLS port" };
        answer(out, tag, &format!("NO [PRIVACYREQUIRED] No passwords in the clear, {how}."));
    }

    /// Invites each synchronizing literal once, whether its octets are there already or not
    /// (RFC 3501 §4.3).
    fn invite(&mut self, literals: usize, out: &mut Output) {
        while self.invited < literals {
            self.invited = self.invited.saturating_add(1);
            out.push("+ OK\r\n");
        }
    }

    /// Counts a wrong command.
    fn bad(&mut self, out: &mut Output) -> Result<(), Violation> {
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands < MAX_BAD_COMMANDS {
            return Ok(());
        }
        out.push("* BYE Too many wrong commands.\r\n");
        Err(Violation::TooManyBadCommands { count: self.bad_commands })
    }

    /// What is in the input, up to the first event.
    fn take_in(
        &mut self,
        input: &mut Input,
        out: &mut Output,
    ) -> Result<Option<Step<Event>>, Violation> {
        if let State::Sasl { .. } = &self.state {
            let line = input.line(sasl::MAX_LINE).inspect_err(|_| too_large(out))?;
            let Some(line) = line else { return Ok(Some(Step::NeedInput)) };
            let State::Sasl { tag, exchange } = std::mem::replace(&mut self.state, State::Command)
            else {
                return Ok(Some(Step::NeedInput));
            };
            return self.turn(&tag, exchange.respond(line.octets()), out);
        }
        match frame::next(input.unread()) {
            Frame::Whole { octets, literals } => {
                self.invite(literals, out);
                self.invited = 0;
                let Some(command) = input.take(octets) else { return Ok(Some(Step::NeedInput)) };
                self.command(command.octets(), out)
            }
            Frame::Part { literals } => {
                self.invite(literals, out);
                Ok(Some(Step::NeedInput))
            }
            // Not invited, so it will not be sent: the connection is in step and goes on.
            Frame::LiteralTooLarge { command, literals } => {
                self.invite(literals, out);
                self.invited = 0;
                let line = input.take(command);
                let tag = line.as_ref().and_then(|line| split_tag(line.octets()));
                answer(out, tag.map_or("*", |(tag, _)| tag), "BAD [TOOBIG] Literal too large.");
                self.bad(out).map(|()| None)
            }
            Frame::TooLarge { limit, literals } => {
                self.invite(literals, out);
                too_large(out);
                Err(Violation::TooLarge { what: "a command", limit })
            }
        }
    }
}

impl Dialogue for ImapFront {
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

impl Front for ImapFront {
    fn greet(&mut self, out: &mut Output) {
        let (capabilities, hostname) = (self.capabilities(), &self.terms.hostname);
        out.push(format!("* OK [CAPABILITY {capabilities}] {hostname} ready.\r\n"));
    }

    fn challenge(&mut self, challenge: &[u8], out: &mut Output) {
        let State::Answer { tag } = std::mem::replace(&mut self.state, State::Command) else {
            return;
        };
        out.push("+ ");
        out.push(encode_base64(challenge).expose());
        out.push("\r\n");
        self.state = State::Sasl { tag, exchange: Exchange::Challenged };
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Output) {
        self.say_no(refusal_words(refusal), out);
    }

    fn reject(&mut self, reason: &str, out: &mut Output) {
        self.say_no(&format!("NO [AUTHENTICATIONFAILED] {reason}"), out);
    }

    fn welcome(&mut self, welcome: &Welcome, out: &mut Output) {
        let State::Answer { tag } = std::mem::replace(&mut self.state, State::Command) else {
            return;
        };
        let offered = &welcome.capabilities;
        if offered.is_empty() {
            return answer(out, &tag, "OK Logged in");
        }
        // Untagged only for clients that asked before: others take it for an error (LOG-10).
        if self.asked_capability {
            out.push(format!("* CAPABILITY {offered}\r\n"));
            answer(out, &tag, "OK Logged in");
        } else {
            answer(out, &tag, &format!("OK [CAPABILITY {offered}] Logged in"));
        }
    }

    fn bid_farewell(&mut self, farewell: Farewell, out: &mut Output) {
        out.push(farewell_words(farewell));
    }

    fn told(&self) -> &Told {
        &self.told
    }
}

/// What follows the tag (RFC 5530 §3).
fn refusal_words(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::BadCredentials => "NO [AUTHENTICATIONFAILED] Authentication failed.",
        Refusal::Unavailable => {
            "NO [UNAVAILABLE] Account is temporarily unavailable. Please try again later."
        }
        Refusal::TooManySessions => "NO [LIMIT] Too many connections of this user.",
        Refusal::Misconfigured => {
            "NO [SERVERBUG] Logins do not work at the moment. Please tell your administrator."
        }
        Refusal::NeedsTls => "NO [PRIVACYREQUIRED] No passwords in the clear.",
        Refusal::Cancelled => "BAD Authentication exchange cancelled.",
        Refusal::TooManyGuesses => {
            "NO [UNAVAILABLE] Too many failed logins from your address. Please try again later."
        }
    }
}

/// The last line of a connection.
pub fn farewell_words(farewell: Farewell) -> &'static str {
    match farewell {
        Farewell::ShuttingDown => {
            "* BYE [UNAVAILABLE] Server is restarting, please connect again.\r\n"
        }
        Farewell::TooSlow => "* BYE Disconnected for inactivity during login.\r\n",
        Farewell::TooManyFailures => "* BYE Too many failed logins.\r\n",
        Farewell::TooManyConnections => {
            "* BYE [UNAVAILABLE] Too many connections, try again later.\r\n"
        }
    }
}

fn too_large(out: &mut Output) {
    out.push("* BYE Command too large.\r\n");
}

/// A command that was typed where its tag belongs.
fn is_command(tag: &str) -> bool {
    let commands =
        ["LOGIN", "AUTHENTICATE", "CAPABILITY", "ID", "ENABLE", "NOOP", "LOGOUT", "STARTTLS"];
    commands.iter().any(|command| tag.eq_ignore_ascii_case(command))
}

fn answer(out: &mut Output, tag: &str, words: &str) {
    out.push(format!("{tag} {words}\r\n"));
}

/// A tag is any ASTRING-CHAR but "+" (RFC 3501 §9).
fn split_tag(command: &[u8]) -> Option<(&str, &[u8])> {
    let end = command.iter().position(|octet| matches!(octet, b' ' | b'\r' | b'\n'))?;
    let (tag, rest) = command.split_at(end);
    let good = |octet: &u8| octet.is_ascii_graphic() && !b"+(){%*\"\\".contains(octet);
    if tag.is_empty() || tag.len() > MAX_TAG || !tag.iter().all(good) || rest.first() != Some(&b' ')
    {
        return None;
    }
    Some((std::str::from_utf8(tag).ok()?, rest.get(1..)?))
}

#[cfg(test)]
mod tests;
