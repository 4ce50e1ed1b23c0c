//! The login proxy: learns the account from the login and joins the session to the server that owns it.
//!
//! [`front`] speaks each protocol with a client before login, as pure state machines; [`login`] is the
//! one driver they share; [`guesses`] are counted; [`backend`] logs in to the owner; [`offer`] knows what all owners can. What
//! each protocol is made of stands in [`protocol`]. The join of the two connections is
//! `shared::wire::join`'s. What is absent: a join without a backend's yes, a session that was not
//! registered before its owner was read, a "wrong password" for a fault of ours.

pub mod app;
pub mod backend;
pub mod front;
mod guess_line;
pub mod guesses;
pub mod login;
pub mod managesieve;
pub mod offer;
pub mod protocol;
pub mod refusal;
pub mod web;
