//! What a client is told of a recipient that is not accepted: the one place where causes become words.
//!
//! The class, the code and the enhanced code are the owner's where the owner decided; the words are always
//! ours, since an owner's own may name hosts that are nobody's business. A fault of ours or of the owner's
//! is never told as the recipient's: it is temporary (P2).

use shared::address::Address;
use shared::ownership::Refusal;
use shared::smtp::reply::{Class, Enhanced, Reply};

/// The owner's verdict, in our words.
pub fn by_owner(reply: &Reply, to: &Address) -> Reply {
    let (subject, detail) = match reply.enhanced() {
        Some(Enhanced { subject, detail }) => (subject, detail),
        None => (0, 0),
    };
    let code = reply.code();
    match reply.class() {
        Class::Permanent if is_our_fault(code) => misconfigured(to),
        Class::Permanent => {
            let words = match (subject, detail) {
                (1, 1..=6) => "no such recipient",
                (2, 1) => "the mailbox takes no mail",
                (2, 2) => "the mailbox is full",
                (2, 3) | (3, 4) => "the message is too large",
                (1, 7 | 8) => "the sender's address is refused by the recipient's server",
                _ => "refused by the recipient's server",
            };
            Reply::new(code, (subject, detail), format!("<{to}>: {words}"))
        }
        Class::Temporary if code >= 400 => {
            let words = match (subject, detail) {
                (2, 2) => "the mailbox is full, try again later",
                _ => "not taken for now by the recipient's server, try again later",
            };
            Reply::new(code, (subject, detail), format!("<{to}>: {words}"))
        }
        // A yes where a no was to be said, or 354 to a RCPT: no verdict that could be passed on.
        Class::Accepted | Class::GoOn | Class::Temporary => {
            Reply::new(451, (3, 0), format!("<{to}>: not deliverable for now, try again later"))
        }
    }
}

/// Permanent replies that blame how we speak or who we are, and not the message: unknown command, wrong
/// order, TLS or authentication wanted, no mail taken from this host (RFC 5321 §4.2.2, RFC 3207, RFC 4954,
/// RFC 7504).
fn is_our_fault(code: u16) -> bool {
    matches!(code, 500 | 502 | 503 | 504 | 521 | 530 | 534 | 535 | 538)
}

/// What the ownership table has instead of an owner.
pub fn by_table(refusal: &Refusal, to: &Address) -> Reply {
    match refusal {
        Refusal::Stale => {
            Reply::new(451, (3, 0), format!("<{to}>: not deliverable for now, try again later"))
        }
        Refusal::Unsettled => {
            Reply::new(451, (3, 0), format!("<{to}>: not deliverable for now, try again later"))
        }
        Refusal::Held { .. } => {
            Reply::new(451, (3, 2), format!("<{to}>: the mailbox is being moved, try again later"))
        }
        Refusal::UnknownBackend { .. } | Refusal::Ambiguous { .. } => misconfigured(to),
        Refusal::NoSuchAccount => Reply::new(550, (1, 1), format!("<{to}>: no such recipient")),
        // Only logins are told so; a list or a forward takes mail.
        Refusal::NoLogin { .. } => Reply::new(550, (1, 1), format!("<{to}>: no such recipient")),
        Refusal::ForeignDomain => relaying(to),
    }
}

/// It is not ours, whatever is written before the `@`.
pub fn relaying(to: &Address) -> Reply {
    Reply::new(550, (7, 1), format!("<{to}>: relaying denied"))
}

/// The owner is known and cannot be asked.
pub fn unreachable(to: &Address) -> Reply {
    Reply::new(451, (4, 1), format!("<{to}>: not reachable for now, try again later"))
}

/// It cannot be delivered now, and not be kept either.
pub fn no_room(to: &Address) -> Reply {
    Reply::new(452, (3, 1), format!("<{to}>: cannot be kept for now, try again later"))
}

/// The owner says that it has no such mailbox, a short time after it was given it.
pub fn just_moved(to: &Address) -> Reply {
    Reply::new(
        451,
        (2, 0),
        format!("<{to}>: the mailbox was moved a short time ago, try again later"),
    )
}

/// Somebody must act on our side; the sender may come again.
pub fn misconfigured(to: &Address) -> Reply {
    Reply::new(451, (3, 5), format!("<{to}>: not deliverable for now, try again later"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to() -> Address {
        Address::parse("ann@example.org").unwrap()
    }

    fn told(code: u16, text: &str) -> String {
        by_owner(&Reply::of_lines(code, text), &to()).to_string()
    }

    #[test]
    fn the_codes_are_the_owners_and_the_words_are_ours() {
        assert_eq!(
            told(550, "5.1.1 <ann@mail7.internal>: user unknown"),
            "550 5.1.1 <ann@example.org>: no such recipient"
        );
        assert_eq!(
            told(452, "4.2.2 quota on /srv/mail"),
            "452 4.2.2 <ann@example.org>: the mailbox is full, try again later"
        );
        for (code, text) in
            [(554, "5.7.1 blocked by mail7.internal"), (550, "go away mail7.internal")]
        {
            assert!(!told(code, text).contains("internal"));
        }
    }

    #[test]
    fn every_refusal_has_an_enhanced_code_of_its_class() {
        assert!(told(550, "unknown").starts_with("550 5.0.0 "));
        assert!(told(450, "greylisted").starts_with("450 4.0.0 "));
        assert!(told(550, "4.2.2 odd").starts_with("550 5.0.0 "));
    }

    #[test]
    fn a_fault_between_the_owner_and_us_is_not_the_recipients() {
        for code in [500, 502, 503, 521, 530, 535, 200, 354] {
            assert!(told(code, "5.5.1 whatever").starts_with("451 4.3."), "{code}");
        }
    }

    #[test]
    fn only_the_table_itself_may_say_no_for_good() {
        let account = || "ann@example.org".into();
        for (refusal, expected) in [
            (Refusal::Stale, "451 4.3.0"),
            (Refusal::Unsettled, "451 4.3.0"),
            (Refusal::Held { account: account() }, "451 4.3.2"),
            (Refusal::UnknownBackend { account: account(), owner: "x".into() }, "451 4.3.5"),
            (Refusal::Ambiguous { name: account() }, "451 4.3.5"),
            (Refusal::NoSuchAccount, "550 5.1.1"),
            (Refusal::NoLogin { account: account() }, "550 5.1.1"),
            (Refusal::ForeignDomain, "550 5.7.1"),
        ] {
            let reply = by_table(&refusal, &to()).to_string();
            assert!(reply.starts_with(expected), "{refusal}: {reply}");
        }
    }
}
