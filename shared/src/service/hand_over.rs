//! The running process' side of a hand-over: it starts the next one at SIGUSR2, and hands over to whoever
//! asks for it (`run --take-over`). Whatever goes wrong, this process serves on and says why.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::Signal;
use tokio::time::{Instant, sleep_until};

use super::passing::{
    GO, HandOverError, READY, RELOAD, SERVING, SOCKET, WORD, hear, same_user, say, send_sockets,
};
use super::systemd;
use crate::door::{Door, Peer};
use crate::listener::Sockets;
use crate::state_dir::StateDir;

/// Longest time from the start of a new process until it asks for the sockets.
const ASKS_WITHIN: Duration = Duration::from_mins(1);
/// Longest wait until it has loaded the table.
const READY_WITHIN: Duration = Duration::from_mins(5);
/// How long one that has failed may take to end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Waits for the process that takes this one's place.
#[derive(Debug)]
pub(super) struct HandOver {
    door: Option<Door>,
    asked: Signal,
    command: Successor,
    started: Option<Started>,
    sockets: Arc<Sockets>,
}

/// How the next process is started.
#[derive(Debug, Clone)]
pub(super) struct Successor {
    /// The program's path, where a newer one may be by then.
    pub(super) program: PathBuf,
    /// The configuration file.
    pub(super) file: PathBuf,
}

/// A process that was started and has not taken over yet.
#[derive(Debug)]
struct Started {
    child: Child,
    /// When it must have asked for the sockets, or ended.
    until: Instant,
}

/// The process that serves in this one's place.
#[derive(Debug)]
pub(super) struct Relieved {
    /// Its id, if the system says.
    pub(super) pid: Option<i32>,
    stream: UnixStream,
}

impl Relieved {
    /// Returns when it has reloaded its configuration; never when it is not there any more.
    pub(super) async fn reloaded(&mut self) {
        if hear(&mut self.stream, RELOAD, Duration::MAX).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl HandOver {
    /// Ready to be asked, by `asked` or at a socket in `state`.
    pub(super) fn new(
        state: &StateDir,
        sockets: Arc<Sockets>,
        asked: Signal,
        command: Successor,
    ) -> Self {
        let door = Door::open(state.path(), SOCKET);
        if let Err(error) = &door {
            let directory = state.path().display();
            tracing::warn!(%error, %directory, "this process will not be able to hand over to another one");
        }
        Self { door: door.ok(), asked, command, started: None, sockets }
    }

    /// Returns when another process serves: this one is to accept nothing more.
    pub(super) async fn done(mut self) -> Relieved {
        loop {
            let stream = tokio::select! {
                _ = self.asked.recv() => {
                    self.start();
                    continue;
                }
                ended = end_of(&mut self.started) => {
                    self.started = None;
                    complain(ended);
                    continue;
                }
                stream = accept(self.door.as_ref()) => stream,
            };
            let pid = Peer::of(&stream).ok().and_then(|peer| peer.pid);
            match hand_over(stream, &self.sockets).await {
                Ok(stream) => return Relieved { pid, stream },
                Err(error) => {
                    tracing::error!(%error, pid, "not handed over: this process serves on");
                    if let Some(started) = &mut self.started {
                        // It ends by itself and says why, unless it hangs.
                        started.until = Instant::now() + LAST_WORDS;
                    }
                }
            }
        }
    }

    fn start(&mut self) {
        if let Some(Started { child, .. }) = &self.started {
            tracing::warn!(
                pid = child.id(),
                "SIGUSR2: a new process has been started already, and has not taken over yet; it is killed \
                 if it does not in time"
            );
            return;
        }
        let Successor { program, file } = &self.command;
        let mut command = Command::new(program);
        command.args(["run", "--take-over", "--config"]).arg(file);
        for variable in systemd::NOT_FOR_SUCCESSORS {
            command.env_remove(variable);
        }
        match command.spawn() {
            Ok(child) => {
                let (program, pid) = (program.display(), child.id());
                tracing::info!(%program, pid, "SIGUSR2: starting a new process to hand over to");
                let until = Instant::now() + ASKS_WITHIN;
                self.started = Some(Started { child, until });
            }
            Err(error) => {
                let program = program.display();
                tracing::error!(%error, %program, "cannot start a new process: this process serves on");
            }
        }
    }
}

/// Up to the word by which the other process serves.
async fn hand_over(mut stream: UnixStream, sockets: &Sockets) -> Result<UnixStream, HandOverError> {
    same_user(&stream)?;
    send_sockets(&stream, &sockets.listening()).await?;
    hear(&mut stream, READY, READY_WITHIN).await?;
    say(&mut stream, GO).await?;
    hear(&mut stream, SERVING, WORD).await?;
    Ok(stream)
}

async fn accept(door: Option<&Door>) -> UnixStream {
    match door {
        Some(door) => door.accept().await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a process that was started, which it may have to be brought to.
async fn end_of(started: &mut Option<Started>) -> io::Result<ExitStatus> {
    let Some(Started { child, until }) = started else { return std::future::pending().await };
    tokio::select! {
        ended = child.wait() => return ended,
        () = sleep_until(*until) => {}
    }
    tracing::error!(
        pid = child.id(),
        "the new process does not come to serve in time: it is killed"
    );
    let _ = child.start_kill();
    child.wait().await
}

fn complain(ended: io::Result<ExitStatus>) {
    let ended = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
    tracing::error!(
        ended,
        "the new process has ended without taking over; its own lines say why. This process serves on"
    );
}
