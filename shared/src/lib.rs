//! What both services of Mailshift stand on.
//!
//! Pure (no socket, clock, `await`, TLS or SQL): [`address`], [`dialogue`], `smtp`, `credentials`,
//! `sasl`, [`health`], [`counts`]. Beyond that: [`wire`] and `tls` hold all sockets' octets, [`resolver`] and
//! [`reach`] know where a backend is and whether it is up, [`probe`] asks it, [`smtp_client`] hears servers,
//! [`ownership`] knows who owns an account, [`admin`] takes an operator's requests at a [`door`],
//! [`config`] reads the one configuration file, [`lifecycle`]
//! starts and ends tasks.
//!
//! What is absent: a default backend; a global; a look-up that awaits; SQL outside
//! `ownership::store`.

pub mod address;
pub mod admin;
pub mod backend;
pub mod config;
pub mod counts;
pub mod credentials;
pub mod dialogue;
pub mod door;
pub mod health;
pub mod lifecycle;
pub mod listener;
pub mod mta_sts;
pub mod ownership;
pub mod probe;
pub mod proxy_protocol;
pub mod reach;
pub mod resolver;
pub mod sasl;
pub mod seats;
pub mod service;
pub mod smtp;
pub mod smtp_client;
pub mod state_dir;
pub mod telemetry;
pub mod tls;
pub mod web;
pub mod wire;
