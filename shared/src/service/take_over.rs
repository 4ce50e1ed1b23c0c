//! The new process' side of a hand-over.

use std::path::Path;

use tokio::net::UnixStream;

use super::passing::{
    GO, HandOverError, READY, RELOAD, SERVING, SOCKET, WORD, hear, receive_sockets, same_user, say,
};
use crate::listener::Sockets;
use crate::state_dir::StateDir;

/// The process that serves until this one does.
#[derive(Debug)]
pub(super) struct Predecessor(UnixStream);

impl Predecessor {
    /// Finds it and takes its listening sockets. It goes on accepting from them.
    pub(super) async fn find(base: &Path, service: &str) -> Result<(Self, Sockets), HandOverError> {
        for directory in StateDir::candidates(base, service) {
            // One that has crashed leaves its socket, at which nobody listens; one that has handed over
            // itself takes its own away.
            let Ok(stream) = UnixStream::connect(directory.join(SOCKET)).await else { continue };
            same_user(&stream)?;
            let sockets = Sockets::from_descriptors(receive_sockets(&stream).await?)?;
            return Ok((Self(stream), sockets));
        }
        Err(HandOverError::Nobody)
    }

    /// Says that this process could serve, and serves once it may.
    pub(super) async fn relieve(&mut self, serve: impl FnOnce()) -> Result<(), HandOverError> {
        say(&mut self.0, READY).await?;
        hear(&mut self.0, GO, WORD).await?;
        serve();
        if let Err(error) = say(&mut self.0, SERVING).await {
            // It has said its last word before: this process serves, whatever became of the other one.
            tracing::warn!(%error, "the process that handed over does not hear that it may rest");
        }
        Ok(())
    }

    /// Says that the configuration was reloaded. False when there is nobody any more.
    pub(super) async fn reload(&mut self) -> bool {
        say(&mut self.0, RELOAD).await.is_ok()
    }
}
