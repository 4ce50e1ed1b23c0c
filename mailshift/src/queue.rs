//! `queue`: the messages that the gateway keeps on this host, asked of each of its processes.

mod arguments;
mod print;
mod processes;

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use shared::admin::queue::{Adopted, Filter, Place, Request, Selector};
use shared::admin::{Answer, Call, Refusal};
use shared::config::Config;

use crate::actor;
pub(crate) use arguments::Queue;
use arguments::{Change, Dead, Listed, QueueCommand};
use processes::{Heard, Processes};

/// Asks the gateway's processes and says what they answer.
pub(crate) async fn run(config: &Path, queue: Queue, out: &mut impl Write) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    let desk = Desk { processes: Processes::of(&config.node.state_dir), json: queue.json };
    match queue.command {
        QueueCommand::List(listed) => desk.list(Place::Queue, listed, out).await,
        QueueCommand::Show { id } => desk.show(Place::Queue, id, out).await,
        QueueCommand::Cat { id } => desk.cat(Place::Queue, id, out).await,
        QueueCommand::Summary => desk.summary(out).await,
        QueueCommand::Retry(change) => {
            desk.change(change, "is tried now", |which| Request::Retry { which }, out).await
        }
        QueueCommand::Freeze(change) => {
            desk.change(change, "is frozen", |which| Request::Freeze { which }, out).await
        }
        QueueCommand::Thaw(change) => {
            desk.change(change, "is thawed", |which| Request::Thaw { which }, out).await
        }
        QueueCommand::Drop { change, yes } => desk.drop(Place::Queue, change, yes, out).await,
        QueueCommand::Adopt { directory, why } => desk.adopt(&directory, why, out).await,
        QueueCommand::Dead(Dead::List(listed)) => desk.list(Place::Dead, listed, out).await,
        QueueCommand::Dead(Dead::Show { id }) => desk.show(Place::Dead, id, out).await,
        QueueCommand::Dead(Dead::Cat { id }) => desk.cat(Place::Dead, id, out).await,
        QueueCommand::Dead(Dead::Release(change)) => {
            let said = "is back in the queue";
            desk.change(change, said, |which| Request::Release { which }, out).await
        }
        QueueCommand::Dead(Dead::Drop { change, yes }) => {
            desk.drop(Place::Dead, change, yes, out).await
        }
    }
}

struct Desk {
    processes: Processes,
    json: bool,
}

impl Desk {
    async fn list(&self, place: Place, listed: Listed, out: &mut impl Write) -> anyhow::Result<()> {
        let limit = listed.limit;
        let filter = Filter::from(listed);
        let (seen, mut total) = (Cell::new(0), print::Total::default());
        let next = || {
            let left = limit.map(|limit| limit.saturating_sub(seen.get()));
            let filter = Filter { limit: left, ..filter.clone() };
            (left != Some(0)).then(|| call(Request::List { place, filter }, String::new()))
        };
        let heard = self.processes.ask_each(next, |process, answer| {
            let Answer::Entry(entry) = answer else { return Ok(()) };
            seen.set(seen.get().saturating_add(1));
            if self.json {
                return print::json(out, process, &entry);
            }
            total.add(&entry);
            print::entry(out, place, &entry)
        });
        refused(heard.await?)?;
        if self.json {
            return Ok(());
        }
        Ok(print::total(out, place, &total, limit == Some(seen.get()))?)
    }

    async fn show(&self, place: Place, id: String, out: &mut impl Write) -> anyhow::Result<()> {
        let request = call(Request::Show { place, id: id.clone() }, String::new());
        let heard = self.processes.ask(&request, |process, answer| match answer {
            Answer::Entry(entry) if self.json => print::json(out, process, &entry),
            Answer::Entry(entry) => print::shown(out, process, &entry),
            Answer::Octets(_)
            | Answer::Summary(_)
            | Answer::Adopted(_)
            | Answer::Done(_)
            | Answer::Refused(_) => Ok(()),
        });
        found(place, &id, heard.await?)
    }

    /// Its octets as they are, whatever they do to a terminal.
    async fn cat(&self, place: Place, id: String, out: &mut impl Write) -> anyhow::Result<()> {
        let request = call(Request::Cat { place, id: id.clone() }, String::new());
        let heard = self.processes.ask(&request, |_, answer| match answer {
            Answer::Octets(octets) => out.write_all(&octets),
            Answer::Entry(_)
            | Answer::Summary(_)
            | Answer::Adopted(_)
            | Answer::Done(_)
            | Answer::Refused(_) => Ok(()),
        });
        found(place, &id, heard.await?)
    }

