//! The gateway's processes on this host: one that serves, and those that have handed over to it.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use shared::admin::{Answer, AskError, Call, Refusal, ask};
use shared::state_dir::StateDir;

/// Whose queue it is.
const SERVICE: &str = "mx-gateway";

/// What a process has said at last.
pub(super) type Heard = (String, Result<u64, Refusal>);

/// Where processes may be.
pub(super) struct Processes {
    base: PathBuf,
}

impl Processes {
    pub(super) fn of(base: &Path) -> Self {
        Self { base: base.to_owned() }
    }

    /// Asks every process that runs.
    pub(super) async fn ask(
        &self,
        call: &Call,
        each: impl FnMut(&str, Answer) -> io::Result<()>,
    ) -> anyhow::Result<Vec<Heard>> {
        self.ask_each(|| Some(call.clone()), each).await
    }

    /// Asks every process that runs what `next` says before each, until that is nothing.
    pub(super) async fn ask_each(
        &self,
        mut next: impl FnMut() -> Option<Call>,
        mut each: impl FnMut(&str, Answer) -> io::Result<()>,
    ) -> anyhow::Result<Vec<Heard>> {
        let mut heard = Vec::new();
        for directory in StateDir::candidates(&self.base, SERVICE) {
            let Some(call) = next() else { break };
            let process = name_of(&directory);
            match ask(&directory, &call, |answer| each(&process, answer)).await {
                Ok(messages) => heard.push((process, Ok(messages))),
                Err(AskError::Refused(refusal)) => heard.push((process, Err(refusal))),
                Err(error) => not_running(&process, error)?,
            }
        }
        if heard.is_empty() { Err(self.nobody()) } else { Ok(heard) }
    }

    /// Asks one process after the other until one carries it out.
    pub(super) async fn ask_first(
        &self,
        call: &Call,
        mut each: impl FnMut(&str, Answer) -> io::Result<()>,
    ) -> anyhow::Result<u64> {
        let mut refused = None;
        for directory in StateDir::candidates(&self.base, SERVICE) {
            let process = name_of(&directory);
            match ask(&directory, call, |answer| each(&process, answer)).await {
                Ok(messages) => return Ok(messages),
                Err(AskError::Refused(refusal)) => refused = refused.or(Some(refusal)),
                Err(error) => not_running(&process, error)?,
            }
        }
        Err(refused.map_or_else(|| self.nobody(), anyhow::Error::from))
    }

    fn nobody(&self) -> anyhow::Error {
        anyhow!(
            "{SERVICE} does not run on this host with the state directory {}, and its queue is asked of it; \
             start it, or say by --config which configuration it has",
            self.base.display()
        )
    }
}

/// That nobody is there is no error: there may be others.
fn not_running(process: &str, error: AskError) -> anyhow::Result<()> {
    match error {
        AskError::NotRunning { .. } => Ok(()),
        AskError::Permission { directory } => bail!(
            "you may not ask {process} at {}: do it as root, or as the service's user",
            directory.display()
        ),
        // Standard output is closed: told apart by its kind.
        AskError::Io(error) => Err(error.into()),
        other @ (AskError::Refused(_)
        | AskError::CutShort
        | AskError::TooSlow
        | AskError::NotUnderstood) => Err(anyhow!("{process}: {other}")),
    }
}

/// `mx-gateway`, `mx-gateway.2`.
fn name_of(directory: &Path) -> String {
    directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
