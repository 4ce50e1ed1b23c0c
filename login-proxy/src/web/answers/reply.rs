//! Answers of our own as HTTP has them: status, type, how long they may be kept. A HEAD request gets the
//! same; that its body is not sent is the server's business. Pure.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

/// Plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
/// XML, of the type that Thunderbird and Outlook both expect.
pub(super) const XML: &str = "text/xml; charset=utf-8";
/// JSON (RFC 8259 §11: there is no charset).
pub(super) const JSON: &str = "application/json";

/// How long an answer may be kept by others (RFC 9111 §5.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// It has something of the client's, or may be another in a moment.
    Never,
    /// Only to ask again whether it still stands.
    Checked,
    /// It changes with the configuration only.
    AnHour,
}

impl Keep {
    fn directive(self) -> &'static str {
        match self {
            Self::Never => "no-store",
            Self::Checked => "no-cache",
            Self::AnHour => "max-age=3600",
        }
    }
}

/// An answer.
pub(super) fn reply(
    status: StatusCode,
    media_type: &'static str,
    keep: Keep,
    body: impl Into<Bytes>,
) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(keep.directive()));
    // Nobody may take it for something that runs.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// It is elsewhere. `None`: the place cannot be said in a header.
pub(super) fn redirect(status: StatusCode, place: &str) -> Option<Response<Bytes>> {
    let place = HeaderValue::from_str(place).ok()?;
    let mut response = reply(status, TEXT, Keep::Checked, Bytes::new());
    response.headers_mut().insert(header::LOCATION, place);
    Some(response)
}

/// It is there, but not for this method (RFC 9110 §15.5.6).
pub(super) fn wrong_method(allowed: &'static str) -> Response<Bytes> {
    let body = "this method is not served\n";
    let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, Keep::Never, body);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}
