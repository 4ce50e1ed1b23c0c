//! Chromium without a window: opens a page and says what has become of it.

use std::path::Path;

use anyhow::{Context, Result};

use crate::program::Home;

/// Where it may be; Debian's comes first.
const PROGRAMS: [&str; 4] = [
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/snap/bin/chromium",
    "/usr/bin/google-chrome",
];
/// It asks nobody but the page's server, and needs no sandbox for pages of our own.
const FLAGS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--ignore-certificate-errors",
];

/// Opens a page, lets its scripts run until they have what they want, and returns its HTML then.
///
/// Certificates are not looked at. `more` are flags, such as `--host-resolver-rules=MAP www.example.org
/// 127.0.0.1:4711`.
///
/// # Errors
///
/// There is no browser, or it does not end.
pub async fn open(home: &Home, url: &str, more: &[&str]) -> Result<String> {
    let program = PROGRAMS.into_iter().find(|path| Path::new(path).exists());
    let program =
        program.context("no Chromium was found: run `tests/deps.sh test`, or install chromium")?;
    let profile = format!("--user-data-dir={}", home.path("profile").display());
    let mut command = vec![program];
    command.extend(FLAGS);
    command.extend([&*profile, "--virtual-time-budget=10000", "--dump-dom"]);
    command.extend(more);
    command.push(url);
    home.run(&command, "").await
}
