//! The gateway: delivers each recipient to the server that owns the account.
//!
//! [`session`] is the SMTP server as a pure state machine; [`serve`] drives it. A [`transaction`] looks up
//! whose each [`recipient`] is, asks that owner on the real transaction, keeps the message in a [`body`],
//! and has a [`delivery`] to every owner; [`outcome`] makes one reply of their verdicts. What is absent: a
//! 250 before the owners' own, a verdict that counts after the row it came by has changed, an owner that no
//! row named.

pub mod admin;
pub mod app;
pub mod body;
pub mod delivery;
pub mod mail_log;
pub mod outcome;
pub mod received;
pub mod recipient;
pub mod refusal;
pub mod serve;
pub mod session;
pub mod transaction;
