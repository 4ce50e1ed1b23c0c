//! Who is told of a failure (RFC 3461 §5.2.8, RFC 5321 §6.1).

use shared::smtp::path::ReversePath;

/// Who is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// The sender.
    Report,
    /// The operator, by a dead letter; why not the sender.
    DeadLetter(&'static str),
    /// Nobody: the sender asked for that.
    Nothing,
}

/// Who is told that a recipient with this NOTIFY failed.
pub fn is_due(_notify: Option<&str>, _from: &ReversePath, _may_report: bool) -> Due {
    Due::DeadLetter("reports are not written yet")
}
