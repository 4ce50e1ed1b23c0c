//! A server's replies as far as a login needs them (RFC 1939 §3, RFC 2449 §8, RFC 3206), bounded.

use shared::sasl::decode_base64;
use shared::wire::Wire;

use crate::backend::{AttachError, says_too_many_sessions};

/// Longest line of a reply in octets, its line end included: RFC 2449 has 512, a challenge may be longer.
const MAX_LINE: usize = 8 * 1024;
/// Most lines of a list.
const MAX_LINES: usize = 100;

/// What a reply says.
#[derive(Debug)]
pub(super) enum Reply {
    /// `+OK`, and its text.
    Ok(String),
    /// `-ERR`.
    Err(No),
    /// `+`: the challenge, in base64 as it came.
    Continue(String),
}

/// A server's no.
#[derive(Debug)]
pub(super) struct No {
    /// The response code without its brackets, in upper case; empty for none.
    code: String,
    text: String,
}

impl Reply {
    /// Reads one.
    pub(super) async fn next(wire: &mut Wire) -> Result<Self, AttachError> {
        Self::parse(&line(wire).await?).ok_or(AttachError::Protocol("a line that is no reply"))
    }

    /// Reads one that is yes or no.
    pub(super) async fn verdict(wire: &mut Wire) -> Result<Result<String, No>, AttachError> {
        match Self::next(wire).await? {
            Self::Ok(text) => Ok(Ok(text)),
            Self::Err(no) => Ok(Err(no)),
            Self::Continue(_) => Err(AttachError::Protocol("continuation out of turn")),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (status, text) = line.split_once(' ').unwrap_or((line, ""));
        match status.to_ascii_uppercase().as_str() {
            "+OK" => Some(Self::Ok(text.to_owned())),
            "-ERR" => Some(Self::Err(No::parse(text))),
            "+" => Some(Self::Continue(text.to_owned())),
            _ => None,
        }
    }
}

impl No {
    fn parse(text: &str) -> Self {
        let coded = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (code, text) = coded.unwrap_or(("", text));
        Self { code: code.to_ascii_uppercase(), text: text.to_owned() }
    }

    /// What it means as the answer to credentials. Without a code it is about them: servers with codes say
    /// so when it is not, and the others cannot.
    pub(super) fn to_credentials(&self) -> AttachError {
        match self.code.as_str() {
            "" if !says_too_many_sessions(&self.text) => AttachError::Rejected,
            "AUTH" => AttachError::Rejected,
            _ => self.to_anything_else(),
        }
    }

    /// What it means where no credentials were given: a greeting, say.
    pub(super) fn to_anything_else(&self) -> AttachError {
        match self.code.as_str() {
            _ if says_too_many_sessions(&self.text) => AttachError::TooManySessions,
            "IN-USE" => AttachError::TooManySessions,
            "SYS/TEMP" | "LOGIN-DELAY" | "" => AttachError::Unavailable,
            // SYS/PERM, AUTH, REFERRAL, and what we do not know.
            _ => AttachError::Refuses,
        }
    }
}

/// Reads the lines of a list that was announced, up to the dot.
pub(super) async fn list(wire: &mut Wire) -> Result<Vec<String>, AttachError> {
    let mut lines = Vec::new();
    loop {
        let line = line(wire).await?;
        if line == "." {
            return Ok(lines);
        }
        if lines.len() >= MAX_LINES {
            return Err(AttachError::Protocol("a list without end"));
        }
        lines.push(line);
    }
}

/// A challenge, decoded.
pub(super) fn challenge(text: &str) -> Result<Vec<u8>, AttachError> {
    let decoded = decode_base64(text.trim().as_bytes());
    let decoded = decoded.map_err(|_| AttachError::Protocol("a challenge that is not base64"))?;
    Ok(decoded.expose().to_vec())
}

async fn line(wire: &mut Wire) -> Result<String, AttachError> {
    let line = wire.line(MAX_LINE).await?;
    Ok(String::from_utf8_lossy(line.octets()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_is_judged_by_its_code_and_by_what_it_answers() {
        for (text, to_credentials, to_anything_else) in [
            ("[AUTH] Authentication failed.", "Rejected", "Refuses"),
            ("Invalid login", "Rejected", "Unavailable"),
            ("", "Rejected", "Unavailable"),
            ("[SYS/TEMP] later", "Unavailable", "Unavailable"),
            ("[sys/temp] later", "Unavailable", "Unavailable"),
            ("[LOGIN-DELAY] wait", "Unavailable", "Unavailable"),
            ("[SYS/PERM] never", "Refuses", "Refuses"),
            ("[IN-USE] locked", "TooManySessions", "TooManySessions"),
            (
                "[SYS/TEMP] Maximum number of connections from user+IP exceeded",
                "TooManySessions",
                "TooManySessions",
            ),
            (
                "Maximum number of connections from user+IP exceeded",
                "TooManySessions",
                "TooManySessions",
            ),
            ("[REFERRAL/pop://u@elsewhere.example] moved", "Refuses", "Refuses"),
            ("[X-OTHER] what", "Refuses", "Refuses"),
        ] {
            let Some(Reply::Err(no)) = Reply::parse(&format!("-ERR {text}")) else { panic!() };
            assert_eq!(format!("{:?}", no.to_credentials()), to_credentials, "{text}");
            assert_eq!(format!("{:?}", no.to_anything_else()), to_anything_else, "{text}");
        }
    }

    #[test]
    fn a_bare_plus_is_an_empty_challenge_and_what_is_no_reply_is_none() {
        for line in ["+", "+ "] {
            let Some(Reply::Continue(text)) = Reply::parse(line) else { panic!("{line:?}") };
            assert!(challenge(&text).unwrap().is_empty());
        }
        assert!(matches!(Reply::parse("+ok"), Some(Reply::Ok(text)) if text.is_empty()));
        for line in ["", "OK", "+OKAY", "-ERROR x", "* OK", "220 x", ". "] {
            assert!(Reply::parse(line).is_none(), "{line:?}");
        }
        assert!(challenge("go ahead!").is_err());
    }
}
