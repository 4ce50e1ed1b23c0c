//! A mover's commands, the same on both databases (OWN-8).

use std::process::Output;

use tests::postgres::Server;

use super::{Shift, database_of};

const ANN: &str = "ann@example.org";
/// Where no lease ends.
pub(super) const LATE: &str = "'2999-01-01 00:00:00.000'";
pub(super) const LONG_AGO: &str = "'2001-01-01 00:00:00.000'";

/// A table where `ann` and `bob` live at `old`, and one node that knows both backends.
pub(super) struct Stage {
    pub(super) shift: Shift,
    /// The table `nodes` and its like, as the shell has them.
    pub(super) nodes: &'static str,
    sql: fn(&Shift, &str) -> String,
}

pub(super) fn both(walk: impl Fn(&Stage)) {
    let stages = [
        Stage {
            shift: Shift::sqlite(),
            nodes: "nodes.",
            sql: |shift, statement| shift.says(&["sql", statement]),
        },
        Stage {
            shift: Shift::postgres(),
            nodes: "",
            sql: |shift, statement| Server::shared().psql(&database_of(shift), statement).unwrap(),
        },
    ];
    for stage in stages {
        stage.shift.says(&["schema", "apply"]);
        for statement in [
            "INSERT INTO domains (domain, default_owner) VALUES ('example.org', 'old')".to_owned(),
            format!("INSERT INTO accounts (account, owner) VALUES ('{ANN}', 'old')"),
            format!("INSERT INTO aliases (alias, account) VALUES ('annie', '{ANN}')"),
            format!(
                "INSERT INTO {}nodes (node, service, incarnation, version, lease_until, backends) \
                 VALUES ('a', 'login-proxy', 'i', '1', {LATE}, '{{\"old\": \"1\", \"new\": \"1\"}}')",
                stage.nodes
            ),
        ] {
            stage.sql(&statement);
        }
        walk(&stage);
    }
}

impl Stage {
    pub(super) fn sql(&self, statement: &str) -> String {
        (self.sql)(&self.shift, statement).trim_end().to_owned()
    }

    pub(super) fn hold(&self, account: &str) -> String {
        let said = self.shift.says(&["hold", account, "--for", "5m"]);
        let token = said.trim_end();
        assert!(token.len() >= 32 && !token.contains(char::is_whitespace), "{said:?}");
        token.to_owned()
    }

    /// The node has read everything.
    pub(super) fn node_has_seen(&self) {
        let nodes = self.nodes;
        self.sql(&format!("UPDATE {nodes}nodes SET seen_epoch = (SELECT epoch FROM clock)"));
    }

    /// Nobody waits for it.
    pub(super) fn node_serves_nothing(&self) {
        self.sql(&format!("UPDATE {}nodes SET lease_until = {LONG_AGO}", self.nodes));
    }

    fn fence(&self, token: &str) -> (Output, String) {
        let output = self.shift.run(&["fence", ANN, "--token", token, "--wait", "0"]);
        let said = String::from_utf8(output.stdout.clone()).unwrap();
        (output, said)
    }

    /// Owner, state, epoch, end of the hold and whether it is fenced.
    fn row(&self) -> String {
        self.sql(&format!(
            "SELECT owner || ' ' || state || ' ' || epoch || ' ' || coalesce(CAST(hold_until AS text), '-') \
             || ' ' || CASE WHEN fenced THEN 'fenced' ELSE 'open' END FROM accounts WHERE account = '{ANN}'"
        ))
    }
}

#[test]
fn a_hold_is_fenced_and_flipped_by_its_token() {
    both(|stage| {
        let Stage { shift, nodes, .. } = stage;
        let token = stage.hold(ANN);
        let flip = ["flip", ANN, "new", "--token", &token];

        // The node has not read it, then something still runs there.
        let (output, said) = stage.fence(&token);
        assert_eq!((output.status.code(), &*said), (Some(75), "a/login-proxy  waiting\n"));
        assert!(shift.refuses(&flip).contains("not fenced"));
        stage.node_has_seen();
        stage.sql(&format!(
            "INSERT INTO {nodes}busy (node, service, account, epoch, sessions) \
             VALUES ('a', 'login-proxy', '{ANN}', 1, 2)"
        ));
        let (output, said) = stage.fence(&token);
        assert_eq!(output.status.code(), Some(75));
        assert_eq!(said, "a/login-proxy  busy: 2 sessions, 0 deliveries, 0 in doubt\n");
        assert!(shift.refuses(&flip).contains("not fenced"));

        stage.sql(&format!("DELETE FROM {nodes}busy"));
        let (output, said) = stage.fence(&token);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(said, "a/login-proxy  seen\nfenced: every live node has applied the hold\n");
        let attic = ["flip", ANN, "attic", "--token", &token];
        assert!(shift.refuses(&attic).contains("not configured on a/login-proxy"));
        assert_eq!(shift.says(&flip), "ann@example.org is at new now\n");
        assert!(shift.refuses(&flip).contains("not held (any more); its owner is new"));

        let shown = shift.says(&["accounts", "show", ANN]);
        assert!(shown.contains("tester (flip): owner old → new, state held → active"), "{shown}");
        assert!(shown.contains("tester (hold): state active → held"), "{shown}");
    });
}

