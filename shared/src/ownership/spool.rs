//! How much mail this process keeps on its own disk, as its node says in the table (SPL-11): whoever looks at a
//! node that is gone sees what went with it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spooled {
    /// Messages to be delivered.
    pub messages: u64,
    /// When the oldest of them came, in seconds of the Unix epoch.
    pub oldest: Option<u64>,
}

/// What the queue says of its spool, as often as that changes. The feed tells the table now and then.
#[derive(Debug, Default)]
pub struct SpoolSize(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    now: Spooled,
    adopted: Vec<Box<str>>,
}

impl SpoolSize {
    /// That much is there from now on.
    pub fn set(&self, spooled: Spooled) {
        self.state().now = spooled;
    }

    /// How much is there.
    pub fn now(&self) -> Spooled {
        self.state().now
    }

    /// The spool of another process is in this one's now: the process with the state directory that has this id
    /// (its file `id`) has left nothing any more.
    pub fn adopted(&self, state_dir: &str) {
        self.state().adopted.push(state_dir.into());
    }

    /// Whose spools were adopted and are still to be told of.
    pub(super) fn take_adopted(&self) -> Vec<Box<str>> {
        std::mem::take(&mut self.state().adopted)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
