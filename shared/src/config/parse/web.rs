//! HTTP's own section: one's own rules, and those of the presets behind them.

use std::path::PathBuf;

use super::{Parser, raw};
use crate::address::Domain;
use crate::backend::{BackendName, Backends};
use crate::mta_sts::{Mode, MtaSts, MtaStsError, MxPattern};
use crate::web::{
    AccountSource, Action, HostGlob, OwnAnswer, PathGlob, Place, Places, Rule, WebConfig,
};

impl Parser<'_, '_> {
    pub(super) fn web(&mut self, web: raw::Web, hostname: &Domain) -> WebConfig {
        for (key, timeout) in [
            ("keepalive", web.keepalive),
            ("head_timeout", web.head_timeout),
            ("body_timeout", web.body_timeout),
        ] {
            if timeout.is_zero() {
                self.problems.note(&format!("login.web.{key}"), "must be longer than nothing");
            }
        }
        if web.max_body.as_u64() == 0 {
            self.problems.note("login.web.max_body", "must be more than nothing");
        }
        let size = super::octets(web.max_header_size);
        if !(8 * 1024..=1024 * 1024).contains(&size) {
            self.problems.note("login.web.max_header_size", "must be from 8KiB to 1MiB");
        }
        let fallback = self.web_backend("login.web.fallback", &web.fallback);
        let mut rules = Vec::new();
        for (number, rule) in web.rules.iter().enumerate() {
            let key = format!("login.web.rules[{number}]");
            rules.extend(self.rule(&key, rule, fallback.as_ref()));
        }
        let acme = Some(web.acme_challenge).filter(|path| !path.as_os_str().is_empty());
        let mta_sts = self.mta_sts(&web.mta_sts);
        let mut place = |name: &str, text: &str| {
            self.optional(&format!("login.web.{name}"), text, Place::parse)
        };
        let places = Places {
            caldav: place("caldav", &web.caldav),
            carddav: place("carddav", &web.carddav),
            jmap: place("jmap", &web.jmap),
        };
        rules.extend(own_rules(acme.as_ref(), mta_sts.as_ref(), &places));
        for preset in web.presets {
            rules.extend(preset_rules(preset, fallback.as_ref()));
        }
        if !web.discovery.is_empty() && !web.discovery.starts_with('/') {
            self.problems.note("login.web.discovery", "is a path, which begins with a slash");
        }
        let public_name = match &*web.public_name {
            "" => hostname.clone(),
            name => self.hostname("login.web.public_name", name, name),
        };
        WebConfig {
            public_name,
            rules: rules.into(),
            max_body: web.max_body.as_u64(),
            max_header_size: size,
            keepalive: web.keepalive,
            head_timeout: web.head_timeout,
            body_timeout: web.body_timeout,
            retry_after: web.retry_after,
            rewrite_urls: web.rewrite_urls,
            discovery: Some(web.discovery).filter(|path| !path.is_empty()).map(Into::into),
            acme_challenge: acme,
            mta_sts,
            places,
            display_name: web.display_name.into(),
        }
    }

    fn rule(
        &mut self,
        key: &str,
        rule: &raw::WebRule,
        default: Option<&BackendName>,
    ) -> Option<Rule> {
        let host = self.optional(&format!("{key}.host"), &rule.host, HostGlob::parse);
        let path = match PathGlob::parse(&rule.path) {
            Ok(path) => Some(path),
            Err(error) => {
                self.problems.note(&format!("{key}.path"), format!("{:?} {error}", rule.path));
                None
            }
        };
        let action = self.action(key, rule, default);
        let token = |b: u8| b.is_ascii_alphanumeric() || b"-_.!~*'+".contains(&b);
        for method in rule.methods.iter().filter(|method| !method.bytes().all(token)) {
            self.problems.note(&format!("{key}.methods"), format!("{method:?} is no method"));
        }
        let methods = rule.methods.iter().map(|method| method.to_ascii_uppercase().into());
        Some(Rule {
            host,
            path: path?,
            methods: methods.collect(),
            action: action?,
            websocket: rule.websocket,
            issues_codes: rule.issues_codes,
        })
    }

    fn action(
        &mut self,
        key: &str,
        rule: &raw::WebRule,
        default: Option<&BackendName>,
    ) -> Option<Action> {
        let pin = self.web_backend(&format!("{key}.backend"), &rule.backend);
        let fallback = self.web_backend(&format!("{key}.fallback"), &rule.fallback);
        let mut sources = Vec::new();
        for text in &rule.account {
            match AccountSource::parse(text) {
                Ok(source) => sources.push(source),
                Err(error) => {
                    self.problems.note(&format!("{key}.account"), format!("{text:?} {error}"));
                }
            }
        }
        let given = [!rule.account.is_empty(), !rule.backend.is_empty(), rule.answer.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            let message = "has to say one of: account (where it is found), backend, answer";
            self.problems.note(key, message);
            return None;
        }
        if fallback.is_some() && rule.account.is_empty() {
            let message = "is for requests that may name an account";
            self.problems.note(&format!("{key}.fallback"), message);
        }
        match (pin, rule.answer) {
            (Some(pin), _) => Some(Action::Backend(pin)),
            (None, Some(answer)) => Some(Action::Answer(answer.into())),
            (None, None) if rule.backend.is_empty() => {
                Some(Action::Account { sources, fallback: fallback.or_else(|| default.cloned()) })
            }
            (None, None) => None,
        }
    }

