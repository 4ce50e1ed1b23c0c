//! One request, from its head to the head of its answer.
//!
//! checked → its rule → its account → **registered** → hold waited out → owner looked up → asked → row
//! compared → passed back. A request that is under way when its account moves may finish within the grace; the
//! next one goes to the new owner (P4, P5).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use shared::backend::{Backend, BackendName};
use shared::ownership::{self, Entered, Name, Owner, Registration, Work};
use shared::web::{AccountSource, Action, NormalPath, Rule};
use tokio::time::{Instant, sleep_until};

use super::account::{Body, Whose, whose};
use super::answers;
use super::ask::{AskError, Asked, Question, ask, is_bound};
use super::body::{Answer, Kick, Spliced};
use super::fault::Fault;
use super::flight::{Flight, Place, Record, close};
use super::head::{self, Introduction};
use super::passing::{self, Passing};
use super::{Client, Context};
use crate::guess_line::{GuessLine, Guessed};
use crate::login::hold::{Held, WaitRules, Waiting};

/// How much of a body is read to find its account, in octets.
const PEEK: usize = 64 * 1024;
/// How often one request is routed anew because its account was moved meanwhile.
const MAX_ROUTINGS: u32 = 8;

/// Where a request goes.
enum Destination {
    /// To the owner of what this names.
    Owner(Whom),
    /// To a backend, whosever it is.
    Backend(Arc<Backend>),
}

/// Whom a request named.
struct Whom {
    name: Name,
    /// As it was typed.
    typed: Box<[u8]>,
    by_password: bool,
    by: &'static str,
}

/// What one request is answered with.
pub(super) struct Exchange<'a> {
    pub(super) cx: &'a Arc<Context>,
    pub(super) client: &'a Arc<Client>,
    pub(super) record: Record,
    /// Whose guesses these are, where that is known.
    counted: Option<IpAddr>,
}

