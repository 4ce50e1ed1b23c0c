//! A Mailshift node as operators run it: both services as processes of their own, with a `mailshift.toml`.

mod backends;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::children::Child;
use crate::imap::{Imap, Response};
use crate::patience::until;
use crate::place::Place;
use crate::smtp::{self, Reply, Smtp};
use crate::test_ca::{Identity, TestCa};
use crate::user::{User, as_root};

pub use backends::{by_lmtp, cyrus, dovecot, login, postfix};

/// The name that clients know the login proxy by.
pub const IMAP_HOST: &str = "imap.example.org";
/// The name that senders know the gateway by.
pub const MX_HOST: &str = "mx.example.org";

const SERVICES: [&str; 2] = ["mx-gateway", "login-proxy"];

/// What a node is to be like. All texts are TOML.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `node.name`.
    pub name: String,
    /// `ownership.url`.
    pub url: String,
    /// The sections of the backends ([`dovecot`], [`postfix`]).
    pub backends: String,
    /// More keys of `[tls]`.
    pub tls: String,
    /// More keys of `[ownership]`.
    pub ownership: String,
    /// More keys of `[mx]`.
    pub mx: String,
    /// Where the gateway takes mail from mail systems, and where they ask it for addresses.
    pub internal: Option<[SocketAddr; 2]>,
    /// More keys of `[login]`.
    pub login: String,
    /// The keys of `[login.web]`; with them it listens for HTTPS.
    pub web: Option<String>,
    /// Listen for POP3, submission and ManageSieve, too.
    pub every_protocol: bool,
    /// Where the services listen, if not on ports that the system chooses: SMTP, IMAP, IMAP with TLS.
    pub listen: Option<[SocketAddr; 3]>,
    /// Whom the services run as, if not this user. Wants root, or `sudo -n`.
    pub run_as: Option<User>,
}

/// The login proxy's listeners in the order of the configuration, which is that of its log; the first two
/// are there always.
const LISTENERS: [&str; 7] =
    ["imap", "imaps", "pop3", "pop3s", "submission", "submissions", "managesieve"];
const ALWAYS: usize = 2;

/// Both services of one node. They stop with this value.
#[derive(Debug)]
pub struct Node {
    /// The gateway, while it runs.
    pub gateway: Option<Child>,
    /// The login proxy, while it runs.
    pub proxy: Option<Child>,
    smtp: SocketAddr,
    logins: Vec<SocketAddr>,
    ca_file: PathBuf,
    every_protocol: bool,
    serves_web: bool,
    /// Listeners of the gateway.
    mail_listeners: usize,
    run_as: Option<User>,
    place: Place,
}

impl Node {
    /// Starts both services and waits until they serve.
    ///
    /// # Errors
    ///
    /// One does not; the end of its log is in the message.
    pub async fn start(options: &Options, ca: &TestCa) -> Result<Self> {
        let place = Place::new()?;
        let identities = [ca.issue(IMAP_HOST)?, ca.issue(MX_HOST)?, ca.issue("localhost")?];
        place.directory("state", 0o700, options.run_as)?;
        place.write("mailshift.toml", &configuration(options, &identities, &place), 0o644, None)?;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut node = Self {
            gateway: None,
            proxy: None,
            smtp: nowhere,
            logins: Vec::new(),
            every_protocol: options.every_protocol,
            serves_web: options.web.is_some(),
            mail_listeners: if options.internal.is_some() { 3 } else { 1 },
            ca_file: ca.file(),
            run_as: options.run_as,
            place,
        };
        node.resume().await?;
        Ok(node)
    }

    /// Starts both services again after [`Self::crash`], from the same state. They may listen elsewhere.
    ///
    /// # Errors
    ///
    /// One does not serve; the end of its log is in the message.
    pub async fn resume(&mut self) -> Result<()> {
        for service in SERVICES {
            // What an earlier process said does not count.
            let _ = std::fs::remove_file(self.place.join(&log_of(service)));
        }
        // Both at once: each waits for the table.
        let (gateway, proxy) = (self.launch(SERVICES[0])?, self.launch(SERVICES[1])?);
        self.smtp = first(&serving(&gateway, self.mail_listeners).await?)?;
        let logins = listeners(self.every_protocol).len() + usize::from(self.serves_web);
        self.logins = serving(&proxy, logins).await?;
        (self.gateway, self.proxy) = (Some(gateway), Some(proxy));
        Ok(())
    }