#[test]
fn a_lapsed_and_a_forgotten_node_are_shown_and_not_waited_for() {
    both(|stage| {
        let nodes = stage.nodes;
        stage.sql(&format!(
            "INSERT INTO {nodes}nodes (node, service, incarnation, version, lease_until) \
             VALUES ('b', 'mx-gateway', 'i', '1', {LONG_AGO}), ('c', 'mx-gateway', 'i', '1', {LATE})"
        ));
        let forgotten = "UPDATE {}nodes SET forgotten = (1 = 1) WHERE node = 'c'";
        stage.sql(&forgotten.replace("{}", nodes));
        let token = stage.hold(ANN);
        stage.node_has_seen();
        let (_, said) = stage.fence(&token);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines[..3],
            ["a/login-proxy  seen", "b/mx-gateway   lapsed", "c/mx-gateway   forgotten"]
        );
    });
}

#[test]
fn a_change_of_an_alias_during_the_hold_is_waited_for() {
    both(|stage| {
        let token = stage.hold(ANN);
        stage.node_has_seen();
        stage.sql("DELETE FROM aliases WHERE alias = 'annie'");
        assert_eq!(stage.fence(&token).1, "a/login-proxy  waiting\n");
        stage.node_has_seen();
        assert_eq!(stage.fence(&token).0.status.code(), Some(0));
    });
}

#[test]
fn only_the_holder_has_a_say() {
    both(|stage| {
        let shift = &stage.shift;
        let commands = |token: &str| {
            [vec!["renew", ANN], vec!["release", ANN], vec!["fence", ANN], vec!["flip", ANN, "new"]]
                .map(|mut words| {
                    words.extend(["--token", token]);
                    words.into_iter().map(str::to_owned).collect::<Vec<String>>()
                })
        };
        let refused = |token: &str, because: &str| {
            for words in commands(token) {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let complaint = shift.refuses(&words);
                assert!(complaint.contains(because), "{words:?}: {complaint}");
            }
        };
        refused("nobodys", "not held (any more); its owner is old");
        let token = stage.hold(ANN);
        refused("nobodys", "held, but not under this token");
        assert!(shift.refuses(&["hold", ANN]).contains("held already, until "));
        stage.node_has_seen();
        assert_eq!(stage.fence(&token).0.status.code(), Some(0));
        assert_eq!(
            shift.says(&["release", ANN, "--token", &token]),
            "ann@example.org is served again\n"
        );
        refused(&token, "not held (any more); its owner is old");
        // A new hold wants a new fence, and the old token opens nothing.
        let next = stage.hold(ANN);
        refused(&token, "held, but not under this token");
        assert!(shift.refuses(&["flip", ANN, "new", "--token", &next]).contains("not fenced"));
        // By hand: no token opens it.
        shift.says(&["release", ANN, "--token", &next]);
        stage.sql(&format!("UPDATE accounts SET state = 'held' WHERE account = '{ANN}'"));
        refused(&next, "held, but not under this token");
        assert!(shift.refuses(&["hold", ANN]).contains("held already, without end"));
    });
}

#[test]
fn a_renewal_touches_the_lease_and_nothing_else() {
    both(|stage| {
        let token = stage.hold(ANN);
        stage.node_has_seen();
        assert_eq!(stage.fence(&token).0.status.code(), Some(0));
        let without_end = |row: &str| {
            let words: Vec<String> = row.split(' ').map(str::to_owned).collect();
            [&words[..3], &words[words.len() - 1..]].concat()
        };
        let changes = "SELECT count(*) FROM changes";
        let (before, count) = (stage.row(), stage.sql(changes));
        let said = stage.shift.says(&["renew", ANN, "--token", &token, "--for", "50m"]);
        assert!(said.starts_with("held until 20"), "{said}");
        let after = stage.row();
        assert_ne!(before, after, "its end");
        assert_eq!(without_end(&before), without_end(&after));
        assert!(after.ends_with("fenced") && stage.sql(changes) == count);
    });
}

