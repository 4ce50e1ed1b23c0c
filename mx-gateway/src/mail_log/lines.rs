//! Lines as Postfix writes them. What others have said cannot end a line, or what is in brackets in it.

use std::fmt;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use shared::smtp::path::ReversePath;
use shared::smtp::reply::{Class, Reply};
use time::OffsetDateTime;

/// Longest text of a peer in a line, in characters.
const MAX_TEXT: usize = 500;

/// One client's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Where it comes from. Its name is not looked for.
    pub address: IpAddr,
    /// What tells its lines from other clients'.
    pub session: u32,
}

/// How many commands of a session were taken, and how many there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// EHLO or HELO, where it was extended.
    pub ehlo: Count,
    /// HELO.
    pub helo: Count,
    /// STARTTLS.
    pub starttls: Count,
    /// MAIL.
    pub mail: Count,
    /// RCPT.
    pub rcpt: Count,
    /// DATA; one is taken when its message was.
    pub data: Count,
}

/// Of one command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    taken: u32,
    all: u32,
}

impl Count {
    /// One more, which was taken or not.
    pub fn add(&mut self, taken: bool) {
        self.taken = self.taken.saturating_add(u32::from(taken));
        self.all = self.all.saturating_add(1);
    }

    /// One more, which was answered so.
    pub fn answered(&mut self, reply: &Reply) {
        self.add(matches!(reply.class(), Class::Accepted | Class::GoOn));
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { taken, all } = self;
        if taken == all { write!(f, "{all}") } else { write!(f, "{taken}/{all}") }
    }
}

/// What was refused: a command, and the transaction it is part of.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// `RCPT`, `MAIL`, `DATA` or `END-OF-MESSAGE`.
    pub command: &'a str,
    /// The sender.
    pub from: &'a ReversePath,
    /// The recipient, if it is about one.
    pub to: Option<&'a str>,
    /// `ESMTP`, `SMTP` or `LMTP`.
    pub protocol: &'a str,
    /// The name the client gave.
    pub helo: &'a str,
}

/// Where a message was offered.
#[derive(Debug, Clone, Copy)]
pub struct Relay<'a> {
    /// Postfix' word for who offers it: `smtp` or `lmtp`.
    pub daemon: &'a str,
    /// The backend's name.
    pub name: &'a str,
    /// The address it was offered at; `None`: it was not connected to.
    pub address: Option<SocketAddr>,
}

/// What a recipient had to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delays {
    /// Until the message was whole here.
    pub before: Duration,
    /// Until somebody turned to it.
    pub queued: Duration,
    /// For a connection.
    pub connecting: Duration,
    /// For the verdict.
    pub sending: Duration,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy)]
