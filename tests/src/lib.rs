//! Private servers, clients and dialogues for the end-to-end tests.

pub mod chat;
pub mod postgres;
