//! BDAT: octets are counted, wanted or not, and memory does not grow with them.

use super::*;

fn terms() -> Terms {
    Terms { chunking: true, ..super::terms() }
}

/// What is said to this behind an envelope for these recipients.
fn behind(to: &[&str], turns: &str) -> String {
    let rcpt = |to: &&str| format!("RCPT TO:<{to}@example.org>\r\n");
    let rcpts: String = to.iter().map(rcpt).collect();
    let said = converse_on(&terms(), &[&format!("EHLO c\r\nMAIL FROM:<>\r\n{rcpts}{turns}")]);
    let (_, behind) = said.split_once("250 2.1.0 <> ok\r\n").unwrap();
    behind.lines().skip(to.len()).collect::<Vec<_>>().join("|")
}

#[test]
fn octets_are_counted_across_chunks_and_cuts_and_what_follows_is_a_command_again() {
    assert_eq!(
        behind(&["ann"], "BDAT 6\r\nQUIT\r\nBDAT 1\r\nxBDAT 0\r\nBDAT 2 LAST\r\n\r\nNOOP\r\n"),
        "250 2.0.0 6 octets received|250 2.0.0 1 octets received|250 2.0.0 0 octets received|\
         250 2.0.0 delivered|250 2.0.0 Ok"
    );
    assert_eq!(behind(&["ann"], "BDAT 0 LAST\r\nNOOP\r\n"), "250 2.0.0 delivered|250 2.0.0 Ok");
}

#[test]
fn the_limit_of_messages_counts_over_all_chunks_and_the_client_stays_in_step() {
    let half = "x".repeat(500);
    assert_eq!(
        behind(&["ann"], &format!("BDAT 500\r\n{half}BDAT 500 LAST\r\n{half}NOOP\r\n")),
        "250 2.0.0 500 octets received|250 2.0.0 delivered|250 2.0.0 Ok"
    );
    let said = behind(
        &["ann"],
        &format!(
            "BDAT 500\r\n{half}BDAT 501\r\n{half}yBDAT 6 LAST\r\nQUIT\r\nRCPT TO:<ann@example.org>\r\n\
             RSET\r\nBDAT 6\r\nQUIT\r\nMAIL FROM:<>\r\n"
        ),
    );
    assert_eq!(
        said,
        "250 2.0.0 500 octets received|552 5.3.4 Message too large|\
         503 5.5.1 A chunk was refused, say RSET first|503 5.5.1 Say MAIL first|250 2.0.0 Ok|\
         503 5.5.1 Say MAIL and RCPT first|250 2.1.0 <> ok"
    );
    // The first one alone; and a new sender is as good as RSET.
    let whole = "x".repeat(1001);
    assert_eq!(
        behind(&["ann"], &format!("BDAT 1001 LAST\r\n{whole}MAIL FROM:<>\r\n")),
        "552 5.3.4 Message too large|250 2.1.0 <> ok"
    );
}

#[test]
fn lmtp_has_an_answer_for_each_recipient_to_a_last_chunk_however_it_fails() {
    let terms = Terms { protocol: Protocol::Lmtp, ..terms() };
    let envelope = "LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\n\
                    RCPT TO:<x@example.org>\r\nRCPT TO:<ann@example.org>\r\n";
    let large = "x".repeat(1001);
    for (chunks, expected) in [
        ("BDAT 1 LAST\r\nx", "250 2.0.0 delivered\r\n250 2.0.0 delivered\r\n".to_owned()),
        (
            &*format!("BDAT 1001\r\n{large}BDAT 0 LAST\r\n"),
            format!(
                "552 5.3.4 Message too large\r\n{}",
                "503 5.5.1 A chunk was refused, say RSET first\r\n".repeat(2)
            ),
        ),
        (
            &*format!("BDAT 1001 LAST\r\n{large}"),
            "552 5.3.4 Message too large\r\n552 5.3.4 Message too large\r\n".to_owned(),
        ),
        ("BDAT 2 LAST\r\nx\r", "550 5.6.0 flawed\r\n550 5.6.0 flawed\r\n(closed)".to_owned()),
    ] {
        let said = converse_on(&terms, &[&format!("{envelope}{chunks}")]);
        let behind = said.rsplit_once("250 2.1.5 ok\r\n").unwrap().1;
        assert_eq!(behind, expected, "{chunks:.20}");
    }
}

