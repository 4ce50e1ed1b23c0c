//! Postfix's socketmap and tcp_table protocols (socketmap_table(5), tcp_table(5)), server side.
//!
//! A socketmap request is a netstring, `10:map key...,`; a tcp_table request a line, `get key`, in which
//! `%20` and the like stand for what a line cannot hold. Either may come in any pieces.

use std::borrow::Cow;
use std::fmt::Write;

use shared::backend::BackendName;

use super::Answer;

/// Longest request in octets: the longest address, however it is written, and a map's name.
pub const MAX_REQUEST: usize = 4096;
/// Digits of a netstring's length.
const MAX_DIGITS: usize = 4;

/// What is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// Each request names a map, which is the asking backend's name.
    Socketmap,
    /// All requests are this backend's.
    TcpTable(BackendName),
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The asking backend.
    pub backend: Box<str>,
    /// What it wants to know of.
    pub key: Box<str>,
}

/// What came is no request, and nothing behind it can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than any request.
    #[error("a request of more than {MAX_REQUEST} octets")]
    TooLong,
    /// Not a netstring.
    #[error("not a netstring")]
    Netstring,
    /// A netstring without a map's name and a key.
    #[error("no map and key")]
    MapAndKey,
    /// Not `get` and a key.
    #[error("not a get request")]
    Get,
}

impl Protocol {
    /// The first request in `octets` and how many of them it takes; `None` while it is not whole.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn request(&self, octets: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
        match self {
            Self::Socketmap => socketmap(octets),
            Self::TcpTable(backend) => tcp_table(octets, backend),
        }
    }

    /// An answer as it is sent.
    pub fn reply(&self, answer: &Answer) -> Vec<u8> {
        let text = match (self, answer) {
            (Self::Socketmap, Answer::HandOn(hop)) => netstring(&format!("OK {hop}")),
            (Self::Socketmap, Answer::NotFound) => netstring("NOTFOUND "),
            (Self::Socketmap, Answer::Wait(why)) => netstring(&format!("TEMP {why}")),
            (Self::TcpTable(_), Answer::HandOn(hop)) => format!("200 {}\n", encoded(hop)),
            (Self::TcpTable(_), Answer::NotFound) => "500 not%20found\n".to_owned(),
            (Self::TcpTable(_), Answer::Wait(why)) => format!("400 {}\n", encoded(why)),
        };
        text.into_bytes()
    }
}

fn socketmap(octets: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
    let digits = octets.iter().take_while(|octet| octet.is_ascii_digit()).count();
    let length = octets.get(..digits).map(String::from_utf8_lossy).unwrap_or_default();
    match octets.get(digits) {
        _ if digits > MAX_DIGITS => return Err(Malformed::TooLong),
        None => return Ok(None),
        Some(b':') => {}
        Some(_) => return Err(Malformed::Netstring),
    }
    let length: usize = length.parse().map_err(|_| Malformed::Netstring)?;
    if length > MAX_REQUEST {
        return Err(Malformed::TooLong);
    }
    let start = digits.saturating_add(1);
    let end = start.saturating_add(length);
    let Some(text) = octets.get(start..end) else { return Ok(None) };
    match octets.get(end) {
        None => Ok(None),
        Some(b',') => {
            let text = String::from_utf8_lossy(text);
            let (map, key) = text.split_once(' ').ok_or(Malformed::MapAndKey)?;
            let request = Request { backend: map.into(), key: key.into() };
            Ok(Some((request, end.saturating_add(1))))
        }
        Some(_) => Err(Malformed::Netstring),
    }
}

fn tcp_table(octets: &[u8], backend: &BackendName) -> Result<Option<(Request, usize)>, Malformed> {
    let looked_at = octets.get(..MAX_REQUEST.min(octets.len())).unwrap_or_default();
    let Some(end) = memchr::memchr(b'\n', looked_at) else {
        let is_full = octets.len() >= MAX_REQUEST;
        return if is_full { Err(Malformed::TooLong) } else { Ok(None) };
    };
    let line = String::from_utf8_lossy(octets.get(..end).unwrap_or_default());
    let key = line.trim_end_matches('\r').strip_prefix("get ").ok_or(Malformed::Get)?;
    let key = decoded(key).ok_or(Malformed::Get)?;
    let request = Request { backend: backend.as_str().into(), key: key.into() };
    Ok(Some((request, end.saturating_add(1))))
}

fn netstring(text: &str) -> String {
    format!("{}:{text},", text.len())
}

