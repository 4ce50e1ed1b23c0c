//! What a client says and hears. Each conversation is cut at every octet: the cut must not matter. Longer
//! ones are `tests/chats/smtp`.

mod chunks;
mod extensions;

use shared::smtp::path::ForwardPath;

use super::*;

fn terms() -> Terms {
    Terms {
        hostname: "mx.example.org".into(),
        protocol: Protocol::Smtp,
        max_size: 1000,
        starttls: true,
        dsn: false,
        smtputf8: false,
        chunking: false,
        trusted: false,
    }
}

/// Says `turns` one after the other (a turn ends where a client must wait, as for 354) and returns all
/// replies. RCPT is accepted for ann, refused for now for held, and refused for others.
fn converse(turns: &[&str]) -> String {
    converse_on(&terms(), turns)
}

/// The same on other terms.
fn converse_on(terms: &Terms, turns: &[&str]) -> String {
    let whole = outcome(terms, turns, 0, 0);
    for (turn, octets) in turns.iter().enumerate() {
        for cut in 1..octets.len() {
            assert_eq!(outcome(terms, turns, turn, cut), whole, "turn {turn} cut at {cut}");
        }
    }
    whole
}

/// The same without cuts, for long conversations.
fn converse_whole(turns: &[&str]) -> String {
    outcome(&terms(), turns, 0, 0)
}

fn outcome(terms: &Terms, turns: &[&str], turn_cut: usize, cut: usize) -> String {
    let mut session = Session::new(terms.clone(), false);
    let (mut input, mut out) = (Input::default(), Output::default());
    session.greet(false, &mut out);
    for (turn, octets) in turns.iter().enumerate() {
        let cut = if turn == turn_cut { cut } else { 0 };
        let (first, rest) = octets.as_bytes().split_at(cut);
        for part in [first, rest] {
            input.push(part);
            if let Some(end) = drive(&mut session, &mut input, &mut out) {
                out.push(end);
                return String::from_utf8_lossy(out.queued()).into_owned();
            }
        }
    }
    String::from_utf8_lossy(out.queued()).into_owned()
}

/// Drives to the next need of input; the end of the session in words otherwise.
fn drive(session: &mut Session, input: &mut Input, out: &mut Output) -> Option<String> {
    loop {
        match session.step(input, out) {
            Ok(Step::NeedInput) => return None,
            Ok(Step::Close) => return Some("(closed)".into()),
            Ok(Step::StartTls) => {
                out.push("(TLS)\r\n");
                session.secured(out);
            }
            Err(violation) => return Some(format!("({violation})")),
            Ok(Step::Event(event)) => answer(session, &event, out),
        }
    }
}

fn answer(session: &mut Session, event: &Event, out: &mut Output) {
    let reply = match event {
        Event::Mail(mail) => Reply::new(250, (1, 0), format!("{} ok", mail.from)),
        Event::Rcpt(rcpt) => match &rcpt.path {
            ForwardPath::Mailbox(to) if to.local() == "ann" => Reply::new(250, (1, 5), "ok"),
            ForwardPath::Mailbox(to) if to.local() == "held" => Reply::new(451, (3, 2), "later"),
            ForwardPath::Mailbox(_) | ForwardPath::Postmaster => Reply::new(550, (1, 1), "unknown"),
        },
        Event::Data => Reply::bare(354, "go on"),
        Event::EndOfData { flawed } => {
            if *flawed {
                Reply::new(550, (6, 0), "flawed")
            } else {
                Reply::new(250, (0, 0), "delivered")
            }
        }
        Event::Xclient(told) if told.client_port == Some(1) => Reply::new(421, (7, 0), "full"),
        Event::Xclient(_) => return session.begin_anew(false, out),
        Event::Body(_) | Event::Reset => return,
    };
    session.answer(&reply, out);
}

const GREETING: &str = "220 mx.example.org ESMTP\r\n";
const EHLO: &str = "250-mx.example.org\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n\
                    250-ENHANCEDSTATUSCODES\r\n250 STARTTLS\r\n";

