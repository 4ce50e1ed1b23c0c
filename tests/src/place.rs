//! Directories for private servers: short, so that sockets fit in them, and open to the users that
//! servers run as, which a checkout under `/root` is not.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

use crate::children;
use crate::user::{User, is_root};

/// Where they are made. A Unix socket's path ends at 107 octets, so not in `$TMPDIR`.
const ROOT: &str = "/tmp";
/// What their names begin with; the id of the process that made it follows.
const PREFIX: &str = "mailshift-lab-";
/// Longest path of a Unix socket, in octets.
const MAX_SOCKET_PATH: usize = 107;

/// A directory (mode 0711) that goes with this value.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
}

impl Place {
    /// Makes one, and removes those that killed processes have left.
    ///
    /// # Errors
    ///
    /// `/tmp` cannot be written to.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: std::sync::Once = std::sync::Once::new();
        SWEEP.call_once(remove_leftovers);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(ROOT).join(format!("{PREFIX}{}-{number}", std::process::id()));
        // Not if it is there: somebody else may have made it.
        DirBuilder::new()
            .mode(0o711)
            .create(&path)
            .with_context(|| format!("{}", path.display()))?;
        let place = Self { path };
        // Whatever the umask says.
        fs::set_permissions(&place.path, Permissions::from_mode(0o711))?;
        Ok(place)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a directory in it, for `user` if not for oneself.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn directory(&self, name: &str, mode: u32, user: Option<User>) -> Result<PathBuf> {
        let path = self.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        user.map_or(Ok(()), |user| user.give(&path))?;
        Ok(path)
    }

    /// Writes a file in it, for `user` if not for oneself.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn write(&self, name: &str, text: &str, mode: u32, user: Option<User>) -> Result<PathBuf> {
        let path = self.join(name);
        // In one step, so that a server that is reading it never sees a half.
        let new = self.join(&format!("{name}.new"));
        fs::write(&new, text)?;
        fs::set_permissions(&new, Permissions::from_mode(mode))?;
        user.map_or(Ok(()), |user| user.give(&new))?;
        fs::rename(&new, &path)?;
        Ok(path)
    }

    /// The path of a socket in it.
    ///
    /// # Errors
    ///
    /// It would be too long for a socket.
    pub fn socket(&self, name: &str) -> Result<PathBuf> {
        let path = self.join(name);
        let length = path.as_os_str().len();
        ensure!(length <= MAX_SOCKET_PATH, "{} is too long for a socket", path.display());
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if fs::remove_dir_all(path).is_err() && path.exists() && !is_root() {
        // Some servers leave files of root's.
        let _ = Command::new("sudo").args(["-n", "rm", "-rf", "--"]).arg(path).output();
    }
}

/// Ends what killed processes have left running, and removes their directories.
pub fn remove_leftovers() {
    let own = User::own().uid;
    for entry in fs::read_dir(ROOT).into_iter().flatten().flatten() {
        let maker = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<i32>().ok());
        let Some(maker) = maker else { continue };
        // Only a directory of one's own says the truth about whom to end.
        let is_own = entry.metadata().is_ok_and(|data| data.is_dir() && data.uid() == own);
        if !is_own || Path::new("/proc").join(maker.to_string()).exists() {
            continue;
        }
        let path = entry.path();
        if children::end_leftovers(&path) {
            remove(&path);
        }
    }
}
