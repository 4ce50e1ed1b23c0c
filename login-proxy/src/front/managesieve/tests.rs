//! What a client says and hears before login. Each conversation is cut at every octet: the cut must not
//! matter. Longer ones are `tests/chats/managesieve`.

use shared::address::Domain;
use shared::sasl::Mechanisms;

use super::*;
use crate::front::cut::{self, Heard};

/// What a listener with STARTTLS offers.
fn clear() -> Terms {
    Terms {
        hostname: Domain::parse("sieve.example.org").unwrap(),
        capabilities: ["\"SIEVE\" \"fileinto\"".into(), "\"VERSION\" \"1.0\"".into()].into(),
        mechanisms: [Mechanism::Plain].into_iter().collect(),
        secured: false,
        starttls: true,
        plaintext: false,
        trusted: false,
    }
}

fn tls() -> Terms {
    Terms { secured: true, starttls: false, ..clear() }
}

fn everything() -> Terms {
    Terms { mechanisms: Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str)), ..tls() }
}

fn converse(terms: &Terms, client: &[u8]) -> Heard {
    cut::converse(|| ManageSieveFront::new(terms.clone()), client)
}

fn heard(client: &str) -> String {
    converse(&tls(), client.as_bytes()).said
}

fn credentials(client: &str) -> String {
    converse(&tls(), client.as_bytes()).end
}

/// A front that waits for the driver's answer, and what it has not read yet.
fn waiting(terms: Terms, client: &str) -> (ManageSieveFront, Input, Output) {
    let mut front = ManageSieveFront::new(terms);
    let (mut input, mut out) = (Input::from_octets(client.as_bytes()), Output::default());
    let step = front.step(&mut input, &mut out);
    assert!(matches!(step, Ok(Step::Event(Event::Credentials(_)))), "{step:?}");
    out.clear();
    (front, input, out)
}

fn answered(client: &str, answer: impl Fn(&mut ManageSieveFront, &mut Output)) -> String {
    let (mut front, _, mut out) = waiting(everything(), client);
    answer(&mut front, &mut out);
    String::from_utf8_lossy(out.queued()).into_owned()
}

const PLAIN: &str = "AUTHENTICATE \"PLAIN\" \"AGFubgBzZWNyZXQ=\"\r\n";

#[test]
fn a_response_comes_with_its_command_or_behind_it_quoted_or_as_a_literal() {
    let expected = "\"ann\" \"secret\" as None, 0 unread";
    for login in [
        PLAIN,
        "authenticate \"plain\" \"AGFubgBzZWNyZXQ=\"\n",
        "AUTHENTICATE \"PLAIN\" {16+}\r\nAGFubgBzZWNyZXQ=\r\n",
        "AUTHENTICATE {5+}\r\nPLAIN {16+}\r\nAGFubgBzZWNyZXQ=\r\n",
        // Not a client's form; but what it announces is still no command.
        "AUTHENTICATE \"PLAIN\" {16}\r\nAGFubgBzZWNyZXQ=\r\n",
    ] {
        assert_eq!(credentials(login), expected, "{login:?}");
        assert_eq!(heard(login), "", "{login:?}");
    }
    for login in [
        "AUTHENTICATE \"PLAIN\"\r\n\"AGFubgBzZWNyZXQ=\"\r\n",
        "AUTHENTICATE \"PLAIN\"\r\n{16+}\r\nAGFubgBzZWNyZXQ=\r\n",
        "AUTHENTICATE \"PLAIN\"\r\n\"AGFub gBzZWNyZXQ\"\r\n",
    ] {
        assert_eq!(credentials(login), expected, "{login:?}");
        assert_eq!(heard(login), "\"\"\r\n", "{login:?}");
    }
    assert_eq!(
        heard("AUTHENTICATE \"LOGIN\"\r\n\"YW5u\"\r\n\"c2VjcmV0\"\r\n"),
        "\"VXNlcm5hbWU6\"\r\n\"UGFzc3dvcmQ6\"\r\n"
    );
    assert_eq!(credentials("AUTHENTICATE \"LOGIN\" \"YW5u\"\r\n\"c2VjcmV0\"\r\n"), expected);
}

