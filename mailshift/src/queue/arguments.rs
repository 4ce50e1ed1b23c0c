//! What can be typed behind `mailshift queue`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use shared::admin::queue::{Filter, Selector, State};

/// What can be typed behind `mailshift queue`.
#[derive(Debug, Args)]
pub(crate) struct Queue {
    /// JSON, one object a line
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: QueueCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// Lists messages, the oldest first, with those of their recipients that are not done with
    List(Listed),
    /// Shows a message
    Show {
        /// Its name, as in the list and in the log
        id: String,
    },
    /// Writes a message's octets to standard output, as they would be delivered
    Cat {
        /// Its name
        id: String,
    },
    /// Says how much there is
    Summary,
    /// Tries messages at once instead of at their next time
    Retry(Change),
    /// Keeps messages from being delivered, and from expiring, until they are thawed
    Freeze(Change),
    /// Ends that
    Thaw(Change),
    /// Deletes messages for good. Nobody is told: neither sender nor recipient
    Drop {
        #[command(flatten)]
        change: Change,
        /// That is meant
        #[arg(long)]
        yes: bool,
    },
    /// Takes over the messages of a node that does not come back: name its state directory, as it was or as it
    /// was copied here. Nothing of it is delivered twice: each message is taken once
    Adopt {
        /// Such as /mnt/mx2/var/lib/mailshift/mx-gateway
        directory: PathBuf,
        /// Why, for the log
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
    },
    /// Messages that could not be delivered, and whose sender could not be told
    #[command(subcommand)]
    Dead(Dead),
}

#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// Lists dead letters, the oldest first
    List(Listed),
    /// Shows a dead letter, and why it is one
    Show {
        /// Its name
        id: String,
    },
    /// Writes its octets to standard output
    Cat {
        /// Its name
        id: String,
    },
    /// Puts dead letters back into the queue
    Release(Change),
    /// Deletes dead letters for good
    Drop {
        #[command(flatten)]
        change: Change,
        /// That is meant
        #[arg(long)]
        yes: bool,
    },
}

/// Which messages are listed.
#[derive(Debug, Args)]
pub(super) struct Listed {
    /// Only those with a recipient at this backend
    #[arg(long, value_name = "BACKEND")]
    pub(super) owner: Option<String>,
    /// Only those to this account
    #[arg(long)]
    pub(super) account: Option<String>,
    /// Only those of this sender; '' is the null sender
    #[arg(long, value_name = "ADDRESS")]
    pub(super) sender: Option<String>,
    /// Only those with a recipient in this state
    #[arg(long)]
    pub(super) state: Option<StateName>,
    /// Only frozen ones
    #[arg(long)]
    pub(super) frozen: bool,
    /// At most so many
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
}

/// Which messages are changed.
#[derive(Debug, Args)]
pub(super) struct Change {
    /// These messages
    #[arg(required_unless_present_any = ["account", "owner", "all"])]
    pub(super) ids: Vec<String>,
    /// Those for this account
    #[arg(long, conflicts_with_all = ["ids", "owner", "all"])]
    pub(super) account: Option<String>,
    /// Those for accounts at this backend
    #[arg(long, value_name = "BACKEND", conflicts_with_all = ["ids", "all"])]
    pub(super) owner: Option<String>,
    /// All of them
    #[arg(long, conflicts_with = "ids")]
    pub(super) all: bool,
    /// Why, for the log
    #[arg(long, value_name = "TEXT")]
    pub(super) why: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum StateName {
    /// It is tried until it is taken
    Waiting,
    /// An owner may have it, without a verdict that counts
    InDoubt,
    /// Its account is held
    Held,
    /// Its owner has it
    Delivered,
    /// Its owner does not take it, or it has expired
    Failed,
    /// An operator dropped it
    Dropped,
}

impl From<Listed> for Filter {
    fn from(listed: Listed) -> Self {
        let Listed { owner, account, sender, state, frozen, limit } = listed;
        Self {
            owner,
            account: account.map(|name| canonical(&name)),
            sender: sender.map(|sender| bare(&sender).to_owned()),
            state: state.map(State::from),
            frozen: frozen.then_some(true),
            limit,
        }
    }
}

impl From<StateName> for State {
    fn from(name: StateName) -> Self {
        match name {
            StateName::Waiting => Self::Waiting,
            StateName::InDoubt => Self::InDoubt,
            StateName::Held => Self::Held,
            StateName::Delivered => Self::Delivered,
            StateName::Failed => Self::Failed,
            StateName::Dropped => Self::Dropped,
        }
    }
}

impl Change {
    /// What is meant, one after the other.
    pub(super) fn selectors(self) -> Vec<Selector> {
        match (self.account, self.owner, self.all) {
            (Some(account), _, _) => vec![Selector::Account(canonical(&account))],
            (None, Some(owner), _) => vec![Selector::Owner(owner)],
            (None, None, true) => vec![Selector::All],
            (None, None, false) => self.ids.into_iter().map(Selector::Id).collect(),
        }
    }
}

/// A name as the queue has it; what is none names nothing.
fn canonical(name: &str) -> String {
    shared::ownership::table::canonical(name).unwrap_or_else(|_| name.to_owned())
}

/// `<ann@example.org>` as people copy it.
fn bare(address: &str) -> &str {
    address.strip_prefix('<').and_then(|inner| inner.strip_suffix('>')).unwrap_or(address)
}