#[test]
fn a_message_is_delivered() {
    let said = converse(&[
        "EHLO client.example\r\nMAIL FROM:<bob@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n",
        "Subject: x\r\n\r\n..hello\r\n.\r\nQUIT\r\n",
    ]);
    assert_eq!(
        said,
        format!(
            "{GREETING}{EHLO}250 2.1.0 <bob@example.net> ok\r\n250 2.1.5 ok\r\n354 go on\r\n\
             250 2.0.0 delivered\r\n221 2.0.0 Bye\r\n(closed)"
        )
    );
}

#[test]
fn pipelined_recipients_are_answered_in_their_order() {
    let said = converse(&[
        "EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<x@example.org>\r\nRCPT TO:<ann@example.org>\r\n\
         RCPT TO:<y@example.org>\r\n",
    ]);
    assert!(
        said.ends_with(
            "250 2.1.0 <> ok\r\n550 5.1.1 unknown\r\n250 2.1.5 ok\r\n550 5.1.1 unknown\r\n"
        ),
        "{said}"
    );
}

#[test]
fn commands_have_an_order() {
    let after_ehlo = |commands: &str| {
        let said = converse(&[&format!("EHLO c\r\n{commands}")]);
        said.strip_prefix(&format!("{GREETING}{EHLO}")).unwrap().to_owned()
    };
    assert_eq!(converse(&["MAIL FROM:<>\r\n"]), format!("{GREETING}503 5.5.1 Say EHLO first\r\n"));
    assert_eq!(after_ehlo("RCPT TO:<ann@example.org>\r\n"), "503 5.5.1 Say MAIL first\r\n");
    assert_eq!(after_ehlo("DATA\r\n"), "503 5.5.1 Say MAIL and RCPT first\r\n");
    assert_eq!(
        after_ehlo("MAIL FROM:<>\r\nDATA\r\n"),
        "250 2.1.0 <> ok\r\n554 5.5.1 No valid recipients\r\n"
    );
    assert_eq!(
        after_ehlo("MAIL FROM:<>\r\nMAIL FROM:<a@b.example>\r\n"),
        "250 2.1.0 <> ok\r\n503 5.5.1 Sender already given\r\n"
    );
    assert_eq!(
        after_ehlo("MAIL FROM:<>\r\nRSET\r\nRCPT TO:<ann@example.org>\r\n"),
        "250 2.1.0 <> ok\r\n250 2.0.0 Ok\r\n503 5.5.1 Say MAIL first\r\n"
    );
}

#[test]
fn a_recipient_that_is_refused_for_now_is_not_refused_for_good_at_data() {
    for (recipients, expected) in [
        (&["held"][..], "451 4.3.0 No recipient is taken for now, try again later\r\n"),
        (&["x", "held", "y"], "451 4.3.0 No recipient is taken for now, try again later\r\n"),
        (&["x", "y"], "554 5.5.1 No valid recipients\r\n"),
        (&["held", "ann"], "354 go on\r\n"),
    ] {
        let rcpt = |to: &&str| format!("RCPT TO:<{to}@example.org>\r\n");
        let rcpts: String = recipients.iter().map(rcpt).collect();
        let said = converse(&[&format!("EHLO c\r\nMAIL FROM:<>\r\n{rcpts}DATA\r\n")]);
        assert!(said.ends_with(expected), "{said}");
    }
    let said = converse(&["EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<held@example.org>\r\nRSET\r\n\
         MAIL FROM:<>\r\nDATA\r\n"]);
    assert!(said.ends_with("554 5.5.1 No valid recipients\r\n"), "it was of another transaction");
}

