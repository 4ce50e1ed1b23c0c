//! A crash leaves the beginning of what was written. Each beginning there can be is tried.

use proptest::prelude::*;

use super::*;

/// A message's file as it grows: after each write, its octets so far and what they stand for.
struct Growth {
    octets: Vec<u8>,
    /// The first is the commit.
    steps: Vec<(usize, Stored)>,
}

const CONTENT: &[u8] = b"Received: x\r\n\r\nBody \xff\n0000000";

fn growth(id: &str, records: &[Record]) -> Growth {
    let (mut stored, mut octets) =
        draw_up(&envelope(id), &two(), u64::try_from(CONTENT.len()).unwrap()).unwrap();
    octets.extend_from_slice(CONTENT);
    octets.extend(format::seal(crc32c::crc32c(CONTENT)));
    let mut steps = vec![(octets.len(), stored.clone())];
    for (millis, record) in (1_795_000_000_000..).zip(records) {
        octets.extend(format::record(millis, record, stored.recipients.len()).unwrap());
        stored.apply(record, clock::time(millis));
        steps.push((octets.len(), stored.clone()));
    }
    Growth { octets, steps }
}

pub(super) fn file(id: &str, records: &[Record]) -> (Vec<u8>, Stored) {
    let Growth { octets, steps } = growth(id, records);
    (octets, steps.last().unwrap().1.clone())
}

pub(super) fn history() -> Vec<Record> {
    vec![
        delivered(0),
        Record::Added(recipient("carl@example.org")),
        Record::InDoubt { recipient: 2, owner: backend("new") },
        Record::Added(recipient("dora@example.org")),
        failed(3, Fate::Reported("report".into())),
        Record::Tried { why: "it could not be reached".into() },
    ]
}

fn name(cut: usize) -> String {
    format!("cut{cut:05}")
}

#[tokio::test]
async fn what_was_acknowledged_is_there_wherever_the_file_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await);
    let length = growth(&name(0), &history()).octets.len();
    for cut in 0..=length {
        let octets = growth(&name(cut), &history()).octets;
        fs::write(directory.path().join("messages").join(name(cut)), &octets[..cut]).unwrap();
    }
    let (spool, found) = open(directory.path()).await;
    let mut found = found.into_iter();
    for cut in 0..=length {
        let Growth { steps, .. } = growth(&name(cut), &history());
        match steps.iter().rev().find(|(end, _)| *end <= cut) {
            Some((end, expected)) => {
                assert_eq!(found.next().as_ref(), Some(expected), "cut at {cut}");
                let path = directory.path().join("messages").join(name(cut));
                let left = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
                assert_eq!(
                    left, *end,
                    "cut at {cut}: a later record must not stand behind garbage"
                );
                spool.append(&name(cut), &[Record::Frozen], false).await.unwrap();
                let content = octets_of(&spool.content(&name(cut)).await.unwrap()).await;
                assert_eq!(content, CONTENT, "cut at {cut}");
            }
            // No crash leaves this there, since a file gets its name when it is whole.
            None => assert!(directory.path().join("corrupt").join(name(cut)).exists(), "{cut}"),
        }
    }
    assert_eq!(found.next(), None);
    drop(spool);
    let (_, found) = open(directory.path()).await;
    assert!(found.iter().all(|stored| stored.progress.frozen), "the later record is read");
}

#[tokio::test]
async fn what_was_not_acknowledged_is_gone_wherever_it_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await);
    let committed = growth(&name(0), &[]).octets.len();
    for cut in 0..=committed {
        let octets = growth(&name(cut), &[]).octets;
        fs::write(directory.path().join("tmp").join(name(cut)), &octets[..cut]).unwrap();
    }
    let (_spool, found) = open(directory.path()).await;
    assert_eq!(found, []);
    for place in ["tmp", "messages", "dead", "corrupt"] {
        assert_eq!(names(directory.path(), place), [""; 0], "{place}");
    }
}

