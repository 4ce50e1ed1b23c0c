//! What systemd is told (sd_notify(3)); elsewhere nobody listens, and nothing is done.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::sleep;

use crate::lifecycle::Lifecycle;

/// The variables that say where and what; a program that is started in this one's place wants some of them
/// as they are, and none of the others.
pub(super) const NOT_FOR_SUCCESSORS: [&str; 4] =
    ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Sends `state`, lines such as `READY=1`. A manager that does not take it is not waited for.
pub(super) fn notify(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
    else {
        return;
    };
    if let Err(error) = send(&address, state) {
        tracing::debug!(%error, state, "systemd does not take a notification");
    }
}

fn send(address: &OsStr, state: &str) -> io::Result<()> {
    let address = match address.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// Says that a reload begins; `READY=1` says that it has ended.
pub(super) fn notify_reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let microseconds = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
}

/// Says now and then that this process lives, if systemd wants to hear it.
pub(super) fn feed_watchdog(lifecycle: &Lifecycle) {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let limit = variable("WATCHDOG_USEC").and_then(|limit| limit.parse().ok());
    let (Some(limit), true) = (limit.map(Duration::from_micros), is_ours) else { return };
    let end = lifecycle.end().clone();
    lifecycle.spawn_chore("watchdog", async move {
        // Twice as often as must be.
        while end.run_until_cancelled(sleep(limit / 2)).await.is_some() {
            notify("WATCHDOG=1");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_datagram_by_path_or_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        let name = format!("mailshift-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_name).unwrap();
        send(format!("@{name}").as_ref(), "STOPPING=1").unwrap();
        for (socket, expected) in [(by_path, "READY=1"), (by_name, "STOPPING=1")] {
            let mut seen = [0; 64];
            let count = socket.recv(&mut seen).unwrap();
            assert_eq!(&seen[..count], expected.as_bytes());
        }
        assert!(send("/no/such/socket".as_ref(), "READY=1").is_err());
    }
}
