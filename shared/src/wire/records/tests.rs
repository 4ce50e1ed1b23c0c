//! Our side of TLS against rustls' own connections, without sockets: every cut is the test's choice.

use std::io::{Read, Write};

use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{
    ClientConnection, Connection, RootCertStore, ServerConnection, SupportedProtocolVersion,
    version,
};

use super::*;
use crate::wire::scratch::{Scratch, lend};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

fn configs(version: &'static SupportedProtocolVersion) -> (ServerConfig, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_protocol_versions(&[version])
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_protocol_versions(&[version])
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, client)
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Ours, and the peer's connection with what it has said so far.
struct Conversation {
    ours: Tls,
    peer: Connection,
    heard: Vec<u8>,
    peer_heard: Vec<u8>,
}

impl Conversation {
    fn with_client(server: ServerConfig, client: ClientConfig) -> Self {
        let peer = ClientConnection::new(Arc::new(client), localhost()).unwrap();
        let ours = Tls::server(&Arc::new(server)).unwrap();
        Self { ours, peer: peer.into(), heard: Vec::new(), peer_heard: Vec::new() }
    }

    fn with_server(server: ServerConfig, client: ClientConfig) -> Self {
        let peer = ServerConnection::new(Arc::new(server)).unwrap();
        let ours =
            lend(|scratch| Tls::client(Arc::new(client), localhost(), &mut scratch.outgoing));
        Self { ours: ours.unwrap(), peer: peer.into(), heard: Vec::new(), peer_heard: Vec::new() }
    }

    /// What the peer wants sent now.
    fn peer_says(&mut self) -> Vec<u8> {
        let mut octets = Vec::new();
        while self.peer.wants_write() {
            self.peer.write_tls(&mut octets).unwrap();
        }
        octets
    }

    /// Gives `octets` to our side in pieces of `size`.
    fn hear(&mut self, octets: &[u8], size: usize) -> Result<(), rustls::Error> {
        for piece in octets.chunks(size) {
            let mut incoming = [self.ours.partial(), piece].concat();
            lend(|Scratch { reading, outgoing }| {
                reading.plain.clear();
                self.ours.open(&mut incoming, &mut reading.plain, outgoing)?;
                self.heard.extend_from_slice(reading.plain.octets());
                Ok::<_, rustls::Error>(())
            })?;
        }
        Ok(())
    }

    /// Gives what is pending to the peer.
    fn answer(&mut self) -> Result<(), rustls::Error> {
        let pending = self.ours.pending.take();
        let mut rest = &pending[..];
        while !rest.is_empty() {
            self.peer.read_tls(&mut rest).unwrap();
            let readable = self.peer.process_new_packets()?.plaintext_bytes_to_read();
            let before = self.peer_heard.len();
            self.peer_heard.resize(before + readable, 0);
            self.peer.reader().read_exact(&mut self.peer_heard[before..]).unwrap();
        }
        Ok(())
    }

    fn say(&mut self, octets: &[u8]) {
        lend(|scratch| {
            self.ours.seal(octets, &mut scratch.outgoing).unwrap();
            self.ours.pending.push(scratch.outgoing.queued());
        });
    }

    fn handshake(&mut self, size: usize) -> Result<(), rustls::Error> {
        while self.ours.is_handshaking() || self.peer.is_handshaking() {
            self.answer()?;
            let octets = self.peer_says();
            self.hear(&octets, size)?;
        }
        self.answer()
    }

    /// What the peer has read since the last call.
    fn peer_read(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.peer_heard)
    }
}

fn both_sides(version: &'static SupportedProtocolVersion) -> [Conversation; 2] {
    let (server, client) = configs(version);
    [
        Conversation::with_client(server.clone(), client.clone()),
        Conversation::with_server(server, client),
    ]
}

#[test]
fn handshake_and_data_may_be_cut_at_every_octet() {
    for version in VERSIONS {
        for mut talk in both_sides(version) {
            talk.handshake(1).unwrap();
            assert!(talk.ours.description().is_some());
            let long = vec![b'x'; 40_000];
            talk.peer.writer().write_all(b"first").unwrap();
            talk.peer.writer().write_all(&long).unwrap();
            let octets = talk.peer_says();
            talk.hear(&octets, 1).unwrap();
            assert_eq!(talk.heard, [b"first", &long[..]].concat());
            talk.say(&long);
            talk.say(b"last");
            talk.answer().unwrap();
            assert_eq!(talk.peer_read(), [&long[..], b"last"].concat());
            assert!(talk.ours.owns_no_buffers());
        }
    }
}

#[test]
fn data_that_comes_with_the_last_handshake_message_is_kept() {
    for version in VERSIONS {
        let (server, client) = configs(version);
        let mut talk = Conversation::with_client(server, client);
        while talk.ours.is_handshaking() {
            talk.answer().unwrap();
            // TLS 1.3 lets the client speak right behind its Finished.
            if !talk.peer.is_handshaking() {
                talk.peer.writer().write_all(b"a1 CAPABILITY\r\n").unwrap();
            }
            let octets = talk.peer_says();
            talk.hear(&octets, usize::MAX).unwrap();
        }
        if version.version == ProtocolVersion::TLSv1_3 {
            assert_eq!(talk.heard, b"a1 CAPABILITY\r\n");
        }
    }
}