#[test]
fn a_mailbox_is_asked_for_by_authzid_and_ones_own_name_twice_is_none() {
    assert_eq!(
        credentials("AUTHENTICATE \"PLAIN\" \"Ym9iAGFkbWluAHNlY3JldA==\"\r\n"),
        "\"admin\" \"secret\" as Some(\"bob\"), 0 unread"
    );
    assert_eq!(
        credentials("AUTHENTICATE \"PLAIN\" \"YW5uAGFubgBzZWNyZXQ=\"\r\n"),
        "\"ann\" \"secret\" as None, 0 unread"
    );
}

#[test]
fn literal_octets_are_never_commands() {
    let said = heard("NOOP {8+}\r\nLOGOUT\r\n\r\nCAPABILITY {8+}\r\n\r\nLOGOUT\r\nNOOP\r\n");
    assert_eq!(
        said,
        "OK (TAG {8}\r\nLOGOUT\r\n) \"Done.\"\r\nNO \"Not a command before login.\"\r\n\
         OK \"NOOP completed.\"\r\n"
    );
    // Nor in a line that is wrong otherwise.
    let said = heard("NO\0OP {8+}\r\n\r\nLOGOUT\r\nNOOP\r\n");
    assert_eq!(said, "NO \"Error in command: syntax.\"\r\nOK \"NOOP completed.\"\r\n");
}

#[test]
fn an_exchange_can_be_cancelled() {
    for cancel in ["\"*\"", "{1+}\r\n*", "*"] {
        let said = heard(&format!("AUTHENTICATE \"PLAIN\"\r\n{cancel}\r\nNOOP\r\n"));
        assert_eq!(
            said,
            "\"\"\r\nNO \"Authentication exchange cancelled.\"\r\nOK \"NOOP completed.\"\r\n"
        );
    }
}

#[test]
fn what_is_no_response_ends_the_exchange() {
    for response in [
        "\"\"",
        "\"no*base64\"",
        "\"YW5u\"",
        "AGFubgBzZWNyZXQ=",
        "CAPABILITY",
        "\"AGFubgBzZWNyZXQ=\" \"x\"",
        "\"AGFubgBzZWNyZXQ=",
        "",
        "(",
    ] {
        let said = heard(&format!("AUTHENTICATE \"PLAIN\"\r\n{response}\r\nNOOP\r\n"));
        let expected = "\"\"\r\nNO \"Invalid SASL response.\"\r\nOK \"NOOP completed.\"\r\n";
        assert_eq!(said, expected, "{response:?}");
    }
    assert_eq!(
        heard("AUTHENTICATE \"PLAIN\" \"\"\r\n"),
        "NO \"Invalid SASL response.\"\r\n",
        "an empty one is none of PLAIN"
    );
    for wrong in [
        "AUTHENTICATE",
        "AUTHENTICATE PLAIN",
        "AUTHENTICATE \"PLAIN\" x",
        "AUTHENTICATE \"PLAIN\" \"a\" \"b\"",
    ] {
        let said = heard(&format!("{wrong}\r\nNOOP\r\n"));
        assert!(
            said.starts_with("NO \"") && said.ends_with("OK \"NOOP completed.\"\r\n"),
            "{said}"
        );
    }
}

#[test]
fn no_password_is_taken_in_the_clear() {
    for mechanism in ["PLAIN", "LOGIN"] {
        let login = format!("AUTHENTICATE \"{mechanism}\" \"AGFubgBzZWNyZXQ=\"\r\n");
        let Heard { said, end } = converse(&clear(), login.as_bytes());
        assert_eq!(end, "");
        assert_eq!(
            said,
            "NO (ENCRYPT-NEEDED) \"No passwords in the clear, use STARTTLS first.\"\r\n"
        );
    }
    let scram = "AUTHENTICATE \"SCRAM-SHA-256\"\r\n";
    let terms = Terms { secured: false, starttls: true, ..everything() };
    assert_eq!(converse(&terms, scram.as_bytes()).said, "\"\"\r\n", "it is no password");
}

