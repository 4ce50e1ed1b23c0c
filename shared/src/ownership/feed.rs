//! The feed: keeps the owner map current and the lease running (DESIGN §2a, "Reading the feed").
//!
//! Write the node's row, load everything in one snapshot, poll. Each poll first commits the lease, then
//! reads the changes after the cursor, applies them in their order (map first, marks second), and when
//! the pages end says so in the table. A notification only wakes the poll earlier; losing one costs at
//! most the poll interval.
//!
//! What goes wrong is of four kinds. The database does not answer: the lease runs on, then everything is
//! refused until it does. It lost changes: [`history`]. It does not count this node any more (forgotten,
//! deleted, its name taken): stop at once, then enter anew. It is read-only: no lease.

mod history;
#[cfg(test)]
mod model;
mod report;
mod unknown;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Ownership;
use super::store::{Cursor, Grant, Page, Snapshot, Store, StoreError};
use report::Said;

/// Longest wait for an answer to one statement of a poll, then there is a new connection.
const POLL_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait where another's lock may be in the way.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the whole table.
const LOAD_TIMEOUT: Duration = Duration::from_mins(2);
/// Waits between attempts to reach a database that is away.
const RETRY: Duration = Duration::from_millis(500);
/// Failed polls are said once, then again after this long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// How often the guard looks whether the lease has ended, when it has not.
const GUARD_EVERY: Duration = Duration::from_millis(250);
/// How often holds are looked at whose lease is over.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// Work that ends one by one after a bulk flip is reported together, this often.
const DRAINED_EVERY: Duration = Duration::from_millis(20);
/// Added to the lease in the table, so that it ends there later than here (DESIGN §2a).
pub const LEASE_MARGIN: Duration = Duration::from_secs(10);

/// Keeps an [`Ownership`] current from a [`Store`].
#[derive(Debug)]
pub struct Feed {
    store: Arc<Store>,
    ownership: Arc<Ownership>,
    cursor: Cursor,
    /// How long one granted lease runs here.
    max_staleness: Duration,
    poll_interval: Duration,
    complaint: Complaint,
    /// The node's row may be in the table by this process.
    may_be_in: bool,
    /// The lease that was last granted; `None` after a failed poll. A report counts only while it stands: a
    /// failed poll is followed by another lease, whatever it was for and whoever asks for the next one, so what
    /// that poll may still write later finds itself overtaken.
    grant: Option<Grant>,
    /// What was last written; `None` when that is not known.
    reported: Option<Said>,
    /// When it was last said how much mail is on this node's disk.
    spool_said: Option<Instant>,
}

/// What a poll is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poll {
    /// The interval is over: renew the lease, then read.
    Interval,
    /// Somebody said that there is something to read or to report.
    Notified,
}

impl Feed {
    /// Registers this node, loads the table and polls once: from here on the copy may be used. Tries
    /// until that worked, or until `stop` is cancelled: then it takes the node's row out, if it had
    /// written one, and returns nothing.
    pub async fn start(
        store: Store,
        ownership: Arc<Ownership>,
        max_staleness: Duration,
        poll_interval: Duration,
        stop: &CancellationToken,
    ) -> Option<Self> {
        let mut feed = Self {
            store: Arc::new(store),
            ownership,
            cursor: Cursor::default(),
            max_staleness,
            poll_interval,
            complaint: Complaint::default(),
            may_be_in: false,
            grant: None,
            reported: None,
            spool_said: None,
        };
        let begun = stop.run_until_cancelled(Box::pin(feed.begin_at_last())).await;
        if begun.is_some() {
            return Some(feed);
        }
        feed.ownership.stop_serving();
        if feed.may_be_in {
            feed.leave().await;
        }
        None
    }

