//! The life of a process: one tracker for all tasks, one cancellation tree, an orderly end.
//!
//! ```text
//! SIGTERM ─► stop: listeners close, sessions finish ─► (grace) ─► end: what is left is cut ─► exit
//! ```

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long work that was cut may take to notice.
const CUT_GRACE: Duration = Duration::from_secs(5);
/// How often the shutdown says what it waits for.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Every task of a process and the tokens that end them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    tracker: TaskTracker,
    stop: CancellationToken,
    end: CancellationToken,
}

impl Lifecycle {
    /// Spawns a task that shutdown waits for. A panic in it ends only this task, with a log line.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // An async block keeps what it owns and awaits twice; so it owns a box.
        let task = Box::pin(AssertUnwindSafe(task).catch_unwind());
        drop(self.tracker.spawn(async move {
            if task.await.is_err() {
                // The panic itself was written by the panic hook.
                tracing::error!(task = name, "a task panicked; the others go on");
            }
        }));
    }

    /// Cancelled when no new work may begin: listeners close, servers say 421 or BYE at the next turn.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Cancelled when the grace is over: joined sessions are cut.
    pub fn end(&self) -> &CancellationToken {
        &self.end
    }

    /// Tasks running now.
    pub fn tasks(&self) -> usize {
        self.tracker.len()
    }

    /// Waits for SIGTERM or SIGINT.
    ///
    /// # Errors
    ///
    /// When signals cannot be listened for.
    pub async fn until_signal() -> std::io::Result<&'static str> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        Ok(tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        })
    }

    /// Ends all work: nothing new from now on, what runs may finish within `grace`, the rest is cut.
    /// Returns how many tasks ignored even that.
    pub async fn shut_down(&self, grace: Duration) -> usize {
        self.stop.cancel();
        self.tracker.close();
        let waited = async {
            loop {
                tokio::select! {
                    () = self.tracker.wait() => return,
                    () = tokio::time::sleep(REPORT_EVERY) => {
                        tracing::info!(tasks = self.tracker.len(), "shutdown waits for tasks to finish");
                    }
                }
            }
        };
        if tokio::time::timeout(grace, waited).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "grace is over, cutting what is left");
        }
        self.end.cancel();
        let _ = tokio::time::timeout(CUT_GRACE, self.tracker.wait()).await;
        self.tracker.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_task_ends_that_task_only() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("panics", async { panic!("on purpose") });
        let (done, finished) = tokio::sync::oneshot::channel();
        lifecycle.spawn("goes on", async move { done.send(()).unwrap() });
        finished.await.unwrap();
        assert_eq!(lifecycle.shut_down(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn shutdown_waits_for_work_in_hand_and_then_cuts_it() {
        let lifecycle = Lifecycle::default();
        let end = lifecycle.end().clone();
        lifecycle.spawn("stubborn", async move { end.cancelled().await });
        assert_eq!(lifecycle.shut_down(Duration::from_millis(10)).await, 0);
        assert!(lifecycle.stop().is_cancelled() && lifecycle.end().is_cancelled());
    }
}
