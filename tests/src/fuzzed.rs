//! What is fuzzed: a function for each target in `fuzz/`, which panics where a promise is broken.
//!
//! `make fuzz` looks for octets that break one; `tests/corpus.rs` replays what was found and what was
//! written by hand, without a fuzzer.
//!
//! A corpus file is what a peer says, as it is. `\xFE` is a point at which the peer waits for an answer;
//! behind the last `\xFF` stand how the scene is set (one octet) and the sizes of the pieces in which it
//! arrives. Without them, it arrives octet by octet.

mod front;
mod pieces;
mod prints;
mod pure;
mod session;
mod spool;
mod stream;

pub use self::front::answers_do_not_depend_on_the_pieces;

use shared::backend::LoginProtocol;

/// A function that is given any octets.
pub type Target = fn(&[u8]);

/// All of them, by the names of their programs and corpora in `fuzz/`.
pub const TARGETS: [(&str, Target); 14] = [
    ("imap_front", imap_front),
    ("pop3_front", pop3_front),
    ("submission_front", submission_front),
    ("managesieve_front", managesieve_front),
    ("smtp_session", session::smtp_session),
    ("smtp_data", stream::smtp_data),
    ("smtp_command", pure::smtp_command),
    ("managesieve_line", pure::managesieve_line),
    ("command_watch", stream::command_watch),
    ("proxy_header", pure::proxy_header),
    ("sasl", pure::sasl),
    ("names", pure::names),
    ("spool_file", spool::spool_file),
    ("fingerprint_file", prints::fingerprint_file),
];

/// Plays `octets` to the target of that name.
///
/// # Panics
///
/// There is none, or the octets break one of its promises.
pub fn play(target: &str, octets: &[u8]) {
    let (_, function) = TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .unwrap_or_else(|| panic!("no target {target}"));
    function(octets);
}

fn imap_front(octets: &[u8]) {
    answers_do_not_depend_on_the_pieces(LoginProtocol::Imap, octets);
}

fn pop3_front(octets: &[u8]) {
    answers_do_not_depend_on_the_pieces(LoginProtocol::Pop3, octets);
}

fn submission_front(octets: &[u8]) {
    answers_do_not_depend_on_the_pieces(LoginProtocol::Submission, octets);
}

fn managesieve_front(octets: &[u8]) {
    answers_do_not_depend_on_the_pieces(LoginProtocol::ManageSieve, octets);
}
