//! What is configured of HTTP: which request is whose, as rules (HTP-2).
//!
//! Paths are compared in their normal form (RFC 3986 §6.2.2), so that another spelling of a path is no way
//! around its rule. Which backend then answers is the ownership table's word, or a rule's.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Domain;
use crate::backend::BackendName;
use crate::mta_sts::MtaSts;

/// Longest path that is looked at, in octets; longer ones are refused.
pub const MAX_PATH: usize = 8 * 1024;

/// How HTTP is routed.
#[derive(Debug, Clone)]
pub struct WebConfig {
    /// The name that clients know.
    pub public_name: Domain,
    /// The first one that fits decides.
    pub rules: Arc<[Rule]>,
    /// Longest request body, in octets.
    pub max_body: u64,
    /// Longest head of a request, in octets.
    pub max_header_size: usize,
    /// How long a connection may be idle between requests.
    pub keepalive: Duration,
    /// Longest time for a request's head.
    pub head_timeout: Duration,
    /// Longest silence in the middle of a body, and longest time that nothing can be sent.
    pub body_timeout: Duration,
    /// When a client may come again that was refused for now.
    pub retry_after: Duration,
    /// URLs of a backend in JMAP session objects become those of the public name.
    pub rewrite_urls: bool,
    /// The path that is asked at each backend with a token that names nobody (NAM-5).
    pub discovery: Option<Box<str>>,
    /// Where the files of ACME's challenges are (HTP-10).
    pub acme_challenge: Option<PathBuf>,
    /// The policy of MTA-STS (RFC 8461), where there is one.
    pub mta_sts: Option<MtaSts>,
    /// Where calendars, address books and JMAP are, where their servers do not say so.
    pub places: Places,
    /// The name of the mail service in programs that configure themselves.
    pub display_name: Box<str>,
}

/// Where clients are led that look under `/.well-known/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// RFC 6764.
    pub caldav: Option<Place>,
    /// RFC 6764.
    pub carddav: Option<Place>,
    /// RFC 8620 §2.2.
    pub jmap: Option<Place>,
}

/// A path under the public name, or a URL of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(Box<str>);

/// Which requests are meant, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The host that is asked; `None`: any.
    pub host: Option<HostGlob>,
    /// The path.
    pub path: PathGlob,
    /// Methods; none: any.
    pub methods: Vec<Box<str>>,
    /// What becomes of them.
    pub action: Action,
    /// Connections may become WebSockets (RFC 6455).
    pub websocket: bool,
    /// Answers may have codes of OAuth's, which only the server that issued them knows (HTP-5).
    pub issues_codes: bool,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It goes to its account's owner.
    Account {
        /// Where the account is found, the first one that is there.
        sources: Vec<AccountSource>,
        /// Where it goes when it names no account; `None`: the client is asked to log in.
        fallback: Option<BackendName>,
    },
    /// It goes there, whosever it is.
    Backend(BackendName),
    /// We answer.
    Answer(OwnAnswer),
}

/// What we answer ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnAnswer {
    /// Mozilla's configuration file.
    Autoconfig,
    /// Outlook's.
    Autodiscover,
    /// The policy of MTA-STS.
    MtaSts,
    /// ACME's challenge.
    Acme,
    /// Where a service is (RFC 6764, RFC 8620 §2.2).
    WellKnown,
}

/// Where a request's account is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountSource {
    /// `Authorization: Basic` (RFC 7617).
    Basic,
    /// `Authorization: Bearer` (RFC 6750).
    Bearer,
    /// A parameter of the query.
    Query(Box<str>),
    /// A header field.
    Header(Box<str>),
    /// A field of a form (`application/x-www-form-urlencoded`).
    Form(Box<str>),
    /// A field of a form that has a token, which names its account.
    FormToken(Box<str>),
    /// A field of a form that has a code of OAuth's: it goes to the server that issued it (HTP-5).
    FormCode(Box<str>),
    /// A string at the top of a JSON object.
    Json(Box<str>),
}

/// A path in its normal form: without another way to write the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath(Box<str>);

/// Why a path has no normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a slash.
    #[error("a path begins with a slash")]
    Relative,
    /// A percent sign without two hexadecimal digits, or an octet that no path has.
    #[error("a character that is none of a path's")]
    Malformed,
    /// A separator that is written so that some servers see it and others do not, or a NUL.
    #[error("an encoded separator or NUL")]
    Ambiguous,
    /// More than [`MAX_PATH`] octets.
    #[error("too long")]
    TooLong,
}

