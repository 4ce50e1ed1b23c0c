//! What is found in a spool's directory when a process begins to use it (SPL-1, SPL-6).
//!
//! | found | done | why |
//! |---|---|---|
//! | a file in `tmp/` | removed | nobody was told that it is kept |
//! | the beginning of a record at the end | cut off | nobody relies on it; a later record must not stand behind it |
//! | other damage behind an intact content | copied to `corrupt/`; written anew with what can be read | a recipient whose delivery is no longer known gets it again: a duplicate, no loss (P9) |
//! | a damaged head or seal, a newer version | moved to `corrupt/` | it cannot be delivered; never deleted |
//! | a message with nobody left | removed, or moved to `dead/` | the process ended before it did that |
//! | a file that cannot be read at all | left alone | the disk may be better tomorrow |
//!
//! A damaged content is found when it is read for a delivery: reading everything at start would take long.

use std::fs;
use std::sync::Arc;

use super::disk::{self, Disk, Place};
use super::error::SpoolError;
use super::file::{self, LoadError, Loaded};
use super::format::{FormatError, Rest};

/// What was found, in order of their ids: those of version 7 are ordered by time.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Messages with somebody left.
    pub messages: Vec<Loaded>,
    /// Dead letters.
    pub dead: Vec<Loaded>,
}

/// Puts a spool's directories in order.
///
/// # Errors
///
/// A [`SpoolError`]: the disk does not let us.
pub(super) fn recover(disk: &Arc<Disk>) -> Result<Found, SpoolError> {
    for name in disk.names(Place::Temporary)? {
        disk.remove(&name, Place::Temporary)?;
    }
    let mut found = Found::default();
    for mut loaded in recover_place(disk, Place::Messages)? {
        let id = loaded.stored.id();
        if loaded.stored.is_open() {
            found.messages.push(loaded);
        } else if loaded.stored.has_dead() {
            disk.rename(id, Place::Messages, Place::Dead)?;
            loaded.entry.place = Place::Dead;
            found.dead.push(loaded);
        } else {
            disk.remove(id, Place::Messages)?;
        }
    }
    found.dead.extend(recover_place(disk, Place::Dead)?);
    Ok(found)
}

fn recover_place(disk: &Arc<Disk>, place: Place) -> Result<Vec<Loaded>, SpoolError> {
    let mut found = Vec::new();
    for name in disk.names(place)? {
        if !disk::is_id(&name) {
            tracing::warn!(name, "a file in the spool that is not ours");
            continue;
        }
        match file::load(disk, &name, place) {
            Ok(loaded) => found.extend(mended(disk, loaded)?),
            Err(LoadError::Format(why)) => set_aside(disk, &name, place, &why)?,
            Err(LoadError::Disk(error)) => {
                tracing::error!(id = name, %error, "a message in the spool cannot be read: left alone");
            }
        }
    }
    Ok(found)
}

/// A message in whose file only records follow the content; `None` when it had to be set aside.
fn mended(disk: &Arc<Disk>, mut loaded: Loaded) -> Result<Option<Loaded>, SpoolError> {
    let (id, place) = (loaded.stored.id().to_owned(), loaded.entry.place);
    match loaded.rest {
        Rest::Nothing => {}
        Rest::Torn => {
            tracing::warn!(id, "the last record of a message was not finished: cut off");
            file::truncate(disk, &id, &loaded.entry)?;
        }
        Rest::Damaged => {
            let path = disk.path(place, &id);
            let aside = disk.free_aside(&path);
            let linked = fs::hard_link(&path, &aside);
            disk.noted("set aside", &path, linked)?;
            disk.sync_names(Place::Corrupt)?;
            tracing::error!(id, copy = %aside.display(),
                "records of a message are damaged: who got it may get it again");
            if !file::rewrite(disk, &mut loaded)? {
                // The copy is already there.
                disk.remove(&id, place)?;
                return Ok(None);
            }
        }
    }
    loaded.rest = Rest::Nothing;
    Ok(Some(loaded))
}

/// Moves a file that cannot be delivered where somebody will look at it.
///
/// # Errors
///
/// A [`SpoolError`].
pub(super) fn set_aside(
    disk: &Disk,
    id: &str,
    place: Place,
    why: &FormatError,
) -> Result<(), SpoolError> {
    let aside = disk.set_aside(&disk.path(place, id))?;
    tracing::error!(id, %why, path = %aside.display(),
        "a message in the spool cannot be read: set aside; its recipients have not got it");
    Ok(())
}
