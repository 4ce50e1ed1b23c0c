//! Commands: verbs and their arguments (RFC 5321 §4.1.1), with the parameters of SIZE and 8BITMIME.
//!
//! A line that is no command becomes the reply that says so. ESMTP parameters are parsed by `smtp-proto`,
//! on a line made for it: its own path parser drops quotes, and its numbers wrap, so paths and sizes are
//! checked here first.

use smtp_proto::{MAIL_BODY_7BIT, MAIL_BODY_8BITMIME, Request};

use super::path::{self, ForwardPath, PathError, ReversePath};
use super::reply::Reply;

/// Longest command line in octets with its CR LF. RFC 5321 §4.5.3.1.4 says 512; parameters and long paths
/// may follow.
pub const MAX_LINE: usize = 2048;
/// Longest name in EHLO that is kept.
const MAX_HELO: usize = 255;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// EHLO with the client's name.
    Ehlo(Box<str>),
    /// HELO with the client's name.
    Helo(Box<str>),
    /// MAIL FROM.
    Mail(Mail),
    /// RCPT TO.
    Rcpt(ForwardPath),
    /// DATA.
    Data,
    /// RSET.
    Rset,
    /// NOOP, whatever follows.
    Noop,
    /// QUIT.
    Quit,
    /// VRFY, whatever follows.
    Vrfy,
    /// HELP, whatever follows.
    Help,
    /// STARTTLS.
    StartTls,
    /// BDAT: not offered, and what follows it on the wire is no command.
    Bdat,
}

/// A MAIL command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// Where the message comes from.
    pub from: ReversePath,
    /// Octets the client says it has (RFC 1870).
    pub size: Option<u64>,
    /// BODY=8BITMIME was given (RFC 6152).
    pub eight_bit: bool,
}

/// Reads one line, without its CR LF.
///
/// # Errors
///
/// The reply that the line deserves.
pub fn parse(line: &[u8]) -> Result<Command, Reply> {
    if line.iter().any(|octet| octet.is_ascii_control() && *octet != b'\t') {
        return Err(Reply::new(500, (5, 2), "Control character in a command"));
    }
    let line = std::str::from_utf8(line).map_err(|_| syntax("Not ASCII"))?;
    let (verb, argument) = match line.split_once(' ') {
        Some((verb, argument)) => (verb, argument.trim_end_matches([' ', '\t'])),
        None => (line, ""),
    };
    match verb.to_ascii_uppercase().as_str() {
        "EHLO" => Ok(Command::Ehlo(helo(argument)?)),
        "HELO" => Ok(Command::Helo(helo(argument)?)),
        "MAIL" => mail(argument),
        "RCPT" => rcpt(argument),
        "NOOP" => Ok(Command::Noop),
        "VRFY" if argument.is_empty() => Err(syntax("VRFY needs an address")),
        "VRFY" => Ok(Command::Vrfy),
        "HELP" => Ok(Command::Help),
        // These have no argument (RFC 5321 §4.1.1, RFC 3207 §4).
        "DATA" | "RSET" | "QUIT" | "STARTTLS" if !argument.is_empty() => {
            Err(Reply::new(501, (5, 4), "No argument allowed"))
        }
        "DATA" => Ok(Command::Data),
        "RSET" => Ok(Command::Rset),
        "QUIT" => Ok(Command::Quit),
        "STARTTLS" => Ok(Command::StartTls),
        "BDAT" => Ok(Command::Bdat),
        "EXPN" | "ETRN" | "TURN" | "ATRN" | "AUTH" | "BURL" | "SEND" | "SOML" | "SAML" | "LHLO"
        | "XCLIENT" | "XFORWARD" => Err(Reply::new(502, (5, 1), "Not implemented here")),
        _ => Err(Reply::new(500, (5, 2), "Unknown command")),
    }
}

/// The first word of a line, if it is one of HTTP's: a browser that was made to talk to this port would go
/// on with headers full of commands.
pub fn foreign_word(line: &[u8]) -> Option<&'static str> {
    let verb = line.split(|octet| *octet == b' ').next().unwrap_or_default();
    ["GET", "POST", "PUT", "HEAD", "CONNECT", "OPTIONS", "PRI", "Host:"]
        .into_iter()
        .find(|foreign| verb.eq_ignore_ascii_case(foreign.as_bytes()))
}

/// The client's name, whatever it says of itself (RFC 5321 §4.1.4: it is not checked), as long as it can
/// stand in a Received header.
fn helo(argument: &str) -> Result<Box<str>, Reply> {
    let name = argument.split_ascii_whitespace().next().unwrap_or_default();
    if name.is_empty() {
        return Err(Reply::new(501, (5, 4), "Your name is missing"));
    }
    if name.len() > MAX_HELO || !name.bytes().all(|octet| octet.is_ascii_graphic()) {
        return Err(Reply::new(501, (5, 4), "That is no name"));
    }
    Ok(name.into())
}