#[test]
fn the_greeting_says_what_is_to_be_had() {
    let said = |terms: Terms| {
        let mut out = Output::default();
        ManageSieveFront::new(terms).greet(&mut out);
        String::from_utf8_lossy(out.queued()).into_owned()
    };
    let expected = |sasl: &str, starttls: &str| {
        format!(
            "\"IMPLEMENTATION\" \"Mailshift\"\r\n\"SASL\" \"{sasl}\"\r\n\"SIEVE\" \"fileinto\"\r\n\
             \"VERSION\" \"1.0\"\r\n{starttls}OK \"sieve.example.org ready.\"\r\n"
        )
    };
    let starttls = "\"STARTTLS\"\r\n";
    // RFC 5804 §1.7: empty only where there is TLS to be begun.
    assert_eq!(said(clear()), expected("", starttls));
    assert_eq!(said(Terms { plaintext: true, ..clear() }), expected("PLAIN", starttls));
    assert_eq!(said(tls()), expected("PLAIN", ""));
    let all = "PLAIN LOGIN XOAUTH2 OAUTHBEARER SCRAM-SHA-1 SCRAM-SHA-256";
    assert_eq!(said(everything()), expected(all, ""));
    let scram = Terms { secured: false, starttls: true, ..everything() };
    assert_eq!(said(scram), expected("SCRAM-SHA-1 SCRAM-SHA-256", starttls));
}

#[test]
fn capabilities_are_told_again_after_tls_and_when_asked_for() {
    let said = converse(&clear(), b"CAPABILITY\r\nSTARTTLS\r\nSTARTTLS\r\nCAPABILITY\r\n").said;
    let list = |sasl: &str, starttls: &str| {
        format!(
            "\"IMPLEMENTATION\" \"Mailshift\"\r\n\"SASL\" \"{sasl}\"\r\n\"SIEVE\" \"fileinto\"\r\n\
             \"VERSION\" \"1.0\"\r\n{starttls}"
        )
    };
    assert_eq!(
        said,
        format!(
            "{}OK \"Capability completed.\"\r\nOK \"Begin TLS negotiation now.\"\r\n(TLS)\r\n\
             {1}OK \"TLS negotiation successful.\"\r\n\
             NO \"TLS is already active or not to be had.\"\r\n{1}OK \"Capability completed.\"\r\n",
            list("", "\"STARTTLS\"\r\n"),
            list("PLAIN", "")
        )
    );
}

#[test]
fn a_noop_gives_its_tag_back() {
    for (tag, back) in [
        ("\"STARTTLS-SYNC-42\"", "\"STARTTLS-SYNC-42\""),
        ("{3+}\r\na b", "\"a b\""),
        ("\"q\\\"\\\\\"", "{3}\r\nq\"\\"),
        ("\"\u{fc}\"", "{2}\r\n\u{fc}"),
        ("\"\"", "\"\""),
    ] {
        assert_eq!(heard(&format!("NOOP {tag}\r\n")), format!("OK (TAG {back}) \"Done.\"\r\n"));
    }
    assert_eq!(heard("noop\r\n"), "OK \"NOOP completed.\"\r\n");
    assert_eq!(heard("NOOP tag\r\n"), "NO \"Error in NOOP: a string expected.\"\r\n");
}

#[test]
fn what_needs_a_login_is_refused_before_it() {
    for command in [
        "HAVESPACE \"x\" 99",
        "PUTSCRIPT \"x\" {6+}\r\nkeep;\n",
        "LISTSCRIPTS",
        "SETACTIVE \"x\"",
        "GETSCRIPT \"x\"",
        "DELETESCRIPT \"x\"",
        "RENAMESCRIPT \"x\" \"y\"",
        "CHECKSCRIPT {6+}\r\nkeep;\n",
        "UNAUTHENTICATE",
        "XCLIENT ADDR=192.0.2.1",
        "",
        "\"NOOP\"",
        "NOOP \"a\" \"b\"",
        "LOGOUT \"now\"",
    ] {
        let said = heard(&format!("{command}\r\nNOOP\r\n"));
        let expected = "NO \"Not a command before login.\"\r\nOK \"NOOP completed.\"\r\n";
        assert_eq!(said, expected, "{command:?}");
    }
}

