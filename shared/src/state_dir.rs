//! A service's own directory: one process at a time.
//!
//! It has an id of its own, made with it. A node's name in the ownership table belongs to that id, so that
//! a second process with the same name, on another machine, is noticed.
//!
//! While one process hands over to the next both serve, so they are two nodes: each has a directory, an id
//! and a name of its own. `SERVICE` and `NAME` are the first one's, `SERVICE.2` and `NAME.2` the second's.
//! A process that still finishes what it has in hand keeps its directory, so there are some more.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Processes of one service at once: one that serves, and others that have handed over to it, one after
/// the other. A fence asks each of them.
pub const MAX_PROCESSES: usize = 4;

/// A directory that no other process uses while this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    id: Box<str>,
    process: usize,
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made or written to.
    #[error("cannot use the state directory {}: {source}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process uses it. Two would count as one node and undo each other's leases.
    #[error("the state directory {} is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// There is no directory for one more process.
    #[error(
        "{MAX_PROCESSES} processes of this service run already: those that have handed over still finish \
         what they have in hand (node.handover_grace); wait for them, or end them with SIGTERM"
    )]
    TooMany,
}

impl StateDir {
    /// Locks a directory of `service` in `base`, which is made if it is not there (mode 0700). No process of
    /// the service may run. Of several the one that was used last is taken, since what its process has left
    /// in the ownership table is taken over at once.
    ///
    /// # Errors
    ///
    /// A [`StateDirError`].
    pub fn lock(base: &Path, service: &str) -> Result<Self, StateDirError> {
        // All are kept until one is chosen, so that nobody else starts meanwhile.
        let mut free = Vec::new();
        for process in 1..=MAX_PROCESSES {
            if process == 1 || path_of(base, service, process).is_dir() {
                free.push(lock_one(base, service, process)?);
            }
        }
        let last = free.into_iter().max_by_key(|free| (free.used, std::cmp::Reverse(free.process)));
        last.ok_or(StateDirError::TooMany)?.take()
    }

