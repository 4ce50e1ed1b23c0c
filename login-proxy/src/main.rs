//! `login-proxy run|check --config FILE`.

use std::process::ExitCode;

use shared::service::cli;

#[tokio::main]
async fn main() -> ExitCode {
    cli::main("login-proxy", env!("CARGO_PKG_VERSION"), login_proxy::app::run).await
}
