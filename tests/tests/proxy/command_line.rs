//! `login-proxy` as it is called by operators and by systemd.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use tests::node::{Node, Options, binary};
use tests::place::Place;
use tests::table::{Engine, Table};
use tests::test_ca::TestCa;

fn login_proxy(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("login-proxy")?).args(arguments).env_clear().output()?)
}

#[test]
fn a_wrong_configuration_is_exit_code_78_and_names_the_key() -> Result<()> {
    let place = Place::new()?;
    let wrong = place.write("wrong.toml", "[login]\nmax_failurs = 3\n", 0o644, None)?;
    for command in ["run", "check"] {
        let output = login_proxy(&[command, "--config", &wrong.to_string_lossy()])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(
            said.contains("wrong.toml:2: login.max_failurs") && said.contains("max_failures"),
            "{said}"
        );
    }
    let missing = login_proxy(&["check", "--config", "/no/such/file.toml"])?;
    assert_eq!(missing.status.code(), Some(78));
    Ok(())
}

#[test]
fn check_says_everything_and_certificates_are_part_of_it() -> Result<()> {
    let place = Place::new()?;
    let no_certificate = place.write("no.pem", "nothing", 0o644, None)?;
    let missing = place.join("missing.pem");
    let good = format!(
        "[ownership]\nurl = \"sqlite:{}\"\n[backends.old.imap]\nhost = \"127.0.0.1\"\n\
         [login]\nhostname = \"imap.example.org\"\nimaps = {{ listen = [\"127.0.0.1:0\"] }}\n\
         [mx]\nhostname = \"mx.example.org\"\n\
         [tls]\ncertificates = [{{ cert_file = {missing:?}, key_file = {missing:?} }}, \
         {{ cert_file = {no_certificate:?}, key_file = {missing:?} }}]\n",
        place.join("ownership.db").display()
    );
    let wrong = good.replace("hostname = \"imap.example.org\"\n", "hostname = \"a b\"\n");
    for (text, problems) in [(&good, 2), (&wrong, 3)] {
        let file = place.write("several.toml", text, 0o644, None)?;
        let output = login_proxy(&["check", "--config", &file.to_string_lossy()])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.lines().count()), (Some(78), problems), "{said}");
        assert!(said.contains("missing.pem") && said.contains("no.pem"), "{said}");
        assert_eq!(said.contains("login.hostname"), problems == 3, "{said}");
    }
    Ok(())
}

#[test]
fn nothing_to_listen_on_is_a_wrong_configuration() -> Result<()> {
    let place = Place::new()?;
    let text = format!(
        "[node]\nstate_dir = {:?}\n[ownership]\nurl = \"sqlite:{}\"\n[mx]\nhostname = \"mx.example.org\"\n\
         [backends.old.imap]\nhost = \"127.0.0.1\"\n[login]\nhostname = \"imap.example.org\"\n",
        place.join("state"),
        place.join("ownership.db").display()
    );
    let file = place.write("idle.toml", &text, 0o644, None)?;
    let output = login_proxy(&["run", "--config", &file.to_string_lossy()])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("login.imaps.listen"), "{said}");
    Ok(())
}

#[test]
fn a_backend_that_is_the_proxy_itself_is_a_warning() -> Result<()> {
    let place = Place::new()?;
    let text = format!(
        "[node]\nstate_dir = {:?}\n[ownership]\nurl = \"sqlite:{}\"\n[mx]\nhostname = \"mx.example.org\"\n\
         [backends.old.imap]\nhost = [\"127.0.0.2\", \"localhost:10143\"]\n[tls]\nself_signed = true\n\
         [login]\nhostname = \"imap.example.org\"\nimap.listen = [\":10143\"]\n",
        place.join("state"),
        place.join("ownership.db").display()
    );
    let file = place.write("loop.toml", &text, 0o644, None)?;
    let output = login_proxy(&["check", "--config", &file.to_string_lossy()])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains(
            "loop.toml: warning: backends.old.imap: localhost:10143 is this service itself"
        ),
        "{said}"
    );
    Ok(())
}

#[test]
fn the_version_is_said() -> Result<()> {
    let output = login_proxy(&["--version"])?;
    let expected = format!("login-proxy {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout)?, expected);
    Ok(())
}

/// What a login proxy says that is to keep its state there, and cannot.
fn ends_for(place: &Place, state_dir: &Path) -> Result<String> {
    let text = format!(
        "[node]\nname = \"a\"\nstate_dir = {state_dir:?}\n[ownership]\nurl = \"sqlite:{}\"\n\
         [tls]\nself_signed = true\n[backends.old.imap]\nhost = \"127.0.0.1\"\n\
         [login]\nhostname = \"imap.example.org\"\nimaps = {{ listen = [\"127.0.0.1:0\"] }}\n",
        place.join("ownership.db").display()
    );
    let file = place.write("state.toml", &text, 0o644, None)?;
    let output = login_proxy(&["run", "--config", &file.to_string_lossy()])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code().is_some_and(|code| code != 0), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    Ok(said)
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named_with_the_reason() -> Result<()> {
    let place = Place::new()?;
    // Not for root either.
    let said = ends_for(&place, Path::new("/sys/mailshift"))?;
    assert!(said.contains("/sys/mailshift/login-proxy"), "{said}");
    let file = place.write("file", "", 0o644, None)?;
    let said = ends_for(&place, &file)?;
    assert!(said.contains("/file/login-proxy") && said.contains("Not a directory"), "{said}");
    Ok(())
}

#[test]
fn a_state_directory_on_a_full_disk_is_named_with_the_reason() -> Result<()> {
    let place = Place::new()?;
    let state = place.join("state");
    std::fs::create_dir_all(state.join("login-proxy"))?;
    // Whatever is written there finds no space left.
    std::os::unix::fs::symlink("/dev/full", state.join("login-proxy/id.new"))?;
    let said = ends_for(&place, &state)?;
    assert!(said.contains("/state/login-proxy") && said.contains("No space left"), "{said}");
    Ok(())
}

#[tokio::test]
async fn who_cannot_log_in_by_a_protocol_is_said_at_the_start() -> Result<()> {
    let (ca, table) = (TestCa::new()?, Table::create(Engine::Sqlite)?);
    let whole: String = ["imap", "pop3", "submission", "managesieve"]
        .map(|protocol| format!("[backends.old.{protocol}]\nhost = \"127.0.0.1\"\nport = 9\n"))
        .concat();
    let options = Options {
        name: "partial".into(),
        url: table.url(),
        backends: format!("{whole}[backends.new.imap]\nhost = \"127.0.0.1\"\nport = 9\n"),
        every_protocol: true,
        ..Options::default()
    };
    let node = Node::start(&options, &ca).await?;
    let log = node.proxy.as_ref().context("a login proxy")?.log();
    let lines = log.lines().filter(|line| line.contains("the backend has no endpoint for it"));
    let mut warned = BTreeSet::new();
    for line in lines {
        let line: serde_json::Value = serde_json::from_str(line)?;
        assert_eq!(line["level"], "WARN");
        warned.insert(format!("{} {}", line["backend"], line["protocol"]).replace('"', ""));
    }
    let expected = ["new managesieve", "new pop3", "new submission"].map(str::to_owned);
    assert_eq!(warned, BTreeSet::from(expected));
    Ok(())
}
