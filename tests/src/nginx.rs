//! A private nginx as a plain web backend: files to read, a place to upload to, and a front with passwords
//! for servers that have none.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use crate::children::Child;
use crate::patience::until;
use crate::place::Place;
use crate::ports::{self, ATTEMPTS};
use crate::test_ca::Identity;
use crate::user::User;

/// What it complains about.
const LOG: &str = "nginx.log";
/// A line for each request.
const ACCESS: &str = "access.log";
/// The log of a start that failed because the port was taken meanwhile.
const TAKEN: &str = "Address already in use";
/// What to do where there is none.
const INSTALL: &str = "no nginx was found: run `tests/deps.sh test`, or install nginx";
/// Debian's and Ubuntu's.
const PROGRAM: &str = "/usr/sbin/nginx";
/// Directories that belong to whom it runs as.
const DIRECTORIES: [&str; 3] = ["temporary", "html/upload", "logs"];
/// What the page `/` runs in a browser: it wants more of the same server, and says in the title what came.
const SCRIPT: &str =
    "fetch(location.origin + '/files/1k').then(answer => answer.text()).then(text => {
    const protocol = performance.getEntriesByType('navigation')[0].nextHopProtocol;
    document.title = `${document.body.dataset.name} ${text.length} by ${protocol}`;
});
";

/// What a server is to be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Accounts and their passwords. None: everybody may see everything.
    pub users: Vec<(String, String)>,
    /// With this certificate it speaks TLS, HTTP/1.1 and HTTP/2.
    pub tls: Option<Identity>,
    /// It passes everything on to this server; it has no files then.
    pub behind: Option<SocketAddr>,
}

impl Options {
    /// Accounts that all have the password `secret`.
    pub fn with_users<'a>(accounts: impl IntoIterator<Item = &'a str>) -> Self {
        let users = accounts.into_iter().map(|name| (name.to_owned(), "secret".to_owned()));
        Self { users: users.collect(), ..Self::default() }
    }
}

/// A private nginx, ended with this value.
#[derive(Debug)]
pub struct Nginx {
    name: String,
    options: Options,
    http: SocketAddr,
    // Before the place: it has to end first.
    child: Option<Child>,
    place: Place,
    user: User,
}

impl Nginx {
    /// Starts a server. Its `name` is in the header `X-Backend` of every answer and in its page `/`; there
    /// are `/files/1k`, `/files/64k` and `/files/8m`, and what is PUT below `/upload/` is kept.
    ///
    /// # Errors
    ///
    /// There is no nginx, or it does not start; the end of its log is in the message.
    pub async fn start(name: &str, options: Options) -> Result<Self> {
        ensure!(fs::exists(PROGRAM)?, INSTALL);
        let (place, user) = (Place::new()?, User::unprivileged()?);
        for directory in ["html", "html/files"] {
            place.directory(directory, 0o755, None)?;
        }
        for directory in DIRECTORIES {
            place.directory(directory, 0o755, Some(user))?;
        }
        let http = ports::reserve_one()?;
        let mut server = Self { name: name.to_owned(), options, http, child: None, place, user };
        server.write_files()?;
        for _ in 0..ATTEMPTS {
            match server.resume().await {
                Err(_) if server.complaints().contains(TAKEN) => {
                    server.http = ports::reserve_one()?;
                }
                other => return other.map(|()| server),
            }
        }
        bail!("nginx found its port taken {ATTEMPTS} times");
    }

    /// Starts it again after [`Self::stop`], on the same port.
    ///
    /// # Errors
    ///
    /// It does not start; the end of its log is in the message.
    pub async fn resume(&mut self) -> Result<()> {
        self.place.write("nginx.conf", &self.settings()?, 0o644, None)?;
        self.place.write(LOG, "", 0o644, None)?;
        let file = self.place.join("nginx.conf").to_string_lossy().into_owned();
        let place = self.place.path().to_string_lossy().into_owned();
        let pid = self.place.join("logs/pid");
        if pid.exists() {
            fs::remove_file(&pid)?;
        }
        let before = if self.user == User::own() { Vec::new() } else { self.user.before_command() };
        let mut command: Vec<&str> = before.iter().map(String::as_str).collect();
        command.extend([PROGRAM, "-p", &place, "-c", &file, "-e", "stderr"]);
        let child = Child::start(&[], &command, self.place.path(), LOG)?;
        // It writes its pid when the port is its own.
        let started =
            until("nginx to start", || (pid.exists() || !child.is_running()).then_some(()));
        started.await?;
        ensure!(child.is_running(), "nginx ended: {}", child.end_of_log());
        self.child = Some(child);
        Ok(())
    }

