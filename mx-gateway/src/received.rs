//! The trace header that is put before a message, the loop that too many of them show (RFC 5321 §4.4, §6.3),
//! and what else is read in a header on its way.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::session::{Helo, Protocol};

/// What a Received header says of a transaction.
#[derive(Debug)]
pub struct Trace<'a> {
    /// How the client introduced itself.
    pub helo: &'a Helo,
    /// The client's address.
    pub client: SocketAddr,
    /// The client's name by the DNS, where it is known.
    pub name: Option<&'a str>,
    /// What the client speaks.
    pub protocol: Protocol,
    /// MAIL said SMTPUTF8.
    pub smtputf8: bool,
    /// Our name.
    pub by: &'a str,
    /// TLS version and cipher suite, if there is TLS.
    pub tls: Option<String>,
    /// Our name for the message.
    pub id: &'a str,
    /// The recipient, when there is only one: others must not learn of each other.
    pub only_recipient: Option<String>,
    /// When the message was received.
    pub at: OffsetDateTime,
    /// What the message begins with.
    pub first_octet: Option<u8>,
    /// Our own trace ([`crate::hop`]), which follows.
    pub hop: &'a str,
}

impl Trace<'_> {
    /// The header with its CR LF. Before a message without headers that begins as a folded line does, an
    /// empty line ends it, or the message would be read as more of it.
    pub fn header(&self) -> String {
        let literal = match self.client.ip() {
            IpAddr::V4(v4) => format!("[{v4}]"),
            IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
        };
        let client = match self.name {
            Some(name) => format!("{} {literal}", tame_atoms(name)),
            None => literal,
        };
        let mut header = format!("Received: from {} ({client})\r\n", tame(&self.helo.name));
        if let Some(tls) = &self.tls {
            let _ = write!(header, "\t(using {})\r\n", tame(tls));
        }
        let _ = write!(header, "\tby {} (Mailshift) with {} id {}", self.by, self.with(), self.id);
        if let Some(recipient) = &self.only_recipient {
            let _ = write!(header, "\r\n\tfor <{recipient}>");
        }
        let date = self.at.format(&Rfc2822).unwrap_or_default();
        let _ = write!(header, ";\r\n\t{date}\r\n{}", self.hop);
        if matches!(self.first_octet, Some(b' ' | b'\t')) {
            header.push_str("\r\n");
        }
        header
    }
}

impl Trace<'_> {
    /// The protocol's registered name (RFC 3848, RFC 6531 §4.3).
    fn with(&self) -> String {
        let secured = if self.tls.is_some() { "S" } else { "" };
        match (self.protocol, self.smtputf8) {
            (Protocol::Smtp, true) => format!("UTF8SMTP{secured}"),
            (Protocol::Lmtp, true) => format!("UTF8LMTP{secured}"),
            (Protocol::Lmtp, false) => format!("LMTP{secured}"),
            (Protocol::Smtp, false) if self.helo.extended => format!("ESMTP{secured}"),
            (Protocol::Smtp, false) => "SMTP".to_owned(),
        }
    }
}

/// Our header with more fields, each with its CR LF, behind those it has: before the empty line that ends it,
/// where one does.
pub fn with_fields(header: &str, fields: &str) -> String {
    match header.strip_suffix("\r\n\r\n") {
        Some(before) => format!("{before}\r\n{fields}\r\n"),
        None => format!("{header}{fields}"),
    }
}

/// Takes out what would end a comment or begin another part of the header: a string or a literal, too,
/// unless it is an address literal as a whole.
fn tame(text: &str) -> String {
    let literal = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Some(address) = literal {
        return format!("[{}]", tame_atoms(address));
    }
    tame_atoms(text)
}

fn tame_atoms(text: &str) -> String {
    let is_tame = |c: char| c.is_ascii_graphic() && !"()<>[];\\\"".contains(c) || c == ' ';
    text.chars().map(|c| if is_tame(c) { c } else { '?' }).collect()
}

/// Reads a message's header while it is received: how many Received fields there are, our own trace, and its
/// Message-ID.
#[derive(Debug, Default)]
pub struct Loops {
    received: usize,
    /// Values of our own trace, which may be forged.
    hops: Vec<String>,
    /// The first Message-ID's value so far, folding included.
    message_id: Option<Vec<u8>>,
    /// The line at hand goes on with it.
    in_message_id: bool,
    /// The first octets of the line at hand, as far as they count.
    line: Vec<u8>,
    past_header: bool,
}

