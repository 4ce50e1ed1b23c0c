//! Names without a row, from memory to the table. Beside the polls, which must not wait for it.

use std::time::Duration;

use tokio::time::sleep;

use super::{Complaint, WRITE_TIMEOUT, in_time};
use crate::ownership::Ownership;
use crate::ownership::store::Store;

/// How often they are written, if there are any.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Writes them for ever. What cannot be written is tried again with the next ones; service does not depend
/// on it.
pub(super) async fn report_unknown_names(store: &Store, ownership: &Ownership) {
    let mut complaint = Complaint::default();
    loop {
        sleep(REPORT_EVERY).await;
        let sightings = ownership.unknown().take();
        if sightings.is_empty() {
            continue;
        }
        match in_time(WRITE_TIMEOUT, store.report_unknown(&sightings)).await {
            Ok(()) => complaint.withdraw("unknown names are written to the table again"),
            Err(error) => {
                complaint
                    .make("cannot write unknown names to the table; nothing else is wrong", &error);
                ownership.unknown().give_back(sightings);
            }
        }
    }
}
