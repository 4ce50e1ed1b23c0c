//! The hash of a body in relaxed form, where the library's is wrong (RFC 6376 §3.4.4).
//!
//! Lines of nothing but white space at the end of a body are empty lines, and those are ignored; mail-auth
//! 0.13 keeps them. So such a body is hashed without them.

use mail_auth::AuthenticatedMessage;
use mail_auth::dkim::Canonicalization;

/// Puts right what the library hashed wrong. Signatures with `l=` are not verified, so whole bodies only.
pub(super) fn put_right(message: &mut AuthenticatedMessage<'_>) {
    let body = message.raw_message.get(message.body_offset()..).unwrap_or_default();
    let text = without_blank_end(body);
    let is_affected = body.get(text.len()..).unwrap_or_default().iter().any(|b| b" \t".contains(b));
    if !is_affected {
        return;
    }
    for (canonicalization, algorithm, _, hash) in &mut message.body_hashes {
        if *canonicalization == Canonicalization::Relaxed {
            *hash = algorithm.hash(canonicalization.canonical_body(text, 0)).as_ref().to_vec();
        }
    }
}

/// The body as far as the end of its last line that has a text.
fn without_blank_end(body: &[u8]) -> &[u8] {
    let Some(last) = body.iter().rposition(|b| !b.is_ascii_whitespace()) else { return &[] };
    let (_, end) = body.split_at(last);
    let line = memchr::memchr(b'\n', end).map_or(end.len(), |at| at.saturating_add(1));
    body.get(..last.saturating_add(line)).unwrap_or(body)
}

#[cfg(test)]
mod tests {
    use mail_auth::common::crypto::HashAlgorithm;

    use super::*;

    /// The hash of a body as it stands in a signature's `bh=`, by the library and put right.
    fn hashes(body: &str, canonicalization: &str) -> (Vec<u8>, Vec<u8>) {
        let raw = format!(
            "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/{canonicalization}; d=a.example; s=s; h=from;\r\n\
             \tbh=aaaa; b=bbbb\r\nFrom: a@a.example\r\n\r\n{body}"
        );
        let mut message = AuthenticatedMessage::parse(raw.as_bytes()).unwrap();
        let before = message.body_hashes[0].3.clone();
        put_right(&mut message);
        (before, message.body_hashes[0].3.clone())
    }

    fn sha256(text: &str) -> Vec<u8> {
        HashAlgorithm::Sha256
            .hash(Canonicalization::Simple.canonical_body(text.as_bytes(), 0))
            .as_ref()
            .to_vec()
    }

    #[test]
    fn blank_lines_at_the_end_are_ignored_whatever_they_are_made_of() {
        // Simple form leaves a text with one CR LF at its end as it is.
        for (body, relaxed) in [
            ("hello\r\n \r\n", "hello\r\n"),
            ("hello\r\n\t \r\n\r\n \r\n", "hello\r\n"),
            ("hello\r\n ", "hello\r\n"),
            ("hello \t\r\n  \r\n", "hello\r\n"),
            ("a\r\n \r\nb\r\n \r\n", "a\r\n\r\nb\r\n"),
        ] {
            let (by_library, right) = hashes(body, "relaxed");
            assert_eq!(right, sha256(relaxed), "{body:?}");
            assert_ne!(by_library, right, "{body:?}: the library is right now, so this can go");
        }
    }

    #[test]
    fn other_bodies_are_hashed_as_ever() {
        for body in ["", "hello", "hello\r\n", "hello \r\n\r\n\r\n", "a\r\n \r\nb\r\n"] {
            let (by_library, right) = hashes(body, "relaxed");
            assert_eq!(by_library, right, "{body:?}");
        }
        for body in ["hello\r\n \r\n", " \r\n", ""] {
            let (by_library, right) = hashes(body, "simple");
            assert_eq!(by_library, right, "{body:?}");
        }
    }

    #[test]
    fn a_body_of_blank_lines_is_empty() {
        for body in [" \r\n", "\r\n \r\n", "\t"] {
            assert_eq!(hashes(body, "relaxed").1, hashes("", "relaxed").1, "{body:?}");
        }
    }
}
