//! Sockets that systemd passes, and what it is told (NET-1).

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use tests::node::binary;
use tests::patience::{PATIENCE, until};
use tests::place::Place;
use tests::table::Engine;

use crate::{ANN, Host, signal_to};

/// A service that is ended with this value.
struct Activated(Child);

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    /// Starts a service as systemd does, with two listening sockets.
    fn activate(&self, service: &str, sockets: [TcpListener; 2], notify: &str) -> Activated {
        let [first, second] = sockets.map(OwnedFd::from);
        let log = std::fs::File::create(self.place.join("activated.log")).unwrap();
        // The shell puts them where systemd does, and keeps its process id.
        let script =
            "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"";
        let child = Command::new("/bin/sh")
            .args(["-c", script, "sh"])
            .args(self.command(service, &["run"]))
            .env("NOTIFY_SOCKET", notify)
            .stdin(Stdio::from(first))
            .stdout(Stdio::from(second))
            .stderr(log)
            .spawn();
        Activated(child.unwrap())
    }

    fn activated_log(&self) -> String {
        std::fs::read_to_string(self.place.join("activated.log")).unwrap_or_default()
    }
}

/// Waits until systemd is told something, and returns all of it.
async fn told(manager: &UnixDatagram, expected: &str) -> String {
    manager.set_nonblocking(true).unwrap();
    let mut seen = [0; 256];
    until(expected, || {
        let count = manager.recv(&mut seen).ok()?;
        let said = String::from_utf8_lossy(&seen[..count]).into_owned();
        said.contains(expected).then_some(said)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn passed_sockets_are_used_and_what_was_not_passed_is_bound() {
    let host = Host::new(Engine::Sqlite).await;
    let path = host.place.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let sockets = [host.logins[0], host.logins[1]].map(|a| TcpListener::bind(a).unwrap());
    // Somebody who waits since before the start is served.
    let waiting = std::net::TcpStream::connect(host.logins[0]).unwrap();
    let mut service = host.activate("login-proxy", sockets, &path.to_string_lossy());
    told(&manager, "READY=1").await;
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 4];
    std::io::Read::read_exact(&mut &waiting, &mut greeting).unwrap();
    assert_eq!(&greeting, b"* OK");
    drop(host.session(ANN).await);
    // Bound by the service itself.
    let third: SocketAddr = host.logins[2];
    until("the third listener", || std::net::TcpStream::connect(third).ok()).await.unwrap();
    let pid = i32::try_from(service.0.id()).unwrap();
    signal_to(pid, Signal::HUP);
    told(&manager, "RELOADING=1").await;
    told(&manager, "READY=1").await;
    signal_to(pid, Signal::TERM);
    told(&manager, "STOPPING=1").await;
    assert!(service.0.wait().unwrap().success(), "{}", host.activated_log());
}

#[tokio::test]
async fn a_passed_socket_that_nothing_is_configured_for_is_named() {
    let host = Host::new(Engine::Sqlite).await;
    let stray = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stray.local_addr().unwrap();
    let sockets = [TcpListener::bind(host.logins[0]).unwrap(), stray];
    let mut service = host.activate("login-proxy", sockets, "");
    let status = service.0.wait().unwrap();
    let log = host.activated_log();
    assert!(!status.success() && log.contains(&address.to_string()), "{log}");
}

#[tokio::test]
async fn passed_sockets_are_handed_over_and_systemd_is_told_of_the_new_process() {
    let host = Host::new(Engine::Sqlite).await;
    let sockets = [host.logins[0], host.logins[1]].map(|a| TcpListener::bind(a).unwrap());
    let path = host.place.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut service = host.activate("login-proxy", sockets, &path.to_string_lossy());
    told(&manager, "READY=1").await;
    signal_to(i32::try_from(service.0.id()).unwrap(), Signal::USR2);
    let said = told(&manager, "MAINPID=").await;
    let successor: i32 = said.trim().strip_prefix("MAINPID=").unwrap().parse().unwrap();
    assert!(service.0.wait().unwrap().success(), "{}", host.activated_log());
    drop(host.session(ANN).await);
    signal_to(successor, Signal::TERM);
    told(&manager, "STOPPING=1").await;
}

/// Checked where the tool is.
#[test]
fn the_units_are_understood_by_systemd() {
    let place = Place::new().unwrap();
    let units = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/systemd");
    let mut copies = Vec::new();
    for service in ["login-proxy", "mx-gateway"] {
        let program = binary(service).unwrap();
        for kind in ["service", "socket"] {
            let name = format!("{service}.{kind}");
            let text = std::fs::read_to_string(units.join(&name)).unwrap();
            let text = text
                .replace(&format!("/usr/bin/{service}"), &program.to_string_lossy())
                .lines()
                .filter(|line| !line.starts_with("Documentation="))
                .map(|line| format!("{line}\n"))
                .collect::<String>();
            copies.push(place.write(&name, &text, 0o644, None).unwrap());
        }
    }
    let verify = Command::new("systemd-analyze")
        .arg("verify")
        .args(&copies)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", place.path().display()))
        .output();
    let Ok(output) = verify else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> =
        said.lines().filter(|l| l.contains("login-proxy") || l.contains("mx-gateway")).collect();
    assert!(ours.is_empty(), "{said}");
}
