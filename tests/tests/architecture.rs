//! The invariants of docs/architecture.md that are absences: what must not be found where.

use std::fs;
use std::path::{Path, PathBuf};

/// Files and directories without sockets, clocks, TLS and waiting. A directory's module file counts.
const PURE: [&str; 42] = [
    "shared/src/address.rs",
    "shared/src/health.rs",
    "shared/src/counts.rs",
    "shared/src/credentials.rs",
    "shared/src/sasl.rs",
    "shared/src/dialogue",
    "shared/src/smtp",
    "shared/src/ownership/name.rs",
    "shared/src/ownership/routing.rs",
    "shared/src/ownership/unknown.rs",
    "mx-gateway/src/authentication/body_hash.rs",
    "mx-gateway/src/authentication/forged.rs",
    "mx-gateway/src/authentication/policy.rs",
    "mx-gateway/src/authentication/results.rs",
    "mx-gateway/src/body/gaps.rs",
    "mx-gateway/src/fingerprint/format.rs",
    "mx-gateway/src/outcome.rs",
    "mx-gateway/src/queue/gate.rs",
    "mx-gateway/src/queue/index.rs",
    "mx-gateway/src/edge.rs",
    "mx-gateway/src/lookup/protocol.rs",
    "shared/src/admin/queue.rs",
    "mx-gateway/src/mail_log/lines.rs",
    "mx-gateway/src/session",
    "mx-gateway/src/spool/format.rs",
    "mx-gateway/src/spool/line.rs",
    "mx-gateway/src/report.rs",
    "login-proxy/src/front",
    "login-proxy/src/guesses.rs",
    "login-proxy/src/managesieve.rs",
    "login-proxy/src/web/account.rs",
    "login-proxy/src/web/head.rs",
    "login-proxy/src/web/urls.rs",
    "login-proxy/src/web/answers/acme.rs",
    "login-proxy/src/web/answers/autoconfig.rs",
    "login-proxy/src/web/answers/autodiscover.rs",
    "login-proxy/src/web/answers/published.rs",
    "login-proxy/src/web/answers/reply.rs",
    "login-proxy/src/web/answers/well_known.rs",
    "login-proxy/src/web/answers/xml.rs",
    "shared/src/mta_sts.rs",
    "shared/src/web.rs",
];

/// Crates of the product, as against its tests.
const PRODUCT: [&str; 4] = ["shared/src", "mx-gateway/src", "login-proxy/src", "mailshift/src"];

