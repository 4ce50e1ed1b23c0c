//! How long tests wait for what must come, and waiting for what can only be asked for.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Longest wait for anything that must happen. Generous: the machine may be busy, and a test that waits
/// this long has failed anyway.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two questions.
const EVERY: Duration = Duration::from_millis(20);

/// Asks until there is an answer.
///
/// # Errors
///
/// `what` did not come about within [`PATIENCE`].
pub async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited in vain for {what}");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// [`until`] for code without a runtime.
///
/// # Errors
///
/// As [`until`].
pub fn block_until<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(EVERY);
    }
}