/// What a Received field begins with.
const RECEIVED: &[u8] = b"received:";
/// What our own trace begins with.
const HOP: &[u8] = b"mailshift-hop:";
/// What a Message-ID begins with (RFC 5322 §3.6.4).
const MESSAGE_ID: &[u8] = b"message-id:";
/// Octets of a line that are looked at: all of our trace's, whatever our name is.
const LOOKED_AT: usize = 512;
/// Fields of our trace that are kept. Ours are above those that the message had before.
const MAX_HOPS: usize = 16;
/// Most octets of a Message-ID that are kept.
const MAX_MESSAGE_ID: usize = 500;

impl Loops {
    /// Looks at more of the message.
    pub fn look(&mut self, octets: &[u8]) {
        let mut rest = octets;
        while !self.past_header && !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest);
            let line = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            let room = LOOKED_AT.saturating_sub(self.line.len());
            self.line.extend(line.iter().take(room));
            let Some(end) = end else { return };
            self.past_header = matches!(self.line.as_slice(), b"" | b"\r");
            let line = std::mem::take(&mut self.line);
            self.note_line(&line);
            self.line = line;
            self.line.clear();
            rest = rest.get(end.saturating_add(1)..).unwrap_or_default();
        }
    }

    fn note_line(&mut self, line: &[u8]) {
        if value_of(RECEIVED, line).is_some() {
            self.received = self.received.saturating_add(1);
        }
        if let Some(value) = value_of(HOP, line)
            && self.hops.len() < MAX_HOPS
        {
            self.hops.push(String::from_utf8_lossy(value).into_owned());
        }
        self.in_message_id &= matches!(line.first(), Some(b' ' | b'\t'));
        if self.in_message_id {
            self.keep(line);
        } else if let (Some(value), None) = (value_of(MESSAGE_ID, line), &self.message_id) {
            self.in_message_id = true;
            self.keep(value);
        }
    }

    fn keep(&mut self, octets: &[u8]) {
        let kept = self.message_id.get_or_insert_default();
        let room = MAX_MESSAGE_ID.saturating_sub(kept.len());
        kept.extend(octets.iter().take(room));
    }

    /// The values of our own trace, which may be forged.
    pub fn hops(&self) -> impl Iterator<Item = &str> {
        self.hops.iter().map(String::as_str)
    }

    /// Received headers seen.
    pub fn received(&self) -> usize {
        self.received
    }

    /// The Message-ID as it stands there, brackets included.
    pub fn message_id(&self) -> Option<String> {
        let kept = String::from_utf8_lossy(self.message_id.as_deref()?);
        let text: String = kept.chars().filter(|c| !c.is_ascii_control()).collect();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

/// What follows a field's name, whose case does not matter.
fn value_of<'a>(name: &[u8], line: &'a [u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace<'a>(helo: &'a Helo, tls: Option<&str>, only: Option<&str>) -> Trace<'a> {
        Trace {
            helo,
            client: "[2001:db8::1]:25".parse().unwrap(),
            name: None,
            protocol: Protocol::Smtp,
            smtputf8: false,
            by: "mx.example.org",
            tls: tls.map(str::to_owned),
            id: "abc",
            only_recipient: only.map(str::to_owned),
            at: OffsetDateTime::UNIX_EPOCH,
            first_octet: Some(b'S'),
            hop: "",
        }
    }

    #[test]
    fn a_received_header_says_how_a_message_came() {
        let helo = Helo { name: "mail.example.net".into(), extended: true };
        assert_eq!(
            trace(&helo, Some("TLSv1.3 with cipher X"), Some("ann@example.org")).header(),
            "Received: from mail.example.net ([IPv6:2001:db8::1])\r\n\
             \t(using TLSv1.3 with cipher X)\r\n\
             \tby mx.example.org (Mailshift) with ESMTPS id abc\r\n\
             \tfor <ann@example.org>;\r\n\
             \tThu, 01 Jan 1970 00:00:00 +0000\r\n"
        );
    }

    #[test]
    fn the_protocol_has_its_registered_name() {
        use Protocol::{Lmtp, Smtp};
        for (protocol, smtputf8, extended, tls, expected) in [
            (Smtp, false, false, None, "SMTP"),
            (Smtp, false, true, None, "ESMTP"),
            (Smtp, false, true, Some("TLSv1.3"), "ESMTPS"),
            (Smtp, true, true, None, "UTF8SMTP"),
            (Smtp, true, true, Some("TLSv1.3"), "UTF8SMTPS"),
            (Lmtp, false, true, None, "LMTP"),
            (Lmtp, false, true, Some("TLSv1.3"), "LMTPS"),
            (Lmtp, true, true, None, "UTF8LMTP"),
            (Lmtp, true, true, Some("TLSv1.3"), "UTF8LMTPS"),
        ] {
            let helo = Helo { name: "x".into(), extended };
            let header = Trace { protocol, smtputf8, ..trace(&helo, tls, None) }.header();
            assert!(header.contains(&format!(" with {expected} id abc")), "{header}");
        }
    }

    #[test]
    fn a_name_that_a_trusted_peer_told_stands_before_the_address() {
        let helo = Helo { name: "x".into(), extended: true };
        for (name, expected) in [
            ("mail.example.net", "(mail.example.net [IPv6:2001:db8::1])"),
            ("a)(b", "(a??b [IPv6:2001:db8::1])"),
        ] {
            let header = Trace { name: Some(name), ..trace(&helo, None, None) }.header();
            assert!(header.starts_with(&format!("Received: from x {expected}\r\n")), "{header}");
        }
    }

    #[test]
    fn recipients_of_one_message_do_not_learn_of_each_other() {
        let helo = Helo { name: "x".into(), extended: false };
        let header = trace(&helo, None, None).header();
        assert!(!header.contains("for <") && header.contains("with SMTP id"), "{header}");
    }

    #[test]
    fn a_client_cannot_write_our_header() {
        for (name, expected) in [
            ("x) by evil;\r\nX-Evil: (yes", "x? by evil???X-Evil: ?yes"),
            ("\"x", "?x"),
            ("[192.0.2.1", "?192.0.2.1"),
            ("x]", "x?"),
            ("[[x]", "[?x]"),
            ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        ] {
            let helo = Helo { name: name.into(), extended: true };
            let header = trace(&helo, None, None).header();
            assert!(header.starts_with(&format!("Received: from {expected} ([IPv6:")), "{header}");
        }
    }

    #[test]
    fn a_message_that_begins_with_a_folded_line_goes_on_with_no_header_of_ours() {
        let helo = Helo { name: "x".into(), extended: true };
        for (first_octet, expected) in [
            (Some(b' '), " +0000\r\n\r\n"),
            (Some(b'\t'), " +0000\r\n\r\n"),
            (Some(b'S'), " +0000\r\n"),
            (None, " +0000\r\n"),
        ] {
            let header = Trace { first_octet, ..trace(&helo, None, None) }.header();
            assert!(header.ends_with(expected), "{header:?}");
        }
    }

    #[test]
    fn received_headers_are_counted_in_the_header_only_and_however_they_are_cut() {
        let message =
            b"Received: a\r\n\tfolded\r\nMailshift-Hop: 1; by=A\r\nmailshift-HOP:2\r\nRECEIVED:b\r\n\
              X-Received: c\r\n\r\nReceived: body\r\nMailshift-Hop: 3\r\n";
        for cut in 0..message.len() {
            let mut loops = Loops::default();
            loops.look(&message[..cut]);
            loops.look(&message[cut..]);
            assert_eq!(loops.received(), 2, "cut at {cut}");
            let hops: Vec<&str> = loops.hops().collect();
            assert_eq!(hops, [" 1; by=A\r", "2\r"], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_kept_of_a_header_is_bounded() {
        let mut loops = Loops::default();
        for _ in 0..1000 {
            loops.look(format!("Mailshift-Hop: {}\r\n", "x".repeat(5000)).as_bytes());
        }
        assert!(loops.hops().count() <= MAX_HOPS);
        assert!(loops.hops().all(|value| value.len() <= LOOKED_AT));
    }

    #[test]
    fn the_first_message_id_is_found_in_the_header_only_folded_or_not_and_however_it_is_cut() {
        for (message, expected) in [
            ("Subject: x\r\nMessage-ID: <a@b>\r\nMessage-Id: <c@d>\r\n\r\n", Some("<a@b>")),
            ("MESSAGE-ID:\r\n\t<a@b>\r\nX: y\r\n\r\n", Some("<a@b>")),
            ("Message-Id: <a@b>\r\n \r\n x\r\nTo: y\r\n\r\n", Some("<a@b>  x")),
            ("X-Message-ID: <a@b>\r\n Message-ID: <c@d>\r\n\r\nMessage-ID: <e@f>\r\n", None),
            ("Message-ID: \r\n\r\n", None),
        ] {
            for cut in 0..message.len() {
                let mut loops = Loops::default();
                loops.look(&message.as_bytes()[..cut]);
                loops.look(&message.as_bytes()[cut..]);
                assert_eq!(loops.message_id().as_deref(), expected, "{message:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_message_id_without_end_is_kept_to_its_limit() {
        let mut loops = Loops::default();
        loops.look(b"Message-ID: <");
        for _ in 0..1000 {
            loops.look(&[b'x'; 100]);
        }
        loops.look(b"\r\n");
        for _ in 0..10 {
            loops.look(format!(" {}\r\n", "x".repeat(100)).as_bytes());
        }
        assert_eq!(loops.message_id().unwrap().len(), MAX_MESSAGE_ID - 1);
    }
}
