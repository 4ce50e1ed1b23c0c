//! From the file as written to checked types. Every problem is noted, not only the first.

mod authentication;
mod backends;
mod login;
mod mx;
mod names;
mod web;

use std::net::SocketAddr;
use std::path::Path;

use toml::de::{DeTable, Deserializer};

use self::backends::Listening;
use super::problem::{ConfigError, Problems, remove_at};
use super::{
    Bind, CertificateFiles, Config, ListenerConfig, ListenerTls, LogConfig, LogFormat, NodeConfig,
    OwnershipConfig, ProxyMode, TlsConfig, raw,
};
use crate::address::Domain;

/// Most problems of one kind that are looked for in a file; each costs one more reading of it.
const MAX_READINGS: usize = 50;

/// Reads `text` as the configuration file `file`.
pub(super) fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let (table, syntax) = DeTable::parse_recoverable(text);
    let table = table.into_inner();
    let mut problems = Problems::new(text, table.clone());
    for error in syntax {
        problems.note_at(error.span().unwrap_or_default(), error.message());
    }
    if !problems.found.is_empty() {
        return Err(ConfigError::new(file, problems.found));
    }
    let Some(written) = read(table, text, &mut problems) else {
        return Err(ConfigError::new(file, problems.found));
    };
    let config = Parser { problems: &mut problems }.config(written);
    if problems.found.is_empty() {
        return Ok(config);
    }
    Err(ConfigError::new(file, problems.found).with_certificates(config.tls.certificates))
}

/// Reads the table into the written form. After a wrong key it is taken out and the rest read again,
/// so that all wrong keys are found.
fn read(mut table: DeTable<'_>, text: &str, problems: &mut Problems<'_>) -> Option<raw::File> {
    for _ in 0..MAX_READINGS {
        let whole = toml::Spanned::new(0..text.len(), table.clone());
        match <raw::File as serde::Deserialize>::deserialize(Deserializer::from(whole)) {
            Ok(file) => return Some(file),
            Err(error) => {
                let span = error.span().unwrap_or_default();
                problems.note_at(span.clone(), error.message());
                if !remove_at(&mut table, &span) {
                    return None;
                }
            }
        }
    }
    None
}

struct Parser<'p, 't> {
    problems: &'p mut Problems<'t>,
}

impl Parser<'_, '_> {
    fn config(&mut self, file: raw::File) -> Config {
        let host = own_host_name();
        let has_certificate = file.tls.self_signed || !file.tls.certificates.is_empty();
        let login = self.login(file.login, &host, has_certificate);
        let mx = self.mx(file.mx, &host, has_certificate);
        let backends = self.backends(file.backends, &Listening::of(&mx, &login));
        self.somebody_speaks(&login, &backends);
        self.backends_are_known(&mx, &backends);
        self.nobody_listens_twice(&mx, &login);
        Config {
            node: self.node(file.node, &host),
            ownership: self.ownership(file.ownership),
            backends,
            names: self.names(file.names),
            mx,
            login,
            tls: self.tls(file.tls),
            log: self.log(file.log),
        }
    }