pub enum Status<'a> {
    /// The owner has it: its reply.
    Sent(&'a Reply),
    /// It is tried again, or the sender comes again: the owner's reply.
    Deferred(&'a Reply),
    /// The same without a reply: why there is none.
    Unanswered(&'a str),
    /// The owner does not take it: its reply.
    Bounced(&'a Reply),
    /// It is given up without a reply of now: why.
    Expired(&'a str),
}

/// A whole line (RFC 3164) with its end.
pub fn line(at: OffsetDateTime, host: &str, tag: &str, text: &str) -> String {
    let month = at.month().to_string();
    let month = month.get(..3).unwrap_or(&month);
    let (day, hour, minute, second) = (at.day(), at.hour(), at.minute(), at.second());
    let host = bracketed(host);
    format!("{month} {day:>2} {hour:02}:{minute:02}:{second:02} {host} {tag}: {}\n", plain(text))
}

pub(super) fn connect(client: &Client) -> String {
    format!("connect from {client}")
}

pub(super) fn disconnect(client: &Client, tally: &Tally) -> String {
    let Tally { ehlo, helo, starttls, mail, rcpt, data } = tally;
    let mut text = format!("disconnect from {client}");
    let mut commands = Count::default();
    for (name, count) in [
        ("ehlo", ehlo),
        ("helo", helo),
        ("starttls", starttls),
        ("mail", mail),
        ("rcpt", rcpt),
        ("data", data),
    ] {
        commands.taken = commands.taken.saturating_add(count.taken);
        commands.all = commands.all.saturating_add(count.all);
        if count.all > 0 {
            let _ = write!(text, " {name}={count}");
        }
    }
    let _ = write!(text, " commands={commands}");
    text
}

pub(super) fn reject(client: &Client, what: &Named<'_>, reply: &Reply) -> String {
    let Named { command, from, to, protocol, helo } = what;
    let from = sender(from);
    let to = to.map(bracketed);
    let (reply, helo) = (plain(&reply_to(to.as_deref(), reply)), bracketed(helo));
    let to = to.map(|to| format!(" to=<{to}>")).unwrap_or_default();
    format!(
        "NOQUEUE: reject: {command} from {client}: {reply}; from=<{from}>{to} proto={protocol} \
         helo=<{helo}>"
    )
}

/// A refusal; of the two that filters look for (fail2ban's does), in the words that they look for.
fn reply_to(to: Option<&str>, reply: &Reply) -> String {
    let about = reply.enhanced().map(|code| (code.subject, code.detail));
    let words = match (reply.class(), about, to) {
        (Class::Permanent, Some((1, 1)), Some(_)) => "Recipient address rejected: User unknown",
        (Class::Permanent, Some((7, 1)), Some(_)) if reply.text().ends_with("relaying denied") => {
            "Relay access denied"
        }
        _ => return reply.to_string(),
    };
    reply.saying(format!("<{}>: {words}", to.unwrap_or_default())).to_string()
}

pub(super) fn client(id: &str, client: &Client) -> String {
    format!("{}: client={client}", bracketed(id))
}

/// `message_id` with its brackets, as the message has it.
pub(super) fn message_id(id: &str, message_id: &str) -> String {
    let text: String = message_id.chars().take(MAX_TEXT).map(|c| printable(c, false)).collect();
    format!("{}: message-id={}", bracketed(id), text.replace(' ', "?"))
}

pub(super) fn queued(id: &str, from: &ReversePath, size: u64, recipients: usize) -> String {
    let (id, from) = (bracketed(id), sender(from));
    format!("{id}: from=<{from}>, size={size}, nrcpt={recipients} (queue active)")
}

pub(super) fn attempt(
    id: &str,
    to: &str,
    relay: Option<&Relay<'_>>,
    delays: &Delays,
    status: &Status<'_>,
) -> String {
    let relay = match relay {
        Some(Relay { name, address: Some(address), .. }) => {
            format!("{}[{}]:{}", bracketed(name), address.ip(), address.port())
        }
        Some(Relay { name, address: None, .. }) => bracketed(name),
        None => "none".to_owned(),
    };
    let Delays { before, queued, connecting, sending } = *delays;
    let all = before.saturating_add(queued).saturating_add(connecting).saturating_add(sending);
    let delays = [before, queued, connecting, sending].map(seconds).join("/");
    let (id, to, delay) = (bracketed(id), bracketed(to), seconds(all));
    let (dsn, word, why) = match status {
        Status::Sent(reply) => (dsn(reply, 2), "sent", reply.to_string()),
        Status::Deferred(reply) => (dsn(reply, 4), "deferred", reply.to_string()),
        Status::Unanswered(why) => ("4.4.1".to_owned(), "deferred", (*why).to_owned()),
        Status::Bounced(reply) => (dsn(reply, 5), "bounced", reply.to_string()),
        Status::Expired(why) => ("5.4.7".to_owned(), "bounced", (*why).to_owned()),
    };
    let why = plain(&why);
    format!(
        "{id}: to=<{to}>, relay={relay}, delay={delay}, delays={delays}, dsn={dsn}, status={word} ({why})"
    )
}

pub(super) fn removed(id: &str) -> String {
    format!("{}: removed", bracketed(id))
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown[{}]", self.address.to_canonical())
    }
}

/// A reply's enhanced code, in the class of what became of the message.
fn dsn(reply: &Reply, class: u16) -> String {
    match reply.enhanced() {
        Some(code) => format!("{class}.{}.{}", code.subject, code.detail),
        None => format!("{class}.0.0"),
    }
}

fn sender(from: &ReversePath) -> String {
    match from {
        ReversePath::Null => String::new(),
        ReversePath::Mailbox(mailbox) => bracketed(mailbox.as_ref()),
    }
}

/// As text: it stays on its line.
fn plain(text: &str) -> String {
    // A line is longer than any of its texts.
    text.chars().take(MAX_TEXT.saturating_mul(8)).map(|c| printable(c, false)).collect()
}

/// As a value in brackets: it stays in them, and is one word.
fn bracketed(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| printable(c, true)).collect()
}

fn printable(c: char, in_brackets: bool) -> char {
    let breaks_out = in_brackets && (matches!(c, '<' | '>') || c.is_whitespace());
    if c.is_control() || breaks_out || matches!(c, '\u{2028}' | '\u{2029}') { '?' } else { c }
}

/// In seconds as Postfix writes them: two figures, hundredths at most.
fn seconds(time: Duration) -> String {
    let hundredths = time.as_millis() / 10;
    let text = match hundredths {
        0..100 => format!("0.{hundredths:02}"),
        100..1000 => format!("{}.{}", hundredths / 100, hundredths % 100 / 10),
        _ => return (hundredths / 100).to_string(),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
