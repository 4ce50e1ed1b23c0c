//! Our own services as child processes on a table of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// A service that runs until this value is dropped.
pub struct Service {
    child: Child,
    pub port: u16,
}

impl Service {
    /// Starts `binary` (beside this program) with `config`, in which `port` listens, and waits for it.
    pub async fn start(
        binary: &str,
        config: &str,
        directory: &Path,
        port: u16,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let file = directory.join(format!("{binary}-{port}.toml"));
        std::fs::write(&file, config)?;
        let log = std::fs::File::create(directory.join(format!("{binary}-{port}.log")))?;
        let child = Command::new(beside_us(binary)?)
            .args(["run".as_ref(), "--config".as_ref(), file.as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {binary}; build it with --release first"))?;
        let mut service = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Some(status) = service.child.try_wait()? {
                let log = std::fs::read_to_string(directory.join(format!("{binary}-{port}.log")))?;
                bail!("{binary} ended with {status}:\n{log}");
            }
            if Instant::now() > deadline {
                bail!("{binary} does not listen on {port}");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(service)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn beside_us(binary: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("no directory")?.join(binary))
}
