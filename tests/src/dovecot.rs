//! A private Dovecot: IMAP and LMTP on loopback, Maildirs, users from a file; all that a mail provider's
//! has, if a test wants it ([`Full`]).
//!
//! Dovecot 2.3 (Debian 12, Ubuntu 22.04 and 24.04) and 2.4 (Debian 13 and later) want different words for
//! the same; [`dialect`] knows them. It runs as root as usual or wholly as an ordinary user; mail belongs
//! to an ordinary user either way, since Dovecot refuses root's.

mod dialect;
mod full;
mod gate;
mod token;

use std::fmt::Write;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};

use crate::children::{Child, last_lines};
use crate::conversation::Conversation;
use crate::patience::until;
use crate::place::Place;
use crate::ports::{self, ATTEMPTS};
use crate::test_ca::Identity;
use crate::user::User;

pub use full::{Full, TOKEN_KEY};
pub use gate::HeldLogin;
pub use token::token;

/// What it writes.
const LOG: &str = "dovecot.log";
/// Its configuration.
const CONFIGURATION: &str = "dovecot.conf";
/// Lines of a start that failed because a port was taken meanwhile.
const TAKEN: &str = "Address already in use";
/// What to do where there is no Dovecot.
const INSTALL: &str = "no Dovecot was found: run `tests/deps.sh test`, or install dovecot-core, dovecot-imapd \
                       and dovecot-lmtpd";

/// What a server is to be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Accounts and their passwords.
    pub users: Vec<(String, String)>,
    /// With this certificate it offers STARTTLS, and implicit TLS on a port of its own.
    pub tls: Option<Identity>,
    /// Logins may be held back ([`Dovecot::hold_login`]).
    pub gate: bool,
    /// It speaks the other protocols, too, knows more mechanisms and lets master users in.
    pub full: Option<Full>,
}

impl Options {
    /// Accounts that all have the password `secret`.
    pub fn with_users<'a>(accounts: impl IntoIterator<Item = &'a str>) -> Self {
        let users = accounts.into_iter().map(|name| (name.to_owned(), "secret".to_owned()));
        Self { users: users.collect(), ..Self::default() }
    }
}

/// A private Dovecot server, ended with this value.
#[derive(Debug)]
pub struct Dovecot {
    name: String,
    options: Options,
    users: Mutex<Vec<(String, String)>>,
    addresses: Addresses,
    // Before the place: it has to end first.
    child: Option<Child>,
    place: Place,
    mail_user: User,
}

#[derive(Debug, Clone, Copy)]
struct Addresses {
    imap: SocketAddr,
    imaps: SocketAddr,
    lmtp: SocketAddr,
    pop3: SocketAddr,
    managesieve: SocketAddr,
    submission: SocketAddr,
    sasl: SocketAddr,
}

impl Dovecot {
    /// Starts a server. `name` is in its greeting.
    ///
    /// # Errors
    ///
    /// There is no Dovecot, or it does not start; the end of its log is in the message.
    pub async fn start(name: &str, options: Options) -> Result<Self> {
        let mail_user = User::unprivileged()?;
        let place = Place::new()?;
        place.directory("mail", 0o755, Some(mail_user))?;
        place.directory("run", 0o755, None)?;
        if options.gate {
            gate::set_up(&place)?;
        }
        if let Some(full) = &options.full {
            full.set_up(&place)?;
        }
        let mut server = Self {
            name: name.to_owned(),
            users: Mutex::new(options.users.clone()),
            options,
            addresses: Addresses::reserve()?,
            child: None,
            place,
            mail_user,
        };
        server.write_users()?;
        for _ in 0..ATTEMPTS {
            match server.resume().await {
                Err(error) if server.log().contains(TAKEN) => {
                    tracing::debug!(%error, "ports were taken meanwhile");
                    server.child = None;
                    fs::write(server.place.join(LOG), "")?;
                    server.addresses = Addresses::reserve()?;
                }
                other => return other.map(|()| server),
            }
        }
        bail!("Dovecot found its ports taken {ATTEMPTS} times");
    }

    /// Starts it again after [`Self::stop`], with the same mail on the same ports.
    ///
    /// # Errors
    ///
    /// It does not answer; the end of its log is in the message.
    pub async fn resume(&mut self) -> Result<()> {
        let program = program()?;
        let text = dialect::configuration(self, dialect::version(&program)?)?;
        let file = self.place.write(CONFIGURATION, &text, 0o644, None)?;
        let command = [&*program, "-F", "-c", &*file.to_string_lossy()];
        // The log goes on from an earlier start, whose lines do not count.
        let before = self.log().len();
        let child = Child::start(&[], &command, self.place.path(), LOG)?;
        let started = until("Dovecot to start", || {
            let log = self.log();
            let log = log.get(before..).unwrap_or_default();
            let listens = || TcpStream::connect(self.addresses.imap).is_ok();
            let is_over = || log.contains("Fatal:") || !child.is_running();
            ((log.contains("starting up for") && listens()) || is_over()).then_some(())
        });
        started.await?;
        ensure!(child.is_running(), "Dovecot ended:\n{}", last_lines(&self.log()));
        self.child = Some(child);
        let mut greeted = Conversation::connect(self.addresses.imap).await?;
        let greeting = greeted.expect("* OK").await?;
        // Another server may have got the port.
        ensure!(greeting.contains(&self.name), "{TAKEN}: {greeting}");
        Conversation::connect(self.addresses.lmtp).await?.expect("220").await?;
        Ok(())
    }

