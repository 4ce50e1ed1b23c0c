//! What is claimed, of two copies; what the store then holds is asked for with real databases elsewhere.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::{DomainRow, MAX_REMOVED};
use super::*;

fn account(name: &str, row: Option<(&str, bool)>) -> Change {
    let row = row.map(|(owner, held)| AccountRow {
        owner: owner.into(),
        held,
        login: true,
        flipped: None,
    });
    Change::Account(name.into(), row)
}

fn alias(name: &str, account: Option<&str>) -> Change {
    let row = account.map(|account| AliasRow { account: account.into(), login: true });
    Change::Alias(name.into(), row)
}

fn domain(name: &str, default_owner: Option<&str>) -> Change {
    let default_owner = default_owner.map(Into::into);
    let subaddress_delimiter = "+".into();
    Change::Domain(name.into(), Some(DomainRow { default_owner, subaddress_delimiter, epoch: 0 }))
}

fn tables(changes: &[(Epoch, Change)]) -> Tables {
    let mut tables = Tables::default();
    for (epoch, change) in changes {
        tables.set(*epoch, change.clone());
    }
    tables
}

/// What both histories begin with.
fn common() -> Vec<(Epoch, Change)> {
    let changes = [
        domain("example.org", Some("old")),
        domain("strict.example", None),
        account("ann@example.org", Some(("old", false))),
        account("bob@example.org", Some(("new", false))),
        account("cat@example.org", Some(("new", false))),
        alias("info@example.org", Some("ann@example.org")),
        alias("web@example.org", Some("bob@example.org")),
    ];
    (1..).zip(changes).collect()
}

/// Claims after `lost` (from change 10 on) where the table has come to `new_history` (the same numbers)
/// instead, each with the numbers it follows from.
fn claims(lost: &[Change], new_history: &[Change]) -> Vec<String> {
    let copy = |changes: &[Change]| {
        let later = (10..).zip(changes.iter().cloned());
        tables(&common().into_iter().chain(later).collect::<Vec<_>>())
    };
    let (before, mut fresh) = (OwnerMap::default(), copy(new_history));
    before.replace(copy(lost));
    let mut claims: Vec<String> = before
        .claims(&mut fresh)
        .into_iter()
        .map(|claim| {
            let Claim { name, alias_of, owner, held, now, changes } = claim;
            let now = now.as_deref().unwrap_or("nobody");
            let held = if held { " held" } else { "" };
            let of = alias_of.map(|of| format!(" as {of}")).unwrap_or_default();
            let numbers: Vec<Epoch> = changes.iter().map(|(epoch, _)| *epoch).collect();
            format!("{name}{of}: {owner}{held} -> {now} by {numbers:?}")
        })
        .collect();
    claims.sort();
    claims
}

#[test]
fn an_account_that_lived_elsewhere_is_claimed() {
    let lost = [
        account("ann@example.org", Some(("new", false))),
        account("gil@example.org", Some(("new", false))),
        account("kim@example.org", Some(("old", false))),
        account("zoe@strict.example", Some(("old", false))),
        account("*@strict.example", Some(("attic", false))),
    ];
    assert_eq!(
        claims(&lost, &[]),
        [
            "*@strict.example: attic -> nobody by [14]",
            "ann@example.org: new -> old by [10]",
            "gil@example.org: new -> old by [11]",
            "zoe@strict.example: old -> nobody by [13]",
        ]
    );
}

#[test]
fn an_alias_that_led_elsewhere_is_claimed() {
    let lost = [
        alias("info@example.org", Some("bob@example.org")),
        alias("web@strict.example", Some("bob@example.org")),
        alias("web", Some("bob@example.org")),
        // To another account of the same owner.
        alias("web@example.org", Some("cat@example.org")),
        alias("tom@example.org", Some("ann@example.org")),
    ];
    assert_eq!(
        claims(&lost, &[]),
        [
            "info@example.org as bob@example.org: new -> old by [10, 4]",
            "web as bob@example.org: new -> nobody by [12, 4]",
            "web@strict.example as bob@example.org: new -> nobody by [11, 4]",
        ]
    );
}

