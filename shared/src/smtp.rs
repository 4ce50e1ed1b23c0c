//! SMTP and LMTP without sockets: paths, commands, replies, message data (RFC 5321, RFC 2033).
//!
//! What the server session and the delivery client have in common. Order of commands is the session's
//! business, what is done about them its driver's.

pub mod attributes;
pub mod command;
pub mod data;
pub mod dsn;
pub mod ehlo;
pub mod parameters;
pub mod path;
pub mod reply;
pub mod xclient;
pub mod xforward;
pub mod xtext;