/// Answers a request.
pub(super) async fn exchange(
    cx: Arc<Context>,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Response<Answer> {
    let busy = client.activity.begin();
    let (parts, body) = request.into_parts();
    let record = Record {
        session: uuid::Uuid::now_v7().simple().to_string().into(),
        client: client.address,
        method: parts.method.as_str().into(),
        host: Box::default(),
        path: parts.uri.path().into(),
        status: None,
        account: None,
        owner: None,
        epoch: None,
        began: Instant::now(),
    };
    let mut exchange = Exchange { cx: &cx, client: &client, record, counted: None };
    match exchange.run(parts, body, busy).await {
        Ok(answer) => answer,
        Err(fault) => exchange.refuse(&fault),
    }
}

impl Exchange<'_> {
    fn refuse(&mut self, fault: &Fault) -> Response<Answer> {
        let web = &self.cx.rules.web;
        self.record.status = Some(fault.status());
        self.record.write(0, 0, &fault.to_string());
        fault.answer(web.public_name.as_str(), web.retry_after)
    }

    async fn run(
        &mut self,
        mut parts: Parts,
        body: Incoming,
        busy: super::activity::Busy,
    ) -> Result<Response<Answer>, Fault> {
        let (cx, web) = (self.cx, &self.cx.rules.web);
        if parts.method == http::Method::CONNECT {
            return Err(Fault::Method);
        }
        head::check(&parts.headers)?;
        let asked = head::Asked::of(&parts, &web.public_name)?;
        self.record.host = asked.host.clone();
        let path = NormalPath::of(parts.uri.path())?;
        let fits = |rule: &&Rule| rule.fits(&asked.host, &path, parts.method.as_str());
        let rule = web.rules.iter().find(fits).ok_or(Fault::NoRule)?;
        if head::has_come_by(&parts.headers, &cx.via) {
            tracing::error!(
                session = %self.record.session, host = %asked.host, path = %path,
                "request refused: it has come through this node before; does a backend's name lead to it?"
            );
            return Err(Fault::Loop);
        }
        let address = self.name_client(&parts);
        if let Action::Answer(answer) = &rule.action {
            return answers::answer(self, *answer, &parts, body).await;
        }
        self.needs_tls(&parts, &asked)?;
        let mut body = Spliced::whole(body);
        if !body.is_complete() && declared(&parts).is_some_and(|octets| octets > web.max_body) {
            return Err(Fault::TooLarge);
        }
        let destination = self.destination(rule, &parts, &mut body).await?;
        let websocket = rule.websocket
            && head::asks_for_websocket(&parts.method, parts.version, &parts.headers);
        let expects = wants_continue(&parts) && !body.is_complete() && body.first.is_empty();
        let session = self.record.session.clone();
        let introduction = Introduction {
            client: address.ip(),
            secured: self.client.secured,
            asked: &asked,
            session: &session,
            via: &cx.via,
            forwarded: true,
        };
        let passing = Passing {
            websocket,
            upgrade: websocket.then(|| passing::client_upgrade(&mut parts)).flatten(),
            issues_codes: rule.issues_codes,
            is_session: path.as_str().trim_end_matches('/').ends_with("/session")
                || path.as_str() == "/.well-known/jmap",
            scheme: if self.client.secured { "https" } else { "http" },
            authority: asked.authority.clone(),
        };
        prepare(&mut parts, &introduction, &passing);
        let question = Question {
            head: &parts,
            body: Some(body),
            expects,
            max_body: web.max_body,
            body_timeout: web.body_timeout,
            idle_timeout: web.body_timeout,
            client: shared::wire::Proxied { client: address, local: self.client.local },
            extensions: shared::proxy_protocol::Extensions {
                authority: self.client.sni.as_deref(),
                unique_id: Some(&session),
                tls: self.client.tls_version,
            },
        };
        match destination {
            Destination::Owner(whom) => self.at_owner(whom, question, passing, busy).await,
            Destination::Backend(backend) => {
                self.at_backend(backend, question, passing, busy).await
            }
        }
    }

    /// Who the client is: the peer, or whom a trusted front names.
    fn name_client(&mut self, parts: &Parts) -> SocketAddr {
        let client = self.client;
        let trusted = self.cx.rules.is_trusted(client.address.ip());
        let is_front = |ip| self.cx.rules.is_trusted(ip);
        let claimed = trusted.then(|| head::claimed_client(&parts.headers, is_front)).flatten();
        let address = claimed.map_or(client.address, |ip| SocketAddr::new(ip, 0));
        let unnamed = (client.unnamed || trusted) && claimed.is_none();
        self.counted = (!unnamed).then(|| address.ip().to_canonical());
        self.record.client = address;
        address
    }

    /// Nothing secret is asked for in the clear.
    fn needs_tls(&self, parts: &Parts, asked: &head::Asked) -> Result<(), Fault> {
        let client = self.client;
        let here = client.peer.is_loopback();
        if client.secured || here || self.cx.rules.allow_plaintext {
            return Ok(());
        }
        if parts.headers.contains_key(header::AUTHORIZATION) {
            return Err(Fault::NeedsTls);
        }
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        Err(Fault::Elsewhere(format!("https://{}{target}", asked.host).into()))
    }

    async fn destination(
        &mut self,
        rule: &Rule,
        parts: &Parts,
        body: &mut Spliced,
    ) -> Result<Destination, Fault> {
        let cx = self.cx;
        let (sources, fallback) = match &rule.action {
            Action::Backend(name) => return self.backend(name),
            Action::Account { sources, fallback } => (sources, fallback.as_ref()),
            Action::Answer(_) => return Err(Fault::NoRule),
        };
        if cx.shared.guesses.refuses(self.counted, Instant::now().into_std()) {
            tracing::info!(
                session = %self.record.session, client = %self.record.client,
                "request refused: too many guesses from this address"
            );
            return Err(Fault::TooManyGuesses);
        }
        let query = parts.uri.query().unwrap_or_default();
        let find = |octets: &[u8], complete| {
            whose(sources, query, &parts.headers, Body { octets, complete }, &cx.names.token_claims)
        };
        let mut found = find(&[], body.is_complete())?;
        if matches!(found, Whose::Nobody)
            && sources.iter().any(AccountSource::is_in_body)
            && !body.is_complete()
        {
            body.read_ahead(PEEK, cx.rules.web.body_timeout).await?;
            found = find(&body.first, body.is_complete())?;
        }
        let code = match found {
            Whose::Named { name, by_password, by } => {
                return self.named(name, by_password, by).await;
            }
            Whose::Token(token) => {
                let Some(name) = cx.common.discovery.ask(cx, &token).await? else {
                    return Err(Fault::NeedsLogin);
                };
                return self.named(name, false, "discovery").await;
            }
            Whose::Code(code) => Some(code),
            Whose::Nobody => None,
        };
        if let Some(issuer) = code.and_then(|code| cx.common.codes.issuer(code.expose())) {
            return self.backend(&issuer);
        }
        match fallback {
            Some(name) => self.backend(name),
            None => Err(Fault::NeedsLogin),
        }
    }

    fn backend(&mut self, name: &BackendName) -> Result<Destination, Fault> {
        self.record.owner = Some(name.clone());
        let backends = self.cx.ownership.backends();
        let backend = backends.get(name).cloned().ok_or(Fault::Misconfigured)?;
        Ok(Destination::Backend(backend))
    }

    async fn named(
        &mut self,
        typed: Box<[u8]>,
        by_password: bool,
        by: &'static str,
    ) -> Result<Destination, Fault> {
        match Name::of_master_login(&typed, &self.cx.names.master_separators) {
            Ok(name) => Ok(Destination::Owner(Whom { name, typed, by_password, by })),
            Err(why) => Err(self.guessed(&typed, by, Guessed::BadName, None, &why).await),
        }
    }

    /// Counts a guess, and waits as long as its answer is delayed.
    async fn guessed(
        &self,
        typed: &[u8],
        by: &'static str,
        reason: Guessed,
        owner: Option<&Owner>,
        why: &(dyn std::fmt::Display + Sync),
    ) -> Fault {
        let (record, began) = (&self.record, self.record.began);
        GuessLine {
            session: &record.session,
            protocol: "http",
            client: record.client,
            counted: self.counted,
            method: by,
            user: typed,
            owner,
            reason,
            why,
            began,
        }
        .write();
        let account = owner.map_or(typed, |owner| owner.account.as_bytes());
        let delay = self.cx.shared.guesses.note(self.counted, account, Instant::now().into_std());
        if let Some(until) = began.checked_add(delay) {
            let stop = self.cx.lifecycle.stop();
            tokio::select! {
                () = sleep_until(until) => {}
                () = stop.cancelled() => {}
            }
        }
        Fault::BadCredentials
    }

    /// At whoever owns the account now.
    async fn at_owner(
        &mut self,
        whom: Whom,
        mut question: Question<'_>,
        mut passing: Passing,
        busy: super::activity::Busy,
    ) -> Result<Response<Answer>, Fault> {
        let cx = self.cx;
        let session = self.record.session.clone();
        let rules = WaitRules {
            places: &cx.shared.held,
            limit: cx.rules.hold_wait,
            stop: cx.lifecycle.stop(),
            protocol: "http",
        };
        let mut waiting = Waiting::new(rules, &session, None);
        for _ in 0..MAX_ROUTINGS {
            let (owner, registration) = match self.enter(&whom).await? {
                Entered::Owned(owner, registration) => (owner, Arc::new(registration)),
                Entered::Held { account, registration } => {
                    let held = Held { account, registration };
                    waiting.wait_out(held).await.map_err(|(account, why)| {
                        tracing::info!(%session, %account, %why, "request refused: the account is held");
                        Fault::Unavailable
                    })?;
                    continue;
                }
            };
            waiting.leave();
            self.record.owned_by(&owner);
            let mut kick = Kick::new(registration.token().clone(), cx.rules.kick_grace);
            let bodyless =
                question.body.as_ref().is_some_and(|b| b.is_complete() && b.first.is_empty());
            let asked = tokio::select! {
                biased;
                asked = self.ask(&mut question, &owner.backend, Some(&registration)) => asked,
                () = kick.over() => {
                    // Whether it was done there nobody knows; who may ask again does so at the new owner.
                    if question.can_repeat(bodyless) {
                        question.body = Some(Spliced::default());
                        continue;
                    }
                    tracing::info!(%session, account = %owner.account, "request cut: the account was moved");
                    return Err(Fault::Unavailable);
                }
            };
            let asked = match asked {
                Ok(asked) => asked,
                Err(error) => {
                    // Nothing of it was sent, and the row has changed: another may own it.
                    if registration.is_outdated() && question.body.is_some() {
                        continue;
                    }
                    return Err(self.unanswered(&owner.backend, &error));
                }
            };
            let endless = passing::is_endless(&asked.response);
            if endless {
                kick.at_once();
                // What has no end of its own begins at no former owner.
                if !cx.ownership.still_stands(&registration) && question.can_repeat(bodyless) {
                    let place = Place::new(registration);
                    close(&cx.lifecycle, Some(asked.connection), Some(place));
                    question.body = Some(Spliced::default());
                    continue;
                }
            }
            tokio::select! {
                () = self.judge(&whom, &owner, &asked) => {}
                // A no that is answered late keeps up no fence, and of a former owner it counts nothing.
                () = kick.over() => {
                    close(&cx.lifecycle, Some(asked.connection), Some(Place::new(registration)));
                    return Err(Fault::Unavailable);
                }
            }
            let place = Place::new(registration);
            let pool = self.pool(&owner.backend);
            let flight = self.flight(asked.connection, pool, &owner.backend, asked.progress, busy);
            let flight = Flight { place: Some(place), ..flight };
            return passing.pass(self, asked.response, flight, kick).await;
        }
        Err(Fault::Unavailable)
    }

    /// Registers the request, then reads its owner (P4).
    async fn enter(&self, whom: &Whom) -> Result<Entered, Fault> {
        let ownership = &self.cx.ownership;
        let refusal = match ownership.enter_held(&whom.name, Work::Session) {
            Ok(entered) => return Ok(entered),
            Err(refusal) => refusal,
        };
        ownership.note_refused(&whom.name);
        let session = &self.record.session;
        let user = String::from_utf8_lossy(&whom.typed);
        match refusal {
            ownership::Refusal::NoSuchAccount
            | ownership::Refusal::ForeignDomain
            | ownership::Refusal::NoLogin { .. } => {
                Err(self.guessed(&whom.typed, whom.by, Guessed::NoAccount, None, &refusal).await)
            }
            ownership::Refusal::UnknownBackend { .. } | ownership::Refusal::Ambiguous { .. } => {
                tracing::error!(%session, ?user, why = %refusal, "request refused");
                Err(Fault::Unavailable)
            }
            ownership::Refusal::Stale
            | ownership::Refusal::Held { .. }
            | ownership::Refusal::Unsettled => {
                tracing::info!(%session, ?user, why = %refusal, "request refused");
                Err(Fault::Unavailable)
            }
        }
    }

    /// At a backend that was chosen without an account.
    async fn at_backend(
        &mut self,
        backend: Arc<Backend>,
        mut question: Question<'_>,
        mut passing: Passing,
        busy: super::activity::Busy,
    ) -> Result<Response<Answer>, Fault> {
        let asked = match self.ask(&mut question, &backend, None).await {
            Ok(asked) => asked,
            Err(error) => return Err(self.unanswered(&backend, &error)),
        };
        let pool = self.pool(&backend);
        let flight = self.flight(asked.connection, pool, &backend, asked.progress, busy);
        passing.pass(self, asked.response, flight, Kick::default()).await
    }

    async fn ask(
        &self,
        question: &mut Question<'_>,
        backend: &Backend,
        registration: Option<&Arc<Registration>>,
    ) -> Result<Asked, AskError> {
        let Some(endpoint) = &backend.http else {
            tracing::warn!(
                session = %self.record.session, backend = %backend.name,
                "request refused: the backend has no endpoint for HTTP ([backends.NAME.http])"
            );
            return Err(AskError::Client(Fault::Misconfigured));
        };
        ask(question, backend, endpoint, &self.pool(backend), registration).await
    }

    /// Connections that may carry this client's requests.
    fn pool(&self, backend: &Backend) -> Arc<super::pool::Pool> {
        if backend.http.as_ref().is_some_and(is_bound) {
            return self.client.own_pool(self.cx);
        }
        Arc::clone(&self.cx.common.pool)
    }

    fn flight(
        &mut self,
        connection: super::pool::Connection,
        pool: Arc<super::pool::Pool>,
        backend: &Backend,
        progress: Arc<super::body::Progress>,
        busy: super::activity::Busy,
    ) -> Flight {
        let empty = Record {
            session: Box::default(),
            client: self.record.client,
            method: Box::default(),
            host: Box::default(),
            path: Box::default(),
            status: None,
            account: None,
            owner: None,
            epoch: None,
            began: self.record.began,
        };
        Flight {
            connection: Some(connection),
            pool,
            backend: backend.name.clone(),
            place: None,
            progress,
            lifecycle: self.cx.lifecycle.clone(),
            octets_out: 0,
            record: std::mem::replace(&mut self.record, empty),
            busy,
        }
    }

    fn unanswered(&self, backend: &Backend, error: &AskError) -> Fault {
        let (session, account) = (&self.record.session, self.record.account.as_deref());
        match error {
            AskError::Client(_) => {}
            AskError::Connect(_) | AskError::Slow | AskError::Broken(_) => {
                tracing::warn!(
                    %session, account, owner = %backend.name, why = %error, "request not answered"
                );
            }
        }
        error.fault()
    }

    /// What the owner says of a password counts; a token that has run out is nobody's guess. A yes forgives
    /// nothing, and proves no account: much of the web is there for everybody.
    async fn judge(&self, whom: &Whom, owner: &Owner, asked: &Asked) {
        let status = asked.response.status();
        if status == StatusCode::UNAUTHORIZED && whom.by_password {
            let why = "the backend said 401";
            self.guessed(&whom.typed, whom.by, Guessed::Credentials, Some(owner), &why).await;
        }
    }
}

/// The length that a body is said to have.
fn declared(parts: &Parts) -> Option<u64> {
    parts.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn wants_continue(parts: &Parts) -> bool {
    let expect = parts.headers.get(header::EXPECT).and_then(|value| value.to_str().ok());
    expect.is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue"))
}

/// Makes the head that of a request to a backend.
fn prepare(parts: &mut Parts, introduction: &Introduction<'_>, passing: &Passing) {
    head::send_on(&mut parts.headers, introduction);
    if passing.websocket {
        let (upgrade, websocket) = ("upgrade", "websocket");
        parts.headers.insert(header::CONNECTION, http::HeaderValue::from_static(upgrade));
        parts.headers.insert(header::UPGRADE, http::HeaderValue::from_static(websocket));
    }
    if passing.is_session {
        // It is read, and may be written anew.
        parts.headers.remove(header::ACCEPT_ENCODING);
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    if let Ok(uri) = target.parse() {
        parts.uri = uri;
    }
    parts.version = http::Version::HTTP_11;
}
