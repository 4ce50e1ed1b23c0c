//! What the queue's commands say. Whatever others have written is tamed before it gets to a terminal.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime_serde::re::humantime;
use serde::Serialize;
use shared::admin::queue::{Adopted, Entry, Place, Recipient, Summary};

/// Many messages.
#[derive(Debug, Default)]
pub(super) struct Total {
    messages: u64,
    octets: u64,
}

impl Total {
    pub(super) fn add(&mut self, entry: &Entry) {
        self.messages += 1;
        self.octets = self.octets.saturating_add(entry.size);
    }
}

/// A message in a list: a line, and a line for each recipient that is not done with (of a dead letter, for
/// each).
pub(super) fn entry(out: &mut impl Write, place: Place, entry: &Entry) -> io::Result<()> {
    let Entry { id, arrived, size, sender, .. } = entry;
    let (id, sender) = (tame(id), tame(sender));
    let (size, age) = (octets(*size), ago(*arrived));
    let remarks = remarks(place, entry);
    let line = format!("{id}  {size:>9}  {age:>6}  <{sender}>  {remarks}");
    writeln!(out, "{}", line.trim_end())?;
    let shown = entry.recipients.iter().filter(|one| place == Place::Dead || !one.state.is_final());
    for one in shown {
        writeln!(out, "    {}", recipient(one))?;
    }
    Ok(())
}

/// All that is known of a message.
pub(super) fn shown(out: &mut impl Write, process: &str, entry: &Entry) -> io::Result<()> {
    let Entry { id, arrived, size, sender, attempts, .. } = entry;
    let at = humantime::format_rfc3339_seconds(time(*arrived));
    writeln!(out, "id         {}", tame(id))?;
    writeln!(out, "process    {process}")?;
    writeln!(out, "arrived    {at} ({} ago)", ago(*arrived))?;
    writeln!(out, "size       {} ({size} octets)", octets(*size))?;
    writeln!(out, "sender     <{}>", tame(sender))?;
    writeln!(out, "attempts   {attempts}")?;
    if let Some(next) = entry.next_attempt.filter(|_| !entry.frozen) {
        writeln!(out, "next try   {}", until(next))?;
    }
    match (entry.frozen, &entry.why) {
        (true, Some(why)) => writeln!(out, "frozen     {}", tame(why))?,
        (true, None) => writeln!(out, "frozen     yes")?,
        (false, Some(why)) => writeln!(out, "because    {}", tame(why))?,
        (false, None) => {}
    }
    for one in &entry.recipients {
        writeln!(out, "to         {}", recipient(one))?;
        if let Some(account) = one.account.as_ref().filter(|account| **account != one.address) {
            writeln!(out, "             which is account {}", tame(account))?;
        }
    }
    Ok(())
}

fn remarks(place: Place, entry: &Entry) -> String {
    let why = entry.why.as_deref().map(tame);
    if entry.frozen {
        return why.map_or_else(|| "frozen".to_owned(), |why| format!("frozen: {why}"));
    }
    match (place, why) {
        (Place::Dead, Some(why)) => format!("dead: {why}"),
        (Place::Dead, None) => "dead".to_owned(),
        (Place::Queue, _) => {
            let mut text = match entry.attempts {
                0 => "not tried yet".to_owned(),
                1 => "tried once".to_owned(),
                times => format!("tried {times} times"),
            };
            if let Some(next) = entry.next_attempt {
                let _ = write!(text, ", next try {}", until(next));
            }
            text
        }
    }
}

/// Whom it is for, how far it is, where, since when, why.
fn recipient(one: &Recipient) -> String {
    let mut text = format!("{}  {}", tame(&one.address), one.state.as_str());
    if let Some(owner) = &one.owner {
        let _ = write!(text, " at {}", tame(owner));
    }
    if let Some(since) = one.since {
        let _ = write!(text, " for {}", ago(since));
    }
    if let Some(error) = &one.error {
        let _ = write!(text, ": {}", tame(error));
    }
    text
}

pub(super) fn total(
    out: &mut impl Write,
    place: Place,
    total: &Total,
    cut: bool,
) -> io::Result<()> {
    let Total { messages: count, octets: size } = *total;
    match (place, count) {
        (Place::Queue, 0) => writeln!(out, "the queue has no such message"),
        (Place::Dead, 0) => writeln!(out, "there is no such dead letter"),
        (_, count) => {
            let more = if cut { "; there may be more (--limit)" } else { "" };
            writeln!(out, "-- {}, {}{more}", messages(count), octets(size))
        }
    }
}