#[test]
fn session_tickets_wait_to_go_with_what_is_said_first() {
    let (server, client) = configs(&version::TLS13);
    let mut talk = Conversation::with_client(server, client);
    while talk.ours.is_handshaking() {
        talk.answer().unwrap();
        let octets = talk.peer_says();
        talk.hear(&octets, usize::MAX).unwrap();
    }
    assert!(!talk.ours.pending.is_empty());
    talk.say(b"* OK ready\r\n");
    talk.answer().unwrap();
    assert_eq!(talk.peer_read(), b"* OK ready\r\n");
}

#[test]
fn keys_may_change_in_both_directions() {
    for mut talk in both_sides(&version::TLS13) {
        talk.handshake(usize::MAX).unwrap();
        for round in 0..5_u8 {
            talk.peer.refresh_traffic_keys().unwrap();
            talk.peer.writer().write_all(&[round]).unwrap();
            let octets = talk.peer_says();
            talk.hear(&octets, 1).unwrap();
            talk.say(&[round]);
            talk.answer().unwrap();
            assert_eq!(talk.peer_read(), [round]);
        }
        assert_eq!(talk.heard, [0, 1, 2, 3, 4]);
    }
}

#[test]
fn a_message_in_fragments_leaves_room_to_speak_between_them() {
    let (mut server, client) = configs(&version::TLS13);
    // Tickets of some 100 octets come in records of at most 48.
    server.max_fragment_size = Some(48 + 5);
    let mut talk = Conversation::with_server(server, client);
    talk.answer().unwrap();
    while talk.peer.is_handshaking() {
        let octets = talk.peer_says();
        talk.hear(&octets, usize::MAX).unwrap();
        talk.answer().unwrap();
    }
    let octets = talk.peer_says();
    assert!(!octets.is_empty(), "tickets come");
    let mut said = 0;
    for piece in octets.chunks(7) {
        talk.hear(piece, usize::MAX).unwrap();
        talk.say(b"between");
        said += 1;
    }
    talk.answer().unwrap();
    assert_eq!(talk.peer_read(), b"between".repeat(said));
    talk.peer.writer().write_all(b"after").unwrap();
    let octets = talk.peer_says();
    talk.hear(&octets, 3).unwrap();
    assert_eq!(talk.heard, b"after");
}

#[test]
fn close_notify_ends_one_direction_and_is_said_once() {
    for version in VERSIONS {
        for mut talk in both_sides(version) {
            talk.handshake(usize::MAX).unwrap();
            talk.peer.writer().write_all(b"bye").unwrap();
            talk.peer.send_close_notify();
            let octets = talk.peer_says();
            talk.hear(&octets, 1).unwrap();
            assert!(talk.ours.peer_closed());
            assert_eq!(talk.heard, b"bye");
            // The other direction is still open (RFC 8446 §6.1).
            talk.say(b"bye bye");
            for _ in 0..2 {
                lend(|scratch| talk.ours.close(&mut scratch.outgoing)).unwrap();
            }
            talk.answer().unwrap();
            assert_eq!(talk.peer_read(), b"bye bye");
            assert_eq!(talk.peer.reader().read(&mut [0]).unwrap(), 0);
            assert!(lend(|scratch| talk.ours.seal(b"more", &mut scratch.outgoing)).is_err());
        }
    }
}

#[test]
fn nothing_after_close_notify_counts() {
    let (server, client) = configs(&version::TLS13);
    let mut talk = Conversation::with_client(server, client);
    talk.handshake(usize::MAX).unwrap();
    talk.peer.send_close_notify();
    let octets = [talk.peer_says(), vec![b'x'; 1000]].concat();
    talk.hear(&octets, usize::MAX).unwrap();
    assert!(talk.ours.peer_closed());
    assert!(talk.heard.is_empty() && talk.ours.partial().is_empty());
}

#[test]
fn a_broken_record_is_answered_with_an_alert() {
    for version in VERSIONS {
        for mut talk in both_sides(version) {
            talk.handshake(usize::MAX).unwrap();
            talk.peer.writer().write_all(b"a password").unwrap();
            let mut octets = talk.peer_says();
            *octets.last_mut().unwrap() ^= 1;
            assert!(talk.hear(&octets, usize::MAX).is_err());
            assert!(talk.heard.is_empty());
            let told = talk.answer().unwrap_err();
            assert!(matches!(told, rustls::Error::AlertReceived(_)), "{told:?}");
        }
    }
}

#[test]
fn plaintext_instead_of_a_handshake_is_an_error() {
    let (server, client) = configs(&version::TLS13);
    let mut talk = Conversation::with_client(server, client);
    assert!(talk.hear(b"a1 LOGIN ann secret\r\n", 1).is_err());
}

#[test]
fn octets_at_random_never_panic() {
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..300 {
        let [talk, other] = both_sides(VERSIONS[round % 2]);
        for mut talk in [talk, other] {
            // Up to a point the peer behaves.
            if round % 3 > 0 {
                talk.handshake(usize::MAX).unwrap();
                talk.peer.writer().write_all(&[b'x'; 500]).unwrap();
            }
            let _ = talk.answer();
            let mut octets = talk.peer_says();
            for _ in 0..random.usize(1..8) {
                if octets.is_empty() {
                    break;
                }
                let at = random.usize(..octets.len());
                match random.u8(..3) {
                    0 => octets[at] = random.u8(..),
                    1 => octets.insert(at, random.u8(..)),
                    _ => drop(octets.remove(at)),
                }
            }
            let size = random.usize(1..200);
            let _ = talk.hear(&octets, size);
            if !talk.ours.is_handshaking() {
                lend(|scratch| drop(talk.ours.seal(b"x", &mut scratch.outgoing)));
            }
        }
    }
}
