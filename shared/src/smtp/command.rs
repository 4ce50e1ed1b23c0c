//! Commands: verbs and their arguments (RFC 5321 §4.1.1), with the parameters of SIZE, 8BITMIME, SMTPUTF8
//! and DSN.
//!
//! A line that is no command becomes the reply that says so. What is read can be said again to another
//! server, with the parameters that one takes.

use super::dsn::{DsnError, EnvelopeId, Notify, OriginalRecipient, Ret};
use super::parameters::{self, Parameter, Takes};
use super::path::{self, ForwardPath, PathError, ReversePath};
use super::reply::Reply;
use crate::address::Address;

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
    /// LHLO with the client's name (RFC 2033).
    Lhlo(Box<str>),
    /// MAIL FROM.
    Mail(Mail),
    /// RCPT TO.
    Rcpt(Rcpt),
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
    /// BDAT: what follows it on the wire is no command.
    Bdat(Chunk),
    /// XCLIENT with its attributes as they came.
    Xclient(Box<str>),
}

/// A BDAT command (RFC 3030 §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Octets that follow.
    pub octets: u64,
    /// They are the message's last ones.
    pub last: bool,
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
    /// SMTPUTF8 was given (RFC 6531).
    pub smtputf8: bool,
    /// How much of the message a report returns (RFC 3461).
    pub ret: Option<Ret>,
    /// The sender's name for the message (RFC 3461).
    pub envid: Option<EnvelopeId>,
}

/// A RCPT command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rcpt {
    /// Whom the message is for.
    pub path: ForwardPath,
    /// Of what the sender wants to hear (RFC 3461).
    pub notify: Option<Notify>,
    /// Whom the sender named first (RFC 3461).
    pub orcpt: Option<OriginalRecipient>,
}

impl Mail {
    /// A message from there, without parameters.
    pub fn new(from: ReversePath) -> Self {
        Self { from, size: None, eight_bit: false, smtputf8: false, ret: None, envid: None }
    }

    /// The command for a server that takes these parameters, with its line end. The others are left out:
    /// BODY too, since to send the message as it is does less harm than to change it.
    pub fn command(&self, takes: Takes) -> String {
        let Self { from, size, eight_bit, smtputf8, ret, envid } = self;
        let parameters = [
            size.filter(|_| takes.size).map(|octets| format!(" SIZE={octets}")),
            (*eight_bit && takes.eight_bit).then(|| " BODY=8BITMIME".to_owned()),
            (*smtputf8 && takes.smtputf8).then(|| " SMTPUTF8".to_owned()),
            ret.filter(|_| takes.dsn).map(|ret| format!(" RET={ret}")),
            envid.as_ref().filter(|_| takes.dsn).map(|envid| format!(" ENVID={envid}")),
        ];
        let parameters: String = parameters.into_iter().flatten().collect();
        format!("MAIL FROM:{from}{parameters}\r\n")
    }
}

/// A recipient as a server is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressee {
    /// Its address.
    pub address: Address,
    /// Of what the sender wants to hear.
    pub notify: Option<Notify>,
    /// Whom the sender named first.
    pub orcpt: Option<OriginalRecipient>,
}

impl Addressee {
    /// RCPT for a server that takes these parameters, with its line end. The others are left out.
    pub fn command(&self, takes: Takes) -> String {
        let Self { address, notify, orcpt } = self;
        let parameters = [
            notify.as_ref().filter(|_| takes.dsn).map(|notify| format!(" NOTIFY={notify}")),
            orcpt.as_ref().filter(|_| takes.dsn).map(|orcpt| format!(" ORCPT={orcpt}")),
        ];
        let parameters: String = parameters.into_iter().flatten().collect();
        format!("RCPT TO:<{address}>{parameters}\r\n")
    }
}

impl From<Address> for Addressee {
    fn from(address: Address) -> Self {
        Self { address, notify: None, orcpt: None }
    }
}

/// Reads one line, without its CR LF, of a client to which these parameters are offered.
///
/// # Errors
///
/// The reply that the line deserves.
pub fn parse(line: &[u8], takes: Takes) -> Result<Command, Reply> {
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
        "LHLO" => Ok(Command::Lhlo(helo(argument)?)),
        "MAIL" => mail(argument, takes).map(Command::Mail),
        "RCPT" => rcpt(argument, takes).map(Command::Rcpt),
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
        "BDAT" => chunk(argument).map(Command::Bdat),
        "XCLIENT" => Ok(Command::Xclient(argument.into())),
        "EXPN" | "ETRN" | "TURN" | "ATRN" | "AUTH" | "BURL" | "SEND" | "SOML" | "SAML"
        | "XFORWARD" => Err(not_implemented()),
        _ => Err(Reply::new(500, (5, 2), "Unknown command")),
    }
}

