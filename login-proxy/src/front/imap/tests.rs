//! What a client says and hears before login. Each conversation is cut at every octet: the cut must not
//! matter. Longer ones are `tests/chats/imap`.

use shared::address::Domain;
use shared::sasl::Mechanism;

use super::*;
use crate::front::cut::{self, Heard};

/// What a listener with STARTTLS offers.
fn clear() -> Terms {
    Terms {
        hostname: Domain::parse("imap.example.org").unwrap(),
        capabilities: ["IMAP4rev1 SASL-IR LITERAL- ID ENABLE".into()].into(),
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

fn converse(terms: &Terms, client: &[u8]) -> Heard {
    cut::converse(|| ImapFront::new(terms.clone()), client)
}

fn heard(client: &str) -> String {
    converse(&tls(), client.as_bytes()).said
}

fn credentials(client: &[u8]) -> String {
    converse(&tls(), client).end
}

#[test]
fn a_name_and_a_password_come_as_atoms_strings_or_literals() {
    let expected = "\"ann\" \"se cret\" as None, 0 unread";
    for login in [
        "a LOGIN ann \"se cret\"\r\n",
        "a login \"ann\" \"se cret\"\r\n",
        "a LOGIN {3}\r\nann {7}\r\nse cret\r\n",
        "a LOGIN {3+}\r\nann {7+}\r\nse cret\r\n",
        "a LOGIN ann \"se cret\"\n",
    ] {
        assert_eq!(credentials(login.as_bytes()), expected, "{login:?}");
    }
    assert_eq!(heard("a LOGIN {3}\r\nann {7}\r\nse cret\r\n"), "+ OK\r\n+ OK\r\n");
}

#[test]
fn literal_octets_are_never_commands() {
    let smuggled = "a LOGIN {19+}\r\nx\r\nb LOGOUT\r\nc NOOP \"pass\"\r\n";
    assert_eq!(
        credentials(smuggled.as_bytes()),
        "\"x\\r\\nb LOGOUT\\r\\nc NOOP\" \"pass\" as None, 0 unread"
    );
}

#[test]
fn plain_comes_with_its_command_or_behind_it() {
    let expected = "\"ann\" \"secret\" as None, 0 unread";
    assert_eq!(credentials(b"a AUTHENTICATE PLAIN AGFubgBzZWNyZXQ=\r\n"), expected);
    assert_eq!(credentials(b"a authenticate plain\r\nAGFubgBzZWNyZXQ=\r\n"), expected);
    assert_eq!(heard("a AUTHENTICATE PLAIN\r\nAGFubgBzZWNyZXQ=\r\n"), "+ \r\n");
    assert_eq!(
        credentials(b"a AUTHENTICATE PLAIN Ym9iAGFkbWluAHNlY3JldA==\r\n"),
        "\"admin\" \"secret\" as Some(\"bob\"), 0 unread"
    );
}

#[test]
fn an_exchange_can_be_cancelled() {
    assert_eq!(
        heard("a AUTHENTICATE PLAIN\r\n*\r\nb NOOP\r\n"),
        "+ \r\na BAD Authentication exchange cancelled.\r\nb OK NOOP completed.\r\n"
    );
}

#[test]
fn an_empty_initial_response_is_no_plain_response() {
    let said = heard("a AUTHENTICATE PLAIN =\r\n");
    assert!(said.starts_with("a NO [AUTHENTICATIONFAILED]"), "{said}");
}

#[test]
fn no_password_is_taken_in_the_clear() {
    for login in ["a LOGIN ann secret\r\n", "a AUTHENTICATE PLAIN AGFubgBzZWNyZXQ=\r\n"] {
        let Heard { said, end } = converse(&clear(), login.as_bytes());
        assert_eq!(end, "");
        assert!(said.starts_with("a NO [PRIVACYREQUIRED]"), "{said}");
    }
    let capabilities = converse(&clear(), b"a CAPABILITY\r\n").said;
    assert!(capabilities.contains("STARTTLS LOGINDISABLED"), "{capabilities}");
    assert!(!capabilities.contains("AUTH=PLAIN"), "{capabilities}");
}

#[test]
fn tls_makes_everything_said_before_undone() {
    let said =
        converse(&clear(), b"a CAPABILITY\r\nb STARTTLS\r\nc CAPABILITY\r\nd STARTTLS\r\n").said;
    let after = said.split("(TLS)\r\n").nth(1).unwrap();
    assert!(after.contains("AUTH=PLAIN") && !after.contains("STARTTLS LOGINDISABLED"), "{said}");
    assert!(after.ends_with("d BAD TLS is already active or not to be had.\r\n"), "{said}");
    let mut front = ImapFront::new(clear());
    let mut out = Output::default();
    front.step(&mut Input::from_octets(b"a CAPABILITY\r\n"), &mut out).unwrap();
    front.secured(&mut out);
    assert!(!front.asked_capability, "what was asked in the clear does not count");
}

#[test]
fn an_id_may_have_literals_and_counts_once() {
    let mut front = ImapFront::new(tls());
    let mut out = Output::default();
    let said = b"a ID (\"name\" {7+}\r\nOutlook \"version\" NIL)\r\nb ID (\"name\" \"other\")\r\nc ID NIL\r\n";
    front.step(&mut Input::from_octets(said), &mut out).unwrap();
    assert_eq!(
        out.queued(),
        b"* ID NIL\r\na OK ID completed.\r\n* ID NIL\r\nb OK ID completed.\r\n* ID NIL\r\nc OK ID completed.\r\n"
    );
    assert_eq!(front.told().id[0], (b"name".to_vec(), b"Outlook".to_vec()));
    assert_eq!(front.told().id.len(), 1, "NIL tells nothing");
}

#[test]
fn what_pipelines_behind_a_login_stays_unread() {
    let end = credentials(b"a LOGIN ann secret\r\nb SELECT INBOX\r\n");
    assert_eq!(end, "\"ann\" \"secret\" as None, 16 unread");
}

#[test]
fn a_password_is_octets_and_never_holds_a_line_end_or_nul() {
    let mut front = ImapFront::new(tls());
    let (mut input, mut out) =
        (Input::from_octets(b"a LOGIN ann \"gr\xfcn\"\r\n"), Output::default());
    let Ok(Step::Event(Event::Credentials(c))) = front.step(&mut input, &mut out) else {
        panic!("no credentials")
    };
    assert_eq!(c.password().unwrap().expose(), b"gr\xfcn");
    for bad in ["a LOGIN ann \"x\0y\"\r\n", "a LOGIN ann {3}\r\nx\0y\r\n", "a LOGIN ann \"x\r\n"] {
        let Heard { said, end } = converse(&tls(), bad.as_bytes());
        assert_eq!(end, "");
        assert!(said.contains("a BAD"), "{bad:?}: {said}");
    }
}

#[test]
fn a_literal_that_is_too_large_is_not_invited() {
    assert_eq!(
        heard("a LOGIN {5000}\r\nb NOOP\r\n"),
        "a BAD [TOOBIG] Literal too large.\r\nb OK NOOP completed.\r\n"
    );
    let Heard { said, end } = converse(&tls(), b"a LOGIN {5000+}\r\nxxx");
    assert_eq!(
        (said.as_str(), end.as_str()),
        ("* BYE Command too large.\r\n", "a command of more than 4096 octets")
    );
}

#[test]
fn a_client_that_only_says_nonsense_is_sent_away() {
    let Heard { said, end } = converse(&tls(), "x SELECT INBOX\r\n".repeat(20).as_bytes());
    assert_eq!(said.matches("x BAD Not a command before login.").count(), 10);
    assert!(said.ends_with("* BYE Too many wrong commands.\r\n"), "{said}");
    assert_eq!(end, "10 bad commands");
}

#[test]
fn a_tag_is_a_tag() {
    for bad in [
        "LOGIN\r\n",
        "+ NOOP\r\n",
        "a(b NOOP\r\n",
        "a\"b NOOP\r\n",
        "\r\n",
        &format!("{} NOOP\r\n", "t".repeat(127)),
    ] {
        assert!(heard(bad).starts_with("* BAD"), "{bad:?}: {}", heard(bad));
    }
}

#[test]
fn a_command_without_tag_gets_help() {
    for typed in ["LOGIN ann secret\r\n", "login\r\n", "NOOP \r\n"] {
        let said = heard(typed);
        assert!(said.contains("BAD A tag comes first, as in: a1 LOGIN name password"), "{said}");
        assert!(!said.contains("secret"), "what was typed is not said again: {said}");
    }
}

#[test]
fn an_empty_name_or_password_is_wrong_before_any_backend_is_asked() {
    for login in [
        "a LOGIN \"\" secret\r\n",
        "a LOGIN ann \"\"\r\n",
        "a LOGIN ann {0+}\r\n\r\n",
        "a AUTHENTICATE PLAIN AGFubgA=\r\n",
        "a AUTHENTICATE PLAIN AABzZWNyZXQ=\r\n",
    ] {
        let Heard { said, end } = converse(&tls(), login.as_bytes());
        assert!(said.starts_with("a NO [AUTHENTICATIONFAILED]"), "{login:?}: {said}");
        assert_eq!(end, "");
    }
}

#[test]
fn base64_is_taken_as_clients_write_it() {
    for response in ["AGFubgBzZWNyZQ==", "AGFubgBzZWNyZQ", "AGFubgBz ZWNyZQ=="] {
        let login = format!("a AUTHENTICATE PLAIN\r\n{response}\r\n");
        assert_eq!(credentials(login.as_bytes()), "\"ann\" \"secre\" as None, 0 unread");
    }
    let said = heard("a AUTHENTICATE PLAIN no*base64\r\nb NOOP\r\n");
    assert!(said.starts_with("a NO [AUTHENTICATIONFAILED]") && said.contains("b OK"), "{said}");
}

#[test]
fn a_mailbox_is_asked_for_by_authzid_and_one_s_own_name_twice_is_none() {
    assert_eq!(
        credentials(b"a AUTHENTICATE PLAIN YW5uAGFubgBzZWNyZXQ=\r\n"),
        "\"ann\" \"secret\" as None, 0 unread"
    );
}

#[test]
fn a_response_without_end_is_not_waited_for() {
    let mut client = b"a AUTHENTICATE PLAIN\r\n".to_vec();
    client.resize(sasl::MAX_LINE + 64, b'A');
    let mut front = ImapFront::new(tls());
    let (mut input, mut out) = (Input::from_octets(&client), Output::default());
    let violation = front.step(&mut input, &mut out).unwrap_err();
    assert_eq!(violation, Violation::LineTooLong { limit: sasl::MAX_LINE });
    assert_eq!(out.queued(), b"+ \r\n* BYE Command too large.\r\n");
}

#[test]
fn a_client_that_asks_much_and_reads_nothing_is_not_answered_ahead() {
    let mut front = ImapFront::new(tls());
    let mut input = Input::from_octets("a CAPABILITY\r\n".repeat(4_000).as_bytes());
    let mut out = Output::default();
    let mut answered = 0;
    while !input.is_empty() {
        assert!(matches!(front.step(&mut input, &mut out), Ok(Step::NeedInput)));
        assert!(out.len() < 17 * 1024, "{} octets", out.len());
        answered += String::from_utf8(out.take()).unwrap().matches("a OK").count();
    }
    assert_eq!(answered, 4_000);
}

#[test]
fn a_long_token_fits() {
    let password = "p".repeat(16 * 1024);
    let secret = Secret::new(password.clone().into_bytes());
    let sent = shared::sasl::encode_plain(b"", b"ann", &secret);
    let line = [b"a AUTHENTICATE PLAIN ".as_slice(), sent.expose(), b"\r\n"].concat();
    let continued = [b"a AUTHENTICATE PLAIN\r\n".as_slice(), sent.expose(), b"\r\n"].concat();
    for said in [line, continued] {
        let mut front = ImapFront::new(tls());
        let mut input = Input::from_octets(&said);
        let Ok(Step::Event(Event::Credentials(c))) = front.step(&mut input, &mut Output::default())
        else {
            panic!("no credentials")
        };
        assert_eq!(c.password().unwrap().expose(), password.as_bytes());
    }
}

#[test]
fn other_mechanisms_and_unauthenticate_are_not_to_be_had() {
    for mechanism in ["CRAM-MD5", "XOAUTH2", "SCRAM-SHA-256", "EXTERNAL"] {
        let said = heard(&format!("a AUTHENTICATE {mechanism}\r\n"));
        assert!(said.starts_with("a NO [CANNOT]"), "{mechanism}: {said}");
    }
    assert!(heard("a UNAUTHENTICATE\r\n").starts_with("a BAD"));
    let offered = heard("a CAPABILITY\r\n");
    assert!(!offered.contains("UNAUTHENTICATE") && offered.matches("AUTH=").count() == 1);
}

#[test]
fn what_is_asked_early_is_answered_without_a_promise() {
    assert_eq!(
        heard("a ENABLE CONDSTORE QRESYNC\r\nb NAMESPACE\r\nc ENABLE\r\n"),
        "* ENABLED\r\na OK Enable completed.\r\n\
         b BAD Not a command before login.\r\nc BAD Not a command before login.\r\n"
    );
}

#[test]
fn the_greeting_says_what_is_to_be_had() {
    let said = |terms: Terms| {
        let mut out = Output::default();
        ImapFront::new(terms).greet(&mut out);
        String::from_utf8_lossy(out.queued()).into_owned()
    };
    assert_eq!(
        said(clear()),
        "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE STARTTLS LOGINDISABLED] \
         imap.example.org ready.\r\n"
    );
    assert_eq!(
        said(Terms { plaintext: true, ..clear() }),
        "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE STARTTLS AUTH=PLAIN] \
         imap.example.org ready.\r\n"
    );
    assert_eq!(
        said(tls()),
        "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL- ID ENABLE AUTH=PLAIN] imap.example.org ready.\r\n"
    );
}

#[test]
fn an_id_of_more_pairs_than_allowed_is_not_kept() {
    let pairs = |count: usize| format!("a ID ({})\r\n", vec!["\"k\" \"v\""; count].join(" "));
    assert!(heard(&pairs(30)).ends_with("a OK ID completed.\r\n"));
    assert!(heard(&pairs(31)).starts_with("a BAD"));
    assert!(heard("a ID (\"k\")\r\n").starts_with("a BAD"));
}

#[test]
fn a_refused_login_leaves_what_follows_to_be_parsed_here() {
    let mut front = ImapFront::new(tls());
    let mut input = Input::from_octets(b"a LOGIN ann wrong\r\nb NOOP\r\nc LOGIN ann right\r\n");
    let mut out = Output::default();
    assert!(matches!(front.step(&mut input, &mut out), Ok(Step::Event(_))));
    front.refuse(Refusal::BadCredentials, &mut out);
    let Ok(Step::Event(Event::Credentials(second))) = front.step(&mut input, &mut out) else {
        panic!("no second")
    };
    assert_eq!(second.password().unwrap().expose(), b"right");
    assert_eq!(
        out.queued(),
        b"a NO [AUTHENTICATIONFAILED] Authentication failed.\r\nb OK NOOP completed.\r\n"
    );
}

#[test]
fn after_logout_nothing_is_read() {
    let Heard { said, end } = converse(&tls(), b"a LOGOUT\r\nb NOOP\r\n");
    assert_eq!(said, "* BYE Logging out\r\na OK Logout completed.\r\n");
    assert_eq!(end, "closed");
}

fn answered(before: &[u8], answer: impl Fn(&mut ImapFront, &mut Output)) -> String {
    cut::answered(ImapFront::new(tls()), before, answer)
}

#[test]
fn capabilities_after_login_are_the_owners() {
    let welcome = Welcome { capabilities: "IMAP4rev1 IDLE MOVE".into(), ..Welcome::default() };
    let quiet = answered(b"a LOGIN ann secret\r\n", |front, out| front.welcome(&welcome, out));
    assert_eq!(quiet, "a OK [CAPABILITY IMAP4rev1 IDLE MOVE] Logged in\r\n");
    let asked = answered(b"c CAPABILITY\r\na LOGIN ann secret\r\n", |front, out| {
        front.welcome(&welcome, out);
    });
    assert_eq!(asked, "* CAPABILITY IMAP4rev1 IDLE MOVE\r\na OK Logged in\r\n");
}

#[test]
fn a_fault_of_ours_is_never_a_wrong_password() {
    for refusal in
        [Refusal::Unavailable, Refusal::TooManySessions, Refusal::Misconfigured, Refusal::NeedsTls]
    {
        let said = answered(b"a LOGIN ann secret\r\n", |front, out| front.refuse(refusal, out));
        assert!(said.starts_with("a NO [") && !said.contains("AUTHENTICATIONFAILED"), "{said}");
    }
    let wrong = answered(b"a LOGIN ann x\r\n", |f, out| f.refuse(Refusal::BadCredentials, out));
    assert_eq!(wrong, "a NO [AUTHENTICATIONFAILED] Authentication failed.\r\n");
}
