//! XFORWARD: telling a server for whom we pass a message on, for its log (Postfix's).
//!
//! The server judges us all the same, and forgets it with the transaction, so it is said before each MAIL,
//! and the connection serves other clients, too. Only attributes that are offered are sent.

use std::net::SocketAddr;

use super::attributes::{self, address, port};
use super::ehlo::Extensions;

/// What is said of a value that is not known: what was said before is forgotten by it.
const UNKNOWN: &str = "[UNAVAILABLE]";

/// Who a client is.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its address.
    pub client: SocketAddr,
    /// The name it gave.
    pub helo: &'a str,
    /// It speaks ESMTP.
    pub extended: bool,
    /// Our name for its session, by which our log is searched; empty: none.
    pub session: &'a str,
}

/// The commands that say it, each with its line end; none where the server takes no address.
pub fn commands(offered: &Extensions, subject: Subject<'_>) -> Vec<String> {
    if !offered.takes_xforward("ADDR") {
        return Vec::new();
    }
    let Subject { client, helo, extended, session } = subject;
    let known = |text: &str| Some(if text.is_empty() { UNKNOWN } else { text }.to_owned());
    let attributes = [
        ("NAME", known("")),
        ("ADDR", Some(address(client.ip()))),
        ("PORT", port(client)),
        ("PROTO", known(if extended { "ESMTP" } else { "SMTP" })),
        ("HELO", known(helo)),
        ("IDENT", known(session)),
        ("SOURCE", known("REMOTE")),
    ];
    let offered = attributes.into_iter().filter(|(name, _)| offered.takes_xforward(name));
    attributes::commands("XFORWARD", offered)
}

#[cfg(test)]
mod tests {
    use super::super::attributes::MAX_LINE;
    use super::*;

    const POSTFIX: &str = "XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT";

    fn said(offered: &str, helo: &str, session: &str) -> Vec<String> {
        let mut extensions = Extensions::default();
        extensions.add(offered);
        let client = "[2001:db8::7]:4711".parse().unwrap();
        commands(&extensions, Subject { client, helo, extended: true, session })
    }

    #[test]
    fn a_server_is_told_what_it_offers_to_hear() {
        assert_eq!(
            said(POSTFIX, "mail=1", "5f"),
            [
                "XFORWARD NAME=[UNAVAILABLE] ADDR=IPV6:2001:db8::7 PORT=4711 PROTO=ESMTP HELO=mail+3D1 \
              IDENT=5f SOURCE=REMOTE\r\n"
            ]
        );
        assert_eq!(
            said("xforward addr ident", "mail", ""),
            ["XFORWARD ADDR=IPV6:2001:db8::7 IDENT=[UNAVAILABLE]\r\n"]
        );
        assert!(said("XFORWARD NAME", "mail", "5f").is_empty());
        assert!(said("XCLIENT NAME ADDR", "mail", "5f").is_empty());
    }

    #[test]
    fn what_does_not_fit_in_a_line_goes_in_a_second_one() {
        let lines = said(POSTFIX, &"n".repeat(255), &"s".repeat(255));
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE && line.starts_with("XFORWARD ")));
    }
}
