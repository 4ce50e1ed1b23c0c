use super::*;

const DAY: Duration = Duration::from_hours(24);

fn print(n: u32) -> Fingerprint {
    let mut octets = [0; 32];
    octets[..4].copy_from_slice(&n.to_be_bytes());
    Fingerprint(octets)
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn seen(store: &Fingerprints, n: u32) -> Seen {
    store.look_up(&[print(n)]).first().copied().unwrap_or(Seen::Never)
}

fn receipt(store: &Arc<Fingerprints>) -> Arc<Receipt> {
    Receipt::new(store, id(1), &[print(0), print(1)])
}

#[test]
fn sender_recipient_and_content_each_make_another_fingerprint() {
    let from = |text: &str| ReversePath::Mailbox(text.into());
    let to = |text: &str| Address::parse(text).unwrap();
    let content = |octets: &[u8]| {
        let mut hashing = Hashing::default();
        hashing.add(octets);
        hashing.finish()
    };
    let one = Fingerprint::new(&from("a@b.example"), &to("ann@example.org"), &content(b"x"));
    let same = Fingerprint::new(&from("a@b.example"), &to("ann@EXAMPLE.org"), &content(b"x"));
    assert_eq!(one, same, "a domain has no case");
    for other in [
        Fingerprint::new(&ReversePath::Null, &to("ann@example.org"), &content(b"x")),
        Fingerprint::new(&from("a@b.example"), &to("ben@example.org"), &content(b"x")),
        Fingerprint::new(&from("a@b.example"), &to("ann@example.org"), &content(b"y")),
    ] {
        assert_ne!(one, other);
    }
}

#[test]
fn nothing_is_remembered_of_a_message_whose_client_has_heard() {
    let store = Fingerprints::in_memory(DAY);
    let receipt = receipt(&store);
    receipt.answered([Left::Accepted, Left::Accepted]);
    receipt.ended();
    assert!(store.is_empty() && store.look_up(&[print(0)]).is_empty());
}

#[test]
fn what_was_accepted_is_remembered_whenever_the_client_goes() {
    for before in [true, false] {
        let store = Fingerprints::in_memory(DAY);
        let receipt = receipt(&store);
        if before {
            receipt.unheard();
            assert_eq!(seen(&store, 0), Seen::InHand(id(1)), "until it is answered");
        }
        receipt.answered([Left::Accepted, Left::Senders]);
        receipt.unheard();
        assert_eq!((seen(&store, 0), seen(&store, 1)), (Seen::Done(id(1)), Seen::Never));
        receipt.ended();
        assert_eq!(seen(&store, 0), Seen::Done(id(1)));
    }
}

#[test]
fn who_has_it_is_remembered_though_the_sender_was_told_to_come_again() {
    let store = Fingerprints::in_memory(DAY);
    let receipt = receipt(&store);
    receipt.answered([Left::Doubled, Left::Open]);
    assert_eq!((seen(&store, 0), seen(&store, 1)), (Seen::Done(id(1)), Seen::InHand(id(1))));
    receipt.settled(1, true);
    assert_eq!(seen(&store, 1), Seen::Done(id(1)), "late, and all the same");
}

#[test]
fn who_has_not_got_it_gets_the_retry() {
    let store = Fingerprints::in_memory(DAY);
    for has_ended in [true, false] {
        let receipt = receipt(&store);
        receipt.unheard();
        receipt.answered([Left::Senders, Left::Open]);
        assert_eq!((seen(&store, 0), seen(&store, 1)), (Seen::Never, Seen::InHand(id(1))));
        if has_ended {
            receipt.ended();
        } else {
            receipt.settled(1, false);
        }
        assert_eq!(seen(&store, 1), Seen::Never);
    }
    assert!(store.is_empty());
}

#[test]
fn a_message_that_ends_does_not_let_another_one_go() {
    let store = Fingerprints::in_memory(DAY);
    let first = Receipt::new(&store, id(1), &[print(0)]);
    let second = Receipt::new(&store, id(2), &[print(0)]);
    first.unheard();
    second.unheard();
    second.ended();
    assert_eq!(seen(&store, 0), Seen::InHand(id(1)));
    first.ended();
    assert_eq!(seen(&store, 0), Seen::Never);
}

#[test]
fn what_is_too_old_is_forgotten_and_zero_is_off() {
    let store = Fingerprints::in_memory(DAY);
    let old = now() - u64::try_from(DAY.as_millis()).unwrap();
    let record = |n, at| Record { print: print(n), id: id(9), at };
    store.adopt(&[record(0, old), record(1, old + 60_000), record(2, u64::MAX)]);
    assert_eq!(seen(&store, 0), Seen::Never);
    assert_eq!((seen(&store, 1), seen(&store, 2)), (Seen::Done(id(9)), Seen::Done(id(9))));
    store.keep_for(DAY / 2);
    assert_eq!((seen(&store, 1), seen(&store, 2)), (Seen::Never, Seen::Done(id(9))));
    assert_eq!(store.len(), 1);
    store.keep_for(Duration::ZERO);
    let receipt = Receipt::new(&store, id(3), &[print(3), print(4)]);
    receipt.unheard();
    assert_eq!((seen(&store, 2), seen(&store, 3)), (Seen::Never, Seen::Never));
    receipt.answered([Left::Accepted, Left::Accepted]);
    assert!(store.is_empty());
}

#[test]
fn what_was_forgotten_is_remembered_anew() {
    let store = Fingerprints::in_memory(DAY);
    let at = now() - 60_000;
    store.adopt(&[Record { print: print(0), id: id(9), at }]);
    store.keep_for(Duration::from_secs(30));
    store.remember(print(0), id(10));
    assert_eq!(seen(&store, 0), Seen::Done(id(10)));
}

#[test]
fn the_oldest_leave_when_there_are_too_many() {
    let store = Fingerprints::in_memory(DAY);
    let at = now();
    let most = u32::try_from(MOST).unwrap();
    let records: Vec<_> = (0..=most).map(|n| Record { print: print(n), id: id(9), at }).collect();
    store.adopt(&records);
    assert_eq!(store.len(), MOST);
    assert_eq!((seen(&store, 0), seen(&store, 1)), (Seen::Never, Seen::Done(id(9))));
    assert_eq!(seen(&store, most), Seen::Done(id(9)));
}

/// A store on a file, without a runtime: what is written is written at once.
fn on_file(path: &Path) -> Arc<Fingerprints> {
    let journal = Journal::new(path.to_owned());
    let records = journal.read();
    let store = Fingerprints::new(DAY, Some(Mutex::new(journal)));
    store.enter(&records);
    Arc::new(store)
}

#[test]
fn the_next_process_knows_what_the_last_one_knew_wherever_its_file_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let first = on_file(&path);
    assert!(!path.exists(), "nothing to write, no file");
    (0..3).for_each(|n| first.remember(print(n), id(n.into())));
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(whole.len() % format::RECORD, 25);
    for length in (0..=whole.len()).rev().step_by(7) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let next = on_file(&path);
        let kept = u32::try_from(length.saturating_sub(25) / format::RECORD).unwrap();
        for n in 0..3 {
            let expected = if n < kept { Seen::Done(id(n.into())) } else { Seen::Never };
            assert_eq!(seen(&next, n), expected, "{length}");
        }
        // What comes next does not stand behind half a record.
        next.remember(print(7), id(7));
        next.remember(print(8), id(8));
        let last = on_file(&path);
        assert_eq!(last.len(), usize::try_from(kept).unwrap() + 2, "{length}");
    }
}

