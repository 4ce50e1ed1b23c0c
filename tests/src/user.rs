//! Users of this machine, for servers that refuse to be root or insist on it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A user by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl User {
    /// Whom this process runs as.
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// The user with this name in `/etc/passwd`.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn named(name: &str) -> Result<Self> {
        let users = fs::read_to_string("/etc/passwd")?;
        users
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
                (fields.first() == Some(&name)).then_some(Self { uid, gid })
            })
            .next()
            .with_context(|| format!("this machine has no user {name}"))
    }

    /// What to put before a command so that root runs it as this user, in no other group.
    pub fn before_command(self) -> Vec<String> {
        let Self { uid, gid } = self;
        let words = [
            "setpriv",
            &format!("--reuid={uid}"),
            &format!("--regid={gid}"),
            "--clear-groups",
            "--",
        ];
        words.map(str::to_owned).to_vec()
    }

    /// Gives it a file or directory.
    ///
    /// # Errors
    ///
    /// The system's, or this is neither root nor may use sudo.
    pub fn give(self, path: &Path) -> Result<()> {
        if self == Self::own() {
            return Ok(());
        }
        let Self { uid, gid } = self;
        let mut words = as_root("giving files to another user")?.to_vec();
        let owner = format!("{uid}:{gid}");
        words.extend(["chown", &owner]);
        let (program, arguments) = words.split_first().context("nothing to run")?;
        let output = Command::new(program).args(arguments).arg(path).output().context("chown")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Someone who owns nothing of value: oneself, or `nobody` for root, whom mail servers refuse.
    ///
    /// # Errors
    ///
    /// Root, on a machine without `nobody`.
    pub fn unprivileged() -> Result<Self> {
        if is_root() { Self::named("nobody") } else { Ok(Self::own()) }
    }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What to put before a command so that it runs as root: nothing, or `sudo -n`.
///
/// # Errors
///
/// `what` wants root, and this is neither root nor may it use sudo without a password.
pub fn as_root(what: &str) -> Result<&'static [&'static str]> {
    if is_root() {
        return Ok(&[]);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).output();
    if !sudo.is_ok_and(|output| output.status.success()) {
        bail!("{what} wants root: run the tests as root, or allow `sudo -n`");
    }
    Ok(&["sudo", "-n"])
}
