//! A Unix socket in a process's state directory, where others on this host ask it for something. Who is at
//! the other end is what the kernel says.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

/// Pause after a failure to accept, such as one for want of descriptors.
const AGAIN: Duration = Duration::from_secs(1);

/// A socket that others connect to. It goes with this value.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its process, if the system says.
    pub pid: Option<i32>,
}

impl Door {
    /// Opens one under this name in a directory that no other process uses (mode 0600).
    ///
    /// # Errors
    ///
    /// The system's; a path of more than 107 octets is one.
    pub fn open(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(name);
        match std::fs::remove_file(&path) {
            // A crashed process' one: this process has the directory's lock.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let door = Self { listener: UnixListener::bind(&path)?, path };
        std::fs::set_permissions(&door.path, Permissions::from_mode(0o600))?;
        Ok(door)
    }

    /// The next who connects. That nobody can for a moment is waited out.
    pub async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => {
                    tracing::debug!(%error, path = %self.path.display(), "nobody can connect");
                    sleep(AGAIN).await;
                }
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Peer {
    /// Who is at the other end of this connection.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self { uid: credentials.uid(), pid: credentials.pid() })
    }

    /// It is this process' user.
    pub fn is_us(&self) -> bool {
        self.uid == rustix::process::geteuid().as_raw()
    }

    /// It is root.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_door_is_for_its_user_alone_replaces_a_crashed_ones_and_goes_with_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some.sock");
        // What a crash leaves.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let door = Door::open(directory.path(), "some.sock").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let _client = UnixStream::connect(&path).await.unwrap();
        let peer = Peer::of(&door.accept().await).unwrap();
        assert!(peer.is_us());
        assert_eq!(peer.pid, Some(std::process::id().cast_signed()));
        drop(door);
        assert!(!path.exists());
    }
}
