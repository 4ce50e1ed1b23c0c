//! A private Postfix, as an old mail server is: SMTP on loopback, XCLIENT and XFORWARD from loopback, virtual
//! mailboxes.
//!
//! It has its own configuration, queue and data directories. Its master wants root, so the tests run as
//! root or with `sudo -n`.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use crate::children::{Child, last_lines};
use crate::conversation::Conversation;
use crate::dovecot::inbox;
use crate::patience::until;
use crate::place::Place;
use crate::ports::{self, ATTEMPTS};
use crate::user::{User, as_root, is_root};

/// What Postfix writes.
const LOG: &str = "maillog";
/// What the master writes when it is not Postfix's log.
const CONSOLE: &str = "console";
/// A start that failed because the port was taken meanwhile.
const TAKEN: &str = "Address already in use";
/// What to do where there is no Postfix.
const INSTALL: &str = "no Postfix was found: run `tests/deps.sh test`, or install postfix";

/// Where mail for known recipients goes.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// To Maildirs of Postfix's own.
    Maildirs,
    /// By LMTP to another server.
    Lmtp(SocketAddr),
    /// By SMTP, each recipient to a server of its own: split delivery by transport_maps.
    Split(Vec<(String, SocketAddr)>),
}

/// What a server is to be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its domain.
    pub domain: String,
    /// Addresses that it knows.
    pub recipients: Vec<String>,
    /// Where their mail goes.
    pub delivery: Delivery,
    /// Clients that have no name are refused for good.
    pub wants_names: bool,
    /// It takes mail from whom this Dovecot's authentication service knows, and from nobody else.
    pub sasl: Option<SocketAddr>,
    /// More settings; with those of the same name as ours, ours do not count.
    pub settings: String,
    /// Files beside its configuration, which the settings know as `/etc/postfix/NAME`.
    pub files: Vec<(String, String)>,
}

impl Default for Options {
    /// `example.org`, which nobody lives at, with Maildirs.
    fn default() -> Self {
        Self {
            domain: "example.org".to_owned(),
            recipients: Vec::new(),
            delivery: Delivery::Maildirs,
            wants_names: false,
            sasl: None,
            settings: String::new(),
            files: Vec::new(),
        }
    }
}

/// A private Postfix server, ended with this value.
#[derive(Debug)]
pub struct Postfix {
    options: Options,
    smtp: SocketAddr,
    // Before the place: it has to end first.
    child: Option<Child>,
    place: Place,
}

impl Postfix {
    /// Starts a server.
    ///
    /// # Errors
    ///
    /// There is no Postfix, or this is not root, or it does not start; the end of its log is in the
    /// message.
    pub async fn start(options: Options) -> Result<Self> {
        let sudo = as_root("Postfix's master")?;
        let place = Place::new()?;
        let postfix = User::named("postfix").context(INSTALL)?;
        let mail_user = User::unprivileged()?;
        for name in ["etc", "log"] {
            place.directory(name, 0o755, None)?;
        }
        let mut server = Self { options, smtp: ports::reserve_one()?, child: None, place };
        server.own_directories(sudo, postfix, mail_user)?;
        empty_log(sudo, &server.place)?;
        for _ in 0..ATTEMPTS {
            match server.resume().await {
                Err(_) if server.log().contains(TAKEN) => {
                    server.child = None;
                    empty_log(sudo, &server.place)?;
                    server.smtp = ports::reserve_one()?;
                }
                other => return other.map(|()| server),
            }
        }
        bail!("Postfix found its port taken {ATTEMPTS} times");
    }

    /// Starts it again after [`Self::stop`], with its queue.
    ///
    /// # Errors
    ///
    /// It does not answer; the end of its log is in the message.
    pub async fn resume(&mut self) -> Result<()> {
        let sudo = as_root("Postfix's master")?;
        let daemons = postconf("daemon_directory")?;
        self.write_configuration(&daemons)?;
        let etc = self.place.join("etc");
        let etc = etc.to_string_lossy();
        // Makes the queue's directories and looks at everything's owner.
        run(sudo, &["postfix", "-c", &etc, "check"])?;
        let command = [&*format!("{daemons}/master"), "-c", &etc, "-s"];
        // The log goes on from an earlier start, whose lines do not count.
        let before = self.log().len();
        let child = Child::start(sudo, &command, self.place.path(), CONSOLE)?;
        let started = until("Postfix to start", || {
            let log = self.log();
            let log = log.get(before..).unwrap_or_default();
            (log.contains("daemon started") || log.contains("fatal:") || !child.is_running())
                .then_some(())
        });
        started.await?;
        ensure!(
            child.is_running(),
            "Postfix ended:\n{}{}",
            child.end_of_log(),
            last_lines(&self.log())
        );
        self.child = Some(child);
        Conversation::connect(self.smtp).await?.expect("220").await.map(drop)
    }

