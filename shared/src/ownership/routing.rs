//! Routing domains (NAM-2).
//!
//! An old server that forwards a moved account's mail cannot send it to the account's own address, which it
//! takes for its own. It sends it to `ann@moved.example.org`, whose MX is the gateway: a *routing domain*,
//! which stands for `example.org` and has no rows. Which account such a name leads to is the map's answer,
//! and always that of its real name.

use std::collections::BTreeMap;

use crate::address::Domain;

/// Routing domains, each with the domain for which it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutingDomains {
    real: BTreeMap<Box<str>, Domain>,
}

/// Why a domain cannot be a routing domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoutingError {
    /// Every answer would be a guess, or none would end.
    #[error("{0} stands for itself")]
    Itself(Domain),
    /// One step leads to the real domain, so that nothing can go round in circles.
    #[error("{routing} stands for {real}, which is a routing domain itself")]
    Chain {
        /// The routing domain.
        routing: Domain,
        /// For which it is to stand.
        real: Domain,
    },
    /// The same domain is written twice, in two forms.
    #[error("{0} is there twice")]
    Twice(Domain),
}

impl RoutingDomains {
    /// From pairs of a routing domain and the domain for which it stands.
    ///
    /// # Errors
    ///
    /// The first pair that is ambiguous.
    pub fn new(pairs: impl IntoIterator<Item = (Domain, Domain)>) -> Result<Self, RoutingError> {
        let mut real = BTreeMap::new();
        let mut names = Vec::new();
        for (routing, to) in pairs {
            if routing == to {
                return Err(RoutingError::Itself(routing));
            }
            if real.insert(routing.as_str().into(), to).is_some() {
                return Err(RoutingError::Twice(routing));
            }
            names.push(routing);
        }
        for routing in names {
            let to = real.get(routing.as_str());
            if let Some(to) = to.filter(|to| real.contains_key(to.as_str())) {
                return Err(RoutingError::Chain { routing, real: to.clone() });
            }
        }
        Ok(Self { real })
    }

    /// The domain for which `domain`, in canonical form, stands; `None` when it is no routing domain.
    pub fn real(&self, domain: &str) -> Option<&Domain> {
        self.real.get(domain)
    }

    /// The routing domains.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.real.keys().map(|name| &**name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::Address;
    use crate::ownership::map::{
        AccountRow, AliasRow, Answer, Change, DomainRow, OwnerMap, Verdict,
    };
    use crate::ownership::name::Name;

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    fn routing(pairs: &[(&str, &str)]) -> Result<RoutingDomains, RoutingError> {
        RoutingDomains::new(pairs.iter().map(|(from, to)| (domain(from), domain(to))))
    }

    #[test]
    fn a_routing_domain_stands_for_a_real_one_in_one_step() {
        let domains =
            routing(&[("Moved.Example.org", "example.org"), ("gw.example", "example.net")]);
        let domains = domains.unwrap();
        assert_eq!(domains.real("moved.example.org"), Some(&domain("example.org")));
        assert_eq!(domains.real("example.org"), None);
        assert_eq!(
            routing(&[("a.example", "A.example")]),
            Err(RoutingError::Itself(domain("a.example")))
        );
        assert_eq!(
            routing(&[("b.example", "c.example"), ("a.example", "b.example")]),
            Err(RoutingError::Chain { routing: domain("a.example"), real: domain("b.example") })
        );
        assert_eq!(
            routing(&[("a.example", "b.example"), ("A.example.", "c.example")]),
            Err(RoutingError::Twice(domain("a.example")))
        );
    }

    fn alias(name: &str, to: &str) -> Change {
        Change::Alias(name.into(), Some(AliasRow { account: to.into(), login: true }))
    }

    fn account(name: &str, owner: &str) -> Change {
        let row = AccountRow { owner: owner.into(), held: false, login: true, flipped: None };
        Change::Account(name.into(), Some(row))
    }

    fn domain_row(name: &str, default_owner: Option<&str>) -> Change {
        let row = DomainRow {
            default_owner: default_owner.map(Into::into),
            subaddress_delimiter: "+".into(),
            ..DomainRow::default()
        };
        Change::Domain(name.into(), Some(row))
    }

    fn map(rows: &[Change]) -> OwnerMap {
        let map = OwnerMap::default();
        map.set_routing_domains(routing(&[("moved.example.org", "example.org")]).unwrap());
        map.apply((1..).zip(rows));
        map
    }

