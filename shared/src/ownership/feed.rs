//! The feed: keeps the owner map current and the lease running (DESIGN §2a, "Reading the feed").
//!
//! Write the node's row, load everything in one snapshot, poll. Each poll first commits the lease, then
//! reads the changes after the cursor, applies them in their order (map first, marks second), and when
//! the pages end says so in the table. A notification only wakes the poll earlier; losing one costs at
//! most the poll interval.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::lease::Moment;
use super::store::{Cursor, Page, Snapshot, Store, StoreError};
use super::{Epoch, Ownership};

/// Longest wait for one poll. Well above a busy database's answer, well below the lease.
const POLL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the whole table.
const LOAD_TIMEOUT: Duration = Duration::from_mins(2);
/// Waits between attempts to reach a database that is away.
const RETRY: Duration = Duration::from_millis(500);
/// Failed polls are said once, then again after this long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// How often the guard looks whether the lease has ended, when it has not.
const GUARD_EVERY: Duration = Duration::from_millis(250);
/// Added to the lease in the table, so that it ends there later than here (DESIGN §2a).
pub const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// Keeps an [`Ownership`] current from a [`Store`].
#[derive(Debug)]
pub struct Feed {
    store: Store,
    ownership: Arc<Ownership>,
    cursor: Cursor,
    /// How long one granted lease runs here.
    max_staleness: Duration,
    poll_interval: Duration,
    complaint: Complaint,
    /// What was last written to `busy`, to write it only when it changes.
    reported: Option<(Epoch, Vec<super::registry::Busy>)>,
}

/// What a poll is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poll {
    /// The interval is over: renew the lease, then read.
    Interval,
    /// Somebody said that there is something to read.
    Notified,
}

/// What one poll found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Current,
    HistoryLost,
}

impl Feed {
    /// Registers this node, loads the table and polls once: from here on the copy may be used. Tries
    /// until that worked.
    pub async fn start(
        store: Store,
        ownership: Arc<Ownership>,
        max_staleness: Duration,
        poll_interval: Duration,
    ) -> Self {
        let mut feed = Self {
            store,
            ownership,
            cursor: Cursor::default(),
            max_staleness,
            poll_interval,
            complaint: Complaint::default(),
            reported: None,
        };
        loop {
            match feed.begin().await {
                Ok(()) => return feed,
                Err(error) => feed.complaint.make("cannot load the ownership table", &error),
            }
            sleep(RETRY).await;
        }
    }

