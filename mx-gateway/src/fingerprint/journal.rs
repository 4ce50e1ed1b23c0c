//! The file of fingerprints. Every call here blocks.
//!
//! Records are appended and not synced: one that a power loss takes costs a duplicate (P9), and a sync for each
//! would cost every message that is recorded. What a process has written survives its end, by `kill -9` too.
//! After a write that failed nobody knows what the file ends with, so it is written anew, as it is when most of
//! it is out of date.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::format::{self, Found, Record};

/// Octets of a file that is read: more records than are kept.
const MAX_OCTETS: u64 = 64 * 1024 * 1024;
/// Records that may be out of date beside as many as are not.
const SPARE: usize = 1024;
/// After a failure the file is tried again so much later, and complained of no more often.
const PAUSE: Duration = Duration::from_mins(1);

/// One file, which no other process writes.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Open for appending, unless it has to be written anew.
    file: Option<File>,
    /// Records in it.
    records: usize,
    /// When it may be tried again.
    not_before: Option<Instant>,
}

impl Journal {
    /// Of that path. Nothing is read or written yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, records: 0, not_before: None }
    }

    /// What the file has. One that is something else is moved out of the way.
    pub(super) fn read(&self) -> Vec<Record> {
        match read(&self.path) {
            Ok(octets) => understood(&octets, &self.path),
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "fingerprints cannot be read: what was delivered may be again");
                Vec::new()
            }
        }
    }

    /// Writes these down. `all` are all that count, these among them; it is asked for when the file has to be
    /// written anew.
    pub(super) fn add(
        &mut self,
        records: &[Record],
        live: usize,
        all: impl FnOnce() -> Vec<Record>,
    ) {
        if self.not_before.is_some_and(|not_before| Instant::now() < not_before) {
            return;
        }
        let count = self.records.saturating_add(records.len());
        let written = match &mut self.file {
            Some(file) if count <= live.saturating_mul(2).saturating_add(SPARE) => {
                self.records = count;
                file.write_all(&format::lines(records))
            }
            _ => self.replace(&all()),
        };
        self.not_before = None;
        if let Err(error) = written {
            let path = self.path.display();
            tracing::warn!(%path, %error,
                "fingerprints cannot be written: what was delivered may be again after a restart");
            self.file = None;
            self.not_before = Instant::now().checked_add(PAUSE);
        }
    }

    /// Writes the file anew: with these, and no others.
    fn replace(&mut self, all: &[Record]) -> io::Result<()> {
        self.file = None;
        let fresh = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&format::write(all))?;
        // Before it takes the old one's place: that one is whole.
        file.sync_data()?;
        fs::rename(&fresh, &self.path)?;
        (self.file, self.records) = (Some(file), all.len());
        Ok(())
    }
}

/// Takes the records out of the file of a process that has ended. Whoever calls keeps others from it.
pub(super) fn take(path: &Path) -> io::Result<Vec<Record>> {
    let octets = read(path)?;
    let records = understood(&octets, path);
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(records),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_OCTETS).read_to_end(&mut octets).map(|_| octets),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(octets),
        Err(error) => Err(error),
    }
}

/// The records in these octets, which stand at `path`.
fn understood(octets: &[u8], path: &Path) -> Vec<Record> {
    let shown = path.display();
    match format::read(octets) {
        Ok(Found { records, damaged, torn }) => {
            if damaged > 0 {
                tracing::warn!(path = %shown, damaged, "fingerprints are damaged: those are left out");
            }
            if torn {
                tracing::info!(path = %shown, "the last fingerprint was not finished: left out");
            }
            records
        }
        Err(error) => {
            let aside = path.with_extension("unknown");
            let moved =
                fs::rename(path, &aside).map_or_else(|e| e.to_string(), |()| "moved".into());
            tracing::warn!(path = %shown, %error, aside = %aside.display(), moved,
                "what was delivered may be again");
            Vec::new()
        }
    }
}
