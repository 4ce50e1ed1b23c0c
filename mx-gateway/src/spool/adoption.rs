//! Taking over the spool of a process that is gone (SPL-11).
//!
//! Its directory is locked and put in order as at a start. Then each file is moved, or, to another file
//! system, copied, made durable and removed there. So at every moment each message is in one of the two, or in
//! both; in both it is one message, by its id, and what this spool knows of it counts.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, Place};
use super::error::SpoolError;
use super::file::{CHUNK, Loaded};
use super::recovery::Found;

/// What was not taken as a message.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Besides {
    /// Messages that were here already.
    pub known: usize,
    /// Files that were moved to `corrupt/` here.
    pub aside: usize,
}

/// Moves everything in `other` to `ours`, tells `each` of every message, and counts in `besides` what is none
/// that is new. `place_here` says where the message of an id stands here.
///
/// # Errors
///
/// A [`SpoolError`]: the rest is still there.
pub(super) fn adopt(
    ours: &Arc<Disk>,
    other: &Disk,
    found: Found,
    place_here: impl Fn(&str) -> Option<Place>,
    mut each: impl FnMut(Loaded),
    besides: &mut Besides,
) -> Result<(), SpoolError> {
    for loaded in found.messages.into_iter().chain(found.dead) {
        let (id, place) = (loaded.stored.id(), loaded.entry.place);
        let there = other.path(place, id);
        match place_here(id) {
            None => {
                bring(ours, (other, place, id), (place, id))?;
                each(loaded);
            }
            Some(here) if is_beginning(&there, &ours.path(here, id)).unwrap_or(false) => {
                tracing::info!(id, "a message was adopted before: what is known of it here counts");
                other.remove(id, place)?;
                besides.known = besides.known.saturating_add(1);
            }
            Some(_) => {
                let aside = bring_aside(ours, (other, place, id))?;
                besides.aside = besides.aside.saturating_add(1);
                tracing::error!(id, path = %aside.display(),
                    "a message is in both spools, and something happened to it in the other one since: that \
                     one was set aside; it is delivered from here");
            }
        }
    }
    for name in other.names(Place::Corrupt)? {
        bring_aside(ours, (other, Place::Corrupt, &name))?;
        besides.aside = besides.aside.saturating_add(1);
    }
    Ok(())
}

/// Moves a file beside what has its name in our `corrupt/`; its path there.
fn bring_aside(ours: &Arc<Disk>, from: (&Disk, Place, &str)) -> Result<PathBuf, SpoolError> {
    let (other, place, name) = from;
    let aside = ours.free_aside(&other.path(place, name));
    let new_name = aside.file_name().unwrap_or_default().to_string_lossy();
    bring(ours, from, (Place::Corrupt, &new_name))?;
    Ok(aside)
}

/// Moves a file durably, be it to another file system.
fn bring(
    ours: &Arc<Disk>,
    (other, from, name): (&Disk, Place, &str),
    (to, new_name): (Place, &str),
) -> Result<(), SpoolError> {
    let (old, new) = (other.path(from, name), ours.path(to, new_name));
    match fs::rename(&old, &new) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            copy(ours, &old, to, new_name)?;
            other.remove(name, from)
        }
        Err(source)
            if matches!(
                source.kind(),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            // Nothing is known by that of our own disk.
            Err(SpoolError::Disk { doing: "adopt", path: old, source })
        }
        moved => {
            ours.noted("adopt", &old, moved)?;
            ours.sync_names(to)?;
            other.sync_names(from)
        }
    }
}

/// Copies a file of another file system durably.
fn copy(ours: &Arc<Disk>, old: &Path, to: Place, name: &str) -> Result<(), SpoolError> {
    let fails = |source| SpoolError::Disk { doing: "read", path: old.to_owned(), source };
    let mut file = File::open(old).map_err(fails)?;
    let octets = file.metadata().map_err(fails)?.len();
    let mut draft = ours.draft(name, octets)?;
    let mut piece = Vec::new();
    while file.by_ref().take(CHUNK).read_to_end(&mut piece).map_err(fails)? > 0 {
        draft.frame(&piece)?;
        piece.clear();
    }
    draft.finish(name, to)?;
    Ok(())
}

/// True when one file's octets are those with which another begins.
fn is_beginning(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut piece, mut same) = (Vec::new(), Vec::new());
    while one.by_ref().take(CHUNK).read_to_end(&mut piece)? > 0 {
        let octets = u64::try_from(piece.len()).unwrap_or(CHUNK);
        other.by_ref().take(octets).read_to_end(&mut same)?;
        if piece != same {
            return Ok(false);
        }
        piece.clear();
        same.clear();
    }
    Ok(true)
}
