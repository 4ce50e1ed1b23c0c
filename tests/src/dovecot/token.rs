//! Tokens that a [`super::Full`] server believes: JWTs (RFC 7519) with HS256.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::TOKEN_KEY;

/// The block of SHA-256, in octets.
const BLOCK: usize = 64;
/// The year 2100.
const EXPIRY: u64 = 4_102_444_800;

/// A token for an account.
pub fn token(account: &str) -> String {
    let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let header = encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = encode(&format!(r#"{{"sub":"{account}","email":"{account}","exp":{EXPIRY}}}"#));
    let signed = format!("{header}.{claims}");
    let signature = hmac(TOKEN_KEY.as_bytes(), signed.as_bytes());
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// RFC 2104, for keys that are shorter than a block.
fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let pad = |with: u8| -> Vec<u8> {
        (0..BLOCK).map(|at| key.get(at).copied().unwrap_or(0) ^ with).collect()
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231 §4.3.
    #[test]
    fn a_signature_is_that_of_the_standard() {
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let signature = hmac(b"Jefe", b"what do ya want for nothing?");
        let shown: String = signature.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(shown, expected);
    }
}
