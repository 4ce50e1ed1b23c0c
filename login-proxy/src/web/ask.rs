//! One request to one backend: a connection, the head, the body, and its answer's head.
//!
//! A kept connection may have been closed by its server meanwhile. What was not sent is sent again on another;
//! what was sent is sent again only if that does no harm (RFC 9110 §9.2.2, RFC 9112 §9.3.1).

use std::sync::Arc;
use std::time::Duration;

use http::header;
use http::request::Parts;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use shared::backend::{Backend, Endpoint, Identity};
use shared::ownership::Registration;
use shared::proxy_protocol::Extensions;
use shared::wire::{ConnectError, Proxied};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::body::{Progress, Sent, Spliced};
use super::fault::Fault;
use super::pool::{Connection, Pool};

/// What is asked, as often as needed.
pub(super) struct Question<'a> {
    /// As the backend is to see it, without a body.
    pub(super) head: &'a Parts,
    /// Taken when it is sent.
    pub(super) body: Option<Spliced>,
    /// The client waits to be told to go on.
    pub(super) expects: bool,
    pub(super) max_body: u64,
    pub(super) body_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) client: Proxied,
    pub(super) extensions: Extensions<'a>,
}

/// An answer's head, and where the rest comes from.
pub(super) struct Asked {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection,
    pub(super) progress: Arc<Progress>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no answer within the time allowed")]
    Slow,
    #[error("broken off: {0}")]
    Broken(hyper::Error),
    /// The client's own body ended early.
    #[error("the request's body: {0}")]
    Client(Fault),
}

impl AskError {
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Connect(ConnectError::Own { .. }) => Fault::Misconfigured,
            Self::Connect(_) => Fault::Unavailable,
            Self::Slow => Fault::SlowBackend,
            Self::Broken(_) => Fault::BadGateway,
            Self::Client(fault) => fault.clone(),
        }
    }
}

/// What may be asked twice without harm.
pub(super) fn is_safe(method: &Method) -> bool {
    matches!(
        method.as_str(),
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PROPFIND" | "REPORT" | "SEARCH"
    )
}

impl Question<'_> {
    /// It can be asked again: it does no harm, and nothing of it is gone.
    pub(super) fn can_repeat(&self, bodyless: bool) -> bool {
        bodyless && is_safe(&self.head.method)
    }

    fn request(&self, mut body: Sent) -> Request<Sent> {
        let mut request = Request::new(());
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri.clone();
        *request.headers_mut() = self.head.headers.clone();
        if self.expects {
            let wanted = CancellationToken::new();
            body.wait_for(wanted.clone());
            hyper::ext::on_informational(&mut request, move |answer| {
                if answer.status() == http::StatusCode::CONTINUE {
                    wanted.cancel();
                }
            });
        } else {
            request.headers_mut().remove(header::EXPECT);
        }
        request.map(|()| body)
    }
}

/// Asks.
pub(super) async fn ask(
    question: &mut Question<'_>,
    backend: &Backend,
    endpoint: &Endpoint,
    pool: &Pool,
    registration: Option<&Arc<Registration>>,
) -> Result<Asked, AskError> {
    let mut may_be_kept = true;
    loop {
        let kept = if may_be_kept { pool.take(&backend.name, endpoint).await } else { None };
        let mut connection = match kept {
            Some(connection) => connection,
            None => connect(question, endpoint, pool).await?,
        };
        let body = question.body.take().unwrap_or_default();
        let bodyless = body.is_complete() && body.first.is_empty();
        let limit = question.max_body;
        let sent = Sent::new(body, limit, question.body_timeout, registration.cloned());
        let progress = sent.progress();
        let request = question.request(sent);
        let was_used = connection.is_used;
        let answered = {
            let asking = connection.sender().try_send_request(request);
            tokio::select! {
                answered = asking => answered,
                () = silent(&progress, endpoint.reply_timeout) => return Err(AskError::Slow),
            }
        };
        let mut error = match answered {
            Ok(response) => return Ok(Asked { response, connection, progress }),
            Err(error) => error,
        };
        may_be_kept = false;
        if let Some(unsent) = error.take_message() {
            question.body = Some(unsent.into_body().into_body());
            if was_used {
                continue;
            }
        } else if was_used && question.can_repeat(bodyless) {
            continue;
        }
        if let Some(cut) = progress.fault() {
            return Err(AskError::Client(cut.into()));
        }
        return Err(AskError::Broken(error.into_error()));
    }
}

async fn connect(
    question: &Question<'_>,
    endpoint: &Endpoint,
    pool: &Pool,
) -> Result<Connection, ConnectError> {
    let now = Instant::now();
    let until = now.checked_add(endpoint.connect_timeout).unwrap_or(now);
    let connecting =
        pool.connect(endpoint, question.client, question.extensions, until, question.idle_timeout);
    connecting.await
}

/// A connection that only one client's requests may take.
pub(super) fn is_bound(endpoint: &Endpoint) -> bool {
    match endpoint.identity {
        Identity::Proxy | Identity::ProxyV1 => true,
        Identity::None
        | Identity::Xclient
        | Identity::Xforward
        | Identity::DovecotId
        | Identity::Forwarded => false,
    }
}

/// Waits until nothing was sent, and no answer has come, for that long.
async fn silent(progress: &Progress, limit: Duration) {
    loop {
        let Some(until) = progress.last().checked_add(limit) else {
            return std::future::pending().await;
        };
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}
