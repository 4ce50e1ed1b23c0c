//! The vectors of SMTP smuggling, cut at every octet.

use proptest::prelude::*;

use super::*;

#[derive(Debug, PartialEq)]
enum Got {
    Content(Vec<u8>),
    Refused,
}

/// Decodes `octets`, which end with the true end of data, cut at every place: the cut must not matter,
/// and nothing behind the end may be taken.
fn decode(octets: &[u8]) -> Got {
    let follow = b"MAIL FROM:<smuggled@example.org>\r\n";
    let sent = [octets, follow].concat();
    let outcome = |cut: usize| {
        let (mut decoder, mut content) = (DataDecoder::default(), Vec::new());
        let (first, rest) = sent.split_at(cut);
        let mut taken = decoder.decode(first, &mut content);
        if taken == first.len() {
            taken += decoder.decode(rest, &mut content);
        }
        assert!(decoder.is_done(), "cut at {cut}");
        assert_eq!(&sent[taken..], follow, "cut at {cut}");
        if decoder.is_flawed() { Got::Refused } else { Got::Content(content) }
    };
    let whole = outcome(0);
    (1..sent.len()).for_each(|cut| assert_eq!(outcome(cut), whole, "cut at {cut}"));
    whole
}

fn content(octets: &str) -> Got {
    Got::Content(octets.as_bytes().to_vec())
}

const SMUGGLED: &str =
    "MAIL FROM:<x@example.org>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\nhello\r\n.\r\n";

/// `vector` ends nothing: not what follows it, and the whole of it is refused at its true end.
fn is_refused(vector: &str) {
    for before in ["", "a", "a\r\n"] {
        let sent = format!("{before}{vector}{SMUGGLED}");
        assert_eq!(decode(sent.as_bytes()), Got::Refused, "{before:?} + {vector:?}");
    }
}

#[test]
fn vector_1_crlf_dot_crlf_is_the_end() {
    assert_eq!(decode(b"a\r\n.\r\n"), content("a\r\n"));
}

#[test]
fn vector_2_dot_crlf_directly_behind_354_is_the_end_of_an_empty_message() {
    assert_eq!(decode(b".\r\n"), content(""));
}

#[test]
fn vector_3_a_dot_is_removed_from_the_first_line_too() {
    assert_eq!(decode(b"..x\r\n.\r\n"), content(".x\r\n"));
}

#[test]
fn vector_4_lf_dot_lf_is_refused() {
    is_refused("\n.\n");
}

#[test]
fn vector_5_lf_dot_crlf_is_refused() {
    is_refused("\n.\r\n");
}

#[test]
fn vector_6_crlf_dot_lf_is_refused() {
    is_refused("\r\n.\n");
}

#[test]
fn vector_7_cr_dot_crlf_is_refused() {
    is_refused("\r.\r\n");
}

#[test]
fn vector_8_cr_dot_cr_is_refused() {
    is_refused("\r.\r");
}

#[test]
fn vector_9_crlf_dot_cr_is_refused() {
    is_refused("\r\n.\rtext");
    is_refused("\r\n.\r");
}

#[test]
fn vector_10_crlf_dot_cr_crlf_is_refused() {
    is_refused("\r\n.\r\r\n");
    is_refused("\r\n.\r\r\r\n");
}

#[test]
fn vector_11_cr_crlf_dot_crlf_is_an_end_whose_message_is_refused() {
    assert_eq!(decode(b"a\r\r\n.\r\n"), Got::Refused);
}

#[test]
fn vector_12_nul_is_content_and_no_part_of_an_end() {
    assert_eq!(decode(b"a\r\n\0.\r\n.\r\n"), content("a\r\n\0.\r\n"));
    assert_eq!(decode(b"a\r\n.\0\r\n.\r\n"), content("a\r\n\0\r\n"));
}

#[test]
fn vector_13_an_lf_apart_from_dots_is_content() {
    assert_eq!(decode(b"a\nb\n\n\r\n.\r\n"), content("a\nb\n\n\r\n"));
    is_refused("\n.x\n");
}

#[test]
fn vector_14_a_lone_cr_is_refused_anywhere() {
    is_refused("a\rb");
    is_refused("\r");
    is_refused("\n\r");
}

// Vector 15, all of them cut at every octet, is what `decode` does.

#[test]
fn vector_16_the_end_is_found_behind_content_that_nobody_keeps() {
    let (mut decoder, mut content) = (DataDecoder::default(), Vec::new());
    let sent = [&b"x".repeat(5000)[..], b"\r\n.\r\nQUIT\r\n"].concat();
    let mut at = 0;
    while !decoder.is_done() {
        at += decoder.decode(&sent[at..(at + 7).min(sent.len())], &mut content);
        content.clear();
    }
    assert_eq!(&sent[at..], b"QUIT\r\n");
}

/// The content of chunks, cut at every two places.
fn of_chunks(octets: &[u8]) -> Got {
    let outcome = |first: usize, second: usize| {
        let (mut decoder, mut content) = (ChunkDecoder::default(), Vec::new());
        for part in [&octets[..first], &octets[first..second], &octets[second..]] {
            decoder.decode(part, &mut content);
        }
        if decoder.is_flawed_at_end() { Got::Refused } else { Got::Content(content) }
    };
    let whole = outcome(0, 0);
    for first in 0..=octets.len() {
        for second in first..=octets.len() {
            assert_eq!(outcome(first, second), whole, "cut at {first} and {second}");
        }
    }
    whole
}

