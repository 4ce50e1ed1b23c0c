//! One reply for a message, and who answers for each recipient from then on (DESIGN §3.2, P3).
//!
//! | recipients | reply | and then |
//! |---|---|---|
//! | all accepted | 250 | nothing is kept |
//! | all refused for good | 5yz | the sender reports to its author |
//! | refused, some of them for now, and nobody may have it | 4yz | the sender keeps the message and comes again |
//! | nobody refused for now or somebody may have it | 250 | who has it is done; who was refused for good is reported; all others are kept in the spool, before the 250 |
//! | as the last, and the spool cannot keep it | 4yz | the sender keeps the message; who has it gets it twice then (P9) |
//!
//! What an owner refuses for good in the grace after a flip ([`crate::grace`]) comes here as refused for now.
//!
//! With LMTP each recipient has a reply of its own (RFC 2033 §4.2), and nobody depends on another.

use std::fmt::Display;

use shared::smtp::reply::{Class, Reply};

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its owner said 2yz, and its row, as this node has read it, still stood after that.
    Accepted,
    /// Its owner said no, or there is no owner any more.
    Refused(Reply),
    /// Nobody can have taken it: the owner could not be reached, the connection broke before the end of the
    /// message was sent, or the account was changed before that.
    NotSent,
    /// Its account is held: it was not tried.
    Held,
    /// The message was sent to its end, and no reply came that counts.
    InDoubt,
}

/// What is said to the client, and what has to be done before that.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// One reply, or with LMTP one for each recipient.
    pub replies: Vec<Reply>,
    /// Recipients for whom we answer from now on, by their place.
    pub kept: Vec<usize>,
    /// Recipients that were refused for good and of whom only we can tell the sender, by their place.
    pub failed: Vec<usize>,
}

/// The outcome for all recipients together. `None` is one whose owner has not answered yet, and will not be
/// waited for. With `spool` false nothing can be kept. Without recipients there is nothing to accept.
pub fn of_all(verdicts: &[Option<Verdict>], spool: bool, id: &str) -> Outcome {
    let mut sorted = Sorted::default();
    for (place, verdict) in verdicts.iter().enumerate() {
        sorted.add(place, verdict.as_ref());
    }
    let Sorted { accepted, in_doubt, held, temporary, permanent, open, failed } = sorted;
    let only = |reply| Outcome { replies: vec![reply], kept: Vec::new(), failed: Vec::new() };
    let may_have_it = accepted || in_doubt;
    match (temporary, permanent) {
        (None, None) if open.is_empty() && accepted => only(delivered(id)),
        (None, None) if open.is_empty() => only(Reply::new(554, (5, 1), "No valid recipients")),
        (None, Some(permanent)) if open.is_empty() && !accepted => only(permanent),
        (None, Some(permanent)) if open.is_empty() && !spool => {
            // Coming again would only double what was delivered.
            only(
                permanent
                    .saying(format!("{} (other recipients have it; id {id})", permanent.text())),
            )
        }
        (Some(temporary), _) if !may_have_it || !spool => only(temporary),
        (None, _) if !spool && held => only(being_moved()),
        (None, _) if !spool => only(unfinished()),
        (_, _) => Outcome { replies: vec![kept(id)], kept: open, failed },
    }
}

/// The outcome for each recipient (RFC 2033 §4.2).
pub fn of_each(verdicts: &[Option<Verdict>], spool: bool, id: &str) -> Outcome {
    let mut outcome = Outcome { replies: Vec::new(), kept: Vec::new(), failed: Vec::new() };
    for (place, verdict) in verdicts.iter().enumerate() {
        outcome.replies.push(match verdict {
            Some(Verdict::Accepted) => delivered(id),
            Some(Verdict::Refused(reply)) if reply.class() == Class::Permanent => reply.clone(),
            Some(Verdict::Refused(reply)) => in_class(reply),
            Some(Verdict::NotSent | Verdict::Held | Verdict::InDoubt) | None if spool => {
                outcome.kept.push(place);
                kept(id)
            }
            Some(Verdict::Held) => being_moved(),
            Some(Verdict::NotSent | Verdict::InDoubt) | None => unfinished(),
        });
    }
    outcome
}

/// Verdicts by what they mean for the message.
#[derive(Default)]
struct Sorted {
    accepted: bool,
    /// Somebody may have it who has not said so.
    in_doubt: bool,
    held: bool,
    temporary: Option<Reply>,
    permanent: Option<Reply>,
    /// Who is not done, by place.
    open: Vec<usize>,
    failed: Vec<usize>,
}

impl Sorted {
    fn add(&mut self, place: usize, verdict: Option<&Verdict>) {
        match verdict {
            Some(Verdict::Accepted) => self.accepted = true,
            Some(Verdict::Refused(reply)) if reply.class() == Class::Permanent => {
                self.permanent.get_or_insert_with(|| reply.clone());
                self.failed.push(place);
            }
            Some(Verdict::Refused(reply)) => {
                self.temporary.get_or_insert_with(|| in_class(reply));
                self.open.push(place);
            }
            Some(Verdict::NotSent) => self.open.push(place),
            Some(Verdict::Held) => {
                self.held = true;
                self.open.push(place);
            }
            Some(Verdict::InDoubt) | None => {
                self.in_doubt = true;
                self.open.push(place);
            }
        }
    }
}

/// A refusal that is to keep the message with the sender must be one that does so.
fn in_class(reply: &Reply) -> Reply {
    if reply.class() == Class::Temporary && reply.code() / 100 == 4 {
        reply.clone()
    } else {
        unfinished()
    }
}

fn unfinished() -> Reply {
    Reply::new(451, (4, 1), "Not delivered for now, try again later")
}

