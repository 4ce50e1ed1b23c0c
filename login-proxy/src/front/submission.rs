//! Mail submission before login (RFC 6409, RFC 4954), as a pure state machine.
//!
//! AUTH becomes an event; everything else that a client may say before it is answered here. No message is
//! taken: MAIL, RCPT, DATA and BDAT are for the backend, which hears nothing before its yes.

use shared::dialogue::{Dialogue, Input, Output, Step, Violation};
use shared::sasl::{Mechanism, Mechanisms, decode_base64, encode_base64};
use shared::smtp::command::{self, Command, MAX_LINE};
use shared::smtp::parameters::Takes;
use shared::smtp::reply::Reply;

use super::forwarded;
use super::sasl::{self, Exchange, Turn};
use super::{Event, Front, MAX_BAD_COMMANDS, Terms, Told};
use crate::backend::Welcome;
use crate::refusal::{Farewell, Refusal};

/// What a trusted proxy may tell of its client.
const XCLIENT: &str = "XCLIENT ADDR PORT PROTO HELO SESSION TTL DESTADDR DESTPORT";
/// Longest verb: STARTTLS.
const MAX_VERB: usize = 8;
/// Longest name in EHLO that is kept.
const MAX_HELO: usize = 255;
/// The first octet of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// A mail program that has not logged in.
#[derive(Debug)]
pub struct SubmissionFront {
    terms: Terms,
    state: State,
    bad_commands: u32,
    /// EHLO or HELO was said.
    greeted: bool,
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
    /// So many octets of a chunk that was refused are still to come (RFC 3030 §2).
    Chunk(u64),
    /// The last word was said.
    Closing,
}

type Taken = Result<Option<Step<Event>>, Violation>;

impl SubmissionFront {
    /// A client that has just connected.
    pub fn new(terms: Terms) -> Self {
        let told = Told::default();
        Self { terms, state: State::Command, bad_commands: 0, greeted: false, told }
    }

    /// What every backend has, and what this connection allows, a line each. Many clients do not ask again
    /// after they have logged in.
    fn keywords(&self) -> Vec<String> {
        // Only a secured connection may list it (RFC 8689 §4).
        let unfit = |line: &str| line.eq_ignore_ascii_case("REQUIRETLS") && !self.terms.secured;
        let common = self.terms.capabilities.iter().filter(|line| !unfit(line));
        let mut lines: Vec<String> = common.map(ToString::to_string).collect();
        if self.terms.offers_tls() {
            lines.push("STARTTLS".to_owned());
        }
        if self.terms.trusted {
            lines.push(XCLIENT.to_owned());
        }
        let mechanisms: Vec<_> = self.usable().iter().map(Mechanism::as_str).collect();
        if !mechanisms.is_empty() {
            lines.push(format!("AUTH {}", mechanisms.join(" ")));
        }
        lines
    }

    /// LOGIN is all that some mail programs know; a password is a password.
    fn usable(&self) -> Mechanisms {
        let mut usable = self.terms.usable();
        if usable.contains(Mechanism::Plain) {
            usable.insert(Mechanism::Login);
        }
        usable
    }