/// A pattern of paths: `*` is anything within one segment, `**` anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathGlob(Box<str>);

/// A pattern of host names: `*` as a whole label at its beginning is any number of labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostGlob(Box<str>);

impl WebConfig {
    /// Without rules, and with the configuration's defaults for all else.
    pub fn new(public_name: Domain) -> Self {
        Self {
            public_name,
            rules: Arc::default(),
            max_body: 1 << 30,
            max_header_size: 64 * 1024,
            keepalive: Duration::from_secs(75),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_mins(1),
            retry_after: Duration::from_secs(5),
            rewrite_urls: true,
            discovery: None,
            acme_challenge: None,
            mta_sts: None,
            places: Places::default(),
            display_name: Box::default(),
        }
    }
}

impl Place {
    /// Reads a path (`/dav/`) or a URL of HTTPS.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        // Two slashes, or one the other way round, would lead to another host.
        let is_path = text.starts_with('/') && !text.starts_with("//") && !text.contains('\\');
        let is_url = text.strip_prefix("https://").is_some_and(|rest| {
            rest.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'[')
        });
        if (is_path || is_url) && text.bytes().all(|octet| octet.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err("is neither a path that begins with one slash nor a URL of https")
        }
    }

    /// The path or URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NormalPath {
    /// The normal form of a request's path.
    ///
    /// # Errors
    ///
    /// A [`PathError`].
    pub fn of(raw: &str) -> Result<Self, PathError> {
        if raw.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        if !raw.starts_with('/') {
            return Err(PathError::Relative);
        }
        let decoded = decoded(raw.as_bytes())?;
        let mut segments: Vec<&str> = Vec::new();
        let mut ends_open = false;
        for segment in decoded.split('/').skip(1) {
            // Parameters (`;jsessionid=…`) are cut off by some servers, and so they are here.
            let bare = segment.split(';').next().unwrap_or_default();
            ends_open = matches!(bare, "" | "." | "..");
            match bare {
                // To some servers this goes up, to others it is a name.
                "." | ".." if bare != segment => return Err(PathError::Ambiguous),
                // Several slashes are one to most servers.
                "" | "." => {}
                ".." => {
                    segments.pop();
                }
                other => segments.push(other),
            }
        }
        let mut path = String::with_capacity(decoded.len());
        for segment in segments {
            path.push('/');
            path.push_str(segment);
        }
        if ends_open || path.is_empty() {
            path.push('/');
        }
        Ok(Self(path.into()))
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Decodes what may be written either way, once. What is encoded of need stays encoded, in upper case.
fn decoded(raw: &[u8]) -> Result<String, PathError> {
    let mut path = String::with_capacity(raw.len());
    let mut octets = raw.iter().copied();
    while let Some(octet) = octets.next() {
        match octet {
            b'%' => {
                let digits = (octets.next().and_then(hex), octets.next().and_then(hex));
                let (Some(high), Some(low)) = digits else { return Err(PathError::Malformed) };
                match high << 4 | low {
                    b'/' | b'\\' | 0 => return Err(PathError::Ambiguous),
                    // Once only: what a second decoding would find is not ours to guess.
                    b'%' => path.push_str("%25"),
                    plain @ 0x21..=0x7e => path.push(char::from(plain)),
                    other => push_encoded(&mut path, other),
                }
            }
            b'\\' => return Err(PathError::Ambiguous),
            plain @ 0x21..=0x7e => path.push(char::from(plain)),
            // As some clients write what they should encode.
            other @ 0x80.. => push_encoded(&mut path, other),
            0..=0x20 | 0x7f => return Err(PathError::Malformed),
        }
    }
    Ok(path)
}

fn push_encoded(path: &mut String, octet: u8) {
    path.push('%');
    for digit in [octet >> 4, octet & 15] {
        path.extend(char::from_digit(digit.into(), 16).map(|digit| digit.to_ascii_uppercase()));
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

impl Rule {
    /// Requests under a path go to their account's owner; those that name no account ask for a login.
    ///
    /// # Errors
    ///
    /// What is wrong with the path.
    pub fn by_account(path: &str, sources: &[AccountSource]) -> Result<Self, &'static str> {
        let action = Action::Account { sources: sources.to_vec(), fallback: None };
        Self::new(path, action)
    }

    /// For any host and method.
    ///
    /// # Errors
    ///
    /// What is wrong with the path.
    pub fn new(path: &str, action: Action) -> Result<Self, &'static str> {
        Ok(Self {
            host: None,
            path: PathGlob::parse(path)?,
            methods: Vec::new(),
            action,
            websocket: false,
            issues_codes: false,
        })
    }
}

impl PathGlob {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with('/') {
            return Err("a path begins with a slash");
        }
        let plain = text.replace('*', "x");
        match NormalPath::of(&plain) {
            Ok(normal) if normal.as_str() == plain => Ok(Self(text.into())),
            Ok(_) => Err("is not written as paths are compared: one slash each, no dots, nothing \
                          encoded that need not be"),
            Err(_) => Err("is no path"),
        }
    }

    /// True when it fits the path. A slash at the end makes no difference.
    pub fn fits(&self, path: &NormalPath) -> bool {
        let bare = |text: &str| text.strip_suffix('/').unwrap_or(text).to_owned();
        fits(self.0.as_bytes(), path.0.as_bytes())
            || fits(bare(&self.0).as_bytes(), bare(&path.0).as_bytes())
            // `/jmap/**` has `/jmap` too.
            || self.0.strip_suffix("/**").is_some_and(|above| fits(above.as_bytes(), bare(&path.0).as_bytes()))
    }
}

