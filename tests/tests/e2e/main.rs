//! Everything together, on real servers: private Dovecots, Postfix, Postgres and SQLite, and the services
//! as processes of their own.

mod flip;

use tests::lab::ACCOUNTS;

const ANN: &str = ACCOUNTS[0];
const BOB: &str = ACCOUNTS[1];
