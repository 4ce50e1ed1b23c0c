//! The owner map: a node's complete copy of accounts, aliases and domains.
//!
//! Written by the feed only, in the order of the changes; read by every look-up. A look-up takes a read
//! lock, which the feed never holds for more than [`APPLY_BATCH`] rows, and never awaits.
//!
//! Resolution, once and in one place: routing domain, alias, account, bare login + default domain,
//! sub-address, catch-all (mail only), the domain's default owner. Each answer carries its *trail*: every name that
//! was consulted, found or not. Work is registered under its trail, so a row that appears later (an alias,
//! an account that lived by its domain's default) finds it, too.
//!
//! The copy has a *version*: how many rows were written to it. What a look-up saw is told by it alone; an
//! epoch would not do, since a row that is not there has none.

mod claims;
mod flipped;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::Epoch;
use super::name::{Name, Purpose};
use super::routing::RoutingDomains;
use crate::address::{Address, Domain};

pub(super) use claims::Claim;
pub use flipped::FlippedAt;

/// How many rows were written to a copy. A look-up that saw version v saw the first v of them and no more.
pub type Version = u64;

/// Rows changed under one write lock, so that look-ups wait microseconds, not seconds.
pub const APPLY_BATCH: usize = 1_000;
/// Most deletions that a copy remembers.
pub const MAX_REMOVED: usize = 100_000;

/// A complete copy of the ownership table. Empty until the feed loads it.
#[derive(Debug, Default)]
pub struct OwnerMap {
    tables: RwLock<Tables>,
}

/// The copy itself. Built whole from a snapshot, then changed row by row.
#[derive(Debug, Default)]
pub struct Tables {
    accounts: HashMap<Box<str>, Account>,
    aliases: HashMap<Box<str>, Alias>,
    domains: HashMap<Box<str>, DomainRow>,
    /// Accounts and aliases that were deleted, the newest last: a row that is not there has no change by
    /// which it is not.
    removed: VecDeque<(Epoch, Change)>,
    /// Owner names; accounts hold an index, since there are few of these and many of those.
    owners: Vec<Box<str>>,
    /// Appended to bare logins that are no names by themselves.
    default_domain: Option<Domain>,
    /// Domains that stand for others.
    routing: RoutingDomains,
    version: Version,
}

#[derive(Debug, Clone, Copy)]
struct Account {
    epoch: Epoch,
    owner: u16,
    held: bool,
    login: bool,
    flipped: Option<FlippedAt>,
}

/// There are a million of these in a map.
const _: () = assert!(size_of::<Account>() == 16);

#[derive(Debug)]
struct Alias {
    epoch: Epoch,
    account: Box<str>,
    login: bool,
}

/// An account's row, as snapshots and changes carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    /// The backend's name as written in the row.
    pub owner: Box<str>,
    /// Served by nobody.
    pub held: bool,
    /// False for a list, a group or a forward.
    pub login: bool,
    /// When it was given to this owner; `None`: it has never had another one.
    pub flipped: Option<FlippedAt>,
}

/// An alias's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRow {
    /// The account it leads to.
    pub account: Box<str>,
    /// May be used to log in.
    pub login: bool,
}

/// A domain's row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainRow {
    /// Version of the row.
    pub epoch: Epoch,
    /// Where accounts without a row live; `None`: nowhere, they are unknown.
    pub default_owner: Option<Box<str>>,
    /// Separates the mailbox from its detail in `ann+detail@`; empty: no sub-addresses.
    pub subaddress_delimiter: Box<str>,
}

/// One row as it is after a change; `None` is "deleted".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A row of `accounts`.
    Account(Box<str>, Option<AccountRow>),
    /// A row of `aliases`.
    Alias(Box<str>, Option<AliasRow>),
    /// A row of `domains`; its `epoch` is ignored in favour of the change's.
    Domain(Box<str>, Option<DomainRow>),
}

/// What a look-up found.
#[derive(Debug)]
pub struct Answer {
    /// The account asked for, or the name that would be one.
    pub account: Box<str>,
    /// What is to be done with it.
    pub verdict: Verdict,
    /// Every name that was consulted, found or not.
    pub trail: Trail,
    /// The copy that was seen.
    pub version: Version,
}

/// Names consulted by a look-up. Domains are written `@domain`.
pub type Trail = Vec<Box<str>>;

