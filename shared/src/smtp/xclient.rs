//! XCLIENT: telling a server that believes us who the client is (Postfix's, with Dovecot's additions), and
//! hearing it from a server that we believe.
//!
//! Only attributes that are offered are sent: Postfix refuses the whole command for one that it does not
//! know. LOGIN is never sent: it would make the client an authenticated one.

use std::net::{IpAddr, SocketAddr};

use super::attributes::{self, address, port};
use super::ehlo::Extensions;
use super::reply::Reply;
use super::xtext;
use crate::address::Domain;

/// What is said of a name that was not looked up: better than our own. `[UNAVAILABLE]` would say that the
/// client has none for good, and a server may refuse such clients for good (`unknown_client_reject_code =
/// 550`); on this, Postfix's `reject_unknown_client_hostname` and its like can do no more than defer (450).
const NOT_LOOKED_UP: &str = "[TEMPUNAVAIL]";
/// What stands for a value that is not known, for good or for now.
const UNKNOWN: [&str; 2] = ["[UNAVAILABLE]", "[TEMPUNAVAIL]"];
/// Longest name that is taken, in octets.
const MAX_NAME: usize = 255;

/// The attributes that are heard, as EHLO offers them. LOGIN is not: nobody is authenticated here.
pub const HEARD: &str = "XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT";

/// Who a client is.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its address.
    pub client: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// The name it gave.
    pub helo: &'a str,
    /// It speaks ESMTP.
    pub extended: bool,
    /// What Dovecot's login services are told besides.
    pub login: Option<Login<'a>>,
}

/// What Dovecot's login services are told besides.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// Our name for the session, 1 to 64 octets.
    pub session: &'a str,
    /// Hops through login proxies that are left.
    pub ttl: u8,
    /// The client's connection is secured.
    pub secured: bool,
}

/// What a server that we believe has told of its client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The client's name by the DNS.
    pub name: Option<Box<str>>,
    /// The client's address.
    pub client_ip: Option<IpAddr>,
    /// The client's port.
    pub client_port: Option<u16>,
    /// The name the client gave.
    pub helo: Option<Box<str>>,
    /// The client speaks ESMTP.
    pub extended: Option<bool>,
    /// The address the client connected to.
    pub local_ip: Option<IpAddr>,
    /// The port the client connected to.
    pub local_port: Option<u16>,
}

impl Told {
    /// This, and what another command says: `KEY=value`, separated by spaces, each value in xtext.
    ///
    /// # Errors
    ///
    /// The reply that a command deserves which says nothing, or what is unknown or malformed.
    pub fn and(&self, attributes: &str) -> Result<Self, Reply> {
        let mut told = self.clone();
        let mut attributes = attributes.split(' ').filter(|word| !word.is_empty()).peekable();
        if attributes.peek().is_none() {
            return Err(Reply::new(501, (5, 4), "XCLIENT attribute=value"));
        }
        for attribute in attributes {
            let (key, value) = attribute.split_once('=').unwrap_or((attribute, ""));
            told.take(&key.to_ascii_uppercase(), value)?;
        }
        Ok(told)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), Reply> {
        let bad = || Reply::new(501, (5, 4), "Bad XCLIENT value");
        let value = xtext::decode(value).and_then(|value| String::from_utf8(value).ok());
        let value = value.ok_or_else(bad)?;
        let known = !UNKNOWN.iter().any(|unknown| unknown.eq_ignore_ascii_case(&value));
        let value = known.then_some(&*value);
        match key {
            "NAME" => self.name = each(value, name_of).ok_or_else(bad)?,
            "ADDR" => self.client_ip = each(value, address_of).ok_or_else(bad)?,
            "PORT" => self.client_port = each(value, port_of).ok_or_else(bad)?,
            "HELO" => self.helo = each(value, name_of).ok_or_else(bad)?,
            "PROTO" => self.extended = each(value, protocol_of).ok_or_else(bad)?,
            "DESTADDR" => self.local_ip = each(value, address_of).ok_or_else(bad)?,
            "DESTPORT" => self.local_port = each(value, port_of).ok_or_else(bad)?,
            _ => return Err(Reply::new(501, (5, 4), "Unknown XCLIENT attribute")),
        }
        Ok(())
    }
}

/// A known value that is well-formed, an unknown one, or nothing for a malformed one.
#[expect(clippy::option_option, reason = "malformed, unknown and known are three")]
fn each<T>(value: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    match value {
        Some(value) => parse(value).map(Some),
        None => Some(None),
    }
}

