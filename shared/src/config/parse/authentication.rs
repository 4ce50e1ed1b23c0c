//! What is found out about senders.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Parser;
use crate::address::Domain;
use crate::config::{ArcSealConfig, AuthenticationConfig, Enforcement, EnforcementMode, raw};

/// The key of `enforce` that stands for all domains that are not named.
const OTHERS: &str = "*";

impl Parser<'_, '_> {
    pub(super) fn authentication(
        &mut self,
        written: raw::Authentication,
        hostname: &Domain,
    ) -> Option<AuthenticationConfig> {
        if written.time_limit.is_zero() {
            self.problems.note("mx.authentication.time_limit", "must be longer than nothing");
        }
        let name = self.hostname("mx.authentication.name", &written.name, hostname.as_str());
        let name_servers = self.name_servers(&written.dns);
        let enforcement = self.enforcement(written.enforce);
        let arc_seal = self.arc_seal(written.arc_seal);
        written.enabled.then_some(AuthenticationConfig {
            name,
            time_limit: written.time_limit,
            name_servers,
            enforcement,
            max_signatures: written.max_signatures,
            max_verified_size: written.max_verified_size.as_u64(),
            arc_seal,
        })
    }

    fn name_servers(&mut self, written: &[String]) -> Vec<SocketAddr> {
        let mut servers = Vec::new();
        for text in written {
            match text.parse() {
                Ok(server) => servers.push(server),
                Err(_) => {
                    let message = format!("{text:?} is no \"ADDRESS:PORT\"");
                    self.problems.note("mx.authentication.dns", message);
                }
            }
        }
        servers
    }

    fn enforcement(&mut self, written: BTreeMap<String, raw::Enforcement>) -> Enforcement {
        let (mut domains, mut others) = (BTreeMap::new(), EnforcementMode::Off);
        for (text, mode) in written {
            let mode = EnforcementMode::from(mode);
            if text == OTHERS {
                others = mode;
                continue;
            }
            match Domain::parse(&text) {
                Ok(domain) => drop(domains.insert(domain, mode)),
                Err(error) => self
                    .problems
                    .note("mx.authentication.enforce", format!("{text:?} is no domain: {error}")),
            }
        }
        Enforcement::new(domains, others)
    }

    fn arc_seal(&mut self, written: raw::ArcSeal) -> Option<ArcSealConfig> {
        let key = "mx.authentication.arc_seal";
        let domain = self.optional(&format!("{key}.domain"), &written.domain, Domain::parse)?;
        let good = |selector: &str| Domain::parse(selector).is_ok();
        if !good(&written.selector) {
            self.problems.note(&format!("{key}.selector"), "must be the name of a DNS record");
        }
        if written.key_file.as_os_str().is_empty() {
            self.problems.note(&format!("{key}.key_file"), "is needed to seal");
        }
        let selector = written.selector.into();
        Some(ArcSealConfig { domain, selector, key_file: written.key_file })
    }
}

impl From<raw::Enforcement> for EnforcementMode {
    fn from(written: raw::Enforcement) -> Self {
        match written {
            raw::Enforcement::Off => Self::Off,
            raw::Enforcement::Quarantine => Self::Quarantine,
            raw::Enforcement::Reject => Self::Reject,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::address::Domain;
    use crate::config::{Config, EnforcementMode};

    fn parse(section: &str) -> Result<Config, String> {
        let base = "[ownership]\nurl = \"sqlite:/tmp/o.db\"\n\
                    [backends.old.mail]\nhost = \"127.0.0.1\"\n\
                    [backends.old.imap]\nhost = \"127.0.0.1\"\n\
                    [mx]\nhostname = \"mx.example.org\"\n";
        let text = format!("{base}[mx.authentication]\n{section}");
        Config::parse(Path::new("mailshift.toml"), &text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_mildest_word_that_is_not_said_is_off() {
        let config = parse("enforce = { \"Example.org\" = \"reject\" }").unwrap();
        let authentication = config.mx.authentication.unwrap();
        assert_eq!(authentication.name.as_str(), "mx.example.org");
        let mode = |text| authentication.enforcement.mode(&Domain::parse(text).unwrap());
        assert_eq!(mode("example.org"), EnforcementMode::Reject);
        assert_eq!(mode("example.net"), EnforcementMode::Off);
        let config = parse("enforce = { \"*\" = \"quarantine\" }").unwrap();
        let enforcement = config.mx.authentication.unwrap().enforcement;
        let other = Domain::parse("example.net").unwrap();
        assert_eq!(enforcement.mode(&other), EnforcementMode::Quarantine);
    }

    #[test]
    fn nothing_is_found_out_when_it_is_switched_off() {
        assert!(parse("enabled = false").unwrap().mx.authentication.is_none());
    }

    #[test]
    fn a_seal_needs_all_its_parts() {
        let whole = "arc_seal = { domain = \"example.org\", selector = \"s1\", key_file = \"/k\" }";
        let seal = parse(whole).unwrap().mx.authentication.unwrap().arc_seal.unwrap();
        assert_eq!((seal.domain.as_str(), &*seal.selector), ("example.org", "s1"));
        for (section, expected) in [
            ("arc_seal = { domain = \"example.org\", selector = \"s1\" }", "key_file"),
            ("arc_seal = { domain = \"example.org\", key_file = \"/k\" }", "selector"),
            ("dns = [\"192.0.2.1\"]", "ADDRESS:PORT"),
            ("enforce = { \"a b\" = \"off\" }", "no domain"),
            ("enforce = { \"a.b\" = \"maybe\" }", "maybe"),
            ("time_limit = \"0s\"", "longer than nothing"),
        ] {
            let error = parse(section).unwrap_err();
            assert!(error.contains(expected), "{section}: {error}");
        }
    }
}