/// What a look-up found, before the configuration is asked about the backend.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Served by this owner.
    Owned {
        /// The backend's name as written in the row.
        owner: Box<str>,
        /// Version of the row that decided.
        epoch: Epoch,
        /// The account has a row of its own.
        known: bool,
        /// When that row was given to this owner by another; `None`: never, or there is no row.
        flipped: Option<FlippedAt>,
    },
    /// Served by nobody for now.
    Held,
    /// It takes mail, but nobody logs in to it.
    NoLogin,
    /// Ours, but neither row nor default.
    NoSuchAccount,
    /// Not a domain of ours.
    ForeignDomain,
    /// An alias without its account: the copy is wrong, nothing is decided from it.
    Broken,
    /// A name in a routing domain that has rows of its own, which lead elsewhere.
    Ambiguous,
}

impl Change {
    /// The name under which work that depends on this row is registered.
    pub fn key(&self) -> Box<str> {
        match self {
            Self::Account(name, _) | Self::Alias(name, _) => name.clone(),
            Self::Domain(name, _) => domain_key(name),
        }
    }
}

impl OwnerMap {
    /// Finds where `name` is served, and everything the answer depends on.
    pub fn resolve(&self, name: &Name) -> Answer {
        self.read().resolve(name)
    }

    /// Replaces the copy and returns how `fresh` differs from it, as changes, and the version with which
    /// all of them are seen.
    pub fn replace(&self, mut fresh: Tables) -> (Version, Vec<Change>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        fresh.configure_like(&tables);
        fresh.version = tables.version.saturating_add(1);
        let differences = tables.differences(&fresh);
        *tables = fresh;
        (tables.version, differences)
    }

