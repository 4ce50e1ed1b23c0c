//! The spool's directories and what is done to files in them. Every call here blocks.
//!
//! ```text
//! lock        locked by the process that uses the directory
//! tmp/        being written: nobody was told that it is kept
//! messages/   the messages, named by their ids
//! dead/       messages that nobody will get
//! corrupt/    files that cannot be read as messages; never touched again
//! fingerprints  what was done with messages that may come again ([`crate::fingerprint`])
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::Access;
use rustix::io::Errno;

use super::error::SpoolError;
use super::format;
use super::health::{Condition, Fault, Health, Trouble};

/// Octets that a probe writes: more than fit into an inode.
const PROBE: usize = 4096;
/// A probe's name, which no message has.
const PROBE_NAME: &str = ".probe";
/// Longest id in octets.
const MAX_ID: usize = 64;

/// Where a file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Temporary,
    Messages,
    Dead,
    Corrupt,
}

/// How far a file is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// What is needed to read its octets again.
    Data,
    /// Everything.
    All,
}

/// Makes a file or a directory durable. Tests have one that fails as a disk does.
pub(super) type Sync = Arc<dyn Fn(&File, Depth) -> io::Result<()> + Send + std::marker::Sync>;

/// One spool's directories, locked.
pub(super) struct Disk {
    base: PathBuf,
    sync: Sync,
    pub(super) condition: Condition,
    /// Octets that are being written.
    pub(super) pending: AtomicU64,
    _lock: File,
}

/// A file that is being written. Removed when dropped, unless it was finished.
#[derive(Debug)]
pub(super) struct Draft {
    disk: Arc<Disk>,
    file: File,
    path: PathBuf,
    crc: u32,
    octets: u64,
    reserved: u64,
    finished: bool,
}

impl Place {
    const ALL: [Self; 4] = [Self::Temporary, Self::Messages, Self::Dead, Self::Corrupt];

    fn directory(self) -> &'static str {
        match self {
            Self::Temporary => "tmp",
            Self::Messages => "messages",
            Self::Dead => "dead",
            Self::Corrupt => "corrupt",
        }
    }
}

/// The real thing.
pub(super) fn sync(file: &File, depth: Depth) -> io::Result<()> {
    match depth {
        Depth::Data => file.sync_data(),
        Depth::All => file.sync_all(),
    }
}