fn name_of(value: &str) -> Option<Box<str>> {
    let good = (1..=MAX_NAME).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic());
    good.then(|| value.into())
}

fn protocol_of(value: &str) -> Option<bool> {
    match value.to_ascii_uppercase().as_str() {
        "SMTP" => Some(false),
        "ESMTP" => Some(true),
        _ => None,
    }
}

/// An address in XCLIENT's words, with or without the prefix of IPv6.
pub fn address_of(value: &str) -> Option<IpAddr> {
    let bare = match value.split_at_checked(5) {
        Some((prefix, bare)) if prefix.eq_ignore_ascii_case("IPV6:") => bare,
        Some(_) | None => value,
    };
    bare.parse().ok()
}

/// A port that is one.
pub fn port_of(value: &str) -> Option<u16> {
    value.parse().ok().filter(|port| *port != 0)
}

/// The commands that say it, each with its line end; none where the server does not take an address.
///
/// NAME and REVERSE_NAME come first, so that our own names are not taken for the client's. ADDR is last,
/// since the right to say more is judged by it.
pub fn commands(offered: &Extensions, subject: Subject<'_>) -> Vec<String> {
    if !offered.takes_xclient("ADDR") {
        return Vec::new();
    }
    let Subject { client, local, helo, extended, login } = subject;
    // Dovecot refuses the whole command for a HELO that is no host name.
    let helo = Domain::parse(helo).ok().filter(|name| !name.as_str().contains('_'));
    let transport = |login: Login<'_>| if login.secured { "TLS" } else { "insecure" }.to_owned();
    let attributes = [
        ("NAME", Some(NOT_LOOKED_UP.to_owned())),
        ("REVERSE_NAME", Some(NOT_LOOKED_UP.to_owned())),
        ("SESSION", login.map(|login| login.session.to_owned())),
        ("TTL", login.map(|login| login.ttl.to_string())),
        ("CLIENT-TRANSPORT", login.map(transport)),
        ("HELO", helo.map(|name| name.to_string())),
        ("PROTO", Some(if extended { "ESMTP" } else { "SMTP" }.to_owned())),
        ("PORT", port(client)),
        ("DESTADDR", Some(address(local.ip()))),
        ("DESTPORT", port(local)),
        ("ADDR", Some(address(client.ip()))),
    ];
    let offered = attributes.into_iter().filter(|(name, _)| offered.takes_xclient(name));
    attributes::commands("XCLIENT", offered)
}

#[cfg(test)]
mod tests {
    use super::super::attributes::MAX_LINE;
    use super::*;

    const POSTFIX: &str = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT";
    const DOVECOT: &str =
        "XCLIENT ADDR PORT PROTO HELO LOGIN SESSION TTL TIMEOUT CLIENT-TRANSPORT DESTADDR DESTPORT";

    fn said(offered: &str, helo: &str, login: Option<Login<'_>>) -> Vec<String> {
        let mut extensions = Extensions::default();
        extensions.add(offered);
        let (client, local) = ("[2001:db8::7]:4711".parse(), "192.0.2.1:587".parse());
        let (client, local) = (client.unwrap(), local.unwrap());
        commands(&extensions, Subject { client, local, helo, extended: true, login })
    }

    #[test]
    fn a_server_is_told_what_it_offers_to_hear_and_the_address_last() {
        assert_eq!(
            said(POSTFIX, "mail.example.net", None),
            ["XCLIENT NAME=[TEMPUNAVAIL] REVERSE_NAME=[TEMPUNAVAIL] HELO=mail.example.net \
              PROTO=ESMTP PORT=4711 DESTADDR=192.0.2.1 DESTPORT=587 ADDR=IPV6:2001:db8::7\r\n"]
        );
        let login = Login { session: "a+b=c", ttl: 5, secured: true };
        assert_eq!(
            said(DOVECOT, "desk_top", Some(login)),
            ["XCLIENT SESSION=a+2Bb+3Dc TTL=5 CLIENT-TRANSPORT=TLS PROTO=ESMTP PORT=4711 \
              DESTADDR=192.0.2.1 DESTPORT=587 ADDR=IPV6:2001:db8::7\r\n"]
        );
        let few = said("xclient name addr", "bad;name", Some(login));
        assert_eq!(few, ["XCLIENT NAME=[TEMPUNAVAIL] ADDR=IPV6:2001:db8::7\r\n"]);
    }

