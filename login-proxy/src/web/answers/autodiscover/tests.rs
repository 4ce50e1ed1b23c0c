//! What Outlook and others get, and what hostile requests do not.

use http::header;
use proptest::prelude::*;

use super::super::published::typical;
use super::*;

fn request(address: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\r\n<Autodiscover xmlns=\"http://schemas.microsoft.com/\
         exchange/autodiscover/outlook/requestschema/2006\"><Request>\
         <EMailAddress>{address}</EMailAddress>\
         <AcceptableResponseSchema>{OUTLOOK}</AcceptableResponseSchema></Request></Autodiscover>"
    )
}

fn posted(published: &Published, body: &[u8]) -> String {
    let response = pox(published, &Method::POST, true, body);
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/xml; charset=utf-8");
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    String::from_utf8(response.body().to_vec()).unwrap()
}

fn error_code(document: &str) -> Option<String> {
    text_of(document, "ErrorCode").unwrap()
}

#[test]
fn outlook_is_told_one_server_of_each_kind() {
    let expected = r#"<?xml version="1.0" encoding="utf-8"?>
<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006">
  <Response xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a">
    <User>
      <DisplayName>ann@example.org</DisplayName>
    </User>
    <Account>
      <AccountType>email</AccountType>
      <Action>settings</Action>
      <Protocol>
        <Type>IMAP</Type>
        <Server>mail.example.org</Server>
        <Port>993</Port>
        <DomainRequired>off</DomainRequired>
        <LoginName>ann@example.org</LoginName>
        <SPA>off</SPA>
        <SSL>on</SSL>
        <Encryption>SSL</Encryption>
        <AuthRequired>on</AuthRequired>
      </Protocol>
      <Protocol>
        <Type>SMTP</Type>
        <Server>mail.example.org</Server>
        <Port>587</Port>
        <DomainRequired>off</DomainRequired>
        <LoginName>ann@example.org</LoginName>
        <SPA>off</SPA>
        <SSL>on</SSL>
        <Encryption>TLS</Encryption>
        <AuthRequired>on</AuthRequired>
        <UsePOPAuth>off</UsePOPAuth>
        <SMTPLast>off</SMTPLast>
      </Protocol>
    </Account>
  </Response>
</Autodiscover>
"#;
    let mut published = typical();
    published.services.retain(|service| ![465, 995].contains(&service.port));
    assert_eq!(posted(&published, request("ann@example.org").as_bytes()), expected);
    let all = posted(&typical(), request("ann@example.org").as_bytes());
    for (kind, port) in [("IMAP", 993), ("POP3", 995), ("SMTP", 465)] {
        let start = format!(
            "<Type>{kind}</Type>\n        <Server>mail.example.org</Server>\n        <Port>{port}<"
        );
        assert_eq!(all.matches(&start).count(), 1, "{all}");
    }
}

#[test]
fn the_path_is_found_in_any_case() {
    for path in [
        "/autodiscover/autodiscover.xml",
        "/Autodiscover/Autodiscover.xml",
        "/AUTODISCOVER/AutoDiscover.XML",
    ] {
        assert_eq!(resource(path), Some(Resource::Pox));
    }
    for path in
        ["/autodiscover/autodiscover.json", "/Autodiscover/Autodiscover.json/v1.0/ann@example.org"]
    {
        assert_eq!(resource(path), Some(Resource::Json));
    }
    for path in [
        "/autodiscover",
        "/autodiscover/autodiscover.svc",
        "/autodiscover/autodiscover.jsonx",
        "/autodiscover/autodiscover.xml/",
        "/\u{fc}utodiscover/autodiscover.jso\u{fc}",
        "",
    ] {
        assert_eq!(resource(path), None, "{path}");
    }
}

#[test]
fn a_request_that_asks_for_nothing_of_ours_gets_exchanges_errors() {
    let active_sync = request("ann@example.org").replace(
        OUTLOOK,
        "http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006",
    );
    assert_eq!(error_code(&posted(&typical(), active_sync.as_bytes())).as_deref(), Some("601"));
    let nothing = Published { services: Vec::new(), ..typical() };
    assert_eq!(
        error_code(&posted(&nothing, request("ann@example.org").as_bytes())).as_deref(),
        Some("601")
    );
    let expected = r#"<?xml version="1.0" encoding="utf-8"?>
<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006">
  <Response>
    <Error Time="00:00:00.0000000" Id="0">
      <ErrorCode>600</ErrorCode>
      <Message>Invalid Request</Message>
      <DebugData></DebugData>
    </Error>
  </Response>
</Autodiscover>
"#;
    assert_eq!(posted(&typical(), b""), expected);
}

