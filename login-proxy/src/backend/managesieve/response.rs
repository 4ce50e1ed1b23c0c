//! A server's responses (RFC 5804 §1.3, §4), bounded.

use shared::credentials::Secret;
use shared::wire::{Wire, WireError};

use crate::backend::{AttachError, Reason, says_too_many_sessions};
use crate::managesieve::{Limits, Parsed, Word, parse, strings};

/// What a server may say in one line. Quoted strings are longer than they should be where a server lists
/// many Sieve extensions.
const LIMITS: Limits = Limits { quoted: 8 * 1024, literal: 8 * 1024, line: 16 * 1024 };
/// Most lines of one answer.
const MAX_LINES: usize = 100;

/// What a line says.
#[derive(Debug)]
pub(super) enum Said {
    /// A capability, or a challenge.
    Strings(Vec<Secret>),
    /// The end of an answer.
    Reply(Reply),
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    No,
    Bye,
}

/// A status line.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: Status,
    /// The response code without what follows it, in upper case.
    code: String,
    /// From a SASL code, in base64.
    pub(super) sasl: Option<Secret>,
    text: String,
}

/// Responses to one command.
#[derive(Debug, Default)]
pub(super) struct Responses {
    lines: usize,
}

impl Responses {
    /// The next line.
    pub(super) async fn next(&mut self, wire: &mut Wire) -> Result<Said, AttachError> {
        self.lines = self.lines.saturating_add(1);
        if self.lines > MAX_LINES {
            return Err(AttachError::Protocol("too many lines"));
        }
        loop {
            match parse(wire.input.unread(), LIMITS) {
                Parsed::Whole { words, octets } => {
                    let said = Said::of(&words);
                    wire.input.consume(octets);
                    return said.ok_or(AttachError::Protocol("neither strings nor a status"));
                }
                Parsed::Part => {}
                Parsed::Malformed { .. } => {
                    return Err(AttachError::Protocol("a line that is not made of words"));
                }
                Parsed::TooLarge { .. } => return Err(AttachError::Protocol("too long a line")),
            }
            if wire.fill().await? == 0 {
                return Err(WireError::Closed.into());
            }
        }
    }

    /// The next line, which must be a status.
    pub(super) async fn reply(&mut self, wire: &mut Wire) -> Result<Reply, AttachError> {
        match self.next(wire).await? {
            Said::Reply(reply) => Ok(reply),
            Said::Strings(_) => Err(AttachError::Protocol("strings out of turn")),
        }
    }
}

impl Said {
    fn of(words: &[Word]) -> Option<Self> {
        let [Word::Atom(status), rest @ ..] = words else {
            return strings(words).filter(|strings| !strings.is_empty()).map(Self::Strings);
        };
        let status = match status.to_ascii_uppercase().as_slice() {
            b"OK" => Status::Ok,
            b"NO" => Status::No,
            b"BYE" => Status::Bye,
            _ => return None,
        };
        let (code, rest) = match rest {
            [Word::Open, rest @ ..] => {
                let end = rest.iter().position(|word| *word == Word::Close)?;
                rest.split_at(end)
            }
            rest => (&[][..], rest),
        };
        let (code, sasl) = match code {
            [Word::Atom(code), arguments @ ..] => {
                let code = String::from_utf8_lossy(code).to_ascii_uppercase();
                let is_sasl = code == "SASL";
                (code, arguments.first().and_then(Word::string).filter(|_| is_sasl))
            }
            _ => (String::new(), None),
        };
        let text = rest.iter().find_map(Word::string).unwrap_or_default();
        let text = String::from_utf8_lossy(text.expose()).into_owned();
        Some(Self::Reply(Reply { status, code, sasl, text }))
    }
}

impl Reply {
    /// What a refusal of credentials means. The code counts, where there is one.
    pub(super) fn refusal(&self) -> AttachError {
        let code = self.code.split('/').next().unwrap_or_default();
        match (code, self.status) {
            // Dovecot's limit has the code of what may be tried again at once.
            _ if says_too_many_sessions(&self.text) => AttachError::TooManySessions,
            ("TRYLATER", _) => AttachError::Unavailable,
            // Not about the credentials: how they came, or where. A referral contradicts the table.
            ("AUTH-TOO-WEAK" | "ENCRYPT-NEEDED" | "TRANSITION-NEEDED" | "REFERRAL", _) => {
                AttachError::Refuses
            }
            (_, Status::Bye) => AttachError::Unavailable,
            (_, Status::No) => AttachError::Rejected(Reason::of(&self.text)),
            (_, Status::Ok) => AttachError::Protocol("yes out of turn"),
        }
    }

    /// What a refusal means that cannot be about credentials, since none were given or they were taken.
    pub(super) fn refusal_of_all(&self) -> AttachError {
        match self.refusal() {
            AttachError::Rejected(_) => AttachError::Refuses,
            error => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::cause;

    fn said(line: &str) -> Option<Said> {
        let line = format!("{line}\r\n");
        let Parsed::Whole { words, .. } = parse(line.as_bytes(), LIMITS) else { return None };
        Said::of(&words)
    }

    #[test]
    fn a_refusal_is_judged_by_its_code() {
        for (line, expected) in [
            ("NO", "Rejected"),
            ("no \"Authentication failed.\"", "Rejected"),
            ("NO (X-OTHER) \"no\"", "Rejected"),
            ("NO (TRYLATER) \"later\"", "Unavailable"),
            ("NO (TRYLATER/NORETRY) {5}\r\nlater", "Unavailable"),
            (
                "NO (TRYLATER) \"Maximum number of connections from user+IP exceeded\"",
                "TooManySessions",
            ),
            ("NO (AUTH-TOO-WEAK)", "Refuses"),
            ("NO (ENCRYPT-NEEDED) \"TLS\"", "Refuses"),
            ("BYE (REFERRAL \"sieve://elsewhere.example.org\") \"there\"", "Refuses"),
            ("BYE", "Unavailable"),
            ("BYE (TRYLATER) \"too many\"", "Unavailable"),
        ] {
            let Some(Said::Reply(reply)) = said(line) else { panic!("{line}") };
            assert_eq!(cause(&reply.refusal()), expected, "{line}");
        }
    }

    #[test]
    fn a_line_is_strings_or_a_status() {
        let Some(Said::Reply(reply)) = said("OK (SASL \"dj0=\") \"in\"") else { panic!() };
        assert_eq!(reply.sasl.unwrap().expose(), b"dj0=");
        let Some(Said::Strings(strings)) = said("\"SIEVE\" {4}\r\nvnd.") else { panic!() };
        assert_eq!(strings.len(), 2);
        for wrong in ["", "+OK", "* OK", "\"a\" b", "(TRYLATER) NO", "NO (TRYLATER"] {
            assert!(said(wrong).is_none(), "{wrong:?}");
        }
    }
}
