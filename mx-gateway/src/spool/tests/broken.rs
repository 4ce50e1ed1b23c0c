//! Files that are not what was written: bits that flip, records that are gone, versions to come.

use super::cut::{file, history};
use super::format::FormatError;
use super::*;

/// Asserts that nobody counts as delivered to who was not.
fn nobody_is_forgotten(found: &Stored, written: &Stored, what: &str) {
    for recipient in &found.recipients {
        let truth = written.recipients.iter().find(|known| known.address == recipient.address);
        let truth = truth.unwrap_or_else(|| panic!("{what}: nobody knows {}", recipient.address));
        let same = recipient.state == truth.state || !truth.state.is_open();
        let done = !recipient.state.is_open();
        assert!(same || !done, "{what}: {recipient:?} is {truth:?}");
    }
}

#[test]
fn no_bit_that_flips_makes_a_delivery() {
    let (octets, written) = file("one", &history());
    let mut read = 0;
    for at in 0..octets.len() {
        for bit in 0..8 {
            let mut flipped = octets.clone();
            flipped[at] ^= 1 << bit;
            let Ok(found) = format::parse(&flipped) else { continue };
            read += 1;
            let what = format!("octet {at}, bit {bit}");
            nobody_is_forgotten(&found.stored, &written, &what);
            assert_eq!(found.content, format::parse(&octets).unwrap().content, "{what}");
            assert_eq!(found.stored.envelope, written.envelope, "{what}");
        }
    }
    assert!(read > 0, "some leave the message readable: those in records");
}

#[tokio::test]
async fn a_file_with_a_bit_flipped_is_delivered_or_set_aside_and_never_gone() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await);
    let name = |at: usize| format!("bit{at:05}");
    let length = file(&name(0), &history()).0.len();
    for at in 0..length {
        let mut octets = file(&name(at), &history()).0;
        octets[at] ^= 1 << (at % 8);
        fs::write(directory.path().join("messages").join(name(at)), octets).unwrap();
    }
    let (spool, found) = open(directory.path()).await;
    let (mut delivered, mut in_content) = (0, 0);
    for at in 0..length {
        let aside = || directory.path().join("corrupt").join(name(at)).exists();
        let Some(stored) = found.iter().find(|stored| stored.id() == name(at)) else {
            assert!(aside(), "octet {at}");
            continue;
        };
        nobody_is_forgotten(stored, &file(&name(at), &history()).1, &name(at));
        match spool.content(&name(at)).await {
            Ok(_) => {
                delivered += 1;
                assert!(aside(), "octet {at}: what it was is kept, too");
            }
            Err(SpoolError::Damaged { .. }) => {
                in_content += 1;
                assert!(aside(), "octet {at}");
                let gone = spool.append(&name(at), &[Record::Frozen], false).await;
                assert!(matches!(gone, Err(SpoolError::Unknown(_))), "{gone:?}");
            }
            Err(error) => panic!("octet {at}: {error}"),
        }
    }
    assert!(delivered > 100 && in_content > 10, "{delivered}, {in_content}");
    drop(spool);
    let (_, again) = open(directory.path()).await;
    assert_eq!(again.len(), delivered, "what was mended is read as it was mended");
    let mended = |stored: &Stored| found.iter().any(|known| known == stored);
    assert!(again.iter().all(mended));
}

#[tokio::test]
async fn a_record_that_is_gone_gives_nobody_elses_place_to_another() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await);
    let history = [
        Record::Added(recipient("carl@example.org")),
        Record::Added(recipient("dora@example.org")),
        delivered(2),
        Record::Frozen,
    ];
    let (octets, _) = file("one", &history);
    let text = String::from_utf8_lossy(&octets).into_owned();
    let carl = text.find("carl@").unwrap();
    let mut damaged = octets;
    // The first name is in the third line of JSON, whose place in the octets is the same: all is ASCII but
    // for one octet of the content, which is three in the text.
    damaged[carl - 2] ^= 1;
    assert!(format::parse(&damaged).is_ok_and(|whole| !whole.is_tidy));
    fs::write(directory.path().join("messages/one"), damaged).unwrap();
    let (spool, found) = open(directory.path()).await;
    let [stored] = found.as_slice() else { panic!("{found:?}") };
    let dora = stored.recipients.last().unwrap();
    assert_eq!((dora.address.local(), &dora.state), ("dora", &State::Waiting));
    assert!(stored.progress.frozen, "what follows the damage is read");
    assert_eq!(names(directory.path(), "corrupt"), ["one"], "who is missing is in there");
    // Places are those of what was found.
    let place = stored.recipients.len() - 1;
    spool.append("one", &[delivered(place)], true).await.unwrap();
    assert_eq!(spool.read("one").await.unwrap().recipients[place].state, State::Delivered);
}

#[tokio::test]
async fn a_newer_versions_file_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await);
    let newer = String::from("mailshift spool 2\nwho knows");
    fs::write(directory.path().join("messages/one"), &newer).unwrap();
    assert_eq!(format::parse(newer.as_bytes()).unwrap_err(), FormatError::Version(2));
    let (_spool, found) = open(directory.path()).await;
    assert_eq!(found, []);
    assert_eq!(fs::read_to_string(directory.path().join("corrupt/one")).unwrap(), newer);
}

#[tokio::test]
async fn a_message_under_another_name_and_a_stray_file_are_no_messages() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await);
    let messages = directory.path().join("messages");
    fs::write(messages.join("two"), file("one", &[]).0).unwrap();
    fs::write(messages.join("notes.txt"), "of an operator").unwrap();
    let (_spool, found) = open(directory.path()).await;
    assert_eq!(found, []);
    assert_eq!(names(directory.path(), "messages"), ["notes.txt"]);
    assert_eq!(names(directory.path(), "corrupt"), ["two"]);
}

#[tokio::test]
async fn what_is_set_aside_replaces_nothing_that_was() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await);
    for text in ["first", "second", "third"] {
        fs::write(directory.path().join("messages/one"), text).unwrap();
        drop(open(directory.path()).await);
    }
    assert_eq!(names(directory.path(), "corrupt"), ["one", "one.1", "one.2"]);
}
