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
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::time::{Instant, timeout};

/// Shortest and longest time for which an answer is taken without asking again. The longest is also that
/// after which a changed `/etc/hosts` or `resolv.conf` is seen.
const KEPT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// Longest wait for the answer that is to replace an expired one.
const PATIENCE_WITH_KNOWN: Duration = Duration::from_secs(2);
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
        ask_of(&self.system()?, host).await
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
        set(builder.options_mut());
        let resolver = builder.build()?;
        *system = Some(System { resolver: resolver.clone(), files });
        Ok(resolver)
    }
}

fn set(options: &mut ResolverOpts) {
    options.ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
    options.use_hosts_file = ResolveHosts::Always;
    // Answers are kept here.
    options.cache_size = 0;
}

/// Addresses of both families, and how long they may be kept.
async fn ask_of(
    resolver: &TokioResolver,
    host: &str,
) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
    let found = resolver.lookup_ip(host).await?;
    let kept = found.valid_until().saturating_duration_since(std::time::Instant::now());
    Ok((found.iter().collect(), kept))
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
mod tests;