#[test]
fn an_alias_whose_account_moved_follows_the_accounts_claim() {
    let moved = [account("bob@example.org", Some(("old", false)))];
    assert_eq!(claims(&moved, &[]), ["bob@example.org: old -> new by [10]"]);
}

#[test]
fn an_alias_that_became_an_account_is_claimed_and_the_reverse() {
    let lost = [
        alias("info@example.org", None),
        account("info@example.org", Some(("new", false))),
        account("cat@example.org", None),
        alias("cat@example.org", Some("ann@example.org")),
    ];
    assert_eq!(
        claims(&lost, &[]),
        [
            "cat@example.org as ann@example.org: old -> new by [13, 3]",
            "info@example.org: new -> old by [11]",
        ]
    );
}

#[test]
fn a_name_that_lost_its_row_is_claimed_by_its_deletion() {
    let lost = [
        alias("web@example.org", None),
        account("cat@example.org", Some(("old", false))),
        account("cat@example.org", None),
        account("ann@example.org", None),
    ];
    assert_eq!(
        claims(&lost, &[]),
        ["cat@example.org: old -> new by [1, 12]", "web@example.org: old -> new by [1, 10]",]
    );
}

#[test]
fn of_too_many_deletions_the_newest_are_remembered() {
    let mut tables = Tables::default();
    let numbers = 1..=u64::try_from(MAX_REMOVED).unwrap() + 1;
    for epoch in numbers {
        tables.set(epoch, account(&format!("a{epoch}@example.org"), None));
    }
    assert_eq!(tables.removed.len(), MAX_REMOVED);
    assert_eq!(tables.removed.front().map(|(epoch, _)| *epoch), Some(2));
}

#[test]
fn an_account_whose_hold_is_not_there_any_more_is_claimed() {
    let held = [account("ann@example.org", Some(("old", true)))];
    assert_eq!(claims(&held, &[]), ["ann@example.org: old held -> old by [10]"]);
    assert_eq!(claims(&held, &held), [""; 0]);
    assert_eq!(claims(&[], &held), [""; 0], "held is held");
}

#[test]
fn where_a_fresh_hold_hides_the_owner_it_is_compared_all_the_same() {
    let flipped = [account("ann@example.org", Some(("new", false)))];
    let held = [account("ann@example.org", Some(("old", true)))];
    assert_eq!(claims(&flipped, &held), ["ann@example.org: new -> old by [10]"]);
}

#[test]
fn a_domain_whose_default_owner_or_delimiter_differs_is_told() {
    let map = OwnerMap::default();
    map.replace(tables(&common()));
    let told = |changes: &[Change]| {
        let later = (10..).zip(changes.iter().cloned());
        map.moved_domains(&tables(&common().into_iter().chain(later).collect::<Vec<_>>()))
    };
    assert!(told(&[]).is_empty());
    let appeared = domain("strict.example", Some("old"));
    assert!(told(&[appeared]).is_empty(), "a default that appeared moved nobody");
    assert_eq!(*told(&[domain("example.org", Some("new"))]), ["example.org".into()]);
    let delimiter = DomainRow { default_owner: Some("old".into()), ..DomainRow::default() };
    let delimiter = Change::Domain("example.org".into(), Some(delimiter));
    assert_eq!(*told(&[delimiter]), ["example.org".into()]);
}

const NAMES: [&str; 5] = [
    "ann@example.org",
    "bob@example.org",
    "cat@example.org",
    "dan@example.org",
    "eve@strict.example",
];

