//! IMAP's capabilities before login (RFC 3501 §6.1.1).

use shared::sasl::{Mechanism, Mechanisms};

use super::{Offer, common_mechanisms, in_all};
use crate::backend::Abilities;

/// What the front does by itself, whatever the backends do.
const OURS: [&str; 3] = ["SASL-IR", "LITERAL-", "ID"];

/// What every server has, nearly.
pub fn modest() -> Offer {
    let words = ["IMAP4rev1", "SASL-IR", "LITERAL-", "ID", "ENABLE"];
    Offer {
        capabilities: words.map(Into::into).into(),
        mechanisms: [Mechanism::Plain].into_iter().collect::<Mechanisms>(),
    }
}

/// What all have, and what the front does by itself: versions first, as clients expect them.
pub fn merge(backends: &[Abilities]) -> Offer {
    let is_version = |word: &str| word.to_ascii_uppercase().starts_with("IMAP4REV");
    let is_ours = |word: &str| {
        let word = word.to_ascii_uppercase();
        word == "LITERAL+" || OURS.contains(&&*word)
    };
    let (mut words, others): (Vec<&str>, Vec<&str>) =
        in_all(backends).filter(|word| !is_ours(word)).partition(|word| is_version(word));
    if words.is_empty() {
        words.push("IMAP4rev1");
    }
    words.extend(OURS);
    words.extend(others);
    let capabilities = words.into_iter().map(Into::into).collect();
    Offer { capabilities, mechanisms: common_mechanisms(backends) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(words: &str) -> Abilities {
        let capabilities = words.split(' ').map(Into::into).collect();
        Abilities { capabilities, mechanisms: Mechanisms::PASSWORDS, believes_us: None }
    }

    #[test]
    fn what_all_have_is_offered_and_what_we_do_ourselves() {
        let old = says("IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE MOVE");
        let new = says("IMAP4rev2 imap4rev1 ID IDLE UIDONLY LITERAL- enable");
        let offer = merge(&[old, new]);
        assert_eq!(offer.capabilities.join(" "), "IMAP4rev1 SASL-IR LITERAL- ID ENABLE IDLE");
        assert_eq!(offer.mechanisms, [Mechanism::Plain].into_iter().collect());
    }

    #[test]
    fn a_server_that_says_nothing_of_its_version_is_taken_for_the_old_one() {
        let offer = merge(&[says("IDLE")]);
        assert_eq!(offer.capabilities.join(" "), "IMAP4rev1 SASL-IR LITERAL- ID IDLE");
    }
}
