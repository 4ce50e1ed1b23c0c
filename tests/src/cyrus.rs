//! A private Cyrus, the other kind of mail server: IMAP, POP3, ManageSieve, LMTP and HTTP (JMAP, CalDAV,
//! CardDAV) on loopback.
//!
//! Its packages exclude Dovecot's, so `tests/deps.sh` unpacks them under `target/` and they run from there,
//! with the libraries that came along. It never is root: it becomes an ordinary user by itself.
//! Debian builds it without WebSocket, and its JMAP says then that there is no push either (204).

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::children::Child;
use crate::conversation::Conversation;
use crate::imap::Imap;
use crate::patience::until;
use crate::place::Place;
use crate::ports::{self, ATTEMPTS};
use crate::user::{User, is_root};

/// Where `tests/deps.sh` puts it.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/cyrus");
/// What it writes where there is no syslog: next to nothing.
const LOG: &str = "console";
/// Directories that it wants to be there.
const DIRECTORIES: [&str; 7] =
    ["conf", "conf/db", "conf/socket", "conf/proc", "conf/lock", "spool", "sieve"];

/// A private Cyrus server, ended with this value.
#[derive(Debug)]
pub struct Cyrus {
    addresses: Addresses,
    // Before the place: it has to end first.
    child: Option<Child>,
    place: Place,
}

#[derive(Debug, Clone, Copy)]
struct Addresses {
    imap: SocketAddr,
    pop3: SocketAddr,
    managesieve: SocketAddr,
    lmtp: SocketAddr,
    http: SocketAddr,
}

impl Cyrus {
    /// Starts a server whose accounts all have the password `secret`, and each its mailboxes, a calendar and
    /// an address book.
    ///
    /// # Errors
    ///
    /// There is no Cyrus, or it does not start.
    pub async fn start(accounts: &[&str]) -> Result<Self> {
        let place = Place::new()?;
        let user = User::unprivileged()?;
        for directory in DIRECTORIES {
            place.directory(directory, 0o755, Some(user))?;
        }
        copy(&place)?;
        let mut server = Self { addresses: Addresses::reserve()?, child: None, place };
        for account in accounts {
            server.add_user(account)?;
        }
        user.give(&server.place.join("sasldb"))?;
        for _ in 0..ATTEMPTS {
            match server.resume().await {
                Ok(()) => return server.with_mailboxes(accounts).await,
                // It says nowhere why: mostly a port was taken meanwhile.
                Err(error) => tracing::debug!(%error, "Cyrus does not start"),
            }
            server.child = None;
            server.addresses = Addresses::reserve()?;
        }
        bail!("Cyrus does not start: {}", server.console())
    }

    async fn resume(&mut self) -> Result<()> {
        self.place.write("imapd.conf", &self.settings()?, 0o644, None)?;
        self.place.write("cyrus.conf", &self.services(), 0o644, None)?;
        let path = |name: &str| self.place.join(name).to_string_lossy().into_owned();
        let (settings, services) = (path("imapd.conf"), path("cyrus.conf"));
        let (master, pid) = (path("usr/lib/cyrus/bin/master"), path("conf/pid"));
        let libraries = self.libraries()?;
        let command =
            ["env", &libraries, &master, "-C", &settings, "-M", &services, "-p", &pid, "-D"];
        let child = Child::start(&[], &command, self.place.path(), LOG)?;
        let imap = self.addresses.imap;
        let listens = until("Cyrus to listen", || {
            let listens = std::net::TcpStream::connect(imap).is_ok();
            (listens || !child.is_running()).then_some(())
        });
        listens.await?;
        ensure!(child.is_running(), "Cyrus ended: {}", child.end_of_log());
        let greeting = Conversation::connect(imap).await?.expect("* OK").await?;
        ensure!(greeting.contains("Cyrus"), "this is another server: {greeting}");
        Conversation::connect(self.addresses.lmtp).await?.expect("220").await?;
        self.child = Some(child);
        Ok(())
    }

    /// Where it speaks IMAP, without TLS.
    pub fn imap(&self) -> SocketAddr {
        self.addresses.imap
    }

    /// Where it speaks POP3.
    pub fn pop3(&self) -> SocketAddr {
        self.addresses.pop3
    }

    /// Where it speaks ManageSieve.
    pub fn managesieve(&self) -> SocketAddr {
        self.addresses.managesieve
    }

    /// Where it speaks HTTP/1.1 (and h2c), without TLS: JMAP below `/jmap/`, DAV below `/dav/`.
    pub fn http(&self) -> SocketAddr {
        self.addresses.http
    }

