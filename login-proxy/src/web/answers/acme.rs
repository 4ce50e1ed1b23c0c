//! ACME's HTTP-01 challenge (RFC 8555 §8.3): another program puts files into a directory, and they are served
//! here. Reading them is the caller's business. Pure.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::reply::{Keep, reply};

const PREFIX: &str = "/.well-known/acme-challenge/";
/// Longest token, in octets. RFC 8555 §8.3 wants 128 bits at least, which are 22.
const MAX_TOKEN: usize = 128;
/// Longest file that is read, in octets: a token, a dot, and the thumbprint of a key.
pub(super) const MAX_CONTENT: usize = 1024;

/// The token that a path asks for, which is the file's name. `None`: nothing of the kind is there.
///
/// It has characters of base64url only, so it leads nowhere else than into the directory.
pub(super) fn token(path: &str) -> Option<&str> {
    let token = path.strip_prefix(PREFIX)?;
    let is_base64url = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_';
    ((1..=MAX_TOKEN).contains(&token.len()) && token.bytes().all(is_base64url)).then_some(token)
}

/// The answer to a challenge. `None`: the file has something else in it.
///
/// An answer begins with its token (RFC 8555 §8.1). Whatever else somebody keeps in that directory, under a
/// name that could be a token's, is not for everybody.
pub(super) fn respond(token: &str, content: &[u8]) -> Option<Response<Bytes>> {
    let content = content.trim_ascii_end();
    if content.len() > MAX_CONTENT {
        return None;
    }
    let thumbprint = content.strip_prefix(token.as_bytes())?.strip_prefix(b".")?;
    let is_base64url = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_".contains(octet);
    if thumbprint.is_empty() || !thumbprint.iter().all(is_base64url) {
        return None;
    }
    let body = Bytes::copy_from_slice(content);
    Some(reply(StatusCode::OK, "application/octet-stream", Keep::Never, body))
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0";

    #[test]
    fn only_a_tokens_characters_name_a_file() {
        assert_eq!(token(&format!("{PREFIX}{TOKEN}")), Some(TOKEN));
        assert_eq!(token(&format!("{PREFIX}a-_9")), Some("a-_9"));
        let long = "a".repeat(MAX_TOKEN + 1);
        for name in [
            "", ".", "..", "../x", "a/b", "a.b", "a%2e", "a\0", "a b", "\u{fc}", "a+", "a=", &*long,
        ] {
            assert_eq!(token(&format!("{PREFIX}{name}")), None, "{name}");
        }
        assert_eq!(token(TOKEN), None);
        assert_eq!(token("/.well-known/acme-challenge"), None);
    }

    #[test]
    fn a_challenge_is_answered_with_its_file() {
        let content = format!("{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI");
        let response = respond(TOKEN, format!("{content}\r\n").as_bytes()).unwrap();
        assert_eq!(response.body(), content.as_bytes());
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/octet-stream");
        assert_eq!(response.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    }

    #[test]
    fn a_file_that_is_no_answer_is_not_shown() {
        let huge = format!("{TOKEN}.{}", "a".repeat(MAX_CONTENT));
        let others = [
            "",
            TOKEN,
            "secret",
            "x.y",
            &*format!("{TOKEN}."),
            &*format!("{TOKEN}.a\nsecret"),
            &*huge,
        ];
        for content in others {
            assert!(respond(TOKEN, content.as_bytes()).is_none(), "{content}");
        }
    }

    proptest! {
        #[test]
        fn a_token_is_one_name_in_the_directory(name in "[A-Za-z0-9_-]{0,20}(/|\\.|%|\\\\|\\PC)?[a-z]{0,4}") {
            let path = format!("{PREFIX}{name}");
            if let Some(token) = token(&path) {
                prop_assert!(!token.contains(['/', '.', '\\', '\0', '%']) && !token.is_empty());
            }
        }
    }
}