/// True when an id can be a file's name.
pub(super) fn is_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len())
        && id.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_".contains(&octet))
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Disk {
    /// Makes the directories where they are missing, and locks them.
    pub(super) fn open(base: &Path, sync: Sync) -> Result<Self, SpoolError> {
        for place in Place::ALL {
            let path = base.join(place.directory());
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| SpoolError::Disk { doing: "make", path, source })?;
        }
        Self::lock(base, sync)
    }

    /// Locks the directories of another spool, all of which this process may move and change.
    pub(super) fn open_other(&self, base: &Path) -> Result<Self, SpoolError> {
        let path = base.join(Place::Messages.directory());
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Err(source)
                if !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Err(SpoolError::Disk { doing: "look at", path, source });
            }
            Ok(_) | Err(_) => return Err(SpoolError::NoSpool(base.to_owned())),
        }
        let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
        if place(base) == place(&self.base) {
            return Err(SpoolError::Ours(base.to_owned()));
        }
        let other = Self::open(base, self.syncing())?;
        other.require_access()?;
        Ok(other)
    }

    /// A file that was copied here may be another user's. In our spool it could be read and not be written to,
    /// which would look like a broken disk.
    fn require_access(&self) -> Result<(), SpoolError> {
        let file = Access::READ_OK | Access::WRITE_OK;
        require(&self.base, file | Access::EXEC_OK)?;
        for place in Place::ALL {
            let directory = self.base.join(place.directory());
            require(&directory, file | Access::EXEC_OK)?;
            for name in self.names(place)? {
                require(&directory.join(name), file)?;
            }
        }
        Ok(())
    }

    fn lock(base: &Path, sync: Sync) -> Result<Self, SpoolError> {
        let path = base.join("lock");
        let fails = |source| SpoolError::Disk { doing: "lock", path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(&path).map_err(fails)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => SpoolError::InUse(base.to_owned()),
            TryLockError::Error(source) => fails(source),
        })?;
        let disk = Self {
            base: base.to_owned(),
            sync,
            condition: Condition::default(),
            pending: AtomicU64::new(0),
            _lock: lock,
        };
        // The directories themselves were made just now, perhaps.
        disk.sync_path(&disk.base)?;
        Ok(disk)
    }

    /// The directory.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// How it makes things durable.
    pub(super) fn syncing(&self) -> Sync {
        Arc::clone(&self.sync)
    }

    /// A file's path.
    pub(super) fn path(&self, place: Place, name: &str) -> PathBuf {
        self.base.join(place.directory()).join(name)
    }

    /// The names in a directory.
    pub(super) fn names(&self, place: Place) -> Result<Vec<String>, SpoolError> {
        let path = self.base.join(place.directory());
        let read = || {
            let mut names = Vec::new();
            for entry in fs::read_dir(&path)? {
                match entry?.file_name().into_string() {
                    Ok(name) => names.push(name),
                    Err(name) => tracing::warn!(?name, "a file in the spool that is not ours"),
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        read().map_err(|source| SpoolError::Disk { doing: "list", path: path.clone(), source })
    }

    /// Takes note of a write that failed.
    pub(super) fn noted<T>(
        &self,
        doing: &'static str,
        path: &Path,
        result: io::Result<T>,
    ) -> Result<T, SpoolError> {
        result.map_err(|source| {
            let what = format!("cannot {doing} {}: {source}", path.display()).into();
            self.condition.fell_ill(Trouble { fault: Fault::of(&source), what });
            SpoolError::Disk { doing, path: path.to_owned(), source }
        })
    }

    /// Makes a file's octets durable. What fails is not tried again on that descriptor: the kernel has
    /// forgotten by then what it could not write, and would say yes.
    pub(super) fn sync(&self, file: &File, depth: Depth, path: &Path) -> Result<(), SpoolError> {
        self.noted("sync", path, (self.sync)(file, depth))
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync_names(&self, place: Place) -> Result<(), SpoolError> {
        self.sync_path(&self.base.join(place.directory()))
    }

    fn sync_path(&self, path: &Path) -> Result<(), SpoolError> {
        let directory = self.noted("open", path, File::open(path))?;
        self.sync(&directory, Depth::All, path)
    }

    /// Moves a file, durably.
    pub(super) fn rename(&self, id: &str, from: Place, to: Place) -> Result<(), SpoolError> {
        let (old, new) = (self.path(from, id), self.path(to, id));
        self.noted("move", &old, fs::rename(&old, &new))?;
        self.sync_names(to)?;
        self.sync_names(from)
    }

    /// Removes a file, durably.
    pub(super) fn remove(&self, id: &str, place: Place) -> Result<(), SpoolError> {
        let path = self.path(place, id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => self.noted("remove", &path, removed)?,
        }
        self.sync_names(place)
    }

    /// Moves a file, wherever it is, into `corrupt/`, beside what has its name there.
    pub(super) fn set_aside(&self, path: &Path) -> Result<PathBuf, SpoolError> {
        let aside = self.free_aside(path);
        self.noted("set aside", path, fs::rename(path, &aside))?;
        self.sync_names(Place::Corrupt)?;
        Ok(aside)
    }

    /// A path in `corrupt/` that nothing has, for a file of that name.
    pub(super) fn free_aside(&self, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let names =
            std::iter::once(name.to_string()).chain((1..).map(|n: u64| format!("{name}.{n}")));
        let mut paths = names.map(|name| self.path(Place::Corrupt, &name));
        paths.find(|path| !path.exists()).unwrap_or_default()
    }

    /// Fails while the spool is unhealthy; tries it first, if that is due.
    pub(super) fn admit(&self) -> Result<(), SpoolError> {
        if self.condition.take_turn_to_probe() {
            self.probe();
        }
        match self.condition.health() {
            Health::Well => Ok(()),
            Health::Unhealthy(trouble) => Err(SpoolError::Unhealthy(trouble)),
        }
    }

    /// Writes and syncs a file, to see whether that works again.
    pub(super) fn probe(&self) {
        let path = self.path(Place::Temporary, PROBE_NAME);
        let tried = File::create(&path).and_then(|mut file| {
            file.write_all(&[b'.'; PROBE])?;
            (self.sync)(&file, Depth::All)
        });
        let removed = fs::remove_file(&path);
        if self.noted("write", &path, tried.and(removed)).is_ok() {
            self.condition.recovered();
        }
    }

    /// A new file in `tmp/`, in which there will be so many octets.
    pub(super) fn draft(self: &Arc<Self>, name: &str, octets: u64) -> Result<Draft, SpoolError> {
        let path = self.path(Place::Temporary, name);
        let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(SpoolError::Id(name.into()));
            }
            made => self.noted("make", &path, made)?,
        };
        self.pending.fetch_add(octets, Ordering::Relaxed);
        let (disk, reserved) = (Arc::clone(self), octets);
        Ok(Draft { disk, file, path, crc: 0, octets: 0, reserved, finished: false })
    }
}

/// This process's user may do that with a file, if it is there.
fn require(path: &Path, wanted: Access) -> Result<(), SpoolError> {
    match rustix::fs::access(path, wanted) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => {
            let (path, source) = (path.to_owned(), errno.into());
            Err(SpoolError::Disk { doing: "change", path, source })
        }
    }
}

