//! What each command leads to, in which order they may come, and what is offered.

use shared::dialogue::{Input, Output, Step, Violation};
use shared::smtp::command::{self, Command, Mail, Rcpt};
use shared::smtp::parameters::Takes;
use shared::smtp::reply::Reply;
use shared::smtp::xclient;

use super::{Asked, Event, Helo, Named, Protocol, Session, State, say};

/// Commands between two messages that lead to none, such as NOOP and RSET, before more of them count as
/// wrong ones.
const MAX_SMALL_TALK: u32 = 100;

type Taken = Result<Option<Step<Event>>, Violation>;

impl Session {
    /// The parameters that may be given now. Without EHLO none are on offer (RFC 5321 §2.2.1); before it,
    /// MAIL has another mistake.
    fn takes(&self) -> Takes {
        if self.helo.is_some() && !self.extended {
            return Takes::NONE;
        }
        // An address beyond ASCII is a recipient's only where the message is such (RFC 6531 §3.4).
        let smtputf8 = match self.state {
            State::Open(named) => named.smtputf8,
            _ => true,
        };
        let Self { terms, .. } = self;
        Takes { size: true, eight_bit: true, smtputf8: terms.smtputf8 && smtputf8, dsn: terms.dsn }
    }

    pub(super) fn command(&mut self, line: &[u8], input: &Input, out: &mut Output) -> Taken {
        let command = match command::parse(line, self.takes()) {
            Ok(command) => command,
            Err(refusal) => return self.bad(&refusal, line, out).map(|()| None),
        };
        if is_small_talk(&command) && !self.ends_postponed(&command) && self.is_tired() {
            let refusal = Reply::new(450, (7, 0), "Too many commands without a message");
            return self.bad(&refusal, line, out).map(|()| None);
        }
        match (command, self.terms.protocol) {
            (Command::Ehlo(name), Protocol::Smtp) | (Command::Lhlo(name), Protocol::Lmtp) => {
                Ok(Some(self.introduce(name, true, out)))
            }
            (Command::Helo(name), Protocol::Smtp) => Ok(Some(self.introduce(name, false, out))),
            (Command::Ehlo(_) | Command::Helo(_), Protocol::Lmtp) => self
                .bad(&Reply::new(500, (5, 1), "This is LMTP, say LHLO"), line, out)
                .map(|()| None),
            (Command::Lhlo(_), Protocol::Smtp) => self
                .bad(&Reply::new(500, (5, 1), "This is SMTP, say EHLO"), line, out)
                .map(|()| None),
            (Command::Mail(mail), _) => self.mail(mail, out),
            (Command::Rcpt(rcpt), _) => self.rcpt(rcpt, out),
            (Command::Data, _) => self.data(input, out),
            (Command::Bdat(chunk), _) => Ok(self.chunk(chunk, out)),
            (Command::Rset, _) => {
                self.state = State::Idle;
                say(out, &Reply::new(250, (0, 0), "Ok"));
                Ok(Some(Step::Event(Event::Reset)))
            }
            (Command::Noop, _) => Ok(reply(250, "Ok", out)),
            (Command::Vrfy, _) => Ok(reply(252, "Send it and see", out)),
            (Command::Help, _) => Ok(reply(214, "RFC 5321", out)),
            (Command::Quit, _) => {
                say(out, &Reply::new(221, (0, 0), "Bye"));
                self.state = State::Closing;
                Ok(Some(Step::Close))
            }
            (Command::StartTls, _) => self.start_tls(input, out),
            (Command::Xclient(attributes), _) => self.xclient(&attributes, out),
        }
    }

    /// EHLO, HELO and LHLO end a transaction, too (RFC 5321 §4.1.4).
    fn introduce(&mut self, name: Box<str>, extended: bool, out: &mut Output) -> Step<Event> {
        if extended {
            let lines = self.offers();
            let last = lines.len().saturating_sub(1);
            for (number, line) in lines.iter().enumerate() {
                out.push(format!("250{}{line}\r\n", if number == last { ' ' } else { '-' }));
            }
        } else {
            say(out, &Reply::bare(250, self.terms.hostname.clone()));
        }
        self.extended = extended;
        self.helo = Some(Helo {
            name: self.told.helo.clone().unwrap_or(name),
            extended: self.told.extended.unwrap_or(extended),
        });
        self.state = State::Idle;
        Step::Event(Event::Reset)
    }

    /// Our name and what is offered, a line each.
    fn offers(&self) -> Vec<String> {
        let Self { terms, secured, .. } = self;
        let mut lines = vec![
            terms.hostname.to_string(),
            "PIPELINING".to_owned(),
            format!("SIZE {}", terms.max_size),
            "8BITMIME".to_owned(),
        ];
        for (keyword, offered) in [
            ("CHUNKING", terms.chunking),
            ("DSN", terms.dsn),
            ("SMTPUTF8", terms.smtputf8),
            ("ENHANCEDSTATUSCODES", true),
            (xclient::HEARD, terms.trusted),
            ("STARTTLS", terms.starttls && !secured),
        ] {
            lines.extend(offered.then(|| keyword.to_owned()));
        }
        lines
    }

