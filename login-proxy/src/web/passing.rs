//! An answer on its way back: what of it is read or written anew, and what it may turn into.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::response::Parts as AnswerParts;
use http::{Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;

use super::body::{Answer, Kick, Spliced};
use super::exchange::Exchange;
use super::fault::Fault;
use super::flight::Flight;
use super::head;
use super::tunnel::Tunnel;
use super::urls::{rewrite_location, rewrite_session};

/// Longest JSON that is read on its way, in octets.
const MAX_JSON: usize = 256 * 1024;

/// An answer of so many octets is passed on in one piece, if all of it is there.
const SMALL: u64 = 16 * 1024;

/// What may become of an answer.
pub(super) struct Passing {
    /// It may be a WebSocket's beginning.
    pub(super) websocket: bool,
    /// The client's end of it.
    pub(super) upgrade: Option<OnUpgrade>,
    /// It may have codes of OAuth's in it.
    pub(super) issues_codes: bool,
    /// It may be a JMAP session object.
    pub(super) is_session: bool,
    /// How the client came here.
    pub(super) scheme: &'static str,
    /// By what name.
    pub(super) authority: Box<str>,
}

/// Takes the client's end of what may become a WebSocket.
pub(super) fn client_upgrade(parts: &mut Parts) -> Option<OnUpgrade> {
    parts.extensions.remove::<OnUpgrade>()
}

/// What goes on until somebody ends it: Server-Sent Events and WebSockets.
pub(super) fn is_endless(response: &Response<Incoming>) -> bool {
    response.status() == StatusCode::SWITCHING_PROTOCOLS
        || has_type(response.headers(), "text/event-stream")
}

fn has_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next()).map(str::trim);
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case(wanted))
}

impl Passing {
    /// Passes it on.
    pub(super) async fn pass(
        &mut self,
        exchange: &mut Exchange<'_>,
        mut response: Response<Incoming>,
        mut flight: Flight,
        mut kick: Kick,
    ) -> Result<Response<Answer>, Fault> {
        flight.record.status = Some(response.status());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let backend = hyper::upgrade::on(&mut response);
            return self.switch(exchange, response, backend, flight, kick);
        }
        let (mut parts, body) = response.into_parts();
        head::pass_back(&mut parts.headers);
        parts.version = http::Version::HTTP_11;
        if body.size_hint().exact().is_none() {
            // A length beside chunks is not to be believed, and not to be passed on (RFC 9112 §6.3).
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        self.look_at_location(exchange, &mut parts, &flight);
        let mut body = Spliced::whole(body);
        // A small answer is nearly always there at once. Then nothing of it has to be watched.
        let is_small = body.size_hint().exact().is_some_and(|octets| octets <= SMALL);
        let looked_at = self.is_looked_at(exchange, &parts);
        if is_small && !looked_at {
            if let Err(cut) = body.take_what_is_there().await {
                flight.crash(Some(cut));
                return Err(Fault::BadGateway);
            }
            if body.is_complete() {
                flight.note(body.first.len());
                flight.land();
                return Ok(Response::from_parts(parts, Answer::own(body.first)));
            }
        }
        if looked_at {
            let patience = exchange.cx.rules.web.body_timeout;
            let read = tokio::select! {
                read = body.read_ahead(MAX_JSON, patience) => read,
                () = kick.over() => Err(super::body::Cut::Moved),
            };
            if let Err(cut) = read {
                flight.crash(Some(cut));
                return Err(match cut {
                    super::body::Cut::Moved => Fault::Unavailable,
                    super::body::Cut::Slow => Fault::SlowBackend,
                    super::body::Cut::TooLarge | super::body::Cut::Broken => Fault::BadGateway,
                });
            }
            if body.is_complete() {
                self.look_at_json(exchange, &mut parts, &mut body, &flight);
            }
        }
        flight.leave_when_moved(&kick);
        let patience = exchange.cx.rules.idle_timeout;
        Ok(Response::from_parts(parts, Answer::passed(body, kick, patience, flight)))
    }

    fn is_looked_at(&self, exchange: &Exchange<'_>, parts: &AnswerParts) -> bool {
        let wanted = self.issues_codes || (self.is_session && exchange.cx.rules.web.rewrite_urls);
        wanted
            && has_type(&parts.headers, "application/json")
            && !parts.headers.contains_key(header::CONTENT_ENCODING)
    }

    fn look_at_json(
        &self,
        exchange: &Exchange<'_>,
        parts: &mut AnswerParts,
        body: &mut Spliced,
        flight: &Flight,
    ) {
        if self.issues_codes {
            exchange.cx.common.codes.note_json(&body.first, &flight.backend);
        }
        if self.is_session
            && let Some(rewritten) = rewrite_session(&body.first, self.scheme, &self.authority)
        {
            *body = Spliced::octets(Bytes::from(rewritten));
            // They were those of another text.
            parts.headers.remove(header::CONTENT_LENGTH);
            parts.headers.remove(header::ETAG);
        }
    }

    fn look_at_location(&self, exchange: &Exchange<'_>, parts: &mut AnswerParts, flight: &Flight) {
        let location = parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let Some(location) = location else { return };
        if self.issues_codes {
            exchange.cx.common.codes.note_location(location, &flight.backend);
        }
        let backends = exchange.cx.ownership.backends();
        let endpoint = backends.get(&flight.backend).and_then(|backend| backend.http.as_ref());
        let own = |host: &str, port| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            endpoint.is_some_and(|endpoint| {
                let mut hosts = endpoint.hosts.iter();
                hosts.any(|one| one.port == port && one.name.eq_ignore_ascii_case(host))
            })
        };
        if exchange.cx.rules.web.rewrite_urls
            && let Some(here) = rewrite_location(location, own, self.scheme, &self.authority)
            && let Ok(here) = HeaderValue::from_str(&here)
        {
            parts.headers.insert(header::LOCATION, here);
        }
    }

    /// The beginning of a WebSocket, which goes on in a task of its own.
    fn switch(
        &mut self,
        exchange: &Exchange<'_>,
        response: Response<Incoming>,
        backend: OnUpgrade,
        flight: Flight,
        kick: Kick,
    ) -> Result<Response<Answer>, Fault> {
        let Some(client) = self.upgrade.take().filter(|_| self.websocket) else {
            flight.crash(Some(super::body::Cut::Broken));
            return Err(Fault::BadGateway);
        };
        let cx = exchange.cx;
        let tunnel = Tunnel {
            idle: cx.rules.idle_timeout,
            end: cx.lifecycle.end().clone(),
            // Its place among the connections of its listener.
            _client: Arc::clone(exchange.client),
        };
        cx.lifecycle.spawn("websocket", tunnel.run(client, backend, kick, flight));
        let (mut parts, _) = response.into_parts();
        head::pass_back(&mut parts.headers);
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        Ok(Response::from_parts(parts, Answer::own(Bytes::new())))
    }
}
