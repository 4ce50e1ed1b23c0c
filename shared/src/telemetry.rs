//! Logs: one line per finished session or recipient at `info`, fields instead of sentences.
//!
//! Lines are written by a thread of their own. A log that is full, closed or not read must not stop mail:
//! lines are dropped then, and never waited for.

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{LogConfig, LogFormat};

/// Lines that may wait to be written.
const WAITING_LINES: usize = 16_384;

/// Sends logs to standard error in the configured form. Called once, by `main`, which keeps what is
/// returned to its end: dropping it writes what still waits.
///
/// # Errors
///
/// When the filter is not one, or logging was set up before.
pub fn set_up(log: &LogConfig) -> Result<WorkerGuard, Box<dyn std::error::Error + Send + Sync>> {
    let filter: EnvFilter = log.level.parse()?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .lossy(true)
        .thread_name("log")
        .finish(std::io::stderr());
    let lines = fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // Else a failing log is written about where it fails, and that panics.
        .log_internal_errors(false)
        .with_target(false);
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    match log.format {
        LogFormat::Text => lines.with_ansi(terminal).try_init()?,
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).try_init()?;
        }
    }
    Ok(guard)
}
