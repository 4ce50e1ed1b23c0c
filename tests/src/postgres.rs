//! A private Postgres server for tests: its own directory, a Unix socket, no TCP, no fsync.
//!
//! One server serves all tests of a binary ([`Server::shared`]), each with a [`Database`] of its own; a
//! test that stops the server starts one for itself ([`Server::start`]).
//!
//! Nothing is left over. The server is a child of a small shell that waits on a pipe from this process:
//! when this process ends, in whatever way, the pipe closes and the shell stops the server and removes
//! the directory. What a killed shell leaves is found by the next run through its pid file.

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use anyhow::{Context, Result, bail, ensure};

/// Where directories of private servers are made. Short: a socket's path ends at 107 octets.
const PLACE: &str = "/tmp";
/// What their names begin with.
const PREFIX: &str = "mailshift-pg-";
/// Longest wait for a server to answer or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// What to do where there is no Postgres.
const INSTALL: &str = "no PostgreSQL server was found: install it (apt-get install --no-install-recommends \
                       postgresql), or set PG_BIN to the directory of initdb and postgres";

/// A private Postgres server.
#[derive(Debug)]
pub struct Server {
    directory: PathBuf,
    bin: PathBuf,
    user: User,
    running: Mutex<Option<Child>>,
}

/// A database on a private server. It goes with its server.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// How to connect to it: by the server's Unix socket, as superuser.
    pub url: String,
}

/// Whom the server runs as: Postgres refuses root.
#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