/// What is done to a name.
#[derive(Debug, Clone)]
enum Act {
    Account { owner: &'static str, held: bool },
    AliasOf(usize),
    Delete,
}

fn any_act() -> impl Strategy<Value = (usize, Act)> {
    let owner = prop_oneof![Just("old"), Just("new")];
    let act = prop_oneof![
        4 => (owner, prop::bool::weighted(0.2))
            .prop_map(|(owner, held)| Act::Account { owner, held }),
        3 => (0..NAMES.len()).prop_map(Act::AliasOf),
        2 => Just(Act::Delete),
    ];
    (0..NAMES.len(), act)
}

/// Does that to `tables`, if the table would let it through; the change that it is.
fn act(tables: &mut Tables, epoch: Epoch, (name, act): (usize, Act)) -> Option<Change> {
    let name = NAMES[name];
    let is_alias = tables.aliases.contains_key(name);
    let is_account = tables.accounts.contains_key(name);
    let has_aliases = tables.aliases.values().any(|alias| &*alias.account == name);
    let change = match act {
        Act::Account { owner, held } if !is_alias => account(name, Some((owner, held))),
        Act::AliasOf(to) if !is_account && tables.accounts.contains_key(NAMES[to]) => {
            alias(name, Some(NAMES[to]))
        }
        Act::Delete if is_alias => alias(name, None),
        Act::Delete if is_account && !has_aliases && !tables.holds(name) => account(name, None),
        Act::Account { .. } | Act::AliasOf(_) | Act::Delete => return None,
    };
    tables.set(epoch, change.clone());
    Some(change)
}

/// The table after what the store does about a claim.
fn dispute(fresh: &mut Tables, claim: &Claim, epoch: Epoch) {
    let owner = match fresh.account_row(&claim.name) {
        Some(row) => row.owner,
        None => claim.owner.clone(),
    };
    if fresh.aliases.contains_key(&claim.name) {
        fresh.set(epoch, alias(&claim.name, None));
    }
    fresh.set(epoch, account(&claim.name, Some((&owner, true))));
}

fn verdict(tables: &Tables, name: &str) -> Option<(Box<str>, bool)> {
    let answer = tables.resolve(&Name::of_row(name));
    tables.lead(name).map(|lead| (lead.owner, answer.verdict == Verdict::Held))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_a_lost_change_led_elsewhere_is_held_and_nothing_else(
        common in prop::collection::vec(any_act(), 0..12),
        lost in prop::collection::vec(any_act(), 0..6),
        new_history in prop::collection::vec(any_act(), 0..4),
    ) {
        let mut written = vec![
            (1, domain("example.org", Some("old"))),
            (2, domain("strict.example", None)),
        ];
        let mut base = tables(&written);
        let mut there = BTreeSet::from([1, 2]);
        for (epoch, done) in (3..).zip(common) {
            if let Some(change) = act(&mut base, epoch, done) {
                written.push((epoch, change));
                there.insert(epoch);
            }
        }
        let (mut before, mut fresh) = (tables(&written), tables(&written));
        for (epoch, done) in (100..).zip(lost) {
            act(&mut before, epoch, done);
        }
        for (epoch, done) in (200..).zip(new_history) {
            act(&mut fresh, epoch, done);
        }
        let map = OwnerMap::default();
        map.replace(before);
        let claims = map.claims(&mut fresh);
        let before = map.read();
        let undisputed: Vec<_> = NAMES.map(|name| verdict(&fresh, name)).into();
        let mut held = BTreeSet::new();
        for claim in &claims {
            if claim.changes.iter().any(|(epoch, _)| !there.contains(epoch)) {
                dispute(&mut fresh, claim, 300);
                held.insert(claim.name.clone());
            }
        }
        for (name, undisputed) in NAMES.into_iter().zip(undisputed) {
            let (known, now) = (verdict(&before, name), verdict(&fresh, name));
            // It moved in the lost history, so it stays there or it waits; but an alias goes with its
            // account, and where that went in the new history is an operator's will.
            let same_alias = before.aliases.get(name).map(|alias| &alias.account)
                == fresh.aliases.get(name).map(|alias| &alias.account);
            if !(before.aliases.contains_key(name) && same_alias)
                && let Some((owner, _)) = &known
                && Some(owner) != verdict(&base, name).as_ref().map(|(owner, _)| owner)
            {
                let waits = now.as_ref().is_some_and(|(_, held)| *held);
                let stays = now.as_ref().is_some_and(|(now, _)| now == owner);
                prop_assert!(waits || stays, "{name}: {known:?} became {now:?}");
            }
            // Nobody touched it: nor do we, unless its account waits.
            if known == undisputed {
                let account = before.resolve(&Name::of_row(name)).account;
                let follows = held.contains(&fresh.resolve(&Name::of_row(name)).account);
                prop_assert!(
                    now == undisputed || follows && !held.contains(name),
                    "{name} ({account}) was {known:?} in both, and became {now:?}"
                );
            }
        }
    }
}
