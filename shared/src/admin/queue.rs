//! What can be asked of the gateway's queue, and what it answers. Times are seconds of the Unix epoch.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Messages, the oldest first.
    List {
        /// Where.
        place: Place,
        /// Which.
        filter: Filter,
    },
    /// One message.
    Show {
        /// Where.
        place: Place,
        /// Its name.
        id: String,
    },
    /// One message's octets, as they would be delivered.
    Cat {
        /// Where.
        place: Place,
        /// Its name.
        id: String,
    },
    /// How much there is.
    Summary,
    /// Tries messages now.
    Retry {
        /// Which.
        which: Selector,
    },
    /// Keeps messages from being tried, and from expiring, until they are thawed.
    Freeze {
        /// Which.
        which: Selector,
    },
    /// Ends that.
    Thaw {
        /// Which.
        which: Selector,
    },
    /// Deletes messages; nobody is told.
    Drop {
        /// Where.
        place: Place,
        /// Which.
        which: Selector,
    },
    /// Puts dead letters back into the queue, to be tried as if they had just arrived.
    Release {
        /// Which.
        which: Selector,
    },
    /// Takes over all messages of a spool whose process is gone.
    Adopt {
        /// The other process's state directory, or the spool in it. Absolute.
        directory: PathBuf,
    },
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// It is to be delivered.
    Queue,
    /// It could not be delivered, and its sender could not be told.
    Dead,
}

/// Which messages are meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// This one.
    Id(String),
    /// Those with a recipient that is this account's and not done with.
    Account(String),
    /// Those with a recipient that this backend owns now and that is not done with.
    Owner(String),
    /// Every one.
    All,
}

/// Which messages are listed: those for which all that is said here is true.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// It has a recipient that this backend owns now.
    pub owner: Option<String>,
    /// It has a recipient of this account.
    pub account: Option<String>,
    /// Its sender; empty: the null sender.
    pub sender: Option<String>,
    /// It has a recipient of which this is true.
    pub state: Option<State>,
    /// Only frozen ones, or only others.
    pub frozen: Option<bool>,
    /// At most so many.
    pub limit: Option<u64>,
}

/// How far a recipient is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is tried until it is taken.
    Waiting,
    /// An owner may have it, without a verdict that counts.
    InDoubt,
    /// Its account is held: it is delivered to whoever owns it afterwards.
    Held,
    /// Its owner has it.
    Delivered,
    /// Its owner does not take it, or it has expired.
    Failed,
    /// An operator dropped it.
    Dropped,
}

/// A message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Its name, also in the log and in its Received header.
    pub id: String,
    /// When it came.
    pub arrived: u64,
    /// Octets.
    pub size: u64,
    /// Empty: the null sender.
    pub sender: String,
    /// How often its delivery was tried.
    pub attempts: u64,
    /// When it is tried the next time, if a time is set.
    pub next_attempt: Option<u64>,
    /// It is not tried until it is thawed.
    pub frozen: bool,
    /// Why it is frozen, or dead.
    pub why: Option<String>,
    /// Its recipients.
    pub recipients: Vec<Recipient>,
}

/// One of a message's recipients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// As its owner gets it.
    pub address: String,
    /// The account that it leads to now.
    #[serde(default)]
    pub account: Option<String>,
    /// The backend that owns it now.
    #[serde(default)]
    pub owner: Option<String>,
    /// How far it is.
    pub state: State,
    /// Since when.
    #[serde(default)]
    pub since: Option<u64>,
    /// What went wrong the last time.
    #[serde(default)]
    pub error: Option<String>,
}

/// How much there is in a process's spool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Messages to be delivered.
    pub messages: u64,
    /// Their octets.
    pub octets: u64,
    /// When the oldest of them came.
    pub oldest: Option<u64>,
    /// Frozen ones among them.
    pub frozen: u64,
    /// Messages for each owner.
    pub owners: BTreeMap<String, u64>,
    /// Messages with a recipient whose account is held.
    pub held: u64,
    /// Messages with a recipient in doubt.
    pub in_doubt: u64,
    /// Dead letters.
    pub dead: u64,
    /// Files that could not be read and were set aside.
    pub corrupt: u64,
    /// Why nothing new is taken into the spool; `None`: it is.
    pub unhealthy: Option<String>,
}

