//! Readers of one line, header, response or name: what is read can be written and read again.

use login_proxy::managesieve::{Limits, Parsed, Speaker, Word, parse, push_string};
use shared::address::{Address, Domain};
use shared::credentials::{Credentials, Proof, Secret};
use shared::dialogue::Output;
use shared::ownership::{Name, NameError};
use shared::proxy_protocol::{self, Extensions, Prefix};
use shared::sasl::{
    Mechanism, decode_base64, decode_bearer, decode_plain, decode_scram, encode_base64,
    encode_bearer, encode_plain, names_in_token,
};
use shared::smtp::attributes;
use shared::smtp::command::{self, Addressee, Command, Rcpt};
use shared::smtp::ehlo::Extensions as Offered;
use shared::smtp::parameters::Takes;
use shared::smtp::path::{self, ForwardPath, ReversePath};
use shared::smtp::reply::{Reply, ReplyLine};
use shared::smtp::xclient::{self, Login, Subject, Told};
use shared::smtp::xforward;

/// A line of a client, and of a server.
pub(super) fn smtp_command(octets: &[u8]) {
    for takes in [Takes::NONE, Takes::ALL] {
        client_line(octets, takes);
    }
    if let Some(line) = ReplyLine::parse(octets) {
        one_line(&Reply::of_lines(line.code, line.text).to_string());
    }
}

/// What is said again with all its parameters is the same command.
fn client_line(octets: &[u8], takes: Takes) {
    match command::parse(octets, takes) {
        Ok(Command::Mail(mail)) => {
            if let ReversePath::Mailbox(path) = &mail.from {
                one_argument(path);
            }
            again(&mail.command(Takes::ALL), &Command::Mail(mail));
        }
        Ok(Command::Rcpt(rcpt)) => {
            if let ForwardPath::Mailbox(to) = &rcpt.path {
                one_argument(&to.to_string());
                let Rcpt { notify, orcpt, .. } = rcpt.clone();
                let said = Addressee { address: to.clone(), notify, orcpt }.command(Takes::ALL);
                again(&said, &Command::Rcpt(rcpt));
            }
        }
        Ok(Command::Xclient(attributes)) => match Told::default().and(&attributes) {
            Ok(Told { name, helo, .. }) => {
                let names = [name, helo].into_iter().flatten();
                names.for_each(|name| assert!(name.bytes().all(|b| b.is_ascii_graphic())));
            }
            Err(refusal) => one_line(&refusal.to_string()),
        },
        Ok(Command::Ehlo(name) | Command::Helo(name) | Command::Lhlo(name)) => {
            assert!(name.bytes().all(|octet| octet.is_ascii_graphic()));
            told(&name);
        }
        Ok(_) => {}
        Err(refusal) => one_line(&refusal.to_string()),
    }
}

fn again(said: &str, command: &Command) {
    let line = said.strip_suffix("\r\n").expect("a line end");
    one_line(line);
    assert_eq!(command::parse(line.as_bytes(), Takes::ALL).as_ref(), Ok(command), "{line}");
}

/// A path that is sent on is read as one by the next server.
fn one_argument(path: &str) {
    let written = format!("<{path}> NEXT");
    assert_eq!(path::split(&written), Ok((path, " NEXT")));
    one_line(&written);
}

fn one_line(text: &str) {
    assert!(!text.contains(['\r', '\n', '\0']), "{text:?}");
}

/// A client's name in XCLIENT and XFORWARD is one word of one command.
fn told(helo: &str) {
    let mut offered = Offered::default();
    offered.add("XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT SESSION TTL");
    offered.add("XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE");
    let client = ([192, 0, 2, 7], 4711).into();
    let login = Some(Login { session: "s", ttl: 3, secured: true });
    let subject = Subject { client, local: client, helo, extended: true, login };
    let forwarded = xforward::Subject { client, helo, extended: true, session: "s" };
    let told = xclient::commands(&offered, subject).into_iter();
    for line in told.chain(xforward::commands(&offered, forwarded)) {
        assert!(line.len() <= attributes::MAX_LINE);
        let line = line.strip_suffix("\r\n").expect("a line end");
        one_line(line);
        assert!(line.split(' ').skip(1).all(|word| word.split('=').count() == 2), "{line}");
    }
}

/// No end of a line is seen before it is there, and strings survive the wire.
pub(super) fn managesieve_line(octets: &[u8]) {
    const LIMITS: Limits = Limits { quoted: 64, literal: 256, line: 1024 };
    let whole = parse(octets, LIMITS);
    for cut in 0..octets.len().min(LIMITS.line + 1) {
        match (parse(&octets[..cut], LIMITS), &whole) {
            (Parsed::Part, _) => {}
            (early, whole) => assert_eq!(early, *whole, "cut at {cut}"),
        }
    }
    let (Parsed::Whole { octets: length, .. } | Parsed::Malformed { octets: length }) = whole
    else {
        return;
    };
    assert!((1..=octets.len().min(LIMITS.line)).contains(&length));
    assert_eq!(octets[length - 1], b'\n');
    let Parsed::Whole { words, .. } = whole else { return };
    for string in words.iter().filter_map(Word::string) {
        for speaker in [Speaker::Client, Speaker::Server] {
            let mut out = Output::default();
            push_string(string.expose(), speaker, &mut out);
            out.push("\r\n");
            let wide = Limits { quoted: 1024, literal: 1024, line: 4096 };
            let Parsed::Whole { words, .. } = parse(out.queued(), wide) else {
                panic!("{:?}", String::from_utf8_lossy(out.queued()))
            };
            let read: Vec<Secret> = words.iter().filter_map(Word::string).collect();
            assert_eq!(words.len(), 1);
            assert_eq!(read[0].expose(), string.expose());
        }
    }
}

