//! `mailshift queue`, asked of processes that keep their messages in memory behind real sockets.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mx_gateway::admin::Change;
use shared::admin::queue::{Adopted, Entry, Place as Where, Recipient, Selector, State};
use shared::lifecycle::Lifecycle;
use tests::kept::{Kept, Queued};
use tests::place::Place;
use tests::user::User;
use tokio::runtime::Runtime;

const FIRST: &str = "0193a5f0000070008000000000000001";
const SECOND: &str = "0193a5f0000070008000000000000002";
const DEAD: &str = "0193a5f0000070008000000000000003";

/// A state directory, and the runtime of the processes that have a part of it.
struct Host {
    place: Place,
    runtime: Runtime,
    lifecycle: Lifecycle,
}

impl Host {
    fn new() -> Self {
        let place = Place::new().unwrap();
        let state = place.path().display();
        fs::write(
            place.join("mailshift.toml"),
            format!(
                "[node]\nname = \"a\"\nstate_dir = \"{state}\"\n\
                 [backends.old.mail]\nhost = \"127.0.0.1\"\n"
            ),
        )
        .unwrap();
        Self { place, runtime: Runtime::new().unwrap(), lifecycle: Lifecycle::default() }
    }

    fn directory(&self, process: &str) -> PathBuf {
        let directory = self.place.join(process);
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    fn process(&self, name: &str, queue: &Arc<Queued>) {
        let _in_runtime = self.runtime.enter();
        queue.serve(&self.directory(name), &self.lifecycle).unwrap();
    }

    /// One process with two messages and a dead letter.
    fn with_mail() -> (Self, Arc<Queued>) {
        let host = Self::new();
        let queue = Queued::new(vec![first(), second(), dead()]);
        host.process("mx-gateway", &queue);
        (host, queue)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_mailshift"))
            .env("MAILSHIFT_CONFIG", self.place.join("mailshift.toml"))
            .env_remove("MAILSHIFT_URL")
            .env("USER", "tester")
            .env_remove("SUDO_USER")
            .arg("queue")
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
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn ago(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() - seconds
}

fn recipient(account: &str, owner: &str, state: State, error: Option<&str>) -> Recipient {
    Recipient {
        address: account.to_owned(),
        account: Some(account.to_owned()),
        owner: Some(owner.to_owned()),
        state,
        since: Some(ago(3 * 3600 + 90)),
        error: error.map(str::to_owned),
    }
}

fn first() -> Kept {
    let entry = Entry {
        id: FIRST.into(),
        arrived: ago(3 * 3600 + 90),
        size: 12_595,
        sender: "bob@example.com".into(),
        attempts: 3,
        next_attempt: Some(ago(0) + 150),
        recipients: vec![
            recipient("ann@example.org", "old", State::Waiting, Some("451 4.3.0 Try later")),
            recipient("ned@example.org", "new", State::Delivered, None),
        ],
        ..Entry::default()
    };
    Kept { place: Where::Queue, entry, octets: b"Subject: a\r\n\r\n\xff\x00text\r\n".to_vec() }
}

fn second() -> Kept {
    let entry = Entry {
        id: SECOND.into(),
        arrived: ago(30),
        size: 700,
        recipients: vec![recipient("ned@example.org", "new", State::Held, None)],
        ..Entry::default()
    };
    Kept { place: Where::Queue, entry, octets: Vec::new() }
}

fn dead() -> Kept {
    let entry = Entry {
        id: DEAD.into(),
        arrived: ago(6 * 86_400),
        size: 2048,
        sender: "eve@example.net".into(),
        why: Some("expired, and its sender has not proved itself".into()),
        recipients: vec![recipient("ann@example.org", "old", State::Failed, Some("550 5.1.1 No"))],
        ..Entry::default()
    };
    Kept { place: Where::Dead, entry, octets: b"x\r\n".to_vec() }
}

#[test]
fn a_list_says_what_waits_for_whom_where_since_when_and_why() {
    let (host, _queue) = Host::with_mail();
    assert_eq!(
        host.says(&["list"]),
        format!(
            "{FIRST}   12.2 KiB   3h01m  <bob@example.com>  tried 3 times, next try in 2m\n    \
             ann@example.org  waiting at old for 3h01m: 451 4.3.0 Try later\n\
             {SECOND}      700 B     30s  <>  not tried yet\n    \
             ned@example.org  held at new for 3h01m\n\
             -- 2 messages, 12.9 KiB\n"
        )
        .replace("  30s", &host.says(&["list"]).split("700 B   ").nth(1).unwrap()[..5])
    );
    for (filter, messages) in [
        (&["--owner", "old"][..], &[FIRST][..]),
        (&["--account", "NED@example.org"], &[FIRST, SECOND]),
        (&["--sender", ""], &[SECOND]),
        (&["--sender", "<bob@example.com>"], &[FIRST]),
        (&["--state", "held"], &[SECOND]),
        (&["--frozen"], &[]),
        (&["--limit", "1"], &[FIRST]),
    ] {
        let said = host.says(&[&["list", "--json"], filter].concat());
        assert_eq!(said.lines().count(), messages.len(), "{filter:?}: {said}");
        assert!(messages.iter().all(|id| said.contains(id)), "{filter:?}: {said}");
    }
    assert!(host.says(&["list", "--limit", "1"]).contains("there may be more"));
    assert_eq!(host.says(&["list", "--frozen"]), "the queue has no such message\n");
    let said = host.says(&["dead", "list"]);
    assert!(said.contains("6d00h  <eve@example.net>  dead: expired, and"), "{said}");
    assert!(said.contains("ann@example.org  failed at old"), "{said}");
}

#[test]
fn a_message_is_shown_whole_and_its_octets_are_written_as_they_are() {
    let (host, _queue) = Host::with_mail();
    let said = host.says(&["show", FIRST]);
    for line in
        ["sender     <bob@example.com>", "attempts   3", "size       12.2 KiB (12595 octets)"]
    {
        assert!(said.lines().any(|said| said == line), "{said}");
    }
    assert!(said.contains("ned@example.org  delivered at new"), "{said}");
    let json = host.says(&["show", "--json", FIRST]);
    let entry: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(entry["process"], "mx-gateway");
    assert_eq!(entry["recipients"][0]["state"], "waiting");
    assert_eq!(host.run(&["cat", FIRST]).stdout, first().octets);
    assert_eq!(host.run(&["dead", "cat", DEAD]).stdout, dead().octets);
    for nobody in [&["show", DEAD][..], &["cat", "x\u{1b}[2J"], &["dead", "show", FIRST]] {
        let complaint = host.refuses(nobody);
        assert!(complaint.contains("there is no"), "{complaint}");
        assert!(complaint.contains("list` shows them") && !complaint.contains('\u{1b}'));
    }
    let said = host.says(&["summary"]);
    assert!(said.contains("mx-gateway: 2 messages, 12.9 KiB, the oldest of 3h01m ago"), "{said}");
    assert!(said.contains("1 dead letters"), "{said}");
}

/// Far more than any buffer on the way.
#[test]
fn a_large_message_comes_through_as_it_is() {
    let host = Host::new();
    let octets: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
    let message = Kept { octets: octets.clone(), ..first() };
    host.process("mx-gateway", &Queued::new(vec![message]));
    assert!(host.run(&["cat", FIRST]).stdout == octets, "other octets");
}

#[test]
fn messages_are_changed_one_by_one_by_account_by_owner_or_all_and_the_reason_is_kept() {
    let (host, queue) = Host::with_mail();
    let why = ["--why", "spam run"];
    let frozen = host.says(&[&["freeze", FIRST][..], &why].concat());
    assert_eq!(frozen, format!("{FIRST} is frozen\n"));
    assert!(host.says(&["list"]).contains("<bob@example.com>  frozen"));
    assert_eq!(host.says(&["thaw", "--all"]), "2 messages are thawed\n");
    assert_eq!(host.says(&["retry", "--account", "Ann@example.org"]), "1 message is tried now\n");
    let none = "there is no such message: nothing has changed\n";
    assert_eq!(host.says(&["retry", "--owner", "attic"]), none);
    assert_eq!(host.says(&["retry", "--owner", "new", "--json"]), "{\"changed\":1}\n");
    assert_eq!(host.says(&["dead", "release", DEAD]), format!("{DEAD} is back in the queue\n"));
    let all = Selector::All;
    let by = |name: &str| name.to_owned();
    assert_eq!(
        queue.changes(),
        [
            (Change::Freeze, Selector::Id(by(FIRST)), by("spam run")),
            (Change::Thaw, all, String::new()),
            (Change::Retry, Selector::Account(by("ann@example.org")), String::new()),
            (Change::Retry, Selector::Owner(by("attic")), String::new()),
            (Change::Retry, Selector::Owner(by("new")), String::new()),
            (Change::Release, Selector::Id(by(DEAD)), String::new()),
        ]
    );
    for unclear in [&["retry"][..], &["retry", FIRST, "--all"], &["retry", "--owner", "x", "--all"]]
    {
        assert_eq!(host.run(unclear).status.code(), Some(2), "{unclear:?}");
    }
}

#[test]
fn nothing_is_dropped_without_a_yes() {
    let (host, queue) = Host::with_mail();
    for (command, place, id) in
        [(&["drop"][..], Where::Queue, FIRST), (&["dead", "drop"], Where::Dead, DEAD)]
    {
        let command = [command, &[id]].concat();
        assert!(host.refuses(&command).contains("--yes"));
        assert!(queue.ids(place).contains(&id.to_owned()));
        let said = host.says(&[&command[..], &["--yes"]].concat());
        assert_eq!(said, format!("{id} is dropped\n"));
        assert!(!queue.ids(place).contains(&id.to_owned()));
        assert!(host.refuses(&[&command[..], &["--yes"]].concat()).contains("there is no"));
    }
}

#[test]
fn the_processes_of_a_hand_over_are_one_queue() {
    let host = Host::new();
    let (old, new) = (Queued::new(vec![first()]), Queued::new(vec![second(), dead()]));
    host.process("mx-gateway", &old);
    host.process("mx-gateway.3", &new);
    let said = host.says(&["list", "--json"]);
    assert!(said.contains(FIRST) && said.contains(SECOND), "{said}");
    assert!(said.contains("\"process\":\"mx-gateway.3\""), "{said}");
    assert_eq!(host.says(&["list", "--json", "--limit", "1"]).lines().count(), 1);
    assert!(host.says(&["show", SECOND]).contains("process    mx-gateway.3"));
    assert_eq!(host.says(&["freeze", "--all"]), "2 messages are frozen\n");
    assert_eq!(host.says(&["thaw", SECOND]), format!("{SECOND} is thawed\n"));
    assert!(!host.says(&["summary"]).contains("frozen, 1"));
}

#[test]
fn a_spool_is_adopted_by_the_first_process_that_can() {
    let host = Host::new();
    host.process("mx-gateway", &Queued::new(Vec::new()));
    let other = host.directory("elsewhere");
    let adopt = ["adopt", other.to_str().unwrap()];
    let complaint = host.refuses(&adopt);
    assert!(complaint.contains("has handed over"), "{complaint}");
    let all = Adopted { messages: 7, recipients: 9, known: 1, corrupt: 2, ..Adopted::default() };
    host.process("mx-gateway.2", &Queued::that_adopts(all));
    let said = host.says(&adopt);
    assert!(said.starts_with("7 messages of /") && said.contains("adopted, for 9 rec"), "{said}");
    assert!(said.contains("1 were here already") && said.contains("2 files"), "{said}");
    let said = host.says(&[&adopt[..], &["--json"]].concat());
    assert!(said.contains(r#""messages":7"#) && said.contains("mx-gateway.2"), "{said}");
    assert!(host.refuses(&["adopt", "/no/such/place"]).contains("/no/such/place"));
}

#[test]
fn an_adoption_that_left_something_behind_is_no_success() {
    let left = Adopted { messages: 1, recipients: 1, left: 3, ..Adopted::default() };
    let failed = Some("cannot read it".to_owned());
    for (adopted, why) in [
        (left.clone(), "3, which cannot be read"),
        (Adopted { failed, ..left }, "3 (cannot read it)"),
    ] {
        let host = Host::new();
        host.process("mx-gateway", &Queued::that_adopts(adopted));
        let other = host.directory("elsewhere");
        let complaint = host.refuses(&["adopt", other.to_str().unwrap()]);
        assert!(complaint.contains(why) && complaint.contains("once more"), "{complaint}");
    }
}

#[test]
fn a_service_that_does_not_run_is_said_to_be_so() {
    let host = Host::new();
    for process in [None, Some("mx-gateway")] {
        if let Some(process) = process {
            // What a crash leaves.
            let socket = host.directory(process).join("admin.sock");
            drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
        }
        for command in [&["list"][..], &["show", FIRST], &["adopt", "/tmp"]] {
            let complaint = host.refuses(command);
            assert!(complaint.contains("mx-gateway does not run on this host"), "{complaint}");
        }
    }
}

/// The mode keeps them out; if somebody opens that, the process itself does.
#[test]
fn another_user_may_not_ask() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (host, queue) = Host::with_mail();
    // The program's own directory may be closed to that user.
    let program = host.place.join("mailshift");
    fs::copy(env!("CARGO_BIN_EXE_mailshift"), &program).unwrap();
    let socket = host.place.join("mx-gateway/admin.sock");
    let as_another = || {
        let mut words = User { uid: 65_534, gid: 65_534 }.before_command();
        words.push(program.display().to_string());
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(["queue", "drop", "--all", "--yes"])
            .env("MAILSHIFT_CONFIG", host.place.join("mailshift.toml"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    fs::set_permissions(host.place.join("mailshift.toml"), Permissions::from_mode(0o644)).unwrap();
    let complaint = as_another();
    assert!(complaint.contains("do it as root, or as the service's user"), "{complaint}");
    fs::set_permissions(host.place.join("mx-gateway"), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let complaint = as_another();
    assert!(complaint.contains("uid 65534 may not ask"), "{complaint}");
    assert_eq!(queue.changes(), []);
}

#[test]
fn a_process_that_ends_takes_its_socket_along() {
    let (host, _queue) = Host::with_mail();
    let left = host.runtime.block_on(host.lifecycle.shut_down(Duration::from_secs(5)));
    assert_eq!(left, 0);
    assert!(!host.place.join("mx-gateway/admin.sock").exists());
    assert!(host.refuses(&["list"]).contains("does not run"));
}