#[test]
fn a_hold_whose_lease_is_over_ends_with_its_owner() {
    both(|stage| {
        let shift = &stage.shift;
        let token = stage.hold(ANN);
        stage.node_has_seen();
        assert_eq!(stage.fence(&token).0.status.code(), Some(0));
        let over = format!("UPDATE accounts SET hold_until = {LONG_AGO} WHERE account = '{ANN}'");
        stage.sql(&over);
        // Only a committed change ends it: until then its holder may renew.
        shift.says(&["renew", ANN, "--token", &token]);
        assert_eq!(shift.says(&["expire-holds"]), "ended 0 holds\n");
        stage.sql(&over);
        assert_eq!(shift.says(&["expire-holds"]), "ended 1 holds\n");
        let complaint = shift.refuses(&["flip", ANN, "new", "--token", &token]);
        assert!(complaint.contains("not held (any more); its owner is old"), "{complaint}");
        assert!(shift.says(&["accounts", "show", ANN]).contains("tester (expire_holds)"));
        stage.sql(&format!("UPDATE accounts SET state = 'held' WHERE account = '{ANN}'"));
        assert_eq!(shift.says(&["expire-holds"]), "ended 0 holds\n", "it has no lease");
    });
}

#[test]
fn a_held_account_keeps_its_owner_and_the_refusal_says_what_to_do() {
    both(|stage| {
        let token = stage.hold(ANN);
        let complaint = stage.shift.refuses(&["accounts", "flip", "--to", "new", ANN]);
        assert!(complaint.contains("held, so the owner cannot change"), "{complaint}");
        // Ended deliberately, by hand: the holder's flip fails then.
        stage.node_has_seen();
        assert_eq!(stage.fence(&token).0.status.code(), Some(0));
        stage.sql(&format!(
            "UPDATE accounts SET owner = 'new', state = 'active' WHERE account = '{ANN}'"
        ));
        let complaint = stage.shift.refuses(&["flip", ANN, "old", "--token", &token]);
        assert!(complaint.contains("not held (any more); its owner is new"), "{complaint}");
    });
}

#[test]
fn names_and_leases_are_checked() {
    both(|stage| {
        let shift = &stage.shift;
        let complaint = shift.refuses(&["hold", "annie"]);
        assert!(complaint.contains("annie is an alias of ann@example.org"), "{complaint}");
        for (name, because) in [
            ("eve@elsewhere.example", "no account eve@elsewhere.example"),
            ("a b@exa mple", "no account name"),
        ] {
            assert!(shift.refuses(&["hold", name]).contains(because), "{name}");
        }
        for lease in ["0", "61m", "2h"] {
            let complaint = shift.refuses(&["hold", ANN, "--for", lease]);
            assert!(complaint.contains("longer than 0 and at most 1 hour"), "{lease}: {complaint}");
        }
        assert!(shift.refuses(&["hold", ANN, "--for", "soon"]).contains("--for"));
        // Without a row it lives at its domain's default owner, and gets its row there.
        let token = stage.hold("Zoe@Example.org");
        let shown = shift.says(&["accounts", "show", "zoe@example.org"]);
        assert!(shown.starts_with("zoe@example.org  old  held until "), "{shown}");
        shift.says(&["release", "zoe@example.org", "--token", &token]);
    });
}

/// It sees no other mover's token, and needs none of an operator's rights.
#[test]
fn a_movers_role_is_enough_for_a_mover() {
    let mut shift = Shift::postgres();
    let database = database_of(&shift);
    shift.says(&["schema", "apply", "--roles"]);
    let row = format!("INSERT INTO accounts (account, owner) VALUES ('{ANN}', 'old')");
    Server::shared().psql(&database, &row).unwrap();
    let more = if shift.url.contains('?') { '&' } else { '?' };
    shift.url = format!("{}{more}options[role]=mailshift_mover", shift.url);
    for owner in ["new", "old"] {
        let token = shift.says(&["hold", ANN]);
        let token = token.trim_end();
        shift.says(&["renew", ANN, "--token", token]);
        shift.says(&["fence", ANN, "--token", token]);
        shift.says(&["flip", ANN, owner, "--token", token]);
    }
    let complaint = shift.refuses(&["accounts", "flip", "--to", "new", ANN]);
    assert!(complaint.contains("permission denied"), "{complaint}");
}