/// The verdict on a connection's first octets stands, however many have come.
pub(super) fn proxy_header(octets: &[u8]) {
    let whole = proxy_protocol::parse(octets);
    for cut in 0..octets.len() {
        match proxy_protocol::parse(&octets[..cut]) {
            Ok(Prefix::Incomplete) => {}
            Ok(prefix) => assert_eq!(Ok(prefix), whole, "cut at {cut}"),
            Err(_) => assert!(whole.is_err(), "cut at {cut}: {whole:?}"),
        }
    }
    let Ok(Prefix::Header { octets: length, client }) = whole else { return };
    assert!(length <= octets.len().min(proxy_protocol::MAX_V2));
    for written in
        [proxy_protocol::encode_v1(client), proxy_protocol::encode(client, Extensions::default())]
    {
        let read = proxy_protocol::parse(&written);
        assert_eq!(read, Ok(Prefix::Header { octets: written.len(), client }));
    }
}

/// What a client proves itself with is read, written for a backend, and read there as the same.
pub(super) fn sasl(octets: &[u8]) {
    let raw = || Secret::new(octets.to_vec());
    let decoded = decode_base64(octets);
    if let Ok(decoded) = &decoded {
        let written = encode_base64(decoded.expose());
        let again = decode_base64(written.expose()).expect("what we write");
        assert_eq!(again.expose(), decoded.expose());
    }
    let decoded = || decode_base64(octets).ok();
    for response in [Some(raw()), decoded()].into_iter().flatten() {
        if let Ok(credentials) = decode_plain(&response) {
            plain_again(&credentials);
        }
        names_in_token(&response, &["email".into(), "upn".into()]);
        for mechanism in [Mechanism::XOAuth2, Mechanism::OAuthBearer] {
            let response = Secret::new(response.expose().to_vec());
            if let Ok(credentials) = decode_bearer(mechanism, response) {
                bearer_again(&credentials);
            }
        }
        if let Ok(credentials) = decode_scram(Mechanism::ScramSha256, response) {
            assert!(!credentials.mailbox().is_empty());
        }
    }
}

fn plain_again(credentials: &Credentials) {
    let password = credentials.password().expect("a password");
    let authzid = credentials.authzid.as_deref().unwrap_or_default();
    let written = encode_plain(authzid, &credentials.authcid, password);
    let response = decode_base64(written.expose()).expect("what we write");
    let again = decode_plain(&response).expect("what we write");
    assert_eq!((&again.authcid, &again.authzid), (&credentials.authcid, &credentials.authzid));
    assert_eq!(again.password().expect("a password").expose(), password.expose());
}

fn bearer_again(credentials: &Credentials) {
    let Proof::Bearer { token, .. } = &credentials.proof else { panic!("no token") };
    for mechanism in [Mechanism::XOAuth2, Mechanism::OAuthBearer] {
        let written = encode_bearer(mechanism, &credentials.authcid, token);
        let response = decode_base64(written.expose()).expect("what we write");
        let again = decode_bearer(mechanism, response).expect("what we write");
        assert_eq!(again.authcid, credentials.authcid, "by {mechanism}");
        assert_eq!(again.token().expect("a token").expose(), token.expose(), "by {mechanism}");
    }
}

/// A name has one form, which no log line or statement can be broken with.
pub(super) fn names(octets: &[u8]) {
    let tame = |text: &str| assert!(!text.chars().any(char::is_control), "{text:?}");
    for name in [Name::of_login(octets), Name::of_master_login(octets, "*%")].into_iter().flatten()
    {
        tame(name.as_str());
        match Name::of_login(name.as_str().as_bytes()) {
            Ok(again) => assert_eq!(again.as_str(), name.as_str()),
            // An A-label is longer than what was typed.
            Err(error) => assert_eq!(error, NameError::TooLong),
        }
    }
    let Ok(text) = std::str::from_utf8(octets) else { return };
    if let Ok(domain) = Domain::parse(text) {
        tame(domain.as_str());
        assert_eq!(Domain::parse(domain.as_str()), Ok(domain.clone()));
    }
    if let Ok(address) = Address::parse(text) {
        one_argument(&address.to_string());
        assert_eq!(Address::parse(&address.to_string()), Ok(address.clone()));
        tame(&address.canonical());
    }
}
