//! Files of the spool: what is read from any octets, and what remains of a good file that was damaged.

use std::time::{Duration, UNIX_EPOCH};

use mx_gateway::delivery::Introduction;
use mx_gateway::spool::format;
use mx_gateway::spool::{Envelope, Fate, Progress, Recipient, Record, Route, State, Stored};
use shared::address::Address;
use shared::backend::BackendName;
use shared::ownership::Name;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::Reply;

/// Octets of a recipe: its records, then where and how the file is damaged.
const DAMAGES: u8 = 0xff;

/// Any octets are read without harm. Read as a recipe, they make a good file, which is read as what it is;
/// damaged, it makes nobody a recipient who was none, and nobody delivered to who was not.
pub(super) fn spool_file(octets: &[u8]) {
    if let Ok(whole) = format::parse(octets) {
        let written = format::write(&whole.stored, &whole.content, &[]);
        let again = written.and_then(|written| format::parse(&written)).expect("what was read");
        assert_eq!((again.stored, again.content), (whole.stored, whole.content));
        assert!(again.is_tidy);
    }
    let recipe = octets.split(|octet| *octet == DAMAGES).collect::<Vec<_>>();
    let (made, damages) = recipe.split_first().expect("one part at least");
    let records: Vec<Record> = made.chunks_exact(2).map(|pair| record(pair[0], pair[1])).collect();
    let (known, mut file) = good_file(&records);
    for damage in damages.iter().flat_map(|part| part.chunks_exact(3)) {
        let at = usize::from(u16::from_be_bytes([damage[0], damage[1]])) % file.len().max(1);
        match damage[2] {
            0 => file.truncate(at),
            flips => file.iter_mut().skip(at).take(1).for_each(|octet| *octet ^= flips),
        }
    }
    if let Ok(found) = format::parse(&file) {
        nobody_is_forgotten(&found.stored, &known);
    }
}

/// A good file of a message with these records, and what is known of it.
fn good_file(records: &[Record]) -> (Stored, Vec<u8>) {
    let client = ([192, 0, 2, 7], 4711).into();
    let envelope = Envelope {
        id: "fuzzed".into(),
        from: ReversePath::Mailbox("ann@sender.example".into()),
        eight_bit: false,
        smtputf8: false,
        ret: None,
        envid: None,
        introduction: Introduction {
            hostname: "mx.example".into(),
            client,
            local: client,
            helo: "client.example".into(),
            extended: true,
            session: "01a2".into(),
        },
        arrived: UNIX_EPOCH,
        may_report: false,
    };
    let content = b"Subject: x\r\n\r\n00000000 00000000 {}\n";
    let octets = content.len() as u64;
    let recipients = (0..3).map(recipient).collect();
    let mut stored = Stored { envelope, recipients, octets, progress: Progress::default() };
    let millis = 1_795_000_000_123;
    let dated: Vec<_> = records.iter().map(|record| (millis, record.clone())).collect();
    let file = format::write(&stored, content, &dated).expect("all of it can be read");
    let at = UNIX_EPOCH + Duration::from_millis(millis);
    records.iter().for_each(|record| stored.apply(record, at));
    let whole = format::parse(&file).expect("a good file");
    assert_eq!((&whole.stored, whole.content.as_slice()), (&stored, content.as_slice()));
    (stored, file)
}

fn recipient(number: u8) -> Recipient {
    let address = Address::parse(&format!("r{number}@example.org")).expect("an address");
    let name = Name::of_address(&address);
    let (notify, orcpt) = (None, None);
    Recipient { address, name, notify, orcpt, route: Route::Owner, state: State::Waiting }
}

fn record(kind: u8, value: u8) -> Record {
    let recipient = usize::from(value % 8);
    let owner = || BackendName::parse("old").expect("a name");
    match kind % 11 {
        0 => Record::Added(self::recipient(value)),
        1 => Record::Waiting { recipient },
        2 => Record::InDoubt { recipient, owner: owner() },
        3 => Record::Delivered { recipient, owner: owner() },
        4 => Record::Failed { recipient, reply: Reply::bare(550, "no"), fate: Fate::Dead },
        5 => Record::Dropped { recipient },
        6 => Record::Tried { why: "down".into() },
        7 => Record::Frozen,
        8 => Record::Thawed,
        9 => Record::Held(Duration::from_millis(value.into())),
        _ => Record::Released,
    }
}

/// Whoever is found with nothing left to be done for him is, or once was, without it in truth.
fn nobody_is_forgotten(found: &Stored, known: &Stored) {
    let delivered = |stored: &Stored, address: &Address| {
        let mut all = stored.recipients.iter().filter(|recipient| recipient.address == *address);
        all.any(|recipient| recipient.state == State::Delivered)
    };
    for recipient in &found.recipients {
        let address = &recipient.address;
        assert!(known.recipients.iter().any(|known| known.address == *address), "{address}");
        assert!(!delivered(found, address) || delivered(known, address), "{address}");
    }
    assert_eq!(found.envelope, known.envelope);
}
