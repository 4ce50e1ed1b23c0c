//! What a client says and hears before login. Each conversation is cut at every octet: the cut must not
//! matter. Longer ones are `tests/chats/pop3`.

use shared::address::Domain;
use shared::sasl::Mechanisms;

use super::*;
use crate::front::cut::{self, Heard};

/// What a listener with STLS offers.
fn clear() -> Terms {
    Terms {
        hostname: Domain::parse("pop.example.org").unwrap(),
        capabilities: ["TOP".into(), "UIDL".into()].into(),
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

/// With every mechanism.
fn generous() -> Terms {
    Terms { mechanisms: Mechanisms::of_words(Mechanism::ALL.map(Mechanism::as_str)), ..tls() }
}

fn converse(terms: &Terms, client: &[u8]) -> Heard {
    cut::converse(|| Pop3Front::new(terms.clone()), client)
}

fn heard(client: &str) -> String {
    converse(&tls(), client.as_bytes()).said
}

fn credentials(client: &str) -> String {
    converse(&tls(), client.as_bytes()).end
}

fn answered(before: &[u8], answer: impl Fn(&mut Pop3Front, &mut Output)) -> String {
    cut::answered(Pop3Front::new(generous()), before, answer)
}

#[test]
fn a_name_and_a_password_are_all_that_follows_the_first_space() {
    for (said, expected) in [
        ("USER ann\r\nPASS secret\r\n", "\"ann\" \"secret\" as None, 0 unread"),
        ("user ann\npass secret\n", "\"ann\" \"secret\" as None, 0 unread"),
        ("USER an n\r\nPASS se cret\r\n", "\"an n\" \"se cret\" as None, 0 unread"),
        ("USER ann\r\nPASS  secret  \r\n", "\"ann\" \" secret  \" as None, 0 unread"),
        ("USER  ann \r\nPASS x\r\n", "\" ann \" \"x\" as None, 0 unread"),
        ("USER ann\r\nPASS \t\r\n", "\"ann\" \"\\t\" as None, 0 unread"),
        ("USER ann\r\nPASS  \r\n", "\"ann\" \" \" as None, 0 unread"),
    ] {
        assert_eq!(credentials(said), expected, "{said:?}");
    }
}

#[test]
fn a_password_is_octets_and_holds_no_nul() {
    let mut front = Pop3Front::new(tls());
    let mut input = Input::from_octets(b"USER ann\r\nPASS gr\xfcn\r\n");
    let Ok(Step::Event(Event::Credentials(c))) = front.step(&mut input, &mut Output::default())
    else {
        panic!("no credentials")
    };
    assert_eq!(c.password().unwrap().expose(), b"gr\xfcn");
    assert_eq!(
        heard("USER ann\r\nPASS x\0y\r\nUSER a\0b\r\n"),
        "+OK\r\n-ERR [AUTH] Authentication failed.\r\n-ERR A name belongs behind USER.\r\n"
    );
}

#[test]
fn a_password_belongs_to_the_name_before_it_and_to_no_other_attempt() {
    assert_eq!(heard("PASS secret\r\n"), "-ERR USER comes first.\r\n");
    assert_eq!(
        credentials("USER ann\r\nUSER bob\r\nNOOP\r\nCAPA\r\nPASS secret\r\n"),
        "\"bob\" \"secret\" as None, 0 unread"
    );
    let said = heard("USER ann\r\nPASS \r\nPASS secret\r\n");
    assert!(said.ends_with("-ERR [AUTH] Authentication failed.\r\n-ERR USER comes first.\r\n"));
    let said = heard("USER ann\r\nAUTH PLAIN\r\n*\r\nPASS secret\r\n");
    assert!(said.ends_with("-ERR USER comes first.\r\n"), "{said}");
}

#[test]
fn an_empty_name_or_password_is_wrong_before_any_backend_is_asked() {
    assert!(heard("USER\r\nUSER \r\n").starts_with("-ERR A name belongs behind USER.\r\n-ERR A"));
    for login in ["USER ann\r\nPASS\r\n", "USER ann\r\nPASS \r\n"] {
        let Heard { said, end } = converse(&tls(), login.as_bytes());
        assert_eq!((&*said, &*end), ("+OK\r\n-ERR [AUTH] Authentication failed.\r\n", ""));
    }
    for response in ["AGFubgA=", "AABzZWNyZXQ=", "="] {
        let said = heard(&format!("AUTH PLAIN {response}\r\n"));
        assert_eq!(said, "-ERR [AUTH] Invalid SASL response.\r\n");
    }
}

#[test]
fn plain_comes_with_its_command_or_behind_it() {
    let expected = "\"ann\" \"secret\" as None, 0 unread";
    assert_eq!(credentials("AUTH PLAIN AGFubgBzZWNyZXQ=\r\n"), expected);
    assert_eq!(credentials("auth plain AGFub gBzZWNyZXQ\r\n"), expected);
    assert_eq!(credentials("AUTH PLAIN\r\nAGFubgBzZWNyZXQ=\r\n"), expected);
    assert_eq!(heard("AUTH PLAIN \r\nAGFubgBzZWNyZXQ=\r\n"), "+ \r\n");
    assert_eq!(
        credentials("AUTH PLAIN Ym9iAGFkbWluAHNlY3JldA==\r\n"),
        "\"admin\" \"secret\" as Some(\"bob\"), 0 unread"
    );
    // LOGIN, though not listed.
    assert_eq!(credentials("AUTH LOGIN\r\nYW5u\r\nc2VjcmV0\r\n"), expected);
    assert_eq!(heard("AUTH LOGIN YW5u\r\n"), "+ UGFzc3dvcmQ6\r\n");
}

#[test]
fn an_exchange_can_be_cancelled() {
    assert_eq!(
        heard("AUTH PLAIN\r\n*\r\nNOOP\r\n"),
        "+ \r\n-ERR Authentication exchange cancelled.\r\n+OK\r\n"
    );
}

#[test]
fn bare_auth_lists_the_mechanisms() {
    assert_eq!(heard("AUTH\r\n"), "+OK Mechanisms follow.\r\nPLAIN\r\n.\r\n");
    assert_eq!(heard("AUTH \r\n"), heard("auth\r\n"));
    assert_eq!(converse(&clear(), b"AUTH\r\n").said, "+OK Mechanisms follow.\r\n.\r\n");
}

#[test]
fn capabilities_are_what_all_have_and_what_the_connection_allows() {
    assert_eq!(
        heard("CAPA\r\n"),
        "+OK Capability list follows.\r\nTOP\r\nUIDL\r\nUSER\r\nSASL PLAIN\r\n.\r\n"
    );
    assert_eq!(
        converse(&clear(), b"CAPA\r\n").said,
        "+OK Capability list follows.\r\nTOP\r\nUIDL\r\nSTLS\r\n.\r\n"
    );
    let local = Terms { plaintext: true, ..clear() };
    assert_eq!(
        converse(&local, b"capa \r\n").said,
        "+OK Capability list follows.\r\nTOP\r\nUIDL\r\nSTLS\r\nUSER\r\nSASL PLAIN\r\n.\r\n"
    );
    let scram = Terms { mechanisms: [Mechanism::ScramSha256].into_iter().collect(), ..clear() };
    assert_eq!(
        converse(&scram, b"CAPA\r\n").said,
        "+OK Capability list follows.\r\nTOP\r\nUIDL\r\nSTLS\r\nSASL SCRAM-SHA-256\r\n.\r\n"
    );
}

#[test]
fn no_password_is_taken_in_the_clear() {
    let no = "-ERR [AUTH] No passwords in the clear, use STLS first.\r\n";
    let refused = no.repeat(2);
    for (login, expected) in [
        ("USER ann\r\nPASS secret\r\n", &*refused),
        ("AUTH PLAIN AGFubgBzZWNyZXQ=\r\n", no),
        ("AUTH PLAIN\r\n", no),
        ("AUTH LOGIN\r\n", no),
    ] {
        let Heard { said, end } = converse(&clear(), login.as_bytes());
        assert_eq!((&*said, &*end), (expected, ""), "{login:?}");
    }
    let without = Terms { starttls: false, ..clear() };
    let said = converse(&without, b"USER ann\r\n").said;
    assert_eq!(said, "-ERR [AUTH] No passwords in the clear, use the TLS port.\r\n");
}

#[test]
fn tls_makes_everything_said_before_undone() {
    let local = Terms { plaintext: true, ..clear() };
    let said = converse(&local, b"USER ann\r\nSTLS\r\nPASS secret\r\nSTLS\r\nSTLS x\r\n").said;
    assert_eq!(
        said,
        "+OK\r\n+OK Begin TLS negotiation now.\r\n(TLS)\r\n-ERR USER comes first.\r\n\
         -ERR TLS is already active or not to be had.\r\n\
         -ERR TLS is already active or not to be had.\r\n"
    );
    let capabilities = converse(&clear(), b"STLS\r\nCAPA\r\n").said;
    assert!(capabilities.ends_with("USER\r\nSASL PLAIN\r\n.\r\n"), "{capabilities}");
}

#[test]
fn the_greeting_invites_nobody_to_apop() {
    let mut out = Output::default();
    Pop3Front::new(tls()).greet(&mut out);
    assert_eq!(out.queued(), b"+OK pop.example.org ready.\r\n");
}

#[test]
fn what_pipelines_behind_a_login_stays_unread() {
    let end = credentials("USER ann\r\nPASS secret\r\nSTAT\r\nLIST\r\n");
    assert_eq!(end, "\"ann\" \"secret\" as None, 12 unread");
}

#[test]
fn a_refused_login_leaves_what_follows_to_be_parsed_here() {
    let mut front = Pop3Front::new(tls());
    let said = b"USER ann\r\nPASS wrong\r\nSTAT\r\nUSER ann\r\nPASS right\r\n";
    let (mut input, mut out) = (Input::from_octets(said), Output::default());
    assert!(matches!(front.step(&mut input, &mut out), Ok(Step::Event(_))));
    front.refuse(Refusal::BadCredentials, &mut out);
    let Ok(Step::Event(Event::Credentials(second))) = front.step(&mut input, &mut out) else {
        panic!("no second")
    };
    assert_eq!(second.password().unwrap().expose(), b"right");
    assert_eq!(
        out.queued(),
        b"+OK\r\n-ERR [AUTH] Authentication failed.\r\n-ERR Not a command before login.\r\n+OK\r\n"
    );
}

#[test]
fn nothing_else_is_a_command_before_login() {
    for command in [
        "STAT",
        "LIST",
        "RETR 1",
        "TOP 1 0",
        "UIDL",
        "RSET",
        "APOP ann c4c9334bac560ecc979e58001b3e22fb",
        "UTF8",
        "UTF8 USER",
        "LANG *",
        "XCLIENT ADDR=192.0.2.1",
        "GET / HTTP/1.1",
        "",
        " USER ann",
        "USERann",
        "a LOGIN ann secret",
    ] {
        assert_eq!(heard(&format!("{command}\r\n")), "-ERR Not a command before login.\r\n");
    }
    for mechanism in ["CRAM-MD5", "XOAUTH2", "SCRAM-SHA-256", "EXTERNAL", "PLAIN\t"] {
        let said = heard(&format!("AUTH {mechanism}\r\n"));
        assert_eq!(said, "-ERR Unsupported authentication mechanism.\r\n", "{mechanism}");
    }
}

#[test]
fn a_client_that_only_says_nonsense_is_sent_away() {
    let Heard { said, end } = converse(&tls(), "STAT\r\n".repeat(20).as_bytes());
    assert_eq!(said.matches("-ERR Not a command before login.").count(), 10);
    assert!(said.ends_with("-ERR Too many wrong commands.\r\n"), "{said}");
    assert_eq!(end, "10 bad commands");
}

#[test]
fn after_quit_nothing_is_read() {
    let Heard { said, end } = converse(&tls(), b"QUIT\r\nNOOP\r\n");
    assert_eq!((&*said, &*end), ("+OK Logging out.\r\n", "closed"));
}

#[test]
fn a_line_without_end_is_not_waited_for() {
    for begun in ["", "USER ", "AUTH PLAIN ", "AUTH PLAIN\r\n"] {
        let mut client = begun.as_bytes().to_vec();
        client.resize(sasl::MAX_LINE + 64, b'A');
        let mut front = Pop3Front::new(tls());
        let (mut input, mut out) = (Input::from_octets(&client), Output::default());
        let violation = front.step(&mut input, &mut out).unwrap_err();
        assert_eq!(violation, Violation::LineTooLong { limit: sasl::MAX_LINE });
        assert!(out.queued().ends_with(b"-ERR Line too long.\r\n"));
    }
}

#[test]
fn a_long_token_fits() {
    let token = "t".repeat(15 * 1024);
    let response = format!("user=ann\x01auth=Bearer {token}\x01\x01");
    let sent = encode_base64(response.as_bytes());
    for between in [" ", "\r\n"] {
        let said =
            [b"AUTH XOAUTH2".as_slice(), between.as_bytes(), sent.expose(), b"\r\n"].concat();
        let mut front = Pop3Front::new(generous());
        let mut input = Input::from_octets(&said);
        let Ok(Step::Event(Event::Credentials(c))) = front.step(&mut input, &mut Output::default())
        else {
            panic!("no credentials")
        };
        assert_eq!(c.token().unwrap().expose(), token.as_bytes());
    }
}

#[test]
fn a_challenge_is_passed_on_and_its_answer_is_the_drivers() {
    let mut front = Pop3Front::new(generous());
    let mut out = Output::default();
    let mut input = Input::from_octets(b"AUTH XOAUTH2 dXNlcj1hAWF1dGg9QmVhcmVyIHQBAQ==\r\n");
    assert!(matches!(front.step(&mut input, &mut out), Ok(Step::Event(Event::Credentials(_)))));
    front.challenge(b"{\"status\":\"401\"}", &mut out);
    assert_eq!(out.queued(), b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n");
    input.push(b"\r\nNOOP\r\n");
    let Ok(Step::Event(Event::Response(Some(answer)))) = front.step(&mut input, &mut out) else {
        panic!("no answer")
    };
    assert!(answer.expose().is_empty());
    front.refuse(Refusal::BadCredentials, &mut out);
    assert!(matches!(front.step(&mut input, &mut out), Ok(Step::NeedInput)));
    assert!(out.queued().ends_with(b"-ERR [AUTH] Authentication failed.\r\n+OK\r\n"));
}

#[test]
fn a_verdict_may_come_before_the_answer_to_a_challenge() {
    let said = answered(b"AUTH XOAUTH2 dXNlcj1hAWF1dGg9QmVhcmVyIHQBAQ==\r\n", |front, out| {
        front.challenge(b"{}", out);
        front.refuse(Refusal::Unavailable, out);
        let next = front.step(&mut Input::from_octets(b"NOOP\r\n"), out);
        assert!(matches!(next, Ok(Step::NeedInput)));
    });
    assert!(said.starts_with("+ e30=\r\n-ERR [SYS/TEMP]") && said.ends_with("\r\n+OK\r\n"));
}

#[test]
fn a_fault_of_ours_is_never_a_wrong_password() {
    let login = b"USER ann\r\nPASS secret\r\n";
    for (refusal, code) in [
        (Refusal::BadCredentials, "[AUTH]"),
        (Refusal::Unavailable, "[SYS/TEMP]"),
        (Refusal::TooManySessions, "[IN-USE]"),
        (Refusal::Misconfigured, "[SYS/PERM]"),
    ] {
        let said = answered(login, |front, out| front.refuse(refusal, out));
        assert!(said.starts_with(&format!("-ERR {code} ")), "{said}");
    }
    let welcome = answered(login, |front, out| front.welcome(&Welcome::default(), out));
    assert_eq!(welcome, "+OK Logged in.\r\n");
    assert!(farewell_words(Farewell::ShuttingDown).starts_with("-ERR [SYS/TEMP] "));
    assert!(farewell_words(Farewell::TooManyConnections).starts_with("-ERR [SYS/TEMP] "));
}

#[test]
fn only_a_trusted_peer_says_for_whom_it_speaks() {
    let xclient = b"XCLIENT ADDR=2001:db8::7 PORT=4711 TTL=3\r\n";
    let mut front = Pop3Front::new(Terms { trusted: true, ..tls() });
    let mut out = Output::default();
    front.greet(&mut out);
    assert!(out.queued().starts_with(b"+OK [XCLIENT] "));
    front.step(&mut Input::from_octets(xclient), &mut out).unwrap();
    let forwarded = front.told().forwarded.as_ref().unwrap();
    assert_eq!((forwarded.client_port, forwarded.ttl), (Some(4711), Some(3)));
    let mut front = Pop3Front::new(tls());
    let mut out = Output::default();
    front.step(&mut Input::from_octets(xclient), &mut out).unwrap();
    assert!(out.queued().starts_with(b"-ERR") && front.told().forwarded.is_none());
}