#[test]
fn what_pipelines_behind_a_login_stays_unread() {
    let end = credentials(&format!("{PLAIN}LISTSCRIPTS\r\n"));
    assert_eq!(end, "\"ann\" \"secret\" as None, 13 unread");
}

#[test]
fn a_refused_login_leaves_what_follows_to_be_parsed_here() {
    let (mut front, mut input, mut out) = waiting(tls(), &format!("{PLAIN}NOOP\r\n{PLAIN}"));
    front.refuse(Refusal::BadCredentials, &mut out);
    let step = front.step(&mut input, &mut out);
    assert!(matches!(step, Ok(Step::Event(Event::Credentials(_)))));
    assert_eq!(out.queued(), b"NO \"Authentication failed.\"\r\nOK \"NOOP completed.\"\r\n");
}

#[test]
fn after_logout_nothing_is_read() {
    let Heard { said, end } = converse(&tls(), b"LOGOUT\r\nNOOP\r\n");
    assert_eq!((&*said, &*end), ("OK \"Logout completed.\"\r\n", "closed"));
}

#[test]
fn what_is_too_large_is_not_waited_for() {
    for (bomb, limit) in [
        ("PUTSCRIPT \"x\" {22529+}\r\nxxx".to_owned(), LIMITS.literal),
        ("NOOP {99999999999999999999999+}\r\n".to_owned(), LIMITS.literal),
        ("AUTHENTICATE \"PLAIN\"\r\n{22529+}\r\n".to_owned(), LIMITS.literal),
        (format!("NOOP {}", "x".repeat(LIMITS.line)), LIMITS.line),
    ] {
        let mut front = ManageSieveFront::new(tls());
        let (mut input, mut out) = (Input::from_octets(bomb.as_bytes()), Output::default());
        let violation = front.step(&mut input, &mut out).unwrap_err();
        assert_eq!(violation, Violation::TooLarge { what: "a command", limit }, "{bomb:.40}");
        assert!(out.queued().ends_with(b"BYE \"Command too large.\"\r\n"));
    }
    let quoted = format!("NOOP \"{}\"\r\nNOOP\r\n", "x".repeat(1025));
    assert_eq!(heard(&quoted), "NO \"Error in command: syntax.\"\r\nOK \"NOOP completed.\"\r\n");
}

#[test]
fn a_long_token_fits() {
    let password = "p".repeat(16 * 1024);
    let secret = Secret::new(password.clone().into_bytes());
    let sent = shared::sasl::encode_plain(b"", b"ann", &secret);
    let sent = std::str::from_utf8(sent.expose()).unwrap();
    for between in [" ", "\r\n"] {
        let said = format!("AUTHENTICATE \"PLAIN\"{between}{{{}+}}\r\n{sent}\r\n", sent.len());
        let mut front = ManageSieveFront::new(tls());
        let mut input = Input::from_octets(said.as_bytes());
        let Ok(Step::Event(Event::Credentials(c))) = front.step(&mut input, &mut Output::default())
        else {
            panic!("no credentials")
        };
        assert_eq!(c.password().unwrap().expose(), password.as_bytes());
    }
}

#[test]
fn a_client_that_only_says_nonsense_is_sent_away() {
    let Heard { said, end } = converse(&tls(), "GET / HTTP/1.1\r\n".repeat(20).as_bytes());
    assert_eq!(said.matches("NO \"Not a command before login.\"\r\n").count(), 10);
    assert!(said.ends_with("BYE \"Too many wrong commands.\"\r\n"), "{said}");
    assert_eq!(end, "10 bad commands");
}

#[test]
fn other_mechanisms_are_not_to_be_had() {
    for mechanism in ["CRAM-MD5", "XOAUTH2", "SCRAM-SHA-256", "EXTERNAL", ""] {
        let said = heard(&format!("AUTHENTICATE \"{mechanism}\"\r\n"));
        assert_eq!(said, "NO \"Unsupported authentication mechanism.\"\r\n");
    }
}

