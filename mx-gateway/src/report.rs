//! The report that tells a sender what became of a message (SPL-5; RFC 3461, RFC 3464, RFC 6522).
//!
//! Text alone: who is told is [`is_due`], who the report goes to and by which way is the queue's business.
//! Addresses, replies and headers in it come from strangers: whatever they contain stays in its own field.

use std::fmt::Write;

use base64::prelude::{BASE64_STANDARD, Engine};
use memchr::memmem;
use shared::address::Address;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::{Class, Reply};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

#[cfg(test)]
mod tests;

/// Most octets of a message's header that are returned.
const MAX_HEADER: usize = 64 * 1024;
/// Most octets of a message that is returned whole.
const MAX_WHOLE: usize = 256 * 1024;
/// Octets of a message's beginning that are of use in [`Report::content`].
pub const WANTED: usize = MAX_WHOLE + 1;
/// Longest line (RFC 5322 §2.1.1).
const MAX_LINE: usize = 998;
/// Longest value of a field that stands on one line with its name.
const MAX_VALUE: usize = 800;
/// Octets of base64 in a line (RFC 2045 §6.8).
const BASE64_LINE: usize = 76;

/// A report to the sender of one message.
#[derive(Debug)]
pub struct Report<'a> {
    /// The report's own id.
    pub id: &'a str,
    /// Our name.
    pub hostname: &'a str,
    /// The mailbox it goes to: the message's sender.
    pub to: &'a str,
    /// What it tells.
    pub news: News,
    /// When it is written.
    pub at: OffsetDateTime,
    /// The message's id.
    pub message: &'a str,
    /// When the message was received.
    pub arrived: OffsetDateTime,
    /// ENVID as received, in xtext.
    pub envid: Option<&'a str>,
    /// RET as received.
    pub ret: Option<&'a str>,
    /// Whom it is about: one at least.
    pub recipients: &'a [Reported<'a>],
    /// The message's beginning: all of it, or [`WANTED`] octets.
    pub content: &'a [u8],
}

/// What a report tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The message was not delivered, and will not be.
    Failure,
    /// The message was not delivered so far. It is tried until then.
    Delay(OffsetDateTime),
}

/// One recipient in a report.
#[derive(Debug)]
pub struct Reported<'a> {
    /// Its address, as the sender named it or as its owner gets it: where nobody else's is revealed by it.
    pub address: &'a Address,
    /// ORCPT as received, in xtext.
    pub orcpt: Option<&'a str>,
    /// The last word about it.
    pub reply: &'a Reply,
    /// The receiving server said that; else it is ours, as when the time is over.
    pub by_server: bool,
}

/// Whether somebody is told of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The sender.
    Report,
    /// The operator, by a dead letter.
    DeadLetter(Why),
    /// Nobody: the sender asked for that. It is written down, no more.
    Nothing,
}

/// Why the sender is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is none (RFC 5321 §6.1): the message is a report itself, and reports of reports never end.
    NullSender,
    /// Nobody knows whether the message came from there: the report would go to somebody who has nothing to
    /// do with it (RFC 5321 §6.2).
    NotAuthenticated,
}

/// Whether a failure is reported, and to whom. `notify` as received, `may_report` as in the envelope.
///
/// NOTIFY without FAILURE counts first, also for the null sender: RFC 3461 §4.1 wants no notification then,
/// and nobody is told less than the sender had asked for. A dead letter is for what the sender would have to
/// know and cannot be told.
pub fn is_due(notify: Option<&str>, from: &ReversePath, may_report: bool) -> Due {
    match from {
        _ if !asks_for(notify, "FAILURE") => Due::Nothing,
        ReversePath::Null => Due::DeadLetter(Why::NullSender),
        ReversePath::Mailbox(_) if may_report => Due::Report,
        ReversePath::Mailbox(_) => Due::DeadLetter(Why::NotAuthenticated),
    }
}

/// Whether a sender is told that a message takes long. Nothing else tells of that.
pub fn is_delay_due(notify: Option<&str>, from: &ReversePath, may_report: bool) -> bool {
    asks_for(notify, "DELAY") && may_report && *from != ReversePath::Null
}

/// True without NOTIFY: what is told then is for us to say (RFC 3461 §4.1).
fn asks_for(notify: Option<&str>, event: &str) -> bool {
    notify
        .is_none_or(|notify| notify.split(',').any(|word| word.trim().eq_ignore_ascii_case(event)))
}

/// The report as a message: every line ends with CR LF and has 998 octets at most. Not ASCII only where the
/// headers it returns, or an address, are not; it needs 8BITMIME then, and SMTPUTF8 where an address is not.
pub fn text(report: &Report<'_>) -> Vec<u8> {
    let parts = [explanation(report), delivery_status(report), returned(report)];
    let boundary = boundary(report, &parts);
    let mut text = header(report, &boundary, parts.iter().all(|part| part.is_ascii())).into_bytes();
    for part in parts {
        text.extend_from_slice(format!("\r\n--{boundary}\r\n").as_bytes());
        text.extend(part);
    }
    text.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    text
}

