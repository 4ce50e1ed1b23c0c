//! Names to addresses, as the system's `resolv.conf` and `/etc/hosts` have them, kept by their TTL (NET-8).
//!
//! An answer that has expired stays in use while no other is to be had: mail must not stop when DNS does.
//! Only a server that says the name does not exist ends it. While one connection asks anew for a name that
//! is known, the others take what is known.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::time::{Instant, timeout};

/// Shortest and longest time for which an answer is taken without asking again. The longest is also that
/// after which a changed `/etc/hosts` or `resolv.conf` is seen.
const KEPT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// Longest wait for the answer that is to replace an expired one.
const PATIENCE_WITH_KNOWN: Duration = Duration::from_secs(1);
/// How long an expired answer is used before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long a failure stands where nothing is known, so that many logins ask once.
const FAILURE_STANDS: Duration = Duration::from_secs(1);
/// Addresses of one name that are used.
const MAX_ADDRESSES: usize = 16;
/// Names that are kept. Only those of the configuration are asked for.
const MAX_NAMES: usize = 4096;
/// What the answers depend on besides name servers.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Addresses of a name; at least one.
pub type Addresses = Arc<[IpAddr]>;

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no such name.
    #[error("there is no such name")]
    NoSuchName,
    /// Nobody knows.
    #[error("{0}")]
    Failed(Arc<str>),
}

/// Asks for names and keeps the answers.
#[derive(Debug, Default)]
pub struct Resolver {
    system: Mutex<Option<System>>,
    names: Mutex<HashMap<Box<str>, Arc<Known>>>,
}

/// What is asked, and what its files were when they were read.
struct System {
    resolver: TokioResolver,
    files: [Option<SystemTime>; 2],
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Known {
    answer: Mutex<Option<Answer>>,
    /// Held by the one who asks.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Answer {
    said: Result<Addresses, ResolveError>,
    until: Instant,
    /// It has expired, and a newer one could not be had.
    is_old: bool,
}

impl Resolver {
    /// The addresses of `host`, which may be one itself.
    ///
    /// # Errors
    ///
    /// A [`ResolveError`].
    pub async fn addresses(&self, host: &str) -> Result<Addresses, ResolveError> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok([address].into());
        }
        self.known(host).addresses(host, async || self.ask(host).await).await
    }

    fn known(&self, host: &str) -> Arc<Known> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(host) {
            return Arc::clone(known);
        }
        let known = Arc::<Known>::default();
        if names.len() < MAX_NAMES {
            names.insert(host.into(), Arc::clone(&known));
        }
        known
    }

    /// Asks `/etc/hosts` and the name servers.
    async fn ask(&self, host: &str) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
        let resolver = self.system()?;
        let found = resolver.lookup_ip(host).await?;
        let kept = found.valid_until().saturating_duration_since(std::time::Instant::now());
        Ok((found.iter().collect(), kept))
    }

    /// The system's resolver, set up anew when its files have changed.
    fn system(&self) -> Result<TokioResolver, ResolveError> {
        let changed = |path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let files = FILES.map(changed);
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(System { resolver, .. }) = system.as_ref().filter(|s| s.files == files) {
            return Ok(resolver.clone());
        }
        // Without name servers there is still /etc/hosts.
        let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
            tracing::warn!(%error, "no name server is known; only /etc/hosts is asked");
            let nobody = ResolverConfig::default();
            TokioResolver::builder_with_config(nobody, TokioRuntimeProvider::default())
        });
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        options.use_hosts_file = ResolveHosts::Always;
        // Answers are kept here.
        options.cache_size = 0;
        let resolver = builder.build()?;
        *system = Some(System { resolver: resolver.clone(), files });
        Ok(resolver)
    }
}

impl Known {
    /// What is known, or what `ask` says.
    async fn addresses<F>(&self, host: &str, ask: F) -> Result<Addresses, ResolveError>
    where
        F: AsyncFnOnce() -> Result<(Vec<IpAddr>, Duration), ResolveError>,
    {
        let known = self.answer();
        let old = match known {
            Some(answer) if Instant::now() < answer.until => return answer.said,
            known => known.and_then(|answer| answer.said.ok()),
        };
        let Some(old) = old else {
            let _asking = self.asking.lock().await;
            // Somebody else may have asked meanwhile.
            if let Some(answer) = self.answer().filter(|answer| Instant::now() < answer.until) {
                return answer.said;
            }
            let asked = ask().await;
            return self.note(host, asked);
        };
        let Ok(_asking) = self.asking.try_lock() else { return Ok(old) };
        // Whoever comes while this is asked takes the old answer; also when the asking is broken off.
        let asked = timeout(PATIENCE_WITH_KNOWN, ask()).await;
        self.note(host, asked.unwrap_or_else(|_| Err(ResolveError::Failed("no answer".into()))))
    }