const XOAUTH2: &str = "AUTHENTICATE \"XOAUTH2\" \"dXNlcj1hbm4BYXV0aD1CZWFyZXIgdAEB\"\r\n";

#[test]
fn a_challenge_is_a_string_and_so_is_its_answer() {
    for (answer, expected) in [
        ("\"\"", Some(&b""[..])),
        ("\"AQ==\"", Some(&[1][..])),
        ("{4+}\r\nAQ==", Some(&[1][..])),
        ("\"*\"", None),
        ("AQ==", None),
        ("\"!\"", None),
        ("\"x", None),
    ] {
        let (mut front, mut input, mut out) = waiting(everything(), XOAUTH2);
        front.challenge(b"{\"status\":\"401\"}", &mut out);
        assert_eq!(out.queued(), b"\"eyJzdGF0dXMiOiI0MDEifQ==\"\r\n");
        input.push(format!("{answer}\r\n").as_bytes());
        let Ok(Step::Event(Event::Response(response))) = front.step(&mut input, &mut out) else {
            panic!("{answer:?}")
        };
        assert_eq!(response.as_ref().map(Secret::expose), expected);
    }
    let long = answered(XOAUTH2, |front, out| front.challenge(&[b'x'; 1000], out));
    assert!(long.starts_with("{1336}\r\neHh4"), "{long}");
    let early = answered(XOAUTH2, |front, out| {
        front.challenge(b"", out);
        front.refuse(Refusal::Unavailable, out);
    });
    assert!(early.starts_with("\"\"\r\nNO (TRYLATER)"), "refused before it has answered: {early}");
}

#[test]
fn a_yes_may_bring_the_mechanisms_last_words() {
    let quiet = answered(PLAIN, |front, out| front.welcome(&Welcome::default(), out));
    assert_eq!(quiet, "OK \"Logged in.\"\r\n");
    let last =
        Welcome { sasl: Some(b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ="[..].into()), ..Welcome::default() };
    let said = answered(PLAIN, |front, out| front.welcome(&last, out));
    assert_eq!(said, "OK (SASL \"dj1ybUY5cHFWOFM3c3VBb1pXamE0ZEpSa0ZzS1E9\") \"Logged in.\"\r\n");
}

#[test]
fn a_fault_of_ours_is_never_a_wrong_password() {
    for (refusal, words) in [
        (Refusal::BadCredentials, "NO \"Authentication failed.\""),
        (Refusal::Unavailable, "NO (TRYLATER) \""),
        (Refusal::TooManySessions, "NO (TRYLATER) \""),
        (Refusal::Misconfigured, "NO \"Logins do not work at the moment."),
        (Refusal::NeedsTls, "NO (ENCRYPT-NEEDED) \""),
        (Refusal::Cancelled, "NO \"Authentication exchange cancelled.\""),
    ] {
        let said = answered(PLAIN, |front, out| front.refuse(refusal, out));
        assert!(said.starts_with(words) && said.ends_with("\"\r\n"), "{said}");
        assert_eq!(said.contains("Authentication failed"), refusal == Refusal::BadCredentials);
    }
}

#[test]
fn only_a_trusted_peer_says_for_whom_it_speaks() {
    let xclient = b"XCLIENT ADDR=2001:db8::7 PORT=4711 TTL=3\r\n";
    let mut front = ManageSieveFront::new(Terms { trusted: true, ..tls() });
    let mut out = Output::default();
    front.greet(&mut out);
    assert!(String::from_utf8_lossy(out.queued()).contains("\"XCLIENT\"\r\n"));
    front.step(&mut Input::from_octets(xclient), &mut out).unwrap();
    let forwarded = front.told().forwarded.as_ref().unwrap();
    assert_eq!((forwarded.client_port, forwarded.ttl), (Some(4711), Some(3)));
    let mut front = ManageSieveFront::new(tls());
    let mut out = Output::default();
    front.step(&mut Input::from_octets(xclient), &mut out).unwrap();
    assert!(out.queued().starts_with(b"NO") && front.told().forwarded.is_none());
}