    /// Ends it as an outage does.
    ///
    /// # Errors
    ///
    /// It does not run, or does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.child.take().context("it does not run")?.kill()
    }

    /// What it says it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it speaks HTTP, with TLS if it has a certificate.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The address of something it has.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.http)
    }

    /// What was put below `/upload/` under this name.
    pub fn uploaded(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.place.join("html/upload").join(name)).ok()
    }

    /// A line for each request: client, user, request, status, octets, `c=` the connection's number, `n=` the
    /// request's on it, `xff=` and `fwd=` what it was told of the client, `host=`.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.join("logs").join(ACCESS)).unwrap_or_default()
    }

    /// What it complains about.
    pub fn complaints(&self) -> String {
        fs::read_to_string(self.place.join(LOG)).unwrap_or_default()
    }

    /// Waits until a line of [`Self::log`] has all of these words.
    ///
    /// # Errors
    ///
    /// None comes.
    pub async fn logged(&self, words: &[&str]) -> Result<String> {
        let found = until("a line in nginx's log", || {
            let log = self.log();
            let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned)
        });
        found.await.with_context(|| format!("{words:?} is not in the log:\n{}", self.log()))
    }

    fn write_files(&self) -> Result<()> {
        let users = self.options.users.iter().fold(String::new(), |mut text, (name, password)| {
            let _ = writeln!(text, "{name}:{{PLAIN}}{password}");
            text
        });
        self.place.write("users", &users, 0o600, Some(self.user))?;
        let page = format!(
            "<!doctype html>
<html><head><meta charset=\"utf-8\"><title>{name}</title><link rel=\"stylesheet\" href=\"style.css\"></head>
<body data-name=\"{name}\"><p>This is <b>{name}</b>.</p>
<script src=\"page.js\"></script></body></html>
",
            name = self.name,
        );
        for (file, text) in [
            ("html/index.html", page.as_str()),
            ("html/page.js", SCRIPT),
            ("html/style.css", "b { color: green }\n"),
            ("html/files/1k", &"k".repeat(1024)),
            ("html/files/64k", &"K".repeat(64 * 1024)),
            ("html/files/8m", &"M".repeat(8 * 1024 * 1024)),
        ] {
            self.place.write(file, text, 0o644, None)?;
        }
        Ok(())
    }

    fn settings(&self) -> Result<String> {
        let place = self.place.path().display();
        let (listen, tls) = match &self.options.tls {
            None => (self.http.to_string(), String::new()),
            Some(Identity { cert_file, key_file }) => {
                let (cert, key) = (cert_file.display(), key_file.display());
                let tls = format!("ssl_certificate {cert};\nssl_certificate_key {key};\n");
                (format!("{} ssl http2", self.http), tls)
            }
        };
        let passwords = if self.options.users.is_empty() {
            String::new()
        } else {
            format!("auth_basic \"{}\";\nauth_basic_user_file {place}/users;\n", self.name)
        };
        let locations = self.locations();
        let mut temporary = String::new();
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(temporary, "{kind}_temp_path {place}/temporary/{kind};")?;
        }
        Ok(format!(
            "daemon off;
worker_processes 1;
pid {place}/logs/pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
types {{ text/html html; application/javascript js; text/css css; }}
default_type application/octet-stream;
log_format said '$remote_addr $remote_user \"$request\" $status $body_bytes_sent c=$connection '
    'n=$connection_requests xff=\"$http_x_forwarded_for\" fwd=\"$http_forwarded\" host=$http_host';
access_log {place}/logs/{ACCESS} said;
{temporary}client_max_body_size 0;
keepalive_timeout 75;
keepalive_requests 1000000;
server {{
listen {listen};
{tls}{passwords}add_header X-Backend {name} always;
root {place}/html;
{locations}}}
}}
",
            name = self.name,
        ))
    }

    fn locations(&self) -> String {
        match self.options.behind {
            // The password is this server's alone.
            Some(behind) => format!(
                "location / {{
proxy_pass http://{behind};
proxy_set_header Host $http_host;
proxy_set_header Authorization \"\";
}}
"
            ),
            None => "location /upload/ { dav_methods PUT DELETE; dav_access user:rw all:r; }\n"
                .to_owned(),
        }
    }
}
