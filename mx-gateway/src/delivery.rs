//! Delivering to one owner: a connection (new or kept), the transaction on it, its verdicts.
//!
//! Straight functions, since here we lead. Which recipients go to which owner is the transaction's
//! business; what their verdicts mean for the client is [`crate::outcome`]'s.

mod connection;
mod pool;

pub use connection::{Connection, DeliveryError, Introduction};
pub use pool::Pool;