pub(super) fn summary(out: &mut impl Write, process: &str, summary: &Summary) -> io::Result<()> {
    let Summary { messages: count, octets: size, frozen, held, in_doubt, dead, corrupt, .. } =
        summary;
    write!(out, "{process}: {}, {}", messages(*count), octets(*size))?;
    if let Some(oldest) = summary.oldest {
        write!(out, ", the oldest of {} ago", ago(oldest))?;
    }
    for (many, what) in [(frozen, "frozen"), (held, "held"), (in_doubt, "in doubt")] {
        if *many > 0 {
            write!(out, ", {many} {what}")?;
        }
    }
    writeln!(out)?;
    for (owner, many) in &summary.owners {
        writeln!(out, "    {}  {many}", tame(owner))?;
    }
    if *dead > 0 {
        writeln!(out, "    {dead} dead letters: `mailshift queue dead list` shows them")?;
    }
    if *corrupt > 0 {
        writeln!(out, "    {corrupt} files could not be read and are set aside in corrupt/ there")?;
    }
    if let Some(why) = &summary.unhealthy {
        writeln!(out, "    nothing new is kept here: {}", tame(why))?;
    }
    Ok(())
}

/// What a process took of another spool.
pub(super) fn adopted(
    out: &mut impl Write,
    process: &str,
    directory: &str,
    adopted: &Adopted,
) -> io::Result<()> {
    let Adopted { messages: count, recipients, dead, known, corrupt, .. } = *adopted;
    let (whose, directory) = (messages(count), tame(directory));
    if count > 0 {
        let to = if recipients == 1 { "1 recipient" } else { &format!("{recipients} recipients") };
        writeln!(out, "{whose} of {directory} adopted, for {to}; delivery begins at once")?;
    } else {
        writeln!(out, "nothing of {directory} waits to be delivered")?;
    }
    if dead > 0 {
        writeln!(out, "    {dead} dead letters: `mailshift queue dead list` shows them")?;
    }
    if known > 0 {
        writeln!(out, "    {known} were here already, and are not delivered twice")?;
    }
    if corrupt > 0 {
        writeln!(out, "    {corrupt} files are set aside in corrupt/ of {process}: look at them")?;
    }
    Ok(())
}

pub(super) fn changed(out: &mut impl Write, count: u64, said: &str) -> io::Result<()> {
    match count {
        0 => writeln!(out, "there is no such message: nothing has changed"),
        count => writeln!(out, "{} {}", messages(count), said.replacen("is ", plural(count), 1)),
    }
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "is " } else { "are " }
}

pub(super) fn messages(count: u64) -> String {
    if count == 1 { "1 message".to_owned() } else { format!("{count} messages") }
}

/// One object a line, and which process it is of.
pub(super) fn json<T: Serialize>(out: &mut impl Write, process: &str, of: &T) -> io::Result<()> {
    let mut object = serde_json::to_value(of)?;
    if let Some(fields) = object.as_object_mut() {
        fields.insert("process".to_owned(), process.into());
    }
    writeln!(out, "{object}")
}

pub(super) fn json_count(out: &mut impl Write, what: &str, count: u64) -> io::Result<()> {
    writeln!(out, "{}", serde_json::json!({ what: count }))
}

/// Without what a terminal would obey.
pub(super) fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `12.3 KiB`, in numbers of four figures at most.
fn octets(size: u64) -> String {
    let mut tenths = u128::from(size) * 10;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if tenths < 10_240 {
            return match unit {
                "B" => format!("{size} B"),
                unit => format!("{}.{} {unit}", tenths / 10, tenths % 10),
            };
        }
        tenths /= 1024;
    }
    format!("{}.{} TiB", tenths / 10, tenths % 10)
}

fn time(seconds: u64) -> SystemTime {
    // A date that no clock has is shown as the last that has a form.
    UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn ago(at: u64) -> String {
    span(now().saturating_sub(at))
}

fn until(at: u64) -> String {
    match at.saturating_sub(now()) {
        0 => "now".to_owned(),
        left => format!("in {}", span(left)),
    }
}

/// In its two largest units.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        (_, _, _) => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use shared::admin::queue::State;

    use super::*;

    fn said(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn sizes_and_spans_are_short_words() {
        for (size, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (12_595, "12.2 KiB"),
            (52_428_800, "50.0 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(octets(size), shown.replace("16777216.0", "16777215.9"), "{size}");
        }
        for (seconds, shown) in
            [(0, "0s"), (59, "59s"), (61, "1m"), (3700, "1h01m"), (90_000, "1d01h")]
        {
            assert_eq!(span(seconds), shown);
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_shown() {
        let hostile = Entry {
            id: "1\u{1b}[2J".into(),
            sender: "a\u{9b}31m@b.example\r\n".into(),
            arrived: now(),
            recipients: vec![Recipient {
                address: "x\u{7}@example.org".into(),
                account: None,
                owner: Some("old\n".into()),
                state: State::Waiting,
                since: None,
                error: Some("451 \u{1b}]0;x".into()),
            }],
            ..Entry::default()
        };
        let text = said(|out| entry(out, Place::Queue, &hostile));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert_eq!(text.lines().count(), 2, "{text}");
        let text = said(|out| shown(out, "mx-gateway", &hostile));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
}
