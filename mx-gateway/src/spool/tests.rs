//! The spool on real directories.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use shared::address::Address;
use shared::backend::BackendName;
use shared::ownership::Name;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::Reply;
use tempfile::TempDir;

use super::*;
use crate::body::{Body, Limits, Memory};
use crate::delivery::Introduction;

mod adopted;
mod broken;
mod cut;
mod sick;

/// Our trace header.
const HEADER: &str = "Received: from client.example by mx.example\r\n";

/// An envelope with something in every field.
fn envelope(id: &str) -> Envelope {
    let client: SocketAddr = ([192, 0, 2, 7], 4711).into();
    Envelope {
        id: id.into(),
        from: ReversePath::parse("\"a \\\" b\"@sender.example").unwrap(),
        eight_bit: true,
        smtputf8: false,
        ret: Some("HDRS".into()),
        envid: Some("QQ+2B314159".into()),
        introduction: Introduction {
            hostname: "mx.example".into(),
            client,
            local: ([198, 51, 100, 1], 25).into(),
            helo: "client.example".into(),
            extended: true,
            session: "01a2".into(),
        },
        arrived: clock::time(1_795_000_000_123),
        may_report: true,
    }
}

fn backend(name: &str) -> BackendName {
    BackendName::parse(name).unwrap()
}

fn recipient(address: &str) -> Recipient {
    let address = Address::parse(address).unwrap();
    Recipient {
        name: Name::of_address(&address),
        address,
        notify: Some("FAILURE,DELAY".into()),
        orcpt: Some("rfc822;ann+2Bx@example.org".into()),
        route: Route::Owner,
        state: State::Waiting,
    }
}

fn two() -> Vec<Recipient> {
    let in_doubt = State::InDoubt { owner: backend("old"), since: clock::time(1_795_000_000_000) };
    vec![
        recipient("ann@example.org"),
        Recipient { state: in_doubt, ..recipient("\"b c\"@example.org") },
    ]
}

fn delivered(place: usize) -> Record {
    Record::Delivered { recipient: place, owner: backend("new") }
}

fn failed(place: usize, fate: Fate) -> Record {
    Record::Failed { recipient: place, reply: Reply::new(550, (1, 1), "No such user"), fate }
}

async fn message(octets: &[u8]) -> (TempDir, Message) {
    let directory = tempfile::tempdir().unwrap();
    let memory = Memory::new(1 << 20);
    let mut body = Body::new(Limits {
        max_size: u64::MAX,
        in_memory: 100_000,
        memory,
        directory: directory.path().to_owned(),
    });
    for piece in octets.chunks(50_000) {
        body.append(piece.to_vec()).await;
    }
    (directory, body.finish().unwrap())
}

async fn octets_of(message: &Message) -> Vec<u8> {
    let (mut reader, mut octets) = (message.reader(), Vec::new());
    while reader.read(&mut octets).await.unwrap() {}
    octets
}

async fn open(directory: &Path) -> (Spool, Vec<Stored>) {
    Spool::open(directory, RESERVE).await.unwrap()
}

/// A message with [`two`] recipients.
async fn commit(spool: &Spool, id: &str, octets: &[u8]) -> Stored {
    let (_directory, message) = message(octets).await;
    spool.commit(&envelope(id), &two(), HEADER, &message).await.unwrap()
}

