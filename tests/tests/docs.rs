//! Examples in the documentation are what they say.

use std::path::Path;

use shared::config::Config;

/// The fenced blocks of one language in a Markdown file.
fn blocks(file: &str, language: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join(file)).unwrap();
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_readmes_configuration_is_good() {
    let examples = blocks("README.md", "toml");
    assert_eq!(examples.len(), 2);
    for more in ["", &examples[1]] {
        let text = format!("{}\n{more}", examples[0]);
        let config = Config::parse(Path::new("README.md"), &text).unwrap();
        assert_eq!(config.backends.iter().count(), 2);
        assert_eq!((config.mx.listeners.len(), config.login.listeners.len()), (1, 3));
        assert_eq!(config.login.web_listeners.len(), usize::from(!more.is_empty()));
    }
}

/// Every command on a queue that has the messages which they name.
#[test]
fn the_commands_on_the_queue_are_what_can_be_typed() {
    use shared::admin::queue::{Entry, Place as Where, Recipient, State};
    use tests::kept::{Kept, Queued};

    let commands = blocks("docs/operations.md", "sh").remove(0);
    let kept = |place, id: &str| Kept {
        place,
        entry: Entry {
            id: id.to_owned(),
            recipients: vec![Recipient {
                address: "ann@example.org".to_owned(),
                account: Some("ann@example.org".to_owned()),
                owner: Some("old".to_owned()),
                state: State::Waiting,
                since: None,
                error: None,
            }],
            ..Entry::default()
        },
        octets: b"Subject: hello\r\n".to_vec(),
    };
    let queue = Queued::new(vec![
        kept(Where::Queue, "0193a5f0000070008000000000000001"),
        kept(Where::Dead, "0193a5f0000070008000000000000002"),
    ]);
    let place = tests::place::Place::new().unwrap();
    let state = place.path().display();
    let config = place.join("mailshift.toml");
    std::fs::write(
        &config,
        format!("[node]\nstate_dir = \"{state}\"\n[backends.old.mail]\nhost = \"127.0.0.1\"\n"),
    )
    .unwrap();
    let directory = place.join("mx-gateway");
    std::fs::create_dir(&directory).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _in_runtime = runtime.enter();
    queue.serve(&directory, &shared::lifecycle::Lifecycle::default()).unwrap();
    let program = tests::node::binary("mailshift").unwrap();
    let path =
        format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    for command in commands.lines() {
        let run = std::process::Command::new("bash")
            .args(["-o", "pipefail", "-c", command])
            .env("PATH", &path)
            .env("MAILSHIFT_CONFIG", &config)
            .output()
            .unwrap();
        assert!(run.status.success(), "{command}: {}", String::from_utf8_lossy(&run.stderr));
        assert!(!run.stdout.is_empty(), "{command} says nothing");
    }
    assert_eq!(queue.ids(Where::Queue), ["0193a5f0000070008000000000000002"]);
    assert!(queue.ids(Where::Dead).is_empty());
}

#[test]
fn the_readmes_flip_is_one_statement_on_a_real_table() {
    let statements = blocks("README.md", "sql");
    let table = tests::table::Table::create(tests::table::Engine::Sqlite).unwrap();
    table
        .sql(
            "INSERT INTO domains (domain) VALUES ('example.org');
             INSERT INTO accounts (account, owner) VALUES ('ann@example.org', 'old');",
        )
        .unwrap();
    table.sql(&statements[0]).unwrap();
    assert_eq!(table.sql("SELECT owner FROM accounts;").unwrap().trim(), "new");
}
