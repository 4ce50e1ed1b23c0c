//! How names lead to accounts.

use std::collections::BTreeMap;

use super::Parser;
use crate::address::Domain;
use crate::config::{NamesConfig, raw};
use crate::ownership::RoutingDomains;

impl Parser<'_, '_> {
    pub(super) fn names(&mut self, names: raw::Names) -> NamesConfig {
        let separators = &names.master_separators;
        let good = |c: char| c.is_ascii_punctuation() && !"@+-._".contains(c);
        if !separators.chars().all(good) {
            let message = "must be punctuation that no mailbox name has, such as \"*\" or \"*%\"";
            self.problems.note("names.master_separators", message);
        }
        let default_domain =
            self.optional("names.default_domain", &names.default_domain, Domain::parse);
        let routing_domains = self.routing_domains(&names.routing_domains);
        if default_domain.as_ref().is_some_and(|d| routing_domains.real(d.as_str()).is_some()) {
            self.problems.note("names.default_domain", "is a routing domain: name the real one");
        }
        NamesConfig {
            default_domain,
            routing_domains,
            master_separators: names.master_separators.into(),
            token_claims: names.token_claims.into_iter().map(String::into).collect(),
        }
    }

    fn routing_domains(&mut self, written: &BTreeMap<String, String>) -> RoutingDomains {
        let key = "names.routing_domains";
        let mut pairs = Vec::new();
        for (routing, real) in written {
            let (routing, real) = (self.domain(key, routing), self.domain(key, real));
            pairs.extend(routing.zip(real));
        }
        RoutingDomains::new(pairs).unwrap_or_else(|error| {
            self.problems.note(key, error.to_string());
            RoutingDomains::default()
        })
    }

    fn domain(&mut self, key: &str, text: &str) -> Option<Domain> {
        Domain::parse(text)
            .map_err(|error| self.problems.note(key, format!("{text:?}: {error}")))
            .ok()
    }
}
