//! The operator's commands as they are typed, on SQLite and on a private Postgres.

#![expect(clippy::unwrap_used, reason = "a test says no by a panic")]

mod mover;
mod names;
mod nodes;
mod queue;
mod rows;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use tests::postgres::Server;

/// Somebody who is not root.
const OTHER: u32 = 65_534;
/// A group of two users, neither of them root.
const GROUP: u32 = 61_234;

/// A table, and the program run on it.
struct Shift {
    url: String,
    files: TempDir,
}

impl Shift {
    fn sqlite() -> Self {
        let files = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", files.path().join("ownership.db").display());
        Self { url, files }
    }

    fn postgres() -> Self {
        let url = Server::shared().create_database().unwrap().url;
        Self { url, files: tempfile::tempdir().unwrap() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mailshift"))
            .env("MAILSHIFT_URL", &self.url)
            .env("USER", "tester")
            .env_remove("SUDO_USER")
            .args(arguments)
            .output()
            .unwrap()
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refuses(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn csv(&self, text: &str) -> String {
        let file = self.files.path().join("accounts.csv");
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }
}

/// The same walk on both databases.
fn walk(shift: &Shift, version: u32, run_sql: impl Fn(&str)) {
    shift.says(&["schema", "apply"]);
    let shown = format!("ownership: version {version}, up to date\n");
    assert!(shift.says(&["schema", "show"]).starts_with(&shown));
    shift.says(&["schema", "apply"]);
    run_sql("INSERT INTO domains (domain, default_owner) VALUES ('example.org', 'old')");

    let file = shift.csv(
        "account,owner,login,aliases,note\n\
         Ann@Example.org,,,annie a@old.example,\n\
         bob@example.org,new,,,\n\
         list@example.org,,false,,the list\n",
    );
    let complaint = shift.refuses(&["accounts", "import", &file]);
    assert!(complaint.contains("accounts.csv:2: no owner"), "{complaint}");
    let complaint = shift.refuses(&["accounts", "import", &file, "--owner", "old"]);
    assert!(complaint.contains("1 accounts have no row"), "{complaint}");
    assert!(complaint.contains("bob@example.org from old to new"), "{complaint}");
    assert_eq!(shift.says(&["accounts", "list"]), "", "nothing of it was taken");
    let import = ["accounts", "import", &file, "--owner", "old", "--flip"];
    assert_eq!(shift.says(&import), "added 3 accounts and 2 aliases; 0 were there\n");
    assert_eq!(shift.says(&import), "added 0 accounts and 0 aliases; 5 were there\n");
    let said = shift.says(&["accounts", "list"]);
    let bob = said.lines().find(|line| line.starts_with("bob@")).unwrap();
    assert!(bob.contains("  new  from old at 20"), "{said}");
    assert_eq!(
        shift.says(&["accounts", "list", "--owner", "old", "--domain", "Example.ORG"]),
        "ann@example.org   old\nlist@example.org  old  no logins, the list\n"
    );

    // An import is no flip, and takes nothing where it contradicts.
    let file =
        shift.csv("account,owner,aliases\neve@example.org,old,\nann@example.org,new,annie\n");
    let complaint = shift.refuses(&["accounts", "import", &file]);
    assert!(complaint.contains("ann@example.org: the table says old"), "{complaint}");
    assert_eq!(shift.says(&["accounts", "list", "--limit", "9"]).lines().count(), 3);

    let flip = [
        "accounts",
        "flip",
        "--to",
        "new",
        "ANN@example.org",
        "zoe@example.org",
        "bob@example.org",
    ];
    assert_eq!(
        shift.says(&flip),
        "zoe@example.org had no row: it lived at its domain's default owner, old\n\
         bob@example.org is at new already\nann@example.org is at new now\n\
         zoe@example.org is at new now\nsettled on every live node\n"
    );
    let shown = shift.says(&["accounts", "show", "annie"]);
    assert!(shown.contains("ann@example.org  new  from old"), "{shown}");
    assert!(shown.contains("aliases: a@old.example, annie"), "{shown}");
    assert!(shown.contains("tester (accounts flip): owner old → new"), "{shown}");
    assert!(shown.contains("tester (accounts import): owner old"), "{shown}");

    in_waves(shift);

    // All of them or none.
    for (account, because) in [
        ("nobody@elsewhere.example", "no account nobody@elsewhere.example"),
        ("annie", "alias of ann@example.org"),
        ("a b@exa mple", "no account name"),
    ] {
        let complaint =
            shift.refuses(&["accounts", "flip", "--to", "old", "bob@example.org", account]);
        assert!(complaint.contains(because), "{account}: {complaint}");
    }
    run_sql("UPDATE accounts SET state = 'held' WHERE account = 'ann@example.org'");
    let complaint =
        shift.refuses(&["accounts", "flip", "--to", "old", "bob@example.org", "ann@example.org"]);
    assert!(complaint.contains("held") && complaint.contains("ann@example.org"), "{complaint}");
    assert_eq!(shift.says(&["accounts", "list", "--owner", "old"]).lines().count(), 1);
    assert!(shift.says(&["accounts", "list", "--held"]).contains("held without end"));
    assert!(shift.refuses(&["accounts", "flip", "--to", "New", "x"]).contains("no backend's name"));
}

/// Users come to a server as fast as they are flipped there.
fn in_waves(shift: &Shift) {
    let file = shift.files.path().join("wave");
    fs::write(&file, "# our own\nann@example.org\n\nzoe@example.org # too\nbob@example.org\n")
        .unwrap();
    let file = file.display().to_string();
    let there = ["accounts", "flip", "--to", "old", "--per-second", "2", "--file", &file];
    let began = std::time::Instant::now();
    assert_eq!(
        shift.says(&there),
        "2 of 3 are at old\n3 of 3 are at old\nsettled on every live node\n"
    );
    assert!(began.elapsed().as_secs() >= 1, "the second wave waits");
    // A wave that cannot be flipped ends the rest; what was flipped stays so.
    let back = ["accounts", "flip", "--to", "new", "--per-second", "1", "ann@example.org"];
    let complaint = shift.refuses(&[&back[..], &["annie", "zoe@example.org"]].concat());
    assert!(
        complaint.contains("stopped after 1 of 3") && complaint.contains("alias"),
        "{complaint}"
    );
    assert!(shift.says(&["accounts", "list", "--owner", "new"]).starts_with("ann@example.org"));
    let zoe = shift.says(&["accounts", "show", "zoe@example.org"]);
    assert!(zoe.contains("zoe@example.org  old"), "{zoe}");
    shift.says(&["accounts", "flip", "--to", "new", "bob@example.org", "zoe@example.org"]);
    fs::write(&file, "# nobody\n").unwrap();
    assert!(shift.refuses(&there).contains("no account is in it"));
    assert!(shift.refuses(&["accounts", "flip", "--to", "new"]).contains("required"));
}

#[test]
fn commands_on_sqlite() {
    let shift = Shift::sqlite();
    let complaint = shift.refuses(&["accounts", "list"]);
    assert!(complaint.contains("mailshift schema apply"), "{complaint}");
    walk(&shift, 1, |sql| drop(shift.says(&["sql", sql])));
    assert!(shift.refuses(&["sql", "DELETE FROM clock"]).contains("one row"));
    assert!(shift.refuses(&["schema", "apply", "--roles"]).contains("no roles"));

    // What one command knows of itself does not sign another's work.
    shift.says(&["sql", "UPDATE accounts SET login = 0 WHERE account = 'bob@example.org'"]);
    assert!(
        shift.says(&["accounts", "show", "bob@example.org"]).contains("  sqlite: logins yes → no")
    );
    assert!(shift.says(&["sql", "SELECT settled FROM flip_status LIMIT 1"]).starts_with('1'));
}

#[test]
fn commands_on_postgres() {
    let server = Server::shared();
    let shift = Shift::postgres();
    let database = database_of(&shift);
    walk(&shift, 3, |sql| drop(server.psql(&database, sql).unwrap()));
    shift.says(&["schema", "apply", "--roles"]);
    assert_eq!(
        server
            .psql(&database, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'mailshift%'")
            .unwrap(),
        "4\n"
    );
    assert!(shift.refuses(&["sql"]).contains("psql"));
}

/// The name of a table's database in Postgres.
fn database_of(shift: &Shift) -> String {
    shift.url.split(['/', '?']).nth(3).unwrap().to_owned()
}

#[test]
fn a_live_node_must_know_the_owner_and_is_waited_for() {
    let server = Server::shared();
    let postgres = Shift::postgres();
    let database = database_of(&postgres);
    let sqlite = Shift::sqlite();
    for (shift, table, lease, run_sql) in [
        (
            &sqlite,
            "nodes.nodes",
            "'2999-01-01 00:00:00.000'",
            Box::new(|sql: &str| drop(sqlite.says(&["sql", sql]))) as Box<dyn Fn(&str)>,
        ),
        (
            &postgres,
            "nodes",
            "'2999-01-01'",
            Box::new(|sql: &str| drop(server.psql(&database, sql).unwrap())),
        ),
    ] {
        shift.says(&["schema", "apply"]);
        run_sql("INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'old')");
        run_sql(&format!(
            "INSERT INTO {table} (node, service, incarnation, version, lease_until, backends) VALUES \
             ('a', 'mx-gateway', 'i', '1', {lease}, '{{\"new\": \"1\"}}'), \
             ('b', 'mx-gateway', 'i', '1', {lease}, '{{\"new\": \"1\", \"attic\": \"2\"}}')"
        ));
        let complaint = shift.refuses(&["accounts", "flip", "--to", "attic", "ann@example.org"]);
        assert!(complaint.contains("not configured on a/mx-gateway"), "{complaint}");
        let flip = ["accounts", "flip", "--to", "new", "ann@example.org", "--wait", "0"];
        let output = shift.run(&flip);
        assert!(!output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("waiting for a/mx-gateway, b/mx-gateway"), "{said}");
        run_sql(&format!("UPDATE {table} SET backends = '{{\"new\": \"2\"}}' WHERE node = 'b'"));
        let complaint = shift.refuses(&["accounts", "flip", "--to", "new", "ann@example.org"]);
        assert!(complaint.contains("different addresses"), "{complaint}");
    }
}

#[test]
fn a_newer_schema_is_refused() {
    let shift = Shift::sqlite();
    shift.says(&["schema", "apply"]);
    shift.says(&[
        "sql",
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (99, 'later', 1, x'00', 0)",
    ]);
    assert!(shift.says(&["schema", "show"]).contains("version 99, newer than this program's 1"));
    for arguments in [&["accounts", "list"][..], &["schema", "apply"]] {
        let complaint = shift.refuses(arguments);
        assert!(complaint.contains("use a newer program"), "{complaint}");
    }
}

/// A directory as a package would make it: `drwxrws---` of the services' user and group, in one that
/// others may pass.
fn services_directory(shift: &Shift) -> PathBuf {
    assert!(
        is_root(),
        "this test changes owners and becomes other users: run it as root or with sudo -n"
    );
    fs::set_permissions(shift.files.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let directory = shift.files.path().join("ownership");
    fs::create_dir(&directory).unwrap();
    chown(&directory, Some(OTHER), Some(GROUP)).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2770)).unwrap();
    directory
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Runs a program as another user of the group.
fn as_user(uid: u32, program: &str, arguments: &[&str]) -> Output {
    Command::new("setpriv")
        .arg(format!("--reuid={uid}"))
        .arg(format!("--regid={GROUP}"))
        .args(["--clear-groups", "--", "sh", "-c", "umask 007; exec \"$@\"", "sh", program])
        .args(arguments)
        .current_dir("/")
        .output()
        .unwrap()
}

fn assert_belongs_to_services(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let (of, file) = (entry.metadata().unwrap(), entry.path());
        let file = file.display();
        assert_eq!(of.gid(), GROUP, "{file}");
        assert_ne!(of.uid(), 0, "{file} belongs to root");
        assert_eq!(of.mode() & 0o667, 0o660, "{file} has mode {:o}", of.mode());
    }
}

/// The process that runs as the owner has the table's place from root's, and its backends, too.
#[test]
fn a_backend_that_is_not_configured_is_refused_whoever_runs_the_command() {
    let mut shift = Shift::sqlite();
    let directory = services_directory(&shift);
    shift.url = format!("sqlite:{}", directory.join("ownership.db").display());
    shift.says(&["schema", "apply"]);
    shift.says(&["sql", "INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'old')"]);
    let config = shift.files.path().join("mailshift.toml");
    let of = |name: &str| format!("[backends.{name}.imap]\nhost = \"127.0.0.1\"\n");
    let text = format!("[ownership]\nurl = \"{}\"\n{}{}", shift.url, of("old"), of("new"));
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_mailshift"))
            .env_remove("MAILSHIFT_URL")
            .env("MAILSHIFT_CONFIG", &config)
            .args(arguments)
            .output()
            .unwrap()
    };
    let output = run(&["accounts", "flip", "--to", "attic", "ann@example.org"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("attic is not in the configuration, which has"), "{complaint}");
    let output = run(&["accounts", "flip", "--to", "new", "ann@example.org"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = shift.csv("account,owner\neve@elsewhere.example,attic\n");
    assert!(!run(&["accounts", "import", &file]).status.success());
}

#[test]
fn roots_commands_leave_the_files_to_the_services() {
    let mut shift = Shift::sqlite();
    let directory = services_directory(&shift);
    shift.url = format!("sqlite:{}", directory.join("ownership.db").display());
    shift.says(&["schema", "apply"]);
    assert_belongs_to_services(&directory);
    // A file that only root may read is read all the same.
    let file = shift.csv("account,owner\nann@example.org,old\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let said = shift.says(&["accounts", "import", &file]);
    assert!(said.contains("example.org is in no row of `domains`"), "{said}");
    fs::write(&file, "ann@example.org\n").unwrap();
    for (to, option) in [("new", format!("--file={file}")), ("old", format!("--file {file}"))] {
        let options: Vec<&str> = option.split(' ').collect();
        shift.says(&[&["accounts", "flip", "--to", to][..], &options].concat());
    }

    // While a service has the table open, the -wal and -shm files are there, and stay writable.
    let database = directory.join("ownership.db").display().to_string();
    let mut service = Command::new("setpriv")
        .arg(format!("--reuid={OTHER}"))
        .arg(format!("--regid={GROUP}"))
        .args(["--clear-groups", "--", "sqlite3", &database])
        .current_dir("/")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    shift.says(&["sql", "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'"]);
    assert_belongs_to_services(&directory);
    let flip = "UPDATE accounts SET owner = 'attic' WHERE account = 'ann@example.org'";
    for user in [OTHER, 61_235] {
        let output = as_user(user, "sqlite3", &["-bail", &database, flip]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_belongs_to_services(&directory);
    }
    assert!(shift.says(&["accounts", "show", "ann@example.org"]).contains("owner new → attic"));
    drop(service.stdin.take());
    service.wait().unwrap();
}
