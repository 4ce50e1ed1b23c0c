//! The gateway's part of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use super::{Parser, octets};
use crate::address::{Address, Domain};
use crate::backend::{BackendName, Backends};
use crate::config::{
    Bind, InternalConfig, LimitsConfig, ListenerConfig, ListenerTls, LoginConfig, LookupConfig,
    MailLogConfig, MxConfig, MxKind, MxListener, QueueConfig, raw,
};

/// Connections that mail servers may have open to ask for addresses: a Postfix has one for each process.
const MAX_LOOKUP_CONNECTIONS: usize = 5_000;
/// Longest wait for the greeting. Senders wait for 5 minutes (RFC 5321 §4.5.3.2.1), but not all of them.
const MAX_GREET_DELAY: Duration = Duration::from_secs(30);

/// Where everybody expects SMTP.
const SMTP_PORT: u16 = 25;

impl Parser<'_, '_> {
    pub(super) fn mx(&mut self, mx: raw::Mx, host: &str, has_certificate: bool) -> MxConfig {
        for (key, timeout) in [
            ("mx.command_timeout", mx.command_timeout),
            ("mx.data_timeout", mx.data_timeout),
            ("mx.delivery_timeout", mx.delivery_timeout),
            ("mx.patience", mx.patience),
            ("mx.queue.expire", mx.queue.expire),
        ] {
            if timeout.is_zero() {
                self.problems.note(key, "must be longer than nothing");
            }
        }
        if mx.max_recipients < 100 {
            let message = "must be at least 100 (RFC 5321 §4.5.3.1.8)";
            self.problems.note("mx.max_recipients", message);
        }
        let hostname = self.hostname("mx.hostname", &mx.hostname, host);
        let listeners = [(MxKind::Smtp, mx.smtp), (MxKind::Lmtp, mx.lmtp)];
        let listeners = listeners.into_iter().filter_map(|(kind, mut listener)| {
            listener.proxy_trusted.extend(&mx.trusted_networks);
            let config =
                self.listener(kind.key(), listener, ListenerTls::StartTls, has_certificate)?;
            if kind == MxKind::Lmtp && config.binds.iter().any(|bind| bind.port() == SMTP_PORT) {
                let message = "must not be on port 25, where SMTP is expected (RFC 2033 §3)";
                self.problems.note("mx.lmtp.listen", message);
            }
            Some(MxListener { kind, config })
        });
        let mut listeners: Vec<MxListener> = listeners.collect();
        let (internal, rules) = self.internal(mx.internal, has_certificate);
        listeners.extend(internal.map(|config| MxListener { kind: MxKind::Internal, config }));
        MxConfig {
            authentication: self.authentication(mx.authentication, &hostname),
            trusted_networks: mx.trusted_networks,
            patience: mx.patience,
            flip_grace: mx.flip_grace,
            queue: self.queue(&mx.queue),
            mail_log: self.mail_log(mx.mail_log, &mx.mail_log_name),
            postmaster: self.optional("mx.postmaster", &mx.postmaster, Address::parse),
            lookup: self.lookup(mx.lookup, hostname.as_str(), &listeners),
            hostname,
            listeners,
            internal: rules,
            limits: self.limits(mx.limits),
            tls_fallback: mx.tls_fallback,
            max_message_size: mx.max_message_size.as_u64(),
            memory_per_message: octets(mx.memory_per_message),
            max_recipients: mx.max_recipients,
            command_timeout: mx.command_timeout,
            data_timeout: mx.data_timeout,
            delivery_timeout: mx.delivery_timeout,
            max_received: mx.max_received,
        }
    }

