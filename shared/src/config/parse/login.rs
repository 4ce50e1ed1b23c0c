//! The login proxy's own section.

use std::time::Duration;

use super::{Parser, raw};
use crate::backend::{Backends, LoginProtocol};
use crate::config::{Advertised, ListenerTls, LoginConfig, LoginListener, WebListener};
use crate::sasl::{Mechanism, Mechanisms};

/// Longest capability that may be configured, in octets.
const MAX_ADVERTISED: usize = 200;
/// Longest time a session may go on after a hold, or after its node's lease has ended: half of what the
/// table waits beyond that end.
const MAX_KICK_GRACE: Duration = Duration::from_secs(5);

impl Parser<'_, '_> {
    pub(super) fn login(
        &mut self,
        login: raw::Login,
        host: &str,
        has_certificate: bool,
    ) -> LoginConfig {
        for (key, timeout) in [
            ("login.login_timeout", login.login_timeout),
            ("login.attach_timeout", login.attach_timeout),
            ("login.idle_timeout", login.idle_timeout),
            ("login.guess_window", login.guess_window),
        ] {
            if timeout.is_zero() {
                self.problems.note(key, "must be longer than nothing");
            }
        }
        if login.kick_grace > MAX_KICK_GRACE {
            let message = format!(
                "must be at most {}s: a hold, and a node cut off from the table, wait no longer",
                MAX_KICK_GRACE.as_secs()
            );
            self.problems.note("login.kick_grace", message);
        }
        let listeners = [
            ("imap", LoginProtocol::Imap, ListenerTls::StartTls, login.imap),
            ("imaps", LoginProtocol::Imap, ListenerTls::Implicit, login.imaps),
            ("pop3", LoginProtocol::Pop3, ListenerTls::StartTls, login.pop3),
            ("pop3s", LoginProtocol::Pop3, ListenerTls::Implicit, login.pop3s),
            ("submission", LoginProtocol::Submission, ListenerTls::StartTls, login.submission),
            ("submissions", LoginProtocol::Submission, ListenerTls::Implicit, login.submissions),
            ("managesieve", LoginProtocol::ManageSieve, ListenerTls::StartTls, login.managesieve),
        ];
        let listeners = listeners.into_iter().filter_map(|(key, protocol, tls, listener)| {
            let key = format!("login.{key}");
            let listener = self.listener(&key, listener, tls, has_certificate)?;
            Some(LoginListener { key: key.into(), protocol, listener })
        });
        let listeners = listeners.collect();
        let hostname = self.hostname("login.hostname", &login.hostname, host);
        let web = [
            ("http", ListenerTls::None, login.http),
            ("https", ListenerTls::Implicit, login.https),
        ];
        let web_listeners = web.into_iter().filter_map(|(key, tls, listener)| {
            let key = format!("login.{key}");
            let listener = self.listener(&key, listener, tls, has_certificate)?;
            if listener.tls == ListenerTls::StartTls {
                let message = "HTTP has no STARTTLS: \"implicit\" or \"none\"";
                self.problems.note(&format!("{key}.tls"), message);
            }
            Some(WebListener { key: key.into(), listener })
        });
        let web_listeners = web_listeners.collect();
        LoginConfig {
            listeners,
            web_listeners,
            web: self.web(login.web, &hostname),
            hostname,
            advertised: self.advertised(login.advertise),
            login_timeout: login.login_timeout,
            max_failures: login.max_failures.max(1),
            failure_delay: login.failure_delay,
            guesses_per_address: login.guesses_per_address,
            guess_window: login.guess_window,
            attach_timeout: login.attach_timeout,
            hold_wait: login.hold_wait,
            max_held_per_account: login.max_held_per_account,
            max_held: login.max_held,
            idle_timeout: login.idle_timeout,
            kick_grace: login.kick_grace,
            data_grace: login.data_grace,
            allow_plaintext: login.allow_plaintext,
            trusted_networks: login.trusted_networks,
        }
    }

