//! A service's own directory: one process at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A directory that no other process uses while this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
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
}

impl StateDir {
    /// Makes `base/service` if it is not there (mode 0700), and locks it.
    ///
    /// # Errors
    ///
    /// A [`StateDirError`].
    pub fn lock(base: &Path, service: &str) -> Result<Self, StateDirError> {
        let path = base.join(service);
        let unusable = |source| StateDirError::Unusable { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(unusable)?;
        let mut lock = OpenOptions::new()
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
        // For people who look who holds it; the lock is what counts.
        lock.set_len(0).map_err(unusable)?;
        writeln!(lock, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { path, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
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
}
