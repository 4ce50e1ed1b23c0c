//! A client's command lines: verbs, arguments, ESMTP parameters (RFC 5321 §4.1.1).
//!
//! One line in, one [`Command`] or the reason why it is none. Order, limits and replies are the session's
//! business. Lines end with CRLF and hold neither CR nor NUL: what other servers forgive here is what
//! smuggled messages are made of (RFC 5321 §2.3.8).

use super::path::{ForwardPath, PathError, ReversePath};
use crate::dialogue::{Line, LineEnding};

/// Longest command line in octets with its CRLF. RFC 5321 §4.5.3.1.4 asks for 512 and more with
/// extensions; source routes and long addresses fit in, too.
pub const MAX_LINE: usize = 4096;
/// Longest EHLO argument in octets: a domain or an address literal.
const MAX_HELO: usize = 255;
/// Most digits of a SIZE (RFC 1870 §4). More is no number, whatever it means.
const MAX_SIZE_DIGITS: usize = 20;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// EHLO: who the client says it is. Printable ASCII, but not checked to be a host name: whom to
    /// believe is policy, not syntax.
    Ehlo(Box<str>),
    /// HELO, likewise.
    Helo(Box<str>),
    /// MAIL.
    Mail(Mail),
    /// RCPT.
    Rcpt(ForwardPath),
    /// DATA.
    Data,
    /// RSET.
    Rset,
    /// NOOP, with or without words.
    Noop,
    /// QUIT.
    Quit,
    /// VRFY.
    Vrfy,
    /// HELP.
    Help,
    /// STARTTLS.
    StartTls,
    /// BDAT: not offered, and what follows it is not commands.
    Bdat,
    /// A verb of SMTP or of an extension that is not offered.
    NotOffered,
}

/// MAIL's arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// The sender.
    pub from: ReversePath,
    /// The size it declares, in octets with CRLFs; `u64::MAX` when it is beyond that.
    pub size: Option<u64>,
    /// The content it declares.
    pub body: Option<Body>,
}

/// What MAIL's BODY says of the content (RFC 6152).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// `BODY=7BIT`.
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// Why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It ends with LF alone.
    #[error("line does not end with CR LF")]
    LineEnding,
    /// A NUL, a CR without LF or another control character in it.
    #[error("control character in a command")]
    Control,
    /// The words of another protocol.
    #[error("the words of {0}")]
    ForeignProtocol(&'static str),
    /// No verb that is known.
    #[error("unknown command")]
    Unknown,
    /// Arguments where there must be none, or none where there must be.
    #[error("usage: {usage}")]
    Arguments {
        /// How the command is written.
        usage: &'static str,
    },
    /// MAIL's path is none.
    #[error("sender: {0}")]
    Sender(PathError),
    /// RCPT's path is none.
    #[error("recipient: {0}")]
    Recipient(PathError),
    /// A parameter of an extension that is not offered (RFC 5321 §4.1.1.11).
    #[error("unknown parameter")]
    UnknownParameter,
    /// A parameter given twice, or with a value that it cannot have.
    #[error("bad value of {parameter}")]
    BadParameter {
        /// Which.
        parameter: &'static str,
    },
}

const MAIL_USAGE: &str = "MAIL FROM:<sender> [parameters]";
const RCPT_USAGE: &str = "RCPT TO:<recipient> [parameters]";