    /// One command line, its line end not included.
    fn command(&mut self, line: &[u8], out: &mut Output) -> Taken {
        if let Some(foreign) = command::foreign_word(line) {
            return self.foreign(foreign, out);
        }
        let (verb, argument) = split_verb(line);
        // What is longer may be a response that a refused AUTH left behind: not to be copied anywhere.
        if verb.len() > MAX_VERB {
            return self.bad(&Reply::new(500, (5, 2), "Unknown command"), out);
        }
        match verb.to_ascii_uppercase().as_slice() {
            b"EHLO" | b"HELO" if is_clean(line) => {
                let extended = verb.eq_ignore_ascii_case(b"EHLO");
                return self.hello(extended, argument, out);
            }
            b"AUTH" if is_clean(line) => return self.auth(argument, out),
            b"XCLIENT" if self.terms.trusted => {
                self.told.forwarded = forwarded::of_xclient(argument).map(Box::new);
                self.told.helo = None;
                self.greeted = false;
                self.greet(out);
                return Ok(None);
            }
            // XCLIENT and the like are nobody else's to say: 502, by the parser.
            b"MAIL" | b"RCPT" | b"DATA" | b"BURL" | b"VRFY" | b"EXPN" | b"ETRN" => {
                return self.bad(&authenticate_first(), out);
            }
            b"BDAT" => return self.chunk(line, out),
            _ => {}
        }
        match command::parse(line, Takes::NONE) {
            Ok(Command::Noop) => say(out, &Reply::new(250, (0, 0), "Ok")),
            Ok(Command::Rset) => say(out, &Reply::new(250, (0, 0), "Ok")),
            Ok(Command::Help) => say(out, &Reply::new(214, (0, 0), "RFC 6409")),
            Ok(Command::Quit) => {
                say(out, &Reply::new(221, (0, 0), "Bye"));
                self.state = State::Closing;
                return Ok(Some(Step::Close));
            }
            Ok(Command::StartTls) if self.terms.offers_tls() => {
                say(out, &Reply::new(220, (0, 0), "Go ahead"));
                return Ok(Some(Step::StartTls));
            }
            Ok(Command::StartTls) => {
                let words = "TLS is already active or not to be had";
                return self.bad(&Reply::new(503, (5, 1), words), out);
            }
            // These were answered above.
            Ok(
                Command::Ehlo(_)
                | Command::Helo(_)
                | Command::Mail(_)
                | Command::Rcpt(_)
                | Command::Data
                | Command::Bdat(_)
                | Command::Vrfy,
            ) => return self.bad(&authenticate_first(), out),
            Ok(Command::Lhlo(_) | Command::Xclient(_)) => {
                return self.bad(&command::not_implemented(), out);
            }
            Err(refusal) => return self.bad(&refusal, out),
        }
        Ok(None)
    }

    /// Programs give all kinds of names (RFC 5321 §4.1.4: they are not checked). What could not stand in a
    /// command is not kept.
    fn hello(&mut self, extended: bool, argument: &[u8], out: &mut Output) -> Taken {
        let name = argument.split(u8::is_ascii_whitespace).find(|word| !word.is_empty());
        let Some(name) = name else {
            return self.bad(&Reply::new(501, (5, 4), "Your name is missing"), out);
        };
        let fits = name.len() <= MAX_HELO && name.iter().all(u8::is_ascii_graphic);
        self.told.helo =
            std::str::from_utf8(name).ok().filter(|_| fits).map(|name| name.to_owned().into());
        self.greeted = true;
        let mut lines = vec![self.terms.hostname.to_string()];
        if extended {
            lines.extend(self.keywords());
        }
        let last = lines.len().saturating_sub(1);
        for (number, line) in lines.iter().enumerate() {
            out.push(format!("250{}{line}\r\n", if number == last { ' ' } else { '-' }));
        }
        Ok(None)
    }

    /// RFC 4954 §4.
    fn auth(&mut self, argument: &[u8], out: &mut Output) -> Taken {
        if !self.greeted {
            return self.bad(&Reply::new(503, (5, 1), "Say EHLO first"), out);
        }
        let mut words = argument.split(|octet| *octet == b' ').filter(|word| !word.is_empty());
        let (Some(name), initial, None) = (words.next(), words.next(), words.next()) else {
            return self.bad(&Reply::new(501, (5, 4), "AUTH mechanism [initial-response]"), out);
        };
        let Some(mechanism) = self.terms.mechanism(name) else {
            return self.bad(&Reply::new(504, (5, 4), "Unsupported mechanism"), out);
        };
        if mechanism.is_cleartext() && !self.terms.takes_passwords() {
            say(out, &refusal_words(Refusal::NeedsTls));
            return Ok(None);
        }
        self.turn(Exchange::begin(mechanism, initial), initial.unwrap_or_default(), out)
    }

