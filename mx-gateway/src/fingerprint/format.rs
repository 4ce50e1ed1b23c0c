//! Fingerprints as octets. No files here.
//!
//! ```text
//! mailshift fingerprints 1\n                     the format's version
//! CRC32C MILLIS ID FINGERPRINT\n ...             records, as they came
//! ```
//!
//! CRC32C is that of what follows it in its line, eight hexadecimal digits; MILLIS is UNIX time, fifteen decimal
//! digits; ID is the message's. A line that cannot be read hides no later one.

use std::fmt::Write;

use uuid::Uuid;

use super::Fingerprint;

/// The first line. Its number is one more for everything that this version cannot read.
const MAGIC: &str = "mailshift fingerprints 1\n";
/// Digits of a checksum.
const CRC: usize = 8;
/// Digits of a time: until the year 33658.
const MILLIS: usize = 15;
/// Octets of a record.
pub const RECORD: usize = CRC + 1 + MILLIS + 1 + 32 + 1 + 64 + 1;

/// A message for a recipient, and when that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Which.
    pub print: Fingerprint,
    /// The message's id, as the log has it.
    pub id: Uuid,
    /// When, in UNIX milliseconds.
    pub at: u64,
}

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The records, in their order.
    pub records: Vec<Record>,
    /// Lines that are no records.
    pub damaged: usize,
    /// The end was not written to its end, as a crash leaves it.
    pub torn: bool,
}

/// The octets do not begin as fingerprints of this version do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("these are no fingerprints of version 1 of the format")]
pub struct NotFingerprints;

/// Reads a file. An empty one has none.
///
/// # Errors
///
/// [`NotFingerprints`].
pub fn read(octets: &[u8]) -> Result<Found, NotFingerprints> {
    let mut found = Found::default();
    let Some(lines) = octets.strip_prefix(MAGIC.as_bytes()) else {
        // It was cut before its first line was whole.
        found.torn = !octets.is_empty();
        return MAGIC.as_bytes().starts_with(octets).then_some(found).ok_or(NotFingerprints);
    };
    for line in lines.split_inclusive(|octet| *octet == b'\n') {
        match line.strip_suffix(b"\n") {
            None => found.torn = true,
            Some(line) => match record(line) {
                Some(record) => found.records.push(record),
                None => found.damaged = found.damaged.saturating_add(1),
            },
        }
    }
    Ok(found)
}

/// A whole file with these records.
pub fn write(records: &[Record]) -> Vec<u8> {
    let mut octets = MAGIC.as_bytes().to_vec();
    octets.extend(lines(records));
    octets
}

/// What is appended for these records.
pub fn lines(records: &[Record]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(records.len().saturating_mul(RECORD));
    for Record { print, id, at } in records {
        let mut rest = format!(" {at:0MILLIS$} {} ", id.simple());
        print.0.iter().for_each(|octet| _ = write!(rest, "{octet:02x}"));
        octets.extend(format!("{:08x}{rest}\n", crc32c::crc32c(rest.as_bytes())).into_bytes());
    }
    octets
}

fn record(line: &[u8]) -> Option<Record> {
    let line = std::str::from_utf8(line).ok()?;
    let (crc, rest) = line.split_at_checked(CRC)?;
    let mut words = rest.strip_prefix(' ')?.split(' ');
    let (at, id, print) = (words.next()?, words.next()?, words.next()?);
    let widths = [at.len(), id.len(), print.len()] == [MILLIS, 32, 64] && words.next().is_none();
    if !widths || u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(rest.as_bytes()) {
        return None;
    }
    let mut octets = [0; 32];
    for (octet, digits) in octets.iter_mut().zip(print.as_bytes().chunks_exact(2)) {
        *octet = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    let print = Fingerprint(octets);
    Some(Record { print, id: Uuid::try_parse(id).ok()?, at: at.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let record = |n: u8| Record {
            print: Fingerprint([n; 32]),
            id: Uuid::from_u128(u128::from(n) << 64 | 7),
            at: 1_795_000_000_000 + u64::from(n),
        };
        (0..5).map(record).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let file = write(&records());
        assert_eq!(file.len(), MAGIC.len() + 5 * RECORD);
        let whole = Found { records: records(), damaged: 0, torn: false };
        assert_eq!(read(&file), Ok(whole));
        assert_eq!(read(b""), Ok(Found::default()));
    }

    #[test]
    fn wherever_a_file_is_cut_the_records_before_are_read() {
        let file = write(&records());
        for length in 0..file.len() {
            let found = read(&file[..length]).unwrap();
            let whole = length.saturating_sub(MAGIC.len()) / RECORD;
            assert_eq!(found.records, records()[..whole], "{length}");
            let ends_whole = length >= MAGIC.len() && (length - MAGIC.len()).is_multiple_of(RECORD);
            assert_eq!(found.torn, !(ends_whole || length == 0), "{length}");
            assert_eq!(found.damaged, 0, "{length}");
        }
    }

    #[test]
    fn a_damaged_record_hides_no_other_and_is_never_taken_for_one() {
        let file = write(&records());
        let third = MAGIC.len() + 2 * RECORD..MAGIC.len() + 3 * RECORD;
        for at in third {
            for flips in [1, 0x20, 0x80] {
                let mut damaged = file.clone();
                damaged[at] ^= flips;
                let found = read(&damaged).unwrap();
                let mut rest = records();
                rest.remove(2);
                // A line without its end takes the next with it.
                let next_lost = damaged[at] != file[at] && file[at] == b'\n';
                if next_lost {
                    rest.remove(2);
                }
                // A checksum is as good in capitals.
                if found.records != records() {
                    assert_eq!(found.records, rest, "{at} {flips}");
                    assert!(found.damaged > 0, "{at} {flips}");
                }
            }
        }
    }

    #[test]
    fn what_is_something_else_or_newer_is_not_read() {
        for other in ["mailshift fingerprints 2\n", "x", "mailshift spool 1\n"] {
            assert_eq!(read(other.as_bytes()), Err(NotFingerprints), "{other}");
        }
    }
}
