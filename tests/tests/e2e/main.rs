//! Everything together, on real servers: private Dovecots, Postfix, Postgres and SQLite, and the services
//! as processes of their own.

mod clients;
mod flip;
mod history;
mod holds;
mod identity;
mod names;
mod outage;
mod queue;
mod refusal;
mod sqlite;
mod starting;
mod trap;
mod web;

use tests::lab::ACCOUNTS;

const ANN: &str = ACCOUNTS[0];
const BOB: &str = ACCOUNTS[1];
const CAT: &str = ACCOUNTS[2];
