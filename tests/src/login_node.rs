//! A login proxy within the test's own process, on an owner map that the test writes to directly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use login_proxy::app::IMAP;
use login_proxy::login::{Context, serve};
use shared::address::Domain;
use shared::backend::Backend;
use shared::config::{Bind, ListenerConfig, ListenerTls, LoginConfig, ProxyMode};
use shared::lifecycle::Lifecycle;
use shared::listener::Listener;
use shared::ownership::map::{AccountRow, AliasRow};
use shared::ownership::{Change, DomainRow, Epoch, Ownership};
use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;

use crate::conversation::Conversation;
use crate::patience::PATIENCE;

/// The domain of every account.
pub const DOMAIN: &str = "example.org";

/// What is set before a node starts.
#[derive(Debug)]
pub struct Settings {
    /// Limits and delays.
    pub rules: LoginConfig,
    /// Certificates for STARTTLS, or for TLS from the first octet.
    pub tls: Option<Arc<ServerConfig>>,
    /// TLS from the first octet.
    pub implicit_tls: bool,
    /// Clients come with a PROXY header, so that they are not from this machine.
    pub proxied: bool,
    /// Connections allowed at once.
    pub max_connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rules: LoginConfig {
                hostname: Domain::localhost(),
                imap: Vec::new(),
                imap_capabilities: "IMAP4rev1 SASL-IR LITERAL- ID ENABLE".into(),
                login_timeout: PATIENCE,
                max_failures: 10,
                failure_delay: Duration::ZERO,
                attach_timeout: PATIENCE,
                idle_timeout: PATIENCE,
                kick_grace: Duration::from_secs(2),
                allow_plaintext: false,
            },
            tls: None,
            implicit_tls: false,
            proxied: false,
            max_connections: 1000,
        }
    }
}

/// A running login proxy.
#[derive(Debug)]
pub struct LoginNode {
    /// Its owner map, lease and registry.
    pub ownership: Arc<Ownership>,
    /// Its tasks.
    pub lifecycle: Lifecycle,
    /// Where it listens.
    pub address: SocketAddr,
    epoch: AtomicU64,
}

impl LoginNode {
    /// Starts one with these backends, [`DOMAIN`] and no accounts.
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
        let Settings { rules, tls, implicit_tls, proxied, max_connections } = settings;
        let ownership = Ownership::new(backends.into_iter().collect());
        ownership.lease().grant(&ownership.lease().request(), Duration::from_hours(1));
        let lifecycle = Lifecycle::default();
        let listener = Listener::bind(&ListenerConfig {
            binds: vec![Bind::Address(SocketAddr::from(([127, 0, 0, 1], 0)))],
            tls: ListenerTls::None,
            proxy: if proxied { ProxyMode::Required } else { ProxyMode::Off },
            proxy_trusted: vec!["127.0.0.0/8".parse()?],
            max_connections,
            max_per_address: max_connections,
        })?;
        let address = listener.addresses().first().copied().context("it is bound nowhere")?;
        let cx = Arc::new(Context {
            ownership: Arc::clone(&ownership),
            lifecycle: lifecycle.clone(),
            rules,
            tls,
            implicit_tls,
            protocol: &IMAP,
        });
        listener.serve(&lifecycle, IMAP.full, move |accepted| serve(Arc::clone(&cx), accepted));
        let node = Self { ownership, lifecycle, address, epoch: AtomicU64::new(0) };
        node.set_domain(None);
        Ok(node)
    }

    /// What one committed change does: the map first, then the mark.
    pub fn change(&self, change: &Change) -> Epoch {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed) + 1;
        self.ownership.apply(&[(epoch, change.clone())]);
        epoch
    }

    /// Gives an account of [`DOMAIN`] to `owner`.
    pub fn set_owner(&self, local: &str, owner: &str) -> Epoch {
        self.set(local, AccountRow { owner: owner.into(), held: false, login: true })
    }

    /// Writes an account's row.
    pub fn set(&self, local: &str, row: AccountRow) -> Epoch {
        self.change(&Change::Account(format!("{local}@{DOMAIN}").into(), Some(row)))
    }

    /// Makes `name` another name of an account.
    pub fn set_alias(&self, name: &str, local: &str) -> Epoch {
        let row = AliasRow { account: format!("{local}@{DOMAIN}").into(), login: true };
        self.change(&Change::Alias(name.into(), Some(row)))
    }

    /// Sets where accounts without a row live.
    pub fn set_domain(&self, default_owner: Option<&str>) -> Epoch {
        let row = DomainRow { default_owner: default_owner.map(Box::from), ..DomainRow::default() };
        self.change(&Change::Domain(DOMAIN.into(), Some(row)))
    }

    /// A client's connection, greeted.
    ///
    /// # Errors
    ///
    /// It is not greeted.
    pub async fn connect(&self) -> Result<Conversation> {
        let mut client = Conversation::connect(self.address).await?;
        client.expect("* OK [CAPABILITY ").await?;
        Ok(client)
    }

    /// A client that is logged in as an account of [`DOMAIN`] under the tag `in`.
    ///
    /// # Errors
    ///
    /// The login is refused.
    pub async fn log_in(&self, local: &str) -> Result<Conversation> {
        let mut client = self.connect().await?;
        client.say(&format!("in LOGIN {local}@{DOMAIN} {}", crate::imap_backend::PASSWORD)).await?;
        client.expect("in OK").await?;
        Ok(client)
    }

    /// Waits until a change has been applied: nothing that depends on an older row is left.
    ///
    /// # Errors
    ///
    /// Something stays.
    pub async fn applied(&self) -> Result<()> {
        let registry = self.ownership.registry();
        let drained = async {
            loop {
                let drained = registry.drained();
                tokio::pin!(drained);
                if registry.busy().is_empty() {
                    return;
                }
                drained.await;
            }
        };
        timeout(PATIENCE, drained)
            .await
            .with_context(|| format!("not drained: {:?}", registry.busy()))
    }
}
