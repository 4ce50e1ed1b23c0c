//! One reply for a message, from what became of each recipient.
//!
//! | recipients | reply | why |
//! |---|---|---|
//! | all accepted | 250 | each is with its owner |
//! | anything unfinished or temporary | 4yz | the sender keeps the message and comes again; recipients that were accepted get it twice then |
//! | none accepted, all permanent | 5yz | the sender reports to its author |
//! | some accepted, the others permanent | 5yz | the author learns of the others; coming again would only repeat both |
//!
//! Nothing is lost by any of them. The duplicates of the second row end with the spool, which takes over
//! what is unfinished.

use shared::smtp::reply::{Class, Reply};

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its owner said 2yz, and its row, as this node has read it, still stood after that.
    Accepted,
    /// Its owner said no, or there is no owner any more.
    Refused(Reply),
    /// No verdict that counts: the owner could not be reached, did not answer, or was changed meanwhile.
    Unfinished,
}

/// The reply for the whole message. Without recipients there is nothing to accept.
pub fn reply(verdicts: &[Verdict], id: &str) -> Reply {
    let mut accepted = 0;
    let mut temporary = None;
    let mut permanent = None;
    for verdict in verdicts {
        match verdict {
            Verdict::Accepted => accepted += 1,
            Verdict::Unfinished => temporary = temporary.or(Some(unfinished())),
            Verdict::Refused(reply) => match reply.class() {
                Class::Permanent => permanent = permanent.or(Some(reply.clone())),
                Class::Accepted | Class::GoOn | Class::Temporary => {
                    temporary = temporary.or(Some(in_class(reply)));
                }
            },
        }
    }
    match (temporary, permanent) {
        (Some(temporary), _) => temporary,
        (None, Some(permanent)) if accepted > 0 => {
            permanent.saying(format!("{} (other recipients have it; id {id})", permanent.text()))
        }
        (None, Some(permanent)) => permanent,
        (None, None) if accepted > 0 => Reply::new(250, (0, 0), format!("Ok, delivered as {id}")),
        (None, None) => Reply::new(554, (5, 1), "No valid recipients"),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn temporary() -> Verdict {
        Verdict::Refused(Reply::new(452, (2, 2), "Mailbox full"))
    }

    fn permanent() -> Verdict {
        Verdict::Refused(Reply::new(550, (7, 1), "Spam"))
    }

    fn code(verdicts: &[Verdict]) -> u16 {
        reply(verdicts, "id").code()
    }

    #[test]
    fn every_line_of_the_table() {
        use Verdict::{Accepted, Unfinished};
        assert_eq!(code(&[Accepted, Accepted]), 250);
        assert_eq!(code(&[Accepted, Unfinished]), 451);
        assert_eq!(code(&[Accepted, temporary()]), 452);
        assert_eq!(code(&[permanent(), temporary()]), 452);
        assert_eq!(code(&[permanent(), Unfinished]), 451);
        assert_eq!(code(&[permanent(), permanent()]), 550);
        assert_eq!(code(&[Accepted, permanent()]), 550);
        assert_eq!(code(&[]), 554);
    }

    #[test]
    fn a_broken_owners_reply_is_never_passed_on_as_a_yes() {
        for code in [200, 250, 354, 600, 199] {
            let odd = Verdict::Refused(Reply::bare(code, "odd"));
            let said = reply(&[odd], "id").code();
            assert!((400..500).contains(&said), "{code} became {said}");
        }
    }

    proptest! {
        /// P3: a 250 is every recipient's; a 5yz is nobody's who may still be delivered to.
        #[test]
        fn a_yes_is_everybodys_and_a_no_is_final(
            kinds in prop::collection::vec(0u8..4, 1..20)
        ) {
            let verdicts: Vec<Verdict> = kinds.iter().map(|kind| match kind {
                0 => Verdict::Accepted,
                1 => temporary(),
                2 => permanent(),
                _ => Verdict::Unfinished,
            }).collect();
            let open = verdicts.iter().any(|v| *v == Verdict::Unfinished || *v == temporary());
            let all = verdicts.iter().all(|v| *v == Verdict::Accepted);
            match code(&verdicts) / 100 {
                2 => prop_assert!(all),
                4 => prop_assert!(open),
                5 => prop_assert!(!open && !all),
                other => prop_assert!(false, "class {}", other),
            }
        }
    }
}
