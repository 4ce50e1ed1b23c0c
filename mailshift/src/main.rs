//! The operator's command line.
//!
//! `main` reads the arguments, opens the table, prints and exits; what a command does is in
//! [`shared::ownership::table`], what it prints in [`print`], and how it runs beside SQLite files that
//! belong to the services in [`owner`]. A mover's commands are in [`mover`], the flip without a hold in [`flip`],
//! those about nodes in [`node`], those about the gateway's messages in [`queue`].

mod arguments;
mod flip;
mod mover;
mod node;
mod owner;
mod print;
mod queue;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use arguments::{Accounts, Arguments, Command, Names, OnTable, Schema};
use clap::Parser;
use mover::NotFenced;
use shared::backend::BackendName;
use shared::config::Config;
use shared::ownership::table::{self, Filter, Moves, Table, read_csv};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = io::stdout().lock();
    match run(arguments, &mut out).await.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // `mailshift accounts list | head`: nobody is listening any more.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "mailshift: {error:#}");
            if error.is::<NotFenced>() { NotFenced::STATUS.into() } else { ExitCode::FAILURE }
        }
    }
}

async fn run(arguments: Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let Arguments { config, url, command } = arguments;
    match command {
        Command::OnTable(command) => on_table(place(&config, url)?, command, out).await,
        Command::Queue(command) => queue::run(&config, command, out).await,
    }
}

async fn on_table(place: Place, command: OnTable, out: &mut impl Write) -> anyhow::Result<()> {
    let Place { url, backends } = place;
    if let Some(file) = table::sqlite_file(&url) {
        owner::become_owner(&file, &url, backends.as_deref(), command.input())?;
    }
    match command {
        OnTable::Schema(Schema::Apply { roles }) => {
            let table = Table::create(&url).await?;
            table.apply_schema().await?;
            if roles {
                table.apply_roles().await?;
            }
            Ok(print::schema(out, &table.schema().await?)?)
        }
        OnTable::Schema(Schema::Show) => {
            let table = Table::open_unchecked(&url).await?;
            Ok(print::schema(out, &table.schema().await?)?)
        }
        OnTable::Accounts(command) => {
            let table = Table::open(&url).await?;
            accounts(&table, command, backends.as_deref(), out).await
        }
        OnTable::Names(Names::Unknown { outcome, limit }) => {
            let table = Table::open(&url).await?;
            let names = table.unknown_names(outcome.map(Into::into), limit).await?;
            Ok(print::unknown(out, &names)?)
        }
        OnTable::Mover(command) => {
            let table = Table::open(&url).await?;
            mover::run(&table, command, backends.as_deref(), out).await
        }
        OnTable::Node(command) => {
            let table = Table::open(&url).await?;
            node::run(&table, command, out).await
        }
        OnTable::Sql { statements } => match table::sqlite_file(&url) {
            Some(file) => owner::shell(&file, statements.as_deref()),
            None => bail!("the table is in Postgres, which needs no care of ours: use psql"),
        },
    }
}

async fn accounts(
    table: &Table,
    command: Accounts,
    backends: Option<&[BackendName]>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match command {
        Accounts::Import { file, owner, flip } => {
            let owner = owner.map(|name| backend(&name, backends)).transpose()?;
            let rows = read_csv(open(&file)?, owner.as_ref())
                .map_err(|problems| anyhow::anyhow!(print::problems(&file, &problems)))?;
            for name in rows.iter().map(|row| &row.owner).collect::<std::collections::BTreeSet<_>>()
            {
                backend(name, backends)?;
            }
            let moves = if flip { Moves::Meant } else { Moves::Refused };
            let imported = table.import(&rows, moves, &actor()).await?;
            print::imported(out, imported)?;
            Ok(print::domains_without_row(out, &table.domains_without_row().await?)?)
        }
        Accounts::List { owner, domain, held, limit } => {
            // Not checked against the configuration: owners that nobody knows are worth finding.
            let owner = owner.map(|name| backend(&name, None)).transpose()?;
            let lines = table.list(&Filter { owner, domain, held, limit }).await?;
            Ok(print::list(out, &lines)?)
        }
        Accounts::Show { name } => Ok(print::shown(out, &table.show(&name).await?)?),
        Accounts::Flip(flip) => flip::run(table, flip, backends, out).await,
    }
}

/// Where the table is, and which backends the configuration has; `None` without one.
struct Place {
    url: String,
    backends: Option<Vec<BackendName>>,
}

fn place(config: &Path, url: Option<String>) -> anyhow::Result<Place> {
    if let Some(url) = url {
        return Ok(Place { url, backends: owner::inherited_backends() });
    }
    let config = Config::load(config)?;
    let backends = config.backends.iter().map(|backend| backend.name.clone()).collect();
    // A command wants a session of its own, which a pooler does not give it.
    let ownership = config.ownership;
    let direct = ownership.listen_url.filter(|_| table::sqlite_file(&ownership.url).is_none());
    let url = direct.unwrap_or(ownership.url);
    Ok(Place { url, backends: Some(backends) })
}

/// Reads a backend's name; one that the configuration does not have is refused.
fn backend(name: &str, backends: Option<&[BackendName]>) -> anyhow::Result<BackendName> {
    let parsed = BackendName::parse(name).map_err(|name| {
        anyhow::anyhow!("{name:?} is no backend's name: a-z, 0-9, -, _ and . only")
    })?;
    match backends {
        Some(backends) if !backends.contains(&parsed) => {
            let known: Vec<&str> = backends.iter().map(BackendName::as_str).collect();
            bail!("backend {parsed} is not in the configuration, which has {}", known.join(", "))
        }
        Some(_) | None => Ok(parsed),
    }
}

fn open(file: &Path) -> anyhow::Result<Box<dyn Read>> {
    if file == Path::new("-") {
        return Ok(Box::new(io::stdin()));
    }
    Ok(Box::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?))
}

/// Who asks, for the audit.
fn actor() -> String {
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
