//! The ownership table as a service opens it: waited for as long as it is away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Service, ServiceError};
use crate::backend::Backends;
use crate::ownership::feed::Feed;
use crate::ownership::schema::SchemaError;
use crate::ownership::store::{Known, Node, Store, StoreError};

/// Waits between attempts to open a database that is away.
const REOPEN: Duration = Duration::from_secs(1);
/// That it is away is said this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Opens and loads the table. Nothing when `stop` was cancelled before that was done; then the node's row
/// is not in it.
pub(super) async fn start_feed(
    name: &'static str,
    service: &Service,
    known: Known,
    stop: &CancellationToken,
) -> Result<Option<Feed>, ServiceError> {
    let config = service.config();
    let ownership = &config.ownership;
    let node = Node {
        name: service.state.node_name(&config.node.name),
        service: name,
        incarnation: format!("{}/{}", service.state.id(), uuid::Uuid::new_v4()).into(),
        backends: known,
    };
    let mut complained = None;
    let store = loop {
        let Some(opened) = stop.run_until_cancelled(Store::open(ownership, node.clone())).await
        else {
            return Ok(None);
        };
        match opened {
            Ok(store) => break store,
            // Not there yet, or not mounted yet: that may change.
            Err(
                error @ StoreError::Schema(
                    SchemaError::Newer { .. }
                    | SchemaError::Older { .. }
                    | SchemaError::Migration(_),
                ),
            ) => return Err(error.into()),
            Err(error) => {
                if complained.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN_EVERY) {
                    complained = Some(Instant::now());
                    let table = ownership.shown();
                    tracing::error!(%error, table, "cannot open the ownership table; trying again, and refusing everything for now");
                }
                stop.run_until_cancelled(sleep(REOPEN)).await;
            }
        }
    };
    Ok(Feed::start(
        store,
        Arc::clone(&service.ownership),
        ownership.max_staleness,
        ownership.poll_interval,
        stop,
    )
    .await)
}

/// What this node knows of each backend, so that a difference between nodes is seen: JSON, name →
/// digest of its addresses.
pub(super) fn digests(backends: &Backends) -> String {
    let digests: BTreeMap<&str, String> = backends
        .iter()
        .map(|backend| {
            let digest = Sha256::digest(format!("{backend:?}"));
            let first = digest.first_chunk::<8>().copied().unwrap_or_default();
            (backend.name.as_str(), format!("{:016x}", u64::from_be_bytes(first)))
        })
        .collect();
    serde_json::to_string(&digests).unwrap_or_default()
}
