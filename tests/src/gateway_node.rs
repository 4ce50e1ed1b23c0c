//! A gateway within the test's own process, on an owner map that the test writes to directly.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use mx_gateway::authentication::Authenticator;
use mx_gateway::body::Memory;
use mx_gateway::delivery::{Offers, Pool};
use mx_gateway::dnsbl::Dnsbl;
use mx_gateway::edge::Edge;
use mx_gateway::fingerprint::{self, Fingerprints};
use mx_gateway::mail_log::MailLog;
use mx_gateway::queue::Queue;
use mx_gateway::serve::{Context, serve};
use mx_gateway::spool::{Spool, Stored};
use shared::address::Domain;
use shared::backend::{Backend, Backends};
use shared::config::{
    Bind, InternalConfig, LimitsConfig, ListenerConfig, ListenerTls, LookupConfig, MxConfig,
    MxKind, ProxyMode, QueueConfig,
};
use shared::lifecycle::Lifecycle;
use shared::listener::Listener;
use tokio_rustls::rustls::ServerConfig;

use crate::patience::{PATIENCE, until};
use crate::place::Place;
use crate::rows::Rows;
use crate::smtp::Smtp;

/// What is set before a node starts.
#[derive(Debug)]
pub struct Settings {
    /// What is spoken, and with whom.
    pub kind: MxKind,
    /// Limits and names.
    pub rules: MxConfig,
    /// Certificates for STARTTLS, or for TLS from the first octet.
    pub tls: Option<Arc<ServerConfig>>,
    /// TLS from the first octet.
    pub implicit_tls: bool,
    /// Clients come with a PROXY header.
    pub proxied: bool,
    /// Longest wait for an owner's answer to a recipient.
    pub ask_timeout: Duration,
    /// Connections open at once from one address.
    pub max_per_address: usize,
    /// Finds out about senders.
    pub authenticator: Option<Arc<Authenticator>>,
    /// Lists of addresses.
    pub lists: Dnsbl,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kind: MxKind::Smtp,
            rules: MxConfig {
                hostname: Domain::parse("mx.example.org").expect("a domain"),
                postmaster: None,
                listeners: Vec::new(),
                trusted_networks: Vec::new(),
                internal: InternalConfig {
                    trusted_networks: vec!["127.0.0.0/8".parse().expect("a network")],
                    outbound: None,
                },
                lookup: LookupConfig::default(),
                limits: LimitsConfig {
                    refused_window: Duration::from_mins(10),
                    ..LimitsConfig::default()
                },
                tls_fallback: false,
                max_message_size: 50 * 1024 * 1024,
                memory_per_message: 256 * 1024,
                max_recipients: 1000,
                command_timeout: PATIENCE,
                data_timeout: PATIENCE,
                delivery_timeout: PATIENCE,
                max_received: 100,
                patience: PATIENCE,
                flip_grace: Duration::from_hours(24),
                queue: QueueConfig {
                    expire: Duration::from_hours(24),
                    max_per_backend: 20,
                    max_per_second: 0,
                    report_via: None,
                    reserve: 0,
                    remember: Duration::from_hours(48),
                },
                authentication: None,
                mail_log: None,
            },
            tls: None,
            implicit_tls: false,
            proxied: false,
            ask_timeout: PATIENCE,
            max_per_address: 1000,
            authenticator: None,
            lists: Dnsbl::default(),
        }
    }
}

/// What a node keeps on disk, and the messages that were there.
type Opened = ((Spool, Arc<Fingerprints>), Vec<Stored>);

/// A running gateway.
#[derive(Debug)]
pub struct GatewayNode {
    /// Its table.
    pub rows: Rows,
    /// Its tasks.
    pub lifecycle: Lifecycle,
    /// What its backends were heard to offer.
    pub offers: Arc<Offers>,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it keeps.
    pub queue: Option<Arc<Queue>>,
    /// What it knows of messages that may come again.
    pub fingerprints: Arc<Fingerprints>,
    place: Place,
}

