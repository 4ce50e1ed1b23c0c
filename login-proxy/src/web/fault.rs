//! Why a request is not passed on, and what the client is told (study of RFC 9110 §15).

use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

use super::account::Unreadable;
use super::body::{Answer, Cut};
use super::head::HeadError;
use shared::web::PathError;

/// Why a request is not passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Head(#[from] HeadError),
    #[error("the path has {0}")]
    Path(#[from] PathError),
    #[error("{0}")]
    Unreadable(#[from] Unreadable),
    /// It names nobody, and only somebody's requests have a server.
    #[error("a login is needed")]
    NeedsLogin,
    /// No account has such a name, or no name has such a form.
    #[error("wrong name or password")]
    BadCredentials,
    #[error("use https")]
    NeedsTls,
    /// The same, where nothing secret was said yet.
    #[error("it is here: {0}")]
    Elsewhere(Box<str>),
    #[error("nothing is served here")]
    NoRule,
    #[error("this method is not served")]
    Method,
    #[error("the request took too long")]
    Slow,
    #[error("the request is too large")]
    TooLarge,
    /// Its address has guessed too often of late.
    #[error("too many wrong passwords from this address; try again later")]
    TooManyGuesses,
    /// Only an administrator can mend it.
    #[error("a mistake in the configuration of the service")]
    Misconfigured,
    /// The backend broke off, or is none of HTTP's.
    #[error("the server broke off")]
    BadGateway,
    /// For now: the table is stale, the account is held or moves, its backend is away, this node stops.
    #[error("temporarily unavailable; try again")]
    Unavailable,
    #[error("the server did not answer in time")]
    SlowBackend,
    #[error("the request goes round in circles")]
    Loop,
    /// The client broke off.
    #[error("broken off")]
    Gone,
}

impl From<Cut> for Fault {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::TooLarge => Self::TooLarge,
            Cut::Slow => Self::Slow,
            Cut::Broken => Self::Gone,
            Cut::Moved => Self::Unavailable,
        }
    }
}

impl Fault {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Head(_) | Self::Path(_) | Self::Unreadable(_) | Self::Gone => {
                StatusCode::BAD_REQUEST
            }
            Self::NeedsLogin | Self::BadCredentials => StatusCode::UNAUTHORIZED,
            Self::NeedsTls => StatusCode::FORBIDDEN,
            Self::Elsewhere(_) => StatusCode::PERMANENT_REDIRECT,
            Self::NoRule => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooManyGuesses => StatusCode::TOO_MANY_REQUESTS,
            Self::Misconfigured => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::SlowBackend => StatusCode::GATEWAY_TIMEOUT,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }

    /// What the client is told. `realm` is the name of the service.
    pub(super) fn answer(&self, realm: &str, retry_after: Duration) -> Response<Answer> {
        let mut answer = Response::new(Answer::own(format!("{self}\n")));
        *answer.status_mut() = self.status();
        let mut say = |name, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                answer.headers_mut().insert(name, value);
            }
        };
        say(header::CONTENT_TYPE, "text/plain; charset=utf-8");
        say(header::CACHE_CONTROL, "no-store");
        say(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        match self {
            Self::NeedsLogin | Self::BadCredentials => {
                say(
                    header::WWW_AUTHENTICATE,
                    &format!("Basic realm=\"{realm}\", charset=\"UTF-8\""),
                );
            }
            Self::Unavailable | Self::TooManyGuesses => {
                // Whole seconds (RFC 9110 §10.2.3), and never at once.
                say(header::RETRY_AFTER, &retry_after.as_secs().max(1).to_string());
            }
            Self::Elsewhere(place) => say(header::LOCATION, place),
            Self::Method => say(header::ALLOW, "GET, HEAD, POST, PUT, DELETE, OPTIONS"),
            Self::Head(_)
            | Self::Path(_)
            | Self::Unreadable(_)
            | Self::NeedsTls
            | Self::NoRule
            | Self::Slow
            | Self::TooLarge
            | Self::Misconfigured
            | Self::BadGateway
            | Self::SlowBackend
            | Self::Loop
            | Self::Gone => {}
        }
        answer
    }
}
