//! What can be typed behind `mailshift`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use humantime_serde::re::humantime;
use shared::ownership::unknown;

use crate::node::Node;
use crate::queue::Queue;

/// Moves mail accounts between servers without downtime.
#[derive(Debug, Parser)]
#[command(name = "mailshift", version, max_term_width = 100)]
pub(crate) struct Arguments {
    /// The configuration that the services read
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MAILSHIFT_CONFIG",
        default_value = "/etc/mailshift/mailshift.toml"
    )]
    pub(crate) config: PathBuf,
    /// The ownership table, instead of the configuration's: postgres://… or sqlite:/path. A URL with a
    /// password belongs into the environment, where other users do not see it
    #[arg(long, global = true, value_name = "URL", env = "MAILSHIFT_URL", hide_env_values = true)]
    pub(crate) url: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    OnTable(OnTable),
    /// The messages that the gateway keeps on this host. Only root and the gateway's own user may ask
    Queue(Queue),
}

/// What is done on the ownership table.
#[derive(Debug, Subcommand)]
pub(crate) enum OnTable {
    /// The table's schema
    #[command(subcommand)]
    Schema(Schema),
    /// Who owns which account
    #[command(subcommand)]
    Accounts(Accounts),
    /// Names that have no row
    #[command(subcommand)]
    Names(Names),
    #[command(flatten)]
    Mover(Mover),
    /// The nodes that serve
    #[command(subcommand)]
    Node(Node),
    /// Opens the sqlite3 shell on the table, so that its files stay the services'
    Sql {
        /// Run these statements instead of reading them from the terminal
        statements: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schema {
    /// Brings it up to date; an SQLite file that is not there is made
    Apply {
        /// Postgres: make the roles and grant them their rights, too
        #[arg(long)]
        roles: bool,
    },
    /// Shows its version
    Show,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Accounts {
    /// Adds accounts from a CSV file, all of them or none; what is there never changes
    Import {
        /// Columns by their names in the first line: account, owner, login, aliases, note; - is standard
        /// input
        file: PathBuf,
        /// Their owner where the file does not say
        #[arg(long)]
        owner: Option<String>,
        /// Also those that would move by it: without a row an account lives at its domain's default owner
        #[arg(long)]
        flip: bool,
    },
    /// Lists accounts
    List {
        /// Only those of this backend
        #[arg(long)]
        owner: Option<String>,
        /// Only those of this domain
        #[arg(long)]
        domain: Option<String>,
        /// Only held ones
        #[arg(long)]
        held: bool,
        /// At most so many
        #[arg(long)]
        limit: Option<u32>,
    },
    /// Shows an account, its aliases, its changes, and how far the nodes are with them
    Show {
        /// Its name, or an alias
        name: String,
    },
    /// Gives accounts to another backend, all of them or none, and waits until every node has applied it
    Flip(Flip),
}

#[derive(Debug, Args)]
pub(crate) struct Flip {
    /// The backend
    #[arg(long, value_name = "BACKEND")]
    pub(crate) to: String,
    /// The accounts
    #[arg(required_unless_present = "file")]
    pub(crate) accounts: Vec<String>,
    /// Reads the accounts from a file, one a line; - is standard input
    #[arg(long, conflicts_with = "accounts")]
    pub(crate) file: Option<PathBuf>,
    /// In waves of so many, one a second: their users' sessions end with each, and come again at the new
    /// server. A wave is flipped whole or not; one that cannot be ends the rest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) per_second: Option<u32>,
    /// How long to wait for the nodes
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub(crate) wait: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Names {
    /// Lists the names without a row that the services were asked for, most seen first. Names that get a row
    /// disappear from it
    Unknown {
        /// Only those that their domain's default owner has confirmed (default), or nobody's (refused)
        #[arg(long)]
        outcome: Option<Outcome>,
        /// At most so many
        #[arg(long)]
        limit: Option<u32>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Outcome {
    /// A login was granted there, or a recipient accepted
    Default,
    /// No such account, or not a domain of ours
    Refused,
}

impl From<Outcome> for unknown::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Default => Self::Default,
            Outcome::Refused => Self::Refused,
        }
    }
}

/// What a mover does: hold, copy what is left, fence, flip.
#[derive(Debug, Subcommand)]
pub(crate) enum Mover {
    /// Holds an account, which nobody serves from then on, and prints the token that the other commands want.
    /// One that has no row gets it where it lives, and standard error says so
    Hold {
        /// The account
        account: String,
        #[command(flatten)]
        lease: Lease,
    },
    /// Prolongs a hold, whose lease starts again, and prints its new end
    Renew {
        #[command(flatten)]
        held: Held,
        #[command(flatten)]
        lease: Lease,
    },
    /// Ends a hold; the owner stays
    Release {
        #[command(flatten)]
        held: Held,
    },
    /// Waits until every live node has applied a hold, and prints how far each one is; without that, flip is
    /// refused. Status 75: not yet. Before the last copy, look into the old server's own queue, too: what it has
    /// accepted and deferred it delivers to the old mailbox, whoever owns the account
    Fence {
        #[command(flatten)]
        held: Held,
        /// How long to wait for the nodes; 0 asks once
        #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
        wait: Duration,
    },
    /// Gives a held and fenced account to another backend and ends the hold
    Flip {
        /// The account
        account: String,
        /// The backend
        owner: String,
        #[command(flatten)]
        token: Token,
    },
    /// Ends holds whose lease is over, as the services do once a second; the owners stay
    #[command(name = "expire-holds")]
    Expire,
}

#[derive(Debug, Args)]
pub(crate) struct Held {
    /// The account
    pub(crate) account: String,
    #[command(flatten)]
    pub(crate) token: Token,
}

#[derive(Debug, Args)]
pub(crate) struct Token {
    /// What hold has printed. In the environment other users do not see it
    #[arg(long, env = "MAILSHIFT_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
}

#[derive(Debug, Args)]
pub(crate) struct Lease {
    /// The lease: the hold ends by itself when it is not renewed for so long; at most an hour
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, default_value = "5m")]
    pub(crate) lease: Duration,
}

/// A duration with its unit; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    }
}

impl OnTable {
    /// The file it reads, which another user may not be able to open.
    pub(crate) fn input(&self) -> Option<&Path> {
        let file = match self {
            Self::Accounts(Accounts::Import { file, .. }) => Some(file),
            Self::Accounts(Accounts::Flip(Flip { file, .. })) => file.as_ref(),
            Self::Accounts(_)
            | Self::Names(_)
            | Self::Mover(_)
            | Self::Node(_)
            | Self::Schema(_)
            | Self::Sql { .. } => None,
        };
        file.filter(|file| *file != Path::new("-")).map(PathBuf::as_path)
    }
}