impl Command {
    /// Reads one line.
    ///
    /// # Errors
    ///
    /// A [`CommandError`].
    pub fn parse(line: &Line) -> Result<Self, CommandError> {
        let octets = line.octets();
        if let Some(protocol) = foreign(octets) {
            return Err(CommandError::ForeignProtocol(protocol));
        }
        if line.ending() != LineEnding::CrLf {
            return Err(CommandError::LineEnding);
        }
        if octets.iter().any(|&b| b.is_ascii_control() && b != b'\t') {
            return Err(CommandError::Control);
        }
        let octets = octets.trim_ascii_end();
        let (verb, argument) = match octets.iter().position(|b| b" \t".contains(b)) {
            Some(at) => {
                (octets.get(..at).unwrap_or_default(), octets.get(at..).unwrap_or_default())
            }
            None => (octets, &[][..]),
        };
        let argument = argument.trim_ascii_start();
        match verb.to_ascii_uppercase().as_slice() {
            b"EHLO" => Ok(Self::Ehlo(helo_name(argument, "EHLO domain")?)),
            b"HELO" => Ok(Self::Helo(helo_name(argument, "HELO domain")?)),
            b"MAIL" => mail(argument),
            b"RCPT" => rcpt(argument),
            b"DATA" => alone(argument, "DATA", Self::Data),
            b"RSET" => alone(argument, "RSET", Self::Rset),
            b"QUIT" => alone(argument, "QUIT", Self::Quit),
            b"STARTTLS" => alone(argument, "STARTTLS", Self::StartTls),
            b"NOOP" => Ok(Self::Noop),
            b"HELP" => Ok(Self::Help),
            b"VRFY" if argument.is_empty() => {
                Err(CommandError::Arguments { usage: "VRFY address" })
            }
            b"VRFY" => Ok(Self::Vrfy),
            b"BDAT" => Ok(Self::Bdat),
            b"EXPN" | b"ETRN" | b"ATRN" | b"TURN" | b"AUTH" | b"BURL" | b"SEND" | b"SOML"
            | b"SAML" | b"XCLIENT" | b"XFORWARD" | b"LHLO" => Ok(Self::NotOffered),
            _ => Err(CommandError::Unknown),
        }
    }
}

/// The protocol whose client has come to the wrong port. Its next lines may be anybody's words (a web
/// page can make a browser send them), so the connection must end.
fn foreign(line: &[u8]) -> Option<&'static str> {
    if let [0x16, 0x03, ..] = line {
        return Some("TLS");
    }
    let word = line.split(|b| b" \t\r".contains(b)).next().unwrap_or_default();
    let http: [&[u8]; 9] =
        [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"DELETE", b"PATCH", b"PRI"];
    let header = [&b"Host:"[..], b"User-Agent:", b"Content-Type:", b"Content-Length:"];
    let is = |words: &[&[u8]]| words.iter().any(|w| word.eq_ignore_ascii_case(w));
    if is(&http) || is(&header) {
        return Some("HTTP");
    }
    line.starts_with(b"SSH-").then_some("SSH")
}

fn alone(argument: &[u8], usage: &'static str, command: Command) -> Result<Command, CommandError> {
    if argument.is_empty() { Ok(command) } else { Err(CommandError::Arguments { usage }) }
}

fn helo_name(argument: &[u8], usage: &'static str) -> Result<Box<str>, CommandError> {
    let name = argument.split(|b| b" \t".contains(b)).next().unwrap_or_default();
    match std::str::from_utf8(name) {
        Ok(name) if (1..=MAX_HELO).contains(&name.len()) && name.is_ascii() => Ok(name.into()),
        Ok(_) | Err(_) => Err(CommandError::Arguments { usage }),
    }
}

/// What follows `FROM:` or `TO:`. Spaces before the path are forgiven: some senders put one there.
fn path_of<'a>(argument: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = argument.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then(|| rest.trim_ascii_start())
}

fn mail(argument: &[u8]) -> Result<Command, CommandError> {
    let usage = CommandError::Arguments { usage: MAIL_USAGE };
    let path = path_of(argument, b"FROM:").ok_or(usage)?;
    let (from, rest) = ReversePath::parse(path).map_err(CommandError::Sender)?;
    let mut mail = Mail { from, size: None, body: None };
    for (keyword, value) in parameters(rest, usage)? {
        if keyword.eq_ignore_ascii_case(b"SIZE") {
            let size = value.and_then(size).filter(|_| mail.size.is_none());
            mail.size = Some(size.ok_or(CommandError::BadParameter { parameter: "SIZE" })?);
        } else if keyword.eq_ignore_ascii_case(b"BODY") {
            let body = match value.map(<[u8]>::to_ascii_uppercase).as_deref() {
                Some(b"7BIT") => Some(Body::SevenBit),
                Some(b"8BITMIME") => Some(Body::EightBitMime),
                Some(_) | None => None,
            };
            let body = body.filter(|_| mail.body.is_none());
            mail.body = Some(body.ok_or(CommandError::BadParameter { parameter: "BODY" })?);
        } else {
            return Err(CommandError::UnknownParameter);
        }
    }
    Ok(Command::Mail(mail))
}