/// What came of another spool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Adopted {
    /// Messages that are to be delivered.
    pub messages: u64,
    /// Their recipients who have not got them yet.
    pub recipients: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages that were here already: they are not taken twice.
    pub known: u64,
    /// Files that were set aside here, since they cannot be read as messages.
    pub corrupt: u64,
    /// Files that are still there, in the other spool.
    pub left: u64,
    /// Why not everything was taken; `None`: nothing failed.
    pub failed: Option<String>,
}

impl Request {
    /// It changes something: it is logged with its caller.
    pub fn changes(&self) -> bool {
        match self {
            Self::List { .. } | Self::Show { .. } | Self::Cat { .. } | Self::Summary => false,
            Self::Retry { .. }
            | Self::Freeze { .. }
            | Self::Thaw { .. }
            | Self::Drop { .. }
            | Self::Release { .. }
            | Self::Adopt { .. } => true,
        }
    }
}

impl State {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::InDoubt => "in-doubt",
            Self::Held => "held",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }

    /// Nothing more is done for it.
    pub fn is_final(self) -> bool {
        match self {
            Self::Waiting | Self::InDoubt | Self::Held => false,
            Self::Delivered | Self::Failed | Self::Dropped => true,
        }
    }
}

impl Filter {
    /// All that is said is true of this message; the limit is the caller's.
    pub fn takes(&self, entry: &Entry) -> bool {
        let some = |is: &dyn Fn(&Recipient) -> bool| entry.recipients.iter().any(is);
        let is = |wanted: &Option<String>, found: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| Some(wanted) == found.as_ref())
        };
        self.sender.as_ref().is_none_or(|sender| sender.eq_ignore_ascii_case(&entry.sender))
            && self.frozen.is_none_or(|frozen| frozen == entry.frozen)
            && some(&|recipient| {
                is(&self.owner, &recipient.owner)
                    && is(&self.account, &recipient.account)
                    && self.state.is_none_or(|state| state == recipient.state)
            })
    }
}

impl Selector {
    /// This message is meant.
    pub fn takes(&self, entry: &Entry) -> bool {
        let open = |is: &dyn Fn(&Recipient) -> bool| {
            entry.recipients.iter().any(|recipient| !recipient.state.is_final() && is(recipient))
        };
        match self {
            Self::Id(id) => *id == entry.id,
            Self::Account(account) => open(&|r| r.account.as_ref() == Some(account)),
            Self::Owner(owner) => open(&|r| r.owner.as_ref() == Some(owner)),
            Self::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipient(account: &str, owner: &str, state: State) -> Recipient {
        Recipient {
            address: account.to_owned(),
            account: Some(account.to_owned()),
            owner: Some(owner.to_owned()),
            state,
            since: None,
            error: None,
        }
    }

    fn entry() -> Entry {
        Entry {
            id: "1".into(),
            sender: "Bob@example.com".into(),
            recipients: vec![
                recipient("ann@example.org", "old", State::Waiting),
                recipient("ned@example.org", "new", State::Delivered),
            ],
            ..Entry::default()
        }
    }

    #[test]
    fn a_filter_takes_a_message_with_one_recipient_of_which_all_is_true() {
        let some = |text: &str| Some(text.to_owned());
        let all = Filter::default;
        for (filter, takes) in [
            (all(), true),
            (Filter { owner: some("new"), ..all() }, true),
            (Filter { owner: some("new"), state: Some(State::Waiting), ..all() }, false),
            (Filter { owner: some("old"), state: Some(State::Waiting), ..all() }, true),
            (Filter { account: some("ann@example.org"), ..all() }, true),
            (Filter { account: some("bob@example.org"), ..all() }, false),
            (Filter { sender: some("bob@example.COM"), ..all() }, true),
            (Filter { sender: some(""), ..all() }, false),
            (Filter { frozen: Some(true), ..all() }, false),
            (Filter { frozen: Some(false), ..all() }, true),
        ] {
            assert_eq!(filter.takes(&entry()), takes, "{filter:?}");
        }
    }

    #[test]
    fn a_change_is_for_those_who_still_wait() {
        for (selector, takes) in [
            (Selector::Id("1".into()), true),
            (Selector::Id("2".into()), false),
            (Selector::Account("ann@example.org".into()), true),
            (Selector::Account("ned@example.org".into()), false),
            (Selector::Owner("old".into()), true),
            (Selector::Owner("new".into()), false),
            (Selector::All, true),
        ] {
            assert_eq!(selector.takes(&entry()), takes, "{selector:?}");
        }
    }
}
