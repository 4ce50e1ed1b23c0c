//! Measurements for the table in the README: `make bench`, release build.
//!
//! Each part prints medians of several runs and what it ran beside. Nothing here asserts: a number is for
//! reading. The machine is named in the output, since a number without its machine says nothing.

mod flip;
mod imap;
mod login;
mod mail;
mod map;
mod measure;
mod peers;
mod proxy;
mod smtp;
mod table;
mod tls;

use clap::{Parser, Subcommand};

/// Measures Mailshift.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand, Clone, Copy)]
enum Part {
    /// Owner map: load and look-up with 1,000,000 accounts.
    Map,
    /// From the commit of a flip to its effect on three nodes.
    Flip,
    /// Logins: CPU, rate, memory of idle sessions, added round trip.
    Login,
    /// Cut-through messages: CPU and rate.
    Mail,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("{}", measure::machine());
    let parts = match arguments.part {
        Some(part) => vec![part],
        None => vec![Part::Map, Part::Flip, Part::Login, Part::Mail],
    };
    for part in parts {
        match part {
            Part::Map => map::run().await?,
            Part::Flip => flip::run().await?,
            Part::Login => login::run().await?,
            Part::Mail => mail::run().await?,
        }
    }
    Ok(())
}