    #[test]
    fn a_port_that_nobody_told_is_not_said() {
        let mut offered = Extensions::default();
        offered.add(POSTFIX);
        let (client, local) = ("9.9.9.9:0".parse().unwrap(), "192.0.2.1:0".parse().unwrap());
        let said =
            commands(&offered, Subject { client, local, helo: "c", extended: true, login: None });
        assert!(!said.concat().contains("PORT"), "{said:?}");
        assert!(said.concat().ends_with(" ADDR=9.9.9.9\r\n"), "{said:?}");
    }

    #[test]
    fn where_no_address_is_taken_nothing_is_said() {
        assert!(said("XCLIENT NAME HELO", "c", None).is_empty());
        assert!(said("PIPELINING", "c", None).is_empty());
    }

    #[test]
    fn what_does_not_fit_in_a_line_goes_in_a_second_one_and_the_address_stays_last() {
        let label = "n".repeat(63);
        let name = [&*label, &*label, &*label, "example"].join(".");
        let session = "+".repeat(64);
        let login = Login { session: &session, ttl: 5, secured: false };
        let offered = format!("{POSTFIX} SESSION TTL CLIENT-TRANSPORT");
        let lines = said(&offered, &name, Some(login));
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE && line.ends_with("\r\n")));
        assert!(lines[0].starts_with("XCLIENT NAME=[TEMPUNAVAIL] REVERSE_NAME="), "{lines:?}");
        assert!(lines[1].ends_with(" ADDR=IPV6:2001:db8::7\r\n"), "{lines:?}");
        assert!(!lines.concat().contains("LOGIN="));
    }

    #[test]
    fn the_address_is_said_however_long_the_rest_is() {
        for length in 1..=300 {
            let helo = "abcdefghi.".repeat(30);
            let helo = helo[..length].trim_end_matches('.');
            let lines = said(POSTFIX, helo, None);
            assert!(lines.iter().all(|line| line.len() <= MAX_LINE), "{lines:?}");
            assert!(lines.last().unwrap().ends_with(" ADDR=IPV6:2001:db8::7\r\n"), "{lines:?}");
        }
    }

    #[test]
    fn what_is_heard_adds_up_and_what_is_unknown_is_unsaid() {
        let told = Told::default()
            .and("NAME=mail.example.net HELO=[192.0.2.7] proto=ESMTP PORT=4711 DESTPORT=25")
            .unwrap();
        let told = told.and("ADDR=IPV6:2001:db8::7 DESTADDR=192.0.2.1").unwrap();
        let expected = Told {
            name: Some("mail.example.net".into()),
            client_ip: "2001:db8::7".parse().ok(),
            client_port: Some(4711),
            helo: Some("[192.0.2.7]".into()),
            extended: Some(true),
            local_ip: "192.0.2.1".parse().ok(),
            local_port: Some(25),
        };
        assert_eq!(told, expected);
        let told = told.and("NAME=[UNAVAILABLE] helo=[tempunavail] ADDR=9.9.9.9").unwrap();
        assert_eq!((told.name, told.helo, told.client_ip), (None, None, "9.9.9.9".parse().ok()));
    }

    #[test]
    fn what_we_say_is_heard() {
        let mut offered = Extensions::default();
        offered.add(HEARD);
        let (client, local) = ("[2001:db8::7]:4711", "192.0.2.1:25");
        let (client, local) = (client.parse().unwrap(), local.parse().unwrap());
        let subject = Subject { client, local, helo: "c.example", extended: false, login: None };
        for line in commands(&offered, subject) {
            let told = Told::default().and(line.trim_end().strip_prefix("XCLIENT ").unwrap());
            let told = told.unwrap();
            assert_eq!((told.client_ip, told.local_port), (Some(client.ip()), Some(25)));
            assert_eq!((told.helo.as_deref(), told.extended), (Some("c.example"), Some(false)));
        }
    }

    #[test]
    fn what_is_malformed_or_unknown_is_refused() {
        for bad in [
            "",
            " ",
            "ADDR",
            "ADDR=",
            "ADDR=nobody",
            "PORT=0",
            "PORT=65536",
            "PROTO=LMTP",
            "HELO=a+20b",
            "HELO=a+0D+0AQUIT",
            "NAME=+",
            "LOGIN=ann",
            "SESSION=x",
            "FOO=bar",
            "=x",
            "ADDR=192.0.2.1 ADDR=x",
        ] {
            assert!(Told::default().and(bad).is_err(), "{bad:?}");
        }
    }
}
