//! Whatever a client says, in whatever pieces: the front answers the same and never falls over (P10).

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use shared::backend::LoginProtocol;
use tests::fuzzed;

/// What clients of a protocol say, and what they should not.
fn words(protocol: LoginProtocol) -> &'static [&'static str] {
    match protocol {
        LoginProtocol::Imap => &[
            "a ",
            "LOGIN ",
            "AUTHENTICATE PLAIN",
            "AUTHENTICATE XOAUTH2 dXNlcj1hAWF1dGg9QmVhcmVyIHQBAQ==\r\n",
            "AUTHENTICATE SCRAM-SHA-1",
            "ID (",
            ")",
            "\"",
            "\\",
            "{3}\r\n",
            "{3+}\r\n",
            "{0+}\r\n",
            "{99999}\r\n",
            "{5000+}\r\n",
            "\r\n",
            "\n",
            "\r",
            "\0",
            "=",
            "*",
            " ",
            "NIL",
            "AGFubgBzZWNyZXQ=",
            "ann ",
            "CAPABILITY\r\n",
            "a NOOP\r\n",
            "b STARTTLS\r\n",
            "c LOGIN x y\r\n",
            "(((",
            "+",
            "\u{ff}",
        ],
        LoginProtocol::Pop3 => &[
            "USER ",
            "USER ann\r\n",
            "PASS ",
            "PASS  secret \r\n",
            "AUTH",
            "AUTH PLAIN",
            "AUTH LOGIN YW5u\r\n",
            "AUTH XOAUTH2 dXNlcj1hAWF1dGg9QmVhcmVyIHQBAQ==\r\n",
            "AUTH SCRAM-SHA-1",
            "CAPA\r\n",
            "NOOP\r\n",
            "STLS\r\n",
            "STAT\r\n",
            "UTF8\r\n",
            "AGFubgBzZWNyZXQ=",
            "c2VjcmV0",
            "\r\n",
            "\n",
            "\r",
            "\0",
            "=",
            "*",
            " ",
            "+OK",
            ".",
            "\u{ff}",
        ],
        LoginProtocol::Submission => &[
            "EHLO c\r\n",
            "HELO ",
            "EHLO ",
            "AUTH ",
            "AUTH PLAIN ",
            "AUTH PLAIN\r\n",
            "AUTH LOGIN\r\n",
            "AUTH XOAUTH2 dXNlcj1hAWF1dGg9QmVhcmVyIHQBAQ==\r\n",
            "AUTH SCRAM-SHA-1\r\n",
            "STARTTLS\r\n",
            "MAIL FROM:<>\r\n",
            "BDAT 7\r\n",
            "BDAT 99999999\r\n",
            "BDAT ",
            "DATA\r\n",
            "RSET\r\n",
            "NOOP\r\n",
            "QUIT\r\n",
            "POST /\r\n",
            "\x16",
            "\r\n",
            "\n",
            "\r",
            "\0",
            "=",
            "*\r\n",
            " ",
            "AGFubgBzZWNyZXQ=",
            "YW5u\r\n",
            "\u{ff}",
        ],
        LoginProtocol::ManageSieve => &[
            "AUTHENTICATE ",
            "AUTHENTICATE \"PLAIN\"\r\n",
            "AUTHENTICATE \"LOGIN\" ",
            "AUTHENTICATE \"XOAUTH2\" \"dXNlcj1hAWF1dGg9QmVhcmVyIHQBAQ==\"\r\n",
            "AUTHENTICATE \"SCRAM-SHA-1\"",
            "\"PLAIN\" ",
            "\"AGFubgBzZWNyZXQ=\"\r\n",
            "{16+}\r\nAGFubgBzZWNyZXQ=\r\n",
            "\"*\"\r\n",
            "\"\"",
            "\"",
            "\\",
            "{3}\r\n",
            "{3+}\r\n",
            "{0+}\r\n",
            "{99999}\r\n",
            "{20000+}\r\n",
            "\r\n",
            "\n",
            "\r",
            "\0",
            " ",
            "(",
            ")",
            "CAPABILITY\r\n",
            "NOOP \"tag\"\r\n",
            "NOOP ",
            "STARTTLS\r\n",
            "LISTSCRIPTS\r\n",
            "PUTSCRIPT \"a\" ",
            "\u{ff}",
        ],
    }
}

fn piece(protocol: LoginProtocol) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => select(words(protocol)).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..20),
        1 => (select(vec![b'x', b'"', b'A']), 0..30_000_usize).prop_map(|(octet, count)| vec![octet; count]),
    ]
}

/// With the pieces that a fuzzer would name behind it: `0xFF`, the scene, their sizes.
fn answers_do_not_depend_on_the_pieces(protocol: LoginProtocol) {
    let config =
        ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    let said = (vec(piece(protocol), 0..40), 0..64_u8, vec(0..40_u8, 1..20));
    let checked = TestRunner::new(config).run(&said, |(said, scene, sizes)| {
        let octets = [said.concat(), vec![0xff, scene], sizes].concat();
        fuzzed::answers_do_not_depend_on_the_pieces(protocol, &octets);
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn imap_answers_do_not_depend_on_the_pieces() {
    answers_do_not_depend_on_the_pieces(LoginProtocol::Imap);
}

#[test]
fn pop3_answers_do_not_depend_on_the_pieces() {
    answers_do_not_depend_on_the_pieces(LoginProtocol::Pop3);
}

#[test]
fn submission_answers_do_not_depend_on_the_pieces() {
    answers_do_not_depend_on_the_pieces(LoginProtocol::Submission);
}

#[test]
fn managesieve_answers_do_not_depend_on_the_pieces() {
    answers_do_not_depend_on_the_pieces(LoginProtocol::ManageSieve);
}
