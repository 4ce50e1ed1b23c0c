//! A message in the spool: what was said of it, and how far each recipient has come.
//!
//! What happens to a message is a [`Record`]; a [`Stored`] is what remains after all of them. Both are the
//! same in memory and after a restart, because both are made by [`Stored::apply`]'s rules.

use std::time::{Duration, SystemTime};

use shared::address::Address;
use shared::backend::BackendName;
use shared::ownership::Name;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::Reply;

use crate::delivery::Introduction;

/// What was said of a message when it was received. Never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Our name for it, which is in its Received header, too: letters, digits, `-` and `_`.
    pub id: Box<str>,
    /// Where it came from.
    pub from: ReversePath,
    /// BODY=8BITMIME was given (RFC 6152).
    pub eight_bit: bool,
    /// SMTPUTF8 was given (RFC 6531).
    pub smtputf8: bool,
    /// RET as received (RFC 3461 §4.3).
    pub ret: Option<Box<str>>,
    /// ENVID as received, in xtext (RFC 3461 §4.4).
    pub envid: Option<Box<str>>,
    /// Who brought it.
    pub introduction: Introduction,
    /// When it was received. Kept to the millisecond, like all times here.
    pub arrived: SystemTime,
    /// A report of failure may go to the sender: it was authenticated, or is ours.
    pub may_report: bool,
}

/// One recipient. Its place in [`Stored::recipients`] is its name in every [`Record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// Its address, as its owner gets it.
    pub address: Address,
    /// The name by which its owner is looked up.
    pub name: Name,
    /// NOTIFY as received (RFC 3461 §4.1).
    pub notify: Option<Box<str>>,
    /// ORCPT as received, in xtext (RFC 3461 §4.2).
    pub orcpt: Option<Box<str>>,
    /// Where it goes.
    pub route: Route,
    /// How far it has come.
    pub state: State,
}

/// Where a recipient's message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To whoever owns the account, by the table, at each attempt.
    Owner,
    /// By this backend, whoever owns what: a report, or mail that leaves.
    Via(BackendName),
}

/// How far a recipient has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// To be delivered.
    Waiting,
    /// An owner may have it. To be delivered again, but not at once.
    InDoubt {
        /// The backend that may have it.
        owner: BackendName,
        /// Since when.
        since: SystemTime,
    },
    /// An owner has it.
    Delivered,
    /// It cannot be delivered.
    Failed(Box<Failure>),
    /// An operator did not want it delivered.
    Dropped,
}

/// Why a recipient failed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What its owner said, or what we say when it is too late.
    pub reply: Reply,
    /// Who was told.
    pub fate: Fate,
    /// When.
    pub at: SystemTime,
}

/// Who is told of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The sender: the report is the spooled message of that id.
    Reported(Box<str>),
    /// The operator: the message is kept as a dead letter.
    Dead,
    /// Nobody: the sender asked for that (NOTIFY without FAILURE).
    Unwanted,
}

/// Something that happens to a message in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// One more recipient, in the next place.
    Added(Recipient),
    /// It is known that no owner has it: what was in doubt is so no longer.
    Waiting {
        /// Its place.
        recipient: usize,
    },
    /// An owner may have it.
    InDoubt {
        /// Its place.
        recipient: usize,
        /// The backend that may have it.
        owner: BackendName,
    },
    /// An owner has it.
    Delivered {
        /// Its place.
        recipient: usize,
        /// The backend that has it.
        owner: BackendName,
    },
    /// It cannot be delivered. What its fate names is durable before this is written.
    Failed {
        /// Its place.
        recipient: usize,
        /// The last word.
        reply: Reply,
        /// Who is told.
        fate: Fate,
    },
    /// An operator does not want it delivered.
    Dropped {
        /// Its place.
        recipient: usize,
    },
    /// An attempt that left somebody waiting.
    Tried {
        /// Why.
        why: Box<str>,
    },
    /// An operator wants no more attempts for now.
    Frozen,
    /// Attempts go on.
    Thawed,
    /// It waited for held accounts: this much more does not count for its expiry.
    Held(Duration),
    /// The sender was told of the delay: the report is the spooled message of that id.
    Delayed {
        /// The report's id.
        report: Box<str>,
    },
    /// An operator gives it another chance: who had failed waits again, and its time begins anew.
    Released,
}

/// A message in the spool, after all that happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What was said of it.
    pub envelope: Envelope,
    /// Everyone it is or was for. Places never change while the process lives.
    pub recipients: Vec<Recipient>,
    /// Octets of its content: our trace header and the message.
    pub octets: u64,
    /// What is known of it as a whole.
    pub progress: Progress,
}

