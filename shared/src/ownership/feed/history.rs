//! Lost history: the database is one that has not all changes this node has served by. A failover to a
//! standby that lagged behind, a restored backup, another database under the same name.
//!
//! Nothing new is served until the table was read afresh. What differs then is a change like any other.
//! A name, account or alias, that this node has served elsewhere by a change that is not there any more may
//! have mail there: nobody here can say who its owner is, so it is held until an operator does (OWN-16). So
//! is an account whose hold is lost: its mover believes that nobody serves it.

use super::{Feed, LOAD_TIMEOUT, WRITE_TIMEOUT, in_time};
use crate::ownership::store::{Dispute, Disputed, Snapshot, StoreError};

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
        let mut snapshot = in_time(LOAD_TIMEOUT, self.store.load()).await?;
        // Before the copy is replaced: it is the only one who remembers.
        self.dispute(&mut snapshot).await?;
        self.install(snapshot);
        Ok(())
    }

    async fn dispute(&self, snapshot: &mut Snapshot) -> Result<(), StoreError> {
        let map = self.ownership.map();
        let claims = map.claims(&mut snapshot.tables);
        let disputed = in_time(DISPUTE_TIMEOUT, self.store.dispute(&claims)).await?;
        disputed.iter().take(MAX_LINES).for_each(report);
        if !disputed.is_empty() {
            let held = disputed.iter().filter(|d| matches!(d.outcome, Disputed::Held)).count();
            let found = disputed.len();
            tracing::error!(
                found,
                held,
                "names were served, or held, by changes that are lost; the column accounts.disputed has them all"
            );
        }
        for domain in map.moved_domains(&snapshot.tables).iter().take(MAX_LINES) {
            tracing::error!(
                domain,
                "the default owner or the sub-address delimiter of this domain differs from the one this \
                 node has served by; names there without a row of their own cannot be held one by one: \
                 they go where the table says from now on"
            );
        }
        Ok(())
    }
}

/// Says which name was led where, and what is to be done about it.
fn report(dispute: &Dispute<'_>) {
    let Dispute { claim, change, outcome } = dispute;
    let (name, from) = (&*claim.name, &*claim.owner);
    let to = claim.now.as_deref().unwrap_or("nobody");
    let was = match (claim.held, &claim.alias_of) {
        (true, _) => "held".to_owned(),
        (false, Some(account)) => format!("an alias of {account}"),
        (false, None) => "served".to_owned(),
    };
    match outcome {
        Disputed::Held => tracing::error!(
            name,
            from,
            to,
            was,
            change,
            "the change by which this name was served there, or held, is lost, and the table leads it \
             elsewhere; it is held until an operator has looked at both mailboxes and says who owns it: \
             UPDATE accounts SET owner = '…', state = 'active' WHERE account = '{name}'"
        ),
        Disputed::Refused(why) => tracing::error!(
            name,
            from,
            to,
            was,
            change,
            why,
            "the change by which this name was served there, or held, is lost, and it cannot be held: from \
             now on it is served where the table says, and what has arrived at its owner of before stays \
             there until an operator moves it"
        ),
    }
}
