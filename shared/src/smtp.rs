//! SMTP's parts (RFC 5321), pure: paths, commands, replies, EHLO keywords, message data.
//!
//! No socket, no clock, no state of a session: that is the gateway's `session` (server) and `delivery`
//! (client). LMTP (RFC 2033) shares all of it but LHLO.

pub mod command;
pub mod data;
pub mod ehlo;
pub mod path;
pub mod reply;

pub use command::{Body, Command, CommandError, Mail};
pub use ehlo::Extensions;
pub use path::{ForwardPath, PathError, ReversePath};
pub use reply::{Class, Enhanced, Reply, ReplyError, ReplyParser};
