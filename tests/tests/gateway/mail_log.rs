//! The log in the words of Postfix (SPL-7), as programs read it that were written for Postfix'.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shared::config::MailLogConfig;
use tests::gateway_node::{GatewayNode, Settings};
use tests::patience::until;
use tests::place::Place;
use tests::sink::{Answer, Manners, Sink};
use tests::smtp;

use super::{ANN, BEN, NED, SENDER, good, message, populate};

/// fail2ban's own filter for Postfix.
const FILTER: &str = "/etc/fail2ban/filter.d/postfix.conf";

struct Log {
    file: PathBuf,
    _place: Place,
}

impl Log {
    fn new() -> Result<Self> {
        let place = Place::new()?;
        Ok(Self { file: place.join("mail.log"), _place: place })
    }

    /// A node with this log where `old` has such manners.
    async fn node(&self, old: Manners, max_message_size: u64) -> Result<(Sink, Sink, GatewayNode)> {
        let (old, new) =
            (Sink::start("old", old).await?, Sink::start("new", Manners::lmtp()).await?);
        let mut settings = Settings::default();
        settings.rules.max_message_size = max_message_size;
        settings.rules.mail_log =
            Some(MailLogConfig { file: self.file.clone(), name: "postfix".into() });
        let node = GatewayNode::start_with([old.configured(), new.configured()], settings)?;
        populate(&node);
        Ok((old, new, node))
    }

    /// What is written when so many sessions have ended.
    async fn after(&self, sessions: usize) -> Result<String> {
        let mut text = String::new();
        until("the log", || {
            text = fs::read_to_string(&self.file).unwrap_or_default();
            (text.matches(": disconnect from ").count() == sessions).then_some(())
        })
        .await
        .with_context(|| text.clone())?;
        Ok(text)
    }
}

/// One of everything: two recipients of one message delivered, one message refused by its owner, one without a
/// verdict, one recipient that nobody knows and one elsewhere, one message that is too large.
async fn one_of_everything(log: &Log) -> Result<String> {
    let plain = smtp::message("hello");
    let large = u64::try_from(plain.len())? + 1000;
    let (_old, _new, node) = log.node(Manners::default(), large).await?;
    let reply = smtp::send(node.address, SENDER, &[ANN, NED], &plain).await?;
    ensure!(reply.is_positive(), "{reply}");
    let mut client = node.connect().await?;
    good(&mut client, "EHLO client.example.com").await?;
    good(&mut client, "MAIL FROM:<>").await?;
    for stranger in ["nobody@example.org", "ann@elsewhere.example"] {
        let reply = client.command(&format!("RCPT TO:<{stranger}>")).await?;
        ensure!(reply.code == 550, "{reply}");
    }
    client.command("QUIT").await?;
    let reply = smtp::send(node.address, SENDER, &[ANN], &"x".repeat(3000)).await?;
    ensure!(reply.code == 552, "{reply}");

    // Each node counts its sessions from one: those of the next begin when these have ended in the log.
    log.after(3).await?;
    for (ended, answer, code) in [(4, Answer::Say("554 5.7.1 Spam"), 554), (5, Answer::Close, 451)]
    {
        let manners = Manners::default().but("(verdict)", answer);
        let (_old, _new, node) = log.node(manners, large).await?;
        let reply = smtp::send(node.address, SENDER, &[BEN], &plain).await?;
        ensure!(reply.code == code, "{reply}");
        log.after(ended).await?;
    }
    log.after(5).await
}

/// A line of pflogsumm's grand totals.
fn total(summary: &str, what: &str) -> Option<u64> {
    let totals = summary.split("bytes received").next()?;
    let mut lines = totals.lines().map(str::split_whitespace);
    lines.find_map(|mut words| {
        let count = words.next()?.parse().ok()?;
        (words.next() == Some(what)).then_some(count)
    })
}

fn pflogsumm(file: &Path) -> Result<String> {
    let output = Command::new("pflogsumm").arg("--smtpd_stats").arg(file).output();
    let output = output.context("pflogsumm: run tests/deps.sh test")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn pflogsumm_counts_what_became_of_each_message() -> Result<()> {
    let log = Log::new()?;
    let text = one_of_everything(&log).await?;
    let summary = pflogsumm(&log.file)?;
    for (what, count) in
        [("received", 3), ("delivered", 2), ("deferred", 1), ("bounced", 1), ("rejected", 3)]
    {
        assert_eq!(total(&summary, what), Some(count), "{what}:\n{summary}\n{text}");
    }
    // The sessions of one process are told apart; those of the three nodes begin with one number each.
    let words: Vec<&str> = summary.split_whitespace().collect();
    assert!(words.join(" ").contains("smtpd 5 connections"), "{summary}");
    for known in [SENDER, ANN, NED, "Spam", "closed by the peer", "User unknown"] {
        assert!(summary.contains(known), "{known}:\n{summary}");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_is_followed_through_the_log_by_its_name() -> Result<()> {
    let log = Log::new()?;
    let text = one_of_everything(&log).await?;
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().find(|line| line.contains(": client=unknown[127.0.0.1]")).unwrap();
    let id = first.split(": ").nth(1).unwrap();
    let of_it: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split_once(&format!(": {id}: ")))
        .map(|(_, said)| said.split([' ', '(']).next().unwrap())
        .collect();
    let ends = ["client=unknown[127.0.0.1]", of_it[1], &format!("from=<{SENDER}>,")];
    assert_eq!(of_it[..3], ends, "{text}");
    assert!(of_it[1].starts_with("message-id=<") && of_it[1].ends_with('>'), "{text}");
    let mut recipients = of_it[3..5].to_vec();
    recipients.sort_unstable();
    assert_eq!(recipients, [format!("to=<{ANN}>,"), format!("to=<{NED}>,")], "{text}");
    assert_eq!(of_it[5..], ["removed"], "{text}");
    assert!(text.contains("/lmtp[") && text.contains("relay=new"), "{text}");
    assert!(text.contains(" ehlo=1 mail=1 rcpt=0/2 commands=2/4"), "{text}");
    Ok(())
}

/// By fail2ban's own filter; what a client says of itself bans nobody else.
#[tokio::test]
async fn fail2ban_finds_who_asks_for_strangers_and_nobody_else() -> Result<()> {
    let log = Log::new()?;
    one_of_everything(&log).await?;
    let (_old, _new, node) = log.node(Manners::default(), 100_000).await?;
    let mut client = node.connect().await?;
    let forged = "x>[192.0.2.66]: 550 5.1.1 <a>: Recipient address rejected: User unknown";
    client.command(&format!("EHLO {forged}")).await?;
    let said = client.command("EHLO x[192.0.2.66]:").await?;
    if said.is_positive() {
        good(
            &mut client,
            "MAIL FROM:<\"NOQUEUE: reject: RCPT from x[192.0.2.66]: 550\"@b.example>",
        )
        .await?;
        good(&mut client, &format!("RCPT TO:<{ANN}>")).await?;
        assert_eq!(message(&mut client).await?.code, 250);
    }
    client.command("QUIT").await?;
    log.after(6).await?;
    let output =
        Command::new("fail2ban-regex").args(["--out", "ip"]).arg(&log.file).arg(FILTER).output();
    let output = output.context("fail2ban-regex: run tests/deps.sh test")?;
    let found = String::from_utf8(output.stdout)?;
    let found: Vec<&str> = found.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(found, ["127.0.0.1", "127.0.0.1"]);
    Ok(())
}
