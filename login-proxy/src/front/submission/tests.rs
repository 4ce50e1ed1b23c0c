//! What a mail program says and hears before login. Each conversation is cut at every octet: the cut must
//! not matter. Longer ones are `tests/chats/submission`.

use shared::address::Domain;
use shared::credentials::Secret;

use super::*;
use crate::front::cut::{self, Heard};

const ANN: &str = "\"ann\" \"secret\" as None, 0 unread";
const FIRST: &str = "530 5.7.0 Authentication required\r\n";

/// What a listener with STARTTLS offers.
fn clear() -> Terms {
    Terms {
        hostname: Domain::parse("mail.example.org").unwrap(),
        capabilities: ["PIPELINING".into(), "SIZE 1000".into(), "REQUIRETLS".into()].into(),
        mechanisms: Mechanisms::of_words(["PLAIN", "XOAUTH2"]),
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
    cut::converse(|| SubmissionFront::new(terms.clone()), client)
}

/// What is said in answer to `client`, after its EHLO.
fn heard(client: &str) -> String {
    let said = converse(&tls(), format!("EHLO c\r\n{client}").as_bytes()).said;
    let (_, after) = said.split_once("XOAUTH2\r\n").unwrap();
    after.to_owned()
}

fn credentials(client: &str) -> String {
    converse(&tls(), format!("EHLO c\r\n{client}").as_bytes()).end
}

/// A front that was told this, with what it said forgotten.
fn told(client: &[u8]) -> (SubmissionFront, Output) {
    let mut front = SubmissionFront::new(tls());
    let mut out = Output::default();
    front.step(&mut Input::from_octets(client), &mut out).unwrap();
    out.clear();
    (front, out)
}

fn text(out: &Output) -> String {
    String::from_utf8_lossy(out.queued()).into_owned()
}

#[test]
fn the_greeting_has_our_name() {
    let mut out = Output::default();
    SubmissionFront::new(clear()).greet(&mut out);
    assert_eq!(text(&out), "220 mail.example.org ESMTP\r\n");
}

#[test]
fn ehlo_says_what_is_to_be_had_on_this_connection() {
    let said = |terms: Terms| converse(&terms, b"EHLO c\r\n").said.replace("\r\n", "|");
    let common = "250-mail.example.org|250-PIPELINING|250-SIZE 1000|";
    assert_eq!(said(clear()), format!("{common}250 STARTTLS|"));
    let local = Terms { plaintext: true, ..clear() };
    assert_eq!(said(local), format!("{common}250-STARTTLS|250 AUTH PLAIN LOGIN XOAUTH2|"));
    assert_eq!(said(tls()), format!("{common}250-REQUIRETLS|250 AUTH PLAIN LOGIN XOAUTH2|"));
    let none = Terms { mechanisms: Mechanisms::default(), ..tls() };
    assert_eq!(said(none), format!("{common}250 REQUIRETLS|"));
}

#[test]
fn helo_is_answered_in_one_line_and_lets_log_in() {
    let Heard { said, end } = converse(&tls(), b"HELO c\r\nAUTH PLAIN AGFubgBzZWNyZXQ=\r\n");
    assert_eq!((said.as_str(), end.as_str()), ("250 mail.example.org\r\n", ANN));
}

#[test]
fn a_name_is_kept_unless_it_could_not_stand_in_a_command() {
    for (said, kept) in [
        ("EHLO client.example.org", Some("client.example.org")),
        ("HELO [192.0.2.7] junk", Some("[192.0.2.7]")),
        ("ehlo DESKTOP_7", Some("DESKTOP_7")),
        ("EHLO ДИМА-ПК", None),
    ] {
        let (front, _) = told(format!("{said}\r\n").as_bytes());
        assert_eq!(front.told().helo.as_deref(), kept, "{said}");
        assert!(front.greeted, "{said}");
    }
    for bad in ["EHLO\r\n", "EHLO  \r\n", "EHLO a\x07b\r\n", "HELO a\0\r\n", "EHLO a\rb\r\n"] {
        let Heard { said, .. } = converse(&tls(), bad.as_bytes());
        assert!(
            said.starts_with("501 5.5.4 ") || said.starts_with("500 5.5.2 "),
            "{bad:?}: {said}"
        );
        let (front, _) = told(bad.as_bytes());
        assert!(front.told().helo.is_none() && !front.greeted, "{bad:?}");
    }
}

#[test]
fn plain_comes_with_its_command_or_behind_it() {
    assert_eq!(credentials("AUTH PLAIN AGFubgBzZWNyZXQ=\r\n"), ANN);
    assert_eq!(credentials("auth plain\r\nAGFubgBzZWNyZXQ=\r\n"), ANN);
    assert_eq!(credentials("AUTH PLAIN AGFubgBzZWNyZXQ=\n"), ANN);
    assert_eq!(heard("AUTH PLAIN\r\nAGFubgBzZWNyZXQ=\r\n"), "334 \r\n");
    assert_eq!(
        credentials("AUTH PLAIN Ym9iAGFkbWluAHNlY3JldA==\r\n"),
        "\"admin\" \"secret\" as Some(\"bob\"), 0 unread"
    );
    let twice = credentials("AUTH PLAIN YW5uAGFubgBzZWNyZXQ=\r\n");
    assert_eq!(twice, ANN, "one's own name is nobody else's");
}

#[test]
fn login_asks_for_a_name_and_a_password() {
    for login in ["AUTH LOGIN\r\nYW5u\r\nc2VjcmV0\r\n", "AUTH LOGIN YW5u\r\nc2VjcmV0\r\n"] {
        assert_eq!(credentials(login), ANN);
    }
    assert_eq!(
        heard("AUTH LOGIN\r\nYW5u\r\nc2VjcmV0\r\n"),
        "334 VXNlcm5hbWU6\r\n334 UGFzc3dvcmQ6\r\n"
    );
}

#[test]
fn base64_is_taken_as_clients_write_it() {
    for response in ["AGFubgBzZWNyZQ==", "AGFubgBzZWNyZQ", "AGFubgBz ZWNyZQ=="] {
        let login = format!("AUTH PLAIN\r\n{response}\r\n");
        assert_eq!(credentials(&login), "\"ann\" \"secre\" as None, 0 unread");
    }
}

#[test]
fn an_exchange_can_be_cancelled_and_what_follows_is_a_command() {
    assert_eq!(
        heard("AUTH PLAIN\r\n*\r\nNOOP\r\n"),
        "334 \r\n501 5.7.0 Authentication exchange cancelled\r\n250 2.0.0 Ok\r\n"
    );
}

#[test]
fn what_is_no_response_is_said_to_be_none() {
    for (login, expected) in [
        ("AUTH PLAIN =", "535 5.7.8 "),
        ("AUTH PLAIN AGFubgA=", "535 5.7.8 "),
        ("AUTH PLAIN AABzZWNyZXQ=", "535 5.7.8 "),
        ("AUTH PLAIN YW5u", "535 5.7.8 "),
        ("AUTH PLAIN no*base64", "501 5.5.2 "),
        ("AUTH LOGIN =", "535 5.7.8 "),
        ("AUTH PLAIN AGFubgBzZWNyZXQ= junk", "501 5.5.4 "),
        ("AUTH", "501 5.5.4 "),
        ("AUTH  ", "501 5.5.4 "),
        ("AUTH CRAM-MD5", "504 5.5.4 "),
        ("AUTH SCRAM-SHA-256", "504 5.5.4 "),
        ("AUTH PLAIN\0", "500 5.5.2 "),
    ] {
        let said = heard(&format!("{login}\r\nNOOP\r\n"));
        assert!(
            said.starts_with(expected) && said.ends_with("\r\n250 2.0.0 Ok\r\n"),
            "{login}: {said}"
        );
    }
}

#[test]
fn auth_comes_after_ehlo() {
    let Heard { said, end } = converse(&tls(), b"AUTH PLAIN AGFubgBzZWNyZXQ=\r\n");
    assert_eq!((said.as_str(), end.as_str()), ("503 5.5.1 Say EHLO first\r\n", ""));
}

#[test]
fn no_password_is_taken_in_the_clear() {
    let Heard { said, end } = converse(
        &clear(),
        b"EHLO c\r\nAUTH PLAIN AGFubgBzZWNyZXQ=\r\nAUTH LOGIN\r\nAUTH XOAUTH2\r\n",
    );
    assert_eq!(end, "");
    assert_eq!(said.matches("538 5.7.11 No passwords in the clear, use TLS first\r\n").count(), 3);
    assert!(!said.contains("AUTH") && !said.contains("334"), "{said}");
}

#[test]
fn no_message_is_taken_before_login() {
    for command in [
        "MAIL FROM:<ann@example.org>",
        "MAIL FROM:<ann@example.org> AUTH=<bob@example.org>",
        "MAIL nonsense",
        "RCPT TO:<bob@example.org>",
        "DATA",
        "BURL imap://a LAST",
        "VRFY ann",
        "EXPN list",
        "ETRN example.org",
    ] {
        assert_eq!(heard(&format!("{command}\r\nNOOP\r\n")), format!("{FIRST}250 2.0.0 Ok\r\n"));
    }
}

#[test]
fn a_chunk_is_never_read_as_commands() {
    let chunk = "QUIT\r\nAUTH PLAIN AGFubgBzZWNyZXQ=\r\n";
    let said = format!("BDAT {} LAST\r\n{chunk}NOOP\r\n", chunk.len());
    assert_eq!(heard(&said), format!("{FIRST}250 2.0.0 Ok\r\n"));
    assert_eq!(heard("BDAT 0 LAST\r\nNOOP\r\n"), format!("{FIRST}250 2.0.0 Ok\r\n"));
    for bad in
        ["BDAT\r\nQUIT\r\n", "BDAT x\r\nQUIT\r\n", "BDAT -1\r\n", "BDAT 99999999999999999999\r\n"]
    {
        let Heard { said, end } = converse(&tls(), bad.as_bytes());
        assert_eq!((said.as_str(), end.as_str()), ("501 5.5.4 BDAT size [LAST]\r\n", "closed"));
    }
}

#[test]
fn a_client_is_not_believed_to_be_a_proxy() {
    let said = heard("XCLIENT ADDR=203.0.113.9 LOGIN=ann\r\nXFORWARD ADDR=203.0.113.9\r\n");
    assert_eq!(said, "502 5.5.1 Not implemented here\r\n".repeat(2));
}

#[test]
fn small_talk_is_answered() {
    assert_eq!(
        heard("NOOP what\r\nRSET\r\nHELP me\r\nFOO\r\nQUIT\r\nNOOP\r\n"),
        "250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n214 2.0.0 RFC 6409\r\n500 5.5.2 Unknown command\r\n\
         221 2.0.0 Bye\r\n"
    );
    assert_eq!(credentials("QUIT\r\nNOOP\r\n"), "closed");
}

#[test]
fn tls_makes_everything_said_before_undone() {
    let Heard { said, .. } = converse(
        &clear(),
        b"EHLO c\r\nSTARTTLS\r\nAUTH PLAIN AGFubgBzZWNyZXQ=\r\nEHLO c\r\nSTARTTLS\r\n",
    );
    let after = said.split("220 2.0.0 Go ahead\r\n(TLS)\r\n").nth(1).unwrap();
    assert!(after.starts_with("503 5.5.1 Say EHLO first\r\n250-mail.example.org\r\n"), "{said}");
    assert!(after.contains("250 AUTH PLAIN") && !after.contains("-STARTTLS"), "{said}");
    assert!(after.ends_with("503 5.5.1 TLS is already active or not to be had\r\n"), "{said}");
    let (mut front, mut out) = told(b"EHLO c\r\n");
    front.secured(&mut out);
    assert_eq!(*front.told(), Told::default());
}

#[test]
fn a_browser_is_not_listened_to() {
    for words in ["POST / HTTP/1.1\r\nEHLO c\r\n", "Host: a\r\n", "\x16\x03\x01\x02\0\x01"] {
        let Heard { said, end } = converse(&tls(), words.as_bytes());
        assert_eq!(said, "521 5.5.1 This is SMTP\r\n", "{words:?}");
        assert!(end.starts_with("another protocol's words"), "{end}");
    }
}

#[test]
fn a_client_that_only_says_nonsense_is_sent_away() {
    let Heard { said, end } = converse(&tls(), "MAIL FROM:<>\r\n".repeat(20).as_bytes());
    assert_eq!(said, format!("{}421 4.7.0 Too many wrong commands\r\n", FIRST.repeat(10)));
    assert_eq!(end, "10 bad commands");
}

#[test]
fn a_line_without_end_is_not_waited_for() {
    for (begin, limit, words) in [
        ("NOOP ", MAX_LINE, "500 5.5.2 Line too long\r\n"),
        ("AUTH PLAIN ", sasl::MAX_LINE, "500 5.5.6 Authentication exchange line is too long\r\n"),
        (
            "auth plain\r\n",
            sasl::MAX_LINE,
            "500 5.5.6 Authentication exchange line is too long\r\n",
        ),
    ] {
        let mut client = format!("EHLO c\r\n{begin}").into_bytes();
        client.resize(client.len() + limit, b'A');
        let mut front = SubmissionFront::new(tls());
        let (mut input, mut out) = (Input::from_octets(&client), Output::default());
        let violation = front.step(&mut input, &mut out).unwrap_err();
        assert_eq!(violation, Violation::LineTooLong { limit });
        assert!(text(&out).ends_with(words), "{}", text(&out));
    }
}

#[test]
fn a_long_token_fits() {
    let password = "p".repeat(16 * 1024);
    let secret = Secret::new(password.clone().into_bytes());
    let sent = shared::sasl::encode_plain(b"", b"ann", &secret);
    for between in [" ", "\r\n"] {
        let said = [b"EHLO c\r\nAUTH PLAIN", between.as_bytes(), sent.expose(), b"\r\n"].concat();
        let mut front = SubmissionFront::new(tls());
        let mut input = Input::from_octets(&said);
        let Ok(Step::Event(Event::Credentials(c))) = front.step(&mut input, &mut Output::default())
        else {
            panic!("no credentials")
        };
        assert_eq!(c.password().unwrap().expose(), password.as_bytes());
    }
}

#[test]
fn what_pipelines_behind_a_login_stays_unread() {
    let end = credentials("AUTH PLAIN AGFubgBzZWNyZXQ=\r\nMAIL FROM:<>\r\n");
    assert_eq!(end, "\"ann\" \"secret\" as None, 14 unread");
}

fn answered(answer: impl Fn(&mut SubmissionFront, &mut Output)) -> String {
    let (mut front, mut out) = told(b"EHLO c\r\nAUTH PLAIN AGFubgBzZWNyZXQ=\r\n");
    answer(&mut front, &mut out);
    text(&out)
}

#[test]
fn a_fault_of_ours_is_never_a_wrong_password() {
    let said = |refusal| answered(|front, out| front.refuse(refusal, out));
    assert_eq!(said(Refusal::BadCredentials), "535 5.7.8 Authentication failed\r\n");
    assert!(said(Refusal::Unavailable).starts_with("454 4.7.0 "));
    assert!(said(Refusal::Misconfigured).starts_with("454 4.7.0 "));
    assert!(said(Refusal::TooManySessions).starts_with("421 4.7.0 "));
    assert!(said(Refusal::NeedsTls).starts_with("538 5.7.11 "));
    assert!(said(Refusal::Cancelled).starts_with("501 5.7.0 "));
    let yes = answered(|front, out| front.welcome(&Welcome::default(), out));
    assert_eq!(yes, "235 2.7.0 Authentication successful\r\n");
}

#[test]
fn the_last_word_of_a_connection_is_421_and_nothing_is_read_behind_it() {
    let (mut front, mut out) = told(b"EHLO c\r\nAUTH PLAIN AGFubgBzZWNyZXQ=\r\n");
    front.refuse(Refusal::TooManySessions, &mut out);
    let step = front.step(&mut Input::from_octets(b"NOOP\r\n"), &mut out);
    assert!(matches!(step, Ok(Step::Close)) && text(&out).starts_with("421 4.7.0 "));
    for farewell in [
        Farewell::ShuttingDown,
        Farewell::TooSlow,
        Farewell::TooManyFailures,
        Farewell::TooManyConnections,
    ] {
        assert_eq!(farewell_words(farewell).code(), 421);
    }
}

#[test]
fn a_refused_login_leaves_what_follows_to_be_parsed_here() {
    let (mut front, mut out) = told(b"EHLO c\r\nAUTH PLAIN AGFubgB3cm9uZw==\r\n");
    front.refuse(Refusal::BadCredentials, &mut out);
    let mut input = Input::from_octets(b"MAIL FROM:<>\r\nAUTH PLAIN AGFubgBzZWNyZXQ=\r\n");
    let Ok(Step::Event(Event::Credentials(second))) = front.step(&mut input, &mut out) else {
        panic!("no second")
    };
    assert_eq!(second.password().unwrap().expose(), b"secret");
    assert_eq!(text(&out), format!("535 5.7.8 Authentication failed\r\n{FIRST}"));
}

#[test]
fn a_backends_challenge_is_passed_on_and_the_answer_is_an_event() {
    let token = encode_base64(b"user=ann\x01auth=Bearer t\x01\x01");
    let login = [b"EHLO c\r\nAUTH XOAUTH2 ", token.expose(), b"\r\n"].concat();
    let (mut front, mut out) = told(&login);
    front.challenge(b"{\"status\":\"401\"}", &mut out);
    assert_eq!(text(&out), "334 eyJzdGF0dXMiOiI0MDEifQ==\r\n");
    for (said, expected) in [("\r\n", Some(&b""[..])), ("AQ==\r\n", Some(b"\x01")), ("*\r\n", None)]
    {
        front.challenge(b"", &mut out);
        let Ok(Step::Event(Event::Response(response))) =
            front.step(&mut Input::from_octets(said.as_bytes()), &mut out)
        else {
            panic!("no response")
        };
        assert_eq!(response.as_ref().map(Secret::expose), expected);
    }
}

#[test]
fn only_a_trusted_peer_says_for_whom_it_speaks() {
    let said = b"EHLO webmail\r\nXCLIENT ADDR=IPV6:2001:db8::7 PORT=4711 TTL=3\r\nAUTH PLAIN\r\n";
    let mut front = SubmissionFront::new(Terms { trusted: true, ..tls() });
    let mut out = Output::default();
    front.step(&mut Input::from_octets(said), &mut out).unwrap();
    let text = String::from_utf8_lossy(out.queued()).into_owned();
    assert!(text.contains("250-XCLIENT ADDR") && text.contains("220 "), "{text}");
    assert!(text.contains("503 5.5.1 Say EHLO first"), "it begins anew: {text}");
    let forwarded = front.told().forwarded.as_ref().unwrap();
    assert_eq!((forwarded.client_port, forwarded.ttl), (Some(4711), Some(3)));
    let mut front = SubmissionFront::new(tls());
    let mut out = Output::default();
    front.step(&mut Input::from_octets(said), &mut out).unwrap();
    let text = String::from_utf8_lossy(out.queued()).into_owned();
    assert!(text.contains("502 ") && !text.contains("XCLIENT"), "{text}");
    assert!(front.told().forwarded.is_none());
}
