//! Rows that commands make for names that had none, the same on both databases (OWN-17).

use super::mover::{Stage, both};

const ANN: &str = "ann@example.org";

impl Stage {
    /// Neither a hold nor a flip makes a row for it; both say why.
    fn gets_no_row(&self, name: &str, because: &str) {
        for command in [&["hold", name][..], &["accounts", "flip", "--to", "old", name]] {
            let complaint = self.shift.refuses(command);
            assert!(complaint.contains(because), "{command:?}: {complaint}");
        }
        let rows = format!("SELECT count(*) FROM accounts WHERE account = '{name}'");
        assert_eq!(self.sql(&rows), "0", "{name}");
    }

    /// A hold makes a row for it, and then ends.
    fn gets_a_row(&self, name: &str, owner: &str) {
        let token = self.hold(name);
        self.shift.says(&["release", name, "--token", &token]);
        let row = format!("SELECT owner || ' ' || state FROM accounts WHERE account = '{name}'");
        assert_eq!(self.sql(&row), format!("{owner} active"), "{name}");
    }
}

/// At its domain's default owner it would leave the mailbox that its mail goes to.
#[test]
fn a_sub_address_gets_no_row_by_a_hold_or_a_flip() {
    both(|stage| {
        stage.sql("INSERT INTO accounts (account, owner) VALUES ('u130@example.org', 'new')");
        let mailbox = "u130+lists@example.org is a sub-address of u130@example.org";
        stage.gets_no_row("u130+lists@example.org", mailbox);
        stage.gets_no_row("u130+a+b@example.org", "sub-address of u130@example.org");
        // Its mailbox may come to have a row, too.
        stage.gets_no_row("zoe+lists@example.org", "sub-address of zoe@example.org");
        // With a row of its own it is an account like any other.
        stage.sql("INSERT INTO accounts (account, owner) VALUES ('u130+own@example.org', 'old')");
        stage.gets_a_row("u130+own@example.org", "old");
        // Nothing before the delimiter, or no such delimiter here: no sub-address.
        stage.gets_a_row("+zoe@example.org", "old");
        stage.sql("UPDATE domains SET subaddress_delimiter = '-'");
        stage.gets_no_row("u130-lists@example.org", "sub-address of u130@example.org");
        stage.gets_a_row("u131+lists@example.org", "old");
        stage.sql("UPDATE domains SET subaddress_delimiter = ''");
        stage.gets_a_row("u131-lists@example.org", "old");
    });
}

#[test]
fn under_a_catch_all_a_name_gets_a_row_only_where_its_mail_and_its_logins_go() {
    both(|stage| {
        let catch_all = |change: &str| {
            stage.sql(&format!("UPDATE accounts SET {change} WHERE account = '*@catch.example'"));
        };
        stage.sql("INSERT INTO domains (domain, default_owner) VALUES ('catch.example', 'old')");
        stage.sql("INSERT INTO accounts (account, owner) VALUES ('*@catch.example', 'new')");
        stage.gets_no_row("eve@catch.example", "by the catch-all *@catch.example (new)");
        catch_all("owner = 'old', state = 'held'");
        stage.gets_no_row("eve@catch.example", "held");
        catch_all("state = 'active'");
        stage.gets_a_row("eve@catch.example", "old");
        // The catch-all may be an alias; and logins may go nowhere.
        stage.sql("DELETE FROM accounts WHERE account = '*@catch.example'");
        stage.sql(&format!(
            "INSERT INTO aliases (alias, account) VALUES ('*@catch.example', '{ANN}')"
        ));
        stage.gets_a_row("joe@catch.example", "old");
        stage.sql(&format!("UPDATE accounts SET owner = 'new' WHERE account = '{ANN}'"));
        stage.gets_no_row("zoe@catch.example", "by the catch-all *@catch.example (new)");
        stage.sql("UPDATE domains SET default_owner = NULL WHERE domain = 'catch.example'");
        stage.gets_no_row("zoe@catch.example", "(none)");
        stage.gets_no_row("*@elsewhere.example", "no account");
    });
}

/// So that a name which was not meant does not become an account unseen.
#[test]
fn a_row_that_a_command_makes_is_told() {
    both(|stage| {
        let told = |name: &str| {
            format!("{name} had no row: it lived at its domain's default owner, old\n")
        };
        let output = stage.shift.run(&["hold", "zoe@example.org"]);
        assert_eq!(String::from_utf8(output.stderr).unwrap(), told("zoe@example.org"));
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 1, "the token alone");
        assert_eq!(stage.shift.run(&["hold", ANN]).stderr, b"");

        stage.node_serves_nothing();
        let flip = ["accounts", "flip", "--to", "new", ANN, "joe@example.org"];
        stage.sql(&format!("UPDATE accounts SET state = 'active' WHERE account = '{ANN}'"));
        assert_eq!(
            stage.shift.says(&flip),
            format!(
                "{}ann@example.org is at new now\njoe@example.org is at new now\n\
                 settled on every live node\n",
                told("joe@example.org")
            )
        );
        let waves = ["accounts", "flip", "--to", "new", "--per-second", "9", "eve@example.org"];
        assert!(stage.shift.says(&waves).starts_with(&told("eve@example.org")));
    });
}

/// A slip makes no account to which no mail could come.
#[test]
fn what_can_be_no_address_is_no_account() {
    both(|stage| {
        for name in [
            "joe@example.org,eve@example.org",
            "joe,eve@example.org",
            "joe eve@example.org",
            "<joe@example.org",
            "joe@eve@example.org",
            "joe;@example.org",
        ] {
            stage.gets_no_row(name, "accounts are separated by spaces");
            let file = stage.shift.csv(&format!("account,owner\n\"{name}\",old\n"));
            let complaint = stage.shift.refuses(&["accounts", "import", &file]);
            assert!(complaint.contains("unquoted"), "{complaint}");
        }
        stage.hold("\"joe,eve\"@example.org");
        assert!(
            stage.shift.says(&["accounts", "list", "--held"]).contains("joe,eve@example.org  old")
        );
        let names = "account,owner,aliases\nj\u{f6}rg@example.org,old,j\u{f6}rg EXAMPLE\\jorg\n";
        let file = stage.shift.csv(names);
        assert!(
            stage.shift.says(&["accounts", "import", &file]).starts_with("added 1 accounts and 2")
        );
    });
}
