//! The life of a process: all its tasks are tracked, one cancellation tree, an orderly end.
//!
//! ```text
//! hand-over ─► drain: listeners close, all else goes on ─► (its grace) ─┐
//! SIGTERM ──────────────────────────────────────────────────────────────┴─► stop: no new work
//!          ─► (grace) ─► end: what is left is cut ─► exit
//! ```

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long work that was cut may take to notice.
const CUT_GRACE: Duration = Duration::from_secs(5);
/// How often the shutdown says what it waits for.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Every task of a process and the tokens that end them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    work: TaskTracker,
    listeners: TaskTracker,
    chores: TaskTracker,
    drain: CancellationToken,
    stop: CancellationToken,
    end: CancellationToken,
}

impl Default for Lifecycle {
    fn default() -> Self {
        let stop = CancellationToken::new();
        Self {
            work: TaskTracker::new(),
            listeners: TaskTracker::new(),
            chores: TaskTracker::new(),
            drain: stop.child_token(),
            stop,
            end: CancellationToken::new(),
        }
    }
}

impl Lifecycle {
    /// Spawns work in hand, such as a client's session: what a drain and a shutdown wait for. A panic in it
    /// ends only this task, with a log line.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn_in(&self.work, name, task);
    }

    /// Spawns what accepts connections: it ends when [`Self::draining`] is cancelled.
    pub fn spawn_listener<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn_in(&self.listeners, name, task);
    }

    /// Spawns what work in hand needs meanwhile: it ends when [`Self::stop`] is cancelled.
    pub fn spawn_chore<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn_in(&self.chores, name, task);
    }

    /// The same tasks with tokens of their own: cancelling those of the branch leaves this one's alone.
    pub fn branch(&self) -> Self {
        Self {
            drain: self.drain.child_token(),
            stop: self.stop.child_token(),
            end: self.end.child_token(),
            ..self.clone()
        }
    }

    /// Cancelled when listeners close, at a stop at the latest.
    pub fn draining(&self) -> &CancellationToken {
        &self.drain
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
        let all = [&self.work, &self.listeners, &self.chores];
        all.into_iter().map(TaskTracker::len).fold(0, usize::saturating_add)
    }

    /// Closes the listeners; what is in hand goes on as if nothing had happened. Returns how much that is.
    pub async fn drain(&self) -> usize {
        self.drain.cancel();
        self.listeners.close();
        // One that has just accepted a connection makes it work in hand before it ends.
        self.listeners.wait().await;
        self.work.len()
    }

    /// Waits until nothing is in hand any more.
    pub async fn drained(&self) {
        self.work.close();
        self.work.wait().await;
    }

    /// Ends all work: nothing new from now on, what runs may finish within `grace`, the rest is cut.
    /// Returns how many tasks ignored even that.
    pub async fn shut_down(&self, grace: Duration) -> usize {
        self.stop.cancel();
        let waited = async {
            loop {
                tokio::select! {
                    () = self.all_ended() => return,
                    () = tokio::time::sleep(REPORT_EVERY) => {
                        tracing::info!(tasks = self.tasks(), "shutdown waits for tasks to finish");
                    }
                }
            }
        };
        if tokio::time::timeout(grace, waited).await.is_err() {
            tracing::warn!(tasks = self.tasks(), "grace is over, cutting what is left");
        }
        self.end.cancel();
        let _ = tokio::time::timeout(CUT_GRACE, self.all_ended()).await;
        self.tasks()
    }

    async fn all_ended(&self) {
        for tasks in [&self.listeners, &self.work, &self.chores] {
            tasks.close();
            tasks.wait().await;
        }
    }
}

fn spawn_in<F>(tasks: &TaskTracker, name: &'static str, task: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    // An async block keeps what it owns and awaits twice; so it owns a box.
    let task = Box::pin(AssertUnwindSafe(task).catch_unwind());
    drop(tasks.spawn(async move {
        if task.await.is_err() {
            // The panic itself was written by the panic hook.
            tracing::error!(task = name, "a task panicked; the others go on");
        }
    }));
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

    #[tokio::test]
    async fn a_drain_closes_listeners_and_leaves_work_and_chores_alone() {
        let lifecycle = Lifecycle::default();
        let (draining, stop) = (lifecycle.draining().clone(), lifecycle.stop().clone());
        lifecycle.spawn_listener("listener", async move { draining.cancelled().await });
        lifecycle.spawn_chore("chore", async move { stop.cancelled().await });
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        lifecycle.spawn("session", async move { finished.await.unwrap() });
        assert_eq!(lifecycle.drain().await, 1);
        assert!(!lifecycle.stop().is_cancelled());
        finish.send(()).unwrap();
        lifecycle.drained().await;
        assert_eq!(lifecycle.tasks(), 1, "the chore goes on");
        assert_eq!(lifecycle.shut_down(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn a_branch_ends_alone_and_with_its_root() {
        let root = Lifecycle::default();
        let (one, other) = (root.branch(), root.branch());
        one.stop().cancel();
        assert!(!root.stop().is_cancelled() && !other.stop().is_cancelled());
        root.shut_down(Duration::ZERO).await;
        assert!(other.stop().is_cancelled());
    }
}
