//! A spooled message as octets (SPL-1, SPL-3). No files here.
//!
//! ```text
//! mailshift spool 1\n                       the format's version
//! LENGTH CRC32C JSON\n                      the head: envelope, first recipients, length of the content
//! our trace header and the message, as they are
//! LENGTH CRC32C JSON\n                      the seal: the content's CRC32C; the message is whole
//! LENGTH CRC32C JSON\n ...                  records, as they happened
//! ```
//!
//! LENGTH and CRC32C are those of the JSON, eight hexadecimal digits each; there is no line end in JSON. So a
//! record that cannot be read hides no later one, and the whole can be looked at with `less`.

use std::collections::BTreeMap;

use super::clock;
use super::line::{HeadLine, SealLine, What};
use super::message::{Recipient, Record, Stored};

/// The first line without its version.
const MAGIC: &str = "mailshift spool ";
/// The version written here. One more for everything that this version cannot read.
const VERSION: u32 = 1;
/// Longest JSON of one line in octets: some ten thousand recipients.
const MAX_LINE: usize = 8 * 1024 * 1024;
/// `LENGTH CRC32C ` before the JSON.
const FRAME: usize = 18;
/// The octets from which [`head_length`] is known.
pub(super) const PREFIX: usize = 64;

/// Why octets are no spooled message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They end before the message does.
    #[error("it is cut off")]
    Cut,
    /// They do not begin as one.
    #[error("it is no spooled message")]
    Magic,
    /// A newer version wrote them.
    #[error("it is of version {0} of the format, and this is version {VERSION}")]
    Version(u32),
    /// The head or the seal is damaged.
    #[error("its {0} is damaged")]
    Damaged(&'static str),
    /// The head is whole, but says something that cannot be.
    #[error("its {0} makes no sense")]
    Value(&'static str),
}

/// What stands before the content.
#[derive(Debug)]
pub(super) struct Head {
    /// The message, before its records.
    pub stored: Stored,
    /// Octets of the head: where the content begins.
    pub length: usize,
}

/// What stands behind the content.
#[derive(Debug)]
pub(super) struct Tail {
    /// The content's checksum.
    pub crc: u32,
    /// Octets up to the last record that can be read.
    pub length: usize,
    /// What stands behind that, and between.
    pub rest: Rest,
}

/// What is found where a record should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing but records.
    Nothing,
    /// The beginning of a record, as a crash leaves it: it was not finished, so nobody relies on it.
    Torn,
    /// Something else. Records are missing.
    Damaged,
}

/// A message that was read from octets.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    /// The message.
    pub stored: Stored,
    /// Its content.
    pub content: Vec<u8>,
    /// Every octet behind the content belongs to a record.
    pub is_tidy: bool,
}

/// Reads a whole file: what [`super::Spool`] does piece by piece.
///
/// # Errors
///
/// A [`FormatError`].
pub fn parse(octets: &[u8]) -> Result<Whole, FormatError> {
    let Head { mut stored, length } = read_head(octets)?;
    let content = usize::try_from(stored.octets).ok().and_then(|octets| octets.checked_add(length));
    let content = content.ok_or(FormatError::Cut)?;
    let (content, tail) = octets.split_at_checked(content).ok_or(FormatError::Cut)?;
    let content = content.get(length..).unwrap_or_default().to_vec();
    let tail = replay(tail, &mut stored)?;
    if crc32c::crc32c(&content) != tail.crc {
        return Err(FormatError::Damaged("content"));
    }
    Ok(Whole { stored, content, is_tidy: tail.rest == Rest::Nothing })
}

/// A whole file: `stored` as it was before these records, which were written at those times (UNIX
/// milliseconds).
///
/// # Errors
///
/// A [`FormatError`]: it would not be read as what it is.
pub fn write(
    stored: &Stored,
    content: &[u8],
    records: &[(u64, Record)],
) -> Result<Vec<u8>, FormatError> {
    let mut octets = head(stored);
    octets.extend_from_slice(content);
    octets.extend(seal(crc32c::crc32c(content)));
    let mut places = stored.recipients.len();
    for (millis, what) in records {
        octets.extend(record(*millis, what, places)?);
        places = places.saturating_add(usize::from(matches!(what, Record::Added(_))));
    }
    Ok(octets)
}

