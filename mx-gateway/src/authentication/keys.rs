//! Public keys of signers, asked for before anything is verified, so that verifying never waits.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::join_all;
use mail_auth::common::verify::DomainKey;
use mail_auth::{DnsError, Error, MessageAuthenticator, ResolverCache, Txt};
use shared::address::Domain;

use super::results::Found;
use super::tasks::{Deadline, within};

/// Shortest RSA key that counts (RFC 8301 §3.2), in bits.
const SHORTEST: usize = 1024;

/// Why there is no key.
pub(super) type NoKey = (Found, &'static str);

/// The keys of one message's signers.
#[derive(Default)]
pub(super) struct Keys {
    /// What the library looks at in place of DNS.
    records: Arc<Records>,
    missing: HashMap<String, NoKey>,
}

/// DNS records by their names.
#[derive(Default)]
pub(super) struct Records(Mutex<HashMap<Box<str>, Txt>>);

impl Keys {
    /// Asks for all these at once; what has not come by `until` cannot be known now.
    pub(super) async fn ask(
        dns: &MessageAuthenticator,
        names: impl IntoIterator<Item = String>,
        until: Deadline,
    ) -> Self {
        let mut keys = Self::default();
        let mut names: Vec<String> = names.into_iter().collect();
        names.sort_unstable();
        names.dedup();
        let asked = names.into_iter().map(async |name| {
            let missing = ask_one(dns, &name, &keys.records, until).await;
            missing.map(|why| (name, why))
        });
        let missing: Vec<_> = join_all(asked).await;
        keys.missing = missing.into_iter().flatten().collect();
        keys
    }

    /// Why there is no key of this name; `None`: there is one.
    pub(super) fn missing(&self, name: &str) -> Option<NoKey> {
        self.missing.get(name).copied()
    }

    pub(super) fn records(&self) -> &Records {
        &self.records
    }
}

/// Where a signer's key is (RFC 6376 §3.6.2.1).
pub(super) fn name(selector: &str, domain: &str) -> String {
    format!("{selector}._domainkey.{domain}.")
}

async fn ask_one(
    dns: &MessageAuthenticator,
    name: &str,
    records: &Arc<Records>,
    until: Deadline,
) -> Option<NoKey> {
    // What cannot be asked for is wrong for ever. As a temporary error it would keep a policy from being
    // enforced, for whoever writes such a signature.
    if Domain::parse(name).is_err() {
        return Some((Found::PermError, "no such name"));
    }
    let (dns, asked, records) = (dns.clone(), name.to_owned(), Arc::clone(records));
    let answer = within(until, "a signer's key", async move {
        dns.txt_lookup::<DomainKey>(asked, Some(&*records)).await
    });
    match answer.await {
        Some(Ok(key)) if key.p.public_key_bits() < SHORTEST => {
            Some((Found::PermError, "key too short"))
        }
        Some(Ok(_)) => None,
        Some(Err(Error::Dns(DnsError::Resolver(_)))) | None => {
            Some((Found::TempError, "key unavailable"))
        }
        Some(Err(Error::Dns(_))) => Some((Found::PermError, "no key")),
        Some(Err(_)) => Some((Found::PermError, "bad or revoked key")),
    }
}

impl ResolverCache<Box<str>, Txt> for Records {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn remove<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// Kept for one message, so it does not expire.
    fn insert(&self, name: Box<str>, record: Txt, _: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, record);
    }
}