/// Whatever stands around `vector` in chunks, it is refused.
fn is_refused_in_chunks(vector: &str) {
    for (before, after) in [("", ""), ("a", "a"), ("a\r\n", "MAIL FROM:<x@b.example>\r\n")] {
        let sent = format!("{before}{vector}{after}");
        assert_eq!(of_chunks(sent.as_bytes()), Got::Refused, "{sent:?}");
    }
}

#[test]
fn vectors_1_2_3_6_and_12_are_content_in_chunks_and_end_nothing_for_anybody() {
    for vector in [
        "a\r\n.\r\nb\r\n",
        ".\r\n",
        "..x\r\n",
        ".",
        "a\r\n.\nb\r\n",
        "a\r\n\0.\r\n",
        "a\r\n.\0\r\n",
    ] {
        assert_eq!(of_chunks(vector.as_bytes()), content(vector), "{vector:?}");
        assert_eq!(lax_ends(vector.as_bytes()), 1, "{vector:?}");
    }
}

#[test]
fn vectors_4_5_7_to_11_and_14_are_refused_in_chunks() {
    for vector in [
        "\n.\n",
        "\n.\r\n",
        "\r.\r\n",
        "\r.\r",
        "\r\n.\r",
        "\r\n.\rtext",
        "\r\n.\r\r\n",
        "\r\r\n.\r\n",
        "\r",
        "a\rb",
        "\n\r",
        "\n.x\n",
    ] {
        is_refused_in_chunks(vector);
    }
}

#[test]
fn vector_13_an_lf_apart_from_dots_is_content_in_chunks_too() {
    assert_eq!(of_chunks(b"a\nb\n\n\r\n"), content("a\nb\n\n\r\n"));
    assert_eq!(of_chunks(b"no line end"), content("no line end"));
}

// Vector 15 is what `of_chunks` does; vector 16 is the session's, which counts.

/// Sends content on by DATA, and counts the ends that the laxest server there is sees: any line break,
/// a dot, any line break.
fn lax_ends(accepted: &[u8]) -> usize {
    let mut wire = Vec::new();
    let mut encoder = DataEncoder::default();
    encoder.encode(accepted, &mut wire);
    encoder.finish(&mut wire);
    assert!(wire.ends_with(b".\r\n"));
    let lax = |at: &usize| {
        wire[*at] == b'.'
            && (*at == 0 || matches!(wire[at - 1], b'\r' | b'\n'))
            && matches!(wire.get(at + 1), Some(b'\r' | b'\n'))
    };
    (0..wire.len()).filter(lax).count()
}

#[test]
fn what_is_sent_never_ends_early_for_anybody() {
    let mut wire = Vec::new();
    let mut encoder = DataEncoder::default();
    for part in [&b".first\r"[..], b"\n.second\r\n", b".", b"\r\nlast\n\r\n"] {
        encoder.encode(part, &mut wire);
    }
    encoder.finish(&mut wire);
    assert_eq!(wire, b"..first\r\n..second\r\n..\r\nlast\n\r\n.\r\n");
}

proptest! {
    #[test]
    fn content_survives_the_wire(
        words in prop::collection::vec(prop_oneof![
            Just("."), Just("\r\n"), Just(".."), Just("\0"), Just("\u{fc}"), Just("a"),
        ], 0..40),
        cuts in prop::collection::vec(0usize..200, 0..8),
    ) {
        let mut message = words.concat().into_bytes();
        if !message.is_empty() && !message.ends_with(b"\r\n") {
            message.extend_from_slice(b"\r\n");
        }
        let (mut encoder, mut wire, mut at) = (DataEncoder::default(), Vec::new(), 0);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(message.len())).collect();
        cuts.sort_unstable();
        for cut in cuts.into_iter().chain([message.len()]) {
            encoder.encode(&message[at..cut], &mut wire);
            at = cut;
        }
        encoder.finish(&mut wire);
        prop_assert_eq!(decode(&wire), Got::Content(message));
    }

    /// Whatever a client sends and we accept, a server that takes the laxest ends there are sees
    /// them only where we put ours.
    #[test]
    fn nothing_accepted_can_be_smuggled_on(
        words in prop::collection::vec(prop_oneof![
            Just("."), Just("\r"), Just("\n"), Just("\r\n"), Just("a"), Just("\0"),
        ], 0..12),
    ) {
        let sent = [words.concat().as_bytes(), b"\r\n.\r\n"].concat();
        let in_chunks = words.concat().into_bytes();
        if let Got::Content(accepted) = of_chunks(&in_chunks) {
            prop_assert_eq!(&accepted, &in_chunks);
            prop_assert_eq!(lax_ends(&accepted), 1);
        }
        let (mut decoder, mut accepted) = (DataDecoder::default(), Vec::new());
        decoder.decode(&sent, &mut accepted);
        if decoder.is_done() && !decoder.is_flawed() {
            prop_assert_eq!(lax_ends(&accepted), 1);
        }
    }
}