/// A sender that empties its queue over one connection meets a held mailbox with every message.
#[test]
fn what_we_postpone_is_no_error_of_the_clients() {
    let message =
        |to: &str| format!("MAIL FROM:<>\r\nRCPT TO:<{to}@example.org>\r\nDATA\r\nRSET\r\n");
    let said = converse_whole(&[&format!("EHLO c\r\n{}", message("held").repeat(150))]);
    assert_eq!(said.matches("451 4.3.0 No recipient is taken for now").count(), 150, "{said}");
    assert!(said.ends_with("250 2.0.0 Ok\r\n"), "{said}");
    let said = converse_whole(&[&format!("EHLO c\r\n{}", message("x").repeat(150))]);
    assert_eq!(said.matches("554 5.5.1 No valid recipients").count(), 20);
    assert!(said.ends_with("421 4.7.0 Too many errors\r\n(20 bad commands)"), "{said}");
    // Small talk is no message, whatever is postponed beside it.
    let said = converse_whole(&[&format!(
        "EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<held@example.org>\r\n{}",
        "NOOP\r\n".repeat(150)
    )]);
    assert!(said.ends_with("421 4.7.0 Too many errors\r\n(20 bad commands)"), "{said}");
}

#[test]
fn data_before_354_ends_the_session() {
    let mut session = Session::new(terms(), false);
    let mut out = Output::default();
    let early = b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nSubject: x\r\n";
    let end = drive(&mut session, &mut Input::from_octets(early), &mut out);
    assert_eq!(end.as_deref(), Some("(input before its turn)"));
    assert!(out.queued().ends_with(b"554 5.5.0 Wait for 354\r\n"));
}

#[test]
fn nothing_that_could_smuggle_a_message_is_delivered() {
    for vector in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r\n", "\r\n.\r\r\n", "\r\r\n"] {
        let said = converse(&[
            "EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n",
            &format!(
                "a{vector}MAIL FROM:<evil@example.org>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"
            ),
        ]);
        assert!(said.ends_with("354 go on\r\n550 5.6.0 flawed\r\n(closed)"), "{vector:?}: {said}");
    }
}

#[test]
fn a_declared_size_over_the_limit_is_refused_at_once() {
    let said = converse(&["EHLO c\r\nMAIL FROM:<> SIZE=1001\r\nMAIL FROM:<> SIZE=1000\r\n"]);
    assert!(said.ends_with("552 5.3.4 Message too large\r\n250 2.1.0 <> ok\r\n"), "{said}");
}

#[test]
fn tls_makes_everything_said_before_undone() {
    let said = converse(&["EHLO c\r\nSTARTTLS\r\n", "MAIL FROM:<>\r\nEHLO c\r\nSTARTTLS\r\n"]);
    let after = said.split("(TLS)\r\n").nth(1).unwrap();
    assert!(after.starts_with("503 5.5.1 Say EHLO first\r\n250-mx.example.org\r\n"), "{said}");
    assert!(!after.contains("250 STARTTLS"), "{said}");
    assert!(after.ends_with("503 5.5.1 TLS is already active or not to be had\r\n"), "{said}");
}

#[test]
fn a_lone_lf_ends_no_command() {
    let said = converse(&["EHLO c\nMAIL FROM:<>\r\n"]);
    assert_eq!(
        said,
        format!("{GREETING}500 5.5.2 Lines end with CR LF\r\n503 5.5.1 Say EHLO first\r\n")
    );
}

#[test]
fn another_protocol_is_cut_off() {
    let said = converse(&["GET / HTTP/1.1\r\nHost: x\r\nMAIL FROM:<>\r\n"]);
    assert_eq!(
        said,
        format!("{GREETING}521 5.5.1 This is SMTP\r\n(another protocol's words: GET)")
    );
}

#[test]
fn a_client_that_only_errs_is_sent_away() {
    let said = converse(&[&"FOO\r\n".repeat(30)]);
    assert_eq!(said.matches("500 5.5.2 Unknown command").count(), 20);
    assert!(said.ends_with("421 4.7.0 Too many errors\r\n(20 bad commands)"), "{said}");
}

#[test]
fn an_endless_line_is_cut_off() {
    let said = converse(&[&"x".repeat(MAX_LINE + 10)]);
    assert!(
        said.ends_with("500 5.5.2 Line too long\r\n(no line end within 2048 octets)"),
        "{said}"
    );
}

