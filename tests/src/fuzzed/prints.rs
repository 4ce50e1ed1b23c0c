//! The file of fingerprints: what is read from any octets, and what remains of a good file that was damaged.

use mx_gateway::fingerprint::Fingerprint;
use mx_gateway::fingerprint::format::{self, Record};
use uuid::Uuid;

/// Any octets are read without harm, and as what they say. Read as a recipe (how many records, then damages),
/// they make a good file; damaged, it has no record that it had not: nobody is taken to have what he has not.
pub(super) fn fingerprint_file(octets: &[u8]) {
    if let Ok(found) = format::read(octets) {
        let again = format::read(&format::write(&found.records)).expect("what was read");
        assert_eq!((again.records, again.damaged, again.torn), (found.records, 0, false));
    }
    let (count, damages) = octets.split_first().unwrap_or((&0, &[]));
    let known: Vec<Record> = (0..count % 8).map(record).collect();
    let mut file = format::write(&known);
    for damage in damages.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([damage[0], damage[1]])) % file.len().max(1);
        match damage[2] {
            0 => file.truncate(at),
            flips => file.iter_mut().skip(at).take(1).for_each(|octet| *octet ^= flips),
        }
    }
    if let Ok(found) = format::read(&file) {
        assert!(found.records.iter().all(|record| known.contains(record)));
        assert!(
            found.records.len() + found.damaged + usize::from(found.torn)
                <= 2 * known.len() + damages.len()
        );
    }
}

fn record(number: u8) -> Record {
    let print = Fingerprint::from_octets([number.wrapping_mul(37); 32]);
    Record { print, id: Uuid::from_u128(number.into()), at: 1_795_000_000_000 }
}
