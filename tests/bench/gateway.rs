//! Our gateway as a child process between senders and two owners.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use tests::children::last_lines;
use tokio::time::sleep;

use crate::proxy::Service;
use crate::smtp::Sender;

/// Connections to one owner: as many as there are sessions.
const CONNECTIONS: usize = 5_000;
/// Questions whether it takes mail, 20 ms apart.
const MOST_ATTEMPTS: usize = 1_000;

/// A gateway.
pub struct Gateway<'a> {
    /// The ports of old and new.
    pub owners: [u16; 2],
    /// The table's URL.
    pub table: &'a str,
    /// The name server that tells it about senders; none: it finds out nothing about them.
    pub dns: Option<SocketAddr>,
}

impl Gateway<'_> {
    /// Starts it in the directory `state`, after which it is named, and waits until it takes mail.
    pub async fn start(&self, state: &Path) -> anyhow::Result<Service> {
        let port = tests::ports::reserve_one()?.port();
        let [old, new] = self.owners;
        let authentication = match self.dns {
            Some(dns) => format!("[mx.authentication]\ndns = [\"{dns}\"]\n"),
            None => "[mx.authentication]\nenabled = false\n".to_owned(),
        };
        let backend = |(name, port)| {
            format!(
                "[backends.{name}.mail]\nhost = \"127.0.0.1\"\nport = {port}\n\
                 max_connections = {CONNECTIONS}\n"
            )
        };
        let backends: String = [("old", old), ("new", new)].map(backend).concat();
        let config = format!(
            "[node]\nname = {state:?}\nstate_dir = {state:?}\n[ownership]\nurl = {table:?}\n{backends}\
             [mx]\nhostname = \"mx.example.org\"\n\
             [mx.smtp]\nlisten = [\"127.0.0.1:{port}\"]\ntls = \"none\"\nmax_per_address = 20000\n\
             {authentication}[log]\nlevel = \"warn\"\n",
            table = self.table,
        );
        let service = Service::start("mx-gateway", &config, state, port).await?;
        // It listens before it has read the table, and refuses until then.
        let mut attempts = 0;
        while let Err(error) = takes_mail(port).await {
            attempts += 1;
            ensure!(
                attempts < MOST_ATTEMPTS,
                "mx-gateway refuses: {error:#}\n{}",
                log(state, port)
            );
            sleep(Duration::from_millis(20)).await;
        }
        Ok(service)
    }
}

async fn takes_mail(port: u16) -> anyhow::Result<()> {
    Sender::connect(port).await?.address("user0@example.org").await
}

/// The end of its log.
fn log(state: &Path, port: u16) -> String {
    let log = std::fs::read_to_string(state.join(format!("mx-gateway-{port}.log")));
    last_lines(&log.unwrap_or_default())
}
