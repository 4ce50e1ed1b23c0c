//! The owner map with 1,000,000 accounts: memory, load from SQLite and Postgres, look-up.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Context;
use shared::backend::Backends;
use shared::ownership::feed::Feed;
use shared::ownership::map::{AccountRow, AliasRow, Change, DomainRow, Tables};
use shared::ownership::store::Store;
use shared::ownership::{Name, Ownership};
use tokio_util::sync::CancellationToken;

use crate::{measure, table};

const ACCOUNTS: usize = 1_000_000;
const LOOK_UPS: usize = 2_000_000;
const RUNS: usize = 5;

pub async fn run() -> anyhow::Result<()> {
    println!("\n# owner map, {ACCOUNTS} accounts, {} aliases", ACCOUNTS / 10);
    let own = std::process::id();
    let before = measure::resident(own)?;
    let ownership = Ownership::new(Backends::default());
    ownership.map().replace(tables());
    let after = measure::resident(own)?;
    println!("memory: {:.0} MB", (after - before) as f64 / 1e6);
    let lease = ownership.lease();
    lease.grant(&lease.request(), Duration::from_secs(3600));
    let names: Vec<Name> = (0..4096)
        .map(|_| Name::of_login(account(fastrand::usize(..ACCOUNTS)).as_bytes()))
        .collect::<Result<_, _>>()?;
    let mut nanos = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        for index in 0..LOOK_UPS {
            let _ = black_box(ownership.look_up(&names[index % names.len()]));
        }
        nanos.push(began.elapsed().as_nanos() as f64 / LOOK_UPS as f64);
    }
    println!("look-up: {:.0} ns (median of {RUNS} runs of {LOOK_UPS})", measure::median(nanos));
    drop(ownership);
    load().await
}

/// From an empty node to one that serves, on a table of that size in Postgres.
async fn load() -> anyhow::Result<()> {
    let database = tests::postgres::Server::shared().create_database()?;
    table::fill(&database.url, ACCOUNTS).await?;
    let config = table::config(&database.url);
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let ownership = Ownership::new(Backends::default());
        let store = Store::open(&config, table::node("bench")).await?;
        let began = Instant::now();
        let never = CancellationToken::new();
        let (staleness, interval) = (config.max_staleness, config.poll_interval);
        let feed = Feed::start(store, ownership, staleness, interval, &never).await;
        seconds.push(began.elapsed().as_secs_f64());
        feed.context("nobody stops it")?.leave().await;
    }
    println!("load from Postgres: {:.1} s (median of {RUNS})", measure::median(seconds));
    Ok(())
}

fn account(number: usize) -> String {
    format!("user{number:07}@example.org")
}

fn tables() -> Tables {
    let mut tables = Tables::with_capacity(ACCOUNTS, ACCOUNTS / 10);
    tables.set(1, Change::Domain("example.org".into(), Some(DomainRow::default())));
    for number in 0..ACCOUNTS {
        let owner = if number % 3 == 0 { "new" } else { "old" }.into();
        let row = AccountRow { owner, held: false, login: true, flipped: None };
        tables.set(number as u64 + 2, Change::Account(account(number).into(), Some(row)));
    }
    for number in 0..ACCOUNTS / 10 {
        let row = AliasRow { account: account(number * 10).into(), login: true };
        tables.set(1, Change::Alias(format!("alias{number}@example.org").into(), Some(row)));
    }
    tables
}
