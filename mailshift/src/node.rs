//! `node`: which nodes there are, and those that do not come back.

use std::io::Write;

use clap::Subcommand;
use shared::ownership::table::Table;

use crate::print;

/// What can be typed behind `mailshift node`.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Lists every service of every node: its lease, how far it has read the table, what still runs there
    /// under older changes, and the mail on its disk
    List,
    /// Gives up a node that does not come back, once its lease is over: it counts as lapsed no longer, and no
    /// old changes are kept for it. A node that stops cleanly takes itself out of the table; one that comes
    /// back is a node again
    Forget {
        /// Its name
        name: String,
        /// Only this service of it
        #[arg(long, value_parser = ["mx-gateway", "login-proxy"])]
        service: Option<String>,
        /// Even though there is mail on its disk, by what it said last, that nobody delivers
        #[arg(long)]
        anyway: bool,
    },
}

pub(crate) async fn run(table: &Table, command: Node, out: &mut impl Write) -> anyhow::Result<()> {
    match command {
        Node::List => print::node_list(out, &table.nodes().await?)?,
        Node::Forget { name, service, anyway } => {
            for line in table.forget(&name, service.as_deref(), anyway).await? {
                writeln!(out, "{}/{} is forgotten", line.node, line.service)?;
                if line.spooled > 0 {
                    print::mail_left(out, &line)?;
                }
            }
        }
    }
    Ok(())
}
