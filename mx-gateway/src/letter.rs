//! A whole message with what was said of it: what is sent to each owner.

use shared::smtp::command::Mail;

use crate::body::Message;
use crate::delivery::Introduction;

/// A message that was received to its end.
#[derive(Debug)]
pub struct Letter {
    /// Our name for it: in its Received field, in the log, and in the spool.
    pub id: Box<str>,
    /// What MAIL said.
    pub mail: Mail,
    /// Who brought it.
    pub introduction: Introduction,
    /// Header fields of ours that stand before the message.
    pub header: String,
    /// The message as it was received.
    pub message: Message,
}