impl Server {
    /// The server that all tests of this process share.
    ///
    /// # Panics
    ///
    /// When it cannot be started; the message says what is missing.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Server> =
            LazyLock::new(|| Server::start().unwrap_or_else(|error| panic!("{error:#}")));
        &SHARED
    }

    /// Starts a server of one's own.
    ///
    /// # Errors
    ///
    /// No Postgres on this machine, or it does not start; the message says which.
    pub fn start() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let bin = find_bin().context(INSTALL)?;
        let user = find_user()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = Path::new(PLACE).join(format!("{PREFIX}{}-{number}", process::id()));
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711))?;
        let server = Self { directory, bin, user, running: Mutex::new(None) };
        for name in ["data", "socket"] {
            let path = server.directory.join(name);
            fs::create_dir(&path)?;
            chown(&path, Some(user.uid), Some(user.gid))?;
        }
        server.init()?;
        server.resume()?;
        Ok(server)
    }

    /// Makes an empty database.
    ///
    /// # Errors
    ///
    /// The server is stopped or refuses.
    pub fn create_database(&self) -> Result<Database> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(Database { url: self.url(&name), name })
    }

    /// How to connect to a database on it, as superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}", self.socket().display())
    }

    /// The directory with its socket, as libpq's `host`.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// Its first process, whose children the others are.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        let pid = read_pid(&self.directory.join("data/postmaster.pid"));
        Ok(pid.context("Postgres does not run")?.try_into()?)
    }

    /// Runs statements in the `psql` shell and returns what it prints, unaligned and without headers.
    ///
    /// # Errors
    ///
    /// What psql wrote to its standard error.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut child = Command::new(self.bin.join("psql"))
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                database,
            ])
            .arg("-h")
            .arg(self.socket())
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("psql")?;
        let input = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // psql reads only as far as it gets; what it says meanwhile must be read, too.
            scope.spawn(move || input.map(|mut pipe| pipe.write_all(sql.as_bytes())));
            child.wait_with_output()
        })?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A database as SQL text, for psql.
    ///
    /// # Errors
    ///
    /// What pg_dump wrote to its standard error.
    pub fn dump(&self, database: &str) -> Result<String> {
        let output = Command::new(self.bin.join("pg_dump"))
            .args(["-U", "postgres", "--inserts", "-d", database, "-h"])
            .arg(self.socket())
            .output()
            .context("pg_dump")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Stops the server as a crash would: connections break, nothing is flushed.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn stop(&self) -> Result<()> {
        let child = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return Ok(()) };
        // `stop` keeps the directory; a closed pipe alone removes it.
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(b"stop\n")?;
        }
        child.wait()?;
        Ok(())
    }

    /// Starts it again after [`Self::stop`].
    ///
    /// # Errors
    ///
    /// It does not answer in time; the end of its log is in the message.
    pub fn resume(&self) -> Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Ok(());
        }
        let child = Command::new("/bin/sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(&self.directory)
            .arg(self.bin.join("postgres"))
            .arg(self.user.uid.to_string())
            .arg(self.user.gid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("/bin/sh")?;
        *running = Some(child);
        drop(running);
        let deadline = Instant::now() + PATIENCE;
        while self.psql("postgres", "SELECT 1").is_err() {
            if Instant::now() > deadline {
                bail!("Postgres does not answer; its log ends with:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn init(&self) -> Result<()> {
        let mut command = Command::new(self.bin.join("initdb"));
        command
            .args(["-A", "trust", "-N", "--locale=C.UTF-8", "-E", "UTF8", "-U", "postgres", "-D"])
            .arg(self.directory.join("data"))
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(self.user.uid).gid(self.user.gid);
        }
        let output = command.output().context("initdb")?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(self.directory.join("log")) {
            let _ = file.read_to_string(&mut text);
        }
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let child = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            drop(child.stdin.take());
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Starts the server, then waits for the pipe to close or for `stop`.
///
/// The server gets SIGQUIT, which ends it and all its children at once; the data directory is thrown
/// away, so nothing needs a checkpoint. It runs in the shell's process group.
const KEEPER: &str = r#"
directory=$1 postgres=$2 uid=$3 gid=$4
echo $$ >"$directory/pid"
set -- "$postgres" -D "$directory/data" -k "$directory/socket" \
    -c listen_addresses= -c fsync=off -c full_page_writes=off \
    -c max_connections=200 -c log_lock_waits=on -c deadlock_timeout=200ms
if [ "$(id -u)" = 0 ]; then
    set -- setpriv --reuid="$uid" --regid="$gid" --clear-groups -- "$@"
fi
cd "$directory" || exit 1
"$@" >>"$directory/log" 2>&1 </dev/null &
server=$!
word=
read -r word
kill -QUIT "$server" 2>/dev/null
wait "$server"
[ "$word" = stop ] || rm -rf "$directory"
"#;

/// The directory with initdb, postgres and psql.
fn find_bin() -> Option<PathBuf> {
    let complete = |path: &PathBuf| {
        ["initdb", "postgres", "psql"].iter().all(|name| path.join(name).is_file())
    };
    if let Some(path) = env::var_os("PG_BIN") {
        return Some(PathBuf::from(path)).filter(complete);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps them out of PATH, one directory for each major version.
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, path)| path).chain(env::split_paths(&path)).find(complete)
}

/// This user, or for root the first of those that own nothing of value.
fn find_user() -> Result<User> {
    if !rustix::process::geteuid().is_root() {
        let uid = rustix::process::geteuid().as_raw();
        return Ok(User { uid, gid: rustix::process::getegid().as_raw() });
    }
    let users = fs::read_to_string("/etc/passwd")?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|wanted| {
            users.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                (fields.first() == Some(wanted)).then_some(())?;
                Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
            })
        })
        .context("Postgres refuses root, and there is no user postgres or nobody to run it as")
}

/// Ends servers whose shell was killed, and removes their directories.
fn remove_leftovers() {
    for entry in fs::read_dir(PLACE).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(owner) = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next()?.parse::<i32>().ok())
        else {
            continue;
        };
        let alive = |pid: i32| Path::new("/proc").join(pid.to_string()).exists();
        let directory = entry.path();
        let keeper = read_pid(&directory.join("pid"));
        if alive(owner) || keeper.is_some_and(alive) {
            continue;
        }
        // Only a process that works in this very directory is the server that was left.
        if let Some(server) = read_pid(&directory.join("data/postmaster.pid"))
            && let Some(pid) = rustix::process::Pid::from_raw(server)
            && fs::read_link(format!("/proc/{server}/cwd"))
                .is_ok_and(|cwd| cwd.starts_with(&directory))
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let _ = fs::remove_dir_all(&directory);
    }
}

fn read_pid(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
}