    /// A listener for whose protocol no backend has an endpoint could only ever refuse.
    pub(super) fn somebody_speaks(&mut self, login: &LoginConfig, backends: &Backends) {
        for protocol in LoginProtocol::ALL {
            let listens = login.listeners.iter().any(|listener| listener.protocol == protocol);
            if listens && !backends.iter().any(|backend| backend.login(protocol).is_some()) {
                let message = format!(
                    "no backend speaks {protocol}: set [backends.NAME.{protocol}] for each that does"
                );
                self.problems.note(&format!("login.{protocol}"), message);
            }
        }
        let speaks = backends.iter().any(|backend| backend.http.is_some());
        if let Some(listener) = login.web_listeners.first().filter(|_| !speaks) {
            let message = "no backend speaks HTTP: set [backends.NAME.http] for each that does";
            self.problems.note(&listener.key, message);
        }
        if let Some(listener) = login.web_listeners.first().filter(|_| login.web.rules.is_empty()) {
            let message = "listens, and no rule says what for: set login.web.presets, or rules";
            self.problems.note(&listener.key, message);
        }
        self.web_backends_are_known(&login.web, backends);
    }

    /// What is to be said instead of what all backends have.
    fn advertised(&mut self, advertise: raw::Advertise) -> Advertised {
        let raw::Advertise { mechanisms, imap, pop3, submission, managesieve } = advertise;
        let mut known = Mechanisms::default();
        for name in &mechanisms {
            match Mechanism::parse(name.as_bytes()) {
                Some(mechanism) => known.insert(mechanism),
                None => {
                    let names: Vec<_> = Mechanism::ALL.iter().map(|known| known.as_str()).collect();
                    let message = format!("{name:?} is not one of {}", names.join(", "));
                    self.problems.note("login.advertise.mechanisms", message);
                }
            }
        }
        Advertised {
            mechanisms: (!mechanisms.is_empty()).then_some(known),
            imap: self.imap_capabilities(imap),
            pop3: self.lines(LoginProtocol::Pop3, pop3, &["STLS", "SASL", "USER"]),
            submission: self.lines(
                LoginProtocol::Submission,
                submission,
                &["STARTTLS", "AUTH", "XCLIENT", "XFORWARD"],
            ),
            managesieve: self.lines(
                LoginProtocol::ManageSieve,
                managesieve,
                &["STARTTLS", "SASL", "IMPLEMENTATION", "UNAUTHENTICATE", "XCLIENT"],
            ),
        }
    }

    /// Words of which one says that this is IMAP, and none what only the connection at hand can tell.
    fn imap_capabilities(&mut self, words: Vec<String>) -> Option<Vec<Box<str>>> {
        let told_by_front = ["STARTTLS", "LOGINDISABLED", "UNAUTHENTICATE"];
        let good = |word: &String| {
            let word = word.to_ascii_uppercase();
            !word.is_empty()
                && word
                    .bytes()
                    .all(|octet| octet.is_ascii_graphic() && !b"(){%*\"\\]".contains(&octet))
                && !word.starts_with("AUTH=")
                && !told_by_front.contains(&&*word)
        };
        let version = |word: &String| {
            word.eq_ignore_ascii_case("IMAP4rev1") || word.eq_ignore_ascii_case("IMAP4rev2")
        };
        let fits = words.iter().all(good) && words.iter().any(version);
        if !fits && !words.is_empty() {
            self.problems.note(
                "login.advertise.imap",
                "must be words, IMAP4rev1 among them, without STARTTLS, LOGINDISABLED, \
                 UNAUTHENTICATE and AUTH=, which depend on the connection",
            );
        }
        boxed(words)
    }

    /// Lines that begin with a word which is not one of those that only the connection at hand can tell.
    fn lines(
        &mut self,
        protocol: LoginProtocol,
        lines: Vec<String>,
        told_by_front: &[&str],
    ) -> Option<Vec<Box<str>>> {
        let good = |line: &String| {
            let word = line.split(' ').next().unwrap_or_default().trim_matches('"');
            !word.is_empty()
                && line.len() <= MAX_ADVERTISED
                && line.bytes().all(|octet| matches!(octet, b' '..=b'~'))
                && !told_by_front.iter().any(|told| told.eq_ignore_ascii_case(word))
        };
        if !lines.iter().all(good) {
            let message = format!(
                "must be lines of up to {MAX_ADVERTISED} printable characters, without {}, which \
                 depend on the connection",
                told_by_front.join(", ")
            );
            self.problems.note(&format!("login.advertise.{protocol}"), message);
        }
        boxed(lines)
    }
}

fn boxed(lines: Vec<String>) -> Option<Vec<Box<str>>> {
    (!lines.is_empty()).then(|| lines.into_iter().map(String::into).collect())
}