    /// Follows the table until `stop` is cancelled, then takes the node's row out.
    pub async fn run(mut self, stop: CancellationToken) {
        let ownership = Arc::clone(&self.ownership);
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
            () = guard_lease(&ownership) => {}
        }
        self.ownership.lease().end();
        self.ownership.registry().mark_all();
        match timeout(POLL_TIMEOUT, self.store.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot take this node out of the table"),
            Err(_) => tracing::warn!("cannot take this node out of the table in time"),
        }
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        in_time(POLL_TIMEOUT, self.store.enter()).await?;
        self.load().await?;
        match self.poll(Poll::Interval).await? {
            Outcome::Current => Ok(()),
            Outcome::HistoryLost => Err(StoreError::HistoryLost),
        }
    }

    async fn load(&mut self) -> Result<(), StoreError> {
        let began = Instant::now();
        let Snapshot { tables, cursor } = in_time(LOAD_TIMEOUT, self.store.load()).await?;
        self.cursor = cursor;
        self.reported = None;
        // What differs from the copy so far is a change like any other: work that depends on it ends.
        for change in self.ownership.map().replace(tables) {
            self.ownership.registry().mark(&change.key(), Epoch::MAX);
        }
        let (accounts, aliases, domains) = self.ownership.map().counts();
        let ms = began.elapsed().as_millis();
        tracing::info!(
            accounts,
            aliases,
            domains,
            epoch = self.cursor.epoch,
            ms,
            "ownership loaded"
        );
        Ok(())
    }

    /// Polls for ever. Ends never; the caller drops it.
    async fn follow(&mut self) {
        let registry = Arc::clone(self.ownership.registry());
        let mut waker = self.store.waker();
        let mut next = Instant::now() + self.poll_interval;
        loop {
            let poll = tokio::select! {
                () = sleep_until(next) => Poll::Interval,
                () = waker.told() => Poll::Notified,
                () = registry.drained() => Poll::Notified,
            };
            if poll == Poll::Interval {
                next = Instant::now() + self.poll_interval;
            }
            match self.poll(poll).await {
                Ok(Outcome::Current) => self.complaint.withdraw("ownership table is read again"),
                Ok(Outcome::HistoryLost) => self.recover_history().await,
                Err(error) => {
                    self.complaint.make("cannot read the ownership table", &error);
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Reads all changes after the cursor, applies them, and says in the table that they are.
    async fn poll(&mut self, poll: Poll) -> Result<Outcome, StoreError> {
        let sent = Moment::now();
        if poll == Poll::Interval {
            let length = self.max_staleness.saturating_add(LEASE_MARGIN);
            in_time(POLL_TIMEOUT, self.store.renew_lease(length)).await?;
        }
        loop {
            let page = in_time(POLL_TIMEOUT, self.store.changes_after(&self.cursor)).await?;
            let Page { intact: true, changes, cursor, more } = page else {
                return Ok(Outcome::HistoryLost);
            };
            self.ownership.map().apply(changes.iter().map(|(epoch, change)| (*epoch, change)));
            // Only now: work that enters from here on reads the new row.
            for (epoch, change) in &changes {
                self.ownership.registry().mark(&change.key(), *epoch);
            }
            self.cursor = cursor;
            if !more {
                break;
            }
        }
        if poll == Poll::Interval {
            self.ownership.lease().renew(sent, self.max_staleness);
        }
        self.report().await
    }

    /// Says in the table how far this node has applied the changes and what still runs against them.
    async fn report(&mut self) -> Result<Outcome, StoreError> {
        let busy = self.ownership.registry().busy();
        let state = (self.cursor.epoch, busy);
        if self.reported.as_ref() == Some(&state) {
            return Ok(Outcome::Current);
        }
        let written = in_time(POLL_TIMEOUT, self.store.report(&self.cursor, &state.1)).await?;
        if !written {
            return Ok(Outcome::HistoryLost);
        }
        self.reported = Some(state);
        Ok(Outcome::Current)
    }

    /// The last change that was read is not in the table any more: a failover or a restore went back in
    /// time. Nothing new is served until the table is read afresh, and every difference is a change.
    async fn recover_history(&mut self) {
        self.ownership.lease().end();
        let epoch = self.cursor.epoch;
        tracing::error!(
            epoch,
            "the ownership table lost changes that this node has served by (failover or restore); \
             refusing everything until it is read afresh"
        );
        let recovered = async {
            in_time(POLL_TIMEOUT, self.store.raise_clock(epoch)).await?;
            self.load().await
        };
        if let Err(error) = recovered.await {
            self.complaint.make("cannot read the ownership table afresh", &error);
        }
    }
}

/// Marks all work when the lease ends while polls fail, and says so.
async fn guard_lease(ownership: &Ownership) {
    let mut was_valid = ownership.lease().is_valid();
    loop {
        sleep(ownership.lease().remaining().clamp(Duration::from_millis(1), GUARD_EVERY)).await;
        let valid = ownership.lease().is_valid();
        if was_valid && !valid {
            tracing::error!(
                "the ownership table was not read within its lease: every login and every message is \
                 refused temporarily until it is"
            );
            ownership.registry().mark_all();
        }
        was_valid = valid;
    }
}

/// `work` under a deadline.
async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, work).await.unwrap_or(Err(StoreError::Timeout))
}

/// Says that something is wrong at first and then now and then, not at every attempt.
#[derive(Debug, Default)]
struct Complaint {
    made: Option<Instant>,
}

impl Complaint {
    fn make(&mut self, what: &'static str, error: &StoreError) {
        if self.made.is_none_or(|made| made.elapsed() >= COMPLAIN_EVERY) {
            self.made = Some(Instant::now());
            tracing::error!(%error, "{what}");
        }
    }

    fn withdraw(&mut self, what: &'static str) {
        if self.made.take().is_some() {
            tracing::info!("{what}");
        }
    }
}
