//! Our own services as child processes on a table of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use shared::backend::LoginProtocol;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::tls::{HOST, Tls};

/// A service that runs until this value is dropped.
pub struct Service {
    child: Child,
    pub port: u16,
}

impl Service {
    /// Starts `binary` (beside this program) with `config`, in which `port` listens, and waits for it.
    pub async fn start(
        binary: &str,
        config: &str,
        directory: &Path,
        port: u16,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let file = directory.join(format!("{binary}-{port}.toml"));
        std::fs::write(&file, config)?;
        let log = std::fs::File::create(directory.join(format!("{binary}-{port}.log")))?;
        let child = Command::new(beside_us(binary)?)
            .args(["run".as_ref(), "--config".as_ref(), file.as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {binary}; build it with --release first"))?;
        let mut service = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Some(status) = service.child.try_wait()? {
                let log = std::fs::read_to_string(directory.join(format!("{binary}-{port}.log")))?;
                bail!("{binary} ended with {status}:\n{log}");
            }
            if Instant::now() > deadline {
                bail!("{binary} does not listen on {port}");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(service)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A login proxy that speaks one protocol.
pub struct LoginNode<'a> {
    pub protocol: LoginProtocol,
    /// Names and ports.
    pub backends: &'a [(&'a str, u16)],
    pub backend_tls: bool,
}

impl LoginNode<'_> {
    /// Starts it on `table`, in the directory `state`.
    pub async fn start(&self, state: &Path, table: &str, tls: &Tls) -> anyhow::Result<Service> {
        let port = tests::ports::reserve_one()?.port();
        // What clients connect to, what backends are reached by, and TLS there.
        let (listener, backend, backend_tls) = match self.protocol {
            LoginProtocol::Imap => ("imaps", "imap", "implicit"),
            LoginProtocol::Pop3 => ("pop3s", "pop3", "implicit"),
            LoginProtocol::Submission => ("submissions", "submission", "implicit"),
            LoginProtocol::ManageSieve => ("managesieve", "managesieve", "starttls"),
        };
        let leg = if self.backend_tls {
            let ca = &tls.ca_file;
            format!("tls = {backend_tls:?}\nserver_name = \"{HOST}\"\nca_file = {ca:?}")
        } else {
            "tls = \"plain\"".to_owned()
        };
        let backends: String = self
            .backends
            .iter()
            .map(|(name, port)| {
                format!("[backends.{name}.{backend}]\nhost = \"127.0.0.1\"\nport = {port}\n{leg}\n")
            })
            .collect();
        let config = format!(
            "[node]\nname = {state:?}\nstate_dir = {state:?}\n[ownership]\nurl = {table:?}\n\
             [tls]\ncertificates = [{{ cert_file = {cert:?}, key_file = {key:?} }}]\n{backends}\
             [login]\nhostname = \"{HOST}\"\n[login.{listener}]\nlisten = [\"127.0.0.1:{port}\"]\n\
             max_per_address = 20000\n[log]\nlevel = \"warn\"\n",
            cert = tls.cert_file,
            key = tls.key_file,
        );
        let service = Service::start("login-proxy", &config, state, port).await?;
        // It listens before it has read the table, and refuses until then.
        let mut attempts = 0;
        while let Err(error) = Client::log_in(self.protocol, port, tls, "user0@example.org").await {
            attempts += 1;
            ensure!(attempts < 200, "login-proxy refuses: {error:#}");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(service)
    }
}

/// A login proxy that routes HTTP to one backend.
pub async fn web(state: &Path, table: &str, tls: &Tls, backend: u16) -> anyhow::Result<Service> {
    let port = tests::ports::reserve_one()?.port();
    let config = format!(
        "[node]\nname = {state:?}\nstate_dir = {state:?}\n[ownership]\nurl = {table:?}\n\
         [tls]\ncertificates = [{{ cert_file = {cert:?}, key_file = {key:?} }}]\n\
         [backends.old.http]\nhost = \"127.0.0.1\"\nport = {backend}\n\
         [login]\nhostname = \"{HOST}\"\n[login.https]\nlisten = [\"127.0.0.1:{port}\"]\n\
         max_per_address = 20000\n[login.web]\nkeepalive = \"1h\"\n[[login.web.rules]]\npath = \"/**\"\n\
         account = [\"basic\"]\n[log]\nlevel = \"warn\"\n",
        cert = tls.cert_file,
        key = tls.key_file,
    );
    let service = Service::start("login-proxy", &config, state, port).await?;
    // It listens before it has read the table, and refuses until then.
    let mut attempts = 0;
    while let Err(error) = crate::web::ready(port, tls).await {
        attempts += 1;
        ensure!(attempts < 200, "login-proxy refuses: {error:#}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(service)
}

fn beside_us(binary: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("no directory")?.join(binary))
}