fn header(report: &Report<'_>, boundary: &str, ascii: bool) -> String {
    let Report { id, hostname, to, .. } = report;
    let subject = match report.news {
        News::Failure => "Your message could not be delivered",
        News::Delay(_) => "Your message is delayed",
    };
    let bits = bits(ascii);
    format!(
        "From: Mail Delivery System <MAILER-DAEMON@{hostname}>\r\n\
         To: <{to}>\r\n\
         Subject: {subject}\r\n\
         Date: {date}\r\n\
         Message-ID: <{id}@{hostname}>\r\n\
         Auto-Submitted: auto-replied\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status;\r\n\
         \tboundary=\"{boundary}\"\r\n\
         Content-Transfer-Encoding: {bits}\r\n",
        hostname = tame(hostname),
        to = on_one_line(to),
        date = date(report.at),
        id = tame(id),
    )
}

/// A boundary that is in none of the parts.
fn boundary(report: &Report<'_>, parts: &[Vec<u8>]) -> String {
    let name: String = report.id.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    let mut candidates = (0_u64..).map(|attempt| format!("=_{name}_{attempt}"));
    let is_free = |candidate: &String| {
        parts.iter().all(|part| memmem::find(part, candidate.as_bytes()).is_none())
    };
    candidates.find(is_free).unwrap_or_default()
}

/// What a person reads.
fn explanation(report: &Report<'_>) -> Vec<u8> {
    let mut text = format!(
        "This is the mail system at {}.\r\n\r\nYour message of {}\r\n",
        tame(report.hostname),
        date(report.arrived)
    );
    text.push_str(match report.news {
        News::Failure => {
            "could not be delivered to everyone it was for. It will not be tried again.\r\n\r\n\
             Who has not got it, and why:\r\n"
        }
        News::Delay(_) => "has not reached everyone it was for. You need not send it again.\r\n",
    });
    if let News::Delay(until) = report.news {
        let _ = write!(text, "It is tried until {}.\r\n\r\n", date(until));
        text.push_str("Who has not got it so far, and why:\r\n");
    }
    for recipient in report.recipients {
        let speaker = if recipient.by_server { "The receiving server said" } else { "Reason" };
        let address = on_one_line(&recipient.address.to_string());
        let reply = tame(&recipient.reply.to_string());
        let _ = write!(text, "\r\n<{address}>\r\n    {speaker}: {reply}\r\n");
    }
    text.push_str(
        "\r\nThe beginning of your message is attached, so that you know which it was.\r\n",
    );
    let bits = bits(text.is_ascii());
    let header = "Content-Type: text/plain; charset=utf-8\r\n";
    format!("{header}Content-Transfer-Encoding: {bits}\r\n\r\n{text}").into_bytes()
}

/// What a program reads (RFC 3464). Our owners' names are nobody's business, so there is no Remote-MTA.
fn delivery_status(report: &Report<'_>) -> Vec<u8> {
    let mut text = format!(
        "Content-Type: message/delivery-status\r\n\r\n\
         Reporting-MTA: dns; {}\r\nX-Mailshift-Id: {}\r\n",
        tame(report.hostname),
        tame(report.message)
    );
    if let Some(envid) = report.envid.and_then(value) {
        let _ = write!(text, "Original-Envelope-Id: {envid}\r\n");
    }
    let _ = write!(text, "Arrival-Date: {}\r\n", date(report.arrived));
    for recipient in report.recipients {
        text.push_str("\r\n");
        let original = recipient.orcpt.and_then(|orcpt| orcpt.split_once(';'));
        if let Some((kind, address)) = original
            && !kind.is_empty()
            && kind.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
            && let Some(address) = value(address)
        {
            let _ = write!(text, "Original-Recipient: {kind}; {address}\r\n");
        }
        let address = final_recipient(&recipient.address.to_string());
        let _ = write!(text, "Final-Recipient: {address}\r\n");
        let action = match report.news {
            News::Failure => "failed",
            News::Delay(_) => "delayed",
        };
        let _ = write!(text, "Action: {action}\r\nStatus: {}\r\n", status(report, recipient.reply));
        // Of another type where it is not what a server said (RFC 3464 §2.3.6).
        let kind = if recipient.by_server { "smtp" } else { "x-mailshift" };
        let _ = write!(text, "Diagnostic-Code: {kind}; {}\r\n", tame(&recipient.reply.to_string()));
        if let News::Delay(until) = report.news {
            let _ = write!(text, "Will-Retry-Until: {}\r\n", date(until));
        }
    }
    text.into_bytes()
}

