//! Asking a backend something at start and now and then, at each of its addresses (HLT-1, HLT-3).

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::backend::Endpoint;
use crate::health::FIRST_PAUSE;
use crate::wire::ConnectError;

/// Between two questions to a backend that answers.
pub const EVERY: Duration = Duration::from_mins(1);
/// Between two questions to one that does not.
pub const AGAIN: Duration = Duration::from_secs(10);
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much longer than its time a server is waited for, so that it is seen that the time was over.
const A_LITTLE: Duration = Duration::from_millis(100);

/// Why a question was not answered.
pub trait Unanswered: From<ConnectError> {
    /// No answer came in time.
    fn timed_out() -> Self;

    /// It was not asked, since it was known to be down.
    fn is_down(&self) -> bool;
}

/// Asks each address, until a time that is given with it, so that each one's health is known. The preferred one of those that answer speaks for
/// the backend.
///
/// # Errors
///
/// None answers: why one of them does not.
pub async fn ask<T, E, Answer>(
    endpoint: &Endpoint,
    question: impl Fn(Endpoint, Instant) -> Answer,
) -> Result<T, E>
where
    E: Unanswered,
    Answer: Future<Output = Result<T, E>>,
{
    let addresses = timeout(PATIENCE, endpoint.each_address()).await;
    let addresses = addresses.unwrap_or(Err(ConnectError::Timeout(endpoint.shown().into())))?;
    let until = Instant::now() + PATIENCE.max(endpoint.patience().saturating_add(A_LITTLE));
    let asked = addresses.into_iter().map(|address| timeout_at(until, question(address, until)));
    let mut failure = None;
    for answer in join_all(asked).await {
        match answer.unwrap_or_else(|_| Err(E::timed_out())) {
            Ok(answer) => return Ok(answer),
            // Why it went down says more.
            Err(error) if error.is_down() && failure.is_some() => {}
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(E::timed_out))
}

/// Waits for the time of the next question: after about `pause`, so that not all nodes ask at once, or when
/// an address that has failed meanwhile is worth a look.
pub async fn rest(endpoint: &Endpoint, pause: Duration) {
    let pause = pause.mul_f64(0.9 + 0.2 * fastrand::f64());
    let now = Instant::now();
    let earliest = now + FIRST_PAUSE;
    loop {
        let look = endpoint.reach.worth_a_look().map(|at| at.max(earliest));
        let until = look.map_or(now + pause, |look| look.min(now + pause));
        tokio::select! {
            () = sleep_until(until) => return,
            () = endpoint.reach.trouble() => {}
        }
    }
}
