//! What is advertised before login: what all backends have (LOG-10, HLT-3).
//!
//! Each backend is asked at start and now and then; one that cannot be reached keeps what it last said,
//! and one that never said anything does not count. What is configured (`login.advertise`) wins. A client
//! is told more after login, by its own backend.

pub mod imap;
pub mod managesieve;
pub mod pop3;
mod probes;
pub mod submission;

use std::sync::Arc;

use arc_swap::ArcSwap;
use shared::sasl::{Mechanism, Mechanisms};

use crate::backend::Abilities;
pub use probes::{Offers, watch};

/// What is advertised before login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Capabilities in the protocol's form, one each, without those of TLS and SASL.
    pub capabilities: Arc<[Box<str>]>,
    /// Mechanisms.
    pub mechanisms: Mechanisms,
}

/// The offer of now.
pub type CurrentOffer = ArcSwap<Offer>;

/// Mechanisms that all have. A password that any of them takes in any form is offered as PLAIN, since it is
/// replayed in the form that the owner takes.
fn common_mechanisms(backends: &[Abilities]) -> Mechanisms {
    let mut all = Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str));
    // Nobody logs in to a backend that takes nothing; the others' users still may.
    let mut takers = backends.iter().filter(|b| !b.mechanisms.is_empty()).peekable();
    if takers.peek().is_none() {
        return [Mechanism::Plain].into_iter().collect();
    }
    for backend in takers {
        let mut mechanisms = backend.mechanisms;
        if !mechanisms.intersection(Mechanisms::PASSWORDS).is_empty() {
            mechanisms = mechanisms.union(Mechanisms::PASSWORDS);
        }
        // Either form of a token is written in the other.
        if mechanisms.contains(Mechanism::XOAuth2) || mechanisms.contains(Mechanism::OAuthBearer) {
            mechanisms.insert(Mechanism::XOAuth2);
            mechanisms.insert(Mechanism::OAuthBearer);
        }
        all = all.intersection(mechanisms);
    }
    all.remove(Mechanism::Login);
    all
}

/// Capabilities that all have, in any case, in the first one's order.
fn in_all(backends: &[Abilities]) -> impl Iterator<Item = &str> {
    let (first, others) = match backends.split_first() {
        Some((first, others)) => (&*first.capabilities, others),
        None => (&[][..], &[][..]),
    };
    first.iter().map(|word| &**word).filter(|word| {
        let has =
            |other: &Abilities| other.capabilities.iter().any(|w| w.eq_ignore_ascii_case(word));
        others.iter().all(has)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(words: &str) -> Abilities {
        let mechanisms = Mechanisms::of_words(words.split(' '));
        Abilities { mechanisms, ..Abilities::default() }
    }

    #[test]
    fn only_mechanisms_that_all_can_be_given_are_offered() {
        let common = |backends: &[&str]| {
            let backends: Vec<_> = backends.iter().map(|words| offers(words)).collect();
            common_mechanisms(&backends).iter().map(Mechanism::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(common(&["PLAIN LOGIN", "LOGIN"]), "PLAIN");
        assert_eq!(common(&["PLAIN XOAUTH2", "PLAIN OAUTHBEARER"]), "PLAIN XOAUTH2 OAUTHBEARER");
        assert_eq!(common(&["PLAIN SCRAM-SHA-256", "SCRAM-SHA-256 SCRAM-SHA-1"]), "SCRAM-SHA-256");
        assert_eq!(common(&["PLAIN XOAUTH2", "PLAIN"]), "PLAIN");
        assert_eq!(common(&["PLAIN XOAUTH2", "GSSAPI"]), "PLAIN XOAUTH2 OAUTHBEARER");
        assert_eq!(common(&["GSSAPI"]), "PLAIN");
    }
}
