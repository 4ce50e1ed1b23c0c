//! `login-proxy run|check --config FILE`.

use std::alloc::System;
use std::process::ExitCode;

use shared::service::cli;
use zeroizing_alloc::ZeroAlloc;

/// Freed memory is wiped. What we keep of a password is wiped by us; but rustls hands each record's
/// plaintext over in a buffer of its own, which it frees as it is.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

#[tokio::main]
async fn main() -> ExitCode {
    cli::main::<login_proxy::app::Proxy>(std::env::args_os(), env!("CARGO_PKG_VERSION")).await
}