impl GatewayNode {
    /// Starts one with these backends.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn start(backends: impl IntoIterator<Item = Backend>) -> Result<Self> {
        Self::start_with(backends, Settings::default())
    }

    /// Starts one with settings of its own.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub fn start_with(
        backends: impl IntoIterator<Item = Backend>,
        settings: Settings,
    ) -> Result<Self> {
        Self::start_on(backends, settings, None)
    }

    /// Starts one that keeps in a spool what cannot be delivered at once.
    ///
    /// # Errors
    ///
    /// As [`Self::start`], or the spool cannot be opened.
    pub async fn start_with_spool(
        backends: impl IntoIterator<Item = Backend>,
        settings: Settings,
        directory: &Path,
    ) -> Result<Self> {
        let (spool, stored) = Spool::open(directory, settings.rules.queue.reserve).await?;
        let file = directory.join(fingerprint::FILE);
        let prints = Fingerprints::open(&file, settings.rules.queue.remember).await;
        Self::start_on(backends, settings, Some(((spool, prints), stored)))
    }

    fn start_on(
        backends: impl IntoIterator<Item = Backend>,
        settings: Settings,
        opened: Option<Opened>,
    ) -> Result<Self> {
        let Settings { kind, rules, tls, implicit_tls, proxied, ask_timeout, .. } = settings;
        let Settings { max_per_address, authenticator, lists, .. } = settings;
        let backends: Vec<Backend> = backends.into_iter().collect();
        let known: Backends = backends.iter().cloned().collect();
        let offers = Offers::new(&known, rules.max_message_size);
        let (table, lifecycle, place) = (Rows::new(backends), Lifecycle::default(), Place::new()?);
        let listener = Listener::bind(&ListenerConfig {
            binds: vec![Bind::Address(SocketAddr::from(([127, 0, 0, 1], 0)))],
            tls: ListenerTls::None,
            proxy: if proxied { ProxyMode::Required } else { ProxyMode::Off },
            proxy_trusted: vec!["127.0.0.0/8".parse()?],
            max_connections: 1000,
            max_per_address,
        })?;
        let address = listener.addresses().first().copied().context("it is bound nowhere")?;
        let fingerprints = match &opened {
            Some(((_, prints), _)) => Arc::clone(prints),
            None => Fingerprints::in_memory(rules.queue.remember),
        };
        let queue = opened.map(|(spool, stored)| {
            let rules = mx_gateway::app::rules(&rules);
            Queue::new(spool, &stored, rules, &table.ownership, &lifecycle)
        });
        let mail_log = MailLog::start(rules.mail_log.as_ref(), rules.hostname.as_str());
        let cx = Arc::new(Context {
            edge: Arc::new(Edge::new(rules.limits.clone(), Instant::now())),
            lists,
            kind,
            ownership: Arc::clone(&table.ownership),
            lifecycle: lifecycle.clone(),
            rules,
            tls,
            implicit_tls,
            ask_timeout,
            pool: Arc::new(Pool::default()),
            queue: queue.clone(),
            fingerprints: Arc::clone(&fingerprints),
            offers: Arc::clone(&offers),
            grace: Arc::default(),
            memory: Memory::new(64 * 1024 * 1024),
            temporary: place.path().to_owned(),
            authenticator,
            mail_log: Arc::new(mail_log),
        });
        if let Some(queue) = queue.clone() {
            lifecycle.spawn_chore(
                "queue",
                queue.run(Arc::new(ArcSwap::new(Arc::clone(&cx))), Vec::new()),
            );
        }
        listener.serve(&lifecycle, mx_gateway::app::full, move |accepted| {
            serve(Arc::clone(&cx), accepted)
        });
        Ok(Self { rows: table, lifecycle, offers, address, place, queue, fingerprints })
    }

    /// A client's connection, greeted.
    ///
    /// # Errors
    ///
    /// It is not greeted.
    pub async fn connect(&self) -> Result<Smtp> {
        Smtp::connect(self.address).await
    }

    /// Files without a name that this process has open in the node's directory: their octets.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn temporary_files(&self) -> Result<Vec<u64>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let path = entry?.path();
            let target = std::fs::read_link(&path).unwrap_or_else(|_| PathBuf::new());
            if target.starts_with(self.place.path()) {
                files.push(std::fs::metadata(&path)?.len());
            }
        }
        Ok(files)
    }

    /// Waits until no temporary file is open any more.
    ///
    /// # Errors
    ///
    /// One stays.
    pub async fn until_files_gone(&self) -> Result<()> {
        until("temporary files gone", || {
            self.temporary_files().is_ok_and(|files| files.is_empty()).then_some(())
        })
        .await
    }

    /// Files with a name in the node's directory.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn named_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(self.place.path())?.count())
    }

    /// Ends it as SIGTERM does; returns how many tasks did not end.
    pub async fn shut_down(&self, grace: Duration) -> usize {
        self.lifecycle.shut_down(grace).await
    }
}

impl Deref for GatewayNode {
    type Target = Rows;

    fn deref(&self) -> &Rows {
        &self.rows
    }
}
