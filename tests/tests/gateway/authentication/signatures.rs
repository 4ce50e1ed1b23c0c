//! DKIM, DMARC and ARC, with keys of the tests' own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mx_gateway::authentication::Standing;
use tests::dns_zone::Manner;
use tests::signer::{Kind, Signer};

use super::*;

const HEADER_ONLY: &str = "bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=YWJjZGVmZ2g=";

#[tokio::test]
async fn a_signature_passes_while_nothing_is_changed() -> Result<()> {
    let desk = Desk::set().await?;
    for (domain, kind, algorithm) in
        [("rsa.example", Kind::Rsa, "rsa-sha256"), ("ed.example", Kind::Ed25519, "ed25519-sha256")]
    {
        let signer = Signer::new(&desk.zone, domain, kind)?;
        let whole = signer.sign(&letter(&format!("bob@{domain}")))?;
        let identity = format!("header.d={domain} header.s=s1 header.a={algorithm} header.b=");
        for (text, expected) in [
            (whole.clone(), "dkim=pass "),
            (whole.replace("Subject: hello", "Subject:   hello"), "dkim=pass "),
            (whole.replace("how are you", "send money"), "dkim=fail (body hash did not verify) "),
            (
                whole.replace("Subject: hello", "Subject: urgent"),
                "dkim=fail (signature did not verify) ",
            ),
        ] {
            let findings = desk.look_at("bob@other.example", &text).await?;
            let found = result(&findings, "dkim");
            assert!(found.starts_with(expected) && found.contains(&identity), "{found}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn blank_lines_added_at_the_end_do_not_break_a_relaxed_signature() -> Result<()> {
    let desk = Desk::set().await?;
    let signer = Signer::new(&desk.zone, "example.com", Kind::Ed25519)?;
    let whole = signer.sign(&letter("bob@example.com"))?;
    for added in ["\r\n", " \r\n", "\t \r\n\r\n  \r\n", " "] {
        let findings = desk.look_at("bob@example.com", &format!("{whole}{added}")).await?;
        let found = result(&findings, "dkim");
        assert!(found.starts_with("dkim=pass "), "{added:?}: {found}");
    }
    let findings = desk.look_at("bob@example.com", &format!("{whole} x\r\n")).await?;
    assert!(result(&findings, "dkim").starts_with("dkim=fail "));
    Ok(())
}

#[tokio::test]
async fn what_is_too_weak_or_cannot_be_read_never_passes() -> Result<()> {
    let desk = Desk::set().await?;
    // SEQUENCE { INTEGER of 512 bits, INTEGER 65537 }.
    let mut short = vec![0x30, 0x48, 0x02, 0x41, 0x00];
    short.extend([0xc5; 64]);
    short.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
    desk.zone
        .txt("short._domainkey.example.com", &format!("v=DKIM1; p={}", STANDARD.encode(short)));
    desk.zone.txt("revoked._domainkey.example.com", "v=DKIM1; p=");
    desk.zone.txt("junk._domainkey.example.com", "v=DKIM1; p=!!!");
    desk.zone.behave("down._domainkey.example.com", Manner::Fail);
    let names = "from:".repeat(300);
    let long = "x".repeat(64);
    for (tags, expected) in [
        ("a=rsa-sha256; s=short; h=from", "dkim=permerror (key too short) "),
        ("a=rsa-sha256; s=revoked; h=from", "dkim=permerror (bad or revoked key) "),
        ("a=rsa-sha256; s=junk; h=from", "dkim=permerror (no key) "),
        ("a=rsa-sha256; s=none; h=from", "dkim=permerror (no key) "),
        ("a=rsa-sha256; s=down; h=from", "dkim=temperror (key unavailable) "),
        ("a=rsa-sha1; s=any; h=from", "dkim=permerror (rsa-sha1) "),
        ("a=rsa-sha256; s=any; h=to", "dkim=permerror (From is not signed) "),
        (&format!("a=rsa-sha256; s={long}; h=from"), "dkim=permerror (no such name) "),
        (&format!("a=rsa-sha256; s=any; h={names}to"), "dkim=permerror (too many headers signed) "),
        ("a=rsa-sha256; s=any; h=from; l=3", "dkim=neutral (only a part is signed)"),
        ("a=rot13; s=any; h=from", "dkim=neutral (unknown kind of signature)"),
    ] {
        let text = format!(
            "DKIM-Signature: v=1; d=example.com; {tags};\r\n {HEADER_ONLY}\r\n{}\r\n\r\n",
            "From: a@example.com"
        );
        let findings = desk.look_at("bob@example.com", &text).await?;
        let found = result(&findings, "dkim");
        assert!(found.starts_with(expected), "{tags}: {found}");
    }
    Ok(())
}

#[tokio::test]
async fn of_ten_thousand_signatures_few_are_looked_at_and_the_authors_own_first() -> Result<()> {
    let desk = Desk::set().await?;
    let signer = Signer::new(&desk.zone, "example.com", Kind::Ed25519)?;
    desk.zone.txt("_dmarc.example.com", "v=DMARC1; p=reject");
    let mut text = String::new();
    for n in 0..10_000 {
        let tags = format!("v=1; a=rsa-sha256; d=d{n}.example; s=s; h=from; {HEADER_ONLY}");
        text.push_str(&format!("DKIM-Signature: {tags}\r\n"));
    }
    text.push_str(&signer.sign(&letter("bob@example.com"))?);
    let findings = desk.look_at("bob@other.example", &text).await?;
    let all = results(&findings.header);
    let dkim: Vec<&String> = all.iter().filter(|result| result.starts_with("dkim=")).collect();
    assert_eq!(dkim.len(), 9, "{dkim:?}");
    assert!(dkim[0].starts_with("dkim=pass header.d=example.com "), "{dkim:?}");
    assert_eq!(dkim[8], "dkim=neutral (more signatures not looked at)");
    assert!(desk.zone.questions() < 40, "{}", desk.zone.questions());
    assert!(result(&findings, "dmarc").starts_with("dmarc=pass "));
    Ok(())
}

#[tokio::test]
async fn dmarc_passes_by_what_is_aligned_alone() -> Result<()> {
    let desk = Desk::set().await?;
    let [own, other] = ["example.com", "evil.example"];
    let (own, other) = (
        Signer::new(&desk.zone, own, Kind::Ed25519)?,
        Signer::new(&desk.zone, other, Kind::Ed25519)?,
    );
    desk.zone.txt("_dmarc.example.com", "v=DMARC1; p=reject");
    desk.zone.txt("_dmarc.strict.example", "v=DMARC1; p=quarantine; aspf=s; adkim=s");
    for domain in ["example.com", "sub.example.com", "evil.example", "sub.strict.example"] {
        desk.zone.txt(domain, "v=spf1 ip4:192.0.2.1 -all");
    }
    let pass = "dmarc=pass header.from=example.com policy.dmarc=reject";
    let fail = "dmarc=fail header.from=example.com policy.dmarc=reject";
    let by_bob = letter("Bob <bob@example.com>");
    for (from, text, expected) in [
        ("x@example.com", by_bob.clone(), pass),
        ("x@sub.example.com", by_bob.clone(), pass),
        ("x@evil.example", by_bob.clone(), fail),
        ("x@nowhere.example", own.sign(&by_bob)?, pass),
        ("x@evil.example", other.sign(&by_bob)?, fail),
        ("x@evil.example", own.sign(&by_bob)?.replace("how", "why"), fail),
        (
            "x@sub.strict.example",
            letter("a@strict.example"),
            "dmarc=fail header.from=strict.example policy.dmarc=quarantine",
        ),
        ("x@evil.example", letter("a@evil.example"), "dmarc=none header.from=evil.example"),
    ] {
        let findings = desk.look_at(from, &text).await?;
        assert_eq!(result(&findings, "dmarc"), expected, "{from}: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn an_author_that_cannot_be_judged_is_never_let_pass() -> Result<()> {
    let desk = Desk::set_with(|config| enforce(config, EnforcementMode::Reject)).await?;
    desk.zone.txt("_dmarc.bank.example", "v=DMARC1; p=reject");
    desk.zone.txt("evil.example", "v=spf1 ip4:192.0.2.1 -all");
    desk.zone.txt("_dmarc.evil.example", "v=DMARC1; p=none");
    for (from, expected, policy) in [
        ("x@evil.example, y@bank.example", &["fail", "pass"][..], "reject"),
        ("x@evil.example\r\nFrom: y@bank.example", &["fail", "pass"], "reject"),
        ("group: x@evil.example, y@bank.example;", &["fail", "pass"], "reject"),
        ("y@bank.example", &["fail"], "reject"),
        ("\"y@bank.example\" <x@evil.example>", &["pass"], "deliver"),
        (
            "a@b.example, a@c.example, a@d.example, a@e.example, a@f.example",
            &["permerror"],
            "deliver",
        ),
        ("nobody", &["permerror"], "deliver"),
        ("", &["permerror"], "deliver"),
        ("a@b_\0.example", &["permerror"], "deliver"),
    ] {
        let findings = desk.look_at("x@evil.example", &letter(from)).await?;
        let all = results(&findings.header);
        let found: Vec<&str> = all
            .iter()
            .filter_map(|result| result.strip_prefix("dmarc=")?.split(' ').next())
            .collect();
        assert_eq!(found, expected, "{from}");
        assert_eq!(findings.policy.as_str(), policy, "{from}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_unknown_for_now_is_not_enforced() -> Result<()> {
    let desk = Desk::set_with(|config| enforce(config, EnforcementMode::Reject)).await?;
    desk.zone.txt("_dmarc.example.com", "v=DMARC1; p=reject");
    let signer = Signer::new(&desk.zone, "example.com", Kind::Ed25519)?;
    let whole = signer.sign(&letter("bob@example.com"))?;
    desk.zone.behave("s1._domainkey.example.com", Manner::Fail);
    let findings = desk.look_at("x@evil.example", &whole).await?;
    assert!(result(&findings, "dmarc").starts_with("dmarc=temperror "));
    assert_eq!(findings.policy.as_str(), "deliver");
    // A name that nobody can have is no excuse.
    let text = whole.replace("s=s1", &format!("s={}", "x".repeat(64)));
    let findings = desk.look_at("x@evil.example", &text).await?;
    assert_eq!(findings.policy.as_str(), "reject");
    Ok(())
}

#[tokio::test]
async fn a_signature_of_the_senders_domain_vouches_for_the_sender() -> Result<()> {
    let desk = Desk::set().await?;
    let signer = Signer::new(&desk.zone, "example.com", Kind::Ed25519)?;
    let whole = signer.sign(&letter("bob@example.com"))?;
    for (from, expected) in [
        ("x@example.com", Standing::Passed),
        ("x@bounces.example.com", Standing::Passed),
        ("x@victim.example", Standing::Unknown),
    ] {
        assert_eq!(desk.look_at(from, &whole).await?.sender, expected, "{from}");
    }
    Ok(())
}

#[tokio::test]
async fn a_large_message_is_judged_by_its_header_alone() -> Result<()> {
    let desk = Desk::set_with(|config| {
        config.max_verified_size = 1000;
        enforce(config, EnforcementMode::Reject);
    })
    .await?;
    desk.zone.txt("_dmarc.example.com", "v=DMARC1; p=reject");
    desk.zone.txt("example.com", "v=spf1 ip4:192.0.2.1 -all");
    let signer = Signer::new(&desk.zone, "example.com", Kind::Ed25519)?;
    let whole =
        signer.sign(&format!("{}{}\r\n", letter("bob@example.com"), "x".repeat(200_000)))?;
    for (from, dmarc) in [
        ("x@example.com", "dmarc=pass header.from=example.com policy.dmarc=reject"),
        ("x@evil.example", "dmarc=none (message too large) header.from=example.com"),
    ] {
        let findings = desk.look_at(from, &whole).await?;
        assert_eq!(result(&findings, "dkim"), "dkim=none (message too large)");
        assert_eq!(result(&findings, "dmarc"), dmarc);
        assert_eq!(findings.policy.as_str(), "deliver");
    }
    Ok(())
}

#[tokio::test]
async fn our_seal_holds_and_goes_on_holding() -> Result<()> {
    for kind in [Kind::Rsa, Kind::Ed25519] {
        let zone = DnsZone::start().await?;
        let place = tests::place::Place::new()?;
        let sealer = Signer::new(&zone, "seal.example", kind)?;
        std::fs::write(place.join("key"), &sealer.private_key)?;
        let authenticator = authenticator(&zone, |config| {
            config.arc_seal = Some(shared::config::ArcSealConfig {
                domain: domain("seal.example"),
                selector: "s1".into(),
                key_file: place.join("key"),
            });
        })?;
        let desk = Desk { zone, authenticator };
        let mut text = format!("{} \r\n", letter("bob@example.com"));
        let findings = desk.look_at("bob@example.com", &text).await?;
        assert_eq!(result(&findings, "arc"), "arc=none");
        for hop in 1..=3 {
            let findings = desk.look_at("bob@example.com", &text).await?;
            for header in ["ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"] {
                let begin = format!("\r\n{header}: i={hop};");
                assert!(findings.header.contains(&begin), "{begin}: {}", findings.header);
            }
            assert!(findings.header.lines().all(|line| line.len() < 998));
            text = format!("{}{text}", findings.header);
            let findings = desk.look_at("bob@example.com", &text).await?;
            assert_eq!(result(&findings, "arc"), "arc=pass", "{text}");
        }
        let changed = text.replace("how are you", "send money");
        let findings = desk.look_at("bob@example.com", &changed).await?;
        assert_eq!(result(&findings, "arc"), "arc=fail (broken chain)");
        assert!(!findings.header.contains("ARC-Seal"), "a broken chain is not sealed");
        desk.zone.behave("s1._domainkey.seal.example", Manner::Fail);
    }
    Ok(())
}
