//! Private servers, clients and dialogues for the end-to-end tests, the tour and the benchmarks.
//!
//! Everything listens on loopback, keeps its state in a short directory of its own under `/tmp` and ends
//! with the process that started it, however that ends.

pub mod browser;
pub mod chat;
pub mod children;
pub mod conversation;
pub mod curl;
pub mod cyrus;
pub mod dns_zone;
pub mod dovecot;
pub mod fuzzed;
pub mod gateway_node;
pub mod imap;
pub mod kept;
pub mod lab;
pub mod link;
pub mod login_backend;
pub mod login_node;
pub mod nginx;
pub mod node;
pub mod patience;
pub mod place;
pub mod pooler;
pub mod ports;
pub mod postfix;
pub mod postgres;
pub mod program;
pub mod radicale;
pub mod recipe;
pub mod rows;
pub mod session;
pub mod signer;
pub mod sink;
pub mod smtp;
pub mod table;
pub mod test_ca;
pub mod user;
pub mod web_backend;
pub mod web_node;
pub mod web_server;
pub mod xandikos;
