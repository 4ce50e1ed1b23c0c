use mail_parser::{Message, MessageParser, MimeHeaders, PartType};
use proptest::prelude::*;

use super::*;

const HEADER: &[u8] =
    b"Received: x\r\nFrom: Ann <ann@sender.example>\r\nSubject: Hello\r\n\r\nBody\r\n";

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_795_000_000 + seconds).unwrap()
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

/// A report of `recipients`.
fn report<'a>(recipients: &'a [Reported<'a>], content: &'a [u8]) -> Report<'a> {
    Report {
        id: "0195report",
        hostname: "mx.example",
        to: "ann@sender.example",
        news: News::Failure,
        at: at(60),
        message: "0195message",
        arrived: at(0),
        envid: Some("QQ+2B314159"),
        ret: None,
        recipients,
        content,
    }
}

/// The parts of a report as a mail program finds them: the text, the status, what is returned.
struct Parsed {
    text: String,
    /// The groups of fields in the status.
    status: Vec<Vec<(String, String)>>,
    returned_type: String,
    returned: Vec<u8>,
}

fn kind(message: &Message<'_>, part: usize) -> String {
    let kind = message.parts[part].content_type().unwrap();
    format!("{}/{}", kind.ctype(), kind.subtype().unwrap())
}

fn octets(message: &Message<'_>, part: usize) -> Vec<u8> {
    match &message.parts[part].body {
        PartType::Text(text) => text.as_bytes().to_vec(),
        PartType::Message(inner) => inner.raw_message().to_vec(),
        PartType::Binary(octets) => octets.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn parsed(report: &Report<'_>) -> Parsed {
    let text = text(report);
    assert!(has_lines(&text) && text.ends_with(b"\r\n"), "{}", String::from_utf8_lossy(&text));
    let message = MessageParser::default().parse(&text).unwrap();
    let PartType::Multipart(parts) = &message.parts[0].body else { panic!("no multipart") };
    assert_eq!(kind(&message, 0), "multipart/report");
    let of_report = message.content_type().unwrap().attribute("report-type");
    assert_eq!(of_report, Some("delivery-status"));
    let parts: Vec<usize> = parts.iter().map(|part| usize::try_from(*part).unwrap()).collect();
    let &[explanation, status, returned] = parts.as_slice() else { panic!("{parts:?}") };
    assert_eq!(kind(&message, explanation), "text/plain");
    assert_eq!(kind(&message, status), "message/delivery-status");
    let status = String::from_utf8(octets(&message, status)).unwrap();
    let groups = status.trim_end().split("\r\n\r\n").map(|group| {
        let fields = group.trim().lines().map(|field| {
            let (name, value) = field.split_once(": ").unwrap_or_else(|| panic!("{field:?}"));
            (name.to_owned(), value.to_owned())
        });
        fields.collect()
    });
    Parsed {
        text: String::from_utf8(octets(&message, explanation)).unwrap(),
        status: groups.collect(),
        returned_type: kind(&message, returned),
        returned: octets(&message, returned),
    }
}

fn fields(group: &[(String, String)]) -> Vec<(&str, &str)> {
    group.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn a_failure_is_told_to_a_person_and_to_a_program() {
    let (ann, bob) = (address("ann@example.org"), address("\"b c\"@example.org"));
    let (unknown, expired) = (
        Reply::new(550, (1, 1), "No such user"),
        Reply::new(451, (4, 7), "Not delivered in five days"),
    );
    let recipients = [
        Reported {
            address: &ann,
            orcpt: Some("rfc822;Ann+2Bx@Example.org"),
            reply: &unknown,
            by_server: true,
        },
        Reported { address: &bob, orcpt: None, reply: &expired, by_server: false },
    ];
    let report = report(&recipients, HEADER);
    let octets = text(&report);
    let message = MessageParser::default().parse(&octets).unwrap();
    let from = message.from().unwrap().first().unwrap();
    assert_eq!(from.address(), Some("MAILER-DAEMON@mx.example"));
    assert_eq!(from.name(), Some("Mail Delivery System"));
    assert_eq!(message.to().unwrap().first().unwrap().address(), Some("ann@sender.example"));
    assert_eq!(message.message_id(), Some("0195report@mx.example"));
    assert_eq!(message.date().unwrap().to_timestamp(), at(60).unix_timestamp());
    assert_eq!(message.header("Auto-Submitted").unwrap().as_text(), Some("auto-replied"));
    assert!(octets.is_ascii());

    let Parsed { text, status, returned_type, returned } = parsed(&report);
    for said in [
        "mx.example",
        "will not be tried again",
        "<ann@example.org>\r\n    The receiving server said: 550 5.1.1 No such user",
        "<\"b c\"@example.org>\r\n    Reason: 451 4.4.7 Not delivered in five days",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let arrival = date(at(0));
    let [whole, first, second] = status.as_slice() else { panic!("{status:?}") };
    assert_eq!(
        fields(whole),
        [
            ("Reporting-MTA", "dns; mx.example"),
            ("X-Mailshift-Id", "0195message"),
            ("Original-Envelope-Id", "QQ+314159"),
            ("Arrival-Date", arrival.as_str()),
        ]
    );
    assert_eq!(
        fields(first),
        [
            ("Original-Recipient", "rfc822; Ann+x@Example.org"),
            ("Final-Recipient", "rfc822; ann@example.org"),
            ("Action", "failed"),
            ("Status", "5.1.1"),
            ("Diagnostic-Code", "smtp; 550 5.1.1 No such user"),
        ]
    );
    assert_eq!(
        fields(second),
        [
            ("Final-Recipient", "rfc822; \"b c\"@example.org"),
            ("Action", "failed"),
            ("Status", "4.4.7"),
            ("Diagnostic-Code", "x-mailshift; 451 4.4.7 Not delivered in five days"),
        ]
    );
    assert_eq!(returned_type, "text/rfc822-headers");
    assert_eq!(returned, &HEADER[..HEADER.len() - 8]);
}

#[test]
fn a_delay_says_until_when_it_is_tried() {
    let ann = address("ann@example.org");
    let reply = Reply::bare(451, "busy");
    let recipients = [Reported { address: &ann, orcpt: None, reply: &reply, by_server: true }];
    let report = Report { news: News::Delay(at(9_000)), ..report(&recipients, HEADER) };
    let Parsed { text, status, .. } = parsed(&report);
    let until = date(at(9_000));
    assert!(text.contains(&until) && text.contains("need not send it again"), "{text}");
    assert!(!text.contains("will not be tried"), "{text}");
    let last = fields(&status[1]);
    assert_eq!(&last[1..3], [("Action", "delayed"), ("Status", "4.0.0")]);
    assert_eq!(last[4], ("Will-Retry-Until", until.as_str()));
}

/// What [`Report::content`] becomes with this RET.
fn returned_of(ret: Option<&str>, content: &[u8]) -> (String, Vec<u8>) {
    let ann = address("ann@example.org");
    let reply = Reply::bare(550, "no");
    let recipients = [Reported { address: &ann, orcpt: None, reply: &reply, by_server: true }];
    let Parsed { returned_type, returned, .. } =
        parsed(&Report { ret, ..report(&recipients, content) });
    (returned_type, returned)
}

#[test]
fn the_whole_message_is_returned_when_that_was_asked_for_and_it_is_not_too_large() {
    let eight_bit = [HEADER, "Grüße\r\n".as_bytes()].concat();
    for content in [HEADER, &eight_bit] {
        let (kind, octets) = returned_of(Some("full"), content);
        assert_eq!(kind, "message/rfc822");
        assert_eq!(octets, content);
    }
    let large = [HEADER, b"0123456789\r\n".repeat(MAX_WHOLE / 12).as_slice()].concat();
    let not_lines = [HEADER, b"lone \n\r\n"].concat();
    for (ret, content) in [
        (Some("FULL"), large.as_slice()),
        (Some("FULL"), &not_lines),
        (Some("HDRS"), HEADER),
        (None, HEADER),
    ] {
        let content = &content[..content.len().min(WANTED)];
        let (kind, octets) = returned_of(ret, content);
        assert_eq!(
            (kind.as_str(), octets.as_slice()),
            ("text/rfc822-headers", &HEADER[..HEADER.len() - 8])
        );
    }
}

#[test]
fn a_header_that_is_not_lines_is_encoded_and_a_long_one_is_cut_at_a_line() {
    let long_line = format!("Subject: {}\r\n", "x".repeat(2_000)).into_bytes();
    for header in [b"Subject: a\rb\r\n".to_vec(), b"A: \0\nB: c\r\n".to_vec(), long_line] {
        let (kind, octets) = returned_of(None, &[&header, b"\r\nBody\r\n".as_slice()].concat());
        assert_eq!(kind, "text/rfc822-headers");
        assert_eq!(octets, header);
    }
    let endless = b"X-Field: value\r\n".repeat(20_000);
    let (_, octets) = returned_of(Some("FULL"), &endless[..WANTED]);
    assert!(octets.len() > MAX_HEADER - 20 && octets.len() <= MAX_HEADER);
    assert!(endless.starts_with(&octets) && octets.ends_with(b"value\r\n"));
    assert_eq!(returned_of(None, b"").1, b"");
}

#[test]
fn the_boundary_is_in_nothing_that_is_returned() {
    let hostile: String = (0..20).fold(String::new(), |mut text, attempt| {
        let _ = write!(text, "X-{attempt}: y\r\n --=_0195report_{attempt}--\r\n");
        text
    });
    let content = format!("{hostile}\r\n");
    assert_eq!(returned_of(None, content.as_bytes()).1, hostile.as_bytes());
}

#[test]
fn an_address_that_is_not_ascii_is_written_in_ascii_for_programs() {
    for (escaped, plain) in [("a", 'a'), ("\\x{E9}", 'é'), ("\\x{2B}", '+')] {
        let written: String = final_recipient(&format!("ü{plain}@example.org"));
        assert_eq!(written, format!("utf-8; \\x{{FC}}{escaped}@example.org"));
    }
    assert_eq!(final_recipient("a+b@example.org"), "rfc822; a+b@example.org");
}

#[test]
fn nobody_is_told_who_does_not_want_to_know_and_no_report_goes_to_the_null_sender() {
    let ann = ReversePath::parse("ann@sender.example").unwrap();
    let dead = Due::DeadLetter;
    for (notify, from, may_report, expected) in [
        (None, &ann, true, Due::Report),
        (Some("FAILURE,DELAY"), &ann, true, Due::Report),
        (Some("success,failure"), &ann, true, Due::Report),
        (Some("NEVER"), &ann, true, Due::Nothing),
        (Some("SUCCESS"), &ann, true, Due::Nothing),
        (Some("NEVER"), &ann, false, Due::Nothing),
        (Some("NEVER"), &ReversePath::Null, true, Due::Nothing),
        (None, &ann, false, dead(Why::NotAuthenticated)),
        (None, &ReversePath::Null, true, dead(Why::NullSender)),
        (Some("FAILURE"), &ReversePath::Null, false, dead(Why::NullSender)),
    ] {
        assert_eq!(is_due(notify, from, may_report), expected, "{notify:?} {from} {may_report}");
    }
    assert!(is_delay_due(None, &ann, true) && is_delay_due(Some("DELAY"), &ann, true));
    assert!(!is_delay_due(Some("FAILURE"), &ann, true) && !is_delay_due(None, &ann, false));
    assert!(!is_delay_due(None, &ReversePath::Null, true));
}

proptest! {
    #[test]
    fn whatever_strangers_say_stays_in_its_field(
        said in "\\PC{0,40}|[\\x00-\\x7f]{0,40}|(\r\n|X: y|--|\\+0[AD]|;){0,12}",
        parameter in "rfc822;[ -~]{0,30}(\\+0D\\+0A|\r\n|é|\\+FF)?[ -~]{0,30}|[\\x00-\\xff]{0,20}",
        content in prop::collection::vec(any::<u8>(), 0..200),
        lines in "([A-Za-z-]{1,9}: [ -~]{0,30}\r\n( [ -~]{0,20}\r\n)?){0,5}(\r\n)?",
        full in any::<bool>(),
    ) {
        let ann = address("\"a, b: \\\"c\"@example.org");
        let reply = Reply::bare(554, said.clone());
        let recipients = [
            Reported { address: &ann, orcpt: Some(&parameter), reply: &reply, by_server: true },
            Reported { address: &ann, orcpt: Some("x;y"), reply: &reply, by_server: false },
        ];
        let content = [lines.as_bytes(), &content].concat();
        let report = Report {
            envid: Some(&parameter),
            ret: full.then_some("FULL"),
            to: "\"a, b: \\\"c\"@example.org",
            ..report(&recipients, &content)
        };
        let Parsed { text, status, .. } = parsed(&report);
        prop_assert_eq!(status.len(), 3);
        let names = ["Original-Envelope-Id", "Original-Recipient"];
        for (group, expected) in status.iter().zip([3, 4, 5]) {
            let count = group.iter().filter(|(name, _)| !names.contains(&name.as_str())).count();
            prop_assert_eq!(count, if expected == 3 { 3 } else { 4 });
        }
        prop_assert!(text.lines().filter(|line| line.starts_with('<')).count() == 2, "{}", text);
    }
}