#[test]
fn what_could_be_smuggled_on_by_data_is_refused_wherever_it_is_cut_into_chunks() {
    for vector in [
        "\n.\n",
        "\n.\r\n",
        "\r.\r\n",
        "\r.\r",
        "\r\n.\rx",
        "\r\n.\r\r\n",
        "\r\r\n.\r\n",
        "\r",
        "\n.x\n",
    ] {
        let content = format!("a{vector}b");
        for cut in 0..=content.len() {
            let (one, two) = content.split_at(cut);
            let chunks =
                format!("BDAT {}\r\n{one}BDAT {} LAST\r\n{two}NOOP\r\n", one.len(), two.len());
            let said = behind(&["ann"], &chunks);
            assert!(said.ends_with("|550 5.6.0 flawed|(closed)"), "{vector:?} at {cut}: {said}");
        }
    }
    for content in ["\r\n.\r\n", ".\r\n", "..x\r\n", "\r\n.\n", "a\nb", "\r\n\0.\r\n"] {
        let said = behind(&["ann"], &format!("BDAT {} LAST\r\n{content}NOOP\r\n", content.len()));
        assert_eq!(said, "250 2.0.0 delivered|250 2.0.0 Ok", "{content:?}");
    }
}

#[test]
fn nobody_sends_chunks_for_ever() {
    let said = |turns: &str| {
        let (to, terms) = ("RCPT TO:<ann@example.org>", terms());
        outcome(&terms, &[&format!("EHLO c\r\nMAIL FROM:<>\r\n{to}\r\n{turns}")], 0, 0)
    };
    // Empty ones, with a message and after it was refused.
    let empty = said(&"BDAT 0\r\n".repeat(200));
    assert!(
        empty.ends_with("421 4.7.0 Too many commands without a message\r\n(closed)"),
        "{empty}"
    );
    let failed = said(&format!("BDAT 1001\r\n{}{}", "x".repeat(1001), "BDAT 0\r\n".repeat(200)));
    assert!(
        failed.ends_with("421 4.7.0 Too many commands without a message\r\n(closed)"),
        "{failed}"
    );
    let early = said(&format!("RSET\r\n{}", "BDAT 1\r\nx".repeat(30)));
    assert!(early.ends_with("421 4.7.0 Too many errors\r\n(20 bad commands)"), "{early}");
    // Large ones are not even waited for; a number that no message has is no chunk.
    let large = said("BDAT 1048577\r\n");
    assert!(large.ends_with("552 5.3.4 Message too large\r\n(closed)"), "{large}");
    let endless = said("BDAT 99999999999999999999\r\nQUIT\r\n");
    assert!(endless.ends_with("501 5.5.4 BDAT size [LAST]\r\n(closed)"), "{endless}");
}

#[test]
fn a_chunk_whose_command_is_wrong_is_not_read_as_commands() {
    for command in
        ["BDAT", "BDAT x", "BDAT 5 FIRST", "BDAT -5 LAST", "BDAT 5\n", "BDAT 5\0", "bdat\t5"]
    {
        let said = behind(&["ann"], &format!("{command}\r\nNOOP\r\n"));
        assert!(said.starts_with('5') && said.ends_with("|(closed)"), "{command:?}: {said}");
        assert!(!said.contains("250"), "{command:?}: {said}");
    }
}

#[test]
fn a_driver_that_takes_no_message_is_heard_behind_the_chunk() {
    let (mut session, mut out) = (Session::new(terms(), false), Output::default());
    let mut input = Input::from_octets(
        b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ann@example.org>\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n",
    );
    loop {
        match session.step(&mut input, &mut out) {
            Ok(Step::Event(Event::Data)) => {
                session.answer(&Reply::new(452, (3, 1), "no room"), &mut out);
            }
            Ok(Step::Event(event)) => answer(&mut session, &event, &mut out),
            Ok(_) | Err(_) => break,
        }
    }
    let said = String::from_utf8_lossy(out.queued()).into_owned();
    assert!(said.ends_with("250 2.1.5 ok\r\n452 4.3.1 no room\r\n250 2.0.0 Ok\r\n"), "{said}");
}
