//! What is offered, and what may be said because of it: DSN, SMTPUTF8, XCLIENT; LMTP's own rules.

use super::*;

fn everything() -> Terms {
    Terms { dsn: true, smtputf8: true, chunking: true, trusted: true, ..terms() }
}

/// What is said to this behind EHLO.
fn after_ehlo(terms: &Terms, commands: &str) -> String {
    let said = converse_on(terms, &[&format!("EHLO c\r\n{commands}")]);
    said.split_once("STARTTLS\r\n").unwrap().1.replace("\r\n", "|")
}

#[test]
fn everything_that_there_is_is_offered_and_nothing_else() {
    let said = converse_on(&everything(), &["EHLO c\r\n"]);
    let offered: Vec<&str> = said.lines().skip(2).map(|line| &line[4..]).collect();
    assert_eq!(
        offered,
        [
            "PIPELINING",
            "SIZE 1000",
            "8BITMIME",
            "CHUNKING",
            "DSN",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
            "XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT",
            "STARTTLS",
        ]
    );
}

#[test]
fn what_the_sender_wants_to_hear_is_taken_where_dsn_is_offered() {
    let envelope = "MAIL FROM:<b@c.example> RET=HDRS ENVID=x1\r\n\
                    RCPT TO:<ann@example.org> NOTIFY=FAILURE,DELAY ORCPT=rfc822;a+2Bb@c.example\r\n";
    assert_eq!(after_ehlo(&everything(), envelope), "250 2.1.0 <b@c.example> ok|250 2.1.5 ok|");
    let without = Terms { dsn: false, ..everything() };
    assert_eq!(
        after_ehlo(
            &without,
            &format!("{envelope}MAIL FROM:<>\r\n{}", envelope.split_once("\r\n").unwrap().1)
        ),
        "555 5.5.4 Unsupported parameter|555 5.5.4 Unsupported parameter|250 2.1.0 <> ok|\
         555 5.5.4 Unsupported parameter|"
    );
}

#[test]
fn an_address_beyond_ascii_is_taken_in_a_message_that_says_so_only() {
    let rcpt = "RCPT TO:<\u{fc}nal@example.org>\r\n";
    let after = |commands: String| after_ehlo(&everything(), &commands);
    assert_eq!(
        after(format!("MAIL FROM:<b\u{f6}b@c.example> SMTPUTF8\r\n{rcpt}")),
        "250 2.1.0 <b\u{f6}b@c.example> ok|550 5.1.1 unknown|"
    );
    let unsupported = "553 5.6.7 Non-ASCII addresses are not supported|";
    assert_eq!(after(format!("MAIL FROM:<>\r\n{rcpt}")), format!("250 2.1.0 <> ok|{unsupported}"));
    assert_eq!(after("MAIL FROM:<b\u{f6}b@c.example>\r\n".to_owned()), unsupported);
    let domain = "MAIL FROM:<>\r\nRCPT TO:<ann@b\u{fc}cher.example>\r\n";
    assert_eq!(after(domain.to_owned()), format!("250 2.1.0 <> ok|{unsupported}"));
    let without = Terms { smtputf8: false, ..everything() };
    let said = after_ehlo(&without, "MAIL FROM:<b@c.example> SMTPUTF8\r\n");
    assert_eq!(said, "555 5.5.4 Unsupported parameter|");
}

#[test]
fn who_says_helo_was_offered_nothing() {
    let said = converse_on(&everything(), &["HELO c\r\nMAIL FROM:<> SIZE=1\r\nMAIL FROM:<>\r\n"]);
    assert!(said.ends_with("555 5.5.4 Unsupported parameter\r\n250 2.1.0 <> ok\r\n"), "{said}");
}

#[test]
fn a_session_has_room_for_a_hundred_recipients_and_more() {
    let rcpts = "RCPT TO:<ann@example.org>\r\n".repeat(1000);
    let said = converse_whole(&[&format!("EHLO c\r\nMAIL FROM:<>\r\n{rcpts}DATA\r\n")]);
    assert_eq!(said.matches("250 2.1.5 ok").count(), 1000);
    assert!(said.ends_with("354 go on\r\n"), "{said}");
}