/// The head of a message's file.
pub(super) fn head(stored: &Stored) -> Vec<u8> {
    let mut octets = format!("{MAGIC}{VERSION}\n").into_bytes();
    octets.extend(frame(&HeadLine::of(stored)));
    octets
}

/// The seal behind a content of that checksum.
pub(super) fn seal(crc: u32) -> Vec<u8> {
    frame(&SealLine { crc32c: crc })
}

/// A record that is written at that time (milliseconds). `place` is that of the next recipient.
///
/// # Errors
///
/// [`FormatError::Value`]: it would not be read as what it is.
pub(super) fn record(millis: u64, record: &Record, place: usize) -> Result<Vec<u8>, FormatError> {
    let what = What::of(record, place);
    match what.restore() {
        Some(restored) if restored == *record => Ok(frame(&(millis, what))),
        Some(_) | None => Err(FormatError::Value("record")),
    }
}

fn frame(line: &impl serde::Serialize) -> Vec<u8> {
    // Only maps with keys that are no strings, or failing types, cannot be written; there are none.
    let json = serde_json::to_string(line).unwrap_or_default();
    format!("{:08x} {:08x} {json}\n", json.len(), crc32c::crc32c(json.as_bytes())).into_bytes()
}

/// The length of the head that begins with these octets ([`PREFIX`] of them, or all there are).
///
/// # Errors
///
/// A [`FormatError`].
pub(super) fn head_length(octets: &[u8]) -> Result<usize, FormatError> {
    let at = first_line(octets)?;
    let rest = octets.get(at..).unwrap_or_default();
    let json = rest
        .get(..8)
        .ok_or(FormatError::Cut)
        .and_then(|digits| hexadecimal(digits).ok_or(FormatError::Damaged("head")))?;
    let json = usize::try_from(json).unwrap_or(usize::MAX);
    if json > MAX_LINE {
        return Err(FormatError::Damaged("head"));
    }
    // The line end, too.
    Ok(at.saturating_add(FRAME).saturating_add(json).saturating_add(1))
}

/// Reads the version; where the second line begins.
fn first_line(octets: &[u8]) -> Result<usize, FormatError> {
    let start = octets.get(..octets.len().min(PREFIX)).unwrap_or_default();
    let Some(end) = memchr::memchr(b'\n', start) else {
        let begun = MAGIC.as_bytes();
        let short = start.len() < PREFIX && (begun.starts_with(start) || start.starts_with(begun));
        return Err(if short { FormatError::Cut } else { FormatError::Magic });
    };
    let line = start.get(..end).and_then(|line| std::str::from_utf8(line).ok());
    let version = line.and_then(|line| line.strip_prefix(MAGIC)).ok_or(FormatError::Magic)?;
    match version.parse() {
        Ok(VERSION) => Ok(end.saturating_add(1)),
        Ok(version) if version > VERSION => Err(FormatError::Version(version)),
        Ok(_) | Err(_) => Err(FormatError::Magic),
    }
}

/// Reads a head; what follows it does not matter.
///
/// # Errors
///
/// A [`FormatError`].
pub(super) fn read_head(octets: &[u8]) -> Result<Head, FormatError> {
    let at = first_line(octets)?;
    let length = head_length(octets)?;
    let line = octets.get(at..length).ok_or(FormatError::Cut)?;
    let json = unframe(line).ok_or(FormatError::Damaged("head"))?;
    let line: HeadLine = serde_json::from_slice(json).map_err(|_| FormatError::Value("head"))?;
    Ok(Head { stored: line.restore().map_err(FormatError::Value)?, length })
}