#[test]
fn a_file_that_is_something_else_is_put_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    std::fs::write(&path, "mailshift fingerprints 2\nwhatever\n").unwrap();
    let store = on_file(&path);
    store.remember(print(0), id(1));
    assert_eq!(seen(&on_file(&path), 0), Seen::Done(id(1)));
    let aside = std::fs::read_to_string(path.with_extension("unknown")).unwrap();
    assert!(aside.starts_with("mailshift fingerprints 2"));
}

#[test]
fn a_disk_that_fails_costs_nothing_but_the_memory_of_the_next_process() {
    let directory = tempfile::tempdir().unwrap();
    let store = on_file(&directory.path().join("nowhere").join(FILE));
    (0..3).for_each(|n| store.remember(print(n), id(1)));
    assert_eq!((store.len(), seen(&store, 2)), (3, Seen::Done(id(1))));
}

#[test]
fn a_file_that_is_mostly_out_of_date_is_written_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let store = on_file(&path);
    for n in 0..3000 {
        store.remember(print(n), id(1));
        let mut state = store.lock();
        while state.order.len() > 10 {
            state.drop_oldest();
        }
    }
    let octets = std::fs::metadata(&path).unwrap().len();
    assert!(octets < 1200 * u64::try_from(format::RECORD).unwrap(), "{octets}");
    assert_eq!(seen(&on_file(&path), 2999), Seen::Done(id(1)));
}

#[test]
fn what_another_process_has_left_is_taken_once_and_kept_here() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    on_file(&there.path().join(FILE)).remember(print(0), id(1));
    let store = on_file(&here.path().join(FILE));
    store.adopt(&take(there.path()).unwrap());
    assert!(take(there.path()).unwrap().is_empty());
    assert_eq!(seen(&store, 0), Seen::Done(id(1)));
    assert_eq!(seen(&on_file(&here.path().join(FILE)), 0), Seen::Done(id(1)));
}
