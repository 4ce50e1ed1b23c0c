//! What a node says of itself in the table: how far it has applied the changes, and what still runs.

use std::time::Duration;

use super::{Feed, POLL_TIMEOUT, in_time};
use crate::ownership::registry::Busy;
use crate::ownership::store::{Report, StoreError};

/// What each account in a report adds to the longest wait for a poll's statement: after a bulk flip there
/// are as many as there were sessions.
const REPORT_TIMEOUT_EACH: Duration = Duration::from_millis(1);
/// Longest wait for a report, however long it is.
const REPORT_TIMEOUT_MAX: Duration = Duration::from_secs(20);

impl Feed {
    /// Says in the table how far this node has applied the changes and what still runs against them.
    pub(super) async fn report(&mut self) -> Result<(), StoreError> {
        let mut busy = self.ownership.registry().busy();
        for b in &mut busy {
            // The end of a lease marks work without a change.
            b.epoch = b.epoch.min(self.cursor.epoch);
        }
        let state = (self.cursor.epoch, busy);
        if self.reported.as_ref() == Some(&state) {
            return Ok(());
        }
        let before = self.reported.take();
        let report = report_of(before.as_ref().map(|(_, busy)| &**busy), &state.1);
        let Some(grant) = &self.grant else { return Err(StoreError::LeaseLost) };
        let limit = report_timeout(&report);
        in_time(limit, self.store.report(&self.cursor, grant, &report)).await?;
        self.reported = Some(state);
        Ok(())
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
        return Report { afresh: true, changed: now.iter().collect(), drained: Vec::new() };
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
    }
}
