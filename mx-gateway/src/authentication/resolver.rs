//! The one DNS resolver for all that is asked about senders.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::system_conf::read_system_conf;
use mail_auth::MessageAuthenticator;

/// Longest wait for one answer, and how often it is asked for.
const ANSWER: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Questions open at once on one connection. The library refuses more than 32 otherwise.
const MAX_OPEN: usize = 4096;
/// Answers kept.
const KEPT: u64 = 16_384;
/// Longest time for which an answer is kept, and that there is none.
const LONGEST_KEPT: Duration = Duration::from_hours(1);
const LONGEST_KEPT_NONE: Duration = Duration::from_mins(10);

/// A resolver that asks these servers, or the system's when there are none.
pub(super) fn build(servers: &[SocketAddr]) -> Result<MessageAuthenticator, NetError> {
    let (config, mut options) = if servers.is_empty() {
        read_system_conf().unwrap_or_else(|error| {
            tracing::warn!(%error, "no name server is known; nothing can be found out about senders");
            Default::default()
        })
    } else {
        (asking(servers), ResolverOpts::default())
    };
    options.timeout = ANSWER;
    options.attempts = ATTEMPTS;
    options.max_active_requests = MAX_OPEN;
    options.try_tcp_on_error = true;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = KEPT;
    options.positive_max_ttl = Some(LONGEST_KEPT);
    options.negative_max_ttl = Some(LONGEST_KEPT_NONE);
    MessageAuthenticator::new(config, options)
}

fn asking(servers: &[SocketAddr]) -> ResolverConfig {
    let servers = servers.iter().map(|server| {
        let [mut udp, mut tcp] = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
        (udp.port, tcp.port) = (server.port(), server.port());
        NameServerConfig::new(server.ip(), true, vec![udp, tcp])
    });
    ResolverConfig::from_name_servers(servers.collect())
}