/// What is known and not to be had (RFC 5321 §4.2.4).
pub fn not_implemented() -> Reply {
    Reply::new(502, (5, 1), "Not implemented here")
}

/// True when a line is BDAT, however wrong: what follows it may be a chunk, and never commands.
pub fn announces_chunk(line: &[u8]) -> bool {
    let verb = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    verb.eq_ignore_ascii_case(b"BDAT")
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

fn chunk(argument: &str) -> Result<Chunk, Reply> {
    let mut words = argument.split(' ').filter(|word| !word.is_empty());
    let octets = words.next().and_then(parameters::octets);
    let last = match words.next() {
        None => Some(false),
        Some(word) => word.eq_ignore_ascii_case("LAST").then_some(true),
    };
    match (octets, last, words.next()) {
        (Some(octets), Some(last), None) => Ok(Chunk { octets, last }),
        _ => Err(Reply::new(501, (5, 4), "BDAT size [LAST]")),
    }
}

fn mail(argument: &str, takes: Takes) -> Result<Mail, Reply> {
    let (path, given) = path_of(argument, "FROM:", (1, 7))?;
    let mut mail = Mail::new(ReversePath::Null);
    for Parameter { key, value } in parameters::split(given)? {
        match (key.as_str(), value) {
            ("SIZE", Some(value)) if takes.size => mail.size = Some(parameters::size(value)?),
            ("BODY", Some(value)) if takes.eight_bit => {
                mail.eight_bit = match value.to_ascii_uppercase().as_str() {
                    "7BIT" => false,
                    "8BITMIME" => true,
                    // BINARYMIME is never offered.
                    _ => return Err(parameters::unknown()),
                };
            }
            ("SMTPUTF8", None) if takes.smtputf8 => mail.smtputf8 = true,
            ("RET", Some(value)) if takes.dsn => {
                mail.ret = Some(Ret::parse(value).map_err(|error| bad_value("RET", error))?);
            }
            ("ENVID", Some(value)) if takes.dsn => {
                let envid = EnvelopeId::parse(value).map_err(|error| bad_value("ENVID", error))?;
                mail.envid = Some(envid);
            }
            _ => return Err(parameters::unknown()),
        }
    }
    let from = if mail.smtputf8 { ReversePath::parse_utf8(path) } else { ReversePath::parse(path) };
    mail.from = from.map_err(|error| bad_path(error, (1, 7)))?;
    Ok(mail)
}

fn rcpt(argument: &str, takes: Takes) -> Result<Rcpt, Reply> {
    let (path, given) = path_of(argument, "TO:", (1, 3))?;
    let path =
        if takes.smtputf8 { ForwardPath::parse_utf8(path) } else { ForwardPath::parse(path) };
    let path = path.map_err(|error| bad_path(error, (1, 3)))?;
    let mut rcpt = Rcpt { path, notify: None, orcpt: None };
    for Parameter { key, value } in parameters::split(given)? {
        match (key.as_str(), value) {
            ("NOTIFY", Some(value)) if takes.dsn => {
                let notify = Notify::parse(value).map_err(|error| bad_value("NOTIFY", error))?;
                rcpt.notify = Some(notify);
            }
            ("ORCPT", Some(value)) if takes.dsn => {
                let orcpt = OriginalRecipient::parse(value, takes.smtputf8);
                rcpt.orcpt = Some(orcpt.map_err(|error| bad_value("ORCPT", error))?);
            }
            _ => return Err(parameters::unknown()),
        }
    }
    Ok(rcpt)
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

fn bad_value(parameter: &str, error: DsnError) -> Reply {
    Reply::new(501, (5, 4), format!("{parameter} {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the session has without DSN and SMTPUTF8.
    const FEW: Takes = Takes { size: true, eight_bit: true, smtputf8: false, dsn: false };

    fn read(line: &str) -> String {
        read_with(line, FEW)
    }

    fn read_with(line: &str, takes: Takes) -> String {
        match parse(line.as_bytes(), takes) {
            Ok(Command::Mail(mail)) => format!("{} {:?} {}", mail.from, mail.size, mail.eight_bit),
            Ok(Command::Rcpt(Rcpt { path: ForwardPath::Mailbox(address), .. })) => {
                address.to_string()
            }
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
            ("RCPT TO:<PostMaster>", "Rcpt(Rcpt { path: Postmaster, notify: None, orcpt: None })"),
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
    fn what_a_client_wants_to_hear_is_said_to_the_next_server_word_for_word() {
        let mail = "MAIL FROM:<b@c.example> SIZE=7 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=Q+3d1\r\n";
        let rcpt =
            "RCPT TO:<ann@example.org> NOTIFY=Success,DELAY ORCPT=rfc822;ann+2Btag@example.net\r\n";
        let Ok(Command::Mail(said)) = parse(mail.trim_end().as_bytes(), Takes::ALL) else {
            panic!("no MAIL")
        };
        assert_eq!(said.command(Takes::ALL), mail);
        assert_eq!(said.command(FEW), "MAIL FROM:<b@c.example> SIZE=7 BODY=8BITMIME\r\n");
        assert_eq!(said.command(Takes::NONE), "MAIL FROM:<b@c.example>\r\n");
        let Ok(Command::Rcpt(said)) = parse(rcpt.trim_end().as_bytes(), Takes::ALL) else {
            panic!("no RCPT")
        };
        let ForwardPath::Mailbox(to) = &said.path else { panic!("no mailbox") };
        let Rcpt { notify, orcpt, .. } = said.clone();
        let to = Addressee { address: to.clone(), notify, orcpt };
        assert_eq!(to.command(Takes::ALL), rcpt);
        assert_eq!(to.command(FEW), "RCPT TO:<ann@example.org>\r\n");
    }

    #[test]
    fn parameters_are_taken_where_they_are_offered_once_and_with_sense() {
        for (line, expected) in [
            ("MAIL FROM:<a@b.example> RET=SOME", "501 5.5.4 "),
            ("MAIL FROM:<a@b.example> RET=FULL ret=HDRS", "501 5.5.4 "),
            ("MAIL FROM:<a@b.example> ENVID=a=b", "501 5.5.4 "),
            ("MAIL FROM:<a@b.example> SMTPUTF8=yes", "555 5.5.4 "),
            ("MAIL FROM:<a@b.example> NOTIFY=NEVER", "555 5.5.4 "),
            ("MAIL FROM:<\u{fc}@b.example>", "553 5.6.7 "),
            (
                "MAIL FROM:<\u{fc}@b\u{fc}cher.example> SMTPUTF8",
                "<\u{fc}@b\u{fc}cher.example> None false",
            ),
            ("RCPT TO:<\u{fc}nal@b\u{fc}cher.example>", "\u{fc}nal@xn--bcher-kva.example"),
            ("RCPT TO:<a@b.example> NOTIFY=NEVER,DELAY", "501 5.5.4 "),
            ("RCPT TO:<a@b.example> NOTIFY=NEVER NOTIFY=NEVER", "501 5.5.4 "),
            ("RCPT TO:<a@b.example> ORCPT=a@b.example", "501 5.5.4 "),
            (r"RCPT TO:<a@b.example> ORCPT=utf-8;\x{FC}nal@example.org", "a@b.example"),
            ("RCPT TO:<a@b.example> SIZE=1", "555 5.5.4 "),
        ] {
            assert_eq!(read_with(line, Takes::ALL), expected, "{line}");
        }
        for line in ["MAIL FROM:<a@b.example> SIZE=1", "MAIL FROM:<a@b.example> BODY=7BIT"] {
            assert_eq!(read_with(line, Takes::NONE), "555 5.5.4 ", "{line}");
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
            ("BDAT 5", "Bdat(Chunk { octets: 5, last: false })"),
            ("bdat  0 last", "Bdat(Chunk { octets: 0, last: true })"),
            ("BDAT", "501 5.5.4 "),
            ("BDAT +5", "501 5.5.4 "),
            ("BDAT 5 FIRST", "501 5.5.4 "),
            ("BDAT 5 LAST 6", "501 5.5.4 "),
            ("BDAT 9999999999999999999", "501 5.5.4 "),
            ("LHLO mail.example.org", "Lhlo(\"mail.example.org\")"),
            ("XCLIENT ADDR=192.0.2.1", "Xclient(\"ADDR=192.0.2.1\")"),
            ("GET / HTTP/1.1", "500 5.5.2 "),
            ("", "500 5.5.2 "),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
        for line in [&b"DA\rTA"[..], b"RCPT TO:<ann@example.org>\0", b"EHLO a\x1b[2J", b"QUIT\r"] {
            assert!(parse(line, Takes::ALL).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_chunk_is_announced_by_whatever_begins_with_its_verb() {
        for line in [&b"BDAT 5"[..], b"bdat", b"BDAT\t5", b"BDAT 5\0", b"BDAT \xff", b"BDAT\r 5"] {
            assert!(announces_chunk(line), "{line:?}");
        }
        for line in [&b"BDATA 5"[..], b"", b" BDAT 5", b"DATA"] {
            assert!(!announces_chunk(line), "{line:?}");
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
            let said = match parse(&line, FEW) {
                Ok(Command::Mail(mail)) => mail.from.to_string(),
                Ok(Command::Rcpt(Rcpt { path: ForwardPath::Mailbox(address), .. })) => {
                    format!("<{address}>")
                }
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
