//! Who owns an account: the one truth that mail and logins are decided by (DESIGN §2, §2a).
//!
//! [`Ownership`] is a node's view of the ownership table: a complete copy ([`map`]), the lease under
//! which that copy may be used ([`lease`]), and what runs under each name ([`registry`]). Look-ups are
//! memory reads: no query, no await. [`feed`] keeps the copy current from a [`store`]; nothing else
//! writes to it, and only the stores hold SQL.
//!
//! What is absent: a default when something is unknown. A stale copy, an owner that the configuration
//! does not have, a held account: each is its own [`Refusal`].

pub mod feed;
pub mod lease;
pub mod map;
pub mod name;
pub mod registry;
pub mod schema;
pub mod store;
pub mod table;

use std::sync::Arc;

pub use lease::Lease;
pub use map::{Change, DomainRow, OwnerMap};
pub use name::{Name, NameError};
pub use registry::{Registration, Work};

use crate::backend::{Backend, BackendName, Backends};
use map::Answer;
use registry::Registry;

/// The version of a row: the number of the change that made it. 0 for "no row".
pub type Epoch = u64;

/// A node's view of the ownership table. Shared by everything that routes.
#[derive(Debug)]
pub struct Ownership {
    map: OwnerMap,
    lease: Lease,
    registry: Arc<Registry>,
    backends: Backends,
}

/// Where an account is served, as one look-up found it.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The account: the canonical name that aliases and sub-addresses lead to.
    pub account: Box<str>,
    /// The backend that serves it.
    pub backend: Arc<Backend>,
    /// The version of the row that said so.
    pub epoch: Epoch,
    /// True when the account has a row of its own; false when its domain's default decided.
    /// Only an account with a row is a known recipient.
    pub known: bool,
}

/// Why a look-up has no owner to give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The copy may not be used: not loaded yet, or its lease ended. Temporary, always.
    #[error("the ownership table was not read within its lease")]
    Stale,
    /// The account is held: served by nobody until the hold ends. Temporary.
    #[error("account {account} is held")]
    Held {
        /// The account.
        account: Box<str>,
    },
    /// The row names a backend that the configuration does not have. Temporary, and an alarm.
    #[error("account {account} belongs to the unknown backend {owner:?}")]
    UnknownBackend {
        /// The account.
        account: Box<str>,
        /// The word in the row.
        owner: Box<str>,
    },
    /// The domain is ours, the name has no row, and the domain has no default owner. Permanent.
    #[error("no such account")]
    NoSuchAccount,
    /// The row is a list, a group or a forward: it takes mail and nobody logs in to it. Permanent.
    #[error("account {account} takes no logins")]
    NoLogin {
        /// The account.
        account: Box<str>,
    },
    /// The domain is not ours. Permanent.
    #[error("not a domain of ours")]
    ForeignDomain,
    /// The table changed again and again while the name was being registered. Temporary.
    #[error("the table changes too fast to read this name")]
    Unsettled,
}

impl Ownership {
    /// An empty view: everything is [`Refusal::Stale`] until the feed has loaded and leased it.
    pub fn new(backends: Backends) -> Arc<Self> {
        Arc::new(Self {
            map: OwnerMap::default(),
            lease: Lease::default(),
            registry: Arc::new(Registry::default()),
            backends,
        })
    }

    /// Reads the owner of `name` now, without registering anything. For RCPT; what follows from it must
    /// be registered with [`Self::enter`] before it acts (P4).
    ///
    /// # Errors
    ///
    /// A [`Refusal`].
    pub fn look_up(&self, name: &Name) -> Result<Owner, Refusal> {
        if !self.lease.is_valid() {
            return Err(Refusal::Stale);
        }
        self.owner(self.map.resolve(name))
    }

    /// Registers `work` under `name`, then reads the owner (P4). The order matters: a change before the
    /// read is seen by the read, a change after it finds the registration and marks it.
    ///
    /// The registration lasts until it is dropped, which must be after the end of the work is recorded.
    ///
    /// # Errors
    ///
    /// A [`Refusal`]; nothing stays registered then.
    pub fn enter(&self, name: &Name, work: Work) -> Result<(Owner, Registration), Refusal> {
        // Which names to register under is itself an answer of the map, so it is read twice.
        let mut trail = self.map.resolve(name).trail;
        for _ in 0..8 {
            let registration = Registry::enter(&self.registry, trail, work);
            if !self.lease.is_valid() {
                return Err(Refusal::Stale);
            }
            let answer = self.map.resolve(name);
            if registration.covers(&answer.trail) {
                registration.read(&answer.account, &answer.trail);
                return self.owner(answer).map(|owner| (owner, registration));
            }
            trail = answer.trail;
        }
        Err(Refusal::Unsettled)
    }

    /// True when what `registration` read still stands and may be acted upon: its rows did not change
    /// and the lease runs. P3 asks this after an owner's 2xx has arrived, P4 after a backend's yes.
    pub fn still_stands(&self, registration: &Registration) -> bool {
        !registration.is_outdated() && self.lease.is_valid()
    }

    /// What the feed writes to.
    pub fn map(&self) -> &OwnerMap {
        &self.map
    }

    /// The lease under which the copy may be used.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What runs under each name.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The configured backends.
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    fn owner(&self, answer: Answer) -> Result<Owner, Refusal> {
        let Answer { account, verdict, .. } = answer;
        match verdict {
            map::Verdict::Held => Err(Refusal::Held { account }),
            map::Verdict::NoLogin => Err(Refusal::NoLogin { account }),
            map::Verdict::Broken => Err(Refusal::Unsettled),
            map::Verdict::NoSuchAccount => Err(Refusal::NoSuchAccount),
            map::Verdict::ForeignDomain => Err(Refusal::ForeignDomain),
            map::Verdict::Owned { owner, epoch, known, .. } => {
                let backend = BackendName::parse(&owner).ok().and_then(|n| self.backends.get(&n));
                match backend {
                    Some(backend) => {
                        Ok(Owner { account, backend: Arc::clone(backend), epoch, known })
                    }
                    None => Err(Refusal::UnknownBackend { account, owner }),
                }
            }
        }
    }
}