    fn web_backend(&mut self, key: &str, name: &str) -> Option<BackendName> {
        self.optional(key, name, |name| {
            BackendName::parse(name).map_err(|_| "is no backend's name")
        })
    }

    /// A rule that leads to nobody could only ever refuse.
    pub(super) fn web_backends_are_known(&mut self, web: &WebConfig, backends: &Backends) {
        let named = web.rules.iter().filter_map(|rule| match &rule.action {
            Action::Backend(name) => Some(name),
            Action::Account { fallback, .. } => fallback.as_ref(),
            Action::Answer(_) => None,
        });
        let mut missing: Vec<&BackendName> = named
            .filter(|name| backends.get(name).is_none_or(|backend| backend.http.is_none()))
            .collect();
        missing.sort();
        missing.dedup();
        for name in missing {
            let message = format!("a rule leads to {name}, and there is no [backends.{name}.http]");
            self.problems.note("login.web", message);
        }
    }

    fn mta_sts(&mut self, policy: &raw::MtaSts) -> Option<MtaSts> {
        if policy.mode.is_empty() {
            return None;
        }
        let key = |name: &str| format!("login.web.mta_sts.{name}");
        let mode = self.optional(&key("mode"), &policy.mode, Mode::parse);
        let mut mx = Vec::new();
        for name in &policy.mx {
            mx.extend(self.optional(&key("mx"), name, MxPattern::parse));
        }
        match MtaSts::new(mode?, mx, policy.max_age) {
            Ok(policy) => Some(policy),
            Err(error) => {
                let name = if matches!(error, MtaStsError::MaxAge) { "max_age" } else { "mx" };
                self.problems.note(&key(name), error.to_string());
                None
            }
        }
    }
}

impl From<raw::WebAnswer> for OwnAnswer {
    fn from(answer: raw::WebAnswer) -> Self {
        match answer {
            raw::WebAnswer::Autoconfig => Self::Autoconfig,
            raw::WebAnswer::Autodiscover => Self::Autodiscover,
            raw::WebAnswer::MtaSts => Self::MtaSts,
            raw::WebAnswer::Acme => Self::Acme,
            raw::WebAnswer::WellKnown => Self::WellKnown,
        }
    }
}

/// What is configured by itself needs no rule of one's own.
fn own_rules(acme: Option<&PathBuf>, mta_sts: Option<&MtaSts>, places: &Places) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (path, place) in [
        ("/.well-known/caldav", &places.caldav),
        ("/.well-known/carddav", &places.carddav),
        ("/.well-known/jmap", &places.jmap),
    ] {
        rules.extend(place.as_ref().and_then(|_| answer(path, OwnAnswer::WellKnown)));
    }
    if acme.is_some() {
        rules.extend(answer("/.well-known/acme-challenge/*", OwnAnswer::Acme));
    }
    if mta_sts.is_some() {
        rules.extend(answer("/.well-known/mta-sts.txt", OwnAnswer::MtaSts));
    }
    rules
}

fn answer(path: &str, answer: OwnAnswer) -> Option<Rule> {
    rule(path, Action::Answer(answer))
}

fn rule(path: &str, action: Action) -> Option<Rule> {
    Rule::new(path, action).ok()
}