/// Where a pattern goes on, and in which text, behind a star.
type BehindStar = Option<(usize, usize)>;

/// Compares a pattern of `*`, `**` and plain octets. Without recursion: the last star takes one octet more
/// whenever what follows it does not fit.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last `**` and the last `*`.
    let (mut deep, mut flat): (BehindStar, BehindStar) = (None, None);
    loop {
        let rest = pattern.get(p..).unwrap_or_default();
        if rest.starts_with(b"**") {
            p += 2;
            deep = Some((p, t));
            flat = None;
            continue;
        }
        match (rest.first(), text.get(t)) {
            (Some(b'*'), _) => {
                p += 1;
                flat = Some((p, t));
                continue;
            }
            (Some(one), Some(other)) if one == other => {
                p += 1;
                t += 1;
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        if let Some((after, from)) = flat
            && text.get(from).is_some_and(|octet| *octet != b'/')
        {
            flat = Some((after, from + 1));
            (p, t) = (after, from + 1);
        } else if let Some((after, from)) = deep
            && from < text.len()
        {
            flat = None;
            deep = Some((after, from + 1));
            (p, t) = (after, from + 1);
        } else {
            return false;
        }
    }
}

impl HostGlob {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        match Domain::parse(name) {
            Ok(domain) if text.starts_with("*.") => Ok(Self(format!("*.{domain}").into())),
            Ok(domain) => Ok(Self(domain.as_str().into())),
            Err(_) => Err("is neither a host name nor \"*.\" and one"),
        }
    }

    /// True when it fits a host in canonical form.
    pub fn fits(&self, host: &str) -> bool {
        match self.0.strip_prefix('*') {
            Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            None => *self.0 == *host,
        }
    }
}

impl Rule {
    /// True when it decides about such a request.
    pub fn fits(&self, host: &str, path: &NormalPath, method: &str) -> bool {
        self.host.as_ref().is_none_or(|glob| glob.fits(host))
            && (self.methods.is_empty() || self.methods.iter().any(|one| **one == *method))
            && self.path.fits(path)
    }
}

impl AccountSource {
    /// Reads `basic`, `bearer`, `query:NAME`, `header:NAME`, `form:NAME`, `form-token:NAME`,
    /// `form-code:NAME` or `json:NAME`.
    ///
    /// # Errors
    ///
    /// What it has to be.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const KNOWN: &str = "is none of basic, bearer, query:NAME, header:NAME, form:NAME, \
                             form-token:NAME, form-code:NAME, json:NAME";
        match text.split_once(':') {
            None if text == "basic" => Ok(Self::Basic),
            None if text == "bearer" => Ok(Self::Bearer),
            Some((_, "")) | None => Err(KNOWN),
            Some(("query", name)) => Ok(Self::Query(name.into())),
            Some(("header", name)) => {
                let token = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
                if token { Ok(Self::Header(name.to_ascii_lowercase().into())) } else { Err(KNOWN) }
            }
            Some(("form", name)) => Ok(Self::Form(name.into())),
            Some(("form-token", name)) => Ok(Self::FormToken(name.into())),
            Some(("form-code", name)) => Ok(Self::FormCode(name.into())),
            Some(("json", name)) => Ok(Self::Json(name.into())),
            Some(_) => Err(KNOWN),
        }
    }

    /// True when it is in the body.
    pub fn is_in_body(&self) -> bool {
        match self {
            Self::Form(_) | Self::FormToken(_) | Self::FormCode(_) | Self::Json(_) => true,
            Self::Basic | Self::Bearer | Self::Query(_) | Self::Header(_) => false,
        }
    }
}