/// A source file without its tests and comments.
struct Source {
    path: String,
    code: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file below `place`, or `place.rs` with its directory.
fn sources(place: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let path = root().join(place.strip_suffix(".rs").unwrap_or(place));
    if path.is_dir() {
        collect(&path, &mut found);
    }
    if path.with_extension("rs").is_file() {
        found.push(path.with_extension("rs"));
    }
    assert!(!found.is_empty(), "{place} is gone: tell this test where it is");
    let sources = found.into_iter().filter(|path| path.file_name().unwrap() != "tests.rs");
    sources.map(|path| read(&path)).collect()
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn read(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    // Tests are last in a file.
    let (code, _) = text.split_once("#[cfg(test)]").unwrap_or((&text, ""));
    let lines: Vec<&str> =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let path = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    Source { path, code: lines.join("\n") }
}

/// Asserts that none of `words` is in the product's code outside `allowed` files.
fn only_in(allowed: &[&str], words: &[&str]) {
    let mut found = Vec::new();
    for source in PRODUCT.iter().flat_map(|place| sources(place)) {
        if allowed.iter().any(|place| source.path.starts_with(place)) {
            continue;
        }
        let used = words.iter().filter(|word| source.code.contains(**word));
        found.extend(used.map(|word| format!("{}: {word}", source.path)));
    }
    assert!(found.is_empty(), "not outside {allowed:?}:\n{}", found.join("\n"));
}

#[test]
fn pure_files_know_no_socket_no_clock_no_tls_and_never_wait() {
    let impure = [
        "tokio",
        "rustls",
        "sqlx",
        ".await",
        "async fn",
        "Instant::now",
        "SystemTime",
        "std::net::Tcp",
        "std::fs",
        "std::thread",
    ];
    let found: Vec<String> = PURE
        .iter()
        .flat_map(|place| sources(place))
        .flat_map(|source| {
            let used: Vec<String> = impure
                .iter()
                .filter(|word| source.code.contains(**word))
                .map(|word| format!("{}: {word}", source.path))
                .collect();
            used
        })
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn sql_is_in_the_ownership_store_and_the_operators_command_line_alone() {
    only_in(
        &[
            "shared/src/ownership/store",
            "shared/src/ownership/schema.rs",
            "shared/src/ownership/table",
            // A test, which looks at a real table.
            "shared/src/ownership/feed/model.rs",
            "mailshift/src",
        ],
        &[
            "sqlx::query",
            "query_as(",
            "query_scalar(",
            "\"SELECT ",
            "\"UPDATE ",
            "\"INSERT ",
            "\"DELETE ",
        ],
    );
}

#[test]
fn the_library_that_judges_senders_is_used_in_one_place() {
    only_in(&["mx-gateway/src/authentication"], &["mail_auth", "mail_parser"]);
}

#[test]
fn only_main_reads_arguments_or_exits() {
    only_in(
        // The command line starts itself again as the owner of an SQLite file, in owner.rs.
        &[
            "mx-gateway/src/main.rs",
            "login-proxy/src/main.rs",
            "mailshift/src/main.rs",
            "mailshift/src/owner.rs",
        ],
        &["process::exit", "env::args"],
    );
}

#[test]
fn tls_is_a_matter_of_the_wire_and_the_tls_module() {
    only_in(
        &["shared/src/wire", "shared/src/tls"],
        &["rustls::unbuffered", "rustls::server::Unbuffered", "rustls::client::Unbuffered"],
    );
}

/// A clock that is set back, or forward, ends nothing early and keeps nothing waiting. What looks at it: dates in
/// headers and logs, ages that people are shown, when files were changed, and the keys of tickets, which nodes
/// choose by the same clock.
#[test]
fn no_deadline_is_by_the_clock_on_the_wall() {
    only_in(
        &[
            "shared/src/tls/certificates.rs",
            "shared/src/tls/tickets.rs",
            "shared/src/resolver.rs",
            "shared/src/state_dir.rs",
            "mx-gateway/src/serve.rs",
            // What is kept for days is dated by the clock that goes on while no process runs.
            "mx-gateway/src/spool",
            "mx-gateway/src/custody.rs",
            "mx-gateway/src/queue",
            // When an account was flipped is a date of the database's.
            "mx-gateway/src/grace.rs",
            "mx-gateway/src/mail_log.rs",
            "mailshift/src/queue/print.rs",
        ],
        &["SystemTime", "OffsetDateTime::now", "ClockId::Realtime"],
    );
}

#[test]
fn nothing_global_changes() {
    only_in(&[], &["static mut", "lazy_static"]);
    // Each worker's scratch buffer holds nothing between two uses.
    only_in(&["shared/src/wire/scratch.rs"], &["thread_local!"]);
}

#[test]
fn the_services_do_not_know_each_other() {
    for (one, other) in [("mx-gateway", "login_proxy"), ("login-proxy", "mx_gateway")] {
        let manifest = fs::read_to_string(root().join(one).join("Cargo.toml")).unwrap();
        assert!(!manifest.contains(&other.replace('_', "-")), "{one} depends on {other}");
        for source in sources(&format!("{one}/src")) {
            assert!(!source.code.contains(other), "{} names {other}", source.path);
        }
    }
    for source in sources("shared/src") {
        let names_a_service =
            source.code.contains("mx_gateway") || source.code.contains("login_proxy");
        assert!(!names_a_service, "{} names a service", source.path);
    }
}

#[test]
fn every_task_is_on_the_tracker() {
    only_in(
        // The feed and the listening connection outlive the tracker's tasks, which may be told of a flip
        // until the last has ended; both are ended by name.
        &[
            "shared/src/lifecycle.rs",
            "shared/src/service.rs",
            "shared/src/ownership/store/postgres.rs",
        ],
        &["tokio::spawn", "task::spawn("],
    );
}

#[test]
fn every_configuration_file_that_is_shipped_parses() {
    let mut files = vec![root().join("config/mailshift.toml")];
    let examples = root().join("config/examples");
    if examples.is_dir() {
        files.extend(fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path()));
    }
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "toml")) {
        let parsed = shared::config::Config::load(file);
        assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
    }
}