fn rcpt(argument: &[u8]) -> Result<Command, CommandError> {
    let usage = CommandError::Arguments { usage: RCPT_USAGE };
    let path = path_of(argument, b"TO:").ok_or(usage)?;
    let (to, rest) = ForwardPath::parse(path).map_err(CommandError::Recipient)?;
    if parameters(rest, usage)?.next().is_some() {
        return Err(CommandError::UnknownParameter);
    }
    Ok(Command::Rcpt(to))
}

/// The parameters behind a path, which a space parts from it and from each other.
fn parameters(
    rest: &[u8],
    usage: CommandError,
) -> Result<impl Iterator<Item = (&[u8], Option<&[u8]>)>, CommandError> {
    if !rest.is_empty() && !rest.starts_with(b" ") {
        return Err(usage);
    }
    let words = rest.split(|&b| b == b' ').filter(|word| !word.is_empty());
    Ok(words.map(|word| match word.iter().position(|&b| b == b'=') {
        Some(at) => (word.get(..at).unwrap_or_default(), word.get(at + 1..)),
        None => (word, None),
    }))
}

/// A number of octets; beyond `u64` it is that much.
fn size(digits: &[u8]) -> Option<u64> {
    if !(1..=MAX_SIZE_DIGITS).contains(&digits.len()) {
        return None;
    }
    digits.iter().try_fold(0_u64, |size, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(size.saturating_mul(10).saturating_add(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialogue::Input;
    use proptest::prelude::*;

    fn parse(line: &[u8]) -> Result<Command, CommandError> {
        let line = Input::from_octets(line).line(MAX_LINE).unwrap().unwrap();
        Command::parse(&line)
    }

    fn said(line: &str) -> Result<Command, CommandError> {
        parse(format!("{line}\r\n").as_bytes())
    }

    fn mail_of(line: &str) -> Mail {
        match said(line) {
            Ok(Command::Mail(mail)) => mail,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn verbs_are_read_in_any_case() {
        for (line, command) in [
            ("data", Command::Data),
            ("Rset ", Command::Rset),
            ("NOOP anything at all", Command::Noop),
            ("quit", Command::Quit),
            ("vrfy ann", Command::Vrfy),
            ("help", Command::Help),
            ("starttls", Command::StartTls),
            ("EHLO [192.0.2.1]", Command::Ehlo("[192.0.2.1]".into())),
            ("helo a b", Command::Helo("a".into())),
            ("expn list", Command::NotOffered),
            ("AUTH PLAIN AGE", Command::NotOffered),
            ("BDAT 5 LAST", Command::Bdat),
        ] {
            assert_eq!(said(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn a_command_ends_with_crlf_and_holds_no_control_character() {
        assert_eq!(parse(b"QUIT\n"), Err(CommandError::LineEnding));
        for line in [&b"DA\rTA\r\n"[..], b"QUIT\0\r\n", b"QUIT\r\r\n", b"EHLO a\x1b[2J\r\n"] {
            assert_eq!(parse(line), Err(CommandError::Control), "{line:?}");
        }
    }

    #[test]
    fn commands_without_arguments_take_none() {
        for line in ["DATA foo", "RSET x", "QUIT now", "STARTTLS a", "EHLO", "HELO", "VRFY"] {
            assert!(matches!(said(line), Err(CommandError::Arguments { .. })), "{line}");
        }
        let long = format!("EHLO {}", "a".repeat(256));
        assert!(matches!(said(&long), Err(CommandError::Arguments { .. })));
        assert!(matches!(parse(b"EHLO \xc3\xa4\r\n"), Err(CommandError::Arguments { .. })));
    }

    #[test]
    fn a_sender_comes_with_size_and_body() {
        let mail = mail_of("MAIL FROM:<ann@example.org> SIZE=1000 BODY=8bitmime");
        assert_eq!((mail.size, mail.body), (Some(1000), Some(Body::EightBitMime)));
        let mail = mail_of("mail from: <>");
        assert_eq!((mail.from, mail.size, mail.body), (ReversePath::Null, None, None));
    }

    #[test]
    fn a_size_never_overflows() {
        assert_eq!(mail_of("MAIL FROM:<> SIZE=0").size, Some(0));
        assert_eq!(mail_of("MAIL FROM:<> SIZE=18446744073709551615").size, Some(u64::MAX));
        assert_eq!(mail_of("MAIL FROM:<> SIZE=99999999999999999999").size, Some(u64::MAX));
        for value in ["", "-1", "1k", "999999999999999999999", "+1"] {
            assert_eq!(
                said(&format!("MAIL FROM:<> SIZE={value}")),
                Err(CommandError::BadParameter { parameter: "SIZE" }),
                "{value}"
            );
        }
    }

    #[test]
    fn a_parameter_is_known_and_comes_once() {
        for (line, error) in [
            ("MAIL FROM:<> SIZE=1 SIZE=2", CommandError::BadParameter { parameter: "SIZE" }),
            ("MAIL FROM:<> BODY=7BIT BODY=7BIT", CommandError::BadParameter { parameter: "BODY" }),
            ("MAIL FROM:<> BODY=BINARYMIME", CommandError::BadParameter { parameter: "BODY" }),
            ("MAIL FROM:<> SIZE", CommandError::BadParameter { parameter: "SIZE" }),
            ("MAIL FROM:<> SMTPUTF8", CommandError::UnknownParameter),
            ("MAIL FROM:<> RET=HDRS", CommandError::UnknownParameter),
            ("RCPT TO:<a@b> NOTIFY=NEVER", CommandError::UnknownParameter),
            ("RCPT TO:<a@b>NOTIFY=NEVER", CommandError::Arguments { usage: RCPT_USAGE }),
            ("MAIL FROM:<a@b>\tSIZE=1", CommandError::Arguments { usage: MAIL_USAGE }),
        ] {
            assert_eq!(said(line), Err(error), "{line}");
        }
    }

    #[test]
    fn a_wrong_path_says_whose() {
        assert_eq!(said("MAIL FROM:ann@b.c"), Err(CommandError::Sender(PathError::Syntax)));
        assert_eq!(said("RCPT TO:<>"), Err(CommandError::Recipient(PathError::NoRecipient)));
        for line in ["MAIL", "MAIL TO:<a@b>", "RCPT <a@b>", "RCPT FROM:<a@b>", "MAIL FROM"] {
            assert!(matches!(said(line), Err(CommandError::Arguments { .. })), "{line}");
        }
    }

    #[test]
    fn another_protocol_is_known_by_its_first_words() {
        for line in ["GET / HTTP/1.1", "post / HTTP/1.0", "Host: mx.example.org", "PRI * HTTP/2.0"]
        {
            assert_eq!(said(line), Err(CommandError::ForeignProtocol("HTTP")), "{line}");
        }
        assert_eq!(parse(b"\x16\x03\x01\x02\0\x01\n"), Err(CommandError::ForeignProtocol("TLS")));
        assert_eq!(said("SSH-2.0-x"), Err(CommandError::ForeignProtocol("SSH")));
    }

    proptest! {
        #[test]
        fn no_line_panics_the_parser(octets in proptest::collection::vec(any::<u8>(), 0..80), verb in 0..4_usize) {
            let verb = ["", "MAIL FROM:", "RCPT TO:<", "EHLO "][verb].as_bytes();
            let line: Vec<u8> = [verb, &octets, b"\r\n"].concat();
            let mut input = Input::from_octets(&line);
            while let Ok(Some(line)) = input.line(MAX_LINE) {
                let _ = Command::parse(&line);
            }
        }
    }
}
