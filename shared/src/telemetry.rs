//! Logs: one line per finished session or recipient at `info`, fields instead of sentences.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{LogConfig, LogFormat};

/// Sends logs to standard error in the configured form. Called once, by `main`.
///
/// # Errors
///
/// When the filter is not one, or logging was set up before.
pub fn set_up(log: &LogConfig) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter: EnvFilter = log.level.parse()?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match log.format {
        LogFormat::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
        }
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    }
}
