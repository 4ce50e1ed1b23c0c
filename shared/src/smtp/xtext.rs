//! xtext: any octets in one word of a command (RFC 3461 §4).

use std::fmt::Write as _;

/// Printable ASCII as it is, all else as `+XX`.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for octet in text.bytes() {
        if is_plain(octet) {
            encoded.push(char::from(octet));
        } else {
            // Writing to a String does not fail.
            let _ = write!(encoded, "+{octet:02X}");
        }
    }
    encoded
}

/// The octets that a word of xtext stands for; `None` when it is not xtext. The hexadecimal digits may be
/// lower case, which the grammar does not allow and some senders write.
pub fn decode(word: &str) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(word.len());
    let mut rest = word.bytes();
    while let Some(octet) = rest.next() {
        match octet {
            b'+' => {
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                octets.push(high << 4 | low);
            }
            plain if is_plain(plain) => octets.push(plain),
            _ => return None,
        }
    }
    Some(octets)
}

/// Stands for itself.
fn is_plain(octet: u8) -> bool {
    matches!(octet, b'!'..=b'~') && octet != b'+' && octet != b'='
}

fn digit(octet: u8) -> Option<u8> {
    char::from(octet).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_cannot_end_its_attribute_or_its_line() {
        assert_eq!(encode("a b\r\n=+é"), "a+20b+0D+0A+3D+2B+C3+A9");
    }

    #[test]
    fn what_is_not_xtext_stands_for_nothing() {
        assert_eq!(decode("a+2bB+3D"), Some(b"a+B=".to_vec()));
        for bad in ["a b", "a=b", "+", "+2", "+2x", "a+", "\u{fc}", "+\u{fc}"] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_one_word_and_comes_back(text in any::<String>()) {
            let word = encode(&text);
            prop_assert!(word.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'='));
            prop_assert_eq!(decode(&word), Some(text.into_bytes()));
        }
    }
}
