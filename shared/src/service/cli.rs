//! The command line of either service: `run`, `check`, `--version`. Operators type `mailshift` for all else.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, Command, value_parser};

use super::ServiceError;
use crate::config::Config;
use crate::telemetry;

/// Where the configuration is unless told otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/mailshift/mailshift.toml";
/// EX_CONFIG of sysexits.h.
const EX_CONFIG: u8 = 78;

/// Reads the arguments and does what they say. `run` runs the service.
///
/// `idle` says what is to be configured where the service would have nothing to do.
pub async fn main<F, R>(
    name: &'static str,
    version: &'static str,
    idle: fn(&Config) -> Option<&'static str>,
    run: F,
) -> ExitCode
where
    F: FnOnce(Config) -> R,
    R: Future<Output = Result<(), ServiceError>>,
{
    let config = Arg::new("config")
        .long("config")
        .short('c')
        .env("MAILSHIFT_CONFIG")
        .value_parser(value_parser!(PathBuf))
        .default_value(DEFAULT_CONFIG)
        .global(true)
        .help("The configuration file");
    let arguments = Command::new(name)
        .version(version)
        .subcommand_required(true)
        .arg(config)
        .subcommand(Command::new("run").about("Run the service"))
        .subcommand(Command::new("check").about("Check the configuration file and exit"))
        .get_matches();
    let default = PathBuf::from(DEFAULT_CONFIG);
    let file = arguments.get_one::<PathBuf>("config").unwrap_or(&default);
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            say(&error.to_string());
            return ExitCode::from(EX_CONFIG);
        }
    };
    if arguments.subcommand_name() == Some("check") {
        return check(file, &config, idle(&config));
    }
    let _log = match telemetry::set_up(&config.log) {
        Ok(guard) => guard,
        Err(error) => {
            say(&format!("{}: log: {error}", file.display()));
            return ExitCode::from(EX_CONFIG);
        }
    };
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "{name} cannot run");
            match error {
                ServiceError::Tls(_) | ServiceError::Idle(_) => ExitCode::from(EX_CONFIG),
                ServiceError::StateDir(_)
                | ServiceError::Bind(_)
                | ServiceError::Ownership(_)
                | ServiceError::FeedEnded
                | ServiceError::Io(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// What reading the file does not check: the certificates, and whether there is anything to do.
fn check(file: &Path, config: &Config, idle: Option<&str>) -> ExitCode {
    if let Some(missing) = idle {
        say(&format!("{}: nothing to do: {missing}", file.display()));
        return ExitCode::from(EX_CONFIG);
    }
    for warning in config.loops() {
        say(&format!("{}: warning: {warning}", file.display()));
    }
    match crate::tls::Certificates::load(&config.tls) {
        Ok(_) => {
            say(&format!("{}: good", file.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("{}: tls: {error}", file.display()));
            ExitCode::from(EX_CONFIG)
        }
    }
}

#[expect(clippy::print_stderr, reason = "the answer to a command, not a log line")]
fn say(words: &str) {
    eprintln!("{words}");
}