fn being_moved() -> Reply {
    Reply::new(451, (3, 2), "A mailbox is being moved, try again later")
}

fn delivered(id: &str) -> Reply {
    Reply::new(250, (0, 0), format!("Ok, delivered as {id}"))
}

/// For a message that came before, under that name, and is not delivered again.
pub fn delivered_before(former: &impl Display) -> Reply {
    Reply::new(250, (0, 0), format!("Ok, already delivered as {former}"))
}

/// For a message that is being delivered while it comes again.
pub fn being_delivered() -> Reply {
    Reply::new(451, (4, 5), "This message is being delivered already, try again later")
}

fn kept(id: &str) -> Reply {
    Reply::new(250, (0, 0), format!("Ok, queued as {id}"))
}

#[cfg(test)]
mod tests {
    use Verdict::{Accepted, Held, InDoubt, NotSent};
    use proptest::prelude::*;

    use super::*;

    fn temporary() -> Verdict {
        Verdict::Refused(Reply::new(452, (2, 2), "Mailbox full"))
    }

    fn permanent() -> Verdict {
        Verdict::Refused(Reply::new(550, (7, 1), "Spam"))
    }

    /// Code, who is kept, who is reported.
    fn all(verdicts: &[Verdict], spool: bool) -> (u16, Vec<usize>, Vec<usize>) {
        let verdicts: Vec<_> = verdicts.iter().cloned().map(Some).collect();
        let Outcome { replies, kept, failed } = of_all(&verdicts, spool, "id");
        assert_eq!(replies.len(), 1);
        (replies[0].code(), kept, failed)
    }

    #[test]
    fn every_line_of_the_table() {
        for (verdicts, expected) in [
            (vec![Accepted, Accepted], (250, vec![], vec![])),
            (vec![permanent(), permanent()], (550, vec![], vec![])),
            (vec![permanent(), temporary()], (452, vec![], vec![])),
            (vec![temporary(), NotSent], (452, vec![], vec![])),
            (vec![temporary(), Held], (452, vec![], vec![])),
            (vec![NotSent, Held], (250, vec![0, 1], vec![])),
            (vec![NotSent, permanent()], (250, vec![0], vec![1])),
            (vec![InDoubt], (250, vec![0], vec![])),
            (vec![InDoubt, temporary()], (250, vec![0, 1], vec![])),
            (vec![Accepted, temporary(), NotSent, Held], (250, vec![1, 2, 3], vec![])),
            (vec![Accepted, permanent()], (250, vec![], vec![1])),
            (vec![], (554, vec![], vec![])),
        ] {
            assert_eq!(all(&verdicts, true), expected, "{verdicts:?}");
        }
    }

    #[test]
    fn without_a_spool_the_sender_keeps_what_is_unfinished() {
        for (verdicts, expected) in [
            (vec![Accepted, Accepted], 250),
            (vec![NotSent], 451),
            (vec![Held], 451),
            (vec![Accepted, InDoubt], 451),
            (vec![Accepted, temporary()], 452),
            (vec![Accepted, permanent()], 550),
            (vec![permanent(), NotSent], 451),
        ] {
            assert_eq!(all(&verdicts, false), (expected, vec![], vec![]), "{verdicts:?}");
        }
    }

    #[test]
    fn an_owner_that_is_not_waited_for_any_more_may_have_the_message() {
        let outcome = of_all(&[None, Some(temporary())], true, "id");
        assert_eq!((outcome.replies[0].code(), outcome.kept), (250, vec![0, 1]));
    }

    #[test]
    fn lmtp_has_a_reply_for_each_recipient() {
        let verdicts = [Accepted, permanent(), temporary(), NotSent, Held, InDoubt].map(Some);
        for (spool, kept) in [(true, 250), (false, 451)] {
            let outcome = of_each(&verdicts, spool, "id");
            let codes: Vec<_> = outcome.replies.iter().map(Reply::code).collect();
            assert_eq!(codes, [250, 550, 452, kept, kept, kept]);
            assert!(outcome.failed.is_empty(), "the client was told of them");
        }
    }

    #[test]
    fn a_broken_owners_reply_is_never_passed_on_as_a_yes() {
        for code in [200, 250, 354, 600, 199] {
            let odd = Verdict::Refused(Reply::bare(code, "odd"));
            let (said, ..) = all(&[odd], true);
            assert!((400..500).contains(&said), "{code} became {said}");
        }
    }

    proptest! {
        /// P3: after a 250 everybody has it, is kept or is reported; a 5yz is nobody's who may still get it.
        #[test]
        fn a_yes_leaves_nobody_behind_and_a_no_leaves_nobody_with_us(
            kinds in prop::collection::vec(0u8..6, 1..20),
            spool in any::<bool>(),
        ) {
            let verdicts: Vec<Verdict> = kinds.iter().map(|kind| match kind {
                0 => Accepted,
                1 => temporary(),
                2 => permanent(),
                3 => NotSent,
                4 => Held,
                _ => InDoubt,
            }).collect();
            let (code, kept, failed) = all(&verdicts, spool);
            let open = |v: &Verdict| !matches!(v, Accepted) && *v != permanent();
            match code / 100 {
                2 => for (place, verdict) in verdicts.iter().enumerate() {
                    prop_assert_eq!(kept.contains(&place), open(verdict));
                    prop_assert_eq!(failed.contains(&place), *verdict == permanent());
                },
                4 => prop_assert!(verdicts.iter().any(open) && kept.is_empty() && failed.is_empty()),
                5 => prop_assert!(!verdicts.iter().any(open) && kept.is_empty() && failed.is_empty()),
                other => prop_assert!(false, "class {}", other),
            }
        }
    }
}