impl fmt::Display for NormalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(raw: &str) -> Result<String, PathError> {
        NormalPath::of(raw).map(|path| path.to_string())
    }

    #[test]
    fn another_spelling_of_a_path_is_the_same_path() {
        for (raw, path) in [
            ("/", "/"),
            ("//admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/a/./b/../c", "/a/c"),
            ("/a/%2e%2e/admin", "/admin"),
            ("/..//../x/", "/x/"),
            ("/x/..", "/"),
            ("/jmap;jsessionid=1/ws", "/jmap/ws"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/100%25", "/100%25"),
            ("/%2561dmin", "/%2561dmin"),
        ] {
            assert_eq!(normal(raw).as_deref(), Ok(path), "{raw}");
        }
        for (raw, error) in [
            ("", PathError::Relative),
            ("x", PathError::Relative),
            ("*", PathError::Relative),
            ("/a%2fb", PathError::Ambiguous),
            ("/a%5Cb", PathError::Ambiguous),
            ("/a\\b", PathError::Ambiguous),
            ("/a%00", PathError::Ambiguous),
            ("/a/..;/admin", PathError::Ambiguous),
            ("/%", PathError::Malformed),
            ("/%4", PathError::Malformed),
            ("/%zz", PathError::Malformed),
            ("/a b", PathError::Malformed),
        ] {
            assert_eq!(normal(raw), Err(error), "{raw}");
        }
        assert_eq!(normal(&format!("/{}", "a".repeat(MAX_PATH))), Err(PathError::TooLong));
    }

    #[test]
    fn a_star_is_within_a_segment_and_two_are_anything() {
        for (glob, path, expected) in [
            ("/jmap/**", "/jmap/upload/a/", true),
            ("/jmap/**", "/jmap", true),
            ("/jmap/**", "/jmap/", true),
            ("/jmap/**", "/jmapx", false),
            ("/jmap", "/jmap/", true),
            ("/jmap/", "/jmap", true),
            ("/dav/*/ann", "/dav/cal/ann", true),
            ("/dav/*/ann", "/dav/cal/x/ann", false),
            ("/dav/*", "/dav/cal/x", false),
            ("/**/x*", "/a/b/xyz", true),
            ("/**/x*", "/a/b/xyz/c", false),
            ("/**", "/", true),
            ("/a*b*c", "/aXbYbZc", true),
            ("/a**c", "/a/b/c", true),
            ("/", "/", true),
            ("/", "/a", false),
        ] {
            let glob = PathGlob::parse(glob).unwrap();
            assert_eq!(glob.fits(&NormalPath::of(path).unwrap()), expected, "{glob:?} {path}");
        }
        for bad in ["", "x", "//x", "/a/../b", "/%61", "/a b", "/a%2fb"] {
            assert!(PathGlob::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_all_below_one() {
        let fits = |glob: &str, host: &str| HostGlob::parse(glob).unwrap().fits(host);
        assert!(fits("Mail.Example.org", "mail.example.org"));
        assert!(fits("*.example.org", "a.b.example.org"));
        assert!(!fits("*.example.org", "example.org"));
        assert!(!fits("*.example.org", "badexample.org"));
        for bad in ["", "*", "a*.example.org", "exa mple"] {
            assert!(HostGlob::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_normal_path_stays_as_it_is(raw in "(/|%2e|%2E|\\.|%61|a|;|b|%25|é){0,20}") {
            if let Ok(path) = NormalPath::of(&format!("/{raw}")) {
                prop_assert_eq!(NormalPath::of(path.as_str()).map(|again| again.to_string()), Ok(path.to_string()));
            }
        }

        #[test]
        fn a_pattern_fits_as_the_slow_way_says(glob in "/[ab*/]{0,8}", path in "/[ab/]{0,8}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern, text) {
                    ([], []) => true,
                    ([b'*', b'*', rest @ ..], _) => {
                        (0..=text.len()).any(|n| slow(rest, &text[n..]))
                    }
                    ([b'*', rest @ ..], _) => (0..=text.len())
                        .take_while(|n| !text[..*n].contains(&b'/'))
                        .any(|n| slow(rest, &text[n..])),
                    ([one, rest @ ..], [other, text @ ..]) => one == other && slow(rest, text),
                    _ => false,
                }
            }
            prop_assert_eq!(fits(glob.as_bytes(), path.as_bytes()), slow(glob.as_bytes(), path.as_bytes()));
        }
    }
}
