//! A service's own directory: one process at a time.
//!
//! It has an id of its own, made with it. A node's name in the ownership table belongs to that id, so that
//! a second process with the same name, on another machine, is noticed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A directory that no other process uses while this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    id: Box<str>,
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
        let id = id_of(&path).map_err(unusable)?;
        Ok(Self { path, id, _lock: lock })
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