#[test]
fn small_talk() {
    let said = converse(&["HELO c\r\nNOOP x\r\nVRFY ann\r\nHELP\r\nEXPN x\r\nAUTH PLAIN\r\n"]);
    assert_eq!(
        said,
        format!(
            "{GREETING}250 mx.example.org\r\n250 2.0.0 Ok\r\n252 2.0.0 Send it and see\r\n\
             214 2.0.0 RFC 5321\r\n502 5.5.1 Not implemented here\r\n502 5.5.1 Not implemented here\r\n"
        )
    );
}

#[test]
fn a_client_that_speaks_before_the_greeting_is_sent_away() {
    let (mut session, mut out) = (Session::new(terms(), false), Output::default());
    session.greet(true, &mut out);
    let mut early = Input::from_octets(b"EHLO c\r\n");
    assert_eq!(drive(&mut session, &mut early, &mut out).as_deref(), Some("(closed)"));
    assert_eq!(out.queued(), b"554 5.5.0 Wait for the greeting\r\n");
}

#[test]
fn a_chunk_is_never_read_as_commands() {
    let said = converse(&["EHLO c\r\nBDAT 30\r\nMAIL FROM:<evil@example.net>\r\n"]);
    assert!(said.ends_with("502 5.5.1 CHUNKING is not offered\r\n(closed)"), "{said}");
}

#[test]
fn a_tls_handshake_without_starttls_is_cut_off() {
    let said = converse(&["\u{16}\u{3}\u{1}\u{2}"]);
    assert!(said.ends_with("521 5.5.1 This is SMTP\r\n(another protocol's words: TLS)"), "{said}");
}

#[test]
fn small_talk_ends_and_a_message_begins_it_anew() {
    let said = converse_whole(&[&"NOOP\r\n".repeat(200)]);
    assert_eq!(said.matches("250 2.0.0 Ok").count(), 100);
    assert!(said.ends_with("421 4.7.0 Too many errors\r\n(20 bad commands)"), "{said}");
    let envelope =
        format!("{}MAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n", "EHLO c\r\n".repeat(60));
    let said = converse_whole(&[&envelope, ".\r\n", &envelope, ".\r\n"]);
    assert_eq!(said.matches("250 2.0.0 delivered").count(), 2);
}

#[test]
fn a_client_that_guesses_recipients_is_sent_away() {
    let guesses = "RCPT TO:<x@example.org>\r\n".repeat(150);
    let said = converse_whole(&[&format!("EHLO c\r\nMAIL FROM:<>\r\n{guesses}")]);
    assert_eq!(said.matches("550 5.1.1 unknown").count(), 100);
    assert!(said.ends_with("421 4.7.0 Too many unknown recipients\r\n(closed)"), "{said}");
}

#[test]
fn an_answer_of_another_kind_is_no_acceptance() {
    let (mut session, mut out) = (Session::new(terms(), false), Output::default());
    let mut input =
        Input::from_octets(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n");
    for reply in ["", "250 2.1.0", "354"] {
        let event = session.step(&mut input, &mut out).unwrap();
        if let Some(code) = reply.get(..3) {
            assert!(matches!(event, Step::Event(Event::Mail(_) | Event::Rcpt(_))));
            session.answer(&Reply::bare(code.parse().unwrap(), "x"), &mut out);
        }
    }
    assert_eq!(session.step(&mut input, &mut out), Ok(Step::NeedInput));
    assert!(out.queued().ends_with(b"554 5.5.1 No valid recipients\r\n"));
}

#[test]
fn nothing_is_read_while_an_answer_is_due() {
    let (mut session, mut out) = (Session::new(terms(), false), Output::default());
    let mut input = Input::from_octets(b"EHLO c\r\nMAIL FROM:<>\r\nQUIT\r\n");
    assert_eq!(session.step(&mut input, &mut out), Ok(Step::Event(Event::Reset)));
    assert!(matches!(session.step(&mut input, &mut out), Ok(Step::Event(Event::Mail(_)))));
    let before = out.len();
    assert_eq!(session.step(&mut input, &mut out), Ok(Step::NeedInput));
    assert_eq!((out.len(), input.unread()), (before, &b"QUIT\r\n"[..]));
}