    /// Stops it. What is queued stays queued.
    ///
    /// # Errors
    ///
    /// It does not end well.
    pub fn stop(&mut self) -> Result<()> {
        self.child.take().map_or(Ok(()), Child::stop)
    }

    /// Its master process.
    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(Child::pid)
    }

    /// Has it go on with other [`Options::settings`].
    ///
    /// # Errors
    ///
    /// `postfix` complains.
    pub fn reload(&mut self, settings: &str) -> Result<()> {
        settings.clone_into(&mut self.options.settings);
        self.write_configuration(&postconf("daemon_directory")?)?;
        let etc = self.place.join("etc").to_string_lossy().into_owned();
        run(as_root("Postfix's master")?, &["postfix", "-c", &etc, "reload"])
    }

    /// Where it speaks SMTP.
    pub fn smtp(&self) -> SocketAddr {
        self.smtp
    }

    /// Has it try at once to deliver what is queued.
    ///
    /// # Errors
    ///
    /// `postqueue` complains.
    pub fn flush(&self) -> Result<()> {
        let etc = self.place.join("etc").to_string_lossy().into_owned();
        run(as_root("Postfix's queue")?, &["postqueue", "-c", &etc, "-f"])
    }

    /// What is wrong with its configuration, in `postconf`'s words: settings that it does not know, for
    /// instance.
    ///
    /// # Errors
    ///
    /// There is no `postconf`.
    pub fn complaints(&self) -> Result<String> {
        let output = Command::new("/usr/sbin/postconf")
            .arg("-c")
            .arg(self.place.join("etc"))
            .arg("-n")
            .output()
            .context(INSTALL)?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The messages in a recipient's Maildir, with [`Delivery::Maildirs`].
    pub fn inbox(&self, recipient: &str) -> Vec<PathBuf> {
        inbox(&self.place.join("mail").join(recipient))
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.join("log").join(LOG)).unwrap_or_default()
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
        until("a line in Postfix's log", find).await.with_context(|| {
            format!("{words:?} is not in Postfix's log:\n{}", last_lines(&self.log()))
        })
    }

    fn own_directories(&self, sudo: &[&str], postfix: User, mail: User) -> Result<()> {
        let path = |name: &str| self.place.join(name).to_string_lossy().into_owned();
        let owner = |user: User| format!("{}:{}", user.uid, user.gid);
        run(sudo, &["install", "-d", "-m", "755", &path("queue")])?;
        run(sudo, &["install", "-d", "-m", "700", &path("data")])?;
        run(sudo, &["chown", &owner(postfix), &path("data")])?;
        run(sudo, &["install", "-d", "-m", "755", &path("mail")])?;
        run(sudo, &["chown", &owner(mail), &path("mail")])
    }

    fn write_configuration(&self, daemons: &str) -> Result<()> {
        let place = self.place.path().display();
        let Options { domain, recipients, delivery, wants_names, sasl, settings, files } =
            &self.options;
        let transport = match delivery {
            Delivery::Maildirs => "virtual".to_owned(),
            Delivery::Lmtp(address) => format!("lmtp:inet:{address}"),
            Delivery::Split(_) => "error:no transport".to_owned(),
        };
        let clients = if *wants_names { "reject_unknown_client_hostname" } else { "" };
        let (relay, sasl) = match sasl {
            None => ("permit_mynetworks, reject_unauth_destination", String::new()),
            Some(service) => ("permit_sasl_authenticated, reject", authentication(*service)),
        };
        let User { uid, gid } = User::unprivileged()?;
        let main = format!(
            "compatibility_level = 3.6
queue_directory = {place}/queue
data_directory = {place}/data
daemon_directory = {daemons}
command_directory = {commands}
mail_owner = postfix
setgid_group = postdrop
maillog_file = {place}/log/{LOG}
maillog_file_prefixes = {place}
myhostname = postfix.{domain}
mydestination =
alias_maps =
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = {relay}
smtpd_authorized_xclient_hosts = 127.0.0.1
smtpd_authorized_xforward_hosts = 127.0.0.1
smtpd_peername_lookup = no
smtpd_client_restrictions = {clients}
unknown_client_reject_code = 550
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
disable_dns_lookups = yes
notify_classes =
recipient_delimiter = +
virtual_mailbox_domains = {domain}
virtual_mailbox_base = {place}/mail
virtual_mailbox_maps = texthash:{place}/etc/recipients
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_transport = {transport}
transport_maps = texthash:{place}/etc/transports
{sasl}",
            commands = postconf("command_directory")?
        );
        let mut known = String::new();
        for recipient in recipients {
            // A Maildir is told by the slash at its end.
            writeln!(known, "{recipient} {recipient}/")?;
        }
        let etc = format!("{place}/etc/");
        let main = merged(&main, &settings.replace("/etc/postfix/", &etc));
        self.place.write("etc/main.cf", &main, 0o644, None)?;
        for (name, text) in files {
            self.place.write(&format!("etc/{name}"), text, 0o644, None)?;
        }
        self.place.write("etc/recipients", &known, 0o644, None)?;
        let mut transports = String::new();
        if let Delivery::Split(recipients) = delivery {
            for (recipient, server) in recipients {
                writeln!(transports, "{recipient} smtp:[{}]:{}", server.ip(), server.port())?;
            }
        }
        self.place.write("etc/transports", &transports, 0o644, None)?;
        let master = MASTER.replace("SMTP", &self.smtp.to_string());
        self.place.write("etc/master.cf", &master, 0o644, None)?;
        self.give_to_root()
    }

    /// Postfix trusts no configuration of another user's.
    fn give_to_root(&self) -> Result<()> {
        if is_root() {
            return Ok(());
        }
        let etc = self.place.join("etc").to_string_lossy().into_owned();
        run(as_root("Postfix's master")?, &["chown", "-R", "root:root", &etc])
    }
}

