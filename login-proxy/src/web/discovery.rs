//! Whose a token is that does not say it (NAM-5): each backend is asked, and the one that knows it tells.
//!
//! Only where it is configured, since all backends see such tokens then. What is found is kept for a while,
//! under a hash of the token. It only chooses the server, which verifies the token itself.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use http::header::{self, HeaderValue};
use http::{Request, StatusCode};
use serde_json::Value;
use shared::backend::Backend;
use shared::credentials::Secret;
use shared::proxy_protocol::Extensions;
use shared::wire::Proxied;
use tokio::time::{Instant, timeout};

use super::Context;
use super::ask::{Question, ask};
use super::body::Spliced;
use super::fault::Fault;

/// Longest time for all backends to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it is known whose a token is, and that it is nobody's.
const KNOWN: Duration = Duration::from_mins(5);
const UNKNOWN: Duration = Duration::from_secs(15);
const TELL_EVERY: Duration = Duration::from_mins(1);
/// Tokens that are remembered.
const MAX_TOKENS: usize = 65_536;
/// Longest answer that is read, in octets.
const MAX_ANSWER: usize = 64 * 1024;
/// Where a session object (RFC 8620 §2) or an answer about a user (OpenID Connect) names its user.
const NAMES: [&str; 3] = ["username", "email", "preferred_username"];

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    hasher: RandomState,
    known: Mutex<HashMap<u64, Found>>,
    /// When the log was last told that it is missed.
    told: Mutex<Option<Instant>>,
}

#[derive(Debug, Clone)]
struct Found {
    name: Option<Box<[u8]>>,
    until: Instant,
}

/// What one backend says.
enum Said {
    /// Whose it is.
    Name(Box<[u8]>),
    /// It does not know the token.
    No,
    /// Nothing that could be understood.
    Nothing,
}

impl Discovery {
    /// The name of whom the token is; `None`: no backend knows it.
    pub(super) async fn ask(
        &self,
        cx: &Arc<Context>,
        token: &Secret,
    ) -> Result<Option<Box<[u8]>>, Fault> {
        let Some(path) = &cx.rules.web.discovery else {
            self.complain();
            return Err(Fault::Misconfigured);
        };
        let key = self.hasher.hash_one(token.expose());
        if let Some(found) = self.recall(key) {
            return Ok(found.name);
        }
        let backends = cx.ownership.backends();
        let asked: Vec<_> = backends.iter().filter(|backend| backend.http.is_some()).collect();
        let said =
            join_all(asked.into_iter().map(|backend| ask_one(cx, backend, path, token))).await;
        let mut name: Option<Box<[u8]>> = None;
        let mut silent = false;
        for said in said {
            match said {
                Said::Name(other) if name.as_ref().is_some_and(|name| *name != other) => {
                    tracing::error!("two backends say that a token is two users'; it is refused");
                    return Err(Fault::Misconfigured);
                }
                Said::Name(other) => name = Some(other),
                Said::No => {}
                Said::Nothing => silent = true,
            }
        }
        // Whoever did not answer may be the one that knows it.
        if name.is_none() && silent {
            return Err(Fault::Unavailable);
        }
        self.remember(key, name.clone());
        Ok(name)
    }

    /// Anybody can send such a token, as often as they like.
    fn complain(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        tracing::error!(
            "a token names no account, so nobody knows which server it is for: set \
             names.token_claims, or login.web.discovery to have the backends asked"
        );
    }

    fn recall(&self, key: u64) -> Option<Found> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key).filter(|found| found.until > Instant::now()).cloned()
    }

    fn remember(&self, key: u64, name: Option<Box<[u8]>>) {
        let now = Instant::now();
        let until = now + if name.is_some() { KNOWN } else { UNKNOWN };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_TOKENS {
            known.retain(|_, found| found.until > now);
        }
        // Who fills it with tokens of nobody's must not push out the others.
        if known.len() < MAX_TOKENS {
            known.insert(key, Found { name, until });
        }
    }
}

async fn ask_one(cx: &Arc<Context>, backend: &Backend, path: &str, token: &Secret) -> Said {
    let asking = async {
        let endpoint = backend.http.as_ref()?;
        let mut bearer = Vec::from(b"Bearer ");
        bearer.extend_from_slice(token.expose());
        let mut bearer = HeaderValue::from_maybe_shared(bytes::Bytes::from(bearer)).ok()?;
        bearer.set_sensitive(true);
        let request = Request::builder()
            .uri(path)
            .header(header::HOST, cx.rules.web.public_name.as_str())
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json")
            .body(())
            .ok()?;
        let (head, ()) = request.into_parts();
        let here = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let mut question = Question {
            head: &head,
            body: Some(Spliced::default()),
            expects: false,
            max_body: 0,
            body_timeout: PATIENCE,
            idle_timeout: PATIENCE,
            client: Proxied { client: here, local: here },
            extensions: Extensions::default(),
        };
        // Not one that is kept: with a PROXY header it would be some client's.
        let pool = super::pool::Pool::new(cx.lifecycle.clone());
        let asked = ask(&mut question, backend, endpoint, &pool, None).await;
        let asked = asked
            .inspect_err(|why| tracing::warn!(backend = %backend.name, %why, "whose a token is cannot be asked"))
            .ok()?;
        let status = asked.response.status();
        if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
            return Some(Said::No);
        }
        if status != StatusCode::OK {
            return Some(Said::Nothing);
        }
        let mut body = Spliced::whole(asked.response.into_body());
        body.read_ahead(MAX_ANSWER, PATIENCE).await.ok()?;
        let answer: Value = serde_json::from_slice(&body.first).ok()?;
        let name = NAMES.iter().find_map(|name| answer.get(name)?.as_str())?;
        (!name.is_empty()).then(|| Said::Name(name.as_bytes().into()))
    };
    timeout(PATIENCE, asking).await.ok().flatten().unwrap_or(Said::Nothing)
}
