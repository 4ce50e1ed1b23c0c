//! Postfix's XCLIENT: who the client is, told to an owner that trusts us.

use std::net::IpAddr;

use shared::address::Domain;
use shared::smtp::ehlo::Extensions;

use super::Introduction;

/// Longest XCLIENT line in octets with its line end (Postfix's XCLIENT_README).
const MAX_LINE: usize = 512;
/// What is said of a name that was not looked up. `[UNAVAILABLE]` would say that the client has none for good,
/// and an owner may refuse such clients for good (`unknown_client_reject_code = 550`); on this, Postfix's
/// `reject_unknown_client_hostname` and its like can do no more than defer (always 450).
const NOT_LOOKED_UP: &str = "[TEMPUNAVAIL]";

/// The attribute without which nothing is told.
pub(super) const ADDRESS: &str = "ADDR";

/// The command: only attributes that are offered, NAME and REVERSE_NAME so that our own names are not
/// taken for the client's, ADDR last because the right to say more is judged by it. Never LOGIN: that
/// would make the client an authenticated one.
pub(super) fn command(offered: &Extensions, introduction: Introduction<'_>) -> String {
    let Introduction { client, local, extended, .. } = introduction;
    let attributes = [
        ("HELO", helo(introduction).map(|helo| helo.to_string())),
        ("PROTO", Some(if extended { "ESMTP" } else { "SMTP" }.to_owned())),
        ("NAME", Some(NOT_LOOKED_UP.to_owned())),
        ("REVERSE_NAME", Some(NOT_LOOKED_UP.to_owned())),
        ("PORT", Some(client.port().to_string())),
        ("DESTADDR", Some(address(local.ip()))),
        ("DESTPORT", Some(local.port().to_string())),
    ];
    let end = format!(" {ADDRESS}={}\r\n", address(client.ip()));
    let mut line = String::from("XCLIENT");
    for (name, value) in attributes {
        let Some(value) = value.filter(|_| offered.takes_xclient(name)) else { continue };
        // What does not fit is left out; there is always room for the address.
        let attribute = format!(" {name}={value}");
        if line.len() + attribute.len() + end.len() <= MAX_LINE {
            line.push_str(&attribute);
        }
    }
    line + &end
}

/// The client's name for itself, where it is a host name. Dovecot refuses the whole command for another.
pub(super) fn helo(introduction: Introduction<'_>) -> Option<Domain> {
    Domain::parse(introduction.helo).ok()
}

fn address(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("IPV6:{v6}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT";

    fn introduction(helo: &str) -> Introduction<'_> {
        Introduction {
            hostname: "mx.example.org",
            client: "[2001:db8::7]:4711".parse().unwrap(),
            local: "192.0.2.1:25".parse().unwrap(),
            helo,
            extended: true,
        }
    }

    fn offered(line: &str) -> Extensions {
        let mut offered = Extensions::default();
        offered.add(line);
        offered
    }

    #[test]
    fn it_says_what_is_offered_and_the_address_last() {
        assert_eq!(
            command(&offered(ALL), introduction("mail.example.net")),
            "XCLIENT HELO=mail.example.net PROTO=ESMTP NAME=[TEMPUNAVAIL] \
             REVERSE_NAME=[TEMPUNAVAIL] PORT=4711 DESTADDR=192.0.2.1 DESTPORT=25 \
             ADDR=IPV6:2001:db8::7\r\n"
        );
        assert_eq!(
            command(&offered("XCLIENT NAME ADDR"), introduction("bad;name")),
            "XCLIENT NAME=[TEMPUNAVAIL] ADDR=IPV6:2001:db8::7\r\n"
        );
    }

    #[test]
    fn the_address_is_said_however_long_the_rest_is() {
        let longest = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap();
        for length in 1..=300 {
            let helo = "abcdefghi.".repeat(30);
            let helo = helo[..length].trim_end_matches('.');
            let all = Introduction { client: longest, local: longest, ..introduction(helo) };
            let line = command(&offered(ALL), all);
            assert!(line.len() <= MAX_LINE, "{line}");
            assert!(line.ends_with(" ADDR=IPV6:2001:db8:1111:2222:3333:4444:5555:6666\r\n"));
        }
    }
}