/// The names in one of the spool's directories.
fn names(directory: &Path, place: &str) -> Vec<String> {
    let entries = fs::read_dir(directory.join(place)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_was_committed_comes_back_as_it_was_with_all_that_happened_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let long: Vec<u8> = (0..300_000_u32).flat_map(u32::to_be_bytes).collect();
    let (spool, found) = open(directory.path()).await;
    assert_eq!(found, []);
    let mut first = commit(&spool, "first", b"Subject: x\r\n\r\nshort\r\n").await;
    let second = commit(&spool, "second", &long).await;
    assert_eq!((first.envelope.clone(), first.recipients.clone()), (envelope("first"), two()));
    assert_eq!(names(directory.path(), "tmp"), [""; 0]);
    let records = [
        Record::Added(recipient("carl@example.org")),
        delivered(0),
        Record::Waiting { recipient: 1 },
        Record::Tried { why: "it could not be reached".into() },
        Record::Held(Duration::from_millis(1_500)),
        Record::Frozen,
    ];
    for (count, records) in records.chunks(2).enumerate() {
        let at = spool.append("first", records, count == 1).await.unwrap();
        for record in records {
            first.apply(record, at);
        }
    }
    let states: Vec<&State> = first.recipients.iter().map(|recipient| &recipient.state).collect();
    assert_eq!(states, [&State::Delivered, &State::Waiting, &State::Waiting]);
    assert_eq!((first.progress.attempts, first.progress.frozen), (1, true));
    assert_eq!(spool.read("first").await.unwrap(), first);
    drop(spool);

    let (spool, found) = open(directory.path()).await;
    assert_eq!(found, [first, second]);
    let content = spool.content("second").await.unwrap();
    assert_eq!(content.first_octet(), Some(b'R'));
    assert_eq!(octets_of(&content).await, [HEADER.as_bytes(), &long].concat());
    spool.append("first", &[delivered(1)], true).await.unwrap();
    assert_eq!(spool.read("first").await.unwrap().recipients[1].state, State::Delivered);
}

#[tokio::test]
async fn a_message_leaves_by_removal_alone_and_its_id_is_free_then() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    commit(&spool, "one", b"").await;
    let (_kept, body) = message(b"again").await;
    let again = spool.commit(&envelope("one"), &two(), HEADER, &body).await;
    assert!(matches!(again, Err(SpoolError::Id(_))), "{again:?}");
    assert_eq!(octets_of(&spool.content("one").await.unwrap()).await, HEADER.as_bytes());
    spool.remove("one").await.unwrap();
    assert_eq!(names(directory.path(), "messages"), [""; 0]);
    for gone in [
        spool.content("one").await.map(drop),
        spool.remove("one").await,
        spool.append("one", &[Record::Frozen], false).await.map(drop),
        spool.bury("one", &[]).await.map(drop),
    ] {
        assert!(matches!(gone, Err(SpoolError::Unknown(_))), "{gone:?}");
    }
    commit(&spool, "one", b"").await;
    for bad in ["", "a/b", "..", "a.b", &"x".repeat(65)] {
        let refused = spool.commit(&envelope(bad), &two(), "", &body).await;
        assert!(matches!(refused, Err(SpoolError::Id(_))), "{bad:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_second_process_is_refused_until_the_first_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let second = Spool::open(directory.path(), RESERVE).await;
    assert!(matches!(second, Err(SpoolError::InUse(_))), "{second:?}");
    drop(spool);
    open(directory.path()).await;
}

#[tokio::test]
async fn a_dead_letter_is_kept_shown_and_released() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    commit(&spool, "letter", b"x").await;
    spool.append("letter", &[delivered(1)], false).await.unwrap();
    spool.bury("letter", &[failed(0, Fate::Dead)]).await.unwrap();
    drop(spool);
    let (spool, found) = open(directory.path()).await;
    assert_eq!(found, [], "nobody is to get it");
    let dead = spool.dead().await.unwrap();
    assert_eq!((dead.len(), dead[0].id()), (1, "letter"));
    let State::Failed(failure) = &dead[0].recipients[0].state else { panic!("{dead:?}") };
    assert_eq!(failure.reply.to_string(), "550 5.1.1 No such user");
    assert!(octets_of(&spool.content("letter").await.unwrap()).await.ends_with(b"x"));
    let released = spool.release("letter").await.unwrap();
    assert_eq!(released.recipients[0].state, State::Waiting);
    assert_eq!(released.recipients[1].state, State::Delivered, "not once more");
    assert!(released.since() > released.envelope.arrived, "its time begins anew");
    assert_eq!(spool.dead().await.unwrap(), []);
    drop(spool);
    assert_eq!(open(directory.path()).await.1, [released]);
}

#[tokio::test]
async fn what_would_not_be_read_again_is_not_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _) = open(directory.path()).await;
    let (_kept, body) = message(b"x").await;
    let injected = Envelope { envid: Some("a\r\nb".into()), ..envelope("one") };
    let refused = spool.commit(&injected, &two(), "", &body).await;
    assert!(matches!(refused, Err(SpoolError::Value(_))), "{refused:?}");
    commit(&spool, "one", b"").await;
    let bell = Record::Failed { recipient: 0, reply: Reply::bare(550, "\u{7}"), fate: Fate::Dead };
    let refused = spool.append("one", &[delivered(1), bell], true).await;
    assert!(matches!(refused, Err(SpoolError::Value(_))), "{refused:?}");
    assert_eq!(spool.read("one").await.unwrap().recipients, two(), "all or nothing");
    assert_eq!(spool.health(), Health::Well);
}
