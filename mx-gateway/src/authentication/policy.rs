//! What follows from what was found out: whether a message is taken, and whether its sender may be told of
//! a failure.

use shared::address::Domain;
use shared::config::{Enforcement, EnforcementMode};
use shared::smtp::reply::Reply;

use super::results::{Entry, Found};

/// What a quarantined message is marked by.
pub const QUARANTINE_HEADER: &str = "Mailshift-Policy: quarantine\r\n";

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// It is delivered as it is.
    Deliver,
    /// It is delivered with a mark.
    Quarantine,
    /// It is refused before anybody gets it.
    Reject(Reply),
}

impl Policy {
    /// As the log has it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Deliver => "deliver",
            Self::Quarantine => "quarantine",
            Self::Reject(_) => "reject",
        }
    }
}

/// How far a sender is who the envelope says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// SPF passed for MAIL FROM, or a signature of its domain did: a report reaches whom it concerns.
    Passed,
    /// SPF says that the client does not send for that domain.
    Failed,
    /// Nobody knows.
    Unknown,
}

/// What DMARC found for one domain of the author's (RFC 9989).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dmarc {
    /// The domain, lower case; empty when there is none.
    pub domain: String,
    /// Its result.
    pub found: Found,
    /// Why.
    pub comment: Option<&'static str>,
    /// What its owner wishes to be done with a failure.
    pub wish: EnforcementMode,
}

impl Dmarc {
    /// When not even the author is known.
    pub fn undecided(found: Found, why: &'static str) -> Self {
        Self { domain: String::new(), found, comment: Some(why), wish: EnforcementMode::Off }
    }

    /// As it is written.
    pub fn entry(&self) -> Entry {
        let wish = match self.wish {
            EnforcementMode::Off => "none",
            EnforcementMode::Quarantine => "quarantine",
            EnforcementMode::Reject => "reject",
        };
        let wished = matches!(self.found, Found::Pass | Found::Fail);
        Entry::new("dmarc", self.found)
            .because(self.comment)
            .with("header.from", &self.domain)
            .with("policy.dmarc", if wished { wish } else { "" })
    }
}

/// What becomes of a message to these domains of ours. It has one reply, so the mildest of them counts; and
/// of its authors' domains the one with the strictest wish.
pub fn decide(enforcement: &Enforcement, recipients: &[&Domain], authors: &[Dmarc]) -> Policy {
    let failed = authors.iter().filter(|dmarc| dmarc.found == Found::Fail);
    let Some(author) = failed.max_by_key(|dmarc| dmarc.wish) else { return Policy::Deliver };
    let ours = recipients.iter().map(|domain| enforcement.mode(domain)).min().unwrap_or_default();
    match author.wish.min(ours) {
        EnforcementMode::Off => Policy::Deliver,
        EnforcementMode::Quarantine => Policy::Quarantine,
        EnforcementMode::Reject => {
            let text = format!("Refused by the DMARC policy of {}", author.domain);
            Policy::Reject(Reply::new(550, (7, 1), text))
        }
    }
}

/// The standing of a sender of `domain`, by SPF and by the domains whose signatures passed.
pub fn standing<'a>(
    domain: Option<&Domain>,
    spf: Found,
    mut signed: impl Iterator<Item = &'a str>,
) -> Standing {
    let speaks_for = |signer: &str| {
        // A domain speaks for what is below it, never for what is above.
        let (Some(domain), Ok(signer)) = (domain, Domain::parse(signer)) else { return false };
        let below = domain.as_str().strip_suffix(signer.as_str());
        below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
    };
    if spf == Found::Pass || signed.any(speaks_for) {
        return Standing::Passed;
    }
    match spf {
        Found::Fail | Found::SoftFail => Standing::Failed,
        _ => Standing::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    fn dmarc(found: Found, wish: EnforcementMode) -> Dmarc {
        Dmarc { domain: "bank.example".into(), found, comment: None, wish }
    }

    #[test]
    fn the_mildest_of_the_recipients_domains_counts() {
        use EnforcementMode::{Off, Quarantine, Reject};
        let modes = [("off.example", Off), ("q.example", Quarantine), ("r.example", Reject)];
        let modes: BTreeMap<_, _> = modes.map(|(text, mode)| (domain(text), mode)).into();
        let enforcement = Enforcement::new(modes, Reject);
        for (recipients, wish, expected) in [
            (&["r.example"][..], Reject, "reject"),
            (&["other.example"], Reject, "reject"),
            (&["r.example", "r.example"], Quarantine, "quarantine"),
            (&["r.example", "q.example"], Reject, "quarantine"),
            (&["r.example", "off.example"], Reject, "deliver"),
            (&["r.example"], Off, "deliver"),
            (&[], Reject, "deliver"),
        ] {
            let domains: Vec<Domain> = recipients.iter().map(|text| domain(text)).collect();
            let domains: Vec<&Domain> = domains.iter().collect();
            let policy = decide(&enforcement, &domains, &[dmarc(Found::Fail, wish)]);
            assert_eq!(policy.as_str(), expected, "{recipients:?} {wish:?}");
            if let Policy::Reject(reply) = policy {
                let text = "550 5.7.1 Refused by the DMARC policy of bank.example";
                assert_eq!(reply.to_string(), text);
            }
        }
    }

    #[test]
    fn nothing_but_a_failure_is_enforced() {
        let enforcement = Enforcement::new(BTreeMap::new(), EnforcementMode::Reject);
        let ours = domain("example.org");
        for found in [Found::Pass, Found::None, Found::TempError, Found::PermError] {
            let authors = [dmarc(found, EnforcementMode::Reject)];
            assert_eq!(decide(&enforcement, &[&ours], &authors), Policy::Deliver, "{found:?}");
        }
    }

    #[test]
    fn one_author_that_fails_is_enough() {
        let enforcement = Enforcement::new(BTreeMap::new(), EnforcementMode::Reject);
        let ours = domain("example.org");
        let authors = [
            dmarc(Found::Pass, EnforcementMode::Reject),
            dmarc(Found::Fail, EnforcementMode::Reject),
            dmarc(Found::Fail, EnforcementMode::Off),
        ];
        assert!(matches!(decide(&enforcement, &[&ours], &authors), Policy::Reject(_)));
    }

    #[test]
    fn a_signature_counts_for_its_own_domain_and_below() {
        let sender = domain("mail.example.com");
        for (spf, signed, expected) in [
            (Found::Pass, "", Standing::Passed),
            (Found::Fail, "mail.example.com", Standing::Passed),
            (Found::Fail, "Example.COM", Standing::Passed),
            (Found::Fail, "a.mail.example.com", Standing::Failed),
            (Found::SoftFail, "evil.example", Standing::Failed),
            (Found::None, "ample.com", Standing::Unknown),
            (Found::TempError, "", Standing::Unknown),
        ] {
            let got = standing(Some(&sender), spf, [signed].into_iter());
            assert_eq!(got, expected, "{spf:?} {signed}");
        }
        assert_eq!(standing(None, Found::None, ["a.example"].into_iter()), Standing::Unknown);
    }
}