    fn node(&mut self, node: raw::Node, host: &str) -> NodeConfig {
        let name = if node.name.is_empty() { host.to_owned() } else { node.name };
        if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
            self.problems.note("node.name", "must be 1 to 255 octets without control characters");
        }
        NodeConfig {
            name: name.into(),
            state_dir: node.state_dir,
            shutdown_grace: node.shutdown_grace,
            handover_grace: node.handover_grace,
        }
    }

    fn ownership(&mut self, ownership: raw::Ownership) -> OwnershipConfig {
        let url = self.secret("ownership.url", ownership.url, ownership.url_file);
        let listen =
            self.secret("ownership.listen_url", ownership.listen_url, ownership.listen_url_file);
        let known = ["postgres://", "postgresql://", "sqlite:"];
        if !known.iter().any(|scheme| url.starts_with(scheme)) {
            self.problems.note("ownership.url", "must begin with postgres:// or sqlite:");
        }
        let path = url.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
        if path.is_some_and(|path| !path.starts_with('/')) {
            let message =
                "needs an absolute path, sqlite:/…: both services must read the same file";
            self.problems.note("ownership.url", message);
        }
        for (key, value) in [
            ("ownership.max_staleness", ownership.max_staleness),
            ("ownership.poll_interval", ownership.poll_interval),
        ] {
            if value.is_zero() {
                self.problems.note(key, "must be longer than nothing");
            }
        }
        if ownership.max_staleness <= ownership.poll_interval {
            let message = "must be longer than ownership.poll_interval";
            self.problems.note("ownership.max_staleness", message);
        }
        OwnershipConfig {
            url,
            listen_url: Some(listen).filter(|url| !url.is_empty()),
            max_staleness: ownership.max_staleness,
            poll_interval: ownership.poll_interval,
            apply_schema: ownership.apply_schema,
        }
    }

    /// A value that may come from a file instead, so that it need not stand in the configuration.
    fn secret(&mut self, key: &str, value: String, file: Option<std::path::PathBuf>) -> String {
        let Some(path) = file else { return value };
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim_end_matches(['\r', '\n']).to_owned(),
            Err(error) => {
                let message = format!("cannot read {}: {error}", path.display());
                self.problems.note(&format!("{key}_file"), message);
                value
            }
        }
    }

    fn tls(&mut self, tls: raw::Tls) -> TlsConfig {
        if tls.self_signed && !tls.certificates.is_empty() {
            let message = "makes a certificate of its own, and tls.certificates names others: \
                           leave one of the two out";
            self.problems.note("tls.self_signed", message);
        }
        let certificates = tls
            .certificates
            .into_iter()
            .map(|c| CertificateFiles { cert_file: c.cert_file, key_file: c.key_file });
        TlsConfig {
            certificates: certificates.collect(),
            self_signed: tls.self_signed,
            ticket_key_file: tls.ticket_key_file.filter(|file| !file.as_os_str().is_empty()),
        }
    }

    fn listener(
        &mut self,
        key: &str,
        listener: raw::Listener,
        default_tls: ListenerTls,
        has_certificate: bool,
    ) -> Option<ListenerConfig> {
        if listener.listen.is_empty() {
            return None;
        }
        let tls = listener.tls.map_or(default_tls, ListenerTls::from);
        if tls != ListenerTls::None && !has_certificate {
            let message = "needs a certificate: set tls.certificates, or tls.self_signed = true for a \
                           trial, or tls = \"none\" here";
            self.problems.note(key, message);
        }
        let proxy = ProxyMode::from(listener.proxy_protocol);
        if proxy != ProxyMode::Off && listener.proxy_trusted.is_empty() {
            let message = "names no network, so nobody's PROXY header would be believed";
            self.problems.note(&format!("{key}.proxy_trusted"), message);
        }
        for (name, limit) in [
            ("max_connections", listener.max_connections),
            ("max_per_address", listener.max_per_address),
        ] {
            if limit == 0 {
                self.problems.note(&format!("{key}.{name}"), "must be at least 1");
            }
        }
        let binds = listener.listen.iter().filter_map(|text| {
            let bind = bind_of(text);
            if bind.is_none() {
                let message = format!("{text:?} is neither \":PORT\" nor \"ADDRESS:PORT\"");
                self.problems.note(&format!("{key}.listen"), message);
            }
            bind
        });
        Some(ListenerConfig {
            binds: binds.collect(),
            tls,
            proxy,
            proxy_trusted: listener.proxy_trusted,
            max_connections: listener.max_connections,
            max_per_address: listener.max_per_address,
        })
    }

    fn log(&mut self, log: raw::Log) -> LogConfig {
        if let Err(error) = log.level.parse::<tracing_subscriber::filter::EnvFilter>() {
            self.problems.note("log.level", error.to_string());
        }
        // A lone word that is no level would be taken for a module's name, and nothing be logged.
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        for word in log.level.split(',').map(str::trim).filter(|word| !word.contains('=')) {
            if !levels.iter().any(|level| level.eq_ignore_ascii_case(word)) {
                let message = format!("{word:?} is not one of {}", levels.join(", "));
                self.problems.note("log.level", message);
            }
        }
        let format = match log.format {
            raw::LogFormat::Text => LogFormat::Text,
            raw::LogFormat::Json => LogFormat::Json,
        };
        LogConfig { format, level: log.level }
    }

    fn hostname(&mut self, key: &str, given: &str, host: &str) -> Domain {
        let text = if given.is_empty() { host } else { given };
        Domain::parse(text).unwrap_or_else(|error| {
            self.problems.note(key, format!("{text:?} is no host name: {error}"));
            Domain::localhost()
        })
    }

    /// A text that may be empty for "not set".
    fn optional<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        text: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        if text.is_empty() {
            return None;
        }
        parse(text).map_err(|error| self.problems.note(key, format!("{text:?}: {error}"))).ok()
    }
}

impl From<raw::ListenerTls> for ListenerTls {
    fn from(tls: raw::ListenerTls) -> Self {
        match tls {
            raw::ListenerTls::None => Self::None,
            raw::ListenerTls::StartTls => Self::StartTls,
            raw::ListenerTls::Implicit => Self::Implicit,
        }
    }
}

impl From<raw::ProxyMode> for ProxyMode {
    fn from(mode: raw::ProxyMode) -> Self {
        match mode {
            raw::ProxyMode::Off => Self::Off,
            raw::ProxyMode::Optional => Self::Optional,
            raw::ProxyMode::Required => Self::Required,
        }
    }
}

fn bind_of(text: &str) -> Option<Bind> {
    match text.strip_prefix(':') {
        Some(port) => port.parse().ok().map(Bind::Port),
        None => text.parse::<SocketAddr>().ok().map(Bind::Address),
    }
}

fn octets(size: bytesize::ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// The name the kernel has for this host.
fn own_host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
