//! Messages that are ours for now, on disk (SPL-1, SPL-3, SPL-6, SPL-11).
//!
//! One [file](format) for each message: what was said of it, its content, then what happened to each
//! recipient. A message is kept when [`Spool::commit`] says so: its file is written in `tmp/`, synced, moved
//! to `messages/`, and that directory synced. It leaves by [`Spool::remove`] or [`Spool::bury`] alone. What a
//! crash can leave, and what becomes of it, is the table in [`recovery`].
//!
//! No index, no times of retries, no owners: that is the queue's business. A call whose future is dropped has
//! happened or not, as a whole; of a [`Spool::commit`] that nobody waits for any more nothing is left.

mod adoption;
mod clock;
mod disk;
mod error;
mod file;
pub mod format;
mod health;
mod index;
mod line;
mod message;
mod recovery;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use self::adoption::Besides;
use self::disk::{Disk, Place};
use self::file::{Entry, LoadError, Loaded};
use self::index::{Index, Step, draw_up, lock, wide};
use crate::body::Message;
use crate::fingerprint::{self, format::Record as Print};

pub use self::clock::{millis, now};
pub use self::error::SpoolError;
pub use self::health::{Fault, Health, Trouble};
pub use self::message::{
    Envelope, Failure, Fate, Progress, Recipient, Record, Route, State, Stored, Tried,
};

/// Free octets that are left alone when messages are taken, for records and reports.
pub const RESERVE: u64 = 64 * 1024 * 1024;
/// Free inodes that are left alone for the same.
const RESERVED_INODES: u64 = 1024;
/// Octets that are written at once.
const CHUNK: usize = 64 * 1024;

/// One directory of messages, which no other process uses while this lives. Its calls may be made by any
/// number of tasks at once.
#[derive(Debug)]
pub struct Spool(Arc<Index>);

/// What came from another spool.
#[derive(Debug)]
pub struct Adopted {
    /// Messages with somebody left.
    pub messages: Vec<Stored>,
    /// How many dead letters came besides.
    pub dead: usize,
    /// How many messages were here already, by their ids.
    pub known: usize,
    /// How many files that are no messages, or not the ones that are known here, were set aside here.
    pub aside: usize,
    /// How many files are still there, be it that they cannot be read at all.
    pub left: usize,
    /// What was known of messages that may come again.
    pub prints: Vec<Print>,
    /// Why not everything came: the rest is still there. Adopting again goes on with it.
    pub failed: Option<SpoolError>,
}

impl Spool {
    /// Opens the directory, which is made if it is not there, and puts it in order. The messages with
    /// somebody left, in the order in which they came (their ids' order). `reserve` is [`RESERVE`] or as
    /// configured, in octets.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`]: another process uses it, or the disk fails.
    pub async fn open(directory: &Path, reserve: u64) -> Result<(Self, Vec<Stored>), SpoolError> {
        Self::open_with(directory, reserve, Arc::new(disk::sync)).await
    }

    async fn open_with(
        directory: &Path,
        reserve: u64,
        sync: disk::Sync,
    ) -> Result<(Self, Vec<Stored>), SpoolError> {
        let directory = directory.to_owned();
        blocking(move || {
            let disk = Arc::new(Disk::open(&directory, sync)?);
            let found = recovery::recover(&disk)?;
            let index = Index { disk, reserve, entries: Mutex::default() };
            let messages = found.messages.into_iter().map(|loaded| index.enter(loaded)).collect();
            found.dead.into_iter().for_each(|loaded| drop(index.enter(loaded)));
            Ok((Self(Arc::new(index)), messages))
        })
        .await
    }

