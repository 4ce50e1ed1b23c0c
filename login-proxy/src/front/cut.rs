//! Plays what a client says to a front, cut at every octet: where the network cuts must never matter.

use shared::dialogue::{Input, Output, Step};

use super::{Event, Front};

/// What was said to a client, and how its conversation ended.
#[derive(Debug, PartialEq)]
pub(super) struct Heard {
    pub(super) said: String,
    /// The credentials that were given and what was left unread, a violation, `closed`, or nothing.
    pub(super) end: String,
}

/// What a client hears that says all this, up to its first credentials.
pub(super) fn converse<F: Front>(new: impl Fn() -> F, client: &[u8]) -> Heard {
    let whole = outcome(new(), client, 0).unwrap();
    for cut in 1..client.len() {
        if let Some(heard) = outcome(new(), client, cut) {
            assert_eq!(heard, whole, "cut at {cut}");
        }
    }
    whole
}

fn outcome(mut front: impl Front, client: &[u8], cut: usize) -> Option<Heard> {
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
                        String::from_utf8_lossy(c.password().or(c.token()).unwrap().expose()),
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

/// What is said to the event that `before` leads to.
pub(super) fn answered<F: Front>(
    mut front: F,
    before: &[u8],
    answer: impl Fn(&mut F, &mut Output),
) -> String {
    let (mut input, mut out) = (Input::from_octets(before), Output::default());
    while !matches!(front.step(&mut input, &mut out), Ok(Step::Event(_))) {}
    out.clear();
    answer(&mut front, &mut out);
    String::from_utf8_lossy(out.queued()).into_owned()
}