    /// Stops it. Sessions end.
    ///
    /// # Errors
    ///
    /// It does not end well.
    pub fn stop(&mut self) -> Result<()> {
        self.child.take().map_or(Ok(()), Child::stop)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it speaks IMAP, with STARTTLS if it has a certificate.
    pub fn imap(&self) -> SocketAddr {
        self.addresses.imap
    }

    /// Where it speaks IMAP with implicit TLS; only with a certificate.
    pub fn imaps(&self) -> SocketAddr {
        self.addresses.imaps
    }

    /// Where it speaks LMTP.
    pub fn lmtp(&self) -> SocketAddr {
        self.addresses.lmtp
    }

    /// Whether it has all that [`Full`] is about.
    pub fn is_full(&self) -> bool {
        self.options.full.is_some()
    }

    /// Where it speaks POP3, if it is [`Full`].
    pub fn pop3(&self) -> SocketAddr {
        self.addresses.pop3
    }

    /// Where it speaks ManageSieve, if it is [`Full`].
    pub fn managesieve(&self) -> SocketAddr {
        self.addresses.managesieve
    }

    /// Where it takes mail from its users, if it is [`Full`].
    pub fn submission(&self) -> SocketAddr {
        self.addresses.submission
    }

    /// Where a Postfix may ask about passwords, if it is [`Full`].
    pub fn sasl(&self) -> SocketAddr {
        self.addresses.sasl
    }

    /// An account's Sieve script, if it has put one of this name.
    pub fn script(&self, account: &str, name: &str) -> Option<String> {
        let home = self.place.join("mail").join(account);
        fs::read_to_string(home.join("sieve").join(format!("{name}.sieve"))).ok()
    }

    /// Adds an account, or changes its password.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn add_user(&self, account: &str, password: &str) -> Result<()> {
        self.remove_user(account)?;
        self.lock().push((account.to_owned(), password.to_owned()));
        self.write_users()
    }

    /// Removes an account; its mail stays.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn remove_user(&self, account: &str) -> Result<()> {
        self.lock().retain(|(name, _)| name != account);
        self.write_users()
    }

    /// The messages in an account's inbox, as files.
    pub fn inbox(&self, account: &str) -> Vec<PathBuf> {
        inbox(&self.place.join("mail").join(account).join("Maildir"))
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.join(LOG)).unwrap_or_default()
    }

    /// Waits until a line of the log has all of `words`, and returns it.
    ///
    /// # Errors
    ///
    /// It does not come.
    pub async fn logged(&self, words: &[&str]) -> Result<String> {
        let find = || {
            self.log()
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(str::to_owned)
        };
        until("a line in Dovecot's log", find).await.with_context(|| {
            format!("{words:?} is not in Dovecot's log:\n{}", last_lines(&self.log()))
        })
    }

    /// Whose sessions are open, an entry each, of whatever protocol.
    ///
    /// # Errors
    ///
    /// `doveadm` does not answer.
    pub fn sessions(&self) -> Result<Vec<String>> {
        let printed = output(
            Command::new("doveadm")
                .arg("-c")
                .arg(self.place.join(CONFIGURATION))
                .args(["who", "-1"]),
        )?;
        let lines = printed.lines().skip(1);
        Ok(lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Holds back the verdict on every login of `account` that begins from now on. Needs
    /// [`Options::gate`].
    ///
    /// # Errors
    ///
    /// The server has no gate.
    pub fn hold_login(&self, account: &str) -> Result<HeldLogin> {
        ensure!(self.options.gate, "{} was started without a gate", self.name);
        let has_gate = dialect::has_gate(dialect::version(&program()?)?);
        ensure!(has_gate, "logins can be held back with Dovecot 2.3 only, and this is a later one");
        HeldLogin::new(&self.place, account)
    }

    /// Its own directory, for messages to people.
    pub fn directory(&self) -> &Path {
        self.place.path()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, String)>> {
        self.users.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Dovecot reads the file again when its time or size changes.
    fn write_users(&self) -> Result<()> {
        let mut text = String::new();
        let User { uid, gid } = self.mail_user;
        for (account, password) in &*self.lock() {
            let home = self.place.join("mail").join(account);
            writeln!(text, "{account}:{{PLAIN}}{password}:{uid}:{gid}::{}::", home.display())?;
        }
        self.place.write("users", &text, 0o644, None).map(drop)
    }
}

impl Addresses {
    fn reserve() -> Result<Self> {
        let [imap, imaps, lmtp, pop3, managesieve, submission, sasl] = ports::reserve()?;
        Ok(Self { imap, imaps, lmtp, pop3, managesieve, submission, sasl })
    }
}

/// Messages in a Maildir's `new` and `cur`, by name. Those still in `tmp` do not count.
pub fn inbox(maildir: &Path) -> Vec<PathBuf> {
    let files = |name: &str| fs::read_dir(maildir.join(name)).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        files("new").chain(files("cur")).map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Where Dovecot is: `sbin` is not in everybody's path.
fn program() -> Result<String> {
    ["/usr/sbin/dovecot", "/usr/local/sbin/dovecot"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .map(str::to_owned)
        .context(INSTALL)
}

/// Runs a program and returns what it prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