    /// Keeps a message: durable when this is `Ok`. Its content is `header` (our trace header, CR LF-ended)
    /// and `message`. As it is after a restart: times are cut to milliseconds.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`]: it is not kept. After a failure of the disk the spool is unhealthy.
    pub async fn commit(
        &self,
        envelope: &Envelope,
        recipients: &[Recipient],
        header: &str,
        message: &Message,
    ) -> Result<Stored, SpoolError> {
        let octets = wide(header.len()).saturating_add(message.octets());
        let (stored, head) = draw_up(envelope, recipients, octets)?;
        let mut reader = message.reader();
        let mut piece = header.as_bytes().to_vec();
        let (mut draft, mut left) = (None, octets);
        loop {
            let mut more = true;
            while more && piece.len() < CHUNK {
                more = reader.read(&mut piece).await.map_err(SpoolError::Body)?;
            }
            let complete = left.checked_sub(wide(piece.len())).filter(|left| more || *left == 0);
            left =
                complete.ok_or_else(|| SpoolError::Body(std::io::ErrorKind::InvalidData.into()))?;
            let (index, stored, head) = (Arc::clone(&self.0), stored.clone(), head.clone());
            let content = std::mem::take(&mut piece);
            let step = blocking(move || index.step(draft, stored, &head, &content, more)).await?;
            match step {
                Step::More(begun) => draft = Some(begun),
                Step::Done(committed) => return committed.claim().ok_or(SpoolError::Ended),
            }
        }
    }

    /// Writes down what happened to a message, all of it or nothing; the time under which it is kept, for
    /// [`Stored::apply`]. Durable when this is `Ok` and `sync` is asked for; else at the next such call for
    /// this message, or when the system gets to it. A lost record costs an attempt, at worst a duplicate.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`]: none of it is written down.
    pub async fn append(
        &self,
        id: &str,
        records: &[Record],
        sync: bool,
    ) -> Result<SystemTime, SpoolError> {
        let (at, records) = (clock::now(), records.to_vec());
        self.with(id, move |index, id, entry| {
            file::append(&index.disk, id, entry, (clock::millis(at), &records), sync)
        })
        .await?;
        Ok(at)
    }

    /// A message's content: trace header and message. It is compared with its checksum first, since what
    /// was received is delivered or nothing; a damaged one is set aside and no longer in the spool.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`].
    pub async fn content(&self, id: &str) -> Result<Message, SpoolError> {
        self.with(id, |index, id, entry| {
            let path = index.disk.path(entry.place, id);
            match file::open_content(&path, entry) {
                Ok((file, first)) => Ok(Message::of_file(file, entry.offset, entry.octets, first)),
                Err(LoadError::Format(why)) => {
                    recovery::set_aside(&index.disk, id, entry.place, &why)?;
                    index.forget(id);
                    Err(SpoolError::Damaged { id: id.into(), why })
                }
                Err(LoadError::Disk(source)) => {
                    Err(SpoolError::Disk { doing: "read", path, source })
                }
            }
        })
        .await
    }

    /// A message as its file has it, be it a dead letter.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`].
    pub async fn read(&self, id: &str) -> Result<Stored, SpoolError> {
        self.with(id, |index, id, entry| index.read(id, entry)).await
    }

    /// Removes a message or a dead letter, durably.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`]: it is still there, as far as anybody can rely on.
    pub async fn remove(&self, id: &str) -> Result<(), SpoolError> {
        self.with(id, Index::remove).await
    }

    /// Writes down why, and keeps the message as a dead letter, durably: nobody gets it unless an operator
    /// releases it.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`].
    pub async fn bury(&self, id: &str, records: &[Record]) -> Result<SystemTime, SpoolError> {
        self.move_to(Place::Dead, id, records).await
    }

    /// Gives a dead letter another chance: those who had failed wait again.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`].
    pub async fn release(&self, id: &str) -> Result<Stored, SpoolError> {
        self.move_to(Place::Messages, id, &[Record::Released]).await?;
        self.read(id).await
    }

    async fn move_to(
        &self,
        place: Place,
        id: &str,
        records: &[Record],
    ) -> Result<SystemTime, SpoolError> {
        let (at, records) = (clock::now(), records.to_vec());
        self.with(id, move |index, id, entry| {
            file::append(&index.disk, id, entry, (clock::millis(at), &records), true)?;
            if entry.place != place {
                index.disk.rename(id, entry.place, place)?;
                entry.place = place;
            }
            Ok(at)
        })
        .await
    }

    /// The dead letters, the oldest first. One that cannot be read is left out, with a line in the log.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`].
    pub async fn dead(&self) -> Result<Vec<Stored>, SpoolError> {
        let index = Arc::clone(&self.0);
        blocking(move || {
            let entries: Vec<_> =
                index.entries().iter().map(|(id, e)| (id.clone(), Arc::clone(e))).collect();
            let mut dead = Vec::new();
            for (id, entry) in entries {
                let entry = lock(&entry);
                if entry.place == Place::Dead {
                    match index.read(&id, &entry) {
                        Ok(stored) => dead.push(stored),
                        Err(error) => {
                            tracing::warn!(id = &*id, %error, "a dead letter cannot be read");
                        }
                    }
                }
            }
            dead.sort_unstable_by(|one, other| one.id().cmp(other.id()));
            Ok(dead)
        })
        .await
    }

