//! ManageSieve's capabilities before login (RFC 5804 §1.7), a line each. Some clients never ask again, so
//! they choose what they write in a script by these.

use shared::sasl::{Mechanism, Mechanisms};

use super::{Offer, common_mechanisms};
use crate::backend::Abilities;
use crate::managesieve::{Capability, Limits, Parsed, parse, strings};

/// Capabilities whose value is a list of words.
const LISTS: [&str; 3] = ["SIEVE", "NOTIFY", "EXTLISTS"];
/// What a probe has said, or the configuration.
const LIMITS: Limits = Limits { quoted: 16 * 1024, literal: 16 * 1024, line: 32 * 1024 };

/// What every server has, nearly.
pub fn modest() -> Offer {
    Offer {
        capabilities: ["\"SIEVE\" \"fileinto\"", "\"VERSION\" \"1.0\""].map(Into::into).into(),
        mechanisms: [Mechanism::Plain].into_iter().collect::<Mechanisms>(),
    }
}

/// What all have, in the first one's order: of lists the words that all have, of limits the lowest, and of
/// everything else what all say in the same way.
pub fn merge(backends: &[Abilities]) -> Offer {
    let all: Vec<Vec<Capability>> = backends.iter().map(capabilities).collect();
    let (first, others) = match all.split_first() {
        Some((first, others)) => (&**first, others),
        None => (&[][..], &[][..]),
    };
    let mut merged: Vec<Capability> =
        first.iter().filter_map(|capability| common(capability, others)).collect();
    // Required of every server (RFC 5804 §1.7).
    if merged.iter().all(|capability| capability.name != "SIEVE") {
        merged.insert(0, Capability { name: "SIEVE".to_owned(), value: Some(String::new()) });
    }
    Offer {
        capabilities: merged.iter().map(Capability::to_line).collect(),
        mechanisms: common_mechanisms(backends),
    }
}

fn capabilities(backend: &Abilities) -> Vec<Capability> {
    let read = |said: &str| {
        let said = format!("{said}\r\n");
        match parse(said.as_bytes(), LIMITS) {
            Parsed::Whole { words, .. } => Capability::of(&strings(&words)?),
            Parsed::Part | Parsed::Malformed { .. } | Parsed::TooLarge { .. } => None,
        }
    };
    backend.capabilities.iter().filter_map(|said| read(said)).collect()
}

/// What is left of a capability when each of the others has had its say.
fn common(capability: &Capability, others: &[Vec<Capability>]) -> Option<Capability> {
    let Capability { name, value } = capability;
    // Who does not have it has the last word.
    let theirs = others.iter().map(|other| other.iter().find(|theirs| theirs.name == *name));
    let theirs: Vec<Option<&str>> =
        theirs.map(|theirs| theirs.map(|theirs| theirs.value.as_deref())).collect::<Option<_>>()?;
    let value = if LISTS.contains(&&**name) {
        Some(in_all_lists(value.as_deref(), &theirs))
    } else if name == "MAXREDIRECTS" {
        Some(lowest(value.as_deref(), &theirs)?)
    } else if theirs.iter().all(|theirs| *theirs == value.as_deref()) {
        value.clone()
    } else {
        return None;
    };
    Some(Capability { name: name.clone(), value })
}

fn in_all_lists(value: Option<&str>, others: &[Option<&str>]) -> String {
    let has = |list: Option<&str>, word: &str| {
        let mut words = list.unwrap_or_default().split_ascii_whitespace();
        words.any(|theirs| theirs.eq_ignore_ascii_case(word))
    };
    let common = value.unwrap_or_default().split_ascii_whitespace();
    let common = common.filter(|word| others.iter().all(|list| has(*list, word)));
    common.collect::<Vec<_>>().join(" ")
}

fn lowest(value: Option<&str>, others: &[Option<&str>]) -> Option<String> {
    let all = std::iter::once(&value).chain(others);
    let all: Option<Vec<u32>> = all.map(|value| value.as_ref()?.parse().ok()).collect();
    Some(all?.into_iter().min()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(lines: &[&str]) -> Abilities {
        let capabilities = lines.iter().map(|line| (*line).into()).collect();
        Abilities { capabilities, mechanisms: Mechanisms::PASSWORDS, believes_us: None }
    }

    fn merged(backends: &[Abilities]) -> Vec<String> {
        let offer = merge(backends);
        assert_eq!(offer.mechanisms, [Mechanism::Plain].into_iter().collect());
        offer.capabilities.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn words_that_all_have_are_offered_in_the_first_ones_order() {
        let old = says(&[
            "\"SIEVE\" \"fileinto reject envelope vnd.dovecot.pipe enotify\"",
            "\"NOTIFY\" \"mailto xmpp\"",
            "\"MAXREDIRECTS\" \"16\"",
            "\"LANGUAGE\" \"en\"",
            "\"RENAME\"",
            "\"EXTRA\"",
            "\"VERSION\" \"1.0\"",
        ]);
        let new = says(&[
            "\"VERSION\" \"1.0\"",
            "\"maxredirects\" \"4\"",
            "\"sieve\" \"Envelope enotify fileinto vnd.stalwart.eval\"",
            "\"NOTIFY\" {6}\r\nmailto",
            "\"LANGUAGE\" \"de\"",
            "\"RENAME\"",
        ]);
        assert_eq!(
            merged(&[old.clone(), new]),
            [
                "\"SIEVE\" \"fileinto envelope enotify\"",
                "\"NOTIFY\" \"mailto\"",
                "\"MAXREDIRECTS\" \"4\"",
                "\"RENAME\"",
                "\"VERSION\" \"1.0\"",
            ]
        );
        assert_eq!(
            merged(std::slice::from_ref(&old)),
            old.capabilities.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_server_of_before_the_rfc_makes_nobody_promise_it() {
        let old = says(&["\"SIEVE\" \"fileinto\"", "\"VERSION\" \"1.0\""]);
        assert_eq!(merged(&[old, says(&["\"SIEVE\" \"vacation\"", "broken"])]), ["\"SIEVE\" \"\""]);
        assert_eq!(
            merged(&[says(&["\"VERSION\" \"1.0\""])]),
            ["\"SIEVE\" \"\"", "\"VERSION\" \"1.0\""]
        );
    }
}
