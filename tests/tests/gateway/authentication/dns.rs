//! SPF and reverse DNS, and name servers that are broken or hostile.

use mx_gateway::authentication::Standing;
use tests::dns_zone::Manner;

use super::*;

#[tokio::test]
async fn spf_is_what_the_senders_domain_says_of_the_client() -> Result<()> {
    let desk = Desk::set().await?;
    for (domain, record) in [
        ("pass.example", "v=spf1 ip4:192.0.2.1 -all"),
        ("fail.example", "v=spf1 ip4:198.51.100.0/24 -all"),
        ("soft.example", "v=spf1 ~all"),
        ("neutral.example", "v=spf1 ?all"),
        ("wrong.example", "v=spf1 include:nowhere.example -all"),
        ("syntax.example", "v=spf1 ip4:192.0.2 -all"),
        ("other.example", "not a policy"),
        ("a.example", "v=spf1 a -all"),
        ("mx.example", "v=spf1 mx -all"),
        ("includes.example", "v=spf1 include:pass.example -all"),
        ("redirects.example", "v=spf1 redirect=pass.example"),
        ("macro.example", "v=spf1 exists:%{i}._h.%{h}._l.%{l}.macro.example -all"),
        ("down.example", "v=spf1 include:broken.example -all"),
    ] {
        desk.zone.txt(domain, record);
    }
    desk.zone.address("a.example", CLIENT.parse()?);
    desk.zone.mx("mx.example", "a.example");
    desk.zone.address("192.0.2.1._h.mail.example.com._l.bob.macro.example", "127.0.0.2".parse()?);
    desk.zone.behave("broken.example", Manner::Fail);
    desk.zone.behave("temp.example", Manner::Fail);
    for (from, expected, standing) in [
        ("bob@pass.example", "pass", Standing::Passed),
        ("bob@Pass.Example", "pass", Standing::Passed),
        ("bob@fail.example", "fail", Standing::Failed),
        ("bob@soft.example", "softfail", Standing::Failed),
        ("bob@neutral.example", "neutral", Standing::Unknown),
        ("bob@wrong.example", "permerror", Standing::Unknown),
        ("bob@syntax.example", "permerror", Standing::Unknown),
        ("bob@other.example", "none", Standing::Unknown),
        ("bob@nowhere.example", "none", Standing::Unknown),
        ("bob@a.example", "pass", Standing::Passed),
        ("bob@mx.example", "pass", Standing::Passed),
        ("bob@includes.example", "pass", Standing::Passed),
        ("bob@redirects.example", "pass", Standing::Passed),
        ("bob@macro.example", "pass", Standing::Passed),
        ("eve@macro.example", "fail", Standing::Failed),
        ("bob@down.example", "temperror", Standing::Unknown),
        ("bob@temp.example", "temperror", Standing::Unknown),
    ] {
        let findings = desk.look_at(from, &letter("a@b.example")).await?;
        let expected = format!("spf={expected} smtp.mailfrom={from}");
        assert_eq!(result(&findings, "spf mailfrom"), expected);
        assert_eq!(findings.sender, standing, "{from}");
    }
    Ok(())
}

#[tokio::test]
async fn the_null_sender_is_the_postmaster_of_the_client() -> Result<()> {
    let desk = Desk::set().await?;
    desk.zone.txt("mail.example.com", "v=spf1 ip4:192.0.2.1 -all");
    desk.zone.txt("_dmarc.example.com", "v=DMARC1; p=reject");
    let findings = desk.look_at("", &letter("MAILER-DAEMON@mail.example.com")).await?;
    assert_eq!(result(&findings, "spf helo"), "spf=pass smtp.helo=mail.example.com");
    let expected = "spf=pass smtp.mailfrom=postmaster@mail.example.com";
    assert_eq!(result(&findings, "spf mailfrom"), expected);
    assert!(result(&findings, "dmarc").starts_with("dmarc=pass "));
    Ok(())
}

#[tokio::test]
async fn what_is_no_domain_is_not_asked_for() -> Result<()> {
    let desk = Desk::set().await?;
    for helo in ["[192.0.2.9]", "localhost", "a b", "x\"y", "-", "", "a..b", &"x".repeat(300)] {
        let findings = desk.look(CLIENT, helo, "bob@[192.0.2.9]", &letter("nobody")).await?;
        assert!(findings.header.contains("\tspf=none"), "{}", findings.header);
        assert_eq!(
            findings.summary,
            "iprev=permerror spf=none spf=none dkim=none arc=none dmarc=permerror"
        );
    }
    let (for_name, _) = desk.zone.asked("1.2.0.192.in-addr.arpa");
    assert_eq!(desk.zone.questions(), for_name, "nothing but the client's name was asked for");
    Ok(())
}