    /// What follows a response, which is here as it came.
    fn turn(&mut self, turn: Turn, response: &[u8], out: &mut Output) -> Taken {
        match turn {
            Turn::Ask(exchange, challenge) => {
                // With the space (RFC 4954 §4).
                out.push(format!("334 {challenge}\r\n"));
                self.state = State::Sasl(exchange);
                Ok(None)
            }
            Turn::Event(event) => {
                self.state = State::Answer;
                Ok(Some(Step::Event(event)))
            }
            Turn::Cancelled => self.bad(&refusal_words(Refusal::Cancelled), out),
            Turn::Malformed if response != b"=" && decode_base64(response).is_err() => {
                self.bad(&Reply::new(501, (5, 2), "Invalid base64"), out)
            }
            Turn::Malformed => self.bad(&refusal_words(Refusal::BadCredentials), out),
        }
    }

    /// A chunk follows its command unasked, and must never be read as commands.
    fn chunk(&mut self, line: &[u8], out: &mut Output) -> Taken {
        match command::parse(line, Takes::NONE) {
            Ok(Command::Bdat(chunk)) => {
                self.state = State::Chunk(chunk.octets);
                self.bad(&authenticate_first(), out)
            }
            Ok(_) | Err(_) => {
                say(out, &Reply::new(501, (5, 4), "BDAT size [LAST]"));
                self.state = State::Closing;
                Ok(Some(Step::Close))
            }
        }
    }

    /// Refuses a command, and after too many of them the client.
    fn bad(&mut self, refusal: &Reply, out: &mut Output) -> Taken {
        say(out, refusal);
        self.bad_commands = self.bad_commands.saturating_add(1);
        if self.bad_commands < MAX_BAD_COMMANDS {
            return Ok(None);
        }
        self.last_word(&Reply::new(421, (7, 0), "Too many wrong commands"), out);
        Err(Violation::TooManyBadCommands { count: self.bad_commands })
    }

    fn foreign(&mut self, words: &'static str, out: &mut Output) -> Taken {
        self.last_word(&Reply::new(521, (5, 1), "This is SMTP"), out);
        Err(Violation::ForeignProtocol(words))
    }

    fn last_word(&mut self, reply: &Reply, out: &mut Output) {
        say(out, reply);
        self.state = State::Closing;
    }

    /// What is in the input, up to the first event.
    fn take_in(&mut self, input: &mut Input, out: &mut Output) -> Taken {
        match &mut self.state {
            State::Closing => return Ok(Some(Step::Close)),
            State::Chunk(0) => self.state = State::Command,
            State::Chunk(left) => {
                if input.is_empty() {
                    return Ok(Some(Step::NeedInput));
                }
                let here = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                input.consume(here);
                *left = left.saturating_sub(here as u64);
                return Ok(None);
            }
            State::Command | State::Sasl(_) | State::Answer => {}
        }
        let in_exchange = matches!(self.state, State::Sasl(_));
        if !in_exchange && input.unread().first() == Some(&TLS_HANDSHAKE) {
            return self.foreign("a TLS handshake", out);
        }
        // Only AUTH has long arguments.
        let is_auth = input.unread().get(..5).is_some_and(|w| w.eq_ignore_ascii_case(b"AUTH "));
        let (limit, words) = if in_exchange || is_auth {
            (sasl::MAX_LINE, Reply::new(500, (5, 6), "Authentication exchange line is too long"))
        } else {
            (MAX_LINE, Reply::new(500, (5, 2), "Line too long"))
        };
        let Some(line) = input.line(limit).inspect_err(|_| self.last_word(&words, out))? else {
            return Ok(Some(Step::NeedInput));
        };
        match std::mem::replace(&mut self.state, State::Command) {
            State::Sasl(exchange) => {
                let turn = exchange.respond(line.octets());
                self.turn(turn, line.octets(), out)
            }
            State::Command | State::Answer | State::Chunk(_) | State::Closing => {
                self.command(line.octets(), out)
            }
        }
    }
}

