//! A private Xandikos: CalDAV and CardDAV on loopback for one person. It knows no passwords, so a front
//! asks for them ([`crate::nginx`]).

use std::fs;
use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};

use crate::children::Child;
use crate::patience::until;
use crate::place::Place;
use crate::ports::{self, ATTEMPTS};

/// What it writes.
const LOG: &str = "xandikos.log";
/// The log of a start that failed because the port was taken meanwhile.
const TAKEN: &str = "address already in use";
/// What it says once the port is its own.
const BOUND: &str = "Running on";
/// What to do where there is none.
const INSTALL: &str = "no Xandikos was found: run `tests/deps.sh test`, or install xandikos";
/// Debian's and Ubuntu's, whose interpreter has the modules.
const PROGRAM: &str = "/usr/bin/xandikos";

/// A private Xandikos server, ended with this value.
#[derive(Debug)]
pub struct Xandikos {
    http: SocketAddr,
    // Before the place: it has to end first.
    _child: Child,
    _place: Place,
}

impl Xandikos {
    /// Starts a server with a calendar and an address book of this account's, below `/ACCOUNT/`.
    ///
    /// # Errors
    ///
    /// There is no Xandikos, or it does not start; the end of its log is in the message.
    pub async fn start(account: &str) -> Result<Self> {
        ensure!(fs::exists(PROGRAM)?, INSTALL);
        for _ in 0..ATTEMPTS {
            let place = Place::new()?;
            let data = place.directory("data", 0o700, None)?.to_string_lossy().into_owned();
            let http = ports::reserve_one()?;
            let (host, port) = (http.ip().to_string(), http.port().to_string());
            let principal = format!("/{account}/");
            // Python keeps to itself what it says where nobody watches.
            let mut command = vec!["env", "PYTHONUNBUFFERED=1", PROGRAM, "--defaults"];
            command.extend(["-d", &data, "-l", &host, "-p", &port]);
            command.extend(["--current-user-principal", &principal]);
            let child = Child::start(&[], &command, place.path(), LOG)?;
            let started = until("Xandikos to listen", || {
                (child.log().contains(BOUND) || !child.is_running()).then_some(())
            });
            started.await?;
            if child.is_running() {
                return Ok(Self { http, _child: child, _place: place });
            }
            ensure!(child.log().contains(TAKEN), "Xandikos ended: {}", child.end_of_log());
        }
        bail!("Xandikos found its port taken {ATTEMPTS} times");
    }

    /// Where it speaks HTTP/1.1, without TLS.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The address of something it has.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }
}