/// Reads what stands behind the content, and lets the message undergo its records.
///
/// # Errors
///
/// A [`FormatError`]: the message has no seal.
pub(super) fn replay(octets: &[u8], stored: &mut Stored) -> Result<Tail, FormatError> {
    let end = memchr::memchr(b'\n', octets).ok_or(FormatError::Cut)?.saturating_add(1);
    let line = octets.get(..end).and_then(unframe).ok_or(FormatError::Damaged("seal"))?;
    let SealLine { crc32c: crc } =
        serde_json::from_slice(line).map_err(|_| FormatError::Value("seal"))?;
    let mut recipients: BTreeMap<usize, Recipient> =
        std::mem::take(&mut stored.recipients).into_iter().enumerate().collect();
    let (mut at, mut length, mut rest) = (end, end, Rest::Nothing);
    for line in octets.get(end..).unwrap_or_default().split_inclusive(|octet| *octet == b'\n') {
        at = at.saturating_add(line.len());
        match read_record(line) {
            Some((millis, what)) => {
                // Something unreadable stood before this: it was no crash.
                rest = if length.saturating_add(line.len()) == at { rest } else { Rest::Damaged };
                length = at;
                if !undergo(stored, &mut recipients, millis, &what) {
                    rest = Rest::Damaged;
                }
            }
            None if rest == Rest::Nothing && is_torn(line, at == octets.len()) => rest = Rest::Torn,
            None => rest = Rest::Damaged,
        }
    }
    // Recipients that were added in records that cannot be read leave gaps; places are counted anew then.
    let gaps = recipients.keys().enumerate().any(|(place, key)| place != *key);
    if gaps {
        rest = Rest::Damaged;
    }
    stored.recipients = recipients.into_values().collect();
    Ok(Tail { crc, length, rest })
}

/// A crash leaves the beginning of a record, or room that was never written to, at the very end. A line
/// that is as long as it says, with its end, is neither.
fn is_torn(line: &[u8], is_last: bool) -> bool {
    let json = line.get(..8).and_then(hexadecimal).and_then(|length| usize::try_from(length).ok());
    let is_short = json.is_none_or(|json| line.len() <= json.saturating_add(FRAME));
    is_last && is_short && line.last() != Some(&b'\n')
}

fn read_record(line: &[u8]) -> Option<(u64, What)> {
    serde_json::from_slice(unframe(line)?).ok()
}

/// The JSON of a line, if it is what was written.
fn unframe(line: &[u8]) -> Option<&[u8]> {
    let (frame, rest) = line.split_at_checked(FRAME)?;
    let json = rest.strip_suffix(b"\n")?;
    let (length, crc) = (hexadecimal(frame.get(..8)?)?, hexadecimal(frame.get(9..17)?)?);
    let spaced = frame.get(8) == Some(&b' ') && frame.get(17) == Some(&b' ');
    let whole = usize::try_from(length) == Ok(json.len()) && crc32c::crc32c(json) == crc;
    (spaced && whole).then_some(json)
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    let written = |octet: &u8| matches!(octet, b'0'..=b'9' | b'a'..=b'f');
    let digits = digits.iter().all(written).then(|| std::str::from_utf8(digits).ok())??;
    u32::from_str_radix(digits, 16).ok()
}

/// Lets the message and its recipients, by their places, undergo a record; false when that cannot be.
fn undergo(
    stored: &mut Stored,
    recipients: &mut BTreeMap<usize, Recipient>,
    millis: u64,
    what: &What,
) -> bool {
    if let What::Added { place, recipient } = what {
        let Some(recipient) = recipient.restore() else { return false };
        return recipients.insert(*place, recipient).is_none();
    }
    let Some(record) = what.restore() else { return false };
    let at = clock::time(millis);
    match record.recipient() {
        Some(place) => match recipients.get_mut(&place) {
            Some(recipient) => recipient.undergo(&record, at),
            None => return false,
        },
        None => recipients.values_mut().for_each(|recipient| recipient.undergo(&record, at)),
    }
    stored.progress.undergo(&record, at);
    true
}