    fn launch(&self, service: &str) -> Result<Child> {
        let mut program = binary(service)?;
        let (mut sudo, mut before): (&[&str], _) = (&[], Vec::new());
        if let Some(user) = self.run_as {
            // Where it was built may be closed to others.
            let copy = self.place.join(service);
            std::fs::copy(&program, &copy)?;
            program = copy;
            sudo = as_root("running the services as another user")?;
            before = user.before_command();
        }
        let file = self.configuration();
        let command = [&*program.to_string_lossy(), "run", "--config", &file.to_string_lossy()];
        let command: Vec<&str> = before.iter().map(String::as_str).chain(command).collect();
        Child::start(sudo, &command, self.place.path(), &log_of(service))
    }

    /// Its configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.place.join("mailshift.toml")
    }

    /// The directory with that, the logs and the state.
    pub fn directory(&self) -> &Path {
        self.place.path()
    }

    /// The authority of its certificates.
    pub fn ca_file(&self) -> PathBuf {
        self.ca_file.clone()
    }

    /// Where the gateway speaks SMTP.
    pub fn smtp(&self) -> SocketAddr {
        self.smtp
    }

    /// Where the login proxy speaks IMAP, with STARTTLS.
    pub fn imap(&self) -> SocketAddr {
        self.listener("imap")
    }

    /// Where it speaks IMAP with implicit TLS.
    pub fn imaps(&self) -> SocketAddr {
        self.listener("imaps")
    }

    /// Where the login proxy listens by the name of a listener, such as `pop3s`.
    ///
    /// # Panics
    ///
    /// There is no such listener.
    pub fn listener(&self, name: &str) -> SocketAddr {
        let position = LISTENERS.iter().position(|listener| *listener == name);
        let address = position.and_then(|position| self.logins.get(position));
        *address.unwrap_or_else(|| panic!("the login proxy has no listener {name}"))
    }

    /// The URL of a path by the login proxy's HTTPS; its certificate has that name.
    ///
    /// # Panics
    ///
    /// It was started without `web`.
    pub fn url(&self, path: &str) -> String {
        assert!(self.serves_web, "the login proxy does not listen for HTTPS");
        let port = self.logins.last().map_or(0, SocketAddr::port);
        format!("https://localhost:{port}{path}")
    }

    /// Sends a message with this subject to one recipient through the gateway.
    ///
    /// # Errors
    ///
    /// The gateway closes or is silent. A refusal is a [`Reply`].
    pub async fn send(&self, to: &str, subject: &str) -> Result<Reply> {
        smtp::send(self.smtp, "sender@example.com", &[to], &smtp::message(subject)).await
    }

    /// Asks the gateway about a recipient, without a message.
    ///
    /// # Errors
    ///
    /// The gateway closes or is silent.
    pub async fn recipient(&self, to: &str) -> Result<Reply> {
        let mut smtp = Smtp::connect(self.smtp).await?;
        smtp.command("EHLO client.example.com").await?;
        smtp.command("MAIL FROM:<sender@example.com>").await?;
        smtp.command(&format!("RCPT TO:<{to}>")).await
    }

    /// A client's connection to the login proxy, with TLS.
    ///
    /// # Errors
    ///
    /// Nobody is there, or does not greet.
    pub async fn connect(&self) -> Result<Imap> {
        let tls = crate::test_ca::connector_trusting(&self.ca_file)?;
        Imap::connect_tls(self.imaps(), &tls, IMAP_HOST).await
    }

    /// Logs in through the login proxy; the password is that of all test accounts.
    ///
    /// # Errors
    ///
    /// The proxy closes or is silent. A refusal is a [`Response`].
    pub async fn login(&self, user: &str) -> Result<(Imap, Response)> {
        let mut imap = self.connect().await?;
        let response = imap.login(user, "secret").await?;
        Ok((imap, response))
    }

    /// Logs in, which must succeed.
    ///
    /// # Errors
    ///
    /// Also a refusal.
    pub async fn log_in(&self, user: &str) -> Result<Imap> {
        let (imap, response) = self.login(user).await?;
        ensure!(response.is_ok(), "login refused: {}", response.tagged);
        Ok(imap)
    }

    /// The backend to which a login of `user` is joined now.
    ///
    /// # Errors
    ///
    /// The login is refused.
    pub async fn owner_seen_by_login(&self, user: &str) -> Result<String> {
        self.log_in(user).await?.server_name().await
    }

    /// Ends both services as a crash would.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn crash(&mut self) -> Result<()> {
        self.gateway.take().map_or(Ok(()), Child::kill)?;
        self.proxy.take().map_or(Ok(()), Child::kill)
    }

    /// Stops both services, as SIGTERM does, which must end well.
    ///
    /// # Errors
    ///
    /// One does not.
    pub fn stop(mut self) -> Result<()> {
        self.gateway.take().map_or(Ok(()), Child::stop)?;
        self.proxy.take().map_or(Ok(()), Child::stop)
    }
}

