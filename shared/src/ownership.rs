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
#[cfg(test)]
mod interleavings;
pub mod lease;
pub mod map;
pub mod name;
pub mod registry;
pub mod routing;
pub mod schema;
pub mod spool;
pub mod store;
pub mod table;
pub mod unknown;

use std::fmt::Debug;
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;

pub use lease::Lease;
pub use map::{Change, DomainRow, FlippedAt, OwnerMap, Version};
pub use name::{Name, NameError};
pub use registry::{Registration, Work};
pub use routing::{RoutingDomains, RoutingError};

use crate::backend::{Backend, BackendName, Backends};
use map::Answer;
use registry::Registry;
use spool::SpoolSize;
use unknown::{Outcome, UnknownNames};

/// The version of a row: the number of the change that made it. 0 for "no row".
pub type Epoch = u64;

/// How often work enters anew because the table changed at that moment.
const ENTER_ATTEMPTS: usize = 8;

/// A node's view of the ownership table. Shared by everything that routes.
#[derive(Debug)]
pub struct Ownership {
    map: OwnerMap,
    lease: Lease,
    registry: Arc<Registry>,
    backends: ArcSwap<Backends>,
    unknown: UnknownNames,
    watch: OnceLock<Weak<dyn Watch>>,
    database: ArcSwap<String>,
    spool: SpoolSize,
}

/// Told of every change, once the copy has it and what it went over is marked.
pub trait Watch: Debug + Send + Sync {
    /// The row of this account, alias or `@domain` was changed. Must not block.
    fn changed(&self, name: &str);
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
    /// When the account was given to this owner by another; `None`: never, or it has no row.
    pub flipped: Option<FlippedAt>,
}

/// What work found that has entered. Registered either way.
#[derive(Debug)]
pub enum Entered {
    /// Its owner, where it may act while the registration stands.
    Owned(Owner, Registration),
    /// The account is held: it may wait for the next row, of which the registration tells at once. It has
    /// read the row that holds, so no fence of that hold waits for it.
    Held {
        /// The account.
        account: Box<str>,
        /// To be dropped before it enters anew.
        registration: Registration,
    },
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
    /// A name in a routing domain that the table also has rows for, which lead elsewhere. Temporary, and an
    /// alarm: either the configuration or the table is wrong.
    #[error("{name} is ambiguous: the table has rows of its own for that routing domain")]
    Ambiguous {
        /// The name.
        name: Box<str>,
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
            backends: ArcSwap::from_pointee(backends),
            unknown: UnknownNames::default(),
            watch: OnceLock::new(),
            database: ArcSwap::default(),
            spool: SpoolSize::default(),
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
        match self.enter_held(name, work)? {
            Entered::Owned(owner, registration) => Ok((owner, registration)),
            Entered::Held { account, .. } => Err(Refusal::Held { account }),
        }
    }

    /// [`Self::enter`] for work that can wait: where the account is held it stays registered.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] other than [`Refusal::Held`]; nothing stays registered then.
    pub fn enter_held(&self, name: &Name, work: Work) -> Result<Entered, Refusal> {
        self.enter_stepwise(name, work, || {})
    }

    /// [`Self::enter_held`]; between any two of its steps it calls `between`, where a test puts changes.
    fn enter_stepwise(
        &self,
        name: &Name,
        work: Work,
        mut between: impl FnMut(),
    ) -> Result<Entered, Refusal> {
        for _ in 0..ENTER_ATTEMPTS {
            if !self.lease.is_valid() {
                return Err(Refusal::Stale);
            }
            // Which names to register under is itself an answer of the map, so it is read twice.
            let trail = self.map.resolve(name).trail;
            between();
            let registration = Registry::enter(&self.registry, trail, work);
            between();
            if !self.lease.is_valid() {
                return Err(Refusal::Stale);
            }
            let answer = self.map.resolve(name);
            between();
            if !registration.is_under(&answer.trail) {
                continue;
            }
            registration.read(&answer.account, answer.version);
            between();
            // Marked before it had read: it drains under whatever name that was, and may be wrong.
            if registration.is_outdated() {
                continue;
            }
            return match self.owner(answer) {
                Ok(owner) => Ok(Entered::Owned(owner, registration)),
                Err(Refusal::Held { account }) => Ok(Entered::Held { account, registration }),
                Err(refusal) => Err(refusal),
            };
        }
        Err(Refusal::Unsettled)
    }

    /// True when what `registration` read still stands and may be acted upon: its rows did not change
    /// and the lease runs. P3 asks this after an owner's 2xx has arrived, P4 after a backend's yes.
    pub fn still_stands(&self, registration: &Registration) -> bool {
        // In this order: a lease that ended and began again between the two has marked the work.
        self.lease.is_valid() && !registration.is_outdated()
    }

    /// Has changes told to `watch` from now on, as long as it lives. There is one such place.
    pub fn watch_changes(&self, watch: Weak<dyn Watch>) {
        // A second one would be a mistake of ours, and the first one goes on.
        let _ = self.watch.set(watch);
    }

