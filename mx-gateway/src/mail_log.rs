//! A second log in the words of Postfix (`mx.mail_log`), for pflogsumm, logwatch, fail2ban and habits.
//!
//! What happened is a method of [`MailLog`], what is written of it a pure function of [`lines`]. Lines are
//! written by a thread of their own: where the disk does not keep up they are dropped and counted, and mail
//! never waits. The number behind `smtpd` is not a process: each session has one of its own, since programs
//! that read such logs take what has the same number for one client's.

pub mod lines;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shared::address::Address;
use shared::backend::MailProtocol;
use shared::config::MailLogConfig;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::{Class, Reply};
use time::OffsetDateTime;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

pub use lines::{Client, Delays, Named, Relay, Status, Tally};

use crate::delivery::Settled;
use crate::outcome::Verdict;

/// Lines that may wait to be written.
const WAITING_LINES: usize = 16_384;
/// A file that cannot be opened is tried again this often.
const OPEN_EVERY: Duration = Duration::from_secs(10);
/// Numbers of sessions begin again after so many, as those of processes do.
const SESSIONS: u32 = 1 << 22;

/// The log; nothing is written where none is configured.
#[derive(Debug)]
pub struct MailLog(Option<Open>);

struct Open {
    config: MailLogConfig,
    /// Our name without its domain.
    host: Box<str>,
    writer: NonBlocking,
    dropped: ErrorCounter,
    /// How many dropped lines were complained of.
    complained: AtomicUsize,
    reopen: Arc<AtomicBool>,
    sessions: AtomicU32,
    process: u32,
    _writes_the_rest: WorkerGuard,
}

impl MailLog {
    /// Writes nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Writes to what is configured, if anything is. `hostname` is the gateway's.
    pub fn start(config: Option<&MailLogConfig>, hostname: &str) -> Self {
        let Some(config) = config else { return Self::off() };
        let reopen = Arc::new(AtomicBool::new(false));
        let file = Rotated {
            path: config.file.clone(),
            file: None,
            reopen: Arc::clone(&reopen),
            tried: None,
        };
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(WAITING_LINES)
            .lossy(true)
            .thread_name("mail-log")
            .finish(file);
        Self(Some(Open {
            config: config.clone(),
            host: hostname.split('.').next().unwrap_or(hostname).into(),
            dropped: writer.error_counter(),
            writer,
            complained: AtomicUsize::new(0),
            reopen,
            sessions: AtomicU32::new(0),
            process: std::process::id(),
            _writes_the_rest: guard,
        }))
    }

    /// True when this one writes what `config` says: it only opens its file anew then, since what moves logs
    /// away has us reload. Another one is to be started otherwise.
    pub fn goes_on_as(&self, config: Option<&MailLogConfig>) -> bool {
        let goes_on = self.0.as_ref().map(|open| &open.config) == config;
        if let (Some(open), true) = (&self.0, goes_on) {
            open.reopen.store(true, Ordering::Relaxed);
        }
        goes_on
    }

    /// A client has connected: what the lines of its session call it.
    pub fn connected(&self, address: IpAddr) -> Client {
        let Some(open) = &self.0 else { return Client { address, session: 0 } };
        let session = open.sessions.fetch_add(1, Ordering::Relaxed) % SESSIONS;
        let client = Client { address, session: session.saturating_add(1) };
        self.smtpd(&client, || lines::connect(&client));
        client
    }

    /// It is gone.
    pub fn disconnected(&self, client: &Client, tally: &Tally) {
        self.smtpd(client, || lines::disconnect(client, tally));
    }

    /// A command was refused, for good or for now.
    pub fn rejected(&self, client: &Client, what: &Named<'_>, reply: &Reply) {
        self.smtpd(client, || lines::reject(client, what, reply));
    }

    /// A message has come, under this name.
    pub fn received(
        &self,
        client: &Client,
        id: &str,
        message_id: Option<&str>,
        from: &ReversePath,
        size: u64,
        recipients: usize,
    ) {
        self.smtpd(client, || lines::client(id, client));
        self.other("cleanup", || lines::message_id(id, message_id.unwrap_or("<>")));
        self.other("qmgr", || lines::queued(id, from, size, recipients));
    }

    /// What became of an attempt to deliver it to a recipient.
    pub fn attempted(
        &self,
        id: &str,
        to: &impl fmt::Display,
        relay: Option<&Relay<'_>>,
        delays: &Delays,
        status: &Status<'_>,
    ) {
        let daemon = relay.map_or("error", |relay| relay.daemon);
        self.other(daemon, || lines::attempt(id, &to.to_string(), relay, delays, status));
    }

    /// What a delivery has found for a recipient.
    pub fn settled(&self, id: &str, to: &Address, one: &Settled, delays: &Delays) {
        let Settled { verdict, why, reply, backend, .. } = one;
        let relay = Relay {
            daemon: match backend.mail.as_ref().map(|mail| mail.protocol) {
                Some(MailProtocol::Lmtp) => "lmtp",
                Some(MailProtocol::Smtp) | None => "smtp",
            },
            name: backend.name.as_str(),
            address: None,
        };
        let why = why.as_deref().unwrap_or("no verdict");
        let status = match (verdict, reply) {
            (Verdict::Accepted, Some(reply)) => Status::Sent(reply),
            (Verdict::Refused(refusal), Some(reply)) if refusal.class() == Class::Permanent => {
                Status::Bounced(reply)
            }
            (_, Some(reply)) => Status::Deferred(reply),
            (_, None) => Status::Unanswered(why),
        };
        self.attempted(id, to, Some(&relay), delays, &status);
    }