    /// How many files were set aside since they cannot be read.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`].
    pub async fn corrupt(&self) -> Result<usize, SpoolError> {
        let path = self.0.disk.base().join("corrupt");
        blocking(move || {
            let failed = |source| SpoolError::Disk { doing: "list", path: path.clone(), source };
            Ok(std::fs::read_dir(&path).map_err(failed)?.count())
        })
        .await
    }

    /// Takes over the spool of another process, which must have ended: its lock is taken. Its messages, dead
    /// letters and what it had set aside are moved here. `taken` is told of each message with somebody left as
    /// soon as it is here, also when nobody waits for this call any more.
    ///
    /// # Errors
    ///
    /// A [`SpoolError`]: nothing was taken over.
    pub async fn adopt(
        &self,
        directory: &Path,
        taken: impl Fn(&Stored) + Send + 'static,
    ) -> Result<Adopted, SpoolError> {
        let (index, directory) = (Arc::clone(&self.0), directory.to_owned());
        blocking(move || {
            index.disk.admit()?;
            let other = Arc::new(index.disk.open_other(&directory)?);
            let found = recovery::recover(&other)?;
            let (mut messages, mut dead, mut besides) = (Vec::new(), 0_usize, Besides::default());
            let place = |id: &str| index.entry(id).map(|entry| lock(&entry).place);
            let enter = |loaded: Loaded| {
                let is_dead = loaded.entry.place == Place::Dead;
                let stored = index.enter(loaded);
                if is_dead {
                    dead = dead.saturating_add(1);
                } else {
                    taken(&stored);
                    messages.push(stored);
                }
            };
            let adopted =
                adoption::adopt(&index.disk, &other, found, place, enter, &mut besides);
            let left = [Place::Messages, Place::Dead].map(|place| other.names(place));
            let left = left.iter().flatten().map(Vec::len).sum();
            let prints = fingerprint::take(other.base()).unwrap_or_else(|error| {
                let spool = directory.display();
                tracing::warn!(%spool, %error, "fingerprints cannot be taken over: what was delivered may be again");
                Vec::new()
            });
            let Besides { known, aside } = besides;
            Ok(Adopted { messages, dead, known, aside, left, prints, failed: adopted.err() })
        })
        .await
    }

    /// Whether it takes messages. While it does not, asking makes it try again from time to time, behind the
    /// scenes.
    pub fn health(&self) -> Health {
        let disk = &self.0.disk;
        if let Ok(runtime) = Handle::try_current()
            && disk.condition.take_turn_to_probe()
        {
            let disk = Arc::clone(disk);
            runtime.spawn_blocking(move || disk.probe());
        }
        disk.condition.health()
    }

    /// True when it is well and so many octets fit beside the reserve and all that is being written.
    pub fn has_room_for(&self, octets: u64) -> bool {
        if self.health() != Health::Well {
            return false;
        }
        let Ok(disk) = rustix::fs::statvfs(self.0.disk.base()) else { return false };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let pending = self.0.disk.pending.load(Ordering::Relaxed);
        let wanted = octets.saturating_add(pending).saturating_add(self.0.reserve);
        // Some file systems make inodes as they need them, and say 0.
        let inodes = disk.f_files == 0 || disk.f_favail >= RESERVED_INODES;
        inodes && free >= wanted
    }

    /// Does something to a message's file, while nobody else does.
    async fn with<T: Send + 'static>(
        &self,
        id: &str,
        work: impl FnOnce(&Arc<Index>, &str, &mut Entry) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let (index, id) = (Arc::clone(&self.0), Box::<str>::from(id));
        blocking(move || {
            let entry = index.entry(&id).ok_or_else(|| SpoolError::Unknown(id.clone()))?;
            let mut entry = lock(&entry);
            // It may have been removed while this waited.
            if index.entry(&id).is_none() {
                return Err(SpoolError::Unknown(id));
            }
            work(&index, &id, &mut entry)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        Err(_) => Err(SpoolError::Ended),
    }
}
