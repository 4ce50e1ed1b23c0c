//! A conversation with a front, cut at every octet: the cut must not matter.

use shared::dialogue::{Input, Output, Step};

use super::{Event, Front};

/// How a conversation ended and what was said to the client.
#[derive(Debug, PartialEq)]
pub(super) struct Heard {
    pub(super) said: String,
    pub(super) end: String,
}

/// Says `client` to fronts that `new` makes, up to credentials.
pub(super) fn converse<F: Front>(new: impl Fn() -> F, client: &[u8]) -> Heard {
    let outcome = |cut: usize| {
        let mut front = new();
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
                        front.secured(&mut out);
                        out.push("(TLS)\r\n");
                    }
                    Ok(Step::Close) => end = Some("closed".into()),
                    Err(violation) => end = Some(violation.to_string()),
                }
            }
        }
        let said = String::from_utf8_lossy(out.queued()).into_owned();
        Some(Heard { said, end: end.unwrap_or_default() })
    };
    let whole = outcome(0).unwrap();
    for cut in 1..client.len() {
        if let Some(heard) = outcome(cut) {
            assert_eq!(heard, whole, "cut at {cut}");
        }
    }
    whole
}