fn mail(argument: &str) -> Result<Command, Reply> {
    let (text, parameters) = path_of(argument, "FROM:", (1, 7))?;
    let from = ReversePath::parse(text).map_err(|error| bad_path(error, (1, 7)))?;
    check(parameters)?;
    let line = line_of("MAIL FROM:<>", parameters);
    let Ok(Request::Mail { from: request }) = Request::parse(&mut line.as_bytes().iter()) else {
        return Err(unknown_parameter());
    };
    // What was not offered is not known, however well it is written.
    let known = smtp_proto::MailFrom {
        address: request.address.clone(),
        flags: request.flags & (MAIL_BODY_7BIT | MAIL_BODY_8BITMIME),
        size: request.size,
        ..smtp_proto::MailFrom::default()
    };
    if request != known {
        return Err(unknown_parameter());
    }
    let has_size = parameters.split(' ').any(|p| p.to_ascii_uppercase().starts_with("SIZE="));
    Ok(Command::Mail(Mail {
        from,
        size: has_size.then_some(u64::try_from(request.size).unwrap_or(u64::MAX)),
        eight_bit: request.flags & MAIL_BODY_8BITMIME != 0,
    }))
}

fn rcpt(argument: &str) -> Result<Command, Reply> {
    let (text, parameters) = path_of(argument, "TO:", (1, 3))?;
    let to = ForwardPath::parse(text).map_err(|error| bad_path(error, (1, 3)))?;
    // DSN is not offered, and nothing else is a parameter of RCPT.
    if parameters.is_empty() { Ok(Command::Rcpt(to)) } else { Err(unknown_parameter()) }
}

/// `FROM:<path> parameters`; some clients put a space behind the colon.
fn path_of<'a>(
    argument: &'a str,
    word: &str,
    detail: (u16, u16),
) -> Result<(&'a str, &'a str), Reply> {
    let rest = argument
        .split_at_checked(word.len())
        .filter(|(first, _)| first.eq_ignore_ascii_case(word))
        .map(|(_, rest)| rest.trim_start_matches(' '))
        .ok_or_else(|| syntax(format!("Syntax: {word}<address>")))?;
    let (path, parameters) = path::split(rest).map_err(|error| bad_path(error, detail))?;
    if !parameters.is_empty() && !parameters.starts_with(' ') {
        return Err(syntax("Garbage behind the address"));
    }
    Ok((path, parameters.trim_matches(' ')))
}

/// What `smtp-proto` lets pass: a parameter twice, a number that wraps.
fn check(parameters: &str) -> Result<(), Reply> {
    let mut seen = Vec::new();
    for parameter in parameters.split(' ').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let key = key.to_ascii_uppercase();
        if seen.contains(&key) {
            return Err(Reply::new(501, (5, 4), "A parameter twice"));
        }
        if key == "SIZE"
            && !((1..=18).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(Reply::new(501, (5, 4), "SIZE is a number of octets"));
        }
        seen.push(key);
    }
    Ok(())
}

fn line_of(command: &str, parameters: &str) -> String {
    if parameters.is_empty() {
        format!("{command}\r\n")
    } else {
        format!("{command} {parameters}\r\n")
    }
}

fn bad_path(error: PathError, detail: (u16, u16)) -> Reply {
    match error {
        PathError::Brackets => syntax("The address must stand in <angle brackets>"),
        PathError::NotAscii => Reply::new(553, (6, 7), "Non-ASCII addresses are not supported"),
        // No domain of ours, so nothing we would relay for.
        PathError::Literal => Reply::new(550, (7, 1), "Relaying denied"),
        PathError::Address(_) => Reply::new(501, detail, "Bad address syntax"),
        PathError::TooLong => Reply::new(501, detail, "Address too long"),
    }
}

fn syntax(text: impl Into<Box<str>>) -> Reply {
    Reply::new(501, (5, 2), text)
}

