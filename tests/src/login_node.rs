//! A login proxy within the test's own process, on an owner map that the test writes to directly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use login_proxy::login::{Context, Shared, serve};
use login_proxy::offer::{CurrentOffer, Offer};
use login_proxy::protocol;
use shared::address::Domain;
use shared::backend::Backend;
use shared::backend::LoginProtocol;
use shared::config::{
    Advertised, Bind, ListenerConfig, ListenerTls, LoginConfig, NamesConfig, ProxyMode,
};
use shared::lifecycle::Lifecycle;
use shared::listener::Listener;
use shared::seats::Seats;
use shared::web::WebConfig;
use tokio_rustls::rustls::ServerConfig;

use crate::conversation::Conversation;
use crate::login_backend::PASSWORD;
use crate::patience::{PATIENCE, until};
pub use crate::rows::DOMAIN;
use crate::rows::Rows;

/// What is set before a node starts.
#[derive(Debug)]
pub struct Settings {
    /// What is spoken.
    pub protocol: LoginProtocol,
    /// What is advertised before login; `None`: what nearly every server has.
    pub offer: Option<Offer>,
    /// How logins lead to accounts.
    pub names: NamesConfig,
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
            protocol: LoginProtocol::Imap,
            offer: None,
            names: NamesConfig::default(),
            rules: LoginConfig {
                hostname: Domain::localhost(),
                listeners: Vec::new(),
                web_listeners: Vec::new(),
                web: WebConfig::new(Domain::localhost()),
                advertised: Advertised::default(),
                login_timeout: PATIENCE,
                max_failures: 10,
                failure_delay: Duration::ZERO,
                guesses_per_address: 100,
                guess_window: Duration::from_mins(10),
                attach_timeout: PATIENCE,
                // Tests of refusals do not wait.
                hold_wait: Duration::ZERO,
                max_held_per_account: 20,
                max_held: 5000,
                idle_timeout: PATIENCE,
                kick_grace: Duration::from_secs(2),
                data_grace: PATIENCE,
                allow_plaintext: false,
                trusted_networks: Vec::new(),
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
    rows: Rows,
    /// Places of logins that wait for the end of a hold.
    pub held: Arc<Seats<Box<str>>>,
    /// Its tasks.
    pub lifecycle: Lifecycle,
    /// What is spoken.
    protocol: LoginProtocol,
    /// Where it listens.
    pub address: SocketAddr,
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
        let Settings { protocol, offer, names, rules, tls, implicit_tls, proxied, max_connections } =
            settings;
        let spoken = protocol;
        let protocol = protocol::of(protocol);
        let rows = Rows::new(backends);
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
        let shared = Shared::new(&rules);
        let held = Arc::clone(&shared.held);
        let cx = Arc::new(Context {
            ownership: Arc::clone(&rows.ownership),
            shared,
            lifecycle: lifecycle.clone(),
            rules,
            names,
            tls,
            implicit_tls,
            protocol,
            offer: Arc::new(CurrentOffer::from_pointee(offer.unwrap_or_else(protocol.modest))),
        });
        listener.serve(&lifecycle, protocol.full, move |accepted| serve(Arc::clone(&cx), accepted));
        Ok(Self { rows, held, lifecycle, protocol: spoken, address })
    }

    /// A client's connection, greeted.
    ///
    /// # Errors
    ///
    /// It is not greeted.
    pub async fn connect(&self) -> Result<Conversation> {
        let mut client = Conversation::connect(self.address).await?;
        client
            .expect(match self.protocol {
                LoginProtocol::Pop3 => "+OK ",
                _ => "* OK [CAPABILITY ",
            })
            .await?;
        Ok(client)
    }

    /// Waits until so many logins wait for the end of a hold.
    ///
    /// # Errors
    ///
    /// They never are so many.
    pub async fn until_held(&self, count: usize) -> Result<()> {
        until("logins that wait", || (self.held.taken() == count).then_some(())).await
    }

    /// A client that is logged in as an account of [`DOMAIN`]; IMAP: under the tag `in`.
    ///
    /// # Errors
    ///
    /// The login is refused.
    pub async fn log_in(&self, local: &str) -> Result<Conversation> {
        let mut client = self.connect().await?;
        if self.protocol == LoginProtocol::Pop3 {
            client.say(&format!("USER {local}@{DOMAIN}")).await?;
            client.expect("+OK").await?;
            client.say(&format!("PASS {PASSWORD}")).await?;
            client.expect("+OK Logged in.").await?;
            return Ok(client);
        }
        client.say(&format!("in LOGIN {local}@{DOMAIN} {PASSWORD}")).await?;
        client.expect("in OK").await?;
        Ok(client)
    }
}

impl std::ops::Deref for LoginNode {
    type Target = Rows;

    fn deref(&self) -> &Rows {
        &self.rows
    }
}