impl Draft {
    /// Writes octets that are not the content's.
    pub(super) fn frame(&mut self, octets: &[u8]) -> Result<(), SpoolError> {
        self.octets = self.octets.saturating_add(u64::try_from(octets.len()).unwrap_or(u64::MAX));
        self.disk.noted("write", &self.path, self.file.write_all(octets))
    }

    /// Writes some of the content.
    pub(super) fn content(&mut self, octets: &[u8]) -> Result<(), SpoolError> {
        self.crc = crc32c::crc32c_append(self.crc, octets);
        self.frame(octets)
    }

    /// The content is whole.
    pub(super) fn seal(&mut self) -> Result<(), SpoolError> {
        let seal = format::seal(self.crc);
        self.frame(&seal)
    }

    /// The content's checksum.
    pub(super) fn crc(&self) -> u32 {
        self.crc
    }

    /// Makes the file durable under its name in `place`; its octets. When the last step fails, it may be
    /// there all the same, so it is removed there.
    pub(super) fn finish(mut self, id: &str, place: Place) -> Result<u64, SpoolError> {
        self.put(id, place)?;
        self.disk.sync_names(place)?;
        self.finished = true;
        Ok(self.octets)
    }

    /// The same instead of the file that has that name: whatever fails, one of the two is there.
    pub(super) fn replace(mut self, id: &str, place: Place) -> Result<u64, SpoolError> {
        self.put(id, place)?;
        self.finished = true;
        self.disk.sync_names(place)?;
        Ok(self.octets)
    }

    fn put(&mut self, id: &str, place: Place) -> Result<(), SpoolError> {
        self.disk.sync(&self.file, Depth::All, &self.path)?;
        let path = self.disk.path(place, id);
        self.disk.noted("move", &self.path, fs::rename(&self.path, &path))?;
        self.path = path;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.disk.pending.fetch_sub(self.reserved, Ordering::Relaxed);
        if !self.finished
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove what was not kept");
        }
    }
}