    fn resolve(map: &OwnerMap, name: &str) -> Answer {
        map.resolve(&Name::of_address(&Address::parse(name).unwrap()))
    }

    #[test]
    fn what_a_routing_name_depends_on_is_its_trail() {
        let map = map(&[domain_row("example.org", Some("old"))]);
        let trail = resolve(&map, "ann+x@moved.example.org").trail;
        let trail: Vec<&str> = trail.iter().map(|name| &**name).collect();
        assert_eq!(
            trail,
            [
                "ann+x@moved.example.org",
                "@moved.example.org",
                "ann+x@example.org",
                "@example.org",
                "ann@example.org",
                "*@example.org"
            ]
        );
    }

    #[test]
    fn rows_of_a_routing_domain_that_lead_elsewhere_are_ambiguous() {
        let rows = [
            domain_row("example.org", None),
            account("ann@example.org", "new"),
            account("bob@example.org", "old"),
        ];
        for (row, ambiguous) in [
            (domain_row("moved.example.org", None), true),
            (account("ann@moved.example.org", "new"), true),
            (alias("ann@moved.example.org", "bob@example.org"), true),
            // Says the same.
            (alias("ann@moved.example.org", "ann@example.org"), false),
            (alias("bob@moved.example.org", "ann@example.org"), false),
        ] {
            let map = map(&rows);
            map.apply([(9, &row)]);
            let verdict = resolve(&map, "ann@moved.example.org").verdict;
            assert_eq!(verdict == Verdict::Ambiguous, ambiguous, "{row:?}: {verdict:?}");
        }
        let map = map(&rows);
        assert!(map.contradicted_routing_domains().is_empty());
        map.apply([(9, &domain_row("moved.example.org", None))]);
        assert_eq!(*map.contradicted_routing_domains(), ["moved.example.org".into()]);
    }

    #[test]
    fn a_routing_address_is_sent_on_in_the_real_domain_as_it_was_written() {
        let map = map(&[]);
        let real = |text: &str| {
            map.real_address(&Address::parse(text).unwrap()).map(|real| real.to_string())
        };
        assert_eq!(
            real("\"Ann.Lee\"@MOVED.example.org").as_deref(),
            Some("\"Ann.Lee\"@example.org")
        );
        assert_eq!(real("ann@example.org"), None);
    }

    fn any_row() -> impl Strategy<Value = Change> {
        let local = prop::sample::select(vec!["ann", "ann+x", "bob", "*"]);
        let owner = prop::sample::select(vec!["old", "new"]);
        prop_oneof![
            (local.clone(), owner.clone(), any::<bool>(), any::<bool>()).prop_map(
                |(local, owner, held, login)| {
                    let row = AccountRow { owner: owner.into(), held, login, flipped: None };
                    Change::Account(format!("{local}@example.org").into(), Some(row))
                }
            ),
            (local, any::<bool>()).prop_map(|(local, login)| {
                let row = AliasRow { account: "bob@example.org".into(), login };
                Change::Alias(format!("{local}@example.org").into(), Some(row))
            }),
            prop::option::of(owner).prop_map(|owner| domain_row("example.org", owner)),
            Just(Change::Domain("example.org".into(), None)),
        ]
    }

    proptest! {
        /// Whatever the table says, both lead to the same account and depend on the same rows.
        #[test]
        fn a_routing_name_leads_where_its_real_name_does(
            rows in prop::collection::vec(any_row(), 0..12),
            local in prop::sample::select(vec!["ann", "Ann", "ann+x", "ann+y", "bob", "cat+", "*"]),
            login in any::<bool>(),
        ) {
            let map = map(&rows);
            let ask = |domain: &str| {
                let text = format!("{local}@{domain}");
                let name = if login {
                    Name::of_login(text.as_bytes()).unwrap()
                } else {
                    Name::of_address(&Address::parse(&text).unwrap())
                };
                map.resolve(&name)
            };
            let (routed, real) = (ask("Moved.example.org"), ask("example.org"));
            prop_assert_eq!(&routed.account, &real.account);
            prop_assert_eq!(&routed.verdict, &real.verdict);
            prop_assert!(routed.trail.ends_with(&real.trail));
        }
    }
}
