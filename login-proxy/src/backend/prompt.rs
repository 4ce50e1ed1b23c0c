//! The way from a backend's challenge to the client and back. The driver owns the client's connection, so
//! the attempt asks the driver, and waits.

use std::sync::atomic::{AtomicBool, Ordering};

use shared::credentials::Secret;
use tokio::sync::{mpsc, oneshot};

use super::AttachError;

/// Asks the client what only it can answer.
#[derive(Debug)]
pub struct Prompt {
    asking: mpsc::Sender<Asked>,
    used: AtomicBool,
}

/// A challenge that waits for the client's answer.
#[derive(Debug)]
pub struct Asked {
    /// The challenge, not in base64.
    pub challenge: Vec<u8>,
    /// Takes the answer; `None`: the client gives up.
    pub answer: oneshot::Sender<Option<Secret>>,
}

/// A prompt, and where its challenges arrive.
pub fn prompt() -> (Prompt, mpsc::Receiver<Asked>) {
    let (asking, asked) = mpsc::channel(1);
    (Prompt { asking, used: AtomicBool::new(false) }, asked)
}

impl Prompt {
    /// Passes a challenge on and waits for the answer.
    ///
    /// # Errors
    ///
    /// [`AttachError::Cancelled`].
    pub async fn ask(&self, challenge: Vec<u8>) -> Result<Secret, AttachError> {
        self.used.store(true, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let asked = Asked { challenge, answer };
        self.asking.send(asked).await.map_err(|_| AttachError::Cancelled)?;
        answered.await.ok().flatten().ok_or(AttachError::Cancelled)
    }

    /// True once the client was asked: what it answered fits one backend only, so the attempt cannot begin
    /// again at another.
    pub fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}
