//! What an operator's command asks a running process: a Unix socket in the process's state directory.
//!
//! ```text
//! command: {"by":"ann","why":"…","request":{"list":{…}}}      one line, one request a connection
//! process: {"entry":{…}}                                      as many lines as there are answers
//!          {"done":1}   or   {"refused":{…}}                  the last line, or it was cut short
//! ```
//!
//! Answers are lines, so that neither a long list nor a large message is ever in memory as a whole. Only root
//! and the process's own user may ask; every request that changes something is logged with its caller. What
//! can be asked of the gateway's queue is in [`queue`].

mod client;
pub mod queue;
mod server;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

pub use client::{AskError, ask};
pub use server::{Answers, Handler, serve};

use self::queue::{Adopted, Entry, Request, Summary};

/// The socket's name in the state directory.
pub const SOCKET: &str = "admin.sock";
/// Commands that may be answered at once.
pub const MAX_COMMANDS: usize = 16;
/// Longest request, in octets.
const MAX_REQUEST: u64 = 64 * 1024;
/// Longest line of an answer, in octets: a message with thousands of recipients is one.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;
/// Most octets of a message in one line of an answer.
pub const MAX_PIECE: usize = 48 * 1024;
/// Longest wait for the request.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait until a command takes the next line: somebody may be reading it in a pager.
const TAKEN_WITHIN: Duration = Duration::from_mins(5);
/// Longest wait for the next line of an answer, and for the whole of one.
const ANSWERED_WITHIN: Duration = Duration::from_mins(10);

/// One request, and who makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The operator, as the command knows them: a word for the log. The kernel says which user it is.
    pub by: String,
    /// Why something is changed; empty: not said.
    #[serde(default)]
    pub why: String,
    /// What is asked.
    pub request: Request,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// A message.
    Entry(Box<Entry>),
    /// The next octets of a message, at most [`MAX_PIECE`].
    Octets(#[serde(with = "base64_text")] Vec<u8>),
    /// What there is in all.
    Summary(Box<Summary>),
    /// What was adopted.
    Adopted(Adopted),
    /// All is said: so many messages were changed, or shown.
    Done(u64),
    /// No, and nothing follows.
    Refused(Refusal),
}

/// Why a request is not carried out, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Another user.
    #[error("uid {uid} may not ask: only root and the service's own user may")]
    Denied {
        /// Who.
        uid: u32,
    },
    /// Another version's request, or none at all.
    #[error(
        "the service does not understand this request ({why}); is it of the same version as mailshift?"
    )]
    NotUnderstood {
        /// The place.
        why: String,
    },
    /// All places are taken.
    #[error("{MAX_COMMANDS} commands are being answered already; try again")]
    TooMany,
    /// It is not there (any more).
    #[error("there is no message {id}")]
    NoSuchMessage {
        /// The name that was asked for.
        id: String,
    },
    /// A spool that cannot be adopted.
    #[error("{directory} is not adopted: {why}")]
    NotAdopted {
        /// The directory.
        directory: String,
        /// Why.
        why: String,
    },
    /// Something failed while it was carried out, such as the disk.
    #[error("{why}")]
    Failed {
        /// What.
        why: String,
    },
    /// The command that asked is not there any more, or does not read.
    #[error("the command is gone")]
    Gone,
}

/// Reads a line without its end. `None` where it does not end within `limit` octets, or at all.
async fn line(
    reader: &mut (impl AsyncBufRead + Unpin),
    limit: u64,
) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(limit).read_until(b'\n', &mut line).await?;
    Ok((line.pop() == Some(b'\n')).then_some(line))
}

/// Octets as text in JSON.
mod base64_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(octets: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(octets))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}
