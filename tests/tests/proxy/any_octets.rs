//! Whatever a client says, in whatever pieces: the front answers the same and never falls over (P10).

use login_proxy::front::{Event, Terms};
use login_proxy::protocol;
use login_proxy::refusal::Refusal;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;
use shared::address::Domain;
use shared::backend::LoginProtocol;
use shared::credentials::Proof;
use shared::dialogue::{Input, Output, Step};
use shared::sasl::{Mechanism, Mechanisms};

/// What was said to the client, what it logged in with, and how it ended.
fn outcome<'a>(
    protocol: LoginProtocol,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<u8>, Vec<Vec<u8>>, &'static str) {
    let protocol = protocol::of(protocol);
    let mut front = (protocol.front)(Terms {
        hostname: Domain::localhost(),
        capabilities: (protocol.modest)().capabilities,
        mechanisms: Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str)),
        secured: false,
        starttls: true,
        plaintext: true,
        trusted: true,
    });
    let (mut input, mut out) = (Input::default(), Output::default());
    let (mut said, mut logins) = (Vec::new(), Vec::new());
    for piece in pieces {
        input.push(piece);
        loop {
            match front.step(&mut input, &mut out) {
                Ok(Step::NeedInput) if out.is_full() => said.extend(out.take()),
                Ok(Step::NeedInput) => break,
                Ok(Step::StartTls) => front.secured(&mut out),
                Ok(Step::Event(Event::Credentials(credentials))) => {
                    logins.push(credentials.authcid.to_vec());
                    match credentials.proof {
                        Proof::Password(_) => front.refuse(Refusal::BadCredentials, &mut out),
                        // Asks for what only the client can answer.
                        Proof::Bearer { .. } | Proof::Scram { .. } => {
                            front.challenge(b"{}", &mut out);
                        }
                    }
                }
                Ok(Step::Event(Event::Response(response))) => {
                    logins.push(response.map_or(b"(gave up)".to_vec(), |r| r.expose().to_vec()));
                    front.refuse(Refusal::BadCredentials, &mut out);
                }
                Ok(Step::Close) => return ([said, out.take()].concat(), logins, "closed"),
                Err(_) => return ([said, out.take()].concat(), logins, "violation"),
            }
        }
    }
    ([said, out.take()].concat(), logins, "waits")
}

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

fn answers_do_not_depend_on_the_pieces(protocol: LoginProtocol) {
    let config =
        ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    let said = (vec(piece(protocol), 0..40), vec(1..40_usize, 1..20));
    let checked = TestRunner::new(config).run(&said, |(said, sizes)| {
        let said = said.concat();
        let whole = outcome(protocol, std::iter::once(&said[..]));
        let mut cuts = sizes.into_iter().cycle();
        let mut rest = &said[..];
        let pieces = std::iter::from_fn(|| {
            let size = cuts.next()?.min(rest.len());
            let (piece, behind) = rest.split_at(size);
            rest = behind;
            (size > 0).then_some(piece)
        });
        let cut = outcome(protocol, pieces);
        prop_assert_eq!(String::from_utf8_lossy(&whole.0), String::from_utf8_lossy(&cut.0));
        prop_assert_eq!((&whole.1, whole.2), (&cut.1, cut.2));
        // An answer for each line at most, so nobody is paid more than was spent.
        prop_assert!(whole.0.len() <= 200 * (said.len() + 1));
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
