//! Restart, upgrade and reload that nobody notices (KIK-6, NET-1, CFG-3): real programs, clients without
//! pause, small servers behind them.

mod activation;
mod hand_over;
mod reload;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use shared::backend::LoginProtocol;
use tests::children::Child;
use tests::conversation::Conversation;
use tests::login_backend::{LoginBackend, Manners};
use tests::node::{binary, login};
use tests::patience::until;
use tests::place::Place;
use tests::ports;
use tests::sink::Sink;
use tests::table::{Engine, Table};
use tokio::task::JoinSet;

const ANN: &str = "ann@example.org";
const BOB: &str = "bob@example.org";

const PROTOCOLS: [(LoginProtocol, &str); 4] = [
    (LoginProtocol::Imap, "imap"),
    (LoginProtocol::Pop3, "pop3"),
    (LoginProtocol::Submission, "submission"),
    (LoginProtocol::ManageSieve, "managesieve"),
];

/// A host with its programs, its configuration and its table, and two mail systems.
struct Host {
    place: Place,
    table: Table,
    /// In the order of [`PROTOCOLS`].
    old: Vec<LoginBackend>,
    new: Vec<LoginBackend>,
    mail: Sink,
    logins: Vec<SocketAddr>,
    smtp: SocketAddr,
}

/// A service of it: whichever process serves at the moment.
struct Service<'a> {
    host: &'a Host,
    name: &'static str,
    child: Child,
    pid: i32,
    handed_over: usize,
}

impl Host {
    async fn new(engine: Engine) -> Self {
        let (mut old, mut new, mut logins) = (Vec::new(), Vec::new(), Vec::new());
        for (protocol, _) in PROTOCOLS {
            old.push(LoginBackend::start("old", Manners::of(protocol)).await.unwrap());
            new.push(LoginBackend::start("new", Manners::of(protocol)).await.unwrap());
            logins.push(ports::reserve_one().unwrap());
        }
        let table = Table::create(engine).unwrap();
        table
            .sql(&format!(
                "INSERT INTO domains (domain) VALUES ('example.org');
                 INSERT INTO accounts (account, owner) VALUES ('{ANN}', 'old'), ('{BOB}', 'old');"
            ))
            .unwrap();
        let host = Self {
            place: Place::new().unwrap(),
            table,
            old,
            new,
            mail: Sink::start("old", tests::sink::Manners::lmtp()).await.unwrap(),
            logins,
            smtp: ports::reserve_one().unwrap(),
        };
        host.configure(&host.configuration());
        host.install("login-proxy");
        host.install("mx-gateway");
        host
    }

    /// The configuration it begins with.
    fn configuration(&self) -> String {
        let (listeners, backends): (String, String) = PROTOCOLS
            .iter()
            .zip(&self.logins)
            .zip(self.old.iter().zip(&self.new))
            .map(|(((_, key), address), (old, new))| {
                (
                    format!("{key} = {{ listen = [\"{address}\"], tls = \"none\" }}\n"),
                    login("old", key, old.address) + &login("new", key, new.address),
                )
            })
            .unzip();
        format!(
            "[node]\nname = \"node1\"\nstate_dir = \"{state}\"\nshutdown_grace = \"2s\"\n\
             [ownership]\nurl = \"{url}\"\n\
             {backends}\
             [backends.old.mail]\nhost = \"127.0.0.1\"\nport = {mail}\nprotocol = \"lmtp\"\n\
             [mx]\nhostname = \"mx.example.org\"\nsmtp = {{ listen = [\"{smtp}\"], tls = \"none\" }}\n\
             authentication.enabled = false\n\
             [login]\nhostname = \"imap.example.org\"\nfailure_delay = \"0s\"\n{listeners}\
             [log]\nformat = \"json\"\n",
            state = self.place.join("state").display(),
            url = self.table.url(),
            mail = self.mail.address.port(),
            smtp = self.smtp,
        )
    }

    fn configure(&self, text: &str) {
        self.place.write("mailshift.toml", text, 0o644, None).unwrap();
    }

    /// Puts a new file in the program's place, as a package does.
    fn install(&self, service: &str) {
        let fresh = self.place.join("fresh");
        fs::copy(binary(service).unwrap(), &fresh).unwrap();
        fs::rename(fresh, self.program(service)).unwrap();
    }

    fn program(&self, service: &str) -> PathBuf {
        self.place.join(service)
    }

    /// A command with these arguments and the configuration.
    fn command(&self, service: &str, arguments: &[&str]) -> Vec<String> {
        let file = self.place.join("mailshift.toml");
        let program = self.program(service);
        let mut command = vec![program.to_string_lossy().into_owned()];
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        command.extend(["--config".to_owned(), file.to_string_lossy().into_owned()]);
        command
    }

    fn child(&self, command: &[String], log: &str) -> Child {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        Child::start(&[], &command, self.place.path(), log).unwrap()
    }

