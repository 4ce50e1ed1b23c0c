//! What the calls of a [`super::Spool`] share: its directories, and what is known of each file in them. Every
//! call here blocks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{self, Disk, Draft, Place};
use super::error::SpoolError;
use super::file::{self, Entry, LoadError, Loaded};
use super::format::{self, FormatError};
use super::message::{Envelope, Progress, Recipient, Stored};

/// A spool, as its calls share it.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) disk: Arc<Disk>,
    /// Free octets that are left alone.
    pub(super) reserve: u64,
    pub(super) entries: Mutex<HashMap<Box<str>, Arc<Mutex<Entry>>>>,
}

/// A message that is being committed.
pub(super) enum Step {
    /// There is more to come.
    More(Draft),
    /// It is kept.
    Done(Committed),
}

/// A message that is kept. When nobody takes it, the one who brought it was not told, and it is removed.
pub(super) struct Committed {
    index: Arc<Index>,
    stored: Option<Box<Stored>>,
}

impl Index {
    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Mutex<Entry>>>> {
        lock(&self.entries)
    }

    pub(super) fn entry(&self, id: &str) -> Option<Arc<Mutex<Entry>>> {
        self.entries().get(id).cloned()
    }

    pub(super) fn enter(&self, loaded: Loaded) -> Stored {
        let Loaded { stored, entry, .. } = loaded;
        self.entries().insert(stored.id().into(), Arc::new(Mutex::new(entry)));
        stored
    }

    pub(super) fn forget(&self, id: &str) {
        self.entries().remove(id);
    }

    pub(super) fn read(&self, id: &str, entry: &Entry) -> Result<Stored, SpoolError> {
        match file::load(&self.disk, id, entry.place) {
            Ok(loaded) => Ok(loaded.stored),
            Err(LoadError::Format(why)) => Err(SpoolError::Damaged { id: id.into(), why }),
            Err(LoadError::Disk(source)) => {
                let path = self.disk.path(entry.place, id);
                Err(SpoolError::Disk { doing: "read", path, source })
            }
        }
    }

    pub(super) fn remove(self: &Arc<Self>, id: &str, entry: &mut Entry) -> Result<(), SpoolError> {
        self.disk.remove(id, entry.place)?;
        self.forget(id);
        Ok(())
    }

    /// Writes one piece of a message, before the first one what goes before it, behind the last one what
    /// makes it kept.
    pub(super) fn step(
        self: Arc<Self>,
        draft: Option<Draft>,
        stored: Stored,
        head: &[u8],
        content: &[u8],
        more: bool,
    ) -> Result<Step, SpoolError> {
        let id = stored.id();
        let mut draft = match draft {
            Some(draft) => draft,
            None => self.begin(&stored, head)?,
        };
        draft.content(content)?;
        if more {
            return Ok(Step::More(draft));
        }
        draft.seal()?;
        let entry = Entry {
            place: Place::Messages,
            offset: wide(head.len()),
            octets: stored.octets,
            crc: draft.crc(),
            end: draft.finish(id, Place::Messages)?,
            recipients: stored.recipients.len(),
            uncertain: false,
        };
        self.entries().insert(id.into(), Arc::new(Mutex::new(entry)));
        Ok(Step::Done(Committed { index: self, stored: Some(Box::new(stored)) }))
    }

    fn begin(&self, stored: &Stored, head: &[u8]) -> Result<Draft, SpoolError> {
        let id = stored.id();
        if self.entry(id).is_some() {
            return Err(SpoolError::Id(id.into()));
        }
        self.disk.admit()?;
        let mut draft = self.disk.draft(id, stored.octets)?;
        draft.frame(head)?;
        Ok(draft)
    }
}

impl Committed {
    pub(super) fn claim(mut self) -> Option<Stored> {
        self.stored.take().map(|stored| *stored)
    }
}

impl Drop for Committed {
    fn drop(&mut self) {
        let Some(stored) = self.stored.take() else { return };
        if let Err(error) = self.index.disk.remove(stored.id(), Place::Messages) {
            tracing::warn!(id = stored.id(), %error, "a message nobody waited for is kept all the same");
        }
        // Only now another may have its id.
        self.index.forget(stored.id());
    }
}

/// A message as it is kept, and the head of its file.
pub(super) fn draw_up(
    envelope: &Envelope,
    recipients: &[Recipient],
    octets: u64,
) -> Result<(Stored, Vec<u8>), SpoolError> {
    if !disk::is_id(&envelope.id) {
        return Err(SpoolError::Id(envelope.id.clone()));
    }
    let progress = Progress::default();
    let stored =
        Stored { envelope: envelope.clone(), recipients: recipients.to_vec(), octets, progress };
    let head = format::head(&stored);
    // What could not be read again would be lost at the next start.
    let kept = format::read_head(&head).map_err(SpoolError::Value)?.stored;
    if format::head(&kept) == head {
        Ok((kept, head))
    } else {
        Err(SpoolError::Value(FormatError::Value("head")))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn wide(octets: usize) -> u64 {
    u64::try_from(octets).unwrap_or(u64::MAX)
}