impl Dialogue for SubmissionFront {
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

impl Front for SubmissionFront {
    fn greet(&mut self, out: &mut Output) {
        say(out, &Reply::bare(220, format!("{} ESMTP", self.terms.hostname)));
    }

    fn challenge(&mut self, challenge: &[u8], out: &mut Output) {
        out.push("334 ");
        out.push(encode_base64(challenge).expose());
        out.push("\r\n");
        self.state = State::Sasl(Exchange::Challenged);
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Output) {
        let reply = refusal_words(refusal);
        say(out, &reply);
        // 421 is the last word of a connection (RFC 5321 §3.8).
        self.state = if reply.code() == 421 { State::Closing } else { State::Command };
    }

    fn reject(&mut self, reason: &str, out: &mut Output) {
        say(out, &Reply::new(535, (7, 8), reason));
        self.state = State::Command;
    }

    fn welcome(&mut self, _: &Welcome, out: &mut Output) {
        say(out, &Reply::new(235, (7, 0), "Authentication successful"));
        self.state = State::Command;
    }

    fn bid_farewell(&mut self, farewell: Farewell, out: &mut Output) {
        self.last_word(&farewell_words(farewell), out);
    }

    fn told(&self) -> &Told {
        &self.told
    }
}

/// RFC 4954 §6, RFC 3463, RFC 5248.
fn refusal_words(refusal: Refusal) -> Reply {
    match refusal {
        Refusal::BadCredentials => Reply::new(535, (7, 8), "Authentication failed"),
        Refusal::Unavailable => {
            let words = "Account is temporarily unavailable, please try again later";
            Reply::new(454, (7, 0), words)
        }
        Refusal::TooManySessions => Reply::new(421, (7, 0), "Too many connections of this user"),
        // Temporary, so that a mail program keeps what it was about to send.
        Refusal::Misconfigured => {
            let words = "Logins do not work at the moment, please tell your administrator";
            Reply::new(454, (7, 0), words)
        }
        Refusal::NeedsTls => Reply::new(538, (7, 11), "No passwords in the clear, use TLS first"),
        Refusal::Cancelled => Reply::new(501, (7, 0), "Authentication exchange cancelled"),
        Refusal::TooManyGuesses => {
            let words = "Too many failed logins from your address, please try again later";
            Reply::new(454, (7, 0), words)
        }
    }
}

/// The last line of a connection.
pub fn farewell_words(farewell: Farewell) -> Reply {
    match farewell {
        Farewell::ShuttingDown => {
            Reply::new(421, (3, 2), "Service is restarting, please connect again")
        }
        Farewell::TooSlow => Reply::new(421, (4, 2), "You did not log in in time"),
        Farewell::TooManyFailures => Reply::new(421, (7, 0), "Too many failed logins"),
        Farewell::TooManyConnections => {
            Reply::new(421, (7, 0), "Too many connections, try again later")
        }
    }
}

fn authenticate_first() -> Reply {
    Reply::new(530, (7, 0), "Authentication required")
}

fn split_verb(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b' ', line) {
        Some(space) => (
            line.get(..space).unwrap_or_default(),
            line.get(space.saturating_add(1)..).unwrap_or_default(),
        ),
        None => (line, &[]),
    }
}

/// Without control characters; the parser has words for lines with them.
fn is_clean(line: &[u8]) -> bool {
    !line.iter().any(|octet| octet.is_ascii_control() && *octet != b'\t')
}

fn say(out: &mut Output, reply: &Reply) {
    out.push(format!("{reply}\r\n"));
}

#[cfg(test)]
mod tests;