/// `%`, spaces and what is not printable become `%XX`.
fn encoded(text: &str) -> Cow<'_, str> {
    let is_plain = |octet: u8| octet.is_ascii_graphic() && octet != b'%';
    if text.bytes().all(is_plain) {
        return text.into();
    }
    let mut encoded = String::new();
    for octet in text.bytes() {
        if is_plain(octet) {
            encoded.push(char::from(octet));
        } else {
            let _ = write!(encoded, "%{octet:02X}");
        }
    }
    encoded.into()
}

fn decoded(text: &str) -> Option<String> {
    let mut octets = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(octet) = octets.next() {
        decoded.push(if octet == b'%' {
            let digits = [octets.next()?, octets.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            // A sign would be taken, too.
            let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?
        } else {
            octet
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp() -> Protocol {
        Protocol::TcpTable(BackendName::parse("old").unwrap())
    }

    fn asks(backend: &str, key: &str) -> Request {
        Request { backend: backend.into(), key: key.into() }
    }

    #[test]
    fn a_request_is_the_same_however_it_is_cut() {
        for (protocol, octets, request) in [
            (Protocol::Socketmap, "19:old ann@example.org,", asks("old", "ann@example.org")),
            (Protocol::Socketmap, "11:new a b@c.d,", asks("new", "a b@c.d")),
            (Protocol::Socketmap, "4:old ,", asks("old", "")),
            (tcp(), "get ann@example.org\n", asks("old", "ann@example.org")),
            (tcp(), "get a%20b%25@c.d\r\n", asks("old", "a b%@c.d")),
        ] {
            let all = format!("{octets}{octets}");
            for cut in 0..octets.len() {
                let asked = protocol.request(&octets.as_bytes()[..cut]);
                assert_eq!(asked, Ok(None), "{octets:?} cut at {cut}");
            }
            for cut in octets.len()..all.len() {
                let asked = protocol.request(&all.as_bytes()[..cut]);
                let expected = Ok(Some((request.clone(), octets.len())));
                assert_eq!(asked, expected, "{octets:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_request_ends_the_connection() {
        for (protocol, octets, expected) in [
            (Protocol::Socketmap, "x", Malformed::Netstring),
            (Protocol::Socketmap, ":", Malformed::Netstring),
            (Protocol::Socketmap, "3x", Malformed::Netstring),
            (Protocol::Socketmap, "5:old x;", Malformed::Netstring),
            (Protocol::Socketmap, "3:old,", Malformed::MapAndKey),
            (Protocol::Socketmap, "9999:", Malformed::TooLong),
            (Protocol::Socketmap, "00000", Malformed::TooLong),
            (tcp(), "put a b\n", Malformed::Get),
            (tcp(), "get a%2\n", Malformed::Get),
            (tcp(), "get a%+1\n", Malformed::Get),
            (tcp(), "\n", Malformed::Get),
        ] {
            assert_eq!(protocol.request(octets.as_bytes()), Err(expected), "{octets:?}");
        }
        let endless = "get ".to_owned() + &"x".repeat(MAX_REQUEST);
        assert_eq!(tcp().request(endless.as_bytes()), Err(Malformed::TooLong));
    }

    #[test]
    fn answers_are_written_as_the_protocols_want_them() {
        let hop = Answer::HandOn("smtp:[192.0.2.1]:2526".into());
        let wait = Answer::Wait("not now");
        let said = |protocol: &Protocol, answer| String::from_utf8(protocol.reply(answer)).unwrap();
        assert_eq!(said(&Protocol::Socketmap, &hop), "24:OK smtp:[192.0.2.1]:2526,");
        assert_eq!(said(&Protocol::Socketmap, &Answer::NotFound), "9:NOTFOUND ,");
        assert_eq!(said(&Protocol::Socketmap, &wait), "12:TEMP not now,");
        assert_eq!(said(&tcp(), &hop), "200 smtp:[192.0.2.1]:2526\n");
        assert_eq!(said(&tcp(), &Answer::NotFound), "500 not%20found\n");
        assert_eq!(said(&tcp(), &wait), "400 not%20now\n");
    }

    proptest! {
        #[test]
        fn no_octets_are_too_much(octets in proptest::collection::vec(any::<u8>(), 0..6000)) {
            for protocol in [Protocol::Socketmap, tcp()] {
                match protocol.request(&octets) {
                    Ok(Some((request, taken))) => {
                        prop_assert!(taken <= octets.len() && request.key.len() <= 3 * MAX_REQUEST);
                    }
                    // What is kept for more of it is bounded.
                    Ok(None) => prop_assert!(octets.len() <= MAX_REQUEST + MAX_DIGITS + 2),
                    Err(_) => {}
                }
            }
        }
    }
}
