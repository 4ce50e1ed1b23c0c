//! Why the spool did not do what it was asked.

use std::io;
use std::path::PathBuf;

use super::format::FormatError;
use super::health::{Fault, Trouble};

/// Why the spool did not do what it was asked, by cause.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process uses the directory.
    #[error("the spool {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// There is no spool in the directory.
    #[error(
        "{} is no spool: name a state directory (spool/ is in it), or a spool (messages/ is in it)",
        .0.display()
    )]
    NoSpool(PathBuf),
    /// It is the one into which it would be taken.
    #[error("{} is the spool of this process itself", .0.display())]
    Ours(PathBuf),
    /// The disk failed. What was to be kept is not.
    #[error("cannot {doing} {}: {source}", path.display())]
    Disk {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The disk has failed a moment ago, and is not tried for every message.
    #[error("the spool is unhealthy: {0}")]
    Unhealthy(Trouble),
    /// No message has that id, or it has no more.
    #[error("no message {0} in the spool")]
    Unknown(Box<str>),
    /// A message has that id already, or no file can.
    #[error("no new message can be {0}")]
    Id(Box<str>),
    /// What is to be written could not be read again.
    #[error("cannot be kept: {0}")]
    Value(FormatError),
    /// The message's file is damaged. It was set aside, and is no longer in the spool.
    #[error("message {id} is damaged and was set aside: {why}")]
    Damaged {
        /// Its id.
        id: Box<str>,
        /// What is wrong with it.
        why: FormatError,
    },
    /// The message to be kept could not be read where it was received.
    #[error("cannot read the message back: {0}")]
    Body(io::Error),
    /// The runtime ended under it.
    #[error("the service ends")]
    Ended,
}

impl SpoolError {
    /// Why the disk failed, if that is why.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Disk { source, .. } => Some(Fault::of(source)),
            Self::Unhealthy(trouble) => Some(trouble.fault),
            Self::InUse(_)
            | Self::NoSpool(_)
            | Self::Ours(_)
            | Self::Unknown(_)
            | Self::Id(_)
            | Self::Value(_)
            | Self::Damaged { .. }
            | Self::Body(_)
            | Self::Ended => None,
        }
    }
}
