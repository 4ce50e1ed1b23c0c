//! Work that is not allowed to take a message with it: in tasks and threads of its own, for a limited time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// When what is not known by then cannot be known.
pub(super) type Deadline = Instant;

/// A deadline that never comes is a year away.
const NEVER: Duration = Duration::from_hours(24 * 365);

/// The time so long after `began`.
pub(super) fn deadline(began: Instant, limit: Duration) -> Deadline {
    began.checked_add(limit.min(NEVER)).unwrap_or(began)
}

/// What `work` says; `None` when it takes too long, and then it is broken off, or panics.
pub(super) async fn within<T: Send + 'static>(
    until: Deadline,
    what: &'static str,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let mut tasks = JoinSet::new();
    tasks.spawn(work);
    outcome(until, what, tasks).await
}

/// The same for work that computes: on a thread, as soon as one of `threads` is free. It cannot be broken
/// off: when it takes too long, nobody waits for it any more, but its thread is taken until it ends.
pub(super) async fn on_a_thread<T: Send + 'static>(
    until: Deadline,
    what: &'static str,
    threads: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let thread = timeout_at(until, Arc::clone(threads).acquire_owned()).await.ok()?.ok()?;
    let mut tasks = JoinSet::new();
    tasks.spawn_blocking(move || {
        let _thread = thread;
        work()
    });
    outcome(until, what, tasks).await
}

async fn outcome<T: 'static>(
    until: Deadline,
    what: &'static str,
    mut tasks: JoinSet<T>,
) -> Option<T> {
    match timeout_at(until, tasks.join_next()).await {
        Ok(Some(Ok(found))) => Some(found),
        Ok(Some(Err(error))) => {
            tracing::error!(what, %error, "finding out about a sender failed");
            None
        }
        Ok(None) => None,
        Err(_) => {
            tracing::debug!(what, "not known in time");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> Deadline {
        deadline(Instant::now(), Duration::from_mins(1))
    }

    fn soon() -> Deadline {
        deadline(Instant::now(), Duration::from_millis(10))
    }

    #[tokio::test]
    async fn what_panics_or_takes_too_long_is_not_known() {
        assert_eq!(within(late(), "it", async { 1 }).await, Some(1));
        assert_eq!(within(soon(), "it", std::future::pending::<()>()).await, None);
        let panics = async {
            assert!(Instant::now() > late(), "expected in this test");
        };
        assert_eq!(within(late(), "it", panics).await, None);
    }

    #[tokio::test]
    async fn a_thread_that_panics_gives_its_place_back() {
        let threads = Arc::new(Semaphore::new(1));
        for _ in 0..3 {
            let panics = || -> u8 { panic!("expected in this test") };
            assert_eq!(on_a_thread(late(), "it", &threads, panics).await, None);
        }
        assert_eq!(on_a_thread(late(), "it", &threads, || 2).await, Some(2));
    }

    #[tokio::test]
    async fn nobody_waits_for_a_thread_that_hangs_and_it_keeps_its_place() {
        let threads = Arc::new(Semaphore::new(1));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        assert_eq!(on_a_thread(soon(), "it", &threads, move || wait.recv()).await, None);
        assert_eq!(on_a_thread(soon(), "it", &threads, || 2).await, None);
        drop(go);
        assert_eq!(on_a_thread(late(), "it", &threads, || 3).await, Some(3));
    }
}
