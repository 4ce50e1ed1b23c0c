//! What the commands say.

use std::io::{self, Write};
use std::path::Path;

use shared::backend::BackendName;
use shared::ownership::table::{
    AccountLine, AuditLine, Flipped, Imported, Made, NodeLine, NodeStatus, Problem, SchemaVersion,
    Settling, Shown, UnknownName,
};

pub(crate) fn schema(out: &mut impl Write, versions: &[SchemaVersion]) -> io::Result<()> {
    for SchemaVersion { name, found, known } in versions {
        let verdict = match found.cmp(known) {
            std::cmp::Ordering::Equal => "up to date".to_owned(),
            std::cmp::Ordering::Less => format!("older than this program's {known}"),
            std::cmp::Ordering::Greater => format!("newer than this program's {known}"),
        };
        writeln!(out, "{name}: version {found}, {verdict}")?;
    }
    Ok(())
}

pub(crate) fn problems(file: &Path, problems: &[Problem]) -> String {
    let lines = problems
        .iter()
        .take(20)
        .map(|problem| format!("{}:{}: {}", file.display(), problem.line, problem.what));
    let more = problems.len().saturating_sub(20);
    let more = (more > 0).then(|| format!("… and {more} more"));
    lines.chain(more).collect::<Vec<_>>().join("\n")
}

pub(crate) fn imported(out: &mut impl Write, imported: Imported) -> io::Result<()> {
    let Imported { accounts, aliases, there } = imported;
    writeln!(out, "added {accounts} accounts and {aliases} aliases; {there} were there")
}

/// Accounts alone do not make a domain ours.
pub(crate) fn domains_without_row(out: &mut impl Write, domains: &[String]) -> io::Result<()> {
    for domain in domains {
        writeln!(
            out,
            "{domain} is in no row of `domains`: there, every address without a row of its own is refused \
             as foreign, sub-addresses and postmaster among them. To change that: \
             INSERT INTO domains (domain) VALUES ('{domain}');"
        )?;
    }
    Ok(())
}

/// Names without a row, and how they get one.
pub(crate) fn unknown(out: &mut impl Write, names: &[UnknownName]) -> io::Result<()> {
    let width = names.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    for UnknownName { name, outcome, seen, services, first_at, last_at } in names {
        let (first, last) = (seconds(first_at), seconds(last_at));
        writeln!(out, "{seen:>8}  {name:width$}  {outcome}  {first} to {last}, {services}")?;
    }
    if !names.is_empty() {
        writeln!(
            out,
            "An account gets its row by `mailshift accounts import`, another name of one by a line's \
             `aliases` there."
        )?;
    }
    Ok(())
}

