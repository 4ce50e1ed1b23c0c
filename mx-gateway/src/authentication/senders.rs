//! What DNS says of the client and of the envelope's sender: reverse DNS (RFC 8601 §3), SPF (RFC 7208), and
//! DMARC (RFC 9989), which joins them with the signatures.

use std::net::IpAddr;
use std::sync::Arc;

use mail_auth::dmarc::Policy as Wish;
use mail_auth::dmarc::verify::DmarcParameters;
use mail_auth::spf::verify::SpfParameters;
use mail_auth::{
    AuthenticatedMessage, DmarcResult, IprevResult, MessageAuthenticator, SpfOutput, SpfResult,
};
use shared::address::Domain;
use shared::config::EnforcementMode;
use shared::smtp::path::ReversePath;

use super::policy::Dmarc;
use super::results::{Entry, Found};
use super::signatures::{Signatures, Verified};
use super::tasks::{Deadline, within};

/// Domains of a message's authors that are looked at. Hardly a message has two.
const MAX_AUTHORS: usize = 4;

/// Who says what of itself.
#[derive(Debug, Clone)]
pub(super) struct Identities {
    pub(super) client: IpAddr,
    pub(super) hostname: String,
    /// As it was said.
    pub(super) helo: String,
    /// `postmaster@` the HELO name for the null sender (RFC 7208 §2.4).
    pub(super) mail_from: String,
    /// Its domain, if it is one.
    pub(super) domain: Option<Domain>,
}

impl Identities {
    pub(super) fn new(client: IpAddr, hostname: &Domain, helo: &str, from: &ReversePath) -> Self {
        let mail_from = match from {
            ReversePath::Null => format!("postmaster@{helo}"),
            ReversePath::Mailbox(mailbox) => mailbox.to_string(),
        };
        let domain = mail_from.rsplit_once('@').and_then(|(_, domain)| Domain::parse(domain).ok());
        let client = client.to_canonical();
        Self { client, hostname: hostname.to_string(), helo: helo.to_owned(), mail_from, domain }
    }

    /// SPF of the name that the client gave.
    pub(super) async fn spf_helo(&self, dns: &MessageAuthenticator, until: Deadline) -> SpfOutput {
        let domain = Domain::parse(&self.helo).ok();
        let sender = format!("postmaster@{}", self.helo);
        self.spf(dns, domain.as_ref(), sender, until).await
    }

    /// SPF of MAIL FROM.
    pub(super) async fn spf_from(&self, dns: &MessageAuthenticator, until: Deadline) -> SpfOutput {
        self.spf(dns, self.domain.as_ref(), self.mail_from.clone(), until).await
    }

    /// What is no domain has no record.
    async fn spf(
        &self,
        dns: &MessageAuthenticator,
        domain: Option<&Domain>,
        sender: String,
        until: Deadline,
    ) -> SpfOutput {
        let Some(domain) = domain else { return SpfOutput::default() };
        let (dns, who, domain) = (dns.clone(), self.clone(), domain.to_string());
        let unknown = SpfOutput::new(domain.clone()).with_result(SpfResult::TempError);
        let asked = within(until, "SPF", async move {
            let (local, _) = sender.rsplit_once('@').unwrap_or((&sender, ""));
            let sender = format!("{local}@{domain}");
            let (helo, me) = (who.helo.as_str(), who.hostname.as_str());
            dns.verify_spf(SpfParameters::verify_mail_from(who.client, helo, me, &sender)).await
        });
        asked.await.unwrap_or(unknown)
    }

    /// Whether the client's address has a name that has the address.
    pub(super) async fn iprev(&self, dns: &MessageAuthenticator, until: Deadline) -> Entry {
        let (dns, client) = (dns.clone(), self.client);
        let asked = within(until, "reverse DNS", async move { dns.verify_iprev(client).await });
        let found = asked.await.map_or(Found::TempError, |output| match output.result() {
            IprevResult::Pass => Found::Pass,
            IprevResult::Fail(_) => Found::Fail,
            IprevResult::TempError(_) => Found::TempError,
            IprevResult::PermError(_) => Found::PermError,
            IprevResult::None => Found::None,
        });
        Entry::new("iprev", found).with("policy.iprev", &client.to_string())
    }

    /// DMARC of the message's authors.
    pub(super) async fn dmarc(
        &self,
        dns: &MessageAuthenticator,
        from: &[String],
        spf: &SpfOutput,
        signatures: &Arc<Signatures>,
        until: Deadline,
    ) -> Vec<Dmarc> {
        let mut domains: Vec<String> = from
            .iter()
            .filter_map(|address| address.rsplit_once('@'))
            .map(|(_, domain)| {
                Domain::parse(domain).map_or_else(|_| String::new(), |d| d.to_string())
            })
            .collect();
        domains.sort_unstable();
        domains.dedup();
        let wrong = |why| vec![Dmarc::undecided(Found::PermError, why)];
        if domains.is_empty() {
            return wrong("no author");
        }
        if domains.len() > MAX_AUTHORS {
            return wrong("too many authors");
        }
        let mut authors = Vec::new();
        for domain in domains {
            if domain.is_empty() {
                authors.extend(wrong("the author's domain is none"));
                continue;
            }
            let (dns, spf, shared) = (dns.clone(), spf.clone(), Arc::clone(signatures));
            let mail_from = self.domain.as_ref().map(Domain::to_string).unwrap_or_default();
            let author = domain.clone();
            let asked = within(until, "DMARC", async move {
                dmarc_of(&dns, author, &mail_from, &spf, &shared).await
            });
            let unknown = Dmarc {
                domain,
                found: Found::TempError,
                comment: None,
                wish: EnforcementMode::Off,
            };
            authors.push(asked.await.unwrap_or(unknown));
        }
        authors
    }
}

async fn dmarc_of(
    dns: &MessageAuthenticator,
    domain: String,
    mail_from: &str,
    spf: &SpfOutput,
    signatures: &Signatures,
) -> Dmarc {
    // Nothing else of the message counts here.
    let message = AuthenticatedMessage {
        from: vec![format!("x@{domain}")],
        ..AuthenticatedMessage::default()
    };
    let dkim: Vec<_> = signatures.verified.iter().filter_map(Verified::output).collect();
    let output = dns.verify_dmarc(DmarcParameters::new(&message, &dkim, mail_from, spf)).await;
    let found = match output.result() {
        DmarcResult::Pass => Found::Pass,
        DmarcResult::Fail(_) => Found::Fail,
        DmarcResult::TempError(_) => Found::TempError,
        DmarcResult::PermError(_) => Found::PermError,
        DmarcResult::None => Found::None,
    };
    let wish = match output.policy() {
        Wish::Reject => EnforcementMode::Reject,
        Wish::Quarantine => EnforcementMode::Quarantine,
        Wish::None | Wish::Unspecified => EnforcementMode::Off,
    };
    Dmarc { domain, found, comment: None, wish }
}

/// SPF's result in words.
pub(super) fn found(spf: &SpfOutput) -> Found {
    match spf.result() {
        SpfResult::Pass => Found::Pass,
        SpfResult::Fail => Found::Fail,
        SpfResult::SoftFail => Found::SoftFail,
        SpfResult::Neutral => Found::Neutral,
        SpfResult::TempError => Found::TempError,
        SpfResult::PermError => Found::PermError,
        SpfResult::None => Found::None,
    }
}