fn listeners(every_protocol: bool) -> &'static [&'static str] {
    let count = if every_protocol { LISTENERS.len() } else { ALWAYS };
    LISTENERS.get(..count).unwrap_or_default()
}

fn configuration(options: &Options, identities: &[Identity], place: &Place) -> String {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let [smtp, first @ ..] = options.listen.unwrap_or([anywhere; 3]);
    let logins: String = listeners(options.every_protocol)
        .iter()
        .enumerate()
        .map(|(position, name)| (name, first.get(position).unwrap_or(&anywhere)))
        .map(|(name, address)| format!("{name} = {{ listen = [\"{address}\"] }}\n"))
        .collect();
    let internal = options.internal.map(|[mail, lookup]| {
        format!(
            "internal = {{ listen = [\"{mail}\"] }}\n\
             lookup = {{ listen = [\"{lookup}\"], next_hop = \"smtp:[{}]:{}\" }}\n",
            mail.ip(),
            mail.port()
        )
    });
    let https = options
        .web
        .as_ref()
        .map(|_| "https = { listen = [\"127.0.0.1:0\"] }\n")
        .unwrap_or_default();
    let web = options.web.as_ref().map(|web| format!("[login.web]\n{web}\n"));
    let certificates: Vec<String> = identities
        .iter()
        .map(|Identity { cert_file, key_file }| {
            format!("{{ cert_file = {cert_file:?}, key_file = {key_file:?} }}")
        })
        .collect();
    format!(
        "[node]
name = \"{name}\"
state_dir = \"{state}\"
shutdown_grace = \"5s\"
[ownership]
url = \"{url}\"
{ownership}
[names]
default_domain = \"example.org\"
[tls]
certificates = [{certificates}]
{tls}
{backends}
[mx]
hostname = \"{MX_HOST}\"
smtp = {{ listen = [\"{smtp}\"] }}
{authentication}
{internal}{mx}
[login]
hostname = \"{IMAP_HOST}\"
{logins}{https}failure_delay = \"0s\"
{login}
{web}
[log]
format = \"json\"
",
        name = options.name,
        state = place.join("state").display(),
        url = options.url,
        ownership = options.ownership,
        certificates = certificates.join(", "),
        tls = options.tls,
        backends = options.backends,
        // It would ask name servers that are not the test's own.
        authentication = if options.mx.contains("authentication") {
            ""
        } else {
            "authentication.enabled = false"
        },
        internal = internal.unwrap_or_default(),
        mx = options.mx,
        login = options.login,
        web = web.unwrap_or_default(),
    )
}

/// Waits until a service says that it serves, and returns the addresses of its listeners, so many, in the
/// order of the configuration.
async fn serving(service: &Child, count: usize) -> Result<Vec<SocketAddr>> {
    service.logged(&["\"ready\""]).await?;
    // It may be ready before it has heard from every backend, which its listeners wait for.
    let found = until("listeners", || {
        let addresses = listening(&service.log());
        (addresses.len() == count || !service.is_running()).then_some(addresses)
    });
    let addresses = found.await.with_context(|| service.end_of_log())?;
    ensure!(addresses.len() == count, "it ended: {}", service.end_of_log());
    Ok(addresses)
}

fn listening(log: &str) -> Vec<SocketAddr> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|line| line["message"] == "listening")
        .filter_map(|line| line["addresses"].as_str()?.trim_matches(['[', ']']).parse().ok())
        .collect()
}

fn log_of(service: &str) -> String {
    format!("{service}.log")
}

fn first(addresses: &[SocketAddr]) -> Result<SocketAddr> {
    addresses.first().copied().context("a listener was asked for")
}

/// A program of this workspace, built beside the one that runs.
///
/// # Errors
///
/// It is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests are one directory below the programs.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name))
        .find(|path| Path::is_file(path))
        .with_context(|| format!("{name} is not built: run `cargo build --workspace --bins` first"))
}
