//! POP3's capabilities before login (RFC 2449).

use shared::sasl::{Mechanism, Mechanisms};

use super::{Offer, common_mechanisms, in_all};
use crate::backend::Abilities;

/// What the front does by itself, whatever the backends do: its refusals of a login have codes (RFC 3206).
const OURS: [&str; 2] = ["RESP-CODES", "AUTH-RESP-CODE"];

/// What says something of one server alone, and what the front does not take although backends may
/// (RFC 6856: both are said before login).
const NOT_OFFERED: [&str; 5] = ["IMPLEMENTATION", "LOGIN-DELAY", "XCLIENT", "UTF8", "LANG"];

/// What every server has, nearly.
pub fn modest() -> Offer {
    let words = ["TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE"];
    Offer {
        capabilities: words.map(Into::into).into(),
        mechanisms: [Mechanism::Plain].into_iter().collect::<Mechanisms>(),
    }
}

/// What all have with the same parameters, and what the front does by itself.
pub fn merge(backends: &[Abilities]) -> Offer {
    let is_shared = |line: &&str| {
        let word = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        !OURS.contains(&&*word) && !NOT_OFFERED.contains(&&*word)
    };
    let lines = in_all(backends).filter(is_shared).chain(OURS);
    Offer { capabilities: lines.map(Into::into).collect(), mechanisms: common_mechanisms(backends) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(lines: &[&str]) -> Abilities {
        let capabilities = lines.iter().map(|line| (*line).into()).collect();
        Abilities { capabilities, mechanisms: Mechanisms::PASSWORDS, believes_us: None }
    }

    fn merged(backends: &[&[&str]]) -> String {
        let backends: Vec<_> = backends.iter().map(|lines| says(lines)).collect();
        merge(&backends).capabilities.join(", ")
    }

    #[test]
    fn only_what_all_have_is_offered_and_nothing_of_one_server_alone() {
        let dovecot =
            &["TOP", "UIDL", "RESP-CODES", "PIPELINING", "AUTH-RESP-CODE", "EXPIRE NEVER"][..];
        let courier = &["uidl", "TOP", "PIPELINING", "EXPIRE 30", "IMPLEMENTATION Courier"];
        assert_eq!(
            merged(&[dovecot, courier]),
            "TOP, UIDL, PIPELINING, RESP-CODES, AUTH-RESP-CODE"
        );
        let exchange = &["TOP", "UIDL"];
        assert_eq!(merged(&[dovecot, exchange]), "TOP, UIDL, RESP-CODES, AUTH-RESP-CODE");
        assert_eq!(merged(&[&[], dovecot]), "RESP-CODES, AUTH-RESP-CODE");
    }

    #[test]
    fn what_the_front_does_not_take_is_not_offered_whoever_has_it() {
        let lines = &["TOP", "UTF8 USER", "LANG", "LOGIN-DELAY 60", "IMPLEMENTATION x"][..];
        assert_eq!(merged(&[lines, lines]), "TOP, RESP-CODES, AUTH-RESP-CODE");
    }
}
