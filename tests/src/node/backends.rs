//! The sections of a node's configuration that say where the mail systems are.

use std::net::SocketAddr;

use crate::cyrus::Cyrus;
use crate::dovecot::Dovecot;
use crate::postfix::Postfix;

/// The sections of a backend that is a Dovecot: LMTP and what its users speak, the client's address by
/// XCLIENT and ID.
pub fn dovecot(name: &str, server: &Dovecot) -> String {
    let mut text = by_lmtp(name, server.lmtp(), server.imap());
    if server.is_full() {
        text += &login(name, "pop3", server.pop3());
        text += &login(name, "submission", server.submission());
        text += &login(name, "managesieve", server.managesieve());
    }
    text
}

/// The sections of a backend that is a Cyrus, which takes nobody's word for the client's address.
pub fn cyrus(name: &str, server: &Cyrus) -> String {
    let mail = mail(name, server.lmtp(), "lmtp", "none");
    let logins =
        [("imap", server.imap()), ("pop3", server.pop3()), ("managesieve", server.managesieve())];
    mail + &logins.map(|(protocol, address)| login(name, protocol, address)).concat()
}

/// The sections of a Dovecot's LMTP and IMAP on ways of one's own ([`crate::link::Link`]).
pub fn by_lmtp(name: &str, lmtp: SocketAddr, imap: SocketAddr) -> String {
    backend(name, lmtp, "lmtp", imap)
}

/// The sections of a backend that takes mail by a Postfix in front of its Dovecot.
pub fn postfix(name: &str, mail: &Postfix, imap: &Dovecot) -> String {
    backend(name, mail.smtp(), "smtp", imap.imap())
}

fn backend(name: &str, address: SocketAddr, protocol: &str, imap: SocketAddr) -> String {
    mail(name, address, protocol, "xclient") + &login(name, "imap", imap)
}

fn mail(name: &str, address: SocketAddr, protocol: &str, identity: &str) -> String {
    format!(
        "[backends.{name}.mail]
host = \"{}\"
port = {}
protocol = \"{protocol}\"
identity = \"{identity}\"
",
        address.ip(),
        address.port(),
    )
}

/// The section of a backend for a protocol that users log in by.
pub fn login(name: &str, protocol: &str, address: SocketAddr) -> String {
    let (host, port) = (address.ip(), address.port());
    format!("[backends.{name}.{protocol}]\nhost = \"{host}\"\nport = {port}\n")
}
