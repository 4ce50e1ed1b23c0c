//! One message's file: read as a whole but for its content, checked, appended to. Every call here blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::disk::{Depth, Disk, Place};
use super::error::SpoolError;
use super::format::{self, FormatError, Head, Rest, Tail};
use super::message::{Record, Stored};

/// Octets read at once.
pub(super) const CHUNK: u64 = 64 * 1024;
/// Most octets behind a content: records of years.
const MAX_TAIL: u64 = 256 * 1024 * 1024;

/// What is known of a message's file, in memory.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where it stands.
    pub place: Place,
    /// Where its content begins.
    pub offset: u64,
    /// Octets of its content.
    pub octets: u64,
    /// The content's checksum.
    pub crc: u32,
    /// Where the next record is written.
    pub end: u64,
    /// Recipients, of which the next takes the place that follows.
    pub recipients: usize,
    /// Something may stand behind `end`, or may not be on the disk: a write has failed.
    pub uncertain: bool,
}

/// A file that was read.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The message.
    pub stored: Stored,
    /// Its file.
    pub entry: Entry,
    /// What stands where a record should be.
    pub rest: Rest,
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// It is no message.
    #[error(transparent)]
    Format(#[from] FormatError),
}

fn wide(octets: usize) -> u64 {
    u64::try_from(octets).unwrap_or(u64::MAX)
}

/// Reads the message `id` in `place`, all but its content.
pub(super) fn load(disk: &Disk, id: &str, place: Place) -> Result<Loaded, LoadError> {
    let path = disk.path(place, id);
    // Opening a pipe would wait for somebody who writes to it.
    if !std::fs::metadata(&path)?.is_file() {
        return Err(io::Error::other("it is no file").into());
    }
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let (mut stored, offset) = load_head(&file, length)?;
    if stored.id() != id {
        return Err(FormatError::Value("id").into());
    }
    let octets = stored.octets;
    let seal = offset.checked_add(octets).filter(|seal| *seal < length).ok_or(FormatError::Cut)?;
    if length.saturating_sub(seal) > MAX_TAIL {
        return Err(FormatError::Damaged("tail").into());
    }
    let tail = read_at(&file, seal, length.saturating_sub(seal))?;
    let Tail { crc, length: records, rest } = format::replay(&tail, &mut stored)?;
    let end = seal.saturating_add(wide(records));
    let recipients = stored.recipients.len();
    let entry = Entry { place, offset, octets, crc, end, recipients, uncertain: false };
    Ok(Loaded { stored, entry, rest })
}

/// Reads a head; where the content begins.
fn load_head(file: &File, length: u64) -> Result<(Stored, u64), LoadError> {
    let prefix = read_at(file, 0, length.min(wide(format::PREFIX)))?;
    let head = wide(format::head_length(&prefix)?);
    let head = read_at(file, 0, length.min(head))?;
    let Head { stored, length } = format::read_head(&head)?;
    Ok((stored, wide(length)))
}

fn read_at(file: &File, offset: u64, octets: u64) -> io::Result<Vec<u8>> {
    let mut read = vec![0; usize::try_from(octets).map_err(io::Error::other)?];
    file.read_exact_at(&mut read, offset)?;
    Ok(read)
}

/// Opens a message's content and compares it with its checksum, so that nobody gets what was not received.
/// Also its first octet.
pub(super) fn open_content(path: &Path, entry: &Entry) -> Result<(File, Option<u8>), LoadError> {
    let file = File::open(path)?;
    let (mut first, mut crc) = (None, 0);
    for piece in pieces(&file, entry) {
        let piece = piece?;
        first = first.or_else(|| piece.first().copied());
        crc = crc32c::crc32c_append(crc, &piece);
    }
    if crc != entry.crc {
        return Err(FormatError::Damaged("content").into());
    }
    Ok((file, first))
}

/// The content, piece by piece.
fn pieces(file: &File, entry: &Entry) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let end = entry.offset.saturating_add(entry.octets);
    let mut at = entry.offset;
    std::iter::from_fn(move || {
        let octets = end.saturating_sub(at).min(CHUNK);
        at = at.saturating_add(octets);
        (octets > 0).then(|| read_at(file, at.saturating_sub(octets), octets))
    })
}

/// Writes a message anew, as it is now, with its records' outcome in its head and none behind it. False when
/// its content is damaged; nothing was written then.
pub(super) fn rewrite(disk: &Arc<Disk>, loaded: &mut Loaded) -> Result<bool, SpoolError> {
    let Loaded { stored, entry, .. } = loaded;
    let path = disk.path(entry.place, stored.id());
    let fails = |source| SpoolError::Disk { doing: "read", path: path.clone(), source };
    let file = File::open(&path).map_err(fails)?;
    let mut draft = disk.draft(stored.id(), entry.octets)?;
    let head = format::head(stored);
    draft.frame(&head)?;
    for piece in pieces(&file, entry) {
        draft.content(&piece.map_err(fails)?)?;
    }
    if draft.crc() != entry.crc {
        return Ok(false);
    }
    draft.seal()?;
    entry.end = draft.replace(stored.id(), entry.place)?;
    entry.offset = wide(head.len());
    entry.recipients = stored.recipients.len();
    Ok(true)
}

/// Cuts off what stands behind the last record.
pub(super) fn truncate(disk: &Disk, id: &str, entry: &Entry) -> Result<(), SpoolError> {
    let path = disk.path(entry.place, id);
    let file = disk.noted("open", &path, OpenOptions::new().write(true).open(&path))?;
    disk.noted("truncate", &path, file.set_len(entry.end))?;
    disk.sync(&file, Depth::All, &path)
}

/// Appends records that are written at `millis`. When that fails, none of them is there: what was written is
/// cut off before the next ones.
pub(super) fn append(
    disk: &Disk,
    id: &str,
    entry: &mut Entry,
    (millis, records): (u64, &[Record]),
    sync: bool,
) -> Result<(), SpoolError> {
    let mut octets = Vec::new();
    let mut recipients = entry.recipients;
    for record in records {
        octets.extend(format::record(millis, record, recipients).map_err(SpoolError::Value)?);
        recipients = recipients.saturating_add(usize::from(matches!(record, Record::Added(_))));
    }
    let path = disk.path(entry.place, id);
    let file = disk.noted("open", &path, OpenOptions::new().write(true).open(&path))?;
    if entry.uncertain {
        disk.noted("truncate", &path, file.set_len(entry.end))?;
    }
    entry.uncertain = true;
    disk.noted("write", &path, file.write_all_at(&octets, entry.end))?;
    if sync {
        disk.sync(&file, Depth::Data, &path)?;
    }
    entry.uncertain = false;
    entry.end = entry.end.saturating_add(wide(octets.len()));
    entry.recipients = recipients;
    Ok(())
}
