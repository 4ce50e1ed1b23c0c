//! What of a changed configuration a running service cannot take in.

use super::{Config, ListenerConfig};

impl Config {
    /// The keys in which `new` differs from this configuration and which count from the start of a process
    /// only.
    pub fn needs_restart(&self, new: &Self) -> Vec<String> {
        let (node, ownership) = (&self.node, &self.ownership);
        let differs = [
            ("node.name", node.name != new.node.name),
            ("node.state_dir", node.state_dir != new.node.state_dir),
            ("ownership.url", ownership.url != new.ownership.url),
            ("ownership.listen_url", ownership.listen_url != new.ownership.listen_url),
            ("ownership.max_staleness", ownership.max_staleness != new.ownership.max_staleness),
            ("ownership.poll_interval", ownership.poll_interval != new.ownership.poll_interval),
            ("mx.lookup.socket", self.mx.lookup.socket != new.mx.lookup.socket),
            ("tls.self_signed", self.tls.self_signed != new.tls.self_signed),
            ("log.format", self.log.format != new.log.format),
        ];
        let mut keys: Vec<String> = differs
            .into_iter()
            .filter(|&(_, differs)| differs)
            .map(|(key, _)| key.to_owned())
            .collect();
        let (before, after) = (self.listeners(), new.listeners());
        for (key, listener) in &before {
            match after.iter().find(|(other, _)| other == key) {
                Some((_, other)) => {
                    keys.extend((listener.binds != other.binds).then(|| format!("{key}.listen")));
                    keys.extend((listener.tls != other.tls).then(|| format!("{key}.tls")));
                }
                None => keys.push(format!("{key}.listen")),
            }
        }
        let added = after.iter().filter(|(key, _)| before.iter().all(|(other, _)| other != key));
        keys.extend(added.map(|(key, _)| format!("{key}.listen")));
        keys
    }

    fn listeners(&self) -> Vec<(Box<str>, &ListenerConfig)> {
        let mail = self.mx.listeners.iter().map(|mx| (mx.kind.key().into(), &mx.config));
        let lookup = &self.mx.lookup;
        let maps = lookup.socketmap.iter().map(|listener| ("mx.lookup".into(), listener));
        let tables = lookup
            .tcp_tables
            .iter()
            .map(|(backend, listener)| (format!("mx.lookup.tcp_table.{backend}").into(), listener));
        let logins = self.login.listeners.iter().map(|login| (login.key.clone(), &login.listener));
        let web = self.login.web_listeners.iter().map(|web| (web.key.clone(), &web.listener));
        mail.chain(maps).chain(tables).chain(logins).chain(web).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BEFORE: &str = r#"
[node]
name = "a"
[ownership]
url = "sqlite:/tmp/ownership.db"
[tls]
self_signed = true
[backends.old.mail]
host = "127.0.0.1"
[backends.old.imap]
host = "127.0.0.1"
[mx]
hostname = "mx.example.org"
smtp = { listen = [":25"] }
[login]
hostname = "imap.example.org"
imaps = { listen = [":993"], max_connections = 10 }
"#;

    fn keys(old: &str, new: &str) -> Vec<String> {
        let parse = |text: &str| Config::parse(Path::new("mailshift.toml"), text).unwrap();
        parse(BEFORE).needs_restart(&parse(&BEFORE.replace(old, new)))
    }

    #[test]
    fn what_is_bound_or_opened_at_start_needs_a_restart() {
        for (old, new, needed) in [
            ("name = \"a\"", "name = \"b\"", &["node.name"][..]),
            ("/tmp/ownership.db", "/tmp/other.db", &["ownership.url"]),
            (":993\"]", ":1993\"], tls = \"none\"", &["login.imaps.listen", "login.imaps.tls"]),
            ("imaps", "imap", &["login.imaps.listen", "login.imap.listen"]),
            ("smtp = { listen = [\":25\"] }", "", &["mx.smtp.listen"]),
        ] {
            assert_eq!(keys(old, new), needed, "{new}");
        }
    }

    #[test]
    fn what_each_connection_asks_for_needs_none() {
        for (old, new) in [
            ("max_connections = 10", "max_connections = 20"),
            ("[backends.old.imap]\nhost", "[backends.old.imap]\nport = 10\nhost"),
            ("name = \"a\"", "name = \"a\"\nshutdown_grace = \"1s\""),
        ] {
            assert!(keys(old, new).is_empty(), "{new}");
        }
    }
}
