//! `mx-gateway run|check --config FILE`.

use std::process::ExitCode;

use shared::service::cli;

#[tokio::main]
async fn main() -> ExitCode {
    cli::main("mx-gateway", env!("CARGO_PKG_VERSION"), mx_gateway::app::idle, mx_gateway::app::run)
        .await
}