    fn mail_log(&mut self, file: PathBuf, name: &str) -> Option<MailLogConfig> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if name.is_empty() || !name.chars().all(is_plain) {
            let message = "must be a name of letters, digits, \"-\", \"_\", \".\" and \"/\"";
            self.problems.note("mx.mail_log_name", message);
        }
        if !file.as_os_str().is_empty() && !file.is_absolute() {
            self.problems.note("mx.mail_log", "must be an absolute path");
        }
        let name = name.into();
        (!file.as_os_str().is_empty()).then_some(MailLogConfig { file, name })
    }

    fn queue(&mut self, queue: &raw::Queue) -> QueueConfig {
        if queue.max_per_backend == 0 {
            self.problems.note("mx.queue.max_per_backend", "must be at least 1");
        }
        QueueConfig {
            expire: queue.expire,
            max_per_backend: queue.max_per_backend,
            max_per_second: queue.max_per_second,
            report_via: self.optional("mx.queue.report_via", &queue.report_via, BackendName::parse),
            reserve: queue.reserve.as_u64(),
            remember: queue.remember,
        }
    }

    fn internal(
        &mut self,
        internal: raw::Internal,
        has_certificate: bool,
    ) -> (Option<ListenerConfig>, InternalConfig) {
        const KEY: &str = "mx.internal";
        if !internal.listen.is_empty() && internal.trusted_networks.is_empty() {
            let message = "names no network, so nobody's mail would be taken";
            self.problems.note("mx.internal.trusted_networks", message);
        }
        let listener = raw::Listener {
            listen: internal.listen,
            tls: Some(internal.tls),
            max_connections: internal.max_connections,
            max_per_address: internal.max_per_address,
            ..raw::Listener::default()
        };
        let listener = self.listener(KEY, listener, ListenerTls::StartTls, has_certificate);
        let rules = InternalConfig {
            trusted_networks: internal.trusted_networks,
            outbound: self.optional("mx.internal.outbound", &internal.outbound, BackendName::parse),
        };
        (listener, rules)
    }

    fn limits(&mut self, limits: raw::Limits) -> LimitsConfig {
        if limits.refused_window.is_zero() {
            self.problems.note("mx.limits.refused_window", "must be longer than nothing");
        }
        if limits.greet_delay > MAX_GREET_DELAY {
            let message = format!("must be at most {}s", MAX_GREET_DELAY.as_secs());
            self.problems.note("mx.limits.greet_delay", message);
        }
        let zones = limits.dnsbl.iter().filter_map(|zone| {
            let zone = Domain::parse(zone).map_err(|error| format!("{zone:?}: {error}"));
            zone.map_err(|message| self.problems.note("mx.limits.dnsbl", message)).ok()
        });
        LimitsConfig {
            dnsbl: zones.collect(),
            connections_per_minute: limits.connections_per_minute,
            messages_per_minute: limits.messages_per_minute,
            refused_recipients: limits.refused_recipients,
            refused_window: limits.refused_window,
            greet_delay: limits.greet_delay,
            session_time: limits.session_time,
            exempt_networks: limits.exempt_networks,
        }
    }

    fn lookup(&mut self, lookup: raw::Lookup, host: &str, mx: &[MxListener]) -> LookupConfig {
        let socketmap = self.lookup_listener("mx.lookup", lookup.listen);
        let tcp_tables = lookup.tcp_table.into_iter().filter_map(|(name, listen)| {
            let key = format!("mx.lookup.tcp_table.{name}");
            let listener = self.lookup_listener(&key, vec![listen])?;
            match BackendName::parse(&name) {
                Ok(backend) => Some((backend, listener)),
                Err(error) => {
                    self.problems.note(&key, error);
                    None
                }
            }
        });
        let tcp_tables: Vec<_> = tcp_tables.collect();
        let socket = Some(lookup.socket).filter(|path| !path.as_os_str().is_empty());
        let is_on = socketmap.is_some() || socket.is_some() || !tcp_tables.is_empty();
        let is_asked_by_tcp = socketmap.is_some() || !tcp_tables.is_empty();
        if is_asked_by_tcp && lookup.trusted_networks.is_empty() {
            let message = "names no network, so nobody would be answered";
            self.problems.note("mx.lookup.trusted_networks", message);
        }
        if socket.as_ref().is_some_and(|path| !path.is_absolute()) {
            self.problems.note("mx.lookup.socket", "needs an absolute path");
        }
        let next_hop = Some(lookup.next_hop)
            .filter(|hop| !hop.is_empty())
            .or_else(|| internal_port(mx).map(|port| format!("smtp:[{host}]:{port}")));
        if is_on && next_hop.is_none() {
            let message =
                "is where mail servers hand on what is not theirs: set it, or mx.internal.listen";
            self.problems.note("mx.lookup.next_hop", message);
        }
        if next_hop.as_ref().is_some_and(|hop| !is_next_hop(hop)) {
            let message = "is a transport and its next hop, such as \"smtp:[192.0.2.1]:2526\"";
            self.problems.note("mx.lookup.next_hop", message);
        }
        LookupConfig {
            socketmap,
            socket,
            tcp_tables,
            trusted_networks: lookup.trusted_networks,
            next_hop: next_hop.unwrap_or_default().into(),
        }
    }

    fn lookup_listener(&mut self, key: &str, listen: Vec<String>) -> Option<ListenerConfig> {
        let listener = raw::Listener {
            listen,
            max_connections: MAX_LOOKUP_CONNECTIONS,
            max_per_address: MAX_LOOKUP_CONNECTIONS,
            ..raw::Listener::default()
        };
        self.listener(key, listener, ListenerTls::None, false)
    }

    /// Names that would lead nowhere, or be asked for by nobody.
    pub(super) fn backends_are_known(&mut self, mx: &MxConfig, backends: &Backends) {
        if let Some(outbound) = &mx.internal.outbound
            && backends.get(outbound).is_none_or(|backend| backend.mail.is_none())
        {
            let message = format!("there is no [backends.{outbound}.mail]");
            self.problems.note("mx.internal.outbound", message);
        }
        if let Some(name) = &mx.queue.report_via
            && backends.get(name).is_none_or(|backend| backend.mail.is_none())
        {
            let message = format!("there is no [backends.{name}.mail]");
            self.problems.note("mx.queue.report_via", message);
        }
        for (name, _) in &mx.lookup.tcp_tables {
            if backends.get(name).is_none() {
                let message = "is no backend: it has the name of the one that asks";
                self.problems.note(&format!("mx.lookup.tcp_table.{name}"), message);
            }
        }
    }

    /// The second would find the address in use, by ourselves.
    pub(super) fn nobody_listens_twice(&mut self, mx: &MxConfig, login: &LoginConfig) {
        let mail = mx.listeners.iter().map(|mx| (mx.kind.key().to_owned(), &mx.config));
        let tables = mx.lookup.tcp_tables.iter();
        let lookups = mx.lookup.socketmap.iter().map(|listener| ("mx.lookup".to_owned(), listener));
        let mail = mail.chain(lookups).chain(
            tables.map(|(name, listener)| (format!("mx.lookup.tcp_table.{name}"), listener)),
        );
        let logins = login
            .listeners
            .iter()
            .map(|login| (format!("login.{}", login.protocol), &login.listener));
        let web = login.web_listeners.iter().map(|web| (web.key.to_string(), &web.listener));
        let logins = logins.chain(web);
        // The services are processes of their own, but of one host.
        let mut seen = Vec::new();
        for (key, listener) in mail.chain(logins) {
            for bind in &listener.binds {
                let any_port = match bind {
                    Bind::Port(port) => *port == 0,
                    Bind::Address(address) => address.port() == 0,
                };
                if seen.contains(&bind) && !any_port {
                    let message = format!("another listener has {bind} already");
                    let part = if key.contains("tcp_table") { "" } else { ".listen" };
                    self.problems.note(&format!("{key}{part}"), message);
                }
                seen.push(bind);
            }
        }
    }
}

fn internal_port(listeners: &[MxListener]) -> Option<u16> {
    let internal = listeners.iter().find(|listener| listener.kind == MxKind::Internal)?;
    internal.config.binds.first().map(|bind| match bind {
        Bind::Port(port) => *port,
        Bind::Address(address) => address.port(),
    })
}

/// `transport:nexthop` in one word (Postfix's transport(5)).
fn is_next_hop(text: &str) -> bool {
    let is_word = text.bytes().all(|octet| octet.is_ascii_graphic());
    is_word && text.split_once(':').is_some_and(|(transport, _)| !transport.is_empty())
}