#[test]
fn each_recipient_has_its_own_reply_and_the_last_one_stands_for_those_without() {
    let accepted = Reply::new(250, (0, 0), "a");
    let later = Reply::new(451, (3, 0), "b");
    for (protocol, replies, expected) in [
        (
            Protocol::Lmtp,
            vec![&accepted, &later, &accepted],
            "250 2.0.0 a|451 4.3.0 b|250 2.0.0 a|",
        ),
        (Protocol::Lmtp, vec![&accepted, &later], "250 2.0.0 a|451 4.3.0 b|451 4.3.0 b|"),
        (Protocol::Lmtp, vec![&accepted; 4], "250 2.0.0 a|250 2.0.0 a|250 2.0.0 a|"),
        (Protocol::Smtp, vec![&accepted, &later, &accepted], "250 2.0.0 a|"),
    ] {
        let hello = if protocol == Protocol::Lmtp { "LHLO" } else { "EHLO" };
        let mut session = Session::new(Terms { protocol, ..everything() }, false);
        let mut out = Output::default();
        let rcpts = "RCPT TO:<ann@example.org>\r\n".repeat(3);
        let envelope = format!("{hello} c\r\nMAIL FROM:<>\r\n{rcpts}BDAT 1 LAST\r\nx");
        let mut input = Input::from_octets(envelope.as_bytes());
        while let Ok(Step::Event(event)) = session.step(&mut input, &mut out) {
            if matches!(event, Event::EndOfData { .. }) {
                out.clear();
                let replies: Vec<Reply> = replies.iter().map(|reply| (*reply).clone()).collect();
                session.answer_each(&replies, &mut out);
            } else {
                answer(&mut session, &event, &mut out);
            }
        }
        assert_eq!(String::from_utf8_lossy(out.queued()).replace("\r\n", "|"), expected);
    }
}

#[test]
fn lmtp_and_smtp_have_each_their_own_hello() {
    let lmtp = Terms { protocol: Protocol::Lmtp, ..everything() };
    let said = converse_on(&lmtp, &["EHLO c\r\nHELO c\r\nMAIL FROM:<>\r\nLHLO c\r\n"]);
    let refused = "500 5.5.1 This is LMTP, say LHLO\r\n";
    let begin =
        format!("220 mx.example.org LMTP\r\n{refused}{refused}503 5.5.1 Say LHLO first\r\n250-");
    assert!(said.starts_with(&begin), "{said}");
    let said = converse_on(&everything(), &["LHLO c\r\n"]);
    assert!(said.ends_with("500 5.5.1 This is SMTP, say EHLO\r\n"), "{said}");
}

#[test]
fn a_trusted_peer_is_believed_and_everything_begins_anew() {
    let said = converse_on(
        &everything(),
        &[
            "EHLO edge\r\nXCLIENT HELO=c.example ADDR=192.0.2.7\r\nMAIL FROM:<>\r\nXCLIENT ADDR=::1\r\nEHLO e\r\n",
        ],
    );
    let behind = said.split_once("STARTTLS\r\n").unwrap().1;
    let begin = "220 mx.example.org ESMTP\r\n503 5.5.1 Say EHLO first\r\n\
                 550 5.7.0 You are not trusted with XCLIENT\r\n250-mx.example.org\r\n";
    assert!(behind.starts_with(begin) && !behind.contains("XCLIENT NAME"), "{behind}");
}

#[test]
fn what_a_trusted_peer_says_of_its_client_counts_for_what_the_peer_says_itself() {
    let (mut session, mut out) = (Session::new(everything(), false), Output::default());
    let lines =
        b"XCLIENT HELO=c.example PROTO=SMTP ADDR=192.0.2.7\r\nEHLO edge\r\nMAIL FROM:<> SIZE=1\r\n";
    let end = drive(&mut session, &mut Input::from_octets(lines), &mut out);
    assert_eq!(end, None);
    let helo = session.helo().unwrap();
    assert_eq!((&*helo.name, helo.extended), ("c.example", false));
    // It was the peer that was offered extensions.
    assert!(out.queued().ends_with(b"250 2.1.0 <> ok\r\n"));
}

#[test]
fn a_client_that_is_named_and_has_no_place_is_told_so() {
    let said = after_ehlo(&everything(), "XCLIENT PORT=1 ADDR=192.0.2.7\r\n");
    assert_eq!(said, "421 4.7.0 full|(closed)");
}

#[test]
fn every_reply_but_the_greeting_and_to_hello_has_an_enhanced_code_of_its_class() {
    let lines = "FOO\r\nMAIL\r\nRCPT TO:<x>\r\nDATA\r\nBDAT 0\r\nNOOP\r\nRSET\r\nVRFY x\r\nVRFY\r\nHELP\r\n\
                 EXPN x\r\nETRN x\r\nTURN\r\nAUTH x\r\nLHLO x\r\nXCLIENT x\r\nXFORWARD x\r\nDATA x\r\n\
                 STARTTLS x\r\nMAIL FROM:<> X=1\r\nMAIL FROM:<>\r\nDATA\r\nQUIT\r\n";
    let said = after_ehlo(&everything(), lines);
    for line in said.split('|').filter(|line| !line.is_empty() && *line != "(closed)") {
        let (code, rest) = line.split_once(' ').unwrap();
        assert!(rest.starts_with(&format!("{}.", &code[..1])), "{line}");
        assert_eq!(rest.split(' ').next().unwrap().split('.').count(), 3, "{line}");
    }
}
