//! `accounts flip`: the flip without a hold, at once or in waves (KIK-4).
//!
//! Whoever is flipped is sent away at once, on every node, and comes again at the new server. So how many
//! come there in a second is decided here, by how many are flipped; nothing else holds anybody back.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use shared::backend::BackendName;
use shared::ownership::table::Table;

use crate::arguments::Flip;
use crate::{actor, backend, open, print};

/// How often a flip is asked whether it has settled.
const SETTLE_EVERY: Duration = Duration::from_millis(100);
/// Between two waves.
const WAVE: Duration = Duration::from_secs(1);

/// Flips, and waits until every node has applied it.
pub(crate) async fn run(
    table: &Table,
    flip: Flip,
    backends: Option<&[BackendName]>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let owner = backend(&flip.to, backends)?;
    let accounts = match &flip.file {
        Some(file) => listed(open(file)?).with_context(|| file.display().to_string())?,
        None => flip.accounts,
    };
    let changed = match flip.per_second {
        None => at_once(table, &accounts, &owner, out).await?,
        Some(rate) => in_waves(table, &accounts, &owner, rate, out).await?,
    };
    settle(table, &changed, flip.wait, out).await
}

/// One account a line; empty lines and what is behind a `#` do not count.
fn listed(mut file: impl Read) -> anyhow::Result<Vec<String>> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let names = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let accounts: Vec<String> = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    ensure!(!accounts.is_empty(), "no account is in it");
    Ok(accounts)
}

async fn at_once(
    table: &Table,
    accounts: &[String],
    owner: &BackendName,
    out: &mut impl Write,
) -> anyhow::Result<Vec<String>> {
    let flipped = table.flip(accounts, owner, &actor()).await?;
    print::flipped(out, &flipped, owner)?;
    out.flush()?;
    Ok(flipped.changed)
}

/// What was flipped stays so, whatever becomes of the next wave.
async fn in_waves(
    table: &Table,
    accounts: &[String],
    owner: &BackendName,
    rate: u32,
    out: &mut impl Write,
) -> anyhow::Result<Vec<String>> {
    let (all, size) = (accounts.len(), usize::try_from(rate).unwrap_or(usize::MAX));
    let (mut done, mut changed) = (0, Vec::new());
    for wave in accounts.chunks(size) {
        if done > 0 {
            tokio::time::sleep(WAVE).await;
        }
        let flipped = table.flip(wave, owner, &actor()).await.with_context(|| {
            format!("stopped after {done} of {all}; those stay flipped, the others where they were")
        })?;
        print::made(out, &flipped.made)?;
        changed.extend(flipped.changed);
        done += wave.len();
        writeln!(out, "{done} of {all} are at {owner}")?;
        out.flush()?;
    }
    Ok(changed)
}

/// Waits until every live node has applied the changes, or tells which have not.
async fn settle(
    table: &Table,
    accounts: &[String],
    wait: Duration,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + wait;
    for account in accounts {
        loop {
            let Some(settling) = table.settling(account).await? else { break };
            if settling.settled {
                break;
            }
            if Instant::now() >= deadline {
                print::settling(out, &settling)?;
                bail!("not settled within {} s; the flip stands", wait.as_secs());
            }
            tokio::time::sleep(SETTLE_EVERY).await;
        }
    }
    if !accounts.is_empty() {
        writeln!(out, "settled on every live node")?;
    }
    Ok(())
}
