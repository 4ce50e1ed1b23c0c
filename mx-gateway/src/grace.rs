//! The time after a flip in which an owner's "there is no such mailbox" is not believed (MX-18).
//!
//! The new owner may remember from before that the account was not there, or an alias of it was forgotten when
//! it was moved. Either is cured within hours, and what was refused for good is not: so the refusal becomes a
//! temporary one, with words of ours, and the log has an error that says what to do. Of all refusals only those
//! that say that the mailbox is not there: what an owner thinks of a sender or of a message is its own.
//!
//! [`softened`] decides, for every place where an owner's verdict is taken: at RCPT, at the end of a message, and
//! in the queue, where a recipient that is put off is tried again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shared::address::Address;
use shared::ownership::{FlippedAt, Owner};
use shared::smtp::reply::{Class, Enhanced, Reply};

use crate::refusal;

/// There is at most one alarm for an account in this time.
const ALARM_EVERY: Duration = Duration::from_mins(1);
/// Accounts of which it is known that there was one. Further ones are only counted until some are forgotten.
const MOST_ALARMS: usize = 1_000;

/// To what an owner has said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// To the transaction as a whole, by MAIL, or by one reply for recipients who are not all in their grace. It says
    /// nothing about a mailbox.
    Transaction,
    /// To a recipient, by RCPT.
    Recipient,
    /// To a message, by DATA or at its end.
    Message,
}

/// Alarms that were given lately.
#[derive(Debug, Default)]
pub struct Grace {
    alarms: Mutex<Alarms>,
}

/// For how long an account is in its grace, by these clocks.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// So long after a flip; zero: never.
    pub grace: Duration,
    /// The time now.
    pub now: SystemTime,
}

#[derive(Debug, Default)]
struct Alarms {
    given: HashMap<Box<str>, Instant>,
    /// For which there was no room.
    untold: u64,
}

impl Terms {
    /// So long after a flip, by the system's clock.
    pub fn of(grace: Duration) -> Self {
        Self { grace, now: SystemTime::now() }
    }
}

/// How long ago the flip was on account of which a reply is temporary; `None` where the reply stands.
///
/// A flip that is still to come by our clock was a moment ago: one of the clocks is wrong, and nothing is refused
/// for good because of that.
pub fn softened(
    reply: &Reply,
    refused: Refused,
    flipped: Option<FlippedAt>,
    Terms { grace, now }: Terms,
) -> Option<Duration> {
    let flipped = UNIX_EPOCH + Duration::from_secs(flipped?.seconds().into());
    let ago = now.duration_since(flipped).unwrap_or_default();
    (says_no_mailbox(reply, refused) && ago < grace).then_some(ago)
}

/// True for a refusal for good that says that the mailbox is not there: 5.1.x apart from the two that are about the
/// sender's address, 5.2.1 (disabled), and at RCPT the codes that mean this where there is no enhanced code
/// (RFC 5321 §4.2.3, RFC 3463 §3.2).
fn says_no_mailbox(reply: &Reply, refused: Refused) -> bool {
    if reply.class() != Class::Permanent || refused == Refused::Transaction {
        return false;
    }
    match reply.enhanced() {
        Some(Enhanced { subject: 1, detail }) => !matches!(detail, 7 | 8),
        Some(Enhanced { subject, detail }) => (subject, detail) == (2, 1),
        None => refused == Refused::Recipient && matches!(reply.code(), 550 | 551 | 553),
    }
}

impl Grace {
    /// An owner's refusal of one recipient, as it counts, in our words; and an alarm where it is softened.
    pub fn refusal(
        &self,
        reply: &Reply,
        refused: Refused,
        to: &Address,
        owner: Option<&Owner>,
        terms: Terms,
    ) -> Reply {
        let told = refusal::by_owner(reply, to);
        let Some(owner) = owner.filter(|_| told.class() == Class::Permanent) else { return told };
        match softened(reply, refused, owner.flipped, terms) {
            Some(ago) => {
                self.alarm(owner, to, reply, ago, terms.grace);
                refusal::just_moved(to)
            }
            None => told,
        }
    }

