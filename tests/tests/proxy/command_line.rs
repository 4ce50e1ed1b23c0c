//! `login-proxy` as it is called by operators and by systemd.

use std::process::{Command, Output};

use anyhow::Result;
use tests::node::binary;
use tests::place::Place;

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
fn the_version_is_said() -> Result<()> {
    let output = login_proxy(&["--version"])?;
    let expected = format!("login-proxy {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout)?, expected);
    Ok(())
}
