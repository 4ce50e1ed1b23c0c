//! The command line of either service: `run`, `check`, `--version`. Operators type `mailshift` for all else.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Arg, ArgAction, Command, value_parser};

use super::{Program, ServiceError, Start, read, run};
use crate::telemetry;

/// Where the configuration is unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/mailshift/mailshift.toml";
/// EX_CONFIG of sysexits.h.
const EX_CONFIG: u8 = 78;

/// Reads the arguments, of which the first is the program's name, and does what they say.
pub async fn main<P: Program>(
    arguments: impl Iterator<Item = OsString>,
    version: &'static str,
) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let program = program(arguments.first());
    let arguments = command(P::NAME, version).get_matches_from(arguments);
    let default = PathBuf::from(DEFAULT_CONFIG);
    let file = arguments.get_one::<PathBuf>("config").unwrap_or(&default);
    let config = match read(file, P::idle) {
        Ok(config) => config,
        Err(problems) => {
            say(&problems.join("\n"));
            return ExitCode::from(EX_CONFIG);
        }
    };
    let Some(("run", arguments)) = arguments.subcommand() else {
        for warning in config.loops() {
            say(&format!("{}: warning: {warning}", file.display()));
        }
        say(&format!("{}: good", file.display()));
        return ExitCode::SUCCESS;
    };
    let log = match telemetry::set_up(&config.log) {
        Ok(log) => Arc::new(log),
        Err(error) => {
            say(&format!("{}: log: {error}", file.display()));
            return ExitCode::from(EX_CONFIG);
        }
    };
    let start = Start {
        config,
        file: file.clone(),
        program,
        take_over: arguments.get_flag("take-over"),
        log: Arc::clone(&log),
    };
    match Box::pin(run::<P>(start)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "{} cannot run", P::NAME);
            match error {
                ServiceError::Tls(_) | ServiceError::Idle(_) => ExitCode::from(EX_CONFIG),
                ServiceError::StateDir(_)
                | ServiceError::Bind(_)
                | ServiceError::Disk(_)
                | ServiceError::TakeOver(_)
                | ServiceError::Ownership(_)
                | ServiceError::FeedEnded
                | ServiceError::Io(_) => ExitCode::FAILURE,
            }
        }
    }
}

fn command(name: &'static str, version: &'static str) -> Command {
    let config = Arg::new("config")
        .long("config")
        .short('c')
        .env("MAILSHIFT_CONFIG")
        .value_parser(value_parser!(PathBuf))
        .default_value(DEFAULT_CONFIG)
        .global(true)
        .help("The configuration file");
    let take_over = Arg::new("take-over").long("take-over").action(ArgAction::SetTrue).help(
        "Take the place of the process that serves now, without a refused connection: it finishes \
         what it has in hand. Sent SIGUSR2, that process runs this by itself",
    );
    Command::new(name)
        .version(version)
        .subcommand_required(true)
        .arg(config)
        .subcommand(Command::new("run").about("Run the service").arg(take_over))
        .subcommand(Command::new("check").about("Check the configuration file and exit"))
}

/// The path by which this program was called: after an upgrade the new one is there, while the system
/// knows the one that runs by what has become of its file.
fn program(called: Option<&OsString>) -> PathBuf {
    called
        .map(PathBuf::from)
        .filter(|path| path.components().count() > 1)
        .or_else(|| std::env::current_exe().ok())
        .unwrap_or_default()
}

#[expect(clippy::print_stderr, reason = "the answer to a command, not a log line")]
fn say(words: &str) {
    eprintln!("{words}");
}
