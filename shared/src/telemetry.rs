//! Logs: one line per finished session or recipient at `info`, fields instead of sentences.
//!
//! Lines are written by a thread of their own. A log that is full, closed or not read must not stop mail:
//! lines are dropped then, and never waited for.

use std::fmt;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt as lines;

use crate::config::{LogConfig, LogFormat};

/// Lines that may wait to be written.
const WAITING_LINES: usize = 16_384;

/// The log of this process. Dropping it writes what still waits.
pub struct Log {
    set_filter: Box<dyn Fn(EnvFilter) + Send + Sync>,
    _writes_the_rest: WorkerGuard,
}

impl Log {
    /// Writes what is of this level, or passes this filter, from now on.
    ///
    /// # Errors
    ///
    /// It is no filter.
    pub fn set_level(&self, level: &str) -> Result<(), ParseError> {
        (self.set_filter)(level.parse()?);
        Ok(())
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

/// Sends logs to standard error in the configured form. Called once, by `main`, which keeps what is
/// returned to its end.
///
/// # Errors
///
/// When the filter is not one, or logging was set up before.
pub fn set_up(log: &LogConfig) -> Result<Log, Box<dyn std::error::Error + Send + Sync>> {
    let filter: EnvFilter = log.level.parse()?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .lossy(true)
        .thread_name("log")
        .finish(std::io::stderr());
    let lines = lines::fmt()
        .with_writer(writer)
        // Else a failing log is written about where it fails, and that panics.
        .log_internal_errors(false)
        .with_target(false);
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Setting a filter fails only when there is no log any more.
    let set_filter: Box<dyn Fn(EnvFilter) + Send + Sync> = match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(terminal).with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.try_init()?;
            Box::new(move |filter| drop(handle.reload(filter)))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false);
            let lines = lines.with_env_filter(filter).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.try_init()?;
            Box::new(move |filter| drop(handle.reload(filter)))
        }
    };
    Ok(Log { set_filter, _writes_the_rest: guard })
}
