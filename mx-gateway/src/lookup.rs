//! Where an address lives, for mail servers that ask: what they must hand to us (MX-17, DESIGN §6).
//!
//! The old server believes that it still owns the accounts that have moved. Asked by its Postfix before every
//! delivery, this says which are not its own, from the same copy of the table by which mail and logins are
//! routed. An address that is its own, or nobody's of ours, is "not found": the server does what it always did.
//! While the copy may not be used it is told to wait, never that an address is its own (P2).

pub mod protocol;
pub mod server;

use std::sync::Arc;

use shared::address::Address;
use shared::backend::BackendName;
use shared::ownership::{Name, Owner, Ownership, Refusal};

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Hand it on: a transport and its next hop.
    HandOn(Box<str>),
    /// Not ours, or the asking backend's own.
    NotFound,
    /// Nobody knows now.
    Wait(&'static str),
}

/// Answers by the table.
#[derive(Debug, Clone)]
pub struct LookUp {
    /// Who owns each account.
    pub ownership: Arc<Ownership>,
    /// What is answered for what must be handed on.
    pub next_hop: Box<str>,
}

impl LookUp {
    /// Whether `backend` must hand on what is for `key`, which need not be an address.
    pub fn answer(&self, backend: &str, key: &str) -> Answer {
        let Some(backend) = self.backend(backend) else {
            // A name that is written wrong in one place must not have all mail stay there.
            tracing::error!(backend, "asked on behalf of a backend that is not configured");
            return Answer::Wait("no backend has this name");
        };
        // Servers also ask for domains, and for parts of addresses.
        let Some(address) = address_of(key) else { return Answer::NotFound };
        match self.ownership.look_up(&Name::of_address(&address)) {
            Ok(Owner { backend: owner, .. }) if owner.name == backend => Answer::NotFound,
            // Nobody serves it now; the message waits with us.
            Ok(_) | Err(Refusal::Held { .. }) => Answer::HandOn(self.next_hop.clone()),
            Err(Refusal::ForeignDomain | Refusal::NoSuchAccount | Refusal::NoLogin { .. }) => {
                Answer::NotFound
            }
            Err(Refusal::Stale | Refusal::Unsettled) => Answer::Wait("the table is not at hand"),
            Err(Refusal::UnknownBackend { .. }) => Answer::Wait("its owner is not configured"),
            Err(Refusal::Ambiguous { .. }) => Answer::Wait("the name is ambiguous"),
        }
    }

    fn backend(&self, name: &str) -> Option<BackendName> {
        let name = BackendName::parse(name).ok()?;
        self.ownership.backends().get(&name).map(|backend| backend.name.clone())
    }
}

/// Postfix asks by the address without the quotes of its local part.
fn address_of(key: &str) -> Option<Address> {
    Address::parse(key).ok().or_else(|| {
        let (local, domain) = key.rsplit_once('@')?;
        let escaped = local.replace('\\', "\\\\").replace('"', "\\\"");
        Address::parse(&format!("\"{escaped}\"@{domain}")).ok()
    })
}