    fn tell_of<'a>(&self, changes: impl Iterator<Item = &'a Change>) {
        if let Some(watch) = self.watch.get().and_then(Weak::upgrade) {
            changes.for_each(|change| watch.changed(&change.key()));
        }
    }

    /// Notes that `name` was refused, where that is because it has no row (NAM-6).
    pub fn note_refused(&self, name: &Name) {
        if !self.lease.is_valid() || !unknown::may_be_noted(name) {
            return;
        }
        let answer = self.map.resolve(name);
        if matches!(answer.verdict, map::Verdict::NoSuchAccount | map::Verdict::ForeignDomain) {
            self.unknown.note(&answer.account, Outcome::Refused);
        }
    }

    /// Notes that `owner` has confirmed an account that has no row (NAM-6).
    pub fn note_served(&self, owner: &Owner) {
        if !owner.known {
            self.unknown.note(&owner.account, Outcome::Default);
        }
    }

    /// Names without a row that were asked for.
    pub fn unknown(&self) -> &UnknownNames {
        &self.unknown
    }

    /// How much mail this process keeps on its own disk.
    pub fn spool(&self) -> &SpoolSize {
        &self.spool
    }

    /// Applies changes in their order: the map first, then the marks. So work that enters at any moment
    /// either reads the change or is found by its mark (P4).
    pub fn apply(&self, changes: &[(Epoch, Change)]) {
        let first = self.map.apply(changes.iter().map(|(epoch, change)| (*epoch, change)));
        for (version, (epoch, change)) in (first..).zip(changes) {
            self.registry.mark(&change.key(), *epoch, version);
        }
        self.tell_of(changes.iter().map(|(_, change)| change));
    }

    /// Takes a copy that was read afresh. What differs is a change like any other.
    fn replace(&self, fresh: map::Tables, epoch: Epoch) {
        let (version, differences) = self.map.replace(fresh);
        for change in &differences {
            self.registry.mark(&change.key(), epoch, version);
        }
        self.tell_of(differences.iter());
    }

    /// Ends all work if the lease has run out. True for the first caller who finds that.
    fn lapse(&self) -> bool {
        let lapsed = self.lease.lapse();
        if lapsed {
            self.registry.mark_all();
        }
        lapsed
    }

    /// Stops serving now: ends the lease and all work. True when anything could be served until now.
    pub(crate) fn stop_serving(&self) -> bool {
        let served = self.lease.end();
        self.registry.mark_all();
        served
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

    /// The id of the database that the copy was read from, which all nodes on it share; empty before the first
    /// load.
    pub fn database(&self) -> Arc<String> {
        self.database.load_full()
    }

    fn set_database(&self, id: &str) {
        if **self.database.load() != *id {
            self.database.store(Arc::new(id.to_owned()));
        }
    }

    /// Says which owners' users are refused because no such backend is configured.
    pub(crate) fn complain_of_unknown_owners(&self) {
        let backends = self.backends.load();
        let is_unknown =
            |owner: &str| BackendName::parse(owner).ok().is_none_or(|n| backends.get(&n).is_none());
        for (owner, (accounts, domains)) in self.map.owners() {
            if is_unknown(&owner) {
                tracing::error!(
                    owner,
                    accounts,
                    domains,
                    "accounts, or domains by default, live at a backend that is not configured: their logins \
                     and their mail are refused temporarily until it is, or until they are moved"
                );
            }
        }
    }

    /// The backends that look-ups find now.
    pub fn backends(&self) -> Arc<Backends> {
        self.backends.load_full()
    }

    /// Takes other backends for look-ups from now on. What has looked up goes on with those it found.
    pub fn set_backends(&self, backends: Backends) {
        self.backends.store(Arc::new(backends));
    }

    fn owner(&self, answer: Answer) -> Result<Owner, Refusal> {
        let Answer { account, verdict, .. } = answer;
        match verdict {
            map::Verdict::Held => Err(Refusal::Held { account }),
            map::Verdict::NoLogin => Err(Refusal::NoLogin { account }),
            map::Verdict::Broken => Err(Refusal::Unsettled),
            map::Verdict::Ambiguous => Err(Refusal::Ambiguous { name: account }),
            map::Verdict::NoSuchAccount => Err(Refusal::NoSuchAccount),
            map::Verdict::ForeignDomain => Err(Refusal::ForeignDomain),
            map::Verdict::Owned { owner, epoch, known, flipped } => {
                let backends = self.backends.load();
                let backend = BackendName::parse(&owner).ok().and_then(|n| backends.get(&n));
                match backend {
                    Some(backend) => {
                        Ok(Owner { account, backend: Arc::clone(backend), epoch, known, flipped })
                    }
                    None => Err(Refusal::UnknownBackend { account, owner }),
                }
            }
        }
    }
}
