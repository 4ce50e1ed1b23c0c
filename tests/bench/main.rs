//! Measurements for the table in the README: `make bench`, release build; `bench NAME...` for some of them.
//!
//! Each part prints medians of several runs and what it ran beside. Nothing here asserts: a number is for
//! reading. The machine is named in the output, since a number without its machine says nothing.

mod backend;
mod client;
mod crowd;
mod flip;
mod idle;
mod login;
mod mail;
mod map;
mod measure;
mod peers;
mod proxy;
mod relay;
mod restart;
mod smtp;
mod stage;
mod table;
mod tls;
mod trip;

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
        }
        println!("({part:?}: {:.0} s)", began.elapsed().as_secs_f64());
    }
    Ok(())
}