    async fn summary(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let request = call(Request::Summary, String::new());
        let heard = self.processes.ask(&request, |process, answer| match answer {
            Answer::Summary(summary) if self.json => print::json(out, process, &summary),
            Answer::Summary(summary) => print::summary(out, process, &summary),
            Answer::Entry(_)
            | Answer::Octets(_)
            | Answer::Adopted(_)
            | Answer::Done(_)
            | Answer::Refused(_) => Ok(()),
        });
        refused(heard.await?)
    }

    async fn drop(
        &self,
        place: Place,
        change: Change,
        yes: bool,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        ensure!(
            yes,
            "this deletes messages for good and tells nobody: say --yes if that is meant (`mailshift queue \
             cat ID` shows what is in one)"
        );
        self.change(change, "is dropped", |which| Request::Drop { place, which }, out).await
    }

    /// Changes what is meant, wherever it is.
    async fn change(
        &self,
        change: Change,
        said: &str,
        request: impl Fn(Selector) -> Request,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let why = change.why.clone().unwrap_or_default();
        let mut changed = 0;
        for which in change.selectors() {
            let request = call(request(which.clone()), why.clone());
            let heard = self.processes.ask(&request, |_, _| Ok(())).await?;
            if let Selector::Id(id) = &which {
                found(place_of(&request.request), id, heard)?;
                changed += 1;
                if !self.json {
                    writeln!(out, "{} {said}", print::tame(id))?;
                }
                continue;
            }
            let here: u64 = heard.iter().filter_map(|(_, heard)| heard.as_ref().ok()).sum();
            refused(heard)?;
            changed += here;
            if !self.json {
                print::changed(out, here, said)?;
            }
        }
        if self.json { Ok(print::json_count(out, "changed", changed)?) } else { Ok(()) }
    }

    /// Has one process take the messages of another that is gone: the first that can.
    async fn adopt(
        &self,
        directory: &Path,
        why: Option<String>,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let directory = fs::canonicalize(directory)
            .with_context(|| format!("cannot adopt {}", directory.display()))?;
        let shown = directory.display().to_string();
        let request = call(Request::Adopt { directory }, why.unwrap_or_default());
        let mut adopted = None;
        let answered = self.processes.ask_first(&request, |process, answer| {
            let Answer::Adopted(told) = answer else { return Ok(()) };
            if self.json {
                print::json(out, process, &told)?;
            } else {
                print::adopted(out, process, &shown, &told)?;
            }
            adopted = Some(told);
            Ok(())
        });
        answered.await?;
        let Adopted { left, failed, .. } =
            adopted.context("the service does not say what it took")?;
        ensure!(
            left == 0 && failed.is_none(),
            "files that are still in {shown}: {left}{}; adopt it once more when that is repaired",
            failed.map_or_else(
                || ", which cannot be read (the service's log names each)".to_owned(),
                |why| format!(" ({})", print::tame(&why))
            )
        );
        Ok(())
    }
}

fn call(request: Request, why: String) -> Call {
    Call { by: actor(), why, request }
}

fn place_of(request: &Request) -> Place {
    match request {
        Request::List { place, .. }
        | Request::Show { place, .. }
        | Request::Cat { place, .. }
        | Request::Drop { place, .. } => *place,
        Request::Release { .. } => Place::Dead,
        Request::Summary
        | Request::Retry { .. }
        | Request::Freeze { .. }
        | Request::Thaw { .. }
        | Request::Adopt { .. } => Place::Queue,
    }
}

/// One of the processes has it.
fn found(place: Place, id: &str, heard: Vec<Heard>) -> anyhow::Result<()> {
    let mut other = None;
    for (process, heard) in heard {
        match heard {
            Ok(_) => return Ok(()),
            Err(Refusal::NoSuchMessage { .. }) => {}
            Err(refusal) => other = Some((process, refusal)),
        }
    }
    if let Some((process, refusal)) = other {
        bail!("{process}: {refusal}");
    }
    let (what, list) = match place {
        Place::Queue => ("message", "queue list"),
        Place::Dead => ("dead letter", "queue dead list"),
    };
    bail!("there is no {what} {} on this host: `mailshift {list}` shows them", print::tame(id))
}

/// Nobody said no.
fn refused(heard: Vec<Heard>) -> anyhow::Result<()> {
    for (process, heard) in heard {
        heard.with_context(|| process)?;
    }
    Ok(())
}