/// Settings with others that replace those of the same names.
fn merged(settings: &str, others: &str) -> String {
    let name = |line: &str| line.split_once('=').map(|(name, _)| name.trim().to_owned());
    let replaced: Vec<String> = others.lines().filter_map(name).collect();
    let kept = settings.lines().filter(|line| name(line).is_none_or(|n| !replaced.contains(&n)));
    kept.chain(others.lines()).flat_map(|line| [line, "\n"]).collect()
}

/// Settings for asking a Dovecot about passwords.
fn authentication(service: SocketAddr) -> String {
    format!(
        "smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = inet:{service}
"
    )
}

/// Services, none of them locked in: there are no libraries in a private queue.
const MASTER: &str = "
SMTP        inet  n - n -     - smtpd
pickup      unix  n - n 60    1 pickup
cleanup     unix  n - n -     0 cleanup
qmgr        unix  n - n 300   1 qmgr
tlsmgr      unix  - - n 1000? 1 tlsmgr
rewrite     unix  - - n -     - trivial-rewrite
bounce      unix  - - n -     0 bounce
defer       unix  - - n -     0 bounce
trace       unix  - - n -     0 bounce
verify      unix  - - n -     1 verify
flush       unix  n - n 1000? 0 flush
proxymap    unix  - - n -     - proxymap
proxywrite  unix  - - n -     1 proxymap
smtp        unix  - - n -     - smtp
relay       unix  - - n -     - smtp
showq       unix  n - n -     - showq
error       unix  - - n -     - error
retry       unix  - - n -     - error
discard     unix  - - n -     - discard
virtual     unix  - n n -     - virtual
lmtp        unix  - - n -     - lmtp
anvil       unix  - - n -     1 anvil
scache      unix  - - n -     1 scache
postlog     unix-dgram n - n - 1 postlogd
";

/// Root's, since Postfix trusts no other, but for everybody to read.
fn empty_log(sudo: &[&str], place: &Place) -> Result<()> {
    let log = place.join("log").join(LOG);
    run(sudo, &["install", "-m", "644", "/dev/null", &log.to_string_lossy()])
}

/// What a table, such as `socketmap:inet:127.0.0.1:2527:old`, answers Postfix for a key; `None`: not found.
///
/// # Errors
///
/// It does not answer, or says that nobody knows now; Postfix's words are in the message.
pub async fn postmap(table: &str, key: &str) -> Result<Option<String>> {
    let place = Place::new()?;
    for (name, text) in [("main.cf", "compatibility_level = 3.6\n"), ("master.cf", "")] {
        let path = place.write(name, text, 0o644, None)?;
        // One that is this new may still be written to, so Postfix waits.
        fs::File::options().write(true).open(path)?.set_modified(SystemTime::UNIX_EPOCH)?;
    }
    let output = tokio::process::Command::new("/usr/sbin/postmap")
        .arg("-c")
        .arg(place.path())
        .args(["-q", key, table])
        .output()
        .await
        .context(INSTALL)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.is_empty(), "postmap -q {key} {table}: {said}");
    let found = String::from_utf8(output.stdout)?.trim_end().to_owned();
    Ok(output.status.success().then_some(found))
}

/// A built-in default of this machine's Postfix.
fn postconf(name: &str) -> Result<String> {
    let program = ["/usr/sbin/postconf", "/usr/local/sbin/postconf"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context(INSTALL)?;
    let output = Command::new(program).args(["-d", "-h", name]).output()?;
    ensure!(output.status.success(), "postconf: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn run(as_root: &[&str], command: &[&str]) -> Result<()> {
    let words: Vec<&str> = as_root.iter().chain(command).copied().collect();
    let (program, arguments) = words.split_first().context("nothing to run")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", command.join(" "));
    Ok(())
}