fn unknown_parameter() -> Reply {
    Reply::new(555, (5, 4), "Unsupported parameter")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> String {
        match parse(line.as_bytes()) {
            Ok(Command::Mail(Mail { from, size, eight_bit })) => {
                format!("{from} {size:?} {eight_bit}")
            }
            Ok(Command::Rcpt(ForwardPath::Mailbox(address))) => address.to_string(),
            Ok(other) => format!("{other:?}"),
            Err(reply) => reply.to_string().split_inclusive(' ').take(2).collect(),
        }
    }

    #[test]
    fn mail_has_a_path_and_the_parameters_that_are_offered() {
        for (line, expected) in [
            ("MAIL FROM:<ann@example.org>", "<ann@example.org> None false"),
            ("mail from: <> size=5000 BODY=8BITMIME", "<> Some(5000) true"),
            ("MAIL FROM:<a@b.example> BODY=7BIT", "<a@b.example> None false"),
            ("MAIL FROM:<a@b.example> SIZE=0", "<a@b.example> Some(0) false"),
            ("MAIL FROM:<a@b.example> SIZE=99999999999999999999999", "501 5.5.4 "),
            ("MAIL FROM:<a@b.example> SIZE=1 SIZE=2", "501 5.5.4 "),
            ("MAIL FROM:<a@b.example> SMTPUTF8", "555 5.5.4 "),
            ("MAIL FROM:<a@b.example> BODY=BINARYMIME", "555 5.5.4 "),
            ("MAIL FROM:<a@b.example> RET=FULL", "555 5.5.4 "),
            ("MAIL FROM:<a@b.example> AUTH=<>", "555 5.5.4 "),
            ("MAIL FROM:<a@b.example> NONSENSE=1", "555 5.5.4 "),
            ("MAIL FROM:<a@b.example>SIZE=1", "501 5.5.2 "),
            ("MAIL FROM:a@b.example", "501 5.5.2 "),
            ("MAIL", "501 5.5.2 "),
            ("MAIL FROM:<a b@c.example>", "501 5.1.7 "),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }

    #[test]
    fn rcpt_has_a_path_and_nothing_else() {
        for (line, expected) in [
            ("RCPT TO:<Ann@Example.org>", "Ann@example.org"),
            ("RCPT TO:<PostMaster>", "Rcpt(Postmaster)"),
            (
                "RCPT TO:<\"x@victim.example> NOTIFY=NEVER \"@example.org>",
                "\"x@victim.example> NOTIFY=NEVER \"@example.org",
            ),
            ("RCPT TO:<ann@example.org> NOTIFY=NEVER", "555 5.5.4 "),
            ("RCPT TO:<ann@[192.0.2.1]>", "550 5.7.1 "),
            ("RCPT TO:<>", "501 5.1.3 "),
            ("RCPT TO:<ünal@example.org>", "553 5.6.7 "),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }

    #[test]
    fn commands_are_what_they_are_in_any_case_and_nothing_else() {
        for (line, expected) in [
            ("ehlo mail.example.org", "Ehlo(\"mail.example.org\")"),
            ("HELO [192.0.2.1] junk", "Helo(\"[192.0.2.1]\")"),
            ("EHLO", "501 5.5.4 "),
            ("EHLO a\u{7}b", "500 5.5.2 "),
            ("Data", "Data"),
            ("DATA foo", "501 5.5.4 "),
            ("RSET ", "Rset"),
            ("QUIT now", "501 5.5.4 "),
            ("NOOP anything", "Noop"),
            ("VRFY ann", "Vrfy"),
            ("EXPN list", "502 5.5.1 "),
            ("AUTH PLAIN x", "502 5.5.1 "),
            ("BDAT 5", "Bdat"),
            ("GET / HTTP/1.1", "500 5.5.2 "),
            ("", "500 5.5.2 "),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
        for line in [&b"DA\rTA"[..], b"RCPT TO:<ann@example.org>\0", b"EHLO a\x1b[2J", b"QUIT\r"] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn words_of_another_protocol_are_known() {
        for (line, expected) in [
            ("POST / HTTP/1.1", Some("POST")),
            ("host: mail.example.org", Some("Host:")),
            ("PUTS", None),
            ("", None),
        ] {
            assert_eq!(foreign_word(line.as_bytes()), expected, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics_or_leads_to_a_command_that_could_carry_another(
            verb in prop::sample::select(vec!["", "MAIL FROM:<", "RCPT TO:<", "EHLO ", "MAIL FROM:<> "]),
            octets in prop::collection::vec(any::<u8>(), 0..60),
            tail in prop::sample::select(vec!["", ">", "@b.example>", "> SIZE=1"]),
        ) {
            let line = [verb.as_bytes(), &octets, tail.as_bytes()].concat();
            let said = match parse(&line) {
                Ok(Command::Mail(mail)) => mail.from.to_string(),
                Ok(Command::Rcpt(ForwardPath::Mailbox(address))) => format!("<{address}>"),
                Ok(Command::Ehlo(name) | Command::Helo(name)) => name.into(),
                Ok(_) | Err(_) => String::new(),
            };
            prop_assert!(said.bytes().all(|b| matches!(b, b' '..=b'~')), "{:?}", said);
            if said.starts_with('<') {
                prop_assert_eq!(path::split(&said).map(|(_, rest)| rest), Ok(""));
            }
        }

        #[test]
        fn a_path_that_is_said_again_is_the_same_path(text in "[ -~]{0,40}") {
            if let Ok(path) = ReversePath::parse(&text) {
                let said = path.to_string();
                let inner = path::split(&said).map(|(inner, _)| inner).unwrap();
                prop_assert_eq!(ReversePath::parse(inner), Ok(path));
            }
        }
    }
}
