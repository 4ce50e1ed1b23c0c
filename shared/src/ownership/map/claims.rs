//! Lost history: what the copy knows by changes that a freshly read one may not have.
//!
//! Every name that has a row in either copy, or had one, is looked up in both. Where it led elsewhere, or
//! was held, the copy claims it, by the changes that its answer followed from: those of the rows on its
//! trail, and of the rows that are not there any more. The store knows whether one of them is gone. A name
//! without a row of its own needs no claim: what it lives by (a mailbox, a catch-all) has a name, too.
//!
//! Names are compared by where their mail goes: whether an address may log in moves nothing.

use std::collections::{HashMap, HashSet};

use super::{AccountRow, AliasRow, Change, OwnerMap, Tables, Verdict};
use crate::ownership::Epoch;
use crate::ownership::name::Name;

/// A name that lived elsewhere before the table was read afresh, or was held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ownership) struct Claim {
    /// An account, or an alias.
    pub(in crate::ownership) name: Box<str>,
    /// The account it was an alias of.
    pub(in crate::ownership) alias_of: Option<Box<str>>,
    /// The owner by which this node has served it, or at which it was held.
    pub(in crate::ownership) owner: Box<str>,
    /// It was held, and is not any more.
    pub(in crate::ownership) held: bool,
    /// The owner to which the table leads it now; `None`: it is refused for good.
    pub(in crate::ownership) now: Option<Box<str>>,
    /// The changes by which all this was so.
    pub(in crate::ownership) changes: Vec<(Epoch, Change)>,
}

impl OwnerMap {
    /// Names that `fresh` leads to another owner, or to none, or that it does not hold any more.
    pub(in crate::ownership) fn claims(&self, fresh: &mut Tables) -> Vec<Claim> {
        let tables = self.read();
        fresh.configure_like(&tables);
        tables.claims(fresh)
    }

    /// Domains whose accounts without a row lived elsewhere before, or had another sub-address delimiter.
    pub(in crate::ownership) fn moved_domains(&self, fresh: &Tables) -> Vec<Box<str>> {
        let tables = self.read();
        let mut moved = Vec::new();
        for (name, row) in &tables.domains {
            let now = fresh.domains.get(name);
            let moves = row.default_owner.is_some()
                && now.and_then(|now| now.default_owner.as_ref()) != row.default_owner.as_ref();
            let parts = !row.subaddress_delimiter.is_empty()
                && now.is_none_or(|now| now.subaddress_delimiter != row.subaddress_delimiter);
            if moves || parts {
                moved.push(name.clone());
            }
        }
        moved
    }
}

/// Where a name leads, and the names that were consulted for it.
struct Lead {
    owner: Box<str>,
    trail: super::Trail,
}

impl Tables {
    fn claims(&self, fresh: &Self) -> Vec<Claim> {
        // The newest of a name is the last.
        let removed: HashMap<Box<str>, &(Epoch, Change)> =
            self.removed.iter().map(|removed| (removed.1.key(), removed)).collect();
        let mut seen = HashSet::new();
        (self.accounts.keys().chain(self.aliases.keys()).chain(removed.keys()))
            .chain(fresh.accounts.keys().chain(fresh.aliases.keys()))
            .filter(|name| !self.agrees(fresh, name) && seen.insert(&***name))
            .filter_map(|name| self.claim(fresh, name, &removed))
            .collect()
    }

    /// True where both copies have the same row, as far as a claim goes. Almost all of them, so it is quick.
    fn agrees(&self, fresh: &Self, name: &str) -> bool {
        match (self.aliases.get(name), fresh.aliases.get(name)) {
            // Whatever has become of the account is claimed under the account's own name.
            (Some(before), Some(now)) => before.account == now.account,
            (None, None) => match (self.accounts.get(name), fresh.accounts.get(name)) {
                (Some(before), Some(now)) => {
                    self.owner_named(before.owner) == fresh.owner_named(now.owner)
                        && (!before.held || now.held)
                }
                _ => false,
            },
            _ => false,
        }
    }

    fn claim(
        &self,
        fresh: &Self,
        name: &str,
        removed: &HashMap<Box<str>, &(Epoch, Change)>,
    ) -> Option<Claim> {
        let Lead { owner, trail } = self.lead(name)?;
        let now = fresh.lead(name).map(|lead| lead.owner);
        let held = self.holds(name) && !fresh.holds(name);
        if now.as_ref() == Some(&owner) && !held {
            return None;
        }
        let rows = trail.iter().flat_map(|key| self.rows_named(key));
        let gone = trail.iter().filter(|key| self.rows_named(key).is_empty());
        let gone = gone.filter_map(|key| removed.get(key)).map(|removed| (*removed).clone());
        let changes = rows.chain(gone).collect();
        let alias_of = self.aliases.get(name).map(|alias| alias.account.clone());
        Some(Claim { name: name.into(), alias_of, owner, held, now, changes })
    }

    /// Where mail for a name goes; once its hold ends, if it is held.
    fn lead(&self, name: &str) -> Option<Lead> {
        let answer = self.resolve(&Name::of_row(name));
        let owner = match answer.verdict {
            Verdict::Owned { owner, .. } => owner,
            Verdict::Held => self.account_row(&answer.account)?.owner,
            Verdict::NoLogin
            | Verdict::NoSuchAccount
            | Verdict::ForeignDomain
            | Verdict::Ambiguous
            | Verdict::Broken => return None,
        };
        Some(Lead { owner, trail: answer.trail })
    }

    /// True for an account whose own row is held.
    fn holds(&self, name: &str) -> bool {
        self.accounts.get(name).is_some_and(|row| row.held)
    }

    fn owner_named(&self, index: u16) -> Option<&str> {
        self.owners.get(usize::from(index)).map(|owner| &**owner)
    }

    /// The rows under a name of a trail, each as the change that made it.
    fn rows_named(&self, key: &str) -> Vec<(Epoch, Change)> {
        if let Some(domain) = key.strip_prefix('@') {
            let row = self.domains.get(domain);
            return row
                .map(|row| (row.epoch, Change::Domain(domain.into(), Some(row.clone()))))
                .into_iter()
                .collect();
        }
        let alias = self.aliases.get(key).map(|alias| {
            let row = AliasRow { account: alias.account.clone(), login: alias.login };
            (alias.epoch, Change::Alias(key.into(), Some(row)))
        });
        let account = self.account_row(key).zip(self.account_epoch(key)).map(
            |(row, epoch): (AccountRow, Epoch)| (epoch, Change::Account(key.into(), Some(row))),
        );
        alias.into_iter().chain(account).collect()
    }
}

#[cfg(test)]
mod tests;
