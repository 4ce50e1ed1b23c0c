//! The gateway's SMTP session and a driver that has no sockets.

use mx_gateway::session::{Event, Protocol, Session, Terms};
use shared::dialogue::{Dialogue, Input, Output, Step, Violation};
use shared::smtp::path::ForwardPath;
use shared::smtp::reply::Reply;
use shared::wire::MAX_UNREAD;

use super::pieces::Cut;

/// Most octets that may wait for a client: the measure after which a session answers no more, and one answer.
const MAX_QUEUED: usize = 20 * 1024;

/// Recipients that the driver accepts: by LMTP each has an answer to the message.
const MAX_RECIPIENTS: usize = 100;

/// One session, driven.
struct Played {
    session: Session,
    input: Input,
    out: Output,
    /// What was said to the client.
    said: Vec<u8>,
    /// What the driver was asked, message data in one piece.
    asked: Vec<String>,
    body: Vec<u8>,
    end: Option<&'static str>,
    /// Recipients accepted in the transaction.
    recipients: usize,
    /// Octets that the client says before its next wait.
    under_way: usize,
    /// It did not wait where it must, so what happens depends on how its octets arrive.
    hasty: bool,
}

/// The same answers and events in whatever pieces, as long as the client waits where it must.
pub(super) fn smtp_session(octets: &[u8]) {
    let cut = Cut::read(octets);
    let whole = play(&cut, |turn| vec![turn]);
    // A turn without octets is one, too: there may be an answer before it.
    let pieces = play(&cut, |turn| if turn.is_empty() { vec![turn] } else { cut.pieces(turn) });
    if whole.hasty || pieces.hasty {
        return;
    }
    let text = |played: &Played| String::from_utf8_lossy(&played.said).into_owned();
    assert_eq!(text(&whole), text(&pieces), "what the client hears");
    assert_eq!((&whole.asked, &whole.body), (&pieces.asked, &pieces.body));
    assert_eq!(whole.end, pieces.end);
}

fn play<'a>(cut: &Cut<'a>, pieces: impl Fn(&'a [u8]) -> Vec<&'a [u8]>) -> Played {
    let terms = Terms {
        hostname: "mx.example.org".into(),
        protocol: if cut.has(3) { Protocol::Lmtp } else { Protocol::Smtp },
        max_size: 1000,
        starttls: !cut.has(1),
        dsn: cut.has(4),
        smtputf8: cut.has(4),
        chunking: !cut.has(5),
        trusted: cut.has(6),
    };
    let mut played = Played {
        session: Session::new(terms, cut.has(0)),
        input: Input::default(),
        out: Output::default(),
        said: Vec::new(),
        asked: Vec::new(),
        body: Vec::new(),
        end: None,
        recipients: 0,
        under_way: 0,
        hasty: false,
    };
    played.session.greet(cut.has(2), &mut played.out);
    played.said.extend(played.out.take());
    for turn in cut.turns() {
        played.under_way = turn.len();
        for piece in pieces(turn) {
            played.under_way -= piece.len();
            played.input.push(piece);
            played.drive();
            if played.end.is_some() {
                return played;
            }
        }
    }
    played
}

impl Played {
    /// Drives to the next need of input, or the end.
    fn drive(&mut self) {
        loop {
            let step = self.session.step(&mut self.input, &mut self.out);
            assert!(self.out.len() <= MAX_QUEUED, "{} octets wait", self.out.len());
            match step {
                Ok(Step::NeedInput) if self.out.is_full() => self.said.extend(self.out.take()),
                Ok(Step::NeedInput) => {
                    assert!(self.input.len() < MAX_UNREAD, "it waits for more than there can be");
                    return self.said.extend(self.out.take());
                }
                Ok(Step::StartTls) => {
                    self.hasty |= self.is_ahead();
                    self.session.secured(&mut self.out);
                }
                Ok(Step::Event(event)) => self.answer(event),
                Ok(Step::Close) => return self.ended("closed"),
                Err(violation) => {
                    self.hasty |= violation == Violation::EarlyInput;
                    return self.ended("violation");
                }
            }
        }
    }

    fn ended(&mut self, how: &'static str) {
        self.end = Some(how);
        self.said.extend(self.out.take());
    }

    /// The client has said more than it should have by now.
    fn is_ahead(&self) -> bool {
        self.under_way > 0 || !self.input.is_empty()
    }

    fn answer(&mut self, event: Event) {
        let reply = match &event {
            Event::Body(octets) => return self.body.extend(octets),
            Event::Mail(mail) => {
                self.recipients = 0;
                Reply::new(250, (1, 0), format!("{} ok", mail.from))
            }
            Event::Rcpt(_) if self.recipients == MAX_RECIPIENTS => {
                Reply::new(452, (5, 3), "too many")
            }
            Event::Rcpt(rcpt) => match &rcpt.path {
                ForwardPath::Postmaster => Reply::new(250, (1, 5), "ok"),
                ForwardPath::Mailbox(to) => match to.local() {
                    "held" => Reply::new(451, (3, 2), "later"),
                    "busy" => Reply::new(421, (3, 2), "bye"),
                    "nobody" => Reply::new(550, (1, 1), "unknown"),
                    _ => Reply::new(250, (1, 5), "ok"),
                },
            },
            Event::Data => {
                self.hasty |= self.is_ahead();
                Reply::bare(354, "go on")
            }
            Event::EndOfData { flawed: true } => Reply::new(550, (6, 0), "flawed"),
            Event::EndOfData { flawed: false } => Reply::new(250, (0, 0), "delivered"),
            Event::Reset => return self.asked.push("reset".to_owned()),
            Event::Xclient(told) => {
                self.asked.push(format!("{event:?}"));
                let trusted = told.client_ip.is_some_and(|ip| ip.is_loopback());
                return self.session.begin_anew(trusted, &mut self.out);
            }
        };
        if matches!(event, Event::Rcpt(_)) && reply.code() == 250 {
            self.recipients += 1;
        }
        self.asked.push(format!("{event:?}"));
        self.session.answer(&reply, &mut self.out);
    }
}
