//! A gateway within the test's own process, on an owner map that the test writes to directly.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mx_gateway::body::Memory;
use mx_gateway::delivery::Pool;
use mx_gateway::mail_log::MailLog;
use mx_gateway::serve::{Context, serve};
use shared::address::Domain;
use shared::backend::Backend;
use shared::config::{Bind, ListenerConfig, ListenerTls, MxConfig, ProxyMode};
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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: MxConfig {
                hostname: Domain::parse("mx.example.org").expect("a domain"),
                postmaster: None,
                listeners: Vec::new(),
                max_message_size: 50 * 1024 * 1024,
                memory_per_message: 256 * 1024,
                max_recipients: 1000,
                command_timeout: PATIENCE,
                data_timeout: PATIENCE,
                delivery_timeout: PATIENCE,
                max_received: 100,
                mail_log: None,
            },
            tls: None,
            implicit_tls: false,
            proxied: false,
            ask_timeout: PATIENCE,
        }
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct GatewayNode {
    /// Its table.
    pub rows: Rows,
    /// Its tasks.
    pub lifecycle: Lifecycle,
    /// Where it listens.
    pub address: SocketAddr,
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
        let Settings { rules, tls, implicit_tls, proxied, ask_timeout } = settings;
        let (table, lifecycle, place) = (Rows::new(backends), Lifecycle::default(), Place::new()?);
        let listener = Listener::bind(&ListenerConfig {
            binds: vec![Bind::Address(SocketAddr::from(([127, 0, 0, 1], 0)))],
            tls: ListenerTls::None,
            proxy: if proxied { ProxyMode::Required } else { ProxyMode::Off },
            proxy_trusted: vec!["127.0.0.0/8".parse()?],
            max_connections: 1000,
            max_per_address: 1000,
        })?;
        let address = listener.addresses().first().copied().context("it is bound nowhere")?;
        let mail_log = MailLog::start(rules.mail_log.as_ref(), rules.hostname.as_str());
        let cx = Arc::new(Context {
            ownership: Arc::clone(&table.ownership),
            lifecycle: lifecycle.clone(),
            rules,
            tls,
            implicit_tls,
            ask_timeout,
            pool: Arc::new(Pool::default()),
            memory: Memory::new(64 * 1024 * 1024),
            temporary: place.path().to_owned(),
            mail_log: Arc::new(mail_log),
        });
        listener.serve(&lifecycle, mx_gateway::app::full, move |accepted| {
            serve(Arc::clone(&cx), accepted)
        });
        Ok(Self { rows: table, lifecycle, address, place })
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