    fn answer(&self) -> Option<Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps an answer. A failure does not replace addresses.
    fn note(
        &self,
        host: &str,
        asked: Result<(Vec<IpAddr>, Duration), ResolveError>,
    ) -> Result<Addresses, ResolveError> {
        let mut known = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let old = known.take();
        let was_old = old.as_ref().is_some_and(|old| old.is_old);
        let old = old.and_then(|old| old.said.ok());
        let (said, kept, is_old) = match (asked, old) {
            (Ok((mut addresses, kept)), _) if !addresses.is_empty() => {
                addresses.truncate(MAX_ADDRESSES);
                if was_old {
                    tracing::info!(host, "the name is resolved again");
                }
                (Ok(addresses.into()), kept.clamp(KEPT.0, KEPT.1), false)
            }
            (Err(ResolveError::Failed(error)), Some(old)) => {
                if !was_old {
                    tracing::warn!(host, %error, "the name cannot be resolved now; its last addresses stay in use");
                }
                (Ok(old), ASK_AGAIN, true)
            }
            (Err(error), _) => (Err(error), FAILURE_STANDS, false),
            (Ok(_), _) => (Err(ResolveError::NoSuchName), FAILURE_STANDS, false),
        };
        let until = Instant::now().checked_add(kept).unwrap_or_else(Instant::now);
        *known = Some(Answer { said: said.clone(), until, is_old });
        said
    }
}

impl From<NetError> for ResolveError {
    fn from(error: NetError) -> Self {
        if error.is_nx_domain() { Self::NoSuchName } else { Self::Failed(error.to_string().into()) }
    }
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("System").field("files", &self.files).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOST: &str = "mail.example.org";

    type Asked = Result<(Vec<IpAddr>, Duration), ResolveError>;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn found(last: u8) -> Asked {
        Ok((vec![address(last)], Duration::from_secs(60)))
    }

    fn failed() -> Asked {
        Err(ResolveError::Failed("nobody answers".into()))
    }

    /// Lets the answer expire.
    fn expire(known: &Known) {
        known.answer.lock().unwrap().as_mut().unwrap().until = Instant::now();
    }

    #[tokio::test]
    async fn an_answer_is_kept_and_not_asked_for_again() {
        let known = Known::default();
        let said = known.addresses(HOST, async || found(1)).await.unwrap();
        assert_eq!(*said, [address(1)]);
        let kept = known.addresses(HOST, async || panic!("asked again")).await;
        assert_eq!(*kept.unwrap(), [address(1)]);
        expire(&known);
        let newer = known.addresses(HOST, async || found(2)).await.unwrap();
        assert_eq!(*newer, [address(2)]);
    }

    #[tokio::test]
    async fn an_expired_answer_stays_in_use_while_nobody_answers() {
        let known = Known::default();
        known.addresses(HOST, async || found(1)).await.unwrap();
        for _ in 0..3 {
            expire(&known);
            let kept = known.addresses(HOST, async || failed()).await.unwrap();
            assert_eq!(*kept, [address(1)]);
        }
        // A resolver that hangs holds up one connection, for a moment.
        expire(&known);
        let hanging = known.addresses(HOST, async || std::future::pending::<Asked>().await);
        tokio::pin!(hanging);
        let other = async { known.addresses(HOST, async || panic!("asked as well")).await };
        tokio::select! {
            biased;
            _ = &mut hanging => panic!("it has not hung"),
            kept = other => assert_eq!(*kept.unwrap(), [address(1)]),
        }
        assert_eq!(*hanging.await.unwrap(), [address(1)]);
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_any_more_is_not_used() {
        let known = Known::default();
        known.addresses(HOST, async || found(1)).await.unwrap();
        expire(&known);
        let gone = known.addresses(HOST, async || Err(ResolveError::NoSuchName)).await;
        assert_eq!(gone, Err(ResolveError::NoSuchName));
    }

    #[tokio::test]
    async fn a_failure_is_not_asked_for_by_everybody() {
        let known = Known::default();
        assert!(known.addresses(HOST, async || failed()).await.is_err());
        assert!(known.addresses(HOST, async || panic!("asked again")).await.is_err());
        expire(&known);
        assert!(known.addresses(HOST, async || found(1)).await.is_ok());
    }

    #[tokio::test]
    async fn names_and_addresses_kept_are_bounded() {
        let resolver = Resolver::default();
        for number in 0..MAX_NAMES + 10 {
            resolver.known(&format!("{number}.example.org"));
        }
        assert_eq!(resolver.names.lock().unwrap().len(), MAX_NAMES);
        let many = (0..100).map(address).collect();
        let known = Known::default();
        let said = known.addresses(HOST, async || Ok((many, Duration::MAX))).await.unwrap();
        assert_eq!(said.len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn an_address_is_its_own_and_localhost_needs_no_name_server() {
        let resolver = Resolver::default();
        let ip = "2001:db8::1".parse::<IpAddr>().unwrap();
        assert_eq!(*resolver.addresses("2001:db8::1").await.unwrap(), [ip]);
        let local = resolver.addresses("localhost").await.unwrap();
        assert!(local.iter().all(IpAddr::is_loopback), "{local:?}");
        let none = resolver.addresses("no-such-host.invalid").await;
        assert_eq!(none, Err(ResolveError::NoSuchName));
    }
}
