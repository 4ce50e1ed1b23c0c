//! An owner map that a test writes to, in the way the feed does: the map first, then the mark.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use shared::backend::Backend;
use shared::ownership::map::{AccountRow, AliasRow};
use shared::ownership::{Change, DomainRow, Epoch, FlippedAt, Ownership};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;

use crate::patience::{PATIENCE, until};

/// The domain of every account.
pub const DOMAIN: &str = "example.org";

/// The table of a node without a database.
#[derive(Debug)]
pub struct Rows {
    /// What the node looks up in.
    pub ownership: Arc<Ownership>,
    epoch: AtomicU64,
}

impl Rows {
    /// These backends, [`DOMAIN`] without a default owner, no accounts, and a lease that lasts.
    pub fn new(backends: impl IntoIterator<Item = Backend>) -> Self {
        let ownership = Ownership::new(backends.into_iter().collect());
        ownership.lease().grant(&ownership.lease().request(), Duration::from_hours(1));
        let rows = Self { ownership, epoch: AtomicU64::new(0) };
        rows.set_domain(None);
        rows
    }

    /// What one committed change does.
    pub fn change(&self, change: &Change) -> Epoch {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed) + 1;
        self.ownership.apply(&[(epoch, change.clone())]);
        epoch
    }

    /// Gives an account of [`DOMAIN`] to `owner`.
    pub fn set_owner(&self, local: &str, owner: &str) -> Epoch {
        self.set(local, AccountRow { owner: owner.into(), held: false, login: true, flipped: None })
    }

    /// Gives an account of [`DOMAIN`] to `owner`, as a flip did that is so long ago.
    pub fn flip(&self, local: &str, owner: &str, ago: Duration) -> Epoch {
        let flipped = SystemTime::now().duration_since(UNIX_EPOCH + ago).unwrap_or_default();
        let flipped = FlippedAt::of_seconds(flipped.as_secs().cast_signed());
        self.set(local, AccountRow { owner: owner.into(), held: false, login: true, flipped })
    }

    /// Holds an account that is owned by `owner`.
    pub fn hold(&self, local: &str, owner: &str) -> Epoch {
        self.set(local, AccountRow { owner: owner.into(), held: true, login: true, flipped: None })
    }

    /// Writes an account's row.
    pub fn set(&self, local: &str, row: AccountRow) -> Epoch {
        self.change(&Change::Account(format!("{local}@{DOMAIN}").into(), Some(row)))
    }

    /// Makes `name` another name of an account.
    pub fn set_alias(&self, name: &str, local: &str) -> Epoch {
        let row = AliasRow { account: format!("{local}@{DOMAIN}").into(), login: true };
        self.change(&Change::Alias(name.into(), Some(row)))
    }

    /// Sets where accounts without a row live.
    pub fn set_domain(&self, default_owner: Option<&str>) -> Epoch {
        let row = DomainRow {
            default_owner: default_owner.map(Box::from),
            subaddress_delimiter: "+".into(),
            ..DomainRow::default()
        };
        self.change(&Change::Domain(DOMAIN.into(), Some(row)))
    }

    /// Ends the lease as a node does that has not read the table for too long.
    pub fn end_lease(&self) {
        self.ownership.lease().end();
        self.ownership.registry().mark_all();
    }

    /// Waits until a change has been applied: nothing that depends on an older row is left.
    ///
    /// # Errors
    ///
    /// Something stays.
    pub async fn applied(&self) -> Result<()> {
        let registry = self.ownership.registry();
        let drained = async {
            loop {
                let drained = registry.drained();
                tokio::pin!(drained);
                if registry.busy().is_empty() {
                    return;
                }
                drained.await;
            }
        };
        timeout(PATIENCE, drained)
            .await
            .with_context(|| format!("not drained: {:?}", registry.busy()))
    }

    /// Waits until so many deliveries are registered.
    ///
    /// # Errors
    ///
    /// They never are.
    pub async fn until_deliveries(&self, count: usize) -> Result<()> {
        let registry = self.ownership.registry();
        until("deliveries", || (registry.counts().1 == count).then_some(())).await
    }

    /// Waits until a delivery is registered.
    ///
    /// # Errors
    ///
    /// None is.
    pub async fn delivering(&self) -> Result<()> {
        let registry = self.ownership.registry();
        until("a delivery", || (registry.counts().1 > 0).then_some(())).await
    }
}