    /// Applies changes in their order, at most [`APPLY_BATCH`] at a time, so that look-ups get through.
    /// Returns the version with which the first is seen; the others follow it one by one.
    pub fn apply<'a>(&self, changes: impl IntoIterator<Item = (Epoch, &'a Change)>) -> Version {
        let mut changes = changes.into_iter().peekable();
        let first = self.read().version.saturating_add(1);
        while changes.peek().is_some() {
            let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
            for (epoch, change) in changes.by_ref().take(APPLY_BATCH) {
                tables.set(epoch, change.clone());
            }
        }
        first
    }

    /// Sets the domain that bare logins get.
    pub fn set_default_domain(&self, domain: Option<Domain>) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).default_domain = domain;
    }

    /// Sets the domains that stand for others.
    pub fn set_routing_domains(&self, domains: RoutingDomains) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).routing = domains;
    }

    /// The address that its owner knows, for one in a routing domain: the same local part in the domain for
    /// which that stands. `None` for every other address.
    pub fn real_address(&self, address: &Address) -> Option<Address> {
        let real = self.read().routing.real(address.domain().as_str())?.clone();
        Some(address.at(real))
    }

    /// Routing domains that are in the table as domains of their own, so that nothing there is deliverable.
    pub(super) fn contradicted_routing_domains(&self) -> Vec<Box<str>> {
        let tables = self.read();
        let contradicted = |name: &&str| tables.domains.contains_key(*name);
        tables.routing.names().filter(contradicted).map(Into::into).collect()
    }

    /// Accounts, aliases and domains held.
    pub fn counts(&self) -> (usize, usize, usize) {
        let tables = self.read();
        (tables.accounts.len(), tables.aliases.len(), tables.domains.len())
    }

    /// How many accounts each owner has, and how many domains it is the default owner of.
    pub fn owners(&self) -> BTreeMap<Box<str>, (usize, usize)> {
        let tables = self.read();
        let mut owners: BTreeMap<Box<str>, (usize, usize)> = BTreeMap::new();
        let mut by_index = vec![0_usize; tables.owners.len()];
        for account in tables.accounts.values() {
            if let Some(count) = by_index.get_mut(usize::from(account.owner)) {
                *count = count.saturating_add(1);
            }
        }
        let accounts = tables.owners.iter().zip(by_index).filter(|(_, accounts)| *accounts > 0);
        owners.extend(accounts.map(|(owner, accounts)| (owner.clone(), (accounts, 0))));
        for owner in tables.domains.values().filter_map(|domain| domain.default_owner.as_ref()) {
            let (_, domains) = owners.entry(owner.clone()).or_default();
            *domains = domains.saturating_add(1);
        }
        owners
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    /// Tables with room for that many rows.
    pub fn with_capacity(accounts: usize, aliases: usize) -> Self {
        Self {
            accounts: HashMap::with_capacity(accounts),
            aliases: HashMap::with_capacity(aliases),
            ..Self::default()
        }
    }

    /// Writes or deletes one row.
    pub fn set(&mut self, epoch: Epoch, change: Change) {
        self.version = self.version.saturating_add(1);
        match change {
            Change::Account(name, Some(AccountRow { owner, held, login, flipped })) => {
                let owner = self.intern(&owner);
                self.accounts.insert(name, Account { epoch, owner, held, login, flipped });
            }
            Change::Account(name, None) => {
                self.accounts.remove(&name);
                self.remember(epoch, Change::Account(name, None));
            }
            Change::Alias(name, Some(AliasRow { account, login })) => {
                self.aliases.insert(name, Alias { epoch, account, login });
            }
            Change::Alias(name, None) => {
                self.aliases.remove(&name);
                self.remember(epoch, Change::Alias(name, None));
            }
            Change::Domain(name, Some(row)) => {
                self.domains.insert(name, DomainRow { epoch, ..row });
            }
            Change::Domain(name, None) => drop(self.domains.remove(&name)),
        }
    }

    fn remember(&mut self, epoch: Epoch, deletion: Change) {
        if self.removed.len() >= MAX_REMOVED {
            self.removed.pop_front();
        }
        self.removed.push_back((epoch, deletion));
    }

    /// What the configuration adds to a copy.
    fn configure_like(&mut self, other: &Self) {
        self.default_domain.clone_from(&other.default_domain);
        self.routing.clone_from(&other.routing);
    }

    fn resolve(&self, name: &Name) -> Answer {
        let mut trail = Trail::with_capacity(3);
        let routed = name
            .split()
            .and_then(|(local, domain)| Some((local, domain, self.routing.real(domain)?)));
        let found = match routed {
            Some((local, domain, real)) => {
                let real = format!("{local}@{real}");
                self.find_routed(name, domain, &real, &mut trail)
            }
            None => self.find(name.as_str(), name.purpose(), &mut trail),
        };
        found.with(trail, self.version)
    }

    /// What the real name leads to. A row of the routing domain, or of this name in it, contradicts the
    /// configuration where it leads elsewhere, and nobody can say which of the two is meant.
    fn find_routed(&self, name: &Name, domain: &str, real: &str, trail: &mut Trail) -> Found {
        let own = self.find_row(name.as_str(), name.purpose(), trail);
        trail.push(domain_key(domain));
        let found = self.find(real, name.purpose(), trail);
        let elsewhere = own.is_some_and(|own| own.account != found.account);
        if elsewhere || self.domains.contains_key(domain) {
            return Found::new(name.as_str(), Verdict::Ambiguous);
        }
        found
    }

    fn find(&self, name: &str, purpose: Purpose, trail: &mut Trail) -> Found {
        if let Some(found) = self.find_row(name, purpose, trail) {
            return found;
        }
        let qualified = match (name.contains('@'), &self.default_domain) {
            (true, _) => None,
            (false, Some(domain)) => Some(format!("{name}@{domain}")),
            (false, None) => return Found::new(name, Verdict::NoSuchAccount),
        };
        let row = qualified.as_deref().and_then(|name| self.find_row(name, purpose, trail));
        if let Some(found) = row {
            return found;
        }
        let full = qualified.as_deref().unwrap_or(name);
        match full.rsplit_once('@') {
            Some((local, domain)) => self.find_by_domain(local, domain, purpose, trail),
            None => Found::new(full, Verdict::NoSuchAccount),
        }
    }

    /// The name itself as alias or account.
    fn find_row(&self, name: &str, purpose: Purpose, trail: &mut Trail) -> Option<Found> {
        let (account, login) = match self.aliases.get(name) {
            Some(alias) => {
                trail.push(name.into());
                (&*alias.account, alias.login)
            }
            None => (name, true),
        };
        trail.push(account.into());
        let Some(row) = self.accounts.get(account) else {
            return (account != name).then(|| Found::new(account, Verdict::Broken));
        };
        let verdict = if purpose == Purpose::Login && !(login && row.login) {
            Verdict::NoLogin
        } else if row.held {
            Verdict::Held
        } else {
            let owner = self.owners.get(usize::from(row.owner)).cloned().unwrap_or_default();
            Verdict::Owned { owner, epoch: row.epoch, known: true, flipped: row.flipped }
        };
        Some(Found::new(account, verdict))
    }

    /// What is left when the name has no row: its mailbox without detail, the catch-all, the default.
    fn find_by_domain(
        &self,
        local: &str,
        domain: &str,
        purpose: Purpose,
        trail: &mut Trail,
    ) -> Found {
        let full = || format!("{local}@{domain}");
        trail.push(domain_key(domain));
        let Some(row) = self.domains.get(domain) else {
            return Found::new(&full(), Verdict::ForeignDomain);
        };
        let mailbox = row.without_detail(local).map(|mailbox| format!("{mailbox}@{domain}"));
        if let Some(found) = mailbox.as_deref().and_then(|m| self.find_row(m, purpose, trail)) {
            return found;
        }
        if purpose == Purpose::Mail
            && let Some(found) = self.find_row(&format!("*@{domain}"), purpose, trail)
        {
            return found;
        }
        let verdict = match &row.default_owner {
            Some(owner) => Verdict::Owned {
                owner: owner.clone(),
                epoch: row.epoch,
                known: false,
                flipped: None,
            },
            None => Verdict::NoSuchAccount,
        };
        Found::new(&mailbox.unwrap_or_else(full), verdict)
    }

    fn intern(&mut self, owner: &str) -> u16 {
        let index = self.owners.iter().position(|o| **o == *owner).unwrap_or_else(|| {
            self.owners.push(owner.into());
            self.owners.len().saturating_sub(1)
        });
        // More than 65,535 different owners: the rest read as one that no configuration has.
        u16::try_from(index).unwrap_or(u16::MAX)
    }

    /// What must be changed in `self` to become `fresh`.
    fn differences(&self, fresh: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for name in self.domains.keys().chain(fresh.domains.keys()) {
            if self.domains.get(name) != fresh.domains.get(name) {
                changes.push(Change::Domain(name.clone(), fresh.domains.get(name).cloned()));
            }
        }
        for name in self.accounts.keys().chain(fresh.accounts.keys()) {
            let row = fresh.account_row(name);
            if self.account_row(name) != row
                || self.account_epoch(name) != fresh.account_epoch(name)
            {
                changes.push(Change::Account(name.clone(), row));
            }
        }
        for name in self.aliases.keys().chain(fresh.aliases.keys()) {
            let row = |tables: &Self| {
                let alias = tables.aliases.get(name)?;
                Some((AliasRow { account: alias.account.clone(), login: alias.login }, alias.epoch))
            };
            if row(self) != row(fresh) {
                changes.push(Change::Alias(name.clone(), row(fresh).map(|(row, _)| row)));
            }
        }
        changes
    }

    fn account_row(&self, name: &str) -> Option<AccountRow> {
        let row = self.accounts.get(name)?;
        let owner = self.owners.get(usize::from(row.owner)).cloned().unwrap_or_default();
        Some(AccountRow { owner, held: row.held, login: row.login, flipped: row.flipped })
    }

    fn account_epoch(&self, name: &str) -> Option<Epoch> {
        self.accounts.get(name).map(|row| row.epoch)
    }
}