    /// Follows the table until `stop` is cancelled. From then on this node serves nothing; its row stays
    /// until [`Self::leave`], or else until its lease ends.
    pub async fn run(&mut self, stop: CancellationToken) {
        let (ownership, store) = (Arc::clone(&self.ownership), Arc::clone(&self.store));
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
            () = guard_lease(&ownership) => {}
            () = expire_holds(&store) => {}
            () = unknown::report_unknown_names(&store, &ownership) => {}
        }
        ownership.stop_serving();
    }

    /// Takes the node's row out, or its lease where it leaves mail behind: no fence waits for it from here on,
    /// so all its work must have ended.
    pub async fn leave(&self) {
        let spooled = self.ownership.spool().now();
        if spooled.messages > 0 {
            tracing::warn!(
                messages = spooled.messages,
                "this node leaves mail in its spool: it is delivered when the node is started again, or when \
                 another one adopts the spool (mailshift queue adopt)"
            );
        }
        if let Err(error) = in_time(WRITE_TIMEOUT, self.store.leave(spooled)).await {
            tracing::warn!(%error, "cannot take this node out of the table; fences wait until its lease ends");
        }
    }

    async fn begin_at_last(&mut self) {
        while let Err(error) = self.begin().await {
            self.complaint.make("cannot load the ownership table", &error);
            self.store.reconnect();
            sleep(RETRY).await;
        }
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        // Whatever becomes of it from here on, also when nobody waits for the answer.
        let was_in = std::mem::replace(&mut self.may_be_in, true);
        let entered = in_time(WRITE_TIMEOUT, self.store.enter()).await;
        if matches!(&entered, Err(error) if !matches!(error, StoreError::Timeout)) {
            self.may_be_in = was_in;
        }
        entered?;
        let snapshot = in_time(LOAD_TIMEOUT, self.store.load()).await?;
        self.install(snapshot);
        self.poll(Poll::Interval).await
    }

    /// Takes a snapshot for the copy and goes on from it.
    fn install(&mut self, snapshot: Snapshot) {
        let Snapshot { tables, cursor } = snapshot;
        self.ownership.set_database(&cursor.database);
        self.ownership.replace(tables, cursor.epoch);
        self.cursor = cursor;
        self.reported = None;
        let (accounts, aliases, domains) = self.ownership.map().counts();
        let epoch = self.cursor.epoch;
        tracing::info!(accounts, aliases, domains, epoch, "ownership loaded");
        self.ownership.complain_of_unknown_owners();
        for domain in self.ownership.map().contradicted_routing_domains() {
            tracing::error!(%domain, "a routing domain (names.routing_domains) is in the table as a domain of its own: everything there is refused temporarily until one of the two is gone");
        }
    }

    /// Polls for ever. Ends never; the caller drops it.
    async fn follow(&mut self) {
        let registry = Arc::clone(self.ownership.registry());
        let mut waker = self.store.waker();
        let mut next = Instant::now() + self.poll_interval;
        let mut polled = Instant::now();
        loop {
            let report_at = polled + DRAINED_EVERY;
            let drained = async {
                registry.drained().await;
                sleep_until(report_at).await;
            };
            let poll = if self.grant.is_none() {
                Poll::Interval
            } else {
                tokio::select! {
                    biased;
                    () = sleep_until(next) => Poll::Interval,
                    () = waker.told() => Poll::Notified,
                    () = drained => Poll::Notified,
                }
            };
            if poll == Poll::Interval {
                next = Instant::now() + self.poll_interval;
            }
            match self.poll(poll).await {
                Ok(()) => self.complaint.withdraw("the ownership table is read again"),
                Err(error) => {
                    self.grant = None;
                    self.mend(error).await;
                }
            }
            polled = Instant::now();
        }
    }

    /// Reads all changes after the cursor, applies them, and says in the table that they are.
    async fn poll(&mut self, poll: Poll) -> Result<(), StoreError> {
        let ownership = Arc::clone(&self.ownership);
        // A process that was suspended wakes up here or in the guard.
        self.lapse();
        let request = ownership.lease().request();
        // Without a lease the changes are still read: a flip is seen as long as there is anything to see.
        let (granted, not_granted) = match poll {
            Poll::Interval => match self.renew_lease().await {
                Ok(()) => (true, None),
                // Nobody waits for this node any more: there is nothing it may finish first.
                Err(
                    evicted @ (StoreError::Gone | StoreError::Forgotten | StoreError::NameTaken),
                ) => return Err(evicted),
                Err(error) => (false, Some(error)),
            },
            Poll::Notified => (false, None),
        };
        loop {
            let grant = self.grant.as_ref().filter(|_| granted);
            let page = self.store.changes_after(&self.cursor, grant);
            let Page { changes, cursor, more } = in_time(POLL_TIMEOUT, page).await?;
            ownership.apply(&changes);
            self.cursor = cursor;
            if !more {
                break;
            }
        }
        if granted {
            self.lapse();
            ownership.lease().grant(&request, self.max_staleness);
        }
        match not_granted {
            Some(error) => Err(error),
            None => {
                self.report().await?;
                self.report_adopted().await
            }
        }
    }

    async fn renew_lease(&mut self) -> Result<(), StoreError> {
        let length = self.max_staleness.saturating_add(LEASE_MARGIN);
        let renewed = in_time(POLL_TIMEOUT, self.store.renew_lease(length)).await;
        if matches!(renewed, Err(StoreError::Timeout)) {
            self.store.reconnect();
        }
        self.grant = Some(renewed?);
        Ok(())
    }

    /// Does what can be done about a failed poll.
    async fn mend(&mut self, error: StoreError) {
        match &error {
            StoreError::HistoryLost => match self.recover_history().await {
                Ok(()) => return,
                Err(error) => {
                    self.complaint.make("cannot read the ownership table afresh", &error);
                    self.store.reconnect();
                }
            },
            StoreError::Gone | StoreError::Forgotten | StoreError::NameTaken => {
                if self.step_down(&error).await {
                    return;
                }
            }
            StoreError::FileReplaced => {
                self.stop_serving(&error);
                self.complaint.make("cannot read the ownership table", &error);
            }
            StoreError::Timeout => {
                self.store.reconnect();
                self.complaint.make("cannot read the ownership table", &error);
            }
            StoreError::Database(_)
            | StoreError::ReadOnly
            | StoreError::LeaseLost
            | StoreError::Overtaken
            | StoreError::Unreadable { .. }
            | StoreError::Schema(_) => {
                self.complaint.make("cannot read the ownership table", &error);
            }
        }
        sleep(RETRY).await;
    }

    /// No fence waits for this node any more, so nothing may run here. Then enters anew, if it may; says
    /// whether it has.
    async fn step_down(&mut self, error: &StoreError) -> bool {
        self.stop_serving(error);
        self.reported = None;
        match in_time(WRITE_TIMEOUT, self.store.enter()).await {
            Ok(()) => {
                tracing::warn!("this node is in the table again");
                true
            }
            Err(error) => {
                self.complaint.make("cannot put this node into the table again", &error);
                false
            }
        }
    }

    fn stop_serving(&self, error: &StoreError) {
        if self.ownership.stop_serving() {
            tracing::error!(%error, "this node stops serving at once: all its sessions end, and everything is refused temporarily");
        }
    }

    fn lapse(&self) {
        say_lapse(self.ownership.lapse());
    }
}

/// Ends all work when the lease ends while polls fail, and says so.
async fn guard_lease(ownership: &Ownership) {
    loop {
        sleep(ownership.lease().remaining().clamp(Duration::from_millis(1), GUARD_EVERY)).await;
        say_lapse(ownership.lapse());
    }
}

fn say_lapse(lapsed: bool) {
    if lapsed {
        tracing::error!(
            "the ownership table was not read within its lease: all sessions end, and every login and \
             every message is refused temporarily until it is"
        );
    }
}

/// Ends holds whose holder has died, for ever. Beside the polls: it may have to wait for a lock.
async fn expire_holds(store: &Store) {
    let mut complaint = Complaint::default();
    loop {
        sleep(EXPIRE_EVERY).await;
        match in_time(WRITE_TIMEOUT, store.expire_holds()).await {
            Ok(0) => complaint.withdraw("holds whose lease is over are ended again"),
            Ok(ended) => tracing::warn!(ended, "holds have ended because their lease was over"),
            Err(error) => complaint.make("cannot end holds whose lease is over", &error),
        }
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
