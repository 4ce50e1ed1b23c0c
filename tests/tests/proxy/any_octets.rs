//! Whatever a client says, in whatever pieces: the front answers the same and never falls over (P10).

use login_proxy::front::imap::ImapFront;
use login_proxy::front::{Front, Terms};
use login_proxy::refusal::Refusal;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use shared::address::Domain;
use shared::dialogue::{Dialogue, Input, Output, Step};

/// What was said to the client, what it logged in with, and how it ended.
fn outcome<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<Vec<u8>>, &'static str) {
    let mut front = ImapFront::new(Terms {
        hostname: Domain::localhost(),
        capabilities: "IMAP4rev1".into(),
        secured: false,
        starttls: true,
        plaintext: true,
    });
    let (mut input, mut out) = (Input::default(), Output::default());
    let mut logins = Vec::new();
    for piece in pieces {
        input.push(piece);
        loop {
            match front.step(&mut input, &mut out) {
                Ok(Step::NeedInput) => break,
                Ok(Step::StartTls) => front.secured(&mut out),
                Ok(Step::Event(credentials)) => {
                    logins.push([&*credentials.authcid, credentials.password.expose()].concat());
                    front.refuse(Refusal::BadCredentials, &mut out);
                }
                Ok(Step::Close) => return (out.take(), logins, "closed"),
                Err(_) => return (out.take(), logins, "violation"),
            }
        }
    }
    (out.take(), logins, "waits")
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words = [
        "a ",
        "LOGIN ",
        "AUTHENTICATE PLAIN",
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
    ];
    prop_oneof![
        8 => select(words.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..20),
        1 => (select(vec![b'x', b'"', b'A']), 0..30_000_usize).prop_map(|(octet, count)| vec![octet; count]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_answers_do_not_depend_on_the_pieces(
        said in vec(piece(), 0..40),
        sizes in vec(1..40_usize, 1..20),
    ) {
        let said = said.concat();
        let whole = outcome(std::iter::once(&said[..]));
        let mut cuts = sizes.into_iter().cycle();
        let mut rest = &said[..];
        let pieces = std::iter::from_fn(|| {
            let size = cuts.next()?.min(rest.len());
            let (piece, behind) = rest.split_at(size);
            rest = behind;
            (size > 0).then_some(piece)
        });
        let cut = outcome(pieces);
        prop_assert_eq!(
            String::from_utf8_lossy(&whole.0), String::from_utf8_lossy(&cut.0)
        );
        prop_assert_eq!((&whole.1, whole.2), (&cut.1, cut.2));
        // An answer for each line at most, so nobody is paid more than was spent.
        prop_assert!(whole.0.len() <= 200 * (said.len() + 1));
    }
}
