//! A mover's commands.

use std::io::Write;
use std::time::{Duration, Instant};

use shared::backend::BackendName;
use shared::ownership::table::{NodeStatus, Table};

use crate::arguments::{Held, Lease, Mover, Token};
use crate::{actor, backend, print};

/// How often a fence is asked: the account is held meanwhile, so its user waits.
const FENCE_EVERY: Duration = Duration::from_millis(20);

/// A fence for which some node still makes everybody wait.
#[derive(Debug, thiserror::Error)]
#[error("not fenced: a node is waiting or busy")]
pub(crate) struct NotFenced;

impl NotFenced {
    /// EX_TEMPFAIL of sysexits.h.
    pub(crate) const STATUS: u8 = 75;
}

pub(crate) async fn run(
    table: &Table,
    command: Mover,
    backends: Option<&[BackendName]>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match command {
        Mover::Hold { account, lease: Lease { lease } } => {
            let hold = table.hold(&account, lease, &actor()).await?;
            // Standard output is the token's alone.
            print::made(&mut std::io::stderr(), hold.made.as_slice())?;
            writeln!(out, "{}", hold.token)?;
        }
        Mover::Renew { held: Held { account, token: Token { token } }, lease: Lease { lease } } => {
            let until = table.renew(&account, &token, lease, &actor()).await?;
            writeln!(out, "held until {}", print::seconds(&until))?;
        }
        Mover::Release { held: Held { account, token: Token { token } } } => {
            table.release(&account, &token, &actor()).await?;
            writeln!(out, "{account} is served again")?;
        }
        Mover::Fence { held: Held { account, token: Token { token } }, wait } => {
            let nodes = fence(table, &account, &token, wait).await?;
            print::nodes(out, &nodes)?;
            if nodes.iter().any(NodeStatus::blocks) {
                out.flush()?;
                return Err(NotFenced.into());
            }
            writeln!(out, "fenced: every live node has applied the hold")?;
        }
        Mover::Flip { account, owner, token: Token { token } } => {
            let owner = backend(&owner, backends)?;
            table.flip_held(&account, &owner, &token, &actor()).await?;
            writeln!(out, "{account} is at {owner} now")?;
        }
        Mover::Expire => {
            writeln!(out, "ended {} holds", table.expire_holds(&actor()).await?)?;
        }
    }
    Ok(())
}

/// Asks until no node blocks, or the time is over.
async fn fence(
    table: &Table,
    account: &str,
    token: &str,
    wait: Duration,
) -> anyhow::Result<Vec<NodeStatus>> {
    let began = Instant::now();
    loop {
        let nodes = table.fence(account, token, &actor()).await?;
        if began.elapsed() >= wait || !nodes.iter().any(NodeStatus::blocks) {
            return Ok(nodes);
        }
        tokio::time::sleep(FENCE_EVERY).await;
    }
}
