//! What a node says of itself in the table: how far it has applied the changes, and what still runs.

use std::time::Duration;

use tokio::time::Instant;

use super::{Feed, POLL_TIMEOUT, in_time};
use crate::ownership::Epoch;
use crate::ownership::registry::Busy;
use crate::ownership::spool::Spooled;
use crate::ownership::store::{Report, StoreError};

/// What each account in a report adds to the longest wait for a poll's statement: after a bulk flip there
/// are as many as there were sessions.
const REPORT_TIMEOUT_EACH: Duration = Duration::from_millis(1);
/// Longest wait for a report, however long it is.
const REPORT_TIMEOUT_MAX: Duration = Duration::from_secs(20);

/// How much mail is on the node's disk changes with every message, and is not said more often than this.
const SPOOL_EVERY: Duration = Duration::from_secs(1);

/// What a node has said of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    epoch: Epoch,
    busy: Vec<Busy>,
    spooled: Spooled,
}

impl Feed {
    /// Says in the table how far this node has applied the changes and what still runs against them.
    pub(super) async fn report(&mut self) -> Result<(), StoreError> {
        let mut busy = self.ownership.registry().busy();
        for b in &mut busy {
            // The end of a lease marks work without a change.
            b.epoch = b.epoch.min(self.cursor.epoch);
        }
        let said = Said { epoch: self.cursor.epoch, busy, spooled: self.spooled() };
        if self.reported.as_ref() == Some(&said) {
            return Ok(());
        }
        let before = self.reported.take();
        let of_spool = before.as_ref().is_none_or(|before| before.spooled != said.spooled);
        let report = Report {
            spooled: said.spooled,
            ..report_of(before.as_ref().map(|before| &*before.busy), &said.busy)
        };
        let Some(grant) = &self.grant else { return Err(StoreError::LeaseLost) };
        let limit = report_timeout(&report);
        in_time(limit, self.store.report(&self.cursor, grant, &report)).await?;
        self.reported = Some(said);
        if of_spool {
            self.spool_said = Some(Instant::now());
        }
        Ok(())
    }

    /// Says whose spools this node has adopted.
    pub(super) async fn report_adopted(&self) -> Result<(), StoreError> {
        let spool = self.ownership.spool();
        let adopted = spool.take_adopted();
        if adopted.is_empty() {
            return Ok(());
        }
        let reported = in_time(POLL_TIMEOUT, self.store.report_adopted(&adopted)).await;
        if reported.is_err() {
            for state_dir in &adopted {
                spool.adopted(state_dir);
            }
        }
        reported
    }

    /// How much mail there is on this node's disk; what was said before, if that was just now.
    fn spooled(&self) -> Spooled {
        match (&self.reported, self.spool_said) {
            (Some(said), Some(at)) if at.elapsed() < SPOOL_EVERY => said.spooled,
            (Some(_) | None, _) => self.ownership.spool().now(),
        }
    }
}

fn report_timeout(report: &Report<'_>) -> Duration {
    let accounts = report.changed.len().saturating_add(report.drained.len());
    let each = REPORT_TIMEOUT_EACH.saturating_mul(u32::try_from(accounts).unwrap_or(u32::MAX));
    POLL_TIMEOUT.saturating_add(each).min(REPORT_TIMEOUT_MAX)
}

/// What has changed between two reports; both are in the order of their accounts.
fn report_of<'a>(before: Option<&'a [Busy]>, now: &'a [Busy]) -> Report<'a> {
    let Some(before) = before else {
        let changed = now.iter().collect();
        return Report { afresh: true, changed, ..Report::default() };
    };
    let find = |list: &'a [Busy], account: &str| {
        let found = list.binary_search_by(|b| (*b.account).cmp(account)).ok()?;
        list.get(found)
    };
    Report {
        afresh: false,
        changed: now.iter().filter(|b| find(before, &b.account) != Some(b)).collect(),
        drained: before
            .iter()
            .map(|b| &*b.account)
            .filter(|account| find(now, account).is_none())
            .collect(),
        ..Report::default()
    }
}
