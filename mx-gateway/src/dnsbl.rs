//! Lists of addresses in DNS (RFC 5782): a client that is on one is sent away.
//!
//! A list that does not answer in time, or says that it does not answer us, lists nobody: mail must not stop when
//! a list does.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_resolver::TokioResolver;
use shared::address::Domain;
use tokio::time::timeout;

/// Longest wait for all lists.
const PATIENCE: Duration = Duration::from_secs(3);
/// Answers that are kept, by their TTL.
const KEPT: u64 = 8192;

/// Lists of addresses. None by default.
#[derive(Clone, Default)]
pub struct Dnsbl {
    zones: Vec<Domain>,
    resolver: Option<TokioResolver>,
}

impl Dnsbl {
    /// Asks the system's name servers for these lists.
    pub fn of_system(zones: &[Domain]) -> Self {
        if zones.is_empty() {
            return Self::default();
        }
        let resolver = TokioResolver::builder_tokio().and_then(|mut builder| {
            builder.options_mut().cache_size = KEPT;
            builder.build()
        });
        match resolver {
            Ok(resolver) => Self::asking(resolver, zones),
            Err(error) => {
                tracing::error!(%error, "no list of addresses (mx.limits.dnsbl) can be asked");
                Self::default()
            }
        }
    }

    /// Asks this resolver.
    pub fn asking(resolver: TokioResolver, zones: &[Domain]) -> Self {
        Self { zones: zones.to_vec(), resolver: Some(resolver) }
    }

    /// The first of the lists that has this client.
    pub async fn listing(&self, client: IpAddr) -> Option<&Domain> {
        let resolver = self.resolver.as_ref()?;
        let asked = self.zones.iter().map(async |zone| {
            let asked = timeout(PATIENCE, resolver.ipv4_lookup(question(client, zone)));
            let listed = match asked.await {
                Ok(Ok(found)) => found.answers().iter().any(|record| says_listed(&record.data)),
                Ok(Err(error)) if error.is_nx_domain() || error.is_no_records_found() => false,
                Ok(Err(error)) => {
                    tracing::warn!(%zone, %error, "a list of addresses does not answer");
                    false
                }
                Err(_) => {
                    tracing::warn!(%zone, "a list of addresses does not answer in time");
                    false
                }
            };
            listed.then_some(zone)
        });
        join_all(asked).await.into_iter().flatten().next()
    }
}

/// RFC 5782 §2.1, §2.4.
fn question(client: IpAddr, zone: &Domain) -> String {
    let reversed: Vec<String> = match client {
        IpAddr::V4(v4) => v4.octets().iter().rev().map(u8::to_string).collect(),
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().flat_map(|octet| [octet & 15, octet >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}")).collect()
        }
    };
    format!("{}.{zone}.", reversed.join("."))
}

/// Within 127.0.0.0/8 (RFC 5782 §2.1), where 127.255.255.0/24 says that the question is not answered.
fn is_listing(answer: Ipv4Addr) -> bool {
    let [net, b, c, _] = answer.octets();
    net == 127 && (b, c) != (255, 255)
}

fn says_listed(data: &hickory_resolver::proto::rr::RData) -> bool {
    match data {
        hickory_resolver::proto::rr::RData::A(answer) => is_listing(answer.0),
        _ => false,
    }
}

impl std::fmt::Debug for Dnsbl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dnsbl").field("zones", &self.zones).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_asked_for_backwards() {
        let zone = Domain::parse("bl.example").unwrap();
        let asked = |address: &str| question(address.parse().unwrap(), &zone);
        assert_eq!(asked("192.0.2.99"), "99.2.0.192.bl.example.");
        assert_eq!(
            asked("2001:db8:1:2:3:4:567:89ab"),
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.bl.example."
        );
    }

    #[test]
    fn a_list_that_does_not_answer_us_lists_nobody() {
        assert!(
            is_listing(Ipv4Addr::new(127, 0, 0, 2)) && is_listing(Ipv4Addr::new(127, 0, 1, 255))
        );
        for answer in [[127, 255, 255, 254], [127, 255, 255, 252], [192, 0, 2, 1], [0, 0, 0, 0]] {
            assert!(!is_listing(answer.into()), "{answer:?}");
        }
    }
}
