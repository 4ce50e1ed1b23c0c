//! `mx-gateway run|check --config FILE`.

use std::process::ExitCode;

use shared::service::cli;

#[tokio::main]
async fn main() -> ExitCode {
    cli::main::<mx_gateway::app::Gateway>(std::env::args_os(), env!("CARGO_PKG_VERSION")).await
}
