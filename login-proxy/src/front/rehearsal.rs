//! Plays what a client says to a bare front, cut at every octet: the cut must not matter.

use shared::dialogue::{Input, Output, Step};

use super::{Event, Front};

/// How a conversation ended and what was said to the client.
#[derive(Debug, PartialEq)]
pub(super) struct Heard {
    pub(super) said: String,
    /// The credentials and how much was unread behind them, or why it ended; empty while it goes on.
    pub(super) end: String,
}

pub(super) fn converse<F: Front>(front: impl Fn() -> F, client: &[u8]) -> Heard {
    let whole = outcome(front(), client, 0).unwrap();
    for cut in 1..client.len() {
        if let Some(heard) = outcome(front(), client, cut) {
            assert_eq!(heard, whole, "cut at {cut}");
        }
    }
    whole
}

fn outcome<F: Front>(mut front: F, client: &[u8], cut: usize) -> Option<Heard> {
    let (mut input, mut out) = (Input::default(), Output::default());
    let (first, rest) = client.split_at(cut);
    let mut end = None;
    for part in [first, rest] {
        input.push(part);
        while end.is_none() {
            match front.step(&mut input, &mut out) {
                Ok(Step::NeedInput) => break,
                Ok(Step::Event(Event::Credentials(c))) => {
                    let authzid = c.authzid.as_deref().map(String::from_utf8_lossy);
                    end = Some(format!(
                        "{:?} {:?} as {authzid:?}, {} unread",
                        String::from_utf8_lossy(&c.authcid),
                        String::from_utf8_lossy(c.password().unwrap().expose()),
                        if cut == 0 { input.len() } else { client.len() - cut + input.len() },
                    ));
                    // What is unread depends on the cut; that nothing is lost does not.
                    if cut > 0 {
                        return None;
                    }
                }
                Ok(Step::Event(Event::Response(_))) => panic!("nobody asked"),
                Ok(Step::StartTls) => {
                    out.push("(TLS)\r\n");
                    front.secured(&mut out);
                }
                Ok(Step::Close) => end = Some("closed".into()),
                Err(violation) => end = Some(violation.to_string()),
            }
        }
    }
    let said = String::from_utf8_lossy(out.queued()).into_owned();
    Some(Heard { said, end: end.unwrap_or_default() })
}