#[tokio::test]
async fn a_clients_name_must_have_its_address() -> Result<()> {
    let desk = Desk::set().await?;
    for (client, name, address) in [
        ("192.0.2.1", "good.example", "192.0.2.1"),
        ("192.0.2.2", "bad.example", "192.0.2.99"),
        ("2001:db8::1", "six.example", "2001:db8::1"),
    ] {
        desk.zone.ptr(client.parse()?, name);
        desk.zone.address(name, address.parse()?);
    }
    desk.zone.behave("4.2.0.192.in-addr.arpa", Manner::Fail);
    for (client, expected) in [
        ("192.0.2.1", "iprev=pass policy.iprev=192.0.2.1"),
        ("::ffff:192.0.2.1", "iprev=pass policy.iprev=192.0.2.1"),
        ("192.0.2.2", "iprev=fail policy.iprev=192.0.2.2"),
        ("192.0.2.3", "iprev=permerror policy.iprev=192.0.2.3"),
        ("192.0.2.4", "iprev=temperror policy.iprev=192.0.2.4"),
        ("2001:db8::1", "iprev=pass policy.iprev=\"2001:db8::1\""),
    ] {
        let findings = desk.look(client, "x.example", "", &letter("a@b.example")).await?;
        assert_eq!(result(&findings, "iprev"), expected);
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_never_answers_costs_no_more_than_the_time_allowed() -> Result<()> {
    let limit = Duration::from_millis(800);
    let desk = Desk::set_with(|config| config.time_limit = limit).await?;
    for name in [
        "mail.example.com",
        "example.com",
        "_dmarc.example.com",
        "1.2.0.192.in-addr.arpa",
        "s1._domainkey.example.com",
    ] {
        desk.zone.behave(name, Manner::Silent);
    }
    let signature = "DKIM-Signature: v=1; a=rsa-sha256; d=example.com; s=s1; h=from; \
                     bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=YWJjZGVmZ2g=\r\n";
    let text = format!("{signature}From: a@example.com\r\n\r\n");
    let findings = desk.look_at("bob@example.com", &text).await?;
    assert_eq!(
        findings.summary,
        "iprev=temperror spf=temperror spf=temperror dkim=temperror arc=none dmarc=temperror"
    );
    assert_eq!(findings.policy.as_str(), "deliver");
    Ok(())
}

#[tokio::test]
async fn one_server_that_hangs_does_not_hide_what_the_others_know() -> Result<()> {
    let desk = Desk::set_with(|config| config.time_limit = Duration::from_secs(2)).await?;
    desk.zone.txt("example.com", "v=spf1 ip4:192.0.2.1 -all");
    desk.zone.txt("_dmarc.example.com", "v=DMARC1; p=reject");
    desk.zone.behave("mail.example.com", Manner::Silent);
    let findings = desk.look_at("bob@example.com", &letter("bob@example.com")).await?;
    assert_eq!(
        findings.summary,
        "iprev=permerror spf=temperror spf=pass dkim=none arc=none dmarc=pass"
    );
    Ok(())
}

#[tokio::test]
async fn an_answer_too_large_for_udp_is_asked_for_over_tcp() -> Result<()> {
    let desk = Desk::set().await?;
    for (domain, octets) in [("large.example", 3000), ("huge.example", 60_000)] {
        let filler = "ip4:198.51.100.1 ".repeat(octets / 17);
        desk.zone.txt(domain, &format!("v=spf1 {filler}ip4:192.0.2.1 -all"));
        let from = format!("bob@{domain}");
        let findings = desk.look_at(&from, &letter("a@b.example")).await?;
        assert_eq!(result(&findings, "spf mailfrom"), format!("spf=pass smtp.mailfrom={from}"));
        let (_, tcp) = desk.zone.asked(domain);
        assert!(tcp > 0, "{domain}");
    }
    Ok(())
}

#[tokio::test]
async fn policies_that_go_round_in_circles_end() -> Result<()> {
    let desk = Desk::set().await?;
    for (domain, record) in [
        ("self.example", "v=spf1 include:self.example -all"),
        ("ping.example", "v=spf1 include:pong.example -all"),
        ("pong.example", "v=spf1 include:ping.example -all"),
        ("round.example", "v=spf1 redirect=round.example"),
    ] {
        desk.zone.txt(domain, record);
        let findings = desk.look_at(&format!("bob@{domain}"), &letter("a@b.example")).await?;
        let expected = format!("spf=permerror smtp.mailfrom=bob@{domain}");
        if domain != "ping.example" {
            assert_eq!(result(&findings, "spf mailfrom"), expected);
        }
    }
    let many: String = (0..11).map(|n| format!("include:n{n}.example ")).collect();
    for n in 0..11 {
        desk.zone.txt(&format!("n{n}.example"), "v=spf1 ?all");
    }
    desk.zone.txt("many.example", &format!("v=spf1 {many}-all"));
    let findings = desk.look_at("bob@many.example", &letter("a@b.example")).await?;
    assert!(result(&findings, "spf mailfrom").starts_with("spf=permerror "));
    desk.zone.cname("loop.example", "pool.example");
    desk.zone.cname("pool.example", "loop.example");
    let findings = desk.look_at("bob@loop.example", &letter("a@b.example")).await?;
    let found = result(&findings, "spf mailfrom");
    assert!(["spf=temperror", "spf=none"].iter().any(|f| found.starts_with(f)), "{found}");
    Ok(())
}