    async fn start(&self, name: &'static str) -> Service<'_> {
        let child = self.child(&self.command(name, &["run"]), &format!("{name}.log"));
        child.logged(&["\"ready\""]).await.unwrap();
        let listeners = if name == "login-proxy" { PROTOCOLS.len() } else { 1 };
        let service = Service { host: self, name, pid: child.pid(), child, handed_over: 0 };
        service.said("\"listening\"", listeners).await;
        service
    }

    /// A client of the login proxy that is logged in by IMAP.
    async fn session(&self, account: &str) -> Conversation {
        let mut client = Conversation::connect(self.logins[0]).await.unwrap();
        log_in(&mut client, LoginProtocol::Imap, account).await.unwrap();
        client
    }

    /// Holds, fences and flips an account to the backend `third`, as a mover does.
    fn move_to_third(&self) -> anyhow::Result<()> {
        let token = self.table.mailshift(&["hold", ANN, "--for", "1m"])?;
        let token = token.trim_end();
        let moved = self
            .table
            .mailshift(&["fence", ANN, "--token", token, "--wait", "20s"])
            .and_then(|_| self.table.mailshift(&["flip", ANN, "third", "--token", token]));
        if moved.is_err() {
            self.table.mailshift(&["release", ANN, "--token", token])?;
        }
        moved.map(drop)
    }

    /// What `nodes` has of a service, `|` between.
    fn nodes(&self, service: &str) -> String {
        let ask = format!("SELECT node FROM nodes WHERE service = '{service}' ORDER BY node;");
        self.in_nodes(&ask).unwrap().replace('\n', "|")
    }

    /// Asks the table of nodes, which SQLite has in a file of its own.
    fn in_nodes(&self, ask: &str) -> anyhow::Result<String> {
        if !self.table.url().starts_with("sqlite:") {
            return self.table.sql(ask);
        }
        let file = self.table.file().with_file_name("ownership-nodes.db");
        Ok(tests::table::sqlite3(&[], &file, ask)?.trim_end().to_owned())
    }
}

impl Service<'_> {
    fn signal(&self, signal: Signal) {
        signal_to(self.pid, signal);
    }

    /// Waits until its processes have said something so often.
    async fn said(&self, words: &str, count: usize) {
        let what = format!("{count} times {words}");
        let heard =
            until(&what, || (self.child.log().matches(words).count() >= count).then_some(()));
        heard.await.unwrap_or_else(|error| panic!("{error}:\n{}", self.child.end_of_log()));
    }

    fn count(&self, words: &str) -> usize {
        self.child.log().matches(words).count()
    }

    /// Replaces the program and has the process start it. Returns the id of the process before.
    async fn upgrade(&mut self) -> i32 {
        self.host.install(self.name);
        self.signal(Signal::USR2);
        self.handed_over().await
    }

    /// Waits until another process has taken over. Returns the id of the process before.
    async fn handed_over(&mut self) -> i32 {
        self.handed_over += 1;
        self.said("handed over to a new process", self.handed_over).await;
        let log = self.child.log();
        let mut lines = log.lines().filter(|line| line.contains("handed over to a new process"));
        let line: serde_json::Value = serde_json::from_str(lines.next_back().unwrap()).unwrap();
        let pid = i32::try_from(line["pid"].as_i64().unwrap()).unwrap();
        std::mem::replace(&mut self.pid, pid)
    }
}

fn signal_to(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Reads lines up to one that begins with one of these.
async fn up_to(client: &mut Conversation, prefixes: &[&str]) -> anyhow::Result<String> {
    loop {
        let line = client.line().await?;
        if prefixes.iter().any(|prefix| line.starts_with(prefix)) {
            return Ok(line);
        }
    }
}

/// From the greeting to a yes.
async fn log_in(
    client: &mut Conversation,
    protocol: LoginProtocol,
    account: &str,
) -> anyhow::Result<()> {
    let plain = STANDARD.encode(format!("\0{account}\0secret"));
    match protocol {
        LoginProtocol::Imap => {
            client.expect("* OK").await?;
            client.say(&format!("in LOGIN {account} secret")).await?;
            client.expect("in OK").await?;
        }
        LoginProtocol::Pop3 => {
            client.expect("+OK").await?;
            client.say(&format!("USER {account}")).await?;
            client.expect("+OK").await?;
            client.say("PASS secret").await?;
            client.expect("+OK").await?;
        }
        LoginProtocol::Submission => {
            client.expect("220").await?;
            client.say("EHLO client.example.com").await?;
            up_to(client, &["250 "]).await?;
            client.say(&format!("AUTH PLAIN {plain}")).await?;
            client.expect("235").await?;
        }
        LoginProtocol::ManageSieve => {
            up_to(client, &["OK"]).await?;
            client.say(&format!("AUTHENTICATE \"PLAIN\" \"{plain}\"")).await?;
            client.expect("OK").await?;
        }
    }
    Ok(())
}

/// Clients that come again and again without a pause. What went wrong for any of them is kept.
struct Crowd {
    tasks: JoinSet<Result<(), String>>,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl Crowd {
    /// So many times each of `visits`, which says what a client does from its connection on.
    fn of<V, F>(times: usize, visits: &[V]) -> Self
    where
        V: Fn() -> F + Clone + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send,
    {
        let mut crowd =
            Self { tasks: JoinSet::new(), stop: Arc::default(), served: Arc::default() };
        for visit in visits.iter().flat_map(|visit| std::iter::repeat_n(visit, times)) {
            let (visit, stop) = (visit.clone(), Arc::clone(&crowd.stop));
            let served = Arc::clone(&crowd.served);
            crowd.tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    visit().await.map_err(|error| format!("{error:#}"))?;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        crowd
    }

    /// Logins in all protocols.
    fn of_logins(host: &Host, times: usize) -> Self {
        let visits: Vec<_> = PROTOCOLS
            .iter()
            .zip(&host.logins)
            .map(|((protocol, _), address)| {
                let (protocol, address) = (*protocol, *address);
                move || async move {
                    let mut client = Conversation::connect(address).await?;
                    log_in(&mut client, protocol, BOB).await
                }
            })
            .collect();
        Self::of(times, &visits)
    }

    /// Waits until so many more have been served.
    async fn serve(&self, more: usize) {
        let so_far = self.served.load(Ordering::Relaxed);
        until("clients to be served", || {
            (self.served.load(Ordering::Relaxed) >= so_far + more).then_some(())
        })
        .await
        .unwrap();
    }

    /// Nothing went wrong for anybody.
    async fn content(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut complaints = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            complaints.extend(ended.unwrap().err());
        }
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
}
