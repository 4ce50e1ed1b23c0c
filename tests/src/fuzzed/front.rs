//! A login front and a driver that has no sockets: the same answers in whatever pieces, and few of them.

use login_proxy::front::{Event, Front, Terms};
use login_proxy::protocol;
use login_proxy::refusal::Refusal;
use shared::address::Domain;
use shared::backend::LoginProtocol;
use shared::credentials::Proof;
use shared::dialogue::{Input, Output, Step};
use shared::sasl::{Mechanism, Mechanisms};
use shared::wire::MAX_UNREAD;

use super::pieces::Cut;

/// Most octets that may wait for a client: the measure after which a front answers no more, and one answer.
const MAX_QUEUED: usize = 20 * 1024;
/// Most octets of answers for each octet that is said.
const MAX_ANSWER: usize = 200;

/// Octets of a challenge.
const MAX_CHALLENGE: usize = 4 * 1024;

/// What a client hears, and what the driver hears of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    /// What was said to the client.
    said: Vec<u8>,
    /// The names and responses that it logged in with.
    logins: Vec<Vec<u8>>,
    /// How it ended.
    end: &'static str,
}

/// Plays what a client says in these pieces; `cut` sets the scene.
fn heard(protocol: LoginProtocol, cut: &Cut, pieces: &[&[u8]]) -> Heard {
    let protocol = protocol::of(protocol);
    let mut front = (protocol.front)(Terms {
        hostname: Domain::localhost(),
        capabilities: (protocol.modest)().capabilities,
        mechanisms: Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str)),
        secured: cut.has(0),
        starttls: !cut.has(1),
        plaintext: !cut.has(2),
        trusted: !cut.has(3),
    });
    let (mut input, mut out) = (Input::default(), Output::default());
    let mut heard = Heard { end: "waits", ..Heard::default() };
    front.greet(&mut out);
    heard.said.extend(out.take());
    for piece in pieces {
        input.push(piece);
        if let Some(end) = drive(&mut *front, cut, &mut input, &mut out, &mut heard) {
            heard.end = end;
            break;
        }
    }
    heard.said.extend(out.take());
    heard
}

/// Drives to the next need of input; otherwise says how the connection ended.
fn drive(
    front: &mut dyn Front,
    cut: &Cut,
    input: &mut Input,
    out: &mut Output,
    heard: &mut Heard,
) -> Option<&'static str> {
    loop {
        let step = front.step(input, out);
        assert!(out.len() <= MAX_QUEUED, "{} octets wait for the client", out.len());
        match step {
            Ok(Step::NeedInput) if out.is_full() => heard.said.extend(out.take()),
            Ok(Step::NeedInput) => {
                assert!(input.len() < MAX_UNREAD, "it waits for more than there can be");
                return None;
            }
            Ok(Step::StartTls) => front.secured(out),
            Ok(Step::Event(event)) => answer(front, cut, event, out, &mut heard.logins),
            Ok(Step::Close) => return Some("closed"),
            Err(_) => return Some("violation"),
        }
    }
}

fn answer(
    front: &mut dyn Front,
    cut: &Cut,
    event: Event,
    out: &mut Output,
    logins: &mut Vec<Vec<u8>>,
) {
    let refusal = if cut.has(4) { Refusal::Unavailable } else { Refusal::BadCredentials };
    match event {
        Event::Credentials(credentials) => {
            logins.push(credentials.mailbox().to_vec());
            logins.push(credentials.authcid.to_vec());
            match credentials.proof {
                Proof::Password(password) => {
                    logins.push(password.expose().to_vec());
                    front.refuse(refusal, out);
                }
                // Asks for what only the client can answer.
                Proof::Bearer { .. } | Proof::Scram { .. } => front.challenge(b"{}", out),
            }
        }
        // Some backends ask twice.
        Event::Response(Some(response)) if cut.has(5) && response.expose().len() > 3 => {
            logins.push(response.expose().to_vec());
            // No longer than a backend's line, which is bounded where it is read.
            let challenge = response.expose();
            front.challenge(challenge.get(..MAX_CHALLENGE).unwrap_or(challenge), out);
        }
        Event::Response(response) => {
            logins.push(response.map_or(b"(gave up)".to_vec(), |r| r.expose().to_vec()));
            front.refuse(refusal, out);
        }
    }
}

/// The promises of every front (P10).
///
/// # Panics
///
/// One of them is broken.
pub fn answers_do_not_depend_on_the_pieces(protocol: LoginProtocol, octets: &[u8]) {
    let cut = Cut::read(octets);
    let whole = heard(protocol, &cut, &[cut.said()]);
    let pieces = heard(protocol, &cut, &cut.pieces(cut.said()));
    let (said, cut_said) =
        (String::from_utf8_lossy(&whole.said), String::from_utf8_lossy(&pieces.said));
    assert_eq!(said, cut_said, "what the client hears");
    assert_eq!(whole, pieces);
    // An answer for each line at most, and a greeting: nobody is paid more than was spent.
    let most = MAX_ANSWER * (cut.said().len() + 5);
    assert!(whole.said.len() <= most, "{} octets for {}", whole.said.len(), cut.said().len());
}