/// What is known of a message as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Attempts that left somebody waiting.
    pub attempts: u32,
    /// The last of them.
    pub last: Option<Tried>,
    /// No attempts for now.
    pub frozen: bool,
    /// Time that does not count for its expiry.
    pub held: Duration,
    /// When the sender was told of the delay.
    pub delayed: Option<SystemTime>,
    /// When an operator gave it another chance, from which its expiry counts instead of its arrival.
    pub released: Option<SystemTime>,
}

/// An attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// When it ended.
    pub at: SystemTime,
    /// Why it left somebody waiting.
    pub why: Box<str>,
}

impl State {
    /// Something is still to be done for it.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Waiting | Self::InDoubt { .. })
    }

    /// It failed, and only a dead letter tells of it.
    pub fn is_dead(&self) -> bool {
        matches!(self, Self::Failed(failure) if failure.fate == Fate::Dead)
    }
}

impl Recipient {
    /// What `record` makes of it, if it is about it alone or about everyone. A delivery is for good,
    /// since it is a fact; other ends give way to that only, or to an operator.
    pub(super) fn undergo(&mut self, record: &Record, at: SystemTime) {
        let open = self.state.is_open();
        match record {
            Record::Waiting { .. } if open => self.state = State::Waiting,
            Record::InDoubt { owner, .. } if open => {
                self.state = State::InDoubt { owner: owner.clone(), since: at };
            }
            Record::Delivered { .. } => self.state = State::Delivered,
            Record::Failed { reply, fate, .. } if open => {
                let failure = Failure { reply: reply.clone(), fate: fate.clone(), at };
                self.state = State::Failed(Box::new(failure));
            }
            Record::Dropped { .. } if open => self.state = State::Dropped,
            Record::Released if matches!(self.state, State::Failed(_)) => {
                self.state = State::Waiting;
            }
            _ => {}
        }
    }
}

impl Record {
    /// The place of the one recipient it is about.
    pub fn recipient(&self) -> Option<usize> {
        match self {
            Self::Waiting { recipient }
            | Self::InDoubt { recipient, .. }
            | Self::Delivered { recipient, .. }
            | Self::Failed { recipient, .. }
            | Self::Dropped { recipient } => Some(*recipient),
            Self::Added(_)
            | Self::Tried { .. }
            | Self::Frozen
            | Self::Thawed
            | Self::Held(_)
            | Self::Delayed { .. }
            | Self::Released => None,
        }
    }
}

impl Stored {
    /// Our name for it.
    pub fn id(&self) -> &str {
        &self.envelope.id
    }

    /// Somebody is still to get it.
    pub fn is_open(&self) -> bool {
        self.recipients.iter().any(|recipient| recipient.state.is_open())
    }

    /// Somebody will not get it, and only a dead letter tells of that.
    pub fn has_dead(&self) -> bool {
        self.recipients.iter().any(|recipient| recipient.state.is_dead())
    }

    /// From when its expiry counts; [`Progress::held`] comes on top.
    pub fn since(&self) -> SystemTime {
        self.progress.released.unwrap_or(self.envelope.arrived)
    }

    /// What `record`, written at that time, makes of it. One about a recipient that is not there changes
    /// nothing.
    pub fn apply(&mut self, record: &Record, at: SystemTime) {
        if let Record::Added(recipient) = record {
            self.recipients.push(recipient.clone());
        }
        match record.recipient() {
            Some(place) => {
                if let Some(recipient) = self.recipients.get_mut(place) {
                    recipient.undergo(record, at);
                }
            }
            None => self.recipients.iter_mut().for_each(|recipient| recipient.undergo(record, at)),
        }
        self.progress.undergo(record, at);
    }
}

impl Progress {
    pub(super) fn undergo(&mut self, record: &Record, at: SystemTime) {
        match record {
            Record::Tried { why } => {
                self.attempts = self.attempts.saturating_add(1);
                self.last = Some(Tried { at, why: why.clone() });
            }
            Record::Frozen => self.frozen = true,
            Record::Thawed => self.frozen = false,
            Record::Held(time) => self.held = self.held.saturating_add(*time),
            Record::Delayed { .. } => self.delayed = Some(at),
            Record::Released => {
                // What was held before has nothing to do with the time that begins now.
                *self = Self { released: Some(at), ..Self::default() };
            }
            _ => {}
        }
    }
}
