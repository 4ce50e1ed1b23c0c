//! The gateway: delivers each recipient to the server that owns the account.
//!
//! [`session`] is the SMTP server as a pure state machine; [`serve`] drives it. A [`transaction`] looks up
//! whose each [`recipient`] is, asks that owner on the real transaction, keeps the message in a [`body`],
//! finds out about its sender ([`authentication`]), and has a [`delivery`] to every owner; [`outcome`] makes one
//! reply of their verdicts, some of which do not count for good in the [`grace`] after a flip, and a [`custody`]
//! sees to it. The [`spool`] keeps on disk what is ours for now, and the [`queue`] tries it again; a [`report`]
//! tells a sender what became of it; by its [`fingerprint`] a message is known that comes again because a reply
//! was lost. What is absent: a 250 before the
//! owners' own or a durable copy, a verdict that counts after the row it came by has changed, an owner that no
//! row named.

pub mod admin;
pub mod app;
pub mod authentication;
pub mod body;
pub mod custody;
pub mod delivery;
pub mod dnsbl;
pub mod edge;
pub mod fingerprint;
pub mod grace;
pub mod hop;
pub mod letter;
pub mod lookup;
pub mod mail_log;
pub mod outcome;
pub mod queue;
pub mod received;
pub mod recipient;
pub mod refusal;
pub mod report;
pub mod serve;
pub mod session;
pub mod spool;
pub mod transaction;
mod welcome;
