//! What looks at a stream of octets and must see the same in whatever pieces it comes.

use login_proxy::backend::watch::CommandWatch;
use shared::smtp::data::{ChunkDecoder, DataDecoder, DataEncoder};
use shared::wire::Watch;

use super::pieces::Cut;

/// Message data ends at one place, and what is accepted of it ends at one place for the laxest server, too.
pub(super) fn smtp_data(octets: &[u8]) {
    let cut = Cut::read(octets);
    in_chunks(&cut);
    let whole = decode(&[cut.said()]);
    let pieces = decode(&cut.pieces(cut.said()));
    assert_eq!(whole, pieces);
    let (content, ..) = &whole;
    let wire = encode(&[content]);
    assert_eq!(wire, encode(&cut.pieces(content)), "written in pieces");
    let (decoded, taken, done, flawed) = decode(&[&wire]);
    assert!(done, "an end is always found");
    if whole.2 && !whole.3 {
        assert_eq!((&decoded, taken, flawed), (content, wire.len(), false));
        assert_eq!(lax_ends(&wire), [wire.len() - 3], "{:?}", String::from_utf8_lossy(&wire));
    }
}

/// What comes in chunks is content wherever they are cut, and what is not refused ends nothing early once it
/// goes on by DATA.
fn in_chunks(cut: &Cut<'_>) {
    let decode = |pieces: &[&[u8]]| {
        let (mut decoder, mut content) = (ChunkDecoder::default(), Vec::new());
        pieces.iter().for_each(|piece| decoder.decode(piece, &mut content));
        (content, decoder.is_flawed_at_end())
    };
    let whole = decode(&[cut.said()]);
    assert_eq!(whole, decode(&cut.pieces(cut.said())));
    let (content, flawed) = whole;
    if !flawed {
        assert_eq!(content, cut.said());
        let wire = encode(&[&content]);
        assert_eq!(lax_ends(&wire), [wire.len() - 3], "{:?}", String::from_utf8_lossy(&wire));
    }
}

/// Content, octets taken, whether its end was found, whether it is flawed.
fn decode(pieces: &[&[u8]]) -> (Vec<u8>, usize, bool, bool) {
    let (mut decoder, mut content, mut taken) = (DataDecoder::default(), Vec::new(), 0);
    for piece in pieces {
        let count = decoder.decode(piece, &mut content);
        assert!(count == piece.len() || decoder.is_done());
        taken += count;
        if decoder.is_done() {
            break;
        }
    }
    (content, taken, decoder.is_done(), decoder.is_flawed())
}

fn encode(pieces: &[&[u8]]) -> Vec<u8> {
    let (mut encoder, mut wire) = (DataEncoder::default(), Vec::new());
    for piece in pieces {
        encoder.encode(piece, &mut wire);
    }
    encoder.finish(&mut wire);
    wire
}

/// Any line break, a dot, any line break.
fn lax_ends(wire: &[u8]) -> Vec<usize> {
    let is_break = |octet: Option<&u8>| octet.is_some_and(|octet| b"\r\n".contains(octet));
    let is_end = |at: &usize| {
        wire[*at] == b'.' && (*at == 0 || is_break(wire.get(at - 1))) && is_break(wire.get(at + 1))
    };
    (0..wire.len()).filter(is_end).collect()
}

/// Client and backend take turns; what passes does not depend on the pieces, and nothing is kept.
pub(super) fn command_watch(octets: &[u8]) {
    let cut = Cut::read(octets);
    let new = || if cut.has(0) { CommandWatch::managesieve() } else { CommandWatch::imap() };
    let (mut whole, mut pieces) = (new(), new());
    for (number, turn) in cut.turns().enumerate() {
        if number % 2 == 1 {
            whole.backend_says(turn);
            cut.pieces(turn).into_iter().for_each(|piece| pieces.backend_says(piece));
        } else {
            let passed = whole.client_says(turn);
            let all = cut.pieces(turn).into_iter().all(|piece| pieces.client_says(piece));
            assert_eq!(passed, all);
            if !passed {
                return;
            }
        }
        assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    }
}