    /// What is to be done about it is done at the owner, by somebody who reads this.
    fn alarm(&self, owner: &Owner, to: &Address, reply: &Reply, ago: Duration, grace: Duration) {
        let given = {
            let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
            alarms.give(&owner.account, Instant::now())
        };
        let Some(untold) = given else { return };
        let (account, name) = (&*owner.account, owner.backend.name.as_str());
        let (ago, left) = (ago.as_secs(), grace.saturating_sub(ago).as_secs());
        tracing::error!(
            account, owner = name, %to, %reply, flipped_seconds_ago = ago, seconds_left = left,
            other_accounts_untold = untold,
            "an account was flipped, and its new owner says that it has no such mailbox: senders are told to come \
             again, until the grace (mx.flip_grace) is over and their mail is refused for good. Make the mailbox \
             or the alias at that owner, or flip the account back"
        );
    }
}

impl Alarms {
    /// Whether an alarm for this account is due, and then for how many others there was none.
    fn give(&mut self, account: &str, now: Instant) -> Option<u64> {
        let is_fresh = |given: &Instant| now.saturating_duration_since(*given) < ALARM_EVERY;
        if self.given.get(account).is_some_and(is_fresh) {
            return None;
        }
        if self.given.len() >= MOST_ALARMS {
            self.given.retain(|_, given| is_fresh(given));
        }
        if self.given.len() >= MOST_ALARMS {
            self.untold = self.untold.saturating_add(1);
            return None;
        }
        self.given.insert(account.into(), now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared::backend::{Backend, BackendName};

    use super::*;

    const GRACE: Duration = Duration::from_hours(24);
    const FLIPPED: u64 = 1_700_000_000;

    fn flipped() -> Option<FlippedAt> {
        FlippedAt::of_seconds(i64::try_from(FLIPPED).unwrap())
    }

    /// So long after the flip; before it where that is less than nothing.
    fn at(seconds: i64) -> Terms {
        let now = UNIX_EPOCH + Duration::from_secs(FLIPPED.checked_add_signed(seconds).unwrap());
        Terms { grace: GRACE, now }
    }

    fn is_soft(code: u16, text: &str, refused: Refused) -> bool {
        softened(&Reply::of_lines(code, text), refused, flipped(), at(60)).is_some()
    }

    #[test]
    fn only_a_mailbox_that_is_said_not_to_be_there_is_not_believed() {
        for text in ["5.1.1 who?", "5.1.0 x", "5.1.2 x", "5.1.6 moved", "5.1.10 x", "5.2.1 off"] {
            for code in [550, 553, 554] {
                assert!(is_soft(code, text, Refused::Recipient), "{code} {text}");
                assert!(is_soft(code, text, Refused::Message), "{code} {text}");
                assert!(!is_soft(code, text, Refused::Transaction), "{code} {text}");
            }
        }
        // Policy, quota, size, no more than "no", and what is about the sender.
        for text in ["5.7.1 x", "5.2.2 x", "5.3.4 x", "5.0.0 x", "5.4.1 x", "5.1.7 x", "5.1.8 x"] {
            assert!(!is_soft(550, text, Refused::Recipient), "{text}");
            assert!(!is_soft(550, text, Refused::Message), "{text}");
        }
        for (code, text) in [(450, "4.1.1 x"), (451, "4.2.1 x"), (250, "2.1.5 x"), (354, "x")] {
            assert!(!is_soft(code, text, Refused::Recipient), "{code} {text}");
        }
    }

    #[test]
    fn a_code_alone_says_it_at_rcpt_only() {
        for (code, soft) in [(550, true), (551, true), (553, true), (552, false), (554, false)] {
            assert_eq!(is_soft(code, "who?", Refused::Recipient), soft, "{code}");
            assert!(!is_soft(code, "who?", Refused::Message), "{code}");
            assert!(!is_soft(code, "who?", Refused::Transaction), "{code}");
        }
        assert!(is_soft(
            550,
            "4.2.2 an enhanced code of another class is text",
            Refused::Recipient
        ));
    }

    #[test]
    fn the_grace_begins_with_the_flip_and_ends() {
        let reply = Reply::of_lines(550, "5.1.1 who?");
        let soft = |terms| softened(&reply, Refused::Recipient, flipped(), terms);
        let day = 24 * 60 * 60;
        assert_eq!(soft(at(0)), Some(Duration::ZERO));
        assert_eq!(soft(at(day - 1)), Some(Duration::from_secs(24 * 60 * 60 - 1)));
        assert_eq!(soft(at(day)), None);
        assert_eq!(soft(at(365 * day)), None);
        assert_eq!(softened(&reply, Refused::Recipient, None, at(0)), None, "never flipped");
        let off = Terms { grace: Duration::ZERO, ..at(0) };
        assert_eq!((soft(off), soft(Terms { grace: Duration::ZERO, ..at(-1) })), (None, None));
    }

    #[test]
    fn a_clock_that_was_set_back_refuses_nothing_for_good() {
        let reply = Reply::of_lines(550, "5.1.1 who?");
        for seconds in [-1, -24 * 60 * 60, -1_600_000_000] {
            let soft = softened(&reply, Refused::Recipient, flipped(), at(seconds));
            assert_eq!(soft, Some(Duration::ZERO), "{seconds}");
        }
    }

    #[test]
    fn what_is_softened_is_told_in_our_words_and_has_an_alarm_and_nothing_else_has() {
        let to = Address::parse("ann+lists@example.org").unwrap();
        let told = |text: &str, flipped, alarms| {
            let backend = Arc::new(Backend::new(BackendName::parse("new").unwrap()));
            let account = "ann@example.org".into();
            let owner = Owner { account, backend, epoch: 1, known: true, flipped };
            let reply = Reply::of_lines(text[..3].parse().unwrap(), &text[4..]);
            let grace = Grace::default();
            let told = grace.refusal(&reply, Refused::Recipient, &to, Some(&owner), at(60));
            let given = &grace.alarms.lock().unwrap().given;
            assert_eq!(given.keys().map(|account| &**account).collect::<Vec<_>>(), alarms);
            told.to_string()
        };
        assert_eq!(
            told("550 5.1.1 no ann at mail7.internal", flipped(), vec!["ann@example.org"]),
            "451 4.2.0 <ann+lists@example.org>: the mailbox was moved a short time ago, try again later"
        );
        assert!(told("550 5.1.1 who?", None, vec![]).starts_with("550 5.1.1 "));
        assert!(told("550 5.7.1 spam", flipped(), vec![]).starts_with("550 5.7.1 "));
        // Temporary anyway, and about us.
        assert!(told("503 5.1.1 wrong order", flipped(), vec![]).starts_with("451 4.3.5 "));
    }

    #[test]
    fn an_account_has_one_alarm_a_minute() {
        let (mut alarms, began) = (Alarms::default(), Instant::now());
        let mut give =
            |account, seconds| alarms.give(account, began + Duration::from_secs(seconds)).is_some();
        assert!(give("ann", 0) && !give("ann", 59) && give("ben", 59));
        assert!(give("ann", 60) && !give("ben", 60) && !give("ann", 119) && give("ann", 120));
    }

    #[test]
    fn alarms_need_no_more_than_so_much_memory_and_those_left_out_are_counted() {
        let (mut alarms, began) = (Alarms::default(), Instant::now());
        for number in 0..MOST_ALARMS {
            assert_eq!(alarms.give(&number.to_string(), began), Some(0));
        }
        for account in ["ann", "ben", "ann"] {
            assert_eq!(alarms.give(account, began), None);
        }
        assert_eq!(alarms.given.len(), MOST_ALARMS);
        assert_eq!(alarms.give("ann", began + ALARM_EVERY), Some(3));
        assert_eq!(alarms.given.len(), 1);
    }
}
