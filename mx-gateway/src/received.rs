//! The trace header that is put before a message, the loop that too many of them show (RFC 5321 §4.4, §6.3),
//! and what else is read in a header on its way.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use crate::session::Helo;

/// What a Received header says of a transaction.
#[derive(Debug)]
pub struct Trace<'a> {
    /// How the client introduced itself.
    pub helo: &'a Helo,
    /// The client's address.
    pub client: SocketAddr,
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
}

impl Trace<'_> {
    /// The header with its CR LF. Before a message without headers that begins as a folded line does, an
    /// empty line ends it, or the message would be read as more of it.
    pub fn header(&self) -> String {
        let literal = match self.client.ip() {
            IpAddr::V4(v4) => format!("[{v4}]"),
            IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
        };
        // RFC 3848.
        let with = match (self.helo.extended, self.tls.is_some()) {
            (true, true) => "ESMTPS",
            (true, false) => "ESMTP",
            (false, _) => "SMTP",
        };
        let mut header = format!("Received: from {} ({literal})\r\n", tame(&self.helo.name));
        if let Some(tls) = &self.tls {
            let _ = write!(header, "\t(using {})\r\n", tame(tls));
        }
        let _ = write!(header, "\tby {} (Mailshift) with {with} id {}", self.by, self.id);
        if let Some(recipient) = &self.only_recipient {
            let _ = write!(header, "\r\n\tfor <{recipient}>");
        }
        let date = self.at.format(&Rfc2822).unwrap_or_default();
        let _ = write!(header, ";\r\n\t{date}\r\n");
        if matches!(self.first_octet, Some(b' ' | b'\t')) {
            header.push_str("\r\n");
        }
        header
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

/// Reads a message's header while it is received: how many Received fields there are, and its Message-ID.
#[derive(Debug, Default)]
pub struct Loops {
    received: usize,
    /// The first octets of the line at hand, lower case, as far as they count.
    line: Vec<u8>,
    /// The first Message-ID's value so far, folding included.
    message_id: Option<Vec<u8>>,
    /// The line at hand goes on with it.
    in_message_id: bool,
    past_header: bool,
}

/// What a Received field begins with.
const RECEIVED: &[u8] = b"received:";
/// What a Message-ID begins with (RFC 5322 §3.6.4).
const MESSAGE_ID: &[u8] = b"message-id:";
/// Most octets of a Message-ID that are kept.
const MAX_MESSAGE_ID: usize = 500;

impl Loops {
    /// Looks at more of the message.
    pub fn look(&mut self, octets: &[u8]) {
        let mut rest = octets;
        while !self.past_header && !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest);
            self.look_at_line(rest.get(..end.unwrap_or(rest.len())).unwrap_or_default());
            let Some(end) = end else { return };
            self.past_header = matches!(self.line.as_slice(), b"" | b"\r");
            let is_received = self.line.starts_with(RECEIVED);
            self.received = self.received.saturating_add(usize::from(is_received));
            self.line.clear();
            rest = rest.get(end.saturating_add(1)..).unwrap_or_default();
        }
    }

    /// Looks at more of a line.
    fn look_at_line(&mut self, octets: &[u8]) {
        if self.line.is_empty() && !matches!(octets.first(), Some(b' ' | b'\t') | None) {
            self.in_message_id = false;
        }
        let room = MESSAGE_ID.len().saturating_sub(self.line.len()).min(octets.len());
        let (name, value) = octets.split_at(room);
        self.line.extend(name.iter().map(u8::to_ascii_lowercase));
        if self.in_message_id {
            self.keep(octets);
        } else if self.message_id.is_none() && room > 0 && self.line == MESSAGE_ID {
            self.in_message_id = true;
            self.keep(value);
        }
    }

    fn keep(&mut self, octets: &[u8]) {
        let kept = self.message_id.get_or_insert_default();
        let room = MAX_MESSAGE_ID.saturating_sub(kept.len());
        kept.extend(octets.iter().take(room));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn trace<'a>(helo: &'a Helo, tls: Option<&str>, only: Option<&str>) -> Trace<'a> {
        Trace {
            helo,
            client: "[2001:db8::1]:25".parse().unwrap(),
            by: "mx.example.org",
            tls: tls.map(str::to_owned),
            id: "abc",
            only_recipient: only.map(str::to_owned),
            at: OffsetDateTime::UNIX_EPOCH,
            first_octet: Some(b'S'),
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
            b"Received: a\r\n\tfolded\r\nRECEIVED:b\r\nX-Received: c\r\n\r\nReceived: body\r\n";
        for cut in 0..message.len() {
            let mut loops = Loops::default();
            loops.look(&message[..cut]);
            loops.look(&message[cut..]);
            assert_eq!(loops.received(), 2, "cut at {cut}");
        }
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
        assert_eq!(loops.message_id().unwrap().len(), MAX_MESSAGE_ID - 1);
    }
}