pub(crate) fn list(out: &mut impl Write, lines: &[AccountLine]) -> io::Result<()> {
    let width = |of: fn(&AccountLine) -> &str| {
        lines.iter().map(|line| of(line).chars().count()).max().unwrap_or(0)
    };
    let (account, owner) = (width(|line| &line.account), width(|line| &line.owner));
    for line in lines {
        let mut remarks = Vec::new();
        if line.state == "held" {
            remarks.push(held(line));
        }
        if !line.login {
            remarks.push("no logins".to_owned());
        }
        if let (Some(former), Some(at)) = (&line.former_owner, &line.flipped_at) {
            remarks.push(format!("from {former} at {}", seconds(at)));
        }
        remarks.extend(line.note.clone());
        let text =
            format!("{:account$}  {:owner$}  {}", line.account, line.owner, remarks.join(", "));
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}

pub(crate) fn shown(out: &mut impl Write, shown: &Shown) -> io::Result<()> {
    match &shown.account {
        Some(account) => list(out, std::slice::from_ref(account))?,
        None => writeln!(out, "there is no such account any more")?,
    }
    if !shown.aliases.is_empty() {
        writeln!(out, "aliases: {}", shown.aliases.join(", "))?;
    }
    if let Some(status) = &shown.settling {
        settling(out, status)?;
    }
    for change in &shown.changes {
        writeln!(out, "{}", audit(change))?;
    }
    Ok(())
}

pub(crate) fn settling(out: &mut impl Write, settling: &Settling) -> io::Result<()> {
    write!(
        out,
        "change {}: {}",
        settling.epoch,
        if settling.settled { "settled" } else { "not settled" }
    )?;
    for (word, nodes) in [
        ("waiting for", &settling.waiting),
        ("busy", &settling.busy),
        ("lapsed", &settling.lapsed),
        ("forgotten", &settling.forgotten),
    ] {
        if let Some(nodes) = nodes {
            write!(out, "; {word} {nodes}")?;
        }
    }
    if settling.sessions + settling.deliveries + settling.in_doubt > 0 {
        let running = running(settling.sessions, settling.deliveries, settling.in_doubt);
        write!(out, "; still running: {running}")?;
    }
    writeln!(out)
}

/// Rows that a command made: a name that was not meant shows itself here.
pub(crate) fn made(out: &mut impl Write, rows: &[Made]) -> io::Result<()> {
    for Made { account, owner } in rows {
        writeln!(out, "{account} had no row: it lived at its domain's default owner, {owner}")?;
    }
    Ok(())
}

pub(crate) fn flipped(
    out: &mut impl Write,
    flipped: &Flipped,
    owner: &BackendName,
) -> io::Result<()> {
    made(out, &flipped.made)?;
    for account in &flipped.unchanged {
        writeln!(out, "{account} is at {owner} already")?;
    }
    for account in &flipped.changed {
        writeln!(out, "{account} is at {owner} now")?;
    }
    Ok(())
}

/// How far each node is, a line each, and what still runs there.
pub(crate) fn nodes(out: &mut impl Write, nodes: &[NodeStatus]) -> io::Result<()> {
    let name = |node: &NodeStatus| format!("{}/{}", node.node, node.service);
    let width = nodes.iter().map(|node| name(node).chars().count()).max().unwrap_or(0);
    for node in nodes {
        write!(out, "{:width$}  {}", name(node), node.status)?;
        let NodeStatus { sessions, deliveries, in_doubt, .. } = node;
        if sessions + deliveries + in_doubt > 0 {
            write!(out, ": {}", running(*sessions, *deliveries, *in_doubt))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Every service of every node, a line each.
pub(crate) fn node_list(out: &mut impl Write, nodes: &[NodeLine]) -> io::Result<()> {
    let name = |node: &NodeLine| format!("{}/{}", node.node, node.service);
    let width = nodes.iter().map(|node| name(node).chars().count()).max().unwrap_or(0);
    for node in nodes {
        let until = seconds(&node.lease_until);
        let lease = match (node.forgotten, node.lease_runs, &node.stopped_at) {
            (true, _, _) => "forgotten".to_owned(),
            (false, true, _) => format!("lease until {until}"),
            (false, false, Some(stopped)) => format!("stopped since {}", seconds(stopped)),
            (false, false, None) => format!("lapsed since {until}"),
        };
        let NodeLine { seen_epoch, newest_epoch, sessions, deliveries, in_doubt, .. } = node;
        let listen = if node.listen { "yes" } else { "no" };
        write!(
            out,
            "{:width$}  {lease}, seen {seen_epoch} of {newest_epoch}, listen={listen}",
            name(node)
        )?;
        if sessions + deliveries + in_doubt > 0 {
            write!(out, ", busy: {}", running(*sessions, *deliveries, *in_doubt))?;
        }
        if node.spooled > 0 {
            write!(out, ", spool: {}", spooled(node))?;
        }
        writeln!(out)?;
    }
    for node in nodes.iter().filter(|node| node.leaves_mail()) {
        mail_left(out, node)?;
    }
    Ok(())
}

/// Nobody delivers what is on the disk of a node that is gone.
pub(crate) fn mail_left(out: &mut impl Write, node: &NodeLine) -> io::Result<()> {
    let (name, service, spool) = (&node.node, &node.service, spooled(node));
    writeln!(
        out,
        "{name}/{service} has left mail that nobody delivers ({spool}): start it again, or bring its state \
         directory to another node and have that take it over: mailshift queue adopt DIRECTORY"
    )
}

fn spooled(node: &NodeLine) -> String {
    let oldest = node.spool_oldest.as_deref().map(seconds);
    let oldest = oldest.map(|oldest| format!(" since {oldest}")).unwrap_or_default();
    match node.spooled {
        1 => format!("1 message{oldest}"),
        count => format!("{count} messages{oldest}"),
    }
}

fn running(sessions: i64, deliveries: i64, in_doubt: i64) -> String {
    format!("{sessions} sessions, {deliveries} deliveries, {in_doubt} in doubt")
}

fn held(line: &AccountLine) -> String {
    match (&line.disputed, &line.hold_until) {
        (Some(reason), _) => format!("held: disputed ({reason})"),
        (None, Some(until)) => format!("held until {}", seconds(until)),
        (None, None) => "held without end".to_owned(),
    }
}

fn audit(change: &AuditLine) -> String {
    let mut parts = Vec::new();
    let mut differs = |what: &str, old: Option<&str>, new: Option<&str>| match (old, new) {
        (Some(old), Some(new)) if old != new => parts.push(format!("{what} {old} → {new}")),
        (None, Some(new)) => parts.push(format!("{what} {new}")),
        (Some(old), None) => parts.push(format!("{what} was {old}")),
        (Some(_), Some(_)) | (None, None) => {}
    };
    differs("owner", change.old_owner.as_deref(), change.new_owner.as_deref());
    differs("state", change.old_state.as_deref(), change.new_state.as_deref());
    differs("alias of", change.old_account.as_deref(), change.new_account.as_deref());
    let yes = |login: Option<bool>| login.map(|login| if login { "yes" } else { "no" });
    differs("logins", yes(change.old_login), yes(change.new_login));
    let via = change.via.as_ref().map(|via| format!(" ({via})")).unwrap_or_default();
    format!(
        "{:>8}  {}  {}  {}{via}: {}",
        change.epoch,
        seconds(&change.at),
        change.op,
        change.by,
        parts.join(", ")
    )
}

/// A time without its fraction.
pub(crate) fn seconds(time: &str) -> &str {
    time.get(..19).unwrap_or(time)
}