#[test]
fn hostile_requests_are_refused_and_not_repeated() {
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;\">]>";
    let entity = format!("{bomb}{}", request("&b;@example.org"));
    let file =
        format!("<!DOCTYPE x [<!ENTITY f SYSTEM \"file:///etc/passwd\">]>{}", request("&f;"));
    let bodies: Vec<Vec<u8>> = vec![
        entity.into_bytes(),
        file.into_bytes(),
        request("&b;@example.org").into_bytes(),
        request("ann\0@example.org").into_bytes(),
        request("ann&#0;@example.org").into_bytes(),
        request("ann&#10;@example.org").into_bytes(),
        request("<b>ann</b>@example.org").into_bytes(),
        request("ann").into_bytes(),
        request("").into_bytes(),
        request("ann@example.org").replace("ann", "\u{fc}\u{7f}").into_bytes(),
        request("ann@example.org").bytes().map(|b| if b == b'@' { 0xff } else { b }).collect(),
        request("ann@example.org").encode_utf16().flat_map(u16::to_le_bytes).collect(),
        b"<".to_vec(),
        vec![b'<'; MAX_REQUEST],
        vec![b'&'; MAX_REQUEST],
        b"<a x='".repeat(2000),
    ];
    for body in bodies {
        let answer = posted(&typical(), &body);
        assert_eq!(error_code(&answer).as_deref(), Some("600"), "{}", body.escape_ascii());
        assert!(!answer.contains("ann") && !answer.contains("passwd"), "{answer}");
    }
    let huge = pox(&typical(), &Method::POST, true, &vec![b' '; MAX_REQUEST + 1]);
    assert_eq!(huge.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[test]
fn without_tls_a_client_is_sent_on_and_other_methods_are_refused() {
    let published = Published { https_port: 8443, ..typical() };
    for method in [Method::GET, Method::POST] {
        let response = pox(&published, &method, false, request("ann@example.org").as_bytes());
        assert_eq!(response.status(), StatusCode::FOUND);
        let place = "https://mail.example.org:8443/autodiscover/autodiscover.xml";
        assert_eq!(response.headers()[header::LOCATION], place);
    }
    let response = pox(&published, &Method::GET, true, b"");
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()[header::ALLOW], "POST");
    let response = where_it_is(&published, &Method::POST, Some(b"AutodiscoverV1"));
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()[header::ALLOW], "GET, HEAD");
}

#[test]
fn the_json_says_where_the_settings_are() {
    let asked = |protocol: Option<&[u8]>| {
        let response = where_it_is(&typical(), &Method::GET, protocol);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        (response.status(), String::from_utf8(response.body().to_vec()).unwrap())
    };
    for protocol in [&b"AutodiscoverV1"[..], b"Autodiscoverv1"] {
        let url = "https://mail.example.org/autodiscover/autodiscover.xml";
        let expected = format!("{{\"Protocol\":\"AutodiscoverV1\",\"Url\":\"{url}\"}}");
        assert_eq!(asked(Some(protocol)), (StatusCode::OK, expected));
    }
    for protocol in [&b"ActiveSync"[..], b"", b"\"}<script>", b"\0\xff"] {
        let (status, error) = asked(Some(protocol));
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(error.contains("\"ErrorCode\":\"InvalidProtocol\"") && !error.contains("script"));
    }
    let (status, error) = asked(None);
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error.contains("MandatoryParameterMissing"), "{error}");
}

proptest! {
    #[test]
    fn a_login_name_is_what_was_asked_and_never_markup(
        local in "(\"([a-z<>&' ]|\\\\[\"&<>])*\"|[a-z&'.!#|{}]{1,8}|\\PC{1,4})",
    ) {
        let plain = posted(&typical(), request("ann@example.org").as_bytes());
        let address = format!("{local}@example.net");
        let mut written = Xml::new();
        written.leaf("EMailAddress", &address);
        let answer = posted(&typical(), written.finish().as_bytes());
        if error_code(&answer).is_none() {
            prop_assert_eq!(text_of(&answer, "LoginName"), Ok(Some(address.trim_ascii().into())));
            prop_assert_eq!(answer.matches(['<', '>', '"']).count(), plain.matches(['<', '>', '"']).count());
        } else {
            prop_assert!(Address::parse_utf8(address.trim_ascii()).is_err());
            prop_assert!(!answer.contains("example.net"));
        }
    }

    #[test]
    fn any_request_has_an_answer(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let answer = posted(&typical(), &body);
        prop_assert_eq!(error_code(&answer), Some("600".into()));
    }
}
