//! What we answer ourselves, under the public name (HTP-3, HTP-10): configuration files of mail programs, the
//! policy of MTA-STS, where services are, ACME's challenges. None of it knows an account.

mod acme;
mod autoconfig;
mod autodiscover;
mod published;
mod reply;
mod well_known;
mod xml;

use std::path::Path;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use shared::config::{Config, ListenerTls};
use shared::mta_sts::MtaSts;
use shared::web::{NormalPath, OwnAnswer, Place, WebConfig};
use tokio::io::AsyncReadExt as _;

pub use self::published::Published;
use self::published::{Security, Service, Where};
use self::reply::{Keep, reply};
use super::account::field;
use super::body::{Answer, Spliced};
use super::exchange::Exchange;
use super::fault::Fault;

/// Answers.
pub(super) async fn answer(
    exchange: &mut Exchange<'_>,
    answer: OwnAnswer,
    parts: &Parts,
    body: Incoming,
) -> Result<Response<Answer>, Fault> {
    let (web, published) = (&exchange.cx.rules.web, &exchange.cx.published);
    let path = NormalPath::of(parts.uri.path())?;
    let query = parts.uri.query().unwrap_or_default().as_bytes();
    let asked = |name: &str| field(query, name, true);
    let reads = parts.method == Method::GET || parts.method == Method::HEAD;
    let response = match answer {
        OwnAnswer::Autoconfig | OwnAnswer::MtaSts | OwnAnswer::Acme if !reads => {
            Some(reply::wrong_method("GET, HEAD"))
        }
        OwnAnswer::Autoconfig => {
            let host = Some(&*exchange.record.host);
            Some(autoconfig::answer(published, asked("emailaddress").as_deref(), host))
        }
        OwnAnswer::Autodiscover => {
            let mut body = Spliced::whole(body);
            match autodiscover::resource(path.as_str()) {
                None => None,
                Some(autodiscover::Resource::Pox) => {
                    let limit = autodiscover::MAX_REQUEST.saturating_add(1);
                    body.read_ahead(limit, web.body_timeout).await?;
                    let secured = exchange.client.secured;
                    Some(autodiscover::pox(published, &parts.method, secured, &body.first))
                }
                Some(autodiscover::Resource::Json) => {
                    let protocol = asked("Protocol").or_else(|| asked("protocol"));
                    Some(autodiscover::where_it_is(published, &parts.method, protocol.as_deref()))
                }
            }
        }
        OwnAnswer::MtaSts => published.mta_sts.as_ref().map(policy),
        OwnAnswer::Acme => challenge(web.acme_challenge.as_deref(), path.as_str()).await,
        OwnAnswer::WellKnown => well_known::well_known(path.as_str(), published),
    };
    let response = response.ok_or(Fault::NoRule)?;
    let length = u64::try_from(response.body().len()).unwrap_or(u64::MAX);
    exchange.record.status = Some(response.status());
    exchange.record.write(0, length, "answered here");
    Ok(response.map(Answer::own))
}

/// The file of a challenge (RFC 8555 §8.3). What is not there is not told from what cannot be read.
async fn challenge(directory: Option<&Path>, path: &str) -> Option<Response<Bytes>> {
    let token = acme::token(path)?.to_owned();
    let file = directory?.join(&token);
    let content = read_some(&file).await;
    let content = content
        .inspect_err(|error| {
            tracing::info!(file = %file.display(), %error, "ACME's challenge cannot be answered");
        })
        .ok()?;
    acme::respond(&token, &content)
}

/// What is larger is no answer to a challenge.
async fn read_some(file: &Path) -> std::io::Result<Vec<u8>> {
    let limit = u64::try_from(acme::MAX_CONTENT).unwrap_or(u64::MAX).saturating_add(1);
    let mut content = Vec::new();
    tokio::fs::File::open(file).await?.take(limit).read_to_end(&mut content).await?;
    Ok(content)
}

/// What is published by a configuration: the listeners that have TLS, and what its rules lead to.
pub fn published(config: &Config) -> Published {
    let web = &config.login.web;
    let mut services = Vec::new();
    for listener in &config.login.listeners {
        let security = match listener.listener.tls {
            ListenerTls::Implicit => Security::Implicit,
            ListenerTls::StartTls => Security::StartTls,
            ListenerTls::None => continue,
        };
        if let Some(bind) = listener.listener.binds.first() {
            services.push(Service { protocol: listener.protocol, port: bind.port(), security });
        }
    }
    let https = config.login.web_listeners.iter();
    let https = https.filter(|web| web.listener.tls == ListenerTls::Implicit);
    let https_port = https.filter_map(|web| web.listener.binds.first()).map(|bind| bind.port());
    let place = |configured: &Option<Place>, path: &str| match configured {
        Some(place) => Some(Where::At(place.clone())),
        None => leads_somewhere(web, path).then_some(Where::ItsServerKnows),
    };
    Published {
        name: web.public_name.clone(),
        https_port: https_port.into_iter().next().unwrap_or(443),
        display_name: web.display_name.clone(),
        services,
        jmap: place(&web.places.jmap, well_known::JMAP),
        caldav: place(&web.places.caldav, well_known::CALDAV),
        carddav: place(&web.places.carddav, well_known::CARDDAV),
        oauth: None,
        mta_sts: web.mta_sts.clone(),
    }
}

/// A backend answers there.
fn leads_somewhere(web: &WebConfig, path: &str) -> bool {
    let Ok(path) = NormalPath::of(path) else { return false };
    let method = Method::GET;
    let first =
        web.rules.iter().find(|rule| rule.fits(web.public_name.as_str(), &path, method.as_str()));
    first.is_some_and(|rule| !matches!(rule.action, shared::web::Action::Answer(_)))
}

/// Senders may not keep it as HTTP would (RFC 8461 §3.3), only for its own time. The type is compared by some:
/// it has no parameter.
fn policy(policy: &MtaSts) -> Response<Bytes> {
    reply(StatusCode::OK, "text/plain", Keep::Checked, policy.to_string())
}
