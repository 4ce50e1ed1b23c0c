//! Measurements for the table in the README: `make bench`, release build; `bench NAME...` for some of them.
//!
//! Each part prints medians of several runs and what it ran beside. Nothing here asserts: a number is for
//! reading. The machine is named in the output, since a number without its machine says nothing.

mod added;
mod backend;
mod client;
mod crowd;
mod flip;
mod gateway;
mod idle;
mod large;
mod login;
mod mail;
mod map;
mod measure;
mod peers;
mod proxy;
mod relay;
mod restart;
mod sessions;
mod smtp;
mod spool;
mod stage;
mod table;
mod tls;
mod trip;
mod web;

use std::time::Instant;

use clap::{Parser, ValueEnum};

/// Measures Mailshift.
#[derive(Parser)]
struct Arguments {
    /// What to measure; nothing: everything.
    parts: Vec<Part>,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Part {
    /// Owner map: load and look-up with 1,000,000 accounts.
    Map,
    /// From the commit of a flip to its effect on three nodes.
    Flip,
    /// From a hold to its fence on three nodes.
    Hold,
    /// Memory of idle joined sessions.
    Idle,
    /// Logins: CPU and rate.
    Login,
    /// CPU per GiB through joined sessions.
    Relay,
    /// What a joined session adds to a round trip.
    Trip,
    /// How long a login takes among thousands of sessions and attackers.
    Crowd,
    /// Logins while the process is replaced.
    Restart,
    /// Cut-through messages: CPU and rate.
    Mail,
    /// What the gateway adds to an owner's reply at the end of a message, authentication included.
    Added,
    /// Mail for owners that are away: taken into the queue, and out of it.
    Spool,
    /// Memory of open SMTP sessions.
    Sessions,
    /// HTTP: requests, what is added to them, connections, streams.
    Web,
    /// Memory while large messages pass.
    Large,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("{}", measure::machine());
    measure::raise_descriptor_limit();
    let parts = match arguments.parts.as_slice() {
        [] => Part::value_variants(),
        some => some,
    };
    for part in parts {
        let began = Instant::now();
        match part {
            Part::Map => map::run().await?,
            Part::Flip => flip::run().await?,
            Part::Hold => flip::hold().await?,
            Part::Idle => idle::run().await?,
            Part::Login => login::run().await?,
            Part::Relay => relay::run().await?,
            Part::Trip => trip::run().await?,
            Part::Crowd => crowd::run().await?,
            Part::Restart => restart::run().await?,
            Part::Mail => mail::run().await?,
            Part::Added => added::run().await?,
            Part::Spool => spool::run().await?,
            Part::Web => web::run().await?,
            Part::Sessions => sessions::run().await?,
            Part::Large => large::run().await?,
        }
        println!("({part:?}: {:.0} s)", began.elapsed().as_secs_f64());
    }
    Ok(())
}