impl DomainRow {
    /// `ann` for `ann+detail`; `None` when there is no detail to take off.
    pub(super) fn without_detail<'a>(&self, local: &'a str) -> Option<&'a str> {
        if self.subaddress_delimiter.is_empty() {
            return None;
        }
        let (mailbox, _) = local.split_once(&*self.subaddress_delimiter)?;
        (!mailbox.is_empty()).then_some(mailbox)
    }
}

/// An answer without its trail.
struct Found {
    account: Box<str>,
    verdict: Verdict,
}

impl Found {
    fn new(account: &str, verdict: Verdict) -> Self {
        Self { account: account.into(), verdict }
    }

    fn with(self, trail: Trail, version: Version) -> Answer {
        Answer { account: self.account, verdict: self.verdict, trail, version }
    }
}

/// The name under which work that depends on a domain's row is registered.
fn domain_key(domain: &str) -> Box<str> {
    format!("@{domain}").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn account(owner: &str) -> AccountRow {
        AccountRow { owner: owner.into(), held: false, login: true, flipped: None }
    }

    fn map() -> OwnerMap {
        let map = OwnerMap::default();
        map.set_default_domain(Some(Domain::parse("example.org").unwrap()));
        let domain = |default: Option<&str>| {
            Some(DomainRow {
                default_owner: default.map(Into::into),
                subaddress_delimiter: "+".into(),
                ..DomainRow::default()
            })
        };
        let alias = |name: &str, to: &str| {
            Change::Alias(name.into(), Some(AliasRow { account: to.into(), login: true }))
        };
        let row = |name: &str, row| Change::Account(name.into(), Some(row));
        let held = AccountRow { held: true, ..account("old") };
        let list = AccountRow { login: false, ..account("old") };
        let changes = [
            Change::Domain("example.org".into(), domain(Some("old"))),
            Change::Domain("strict.example".into(), domain(None)),
            row("ann@example.org", account("new")),
            row("held@example.org", held),
            row("list@example.org", list),
            row("*@strict.example", account("attic")),
            alias("lee@old.example", "ann@example.org"),
            alias("annie", "ann@example.org"),
        ];
        map.apply((1..).zip(&changes));
        map
    }

    #[test]
    fn owners_are_counted_by_their_accounts_and_by_the_domains_they_are_the_default_of() {
        let owners = map().owners();
        let of = |owner: &str| owners.get(owner).copied();
        assert_eq!((of("old"), of("new"), of("attic")), (Some((2, 1)), Some((1, 0)), Some((1, 0))));
        assert_eq!(owners.len(), 3);
    }

    fn mail(map: &OwnerMap, to: &str) -> String {
        show(&map.resolve(&Name::of_address(&Address::parse(to).unwrap())))
    }

    fn login(map: &OwnerMap, typed: &str) -> String {
        show(&map.resolve(&Name::of_login(typed.as_bytes()).unwrap()))
    }

    fn show(answer: &Answer) -> String {
        match &answer.verdict {
            Verdict::Owned { owner, known, .. } => {
                format!("{} at {owner}{}", answer.account, if *known { "" } else { " by default" })
            }
            other => format!("{} {other:?}", answer.account),
        }
    }

    #[test]
    fn names_lead_to_accounts() {
        let map = map();
        for (to, expected) in [
            ("Ann@EXAMPLE.org", "ann@example.org at new"),
            ("ann+lists@example.org", "ann@example.org at new"),
            ("lee@old.example", "ann@example.org at new"),
            ("nobody+x@example.org", "nobody@example.org at old by default"),
            ("list@example.org", "list@example.org at old"),
            ("held@example.org", "held@example.org Held"),
            ("other@old.example", "other@old.example ForeignDomain"),
            ("any@strict.example", "*@strict.example at attic"),
            ("+x@example.org", "+x@example.org at old by default"),
        ] {
            assert_eq!(mail(&map, to), expected, "{to}");
        }
        for (typed, expected) in [
            ("annie", "ann@example.org at new"),
            ("ann", "ann@example.org at new"),
            ("bob", "bob@example.org at old by default"),
            ("list", "list@example.org NoLogin"),
            ("any@strict.example", "any@strict.example NoSuchAccount"),
            ("ann@elsewhere.example", "ann@elsewhere.example ForeignDomain"),
        ] {
            assert_eq!(login(&map, typed), expected, "{typed}");
        }
    }

    #[test]
    fn the_trail_names_every_row_that_could_change_the_answer() {
        let map = map();
        let answer = map.resolve(&Name::of_address(&Address::parse("bob+x@example.org").unwrap()));
        let names: Vec<&str> = answer.trail.iter().map(|name| &**name).collect();
        assert_eq!(
            names,
            ["bob+x@example.org", "@example.org", "bob@example.org", "*@example.org"]
        );
    }

    #[test]
    fn replacing_the_copy_tells_what_differed() {
        let map = map();
        let mut fresh = Tables::default();
        fresh.set(
            1,
            Change::Domain(
                "example.org".into(),
                Some(DomainRow {
                    default_owner: Some("old".into()),
                    subaddress_delimiter: "+".into(),
                    ..DomainRow::default()
                }),
            ),
        );
        fresh.set(3, Change::Account("ann@example.org".into(), Some(account("old"))));
        let before = map.resolve(&Name::of_login(b"ann").unwrap()).version;
        let (version, differences) = map.replace(fresh);
        assert!(version > before);
        assert!(
            differences.contains(&Change::Account("ann@example.org".into(), Some(account("old"))))
        );
        assert!(differences.contains(&Change::Account("held@example.org".into(), None)));
        assert!(differences.contains(&Change::Alias("annie".into(), None)));
        assert!(
            !differences.iter().any(|c| matches!(c, Change::Domain(d, _) if &**d == "example.org"))
        );
        assert_eq!(login(&map, "ann"), "ann@example.org at old", "the default domain stays");
    }
}
