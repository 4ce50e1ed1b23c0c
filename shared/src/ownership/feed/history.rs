//! Lost history: the database is one that has not all changes this node has served by. A failover to a
//! standby that lagged behind, a restored backup, another database under the same name.
//!
//! Nothing new is served until the table was read afresh. What differs then is a change like any other.
//! An account that this node has served elsewhere, by a change that is not there any more, may have mail
//! there: nobody here can say who its owner is, so it is held until an operator does (OWN-16).

use super::{Feed, LOAD_TIMEOUT, WRITE_TIMEOUT, in_time};
use crate::ownership::store::{Disputed, Snapshot, StoreError};

/// Longest wait for all disputes.
const DISPUTE_TIMEOUT: std::time::Duration = std::time::Duration::from_mins(10);
/// Most lines about single names in the log.
const MAX_LINES: usize = 100;

impl Feed {
    /// Reads the table afresh and disputes what was lost. After an error everything is as before, and the
    /// next poll finds the loss again.
    pub(super) async fn recover_history(&mut self) -> Result<(), StoreError> {
        let epoch = self.cursor.epoch;
        if self.ownership.lease().suspend() {
            tracing::error!(
                epoch,
                "the ownership table lost changes that this node has served by (failover or restore); \
                 refusing everything temporarily until it is read afresh"
            );
        }
        in_time(WRITE_TIMEOUT, self.store.raise_clock(epoch)).await?;
        let snapshot = in_time(LOAD_TIMEOUT, self.store.load()).await?;
        // Before the copy is replaced: it is the only one who remembers.
        self.dispute(&snapshot).await?;
        self.install(snapshot);
        Ok(())
    }

    async fn dispute(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let claims = self.ownership.map().claims(&snapshot.tables);
        let disputed = in_time(DISPUTE_TIMEOUT, self.store.dispute(&claims)).await?;
        let mut held = 0_usize;
        let mut lines = MAX_LINES;
        for (claim, outcome) in &disputed {
            held = held.saturating_add(usize::from(matches!(outcome, Disputed::Held)));
            lines = lines.saturating_sub(1);
            if lines == 0 {
                continue;
            }
            let (account, owner, change) = (&claim.account, &claim.owner, claim.epoch);
            match outcome {
                Disputed::Held => tracing::error!(
                    account,
                    owner,
                    change,
                    "the change that gave this account to its owner is lost; it is held until an operator decides"
                ),
                Disputed::Refused(why) => tracing::error!(
                    account,
                    owner,
                    change,
                    why,
                    "the change that gave this account to its owner is lost, and it cannot be held"
                ),
            }
        }
        if !disputed.is_empty() {
            let found = disputed.len();
            tracing::error!(found, held, "accounts were moved by changes that are lost");
        }
        for domain in self.ownership.map().moved_domains(&snapshot.tables).iter().take(MAX_LINES) {
            tracing::error!(
                domain,
                "the default owner of this domain differs from the one this node has served by; accounts \
                 without a row cannot be held"
            );
        }
        Ok(())
    }
}