    /// Locks a directory beside those of the processes that run.
    ///
    /// # Errors
    ///
    /// A [`StateDirError`].
    pub fn lock_beside(base: &Path, service: &str) -> Result<Self, StateDirError> {
        for process in 1..=MAX_PROCESSES {
            match lock_one(base, service, process) {
                Ok(free) => return free.take(),
                Err(StateDirError::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StateDirError::TooMany)
    }

    /// The directories that processes of `service` may have.
    pub fn candidates(base: &Path, service: &str) -> impl Iterator<Item = PathBuf> {
        (1..=MAX_PROCESSES).map(move |process| path_of(base, service, process))
    }

    /// What the process with this directory is called in the ownership table, where the node is `name`.
    pub fn node_name(&self, name: &str) -> Box<str> {
        numbered(name, self.process).into()
    }

    /// Its id: the same at each start.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A directory that is locked, but not used yet.
struct Free {
    path: PathBuf,
    process: usize,
    lock: File,
    /// When the last process began to use it.
    used: Option<SystemTime>,
}

impl Free {
    fn take(mut self) -> Result<StateDir, StateDirError> {
        let unusable = |source| StateDirError::Unusable { path: self.path.clone(), source };
        // For people who look who holds it; the lock is what counts.
        self.lock.set_len(0).map_err(unusable)?;
        writeln!(self.lock, "{}", std::process::id()).map_err(unusable)?;
        let id = id_of(&self.path).map_err(unusable)?;
        let Self { path, process, lock, .. } = self;
        Ok(StateDir { path, id, process, _lock: lock })
    }
}

fn lock_one(base: &Path, service: &str, process: usize) -> Result<Free, StateDirError> {
    let path = path_of(base, service, process);
    let unusable = |source| StateDirError::Unusable { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(unusable)?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("lock"))
        .map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StateDirError::InUse { path }),
        Err(TryLockError::Error(source)) => return Err(unusable(source)),
    }
    let used = lock.metadata().and_then(|data| data.modified()).ok();
    Ok(Free { path, process, lock, used })
}

fn path_of(base: &Path, service: &str, process: usize) -> PathBuf {
    base.join(numbered(service, process))
}

fn numbered(name: &str, process: usize) -> String {
    if process == 1 { name.to_owned() } else { format!("{name}.{process}") }
}

/// Reads the id, or makes one. Whoever calls has the lock.
fn id_of(path: &Path) -> std::io::Result<Box<str>> {
    let file = path.join("id");
    match fs::read_to_string(&file) {
        Ok(text) => {
            if let Ok(id) = uuid::Uuid::parse_str(text.trim()) {
                return Ok(id.to_string().into());
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Written elsewhere and moved: a file that was cut short would be another id at each start.
    let id = uuid::Uuid::new_v4().to_string();
    let fresh = path.join("id.new");
    let mut written = File::create(&fresh)?;
    writeln!(written, "{id}")?;
    written.sync_all()?;
    fs::rename(&fresh, &file)?;
    Ok(id.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_processes_never_share_a_state_directory() {
        let base = tempfile::tempdir().unwrap();
        let first = StateDir::lock(base.path(), "login-proxy").unwrap();
        let second = StateDir::lock(base.path(), "login-proxy");
        assert!(matches!(second, Err(StateDirError::InUse { .. })));
        StateDir::lock(base.path(), "mx-gateway").expect("the other service has its own");
        drop(first);
        StateDir::lock(base.path(), "login-proxy").expect("free again");
    }

    #[test]
    fn successive_processes_are_nodes_of_their_own() {
        let base = tempfile::tempdir().unwrap();
        let first = StateDir::lock(base.path(), "login-proxy").unwrap();
        let second = StateDir::lock_beside(base.path(), "login-proxy").unwrap();
        assert_ne!(first.id(), second.id());
        assert_eq!((&*first.node_name("a"), &*second.node_name("a")), ("a", "a.2"));
        // Whichever of the two runs, a plain start is refused.
        drop(first);
        let third = StateDir::lock(base.path(), "login-proxy");
        assert!(matches!(third, Err(StateDirError::InUse { .. })));
        let third = StateDir::lock_beside(base.path(), "login-proxy").unwrap();
        assert_eq!(&*third.node_name("a"), "a", "the first one's is free");
        let all: Vec<_> = (2..MAX_PROCESSES)
            .map(|_| StateDir::lock_beside(base.path(), "login-proxy").unwrap())
            .collect();
        let more = StateDir::lock_beside(base.path(), "login-proxy");
        assert!(matches!(more, Err(StateDirError::TooMany)));
        drop((second, third, all));
    }

    #[test]
    fn a_start_after_a_crash_takes_the_name_that_was_used_last() {
        let base = tempfile::tempdir().unwrap();
        let first = StateDir::lock(base.path(), "login-proxy").unwrap();
        // Two writes may fall into one tick of the file system's clock.
        let later = SystemTime::now() + std::time::Duration::from_secs(2);
        let second = StateDir::lock_beside(base.path(), "login-proxy").unwrap();
        let lock = File::options().write(true).open(second.path().join("lock")).unwrap();
        lock.set_modified(later).unwrap();
        drop((first, second));
        let again = StateDir::lock(base.path(), "login-proxy").unwrap();
        assert_eq!(&*again.node_name("a"), "a.2");
    }

    #[test]
    fn a_state_directory_keeps_its_id() {
        let base = tempfile::tempdir().unwrap();
        let id = StateDir::lock(base.path(), "login-proxy").unwrap().id().to_owned();
        assert_eq!(StateDir::lock(base.path(), "login-proxy").unwrap().id(), id);
        assert_ne!(StateDir::lock(base.path(), "mx-gateway").unwrap().id(), id);
        std::fs::write(base.path().join("login-proxy/id"), "").unwrap();
        let another = StateDir::lock(base.path(), "login-proxy").unwrap().id().to_owned();
        assert_ne!(another, id, "an empty file is no id");
        assert_eq!(StateDir::lock(base.path(), "login-proxy").unwrap().id(), another);
    }
}