    /// The address of something it has.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addresses.http)
    }

    /// Where it speaks LMTP, to everybody.
    pub fn lmtp(&self) -> SocketAddr {
        self.addresses.lmtp
    }

    /// Without its mailboxes a person gets errors from HTTP, and IMAP alone makes them.
    async fn with_mailboxes(self, accounts: &[&str]) -> Result<Self> {
        for account in accounts {
            Imap::connect(self.addresses.imap).await?.log_in(account, "secret").await?;
        }
        Ok(self)
    }

    fn console(&self) -> String {
        fs::read_to_string(self.place.join(LOG)).unwrap_or_default()
    }

    fn add_user(&self, account: &str) -> Result<()> {
        let (name, realm) = account.split_once('@').context("an account has a domain")?;
        let own = self.place.join("usr/sbin/saslpasswd2");
        let program = if own.exists() { own } else { PathBuf::from("/usr/sbin/saslpasswd2") };
        let mut child = Command::new("env")
            .arg(self.libraries()?)
            .arg(program)
            .args(["-p", "-c", "-f", "sasldb", "-u", realm, name])
            .current_dir(self.place.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("a pipe was asked for")?.write_all(b"secret")?;
        let output = child.wait_with_output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "saslpasswd2: {complaint}");
        Ok(())
    }

    /// The libraries that came along, as a variable for `env`.
    fn libraries(&self) -> Result<String> {
        let mut found = Vec::new();
        for parent in ["usr/lib", "lib"] {
            for entry in fs::read_dir(self.place.join(parent)).into_iter().flatten() {
                found.push(entry?.path().to_string_lossy().into_owned());
            }
        }
        Ok(format!("LD_LIBRARY_PATH={}", found.join(":")))
    }

    fn settings(&self) -> Result<String> {
        let place = self.place.path().display();
        let (user, group) = if is_root() {
            ("nobody".to_owned(), id(&["-gn", "nobody"])?)
        } else {
            (id(&["-un"])?, id(&["-gn"])?)
        };
        Ok(format!(
            "configdirectory: {place}/conf
defaultpartition: default
partition-default: {place}/spool
sievedir: {place}/sieve
proc_path: {place}/conf/proc
mboxname_lockpath: {place}/conf/lock
servername: cyrus.example.org
cyrus_user: {user}
cyrus_group: {group}
allowplaintext: yes
sasl_mech_list: PLAIN LOGIN SCRAM-SHA-256 SCRAM-SHA-1
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {place}/sasldb
virtdomains: userid
# Not the accounts' domain, which would be cut off their names.
defaultdomain: internal
unixhierarchysep: yes
altnamespace: yes
autocreate_quota: 0
autocreate_post: yes
httpmodules: caldav carddav jmap webdav
# JMAP wants it.
conversations: yes
"
        ))
    }

    fn services(&self) -> String {
        let place = self.place.path().display();
        let Addresses { imap, pop3, managesieve, lmtp, http } = self.addresses;
        let service = |name: &str, program: &str, address: SocketAddr| {
            format!(
                "  {name} cmd=\"{place}/usr/lib/cyrus/bin/{program} -C {place}/imapd.conf{more}\" \
                 listen=\"{address}\" prefork=0\n",
                more = if name == "lmtp" { " -a" } else { "" },
            )
        };
        format!(
            "START {{
  recover cmd=\"{place}/usr/lib/cyrus/bin/ctl_cyrusdb -C {place}/imapd.conf -r\"
}}
SERVICES {{
{}{}{}{}{}}}
EVENTS {{
}}
",
            service("imap", "imapd", imap),
            service("pop3", "pop3d", pop3),
            service("sieve", "timsieved", managesieve),
            service("lmtp", "lmtpd", lmtp),
            service("http", "httpd", http),
        )
    }
}

impl Addresses {
    fn reserve() -> Result<Self> {
        let [imap, pop3, managesieve, lmtp, http] = ports::reserve()?;
        Ok(Self { imap, pop3, managesieve, lmtp, http })
    }
}

/// To where every user may read, which the build's directory may not be.
fn copy(place: &Place) -> Result<()> {
    let unpacked = Path::new(UNPACKED);
    ensure!(unpacked.exists(), "no Cyrus was found: run `tests/deps.sh test`");
    place.directory("usr", 0o755, None)?;
    for (from, to) in [("lib", "."), ("usr/lib", "usr"), ("usr/sbin", "usr")] {
        let from = unpacked.join(from);
        if !from.exists() {
            continue;
        }
        let status =
            Command::new("cp").arg("-R").arg(&from).arg(place.join(to)).status().context("cp")?;
        ensure!(status.success(), "{} cannot be copied", from.display());
    }
    Ok(())
}

fn id(arguments: &[&str]) -> Result<String> {
    let output = Command::new("id").args(arguments).output()?;
    ensure!(output.status.success(), "id: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
