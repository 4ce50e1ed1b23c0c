//! Servers as child processes that never outlive the process that started them.
//!
//! Each runs in a session of its own under a small shell, its keeper, which waits on a pipe from this
//! process. However this process ends, the pipe closes, and the keeper ends the server and its children.
//! A keeper that was killed, too, is found by the next run through the pid files beside the log.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::patience::{block_until, until};

/// Starts the server, then obeys: `stop` (SIGTERM, and SIGKILL for what is left after a while) or `kill`.
/// A closed pipe means `stop`.
const KEEPER: &str = r#"
place=$1 log=$2 patience=$3
shift 3
echo $$ >"$place/keeper.pid.$log"
setsid "$@" >>"$place/$log" 2>&1 </dev/null &
child=$!
echo $child >"$place/child.pid.$log"
word=stop
read -r word
if [ "$word" = kill ]; then
    kill -s KILL -- "-$child"
else
    # All of the session: some masters let the others finish first.
    kill -s TERM -- "-$child"
fi
left=$((patience * 20))
while kill -0 "$child" && [ "$left" -gt 0 ]; do
    sleep 0.05
    left=$((left - 1))
done
# What is left of the session, which mostly is nothing.
kill -s KILL -- "-$child"
wait "$child"
status=$?
rm -f "$place/child.pid.$log" "$place/keeper.pid.$log"
exit $status
"#;

/// Seconds between SIGTERM and SIGKILL.
const GRACE: u32 = 20;

/// A server that runs until this value is dropped.
#[derive(Debug)]
pub struct Child {
    keeper: process::Child,
    pid: i32,
    log: PathBuf,
}

impl Child {
    /// Starts `command` (a program and its arguments) with `as_root` before it. What it writes is added
    /// to `log`, a file in `place`.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(as_root: &[&str], command: &[&str], place: &Path, log: &str) -> Result<Self> {
        let words: Vec<&str> = as_root.iter().copied().chain(["/bin/sh", "-c", KEEPER]).collect();
        let (program, arguments) = words.split_first().context("nothing to start")?;
        let pid_file = place.join(format!("child.pid.{log}"));
        let _ = fs::remove_file(&pid_file);
        let mut keeper = Command::new(program)
            .args(arguments)
            .arg("keeper")
            .arg(place)
            .args([log, &GRACE.to_string()])
            .args(command)
            .current_dir(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let pid = block_until("the pid of a child", || {
            if let Some(status) = keeper.try_wait()? {
                bail!("{program} ended with {status}");
            }
            Ok(read_pid(&pid_file))
        })?;
        Ok(Self { keeper, pid, log: place.join(log) })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        is_running(self.pid)
    }

    /// What it has written.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|octets| String::from_utf8_lossy(&octets).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of that.
    pub fn end_of_log(&self) -> String {
        last_lines(&self.log())
    }

    /// Waits until a line of the log has all of `words`, and returns it.
    ///
    /// # Errors
    ///
    /// It ends without, or nothing comes in time.
    pub async fn logged(&self, words: &[&str]) -> Result<String> {
        let find = || {
            self.log()
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(str::to_owned)
        };
        until("a line in a log", || {
            find().map(Some).or_else(|| (!self.is_running()).then_some(None))
        })
        .await
        .ok()
        .flatten()
        .or_else(find)
        .with_context(|| format!("{words:?} is not in the log:\n{}", self.end_of_log()))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It is gone, or another user's.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid).context("no pid")?;
        kill_process(pid, signal).context("kill")
    }

    /// Stops it by SIGTERM and waits for its end.
    ///
    /// # Errors
    ///
    /// It did not end well; the end of its log is in the message.
    pub fn stop(mut self) -> Result<()> {
        let status = self.end("stop")?;
        // 143: ended by the signal itself, which a server may leave to the system.
        match status.code() {
            Some(0 | 143) => Ok(()),
            _ => bail!("ended with {status}:\n{}", self.end_of_log()),
        }
    }

    /// Ends it as a crash would: it and its children get SIGKILL.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn kill(mut self) -> Result<()> {
        self.end("kill").map(drop)
    }

    fn end(&mut self, word: &str) -> Result<process::ExitStatus> {
        if let Some(mut pipe) = self.keeper.stdin.take() {
            // A keeper that is gone has nobody to tell.
            let _ = writeln!(pipe, "{word}");
        }
        Ok(self.keeper.wait()?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.end("stop");
    }
}

/// The last lines of a text, for messages.
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Ends what the pid files of `place` name, if it still is what they mean. False while a keeper is at it.
pub(crate) fn end_leftovers(place: &Path) -> bool {
    let pids = |prefix: &str| -> Vec<i32> {
        fs::read_dir(place)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .filter_map(|entry| read_pid(&entry.path()))
            .filter(|pid| is_of(*pid, place))
            .collect()
    };
    if !pids("keeper.pid.").is_empty() {
        return false;
    }
    for pid in pids("child.pid.").into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    true
}

/// Whether a process was started for `place`: ids are used again, so its command line has to say so.
fn is_of(pid: i32, place: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&command).contains(&*place.to_string_lossy())
}

/// Not ended, nor dead and waiting to be collected.
fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold any character.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn read_pid(file: &Path) -> Option<i32> {
    fs::read_to_string(file).ok()?.strip_suffix('\n')?.parse().ok()
}
