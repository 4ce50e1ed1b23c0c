//! Which backend issued a code of OAuth's (HTP-5). A code is known to its issuer alone, so who redeems it goes
//! there (RFC 6749 §4.1, RFC 8628). Kept by this process alone and not for long, as codes are.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use shared::backend::BackendName;
use tokio::time::Instant;

/// How long codes are good for, at most: half an hour for devices.
const LIFE: Duration = Duration::from_mins(30);
/// Codes that are remembered; the oldest leave first.
const MAX_CODES: usize = 65_536;
/// The words of RFC 6749 and RFC 8628 for what only its issuer knows.
const FIELDS: [&str; 4] = ["code", "device_code", "user_code", "client_code"];
/// Longest code that is remembered, in octets.
const MAX_CODE: usize = 4096;

/// Codes, by their hash.
#[derive(Debug, Default)]
pub(super) struct Codes {
    hasher: RandomState,
    issued: Mutex<HashMap<u64, (BackendName, Instant)>>,
}

impl Codes {
    /// The backend that issued it.
    pub(super) fn issuer(&self, code: &[u8]) -> Option<BackendName> {
        let key = self.hasher.hash_one(canonical(code));
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        let (backend, at) = issued.get(&key)?;
        (at.elapsed() < LIFE).then(|| backend.clone())
    }

    /// Notes the codes in a redirection (RFC 6749 §4.1.2).
    pub(super) fn note_location(&self, location: &str, backend: &BackendName) {
        let query = location.split_once(['?', '#']).map_or("", |(_, query)| query);
        for pair in query.split(['&', '#']) {
            if let Some((name, code)) = pair.split_once('=')
                && FIELDS.contains(&name)
            {
                self.note(code.as_bytes(), backend);
            }
        }
    }

    /// Notes the codes in a JSON answer (RFC 8628 §3.2), at its top or one level below.
    pub(super) fn note_json(&self, body: &[u8], backend: &BackendName) {
        let Ok(Value::Object(object)) = serde_json::from_slice(body) else { return };
        for (name, value) in &object {
            match value {
                Value::String(code) if FIELDS.contains(&&**name) => {
                    self.note(code.as_bytes(), backend);
                }
                Value::Object(inner) => {
                    for (name, value) in inner {
                        if let Some(code) = value.as_str().filter(|_| FIELDS.contains(&&**name)) {
                            self.note(code.as_bytes(), backend);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn note(&self, code: &[u8], backend: &BackendName) {
        if code.is_empty() || code.len() > MAX_CODE {
            return;
        }
        let key = self.hasher.hash_one(canonical(code));
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if issued.len() >= MAX_CODES {
            issued.retain(|_, (_, at)| at.elapsed() < LIFE);
        }
        if issued.len() >= MAX_CODES {
            let mut ages: Vec<Instant> = issued.values().map(|(_, at)| *at).collect();
            let (_, middle, _) = ages.select_nth_unstable(MAX_CODES / 2);
            let middle = *middle;
            issued.retain(|_, (_, at)| *at > middle);
        }
        issued.insert(key, (backend.clone(), Instant::now()));
    }
}

/// People type user codes (RFC 8628 §6.1): dashes, spaces and case make no difference.
fn canonical(code: &[u8]) -> Vec<u8> {
    let kept = code.iter().filter(|octet| !matches!(octet, b'-' | b' '));
    kept.map(u8::to_ascii_uppercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_leads_to_its_issuer() {
        let codes = Codes::default();
        let (old, new) = (BackendName::parse("old").unwrap(), BackendName::parse("new").unwrap());
        codes.note_location("https://x.example/cb?state=1&code=AbC", &old);
        codes.note_json(br#"{"device_code":"d1","user_code":"WDJB-MJHT","expires_in":900}"#, &new);
        codes.note_json(br#"{"data":{"code":"c2"}}"#, &new);
        assert_eq!(codes.issuer(b"AbC"), Some(old));
        for code in [&b"d1"[..], b"wdjbmjht", b"c2"] {
            assert_eq!(codes.issuer(code), Some(new.clone()));
        }
        assert_eq!(codes.issuer(b"other"), None);
        for odd in [&b""[..], b"[]", b"{\"code\":1}", b"{"] {
            codes.note_json(odd, &new);
        }
    }

    #[test]
    fn the_oldest_codes_leave_first() {
        let codes = Codes::default();
        let old = BackendName::parse("old").unwrap();
        for number in 0..=MAX_CODES {
            codes.note(number.to_string().as_bytes(), &old);
        }
        assert!(codes.issued.lock().unwrap().len() <= MAX_CODES);
        assert!(codes.issuer(MAX_CODES.to_string().as_bytes()).is_some());
    }
}
