use proptest::prelude::*;
use time::macros::datetime;

use super::*;

fn ours() -> Client {
    Client { address: "192.0.2.7".parse().unwrap(), session: 9 }
}

fn from(address: &str) -> ReversePath {
    ReversePath::parse(address).unwrap()
}

fn relay() -> Relay<'static> {
    let address = Some("10.0.0.2:24".parse().unwrap());
    Relay { daemon: "lmtp", name: "new", address }
}

fn named<'a>(from: &'a ReversePath, to: Option<&'a str>, helo: &'a str) -> Named<'a> {
    Named { command: "RCPT", from, to, protocol: "ESMTP", helo }
}

#[test]
fn a_line_has_the_form_of_syslog() {
    let at = datetime!(2026-11-04 09:05:03 UTC);
    assert_eq!(
        line(at, "mx", "postfix/smtpd[9]", &connect(&ours())),
        "Nov  4 09:05:03 mx postfix/smtpd[9]: connect from unknown[192.0.2.7]\n"
    );
}

#[test]
fn each_event_is_in_postfix_words() {
    let bob = from("bob@example.com");
    let no = Reply::new(550, (1, 1), "<ann@example.org>: no such recipient");
    let mut tally = Tally::default();
    tally.ehlo.add(true);
    tally.mail.add(true);
    tally.rcpt.answered(&no);
    tally.rcpt.add(true);
    tally.data.add(true);
    let delays = Delays {
        before: Duration::from_millis(304),
        connecting: Duration::from_millis(50),
        sending: Duration::from_millis(60),
        ..Delays::default()
    };
    let none = Delays::default();
    let ok = Reply::of_lines(250, "2.0.0 Saved");
    let full = Reply::new(452, (2, 2), "Mailbox full");
    let silent = Relay { daemon: "smtp", name: "old", address: None };
    for (said, expected) in [
        (
            disconnect(&ours(), &tally),
            "disconnect from unknown[192.0.2.7] ehlo=1 mail=1 rcpt=1/2 data=1 commands=4/5",
        ),
        (
            reject(&ours(), &named(&bob, Some("ann@example.org"), "mail.example.com"), &no),
            "NOQUEUE: reject: RCPT from unknown[192.0.2.7]: 550 5.1.1 <ann@example.org>: \
             Recipient address rejected: User unknown; from=<bob@example.com> to=<ann@example.org> proto=ESMTP helo=<mail.example.com>",
        ),
        (client("1a", &ours()), "1a: client=unknown[192.0.2.7]"),
        (message_id("1a", "<x@y.example>"), "1a: message-id=<x@y.example>"),
        (
            queued("1a", &bob, 700, 2),
            "1a: from=<bob@example.com>, size=700, nrcpt=2 (queue active)",
        ),
        (queued("1a", &ReversePath::Null, 0, 1), "1a: from=<>, size=0, nrcpt=1 (queue active)"),
        (
            attempt("1a", "ann@example.org", Some(&relay()), &delays, &Status::Sent(&ok)),
            "1a: to=<ann@example.org>, relay=new[10.0.0.2]:24, delay=0.41, delays=0.3/0/0.05/0.06, \
             dsn=2.0.0, status=sent (250 2.0.0 Saved)",
        ),
        (
            attempt("1a", "a@b.example", Some(&silent), &none, &Status::Deferred(&full)),
            "1a: to=<a@b.example>, relay=old, delay=0, delays=0/0/0/0, dsn=4.2.2, status=deferred \
             (452 4.2.2 Mailbox full)",
        ),
        (
            attempt("1a", "a@b.example", None, &none, &Status::Unanswered("not reachable")),
            "1a: to=<a@b.example>, relay=none, delay=0, delays=0/0/0/0, dsn=4.4.1, status=deferred \
             (not reachable)",
        ),
        (
            attempt("1a", "a@b.example", None, &none, &Status::Bounced(&no)),
            "1a: to=<a@b.example>, relay=none, delay=0, delays=0/0/0/0, dsn=5.1.1, status=bounced \
             (550 5.1.1 <ann@example.org>: no such recipient)",
        ),
        (removed("1a"), "1a: removed"),
    ] {
        assert_eq!(said, expected);
    }
}

#[test]
fn times_have_two_figures() {
    for (milliseconds, shown) in [
        (0, "0"),
        (9, "0"),
        (10, "0.01"),
        (304, "0.3"),
        (999, "0.99"),
        (1_000, "1"),
        (1_250, "1.2"),
        (10_900, "10"),
        (123_456, "123"),
    ] {
        assert_eq!(seconds(Duration::from_millis(milliseconds)), shown, "{milliseconds}");
    }
}

proptest! {
    /// Whatever somebody says, it makes no second line, and no field of its own.
    #[test]
    fn a_peer_cannot_write_our_lines(text in "\\PC{0,40}|[<>\\[\\]\r\n ,=a]{0,40}|(?s).{0,40}") {
        let bob = from("bob@example.com");
        let at = datetime!(2026-11-04 09:05:03 UTC);
        let fields = named(&bob, Some(&text), &text);
        for said in [
            reject(&ours(), &fields, &Reply::new(550, (1, 1), text.as_str())),
            attempt(&text, &text, None, &Delays::default(), &Status::Unanswered(&text)),
            message_id("1a", &text),
        ] {
            let line = line(at, "mx", "postfix/smtpd[9]", &said);
            prop_assert!(line.ends_with('\n'));
            prop_assert!(!line.trim_end_matches('\n').contains(|c: char| c.is_control()), "{:?}", line);
        }
        let said = reject(&ours(), &fields, &Reply::new(550, (1, 1), text.as_str()));
        let (_, values) = said.split_once("; ").unwrap();
        // from, to, proto, helo: four words, however they read.
        prop_assert_eq!(values.split(' ').count(), 4, "{}", said);
        let (to, rest) = values.split_once("to=<").unwrap().1.split_once('>').unwrap();
        prop_assert!(!to.contains('<') && rest.starts_with(" proto=ESMTP helo=<"), "{}", said);
    }
}