#[tokio::test]
async fn a_message_with_nobody_left_is_gone_or_a_dead_letter_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).await);
    for (id, last) in [
        ("delivered", delivered(1)),
        ("reported", failed(1, Fate::Reported("report".into()))),
        ("unwanted", failed(1, Fate::Unwanted)),
        ("dead", failed(1, Fate::Dead)),
    ] {
        let (octets, _) = file(id, &[delivered(0), last]);
        fs::write(directory.path().join("messages").join(id), octets).unwrap();
    }
    let (spool, found) = open(directory.path()).await;
    assert_eq!(found, []);
    assert_eq!(names(directory.path(), "messages"), [""; 0]);
    assert_eq!(names(directory.path(), "dead"), ["dead"]);
    assert_eq!(spool.dead().await.unwrap().len(), 1);
}

fn any_record() -> impl Strategy<Value = Record> {
    let place = 0..5_usize;
    let text = "[ -~é]{0,20}".prop_map(String::into_boxed_str);
    let fate =
        prop_oneof![Just(Fate::Dead), Just(Fate::Unwanted), text.clone().prop_map(Fate::Reported)];
    prop_oneof![
        Just(Record::Added(recipient("new@example.org"))),
        place.clone().prop_map(|recipient| Record::Waiting { recipient }),
        place.clone().prop_map(|recipient| Record::InDoubt { recipient, owner: backend("old") }),
        place.clone().prop_map(delivered),
        (place.clone(), fate).prop_map(|(place, fate)| failed(place, fate)),
        place.prop_map(|recipient| Record::Dropped { recipient }),
        text.clone().prop_map(|why| Record::Tried { why }),
        Just(Record::Frozen),
        Just(Record::Thawed),
        (0..1_000_u64).prop_map(|millis| Record::Held(Duration::from_millis(millis))),
        text.prop_map(|report| Record::Delayed { report }),
        Just(Record::Released),
    ]
}

/// What [`Stored::apply`] is meant to do, said once more: who is delivered to, and who waits.
fn expected(records: &[Record]) -> Vec<&'static str> {
    let mut states = vec!["open"; 2];
    for record in records {
        let place = record.recipient().unwrap_or(usize::MAX);
        let open = states.get(place) == Some(&"open");
        match record {
            Record::Added(_) => states.push("open"),
            Record::Delivered { .. } if place < states.len() => states[place] = "delivered",
            Record::Failed { .. } if open => states[place] = "failed",
            Record::Dropped { .. } if open => states[place] = "dropped",
            Record::Released => {
                states.iter_mut().filter(|state| **state == "failed").for_each(|s| *s = "open");
            }
            _ => {}
        }
    }
    states
}

fn shown(stored: &Stored) -> Vec<&'static str> {
    let state = |recipient: &Recipient| match recipient.state {
        State::Waiting | State::InDoubt { .. } => "open",
        State::Delivered => "delivered",
        State::Failed(_) => "failed",
        State::Dropped => "dropped",
    };
    stored.recipients.iter().map(state).collect()
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_known(records in prop::collection::vec(any_record(), 0..20)) {
        let (octets, stored) = file("one", &records);
        let read = format::parse(&octets).unwrap();
        prop_assert_eq!(&read.stored, &stored);
        prop_assert_eq!(shown(&stored), expected(&records));
    }

    #[test]
    fn a_restart_at_any_moment_changes_nothing(
        records in prop::collection::vec((any_record(), any::<bool>(), any::<bool>()), 1..12)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let (mut spool, _) = open(directory.path()).await;
            let mut known = commit(&spool, "one", b"x").await;
            for (record, sync, restart) in records {
                let is_there = record.recipient().is_none_or(|p| p < known.recipients.len());
                if !is_there {
                    continue;
                }
                let at = spool.append("one", std::slice::from_ref(&record), sync).await.unwrap();
                known.apply(&record, at);
                assert_eq!(spool.read("one").await.unwrap(), known);
                if restart && known.is_open() {
                    drop(spool);
                    let found;
                    (spool, found) = open(directory.path()).await;
                    assert_eq!(found, [known.clone()]);
                }
            }
        });
    }
}