    /// What became of a recipient that nobody was asked for.
    pub fn unsent(&self, id: &str, to: &Address, verdict: &Verdict, why: &str, delays: &Delays) {
        let status = match verdict {
            Verdict::Refused(reply) if reply.class() == Class::Permanent => Status::Bounced(reply),
            _ => Status::Unanswered(why),
        };
        self.attempted(id, to, None, delays, &status);
    }

    /// It has the message from before; what its client is told.
    pub fn repeated(&self, id: &str, to: &Address, reply: &Reply) {
        self.attempted(id, to, None, &Delays::default(), &Status::Sent(reply));
    }

    /// Nothing more is to be done for it.
    pub fn removed(&self, id: &str) {
        self.other("qmgr", || lines::removed(id));
    }

    fn smtpd(&self, client: &Client, text: impl FnOnce() -> String) {
        self.write("smtpd", |_| client.session, text);
    }

    fn other(&self, daemon: &str, text: impl FnOnce() -> String) {
        self.write(daemon, |open| open.process, text);
    }

    fn write(
        &self,
        daemon: &str,
        number: impl FnOnce(&Open) -> u32,
        text: impl FnOnce() -> String,
    ) {
        let Some(open) = &self.0 else { return };
        let now = OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc());
        let tag = format!("{}/{daemon}[{}]", open.config.name, number(open));
        let line = lines::line(now, &open.host, &tag, &text());
        // Never waits, and never fails while its thread lives.
        let _ = open.writer.clone().write_all(line.as_bytes());
        open.complain();
    }
}

impl Open {
    /// Says how many lines were dropped: at the first, and whenever they have doubled.
    fn complain(&self) {
        let (dropped, said) =
            (self.dropped.dropped_lines(), self.complained.load(Ordering::Relaxed));
        if dropped > 0 && dropped >= said.saturating_mul(2) {
            let won = self.complained.compare_exchange(
                said,
                dropped,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if won.is_ok() {
                let file = self.config.file.display();
                tracing::warn!(%file, dropped, "lines of mx.mail_log were dropped: its disk is too slow");
            }
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A file that is opened anew when it was moved away. For the thread that writes it alone.
struct Rotated {
    path: PathBuf,
    file: Option<File>,
    reopen: Arc<AtomicBool>,
    /// When it could not be opened.
    tried: Option<Instant>,
}

impl Rotated {
    fn file(&mut self) -> io::Result<&mut File> {
        if self.reopen.swap(false, Ordering::Relaxed) {
            (self.file, self.tried) = (None, None);
        }
        if self.file.is_none() {
            if self.tried.is_some_and(|at| at.elapsed() < OPEN_EVERY) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let opened = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path);
            if let Err(error) = &opened {
                let file = self.path.display();
                tracing::error!(%error, %file, "mx.mail_log cannot be opened: its lines are lost until it can be");
                self.tried = Some(Instant::now());
            }
            self.file = Some(opened?);
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Write for Rotated {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.file()?.write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> IpAddr {
        "192.0.2.7".parse().unwrap()
    }

    #[test]
    fn a_log_that_was_moved_away_is_opened_anew_at_a_reload() {
        let directory = tempfile::tempdir().unwrap();
        let (file, moved) =
            (directory.path().join("mail.log"), directory.path().join("mail.log.1"));
        let config = MailLogConfig { file: file.clone(), name: "postfix".into() };
        let log = MailLog::start(Some(&config), "mx.example.org");
        log.connected(client());
        // What waits is written before the next file is looked at.
        while std::fs::read_to_string(&file).unwrap_or_default().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::rename(&file, &moved).unwrap();
        assert!(log.goes_on_as(Some(&config)));
        log.connected(client());
        drop(log);
        for (file, session) in [(moved, 1), (file, 2)] {
            let text = std::fs::read_to_string(file).unwrap();
            let end = format!(" mx postfix/smtpd[{session}]: connect from unknown[192.0.2.7]\n");
            assert!(text.ends_with(&end) && text.lines().count() == 1, "{text}");
        }
    }

    #[test]
    fn another_file_or_name_is_another_log() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mail.log");
        let config = MailLogConfig { file, name: "postfix".into() };
        let log = MailLog::start(Some(&config), "mx.example.org");
        assert!(!log.goes_on_as(Some(&MailLogConfig { name: "mx".into(), ..config })));
        assert!(!log.goes_on_as(None) && MailLog::off().goes_on_as(None));
    }

    #[test]
    fn a_log_that_cannot_be_written_keeps_nobody_waiting() {
        let config = MailLogConfig { file: "/no/such/place/mail.log".into(), name: "p".into() };
        let log = MailLog::start(Some(&config), "mx");
        for _ in 0..WAITING_LINES * 2 {
            log.connected(client());
        }
    }
}
