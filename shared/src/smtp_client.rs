//! Hearing an SMTP or LMTP server over a [`Wire`]: whole replies, and what it offers (RFC 5321 §4.2).
//!
//! What a reply means is the caller's business; only what is no reply is an error here.

use crate::smtp::reply::{Reply, ReplyLine};
use crate::wire::{Wire, WireError};

/// Longest line of a reply in octets with its line end. RFC 5321 §4.5.3.1.5 says 512; a challenge may
/// have 12288 (RFC 4954 §4).
const MAX_LINE: usize = 12 * 1024 + 8;
/// Most lines of one reply.
const MAX_LINES: usize = 100;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The connection broke, or no reply came in time.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// What came is no reply.
    #[error("{0}")]
    Malformed(&'static str),
}

/// Reads one reply, of any number of lines with one code. `each` hears what follows the code in every
/// line, untamed.
///
/// # Errors
///
/// A [`ReplyError`]; the connection is over.
pub async fn reply_with(
    wire: &mut Wire,
    mut each: impl FnMut(&str) + Send,
) -> Result<Reply, ReplyError> {
    let mut code = None;
    for _ in 0..MAX_LINES {
        let line = wire.line(MAX_LINE).await?;
        let line = ReplyLine::parse(line.octets()).ok_or(ReplyError::Malformed("not a reply"))?;
        if code.is_some_and(|code| code != line.code) {
            return Err(ReplyError::Malformed("a reply with two codes"));
        }
        code = Some(line.code);
        each(line.text);
        if !line.more {
            return Ok(Reply::of_lines(line.code, line.text));
        }
    }
    Err(ReplyError::Malformed("an endless reply"))
}

/// Reads one reply.
///
/// # Errors
///
/// As [`reply_with`].
pub async fn reply(wire: &mut Wire) -> Result<Reply, ReplyError> {
    reply_with(wire, |_| {}).await
}

/// Says `verb` (EHLO, LHLO, HELO) with our name and reads the answer; `each` hears every line behind the
/// first, one keyword each, such as `SIZE 10240000`.
///
/// # Errors
///
/// As [`reply_with`].
pub async fn hello(
    wire: &mut Wire,
    verb: &str,
    name: &str,
    mut each: impl FnMut(&str) + Send,
) -> Result<Reply, ReplyError> {
    wire.say(format!("{verb} {name}\r\n")).await?;
    let mut first = true;
    reply_with(wire, |line| {
        if !std::mem::take(&mut first) {
            each(line);
        }
    })
    .await
}