    fn mail(&mut self, mail: Mail, out: &mut Output) -> Taken {
        let refusal = match (&self.helo, &self.state) {
            (None, _) => {
                let words = match self.terms.protocol {
                    Protocol::Smtp => "Say EHLO first",
                    Protocol::Lmtp => "Say LHLO first",
                };
                Reply::new(503, (5, 1), words)
            }
            (Some(_), State::Open(_) | State::Chunks(_)) => {
                Reply::new(503, (5, 1), "Sender already given")
            }
            (Some(_), _) if mail.size.is_some_and(|size| size > self.terms.max_size) => {
                Reply::new(552, (3, 4), "Message too large")
            }
            (Some(_), _) => {
                self.state = State::Asked(Asked::Mail { smtputf8: mail.smtputf8 });
                return Ok(Some(Step::Event(Event::Mail(mail))));
            }
        };
        self.bad(&refusal, b"MAIL", out).map(|()| None)
    }

    fn rcpt(&mut self, rcpt: Rcpt, out: &mut Output) -> Taken {
        let State::Open(named) = self.state else {
            let words = match self.state {
                State::Chunks(_) => "The message has begun",
                _ => "Say MAIL first",
            };
            return self.bad(&Reply::new(503, (5, 1), words), b"RCPT", out).map(|()| None);
        };
        self.state = State::Asked(Asked::Rcpt(named));
        Ok(Some(Step::Event(Event::Rcpt(rcpt))))
    }

    fn data(&mut self, input: &Input, out: &mut Output) -> Taken {
        let refusal = match self.state {
            State::Open(named) if named.accepted == 0 => {
                let refusal = self.no_recipients(named);
                if named.postponed {
                    // It may have been pipelined, and it is we who take none: no error of the client's.
                    say(out, &refusal);
                    return Ok(None);
                }
                refusal
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
            // Of one message, all is sent in one way (RFC 3030 §2).
            State::Chunks(_) => Reply::new(503, (5, 1), "The message has begun with BDAT"),
            _ => Reply::new(503, (5, 1), "Say MAIL and RCPT first"),
        };
        self.bad(&refusal, b"DATA", out).map(|()| None)
    }

    /// Why there can be no message: nobody would get it. LMTP's client was told of each recipient, and its
    /// standard has one answer (RFC 2033 §4.2).
    pub(super) fn no_recipients(&self, named: Named) -> Reply {
        match (self.terms.protocol, named.postponed) {
            (Protocol::Lmtp, _) => Reply::new(503, (5, 1), "No valid recipients"),
            (Protocol::Smtp, true) => {
                Reply::new(451, (3, 0), "No recipient is taken for now, try again later")
            }
            (Protocol::Smtp, false) => Reply::new(554, (5, 1), "No valid recipients"),
        }
    }

    fn start_tls(&mut self, input: &Input, out: &mut Output) -> Taken {
        let refusal = match self.state {
            State::Chunks(_) => "The message has begun",
            _ if self.terms.starttls && !self.secured => {
                if input.is_empty() {
                    say(out, &Reply::new(220, (0, 0), "Go ahead"));
                }
                // With more behind it, the wire ends the connection: that is an injection (RFC 3207).
                return Ok(Some(Step::StartTls));
            }
            _ => "TLS is already active or not to be had",
        };
        self.bad(&Reply::new(503, (5, 1), refusal), b"STARTTLS", out).map(|()| None)
    }

    fn xclient(&mut self, attributes: &str, out: &mut Output) -> Taken {
        let told = match self.state {
            _ if !self.terms.trusted => {
                Err(Reply::new(550, (7, 0), "You are not trusted with XCLIENT"))
            }
            State::Idle => self.told.and(attributes),
            _ => Err(Reply::new(503, (5, 1), "A transaction is open")),
        };
        match told {
            Ok(told) => {
                self.told = told.clone();
                self.state = State::Asked(Asked::Xclient);
                Ok(Some(Step::Event(Event::Xclient(Box::new(told)))))
            }
            Err(refusal) => self.bad(&refusal, b"XCLIENT", out).map(|()| None),
        }
    }

    /// Ends a transaction that we put off: there was a message, so this is no small talk.
    fn ends_postponed(&self, command: &Command) -> bool {
        matches!(command, Command::Rset | Command::Ehlo(_) | Command::Helo(_) | Command::Lhlo(_))
            && matches!(self.state, State::Open(Named { postponed: true, .. }))
    }

    /// Counts a command that leads to no message. True when there were too many of them since the last one.
    pub(super) fn is_tired(&mut self) -> bool {
        self.small_talk = self.small_talk.saturating_add(1);
        self.small_talk > MAX_SMALL_TALK
    }
}

fn reply(code: u16, words: &str, out: &mut Output) -> Option<Step<Event>> {
    say(out, &Reply::new(code, (0, 0), words));
    None
}

/// Commands that may be repeated for ever without a message.
fn is_small_talk(command: &Command) -> bool {
    match command {
        Command::Ehlo(_)
        | Command::Helo(_)
        | Command::Lhlo(_)
        | Command::Xclient(_)
        | Command::Rset
        | Command::Noop
        | Command::Vrfy
        | Command::Help => true,
        Command::Mail(_)
        | Command::Rcpt(_)
        | Command::Data
        | Command::Quit
        | Command::StartTls
        // Counted by what it leads to.
        | Command::Bdat(_) => false,
    }
}
