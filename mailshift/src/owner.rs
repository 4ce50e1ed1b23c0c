//! SQLite files belong to the services. Whoever opens them may leave `-wal` and `-shm` files behind, and
//! those of root cannot be written by a service: so root becomes the owner of the directory first, and
//! everybody writes with umask 007, for the group.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustix::fs::Mode;
use shared::backend::BackendName;
use shared::ownership::table;

/// Set in the process that runs as the owner.
const DONE: &str = "MAILSHIFT_RUNS_AS_OWNER";
/// The names of the configuration's backends for it, which it need not be able to read.
const BACKENDS: &str = "MAILSHIFT_BACKENDS";

/// Runs this program again as the owner of the file's directory, where this is root. Does not return
/// then. `input` becomes standard input, since the owner may not be allowed to open it.
///
/// # Errors
///
/// There is no such directory, or the program cannot be started again.
pub(crate) fn become_owner(
    file: &Path,
    url: &str,
    backends: Option<&[BackendName]>,
    input: Option<&Path>,
) -> anyhow::Result<()> {
    rustix::process::umask(Mode::from_raw_mode(0o007));
    if std::env::var_os(DONE).is_some() {
        return Ok(());
    }
    let (uid, gid) = owner_of(file)?;
    if !rustix::process::geteuid().is_root() || uid == 0 {
        return Ok(());
    }
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // By this name it starts even where its directory is closed to the owner.
    let mut command = Command::new("/proc/self/exe");
    if let Some(input) = input {
        let opened =
            File::open(input).with_context(|| format!("cannot read {}", input.display()))?;
        command.stdin(Stdio::from(opened));
        let mut option = OsString::from("--file=");
        option.push(input);
        for argument in &mut arguments {
            if *argument == option {
                *argument = "--file=-".into();
            } else if *argument == input.as_os_str() {
                *argument = "-".into();
            }
        }
    }
    if let Some(backends) = backends {
        let names: Vec<&str> = backends.iter().map(BackendName::as_str).collect();
        command.env(BACKENDS, names.join(" "));
    }
    let error = command
        .args(arguments)
        .arg0("mailshift")
        .uid(uid)
        .gid(gid)
        .env(DONE, "1")
        .env("MAILSHIFT_URL", url)
        .exec();
    Err(error).with_context(|| format!("cannot run as the owner of {}", file.display()))
}

/// The backends that the process before this one knew; `None` when there was none, or it had no
/// configuration either.
pub(crate) fn inherited_backends() -> Option<Vec<BackendName>> {
    std::env::var_os(DONE)?;
    let names = std::env::var(BACKENDS).ok()?;
    Some(names.split(' ').filter_map(|name| BackendName::parse(name).ok()).collect())
}

/// Becomes the sqlite3 shell. Returns only when it cannot.
///
/// # Errors
///
/// There is no shell, or no table.
pub(crate) fn shell(file: &Path, statements: Option<&str>) -> anyhow::Result<()> {
    if !file.exists() {
        bail!("there is no file {}: `mailshift schema apply` makes it", file.display());
    }
    let mut command = Command::new("sqlite3");
    command.args(["-cmd", ".timeout 10000", "-cmd"]).arg(table::sqlite_preamble(file)).arg(file);
    if let Some(statements) = statements {
        command.arg("-bail").arg(statements);
    }
    let error = command.exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        bail!("there is no sqlite3 shell: install it (apt-get install sqlite3)");
    }
    Err(error).context("sqlite3")
}

/// Who owns what is made beside `file`: the file's owner where it exists, and the directory's group.
fn owner_of(file: &Path) -> anyhow::Result<(u32, u32)> {
    let directory = match file.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        Some(_) | None => Path::new("."),
    };
    let of_directory = fs::metadata(directory)
        .with_context(|| format!("cannot look at {}", directory.display()))?;
    let uid = fs::metadata(file).map_or(of_directory.uid(), |of_file| of_file.uid());
    Ok((uid, of_directory.gid()))
}