/// Where the accounts of well-known servers are found.
fn preset_rules(preset: raw::WebPreset, fallback: Option<&BackendName>) -> Vec<Rule> {
    let found_in = |sources: &[AccountSource]| Action::Account {
        sources: sources.to_vec(),
        fallback: fallback.cloned(),
    };
    let authorized = || found_in(&[AccountSource::Basic, AccountSource::Bearer]);
    let by_user = |paths: &[&str]| -> Vec<Rule> {
        paths.iter().filter_map(|path| rule(path, authorized())).collect()
    };
    let socket = || rule("/jmap/ws", authorized()).map(|rule| Rule { websocket: true, ..rule });
    let rules: Vec<Option<Rule>> = match preset {
        raw::WebPreset::Autoconfig => vec![
            answer("/mail/config-v1.1.xml", OwnAnswer::Autoconfig),
            answer("/.well-known/autoconfig/mail/config-v1.1.xml", OwnAnswer::Autoconfig),
            answer("/autodiscover/**", OwnAnswer::Autodiscover),
            answer("/Autodiscover/**", OwnAnswer::Autodiscover),
            answer("/AutoDiscover/**", OwnAnswer::Autodiscover),
        ],
        raw::WebPreset::Jmap => vec![socket()],
        raw::WebPreset::Dav | raw::WebPreset::Sogo => Vec::new(),
        raw::WebPreset::Cyrus => vec![socket()],
        raw::WebPreset::Stalwart => {
            let form = |path: &str, fields: &[AccountSource]| {
                let rule = rule(path, found_in(fields));
                rule.map(|rule| Rule { issues_codes: true, ..rule })
            };
            let name = |field: &str| AccountSource::Form(field.into());
            let code = |field: &str| AccountSource::FormCode(field.into());
            let token = AccountSource::FormToken("refresh_token".into());
            vec![
                socket(),
                form(
                    "/auth/token",
                    &[
                        AccountSource::Basic,
                        name("username"),
                        token,
                        code("code"),
                        code("device_code"),
                    ],
                ),
                form("/auth/device", &[code("device_code")]),
                form("/login", &[name("username"), name("login"), code("code")]),
                form("/device", &[code("user_code"), code("code"), name("username")]),
            ]
        }
    };
    let behind: &[&str] = match preset {
        raw::WebPreset::Autoconfig => &[],
        raw::WebPreset::Jmap => &["/.well-known/jmap", "/jmap/**"],
        raw::WebPreset::Dav => &["/.well-known/caldav", "/.well-known/carddav", "/dav/**"],
        raw::WebPreset::Cyrus => &["/.well-known/**", "/jmap/**", "/dav/**", "/freebusy/**"],
        raw::WebPreset::Sogo => &["/SOGo/dav/**", "/SOGo/Microsoft-Server-ActiveSync"],
        raw::WebPreset::Stalwart => {
            &["/.well-known/**", "/jmap/**", "/dav/**", "/auth/**", "/api/**"]
        }
    };
    rules.into_iter().flatten().chain(by_user(behind)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;
    use crate::web::{Action, NormalPath, OwnAnswer};

    const GOOD: &str = r#"
[ownership]
url = "sqlite:/tmp/ownership.db"
[tls]
self_signed = true
[backends.old.http]
host = "127.0.0.1"
port = 8080
[backends.new.http]
host = "new.example.org"
[login]
hostname = "mail.example.org"
https = { listen = [":443"] }
"#;

    fn parse(more: &str) -> Result<Config, String> {
        Config::parse(Path::new("mailshift.toml"), &format!("{GOOD}{more}"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn ones_own_rules_come_before_those_of_the_presets_and_the_first_decides() {
        let config = parse(
            r#"
[login.web]
presets = ["autoconfig", "stalwart"]
fallback = "new"
[[login.web.rules]]
path = "/jmap/special"
backend = "old"
"#,
        )
        .unwrap();
        let web = &config.login.web;
        let first = |path: &str| {
            let path = NormalPath::of(path).unwrap();
            web.rules.iter().find(|rule| rule.fits("mail.example.org", &path, "GET"))
        };
        assert!(
            matches!(&first("/jmap/special").unwrap().action, Action::Backend(name) if name.as_str() == "old")
        );
        assert!(first("/jmap/ws").unwrap().websocket);
        let jmap = first("/jmap").unwrap();
        assert!(!jmap.websocket);
        let Action::Account { fallback, .. } = &jmap.action else { panic!("{jmap:?}") };
        assert_eq!(fallback.as_ref().unwrap().as_str(), "new");
        assert!(first("/auth/token").unwrap().issues_codes);
        let autoconfig = first("/mail/config-v1.1.xml").unwrap();
        assert_eq!(autoconfig.action, Action::Answer(OwnAnswer::Autoconfig));
        assert!(first("/other").is_none());
        assert_eq!(web.public_name.as_str(), "mail.example.org");
    }

    #[test]
    fn a_rule_says_one_thing_and_leads_to_somebody() {
        for (wrong, said) in [
            ("path = \"/x\"", "has to say one of"),
            ("path = \"/x\"\nbackend = \"old\"\nanswer = \"acme\"", "has to say one of"),
            ("path = \"x\"\nbackend = \"old\"", "begins with a slash"),
            ("path = \"/x/../y\"\nbackend = \"old\"", "is not written as paths are compared"),
            ("path = \"/x\"\naccount = [\"cookie\"]", "is none of basic"),
            ("path = \"/x\"\nbackend = \"mars\"", "there is no [backends.mars.http]"),
            ("path = \"/x\"\nbackend = \"old\"\nfallback = \"new\"", "may name an account"),
        ] {
            let error = parse(&format!("[[login.web.rules]]\n{wrong}\n")).unwrap_err();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn http_has_no_starttls() {
        for wrong in [
            "[login.http]\nlisten = [\":80\"]\ntls = \"starttls\"\n",
            "[backends.three.http]\nhost = \"127.0.0.1\"\ntls = \"starttls\"\n",
        ] {
            assert!(parse(wrong).unwrap_err().contains("HTTP has no STARTTLS"), "{wrong}");
        }
    }

    #[test]
    fn a_policy_of_mta_sts_says_which_servers() {
        let error = parse("[login.web.mta_sts]\nmode = \"enforce\"\n").unwrap_err();
        assert!(error.contains("is missing: the names of the MX records"), "{error}");
        let config = parse("[login.web.mta_sts]\nmode = \"testing\"\nmx = [\"mx.example.org\"]\n");
        assert!(config.unwrap().login.web.mta_sts.is_some());
    }
}
