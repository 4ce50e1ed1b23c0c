//! What we answer ourselves.

use http::Response;
use http::request::Parts;
use hyper::body::Incoming;
use shared::web::OwnAnswer;

use super::activity::Busy;
use super::body::Answer;
use super::exchange::Exchange;
use super::fault::Fault;

/// Answers.
pub(super) async fn answer(
    _exchange: &mut Exchange<'_>,
    _answer: OwnAnswer,
    _parts: &Parts,
    _body: Incoming,
    _busy: Busy,
) -> Result<Response<Answer>, Fault> {
    Err(Fault::NoRule)
}

/// What is published.
#[derive(Debug, Clone, Default)]
pub struct Published;

/// Of a configuration.
pub fn published(_config: &shared::config::Config) -> Published {
    Published
}