/// An address that is not ASCII is written in ASCII (RFC 6533 §3).
fn final_recipient(address: &str) -> String {
    if address.is_ascii() {
        return format!("rfc822; {}", on_one_line(address));
    }
    let mut escaped = String::from("utf-8; ");
    for c in address.chars() {
        match c {
            '!'..='~' if !"\\+=".contains(c) => escaped.push(c),
            _ => {
                let _ = write!(escaped, "\\x{{{:02X}}}", u32::from(c));
            }
        }
    }
    escaped
}

/// The status code of a reply (RFC 3463). A failure is permanent or, where time is over, was temporary.
fn status(report: &Report<'_>, reply: &Reply) -> String {
    let class = match (report.news, reply.class()) {
        (News::Failure, Class::Permanent) => 5,
        (News::Delay(_), _) | (_, Class::Temporary | Class::Accepted | Class::GoOn) => 4,
    };
    let (subject, detail) =
        reply.enhanced().map_or((0, 0), |enhanced| (enhanced.subject, enhanced.detail));
    format!("{class}.{subject}.{detail}")
}

/// Which message it was: its header, or all of it when RET=FULL was given and it is not too large. A whole
/// message must not be encoded (RFC 2046 §5.2.1); where it would have to be, its header is enough.
fn returned(report: &Report<'_>) -> Vec<u8> {
    let whole = report.content;
    let full = report.ret.is_some_and(|ret| ret.eq_ignore_ascii_case("FULL"));
    if full && whole.len() <= MAX_WHOLE && has_lines(whole) {
        let bits = bits(whole.is_ascii());
        let header =
            format!("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: {bits}\r\n\r\n");
        return [header.as_bytes(), whole].concat();
    }
    let fields = fields(whole);
    if has_lines(fields) {
        let bits = bits(fields.is_ascii());
        let header = format!(
            "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: {bits}\r\n\r\n"
        );
        return [header.as_bytes(), fields].concat();
    }
    let mut part = String::from(
        "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: base64\r\n\r\n",
    );
    for (at, c) in BASE64_STANDARD.encode(fields).chars().enumerate() {
        if at > 0 && at % BASE64_LINE == 0 {
            part.push_str("\r\n");
        }
        part.push(c);
    }
    part.push_str("\r\n");
    part.into_bytes()
}

/// The header at the beginning of a message, whole lines of it.
fn fields(content: &[u8]) -> &[u8] {
    let end = memmem::find(content, b"\r\n\r\n").map_or(content.len(), |end| end.saturating_add(2));
    let header = content.get(..end.min(MAX_HEADER)).unwrap_or_default();
    if header.len() == content.len() || header.len() < MAX_HEADER {
        return header;
    }
    let end = memmem::rfind(header, b"\r\n").map_or(header.len(), |end| end.saturating_add(2));
    header.get(..end).unwrap_or(header)
}

/// True when octets are lines as mail has them: nothing but CR LF ends them, none is too long, no NUL.
fn has_lines(octets: &[u8]) -> bool {
    let mut length = 0_usize;
    let mut last = b'\n';
    for octet in octets {
        let good = match octet {
            0 => false,
            b'\n' => last == b'\r',
            _ => last != b'\r',
        };
        length = if *octet == b'\n' { 0 } else { length.saturating_add(1) };
        // The CR is in it.
        if !good || length > MAX_LINE.saturating_add(usize::from(*octet == b'\r')) {
            return false;
        }
        last = *octet;
    }
    last != b'\r'
}

fn bits(ascii: bool) -> &'static str {
    if ascii { "7bit" } else { "8bit" }
}

fn date(at: OffsetDateTime) -> String {
    at.format(&Rfc2822).unwrap_or_default()
}

/// Printable ASCII: what a server or a client said, where only people read it.
fn tame(text: &str) -> String {
    let tame = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    text.chars().map(tame).take(MAX_VALUE).collect()
}

/// An address as it is, but for what ends a line. There is none in those that were parsed.
fn on_one_line(address: &str) -> String {
    address.chars().filter(|c| !c.is_control()).take(MAX_VALUE).collect()
}

/// A parameter for a field: out of its xtext (RFC 3461 §4, §6.3) where it is printable ASCII then, else as it
/// was received; `None` when even that cannot be written.
fn value(xtext: &str) -> Option<String> {
    let printable = |text: &str| {
        !text.trim().is_empty()
            && text.len() <= MAX_VALUE
            && text.bytes().all(|octet| matches!(octet, b' '..=b'~'))
    };
    let decoded = decoded(xtext).filter(|text| printable(text));
    decoded.or_else(|| Some(xtext.to_owned()).filter(|text| printable(text)))
}

/// Text out of its xtext; `None` when it is none.
fn decoded(xtext: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(xtext.len());
    let mut rest = xtext.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'+' {
            let (digits, tail) = rest.split_at_checked(2)?;
            let sound = digits.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(digits).ok().filter(|_| sound)?;
            octets.push(u8::from_str_radix(digits, 16).ok()?);
            rest = tail;
        } else {
            octets.push(*first);
        }
    }
    String::from_utf8(octets).ok()
}
