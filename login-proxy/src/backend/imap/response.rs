//! A server's responses as far as a login needs them (RFC 3501 §7), bounded.

use shared::wire::{Wire, WireError};

use crate::backend::{AttachError, Reason, says_too_many_sessions};

/// Longest line of a response in octets, its line end included.
const MAX_LINE: usize = 8 * 1024;
/// Most lines before the one that is waited for.
const MAX_LINES: usize = 100;
/// Largest literal in an untagged response; ID values may be literals.
const MAX_LITERAL: usize = 8 * 1024;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    No,
    Bad,
    Bye,
    Preauth,
    /// `+`: go on.
    Continue,
}

/// A status line.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: Status,
    /// The response code without its brackets, in upper case.
    code: String,
    /// From a CAPABILITY code.
    pub(super) capabilities: Option<String>,
    /// What follows the code, or `+`.
    pub(super) text: String,
}

/// What came on the way to a tagged reply.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// From an untagged CAPABILITY, the last one.
    pub(super) capabilities: Option<String>,
    /// Untagged status responses, as they came.
    pub(super) said: String,
    lines: usize,
}

impl Exchange {
    /// Reads up to the reply with `tag`, or `* BYE`.
    pub(super) async fn tagged(
        &mut self,
        wire: &mut Wire,
        tag: &str,
    ) -> Result<Reply, AttachError> {
        match self.next(wire, tag).await? {
            Reply { status: Status::Continue, .. } => {
                Err(AttachError::Protocol("continuation out of turn"))
            }
            reply => Ok(reply),
        }
    }

    /// Reads up to the reply with `tag`, `+`, or `* BYE`.
    pub(super) async fn next(&mut self, wire: &mut Wire, tag: &str) -> Result<Reply, AttachError> {
        loop {
            self.lines = self.lines.saturating_add(1);
            if self.lines > MAX_LINES {
                return Err(AttachError::Protocol("too many untagged lines"));
            }
            let line = line(wire).await?;
            if line == "+" || line.starts_with("+ ") {
                return Ok(Reply::of(Status::Continue, line.get(2..).unwrap_or_default()));
            }
            let Some((first, rest)) = line.split_once(' ') else {
                return Err(AttachError::Protocol("a line without words"));
            };
            if first.eq_ignore_ascii_case(tag) {
                return Reply::parse(rest)
                    .ok_or(AttachError::Protocol("a tagged line without status"));
            }
            if first != "*" {
                return Err(AttachError::Protocol("another tag"));
            }
            match Reply::parse(rest) {
                Some(reply) if reply.status == Status::Bye => return Ok(reply),
                Some(_) => {
                    self.said.push_str(&line);
                    self.said.push_str("\r\n");
                }
                None => {
                    if let Some(words) = after_word(rest, "CAPABILITY") {
                        self.capabilities = Some(words.to_owned());
                    }
                }
            }
        }
    }
}

/// Reads one untagged status line: the greeting.
pub(super) async fn next_reply(wire: &mut Wire, tag: &str) -> Result<Reply, AttachError> {
    let line = line(wire).await?;
    let reply = line.split_once(' ').filter(|(first, _)| *first == tag);
    reply.and_then(|(_, rest)| Reply::parse(rest)).ok_or(AttachError::Protocol("greeting"))
}

impl Reply {
    fn of(status: Status, text: &str) -> Self {
        Self { status, code: String::new(), capabilities: None, text: text.to_owned() }
    }

    fn parse(words: &str) -> Option<Self> {
        let (status, rest) = words.split_once(' ').unwrap_or((words, ""));
        let status = match status.to_ascii_uppercase().as_str() {
            "OK" => Status::Ok,
            "NO" => Status::No,
            "BAD" => Status::Bad,
            "BYE" => Status::Bye,
            "PREAUTH" => Status::Preauth,
            _ => return None,
        };
        let Some((code, text)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'))
        else {
            return Some(Self::of(status, rest));
        };
        Some(Self {
            status,
            code: code.to_ascii_uppercase(),
            capabilities: after_word(code, "CAPABILITY").map(str::to_owned),
            text: text.trim_start().to_owned(),
        })
    }

    /// What a refusal means. The code counts, not whether it is NO or BAD (RFC 5530; some servers say
    /// `BAD [UNAVAILABLE]`).
    pub(super) fn refusal(&self) -> AttachError {
        let code = self.code.split(' ').next().unwrap_or_default();
        match (code, self.status) {
            ("UNAVAILABLE", _) if says_too_many_sessions(&self.text) => {
                AttachError::TooManySessions
            }
            ("LIMIT", _) => AttachError::TooManySessions,
            ("UNAVAILABLE" | "INUSE", _) | (_, Status::Bye) => AttachError::Unavailable,
            ("REFERRAL" | "SERVERBUG" | "CONTACTADMIN" | "PRIVACYREQUIRED" | "CANNOT", _)
            | (_, Status::Bad | Status::Preauth | Status::Continue | Status::Ok) => {
                AttachError::Refuses
            }
            (_, Status::No) => AttachError::Rejected(Reason::of(&self.text)),
        }
    }
}

/// One line; literals in it are read over.
async fn line(wire: &mut Wire) -> Result<String, AttachError> {
    let mut whole = String::new();
    loop {
        let line = wire.line(MAX_LINE).await?;
        let text = String::from_utf8_lossy(line.octets()).into_owned();
        let literal = text
            .strip_suffix('}')
            .and_then(|text| text.rsplit_once('{'))
            .and_then(|(_, digits)| digits.parse::<usize>().ok());
        whole.push_str(&text);
        let Some(octets) = literal else { return Ok(whole) };
        if octets > MAX_LITERAL || whole.len() > MAX_LITERAL {
            return Err(AttachError::Protocol("too large a literal"));
        }
        while wire.input.take(octets).is_none() {
            if wire.fill().await? == 0 {
                return Err(WireError::Closed.into());
            }
        }
    }
}

fn after_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (first, rest) = text.split_once(' ')?;
    first.eq_ignore_ascii_case(word).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::cause;

    #[test]
    fn a_refusal_is_judged_by_its_code() {
        for (line, expected) in [
            ("NO [AUTHENTICATIONFAILED] no", "Rejected"),
            ("NO [AUTHORIZATIONFAILED] no", "Rejected"),
            ("NO Login failed", "Rejected"),
            ("NO [ALERT] Login failed", "Rejected"),
            ("NO [UNAVAILABLE] later", "Unavailable"),
            ("BAD [UNAVAILABLE] later", "Unavailable"),
            ("NO [INUSE] later", "Unavailable"),
            (
                "NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded",
                "TooManySessions",
            ),
            ("NO [LIMIT] too many", "TooManySessions"),
            ("NO [SERVERBUG] oops", "Refuses"),
            ("NO [REFERRAL imap://elsewhere.example/] moved", "Refuses"),
            ("NO [PRIVACYREQUIRED] TLS", "Refuses"),
            ("BAD what", "Refuses"),
            ("BYE going", "Unavailable"),
        ] {
            let reply = Reply::parse(line).unwrap();
            assert_eq!(cause(&reply.refusal()), expected, "{line}");
        }
    }

    #[test]
    fn capabilities_come_in_a_code() {
        let reply = Reply::parse("OK [CAPABILITY IMAP4rev1 IDLE] Logged in").unwrap();
        assert_eq!(reply.capabilities.as_deref(), Some("IMAP4rev1 IDLE"));
        assert!(Reply::parse("CAPABILITY IMAP4rev1").is_none());
    }
}
