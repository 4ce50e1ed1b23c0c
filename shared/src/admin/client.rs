//! The command's side.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{ANSWERED_WITHIN, ASKED_WITHIN, Answer, Call, MAX_ANSWER, Refusal, SOCKET, line};

/// Why there is no answer, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No process has this directory now.
    #[error("no process of the service runs with {}", directory.display())]
    NotRunning {
        /// The state directory.
        directory: PathBuf,
    },
    /// Not this user's.
    #[error("{}: permission denied", directory.display())]
    Permission {
        /// The state directory.
        directory: PathBuf,
    },
    /// The process says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What was said until then is not all.
    #[error("the service broke off in the middle of its answer; its log says why")]
    CutShort,
    /// Not a line for minutes.
    #[error("the service does not answer in time")]
    TooSlow,
    /// The process says something else.
    #[error(
        "the service answers in words that this program does not know: are they of one version?"
    )]
    NotUnderstood,
    /// The connection fails, or what takes the answer.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Asks the process that has this state directory; `each` is told of every line but the last. Returns what
/// that says: how many messages were shown or changed.
///
/// # Errors
///
/// An [`AskError`].
pub async fn ask(
    directory: &Path,
    call: &Call,
    mut each: impl FnMut(Answer) -> io::Result<()>,
) -> Result<u64, AskError> {
    let connected = timeout(ASKED_WITHIN, UnixStream::connect(directory.join(SOCKET))).await;
    let stream = connected.map_err(|_| AskError::TooSlow)?.map_err(|error| {
        let directory = directory.to_owned();
        match error.kind() {
            // None, or one that a crashed process has left.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                AskError::NotRunning { directory }
            }
            io::ErrorKind::PermissionDenied => AskError::Permission { directory },
            _ => AskError::Io(error),
        }
    })?;
    let (reader, mut writer) = stream.into_split();
    let mut asked = serde_json::to_vec(call).map_err(io::Error::from)?;
    asked.push(b'\n');
    // One that has answered already, with a no, does not read.
    let _ = timeout(ASKED_WITHIN, writer.write_all(&asked)).await;
    let mut reader = BufReader::new(reader);
    loop {
        let heard = timeout(ANSWERED_WITHIN, line(&mut reader, MAX_ANSWER)).await;
        let heard = heard.map_err(|_| AskError::TooSlow)??.ok_or(AskError::CutShort)?;
        match serde_json::from_slice(&heard).map_err(|_| AskError::NotUnderstood)? {
            Answer::Done(messages) => return Ok(messages),
            Answer::Refused(refusal) => return Err(refusal.into()),
            answer @ (Answer::Entry(_)
            | Answer::Octets(_)
            | Answer::Summary(_)
            | Answer::Adopted(_)) => each(answer)?,
        }
    }
}
