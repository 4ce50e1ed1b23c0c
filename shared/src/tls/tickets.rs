//! Keys of session tickets (RFC 5077, RFC 8446 §4.6.1) that nodes share, so that a client resumes at whichever node
//! it comes to.
//!
//! They are derived from a file that is the same on all of them, another one for each window of time. A ticket
//! says of which window it is, and is sealed with that window's key. It is taken while its window is the one
//! at hand, one of the two before, or the next one of a node whose clock is ahead. What cannot be opened is
//! no ticket: the client shakes hands in full.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use tokio_rustls::rustls::server::ProducesTickets;

use super::TlsError;
use crate::credentials::Secret;

/// Octets that the file must hold at least, and of which no more are read.
const SECRET: std::ops::RangeInclusive<usize> = 32..=4096;
/// How long a key seals tickets, in seconds.
const WINDOW: u64 = 6 * 60 * 60;
/// Windows before the one at hand whose tickets are taken.
const WINDOWS_BEFORE: u64 = 2;
/// As long as every ticket is good for, in seconds: the rest of its window comes on top.
const LIFETIME: u32 = 12 * 60 * 60;
/// Octets that say the window.
const INDEX: usize = size_of::<u64>();
/// What the derived keys are for, so that nobody else derives the same from that file.
const PURPOSE: &[u8] = b"mailshift session tickets 1";

/// The secret of which all keys are derived.
pub(super) struct SharedTickets {
    secret: ArcSwap<Secret>,
}

impl std::fmt::Debug for SharedTickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedTickets").finish_non_exhaustive()
    }
}

impl SharedTickets {
    /// Reads the file.
    pub(super) fn load(file: &Path) -> Result<Self, TlsError> {
        Ok(Self { secret: ArcSwap::from_pointee(read(file)?) })
    }

    /// Reads it again; tickets of before are good for nothing then.
    pub(super) fn reload(&self, file: &Path) -> Result<(), TlsError> {
        self.secret.store(read(file)?.into());
        Ok(())
    }

    fn key(&self, window: u64) -> Option<RandomizedNonceKey> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.secret.load().expose());
        let mut context = hmac::Context::with_key(&secret);
        context.update(PURPOSE);
        context.update(&window.to_be_bytes());
        RandomizedNonceKey::new(&AES_256_GCM, context.sign().as_ref()).ok()
    }

    fn seal(&self, plain: &[u8], window: u64) -> Option<Vec<u8>> {
        let index = window.to_be_bytes();
        let mut sealed = plain.to_vec();
        let key = self.key(window)?;
        let nonce = key.seal_in_place_append_tag(Aad::from(index), &mut sealed).ok()?;
        Some([&index, nonce.as_ref().as_slice(), &sealed].concat())
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (index, rest) = ticket.split_first_chunk::<INDEX>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let window = u64::from_be_bytes(*index);
        let taken = now.saturating_sub(WINDOWS_BEFORE)..=now.saturating_add(1);
        if !taken.contains(&window) {
            return None;
        }
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let key = self.key(window)?;
        let length = key.open_in_place(nonce, Aad::from(*index), &mut opened).ok()?.len();
        opened.truncate(length);
        Some(opened)
    }
}

impl ProducesTickets for SharedTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, window()?)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, window()?)
    }
}

/// The window at hand. By the clock on the wall, which is what nodes have in common.
fn window() -> Option<u64> {
    Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() / WINDOW)
}

fn read(file: &Path) -> Result<Secret, TlsError> {
    let unreadable = |error: std::io::Error| TlsError::Unreadable {
        file: file.to_owned(),
        reason: error.to_string(),
    };
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    if opened.metadata().map_err(unreadable)?.mode() & 0o007 != 0 {
        tracing::warn!(
            file = %file.display(),
            "everybody on this host may read or write the key of session tickets: chmod o= it"
        );
    }
    let mut secret = Vec::with_capacity(*SECRET.end());
    let limit = u64::try_from(*SECRET.end()).unwrap_or(u64::MAX);
    let read = opened.take(limit).read_to_end(&mut secret);
    let secret = Secret::new(secret);
    read.map_err(unreadable)?;
    if secret.expose().len() < *SECRET.start() {
        return Err(TlsError::ShortSecret { file: file.to_owned(), octets: *SECRET.start() });
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(secret: &[u8]) -> SharedTickets {
        SharedTickets { secret: ArcSwap::from_pointee(Secret::new(secret.to_vec())) }
    }

    #[test]
    fn a_ticket_is_opened_wherever_the_secret_is_the_same() {
        let ticket = of(&[7; 32]).seal(b"session", 100).unwrap();
        assert_eq!(of(&[7; 32]).open(&ticket, 100).as_deref(), Some(&b"session"[..]));
        assert_eq!(of(&[8; 32]).open(&ticket, 100), None);
        assert!(!ticket.windows(7).any(|octets| octets == b"session"));
        assert_ne!(of(&[7; 32]).seal(b"session", 100).unwrap(), ticket, "no two are the same");
    }

    #[test]
    fn a_ticket_ends_with_time_and_a_clock_that_is_a_little_ahead_does_no_harm() {
        let tickets = of(&[7; 32]);
        let ticket = tickets.seal(b"session", 100).unwrap();
        for (now, taken) in [(98, false), (99, true), (100, true), (102, true), (103, false)] {
            assert_eq!(tickets.open(&ticket, now).is_some(), taken, "{now}");
        }
        assert!(WINDOWS_BEFORE * WINDOW >= LIFETIME.into(), "as long as the client is told");
    }

    #[test]
    fn a_ticket_that_is_cut_or_changed_anywhere_is_none() {
        let tickets = of(&[7; 32]);
        let ticket = tickets.seal(b"session", 100).unwrap();
        for length in 0..ticket.len() {
            assert_eq!(tickets.open(&ticket[..length], 100), None, "{length}");
        }
        for position in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[position] ^= 1;
            assert_eq!(tickets.open(&changed, 100), None, "{position}");
        }
        let longer = [&ticket[..], &[0]].concat();
        assert_eq!(tickets.open(&longer, 100), None);
    }

    #[test]
    fn a_file_that_is_too_short_or_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tickets.key");
        let said = SharedTickets::load(&file).unwrap_err().to_string();
        assert!(said.contains("tickets.key"), "{said}");
        std::fs::write(&file, [7; 31]).unwrap();
        let said = SharedTickets::load(&file).unwrap_err().to_string();
        assert!(said.contains("tickets.key") && said.contains("32"), "{said}");
        std::fs::write(&file, [7; 32]).unwrap();
        let tickets = SharedTickets::load(&file).unwrap();
        let ticket = tickets.encrypt(b"session").unwrap();
        assert!(tickets.decrypt(&ticket).is_some());
        assert!(!format!("{tickets:?}").contains('7'));
        std::fs::write(&file, [8; 32]).unwrap();
        tickets.reload(&file).unwrap();
        assert!(tickets.decrypt(&ticket).is_none());
    }
}
