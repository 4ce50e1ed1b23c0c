//! `mailshift node`, the same on both databases.

use super::mover::{LATE, LONG_AGO, Stage, both};

impl Stage {
    /// Beside `a/login-proxy`, which lives: `b`, of which one service does.
    fn another_node(&self) {
        let nodes = self.nodes;
        self.sql(&format!(
            "INSERT INTO {nodes}nodes (node, service, incarnation, version, lease_until, seen_epoch, listen) \
             VALUES ('b', 'mx-gateway', 'i', '1', {LONG_AGO}, 2, (1 = 1)), \
             ('b', 'login-proxy', 'i', '1', {LATE}, 2, (1 = 1))"
        ));
    }
}

#[test]
fn every_service_of_every_node_is_listed_with_its_lease_and_what_runs_there() {
    both(|stage| {
        stage.another_node();
        let nodes = stage.nodes;
        stage.node_has_seen();
        stage.sql(&format!("UPDATE {nodes}nodes SET seen_epoch = 1 WHERE node = 'b'"));
        for account in ["ann@example.org", "bob@example.org"] {
            stage.sql(&format!(
                "INSERT INTO {nodes}busy (node, service, account, epoch, sessions, deliveries) \
                 VALUES ('b', 'login-proxy', '{account}', 1, 2, 1)"
            ));
        }
        assert_eq!(
            stage.shift.says(&["node", "list"]),
            "a/login-proxy  lease until 2999-01-01 00:00:00, seen 3 of 3, listen=no\n\
             b/login-proxy  lease until 2999-01-01 00:00:00, seen 1 of 3, listen=yes, \
             busy: 4 sessions, 2 deliveries, 0 in doubt\n\
             b/mx-gateway   lapsed since 2001-01-01 00:00:00, seen 1 of 3, listen=yes\n"
        );
    });
}

/// Whoever gives a node up is told what goes with it (SPL-11).
#[test]
fn mail_that_a_node_has_left_is_shown_with_what_to_do() {
    both(|stage| {
        let (shift, nodes) = (&stage.shift, stage.nodes);
        stage.another_node();
        stage.sql(&format!("UPDATE {nodes}nodes SET spooled = 1, spool_oldest = {LONG_AGO}"));
        let said = shift.says(&["node", "list"]);
        let spool = "spool: 1 message since 2001-01-01 00:00:00";
        assert_eq!(said.matches(spool).count(), 3, "{said}");
        let left = "b/mx-gateway has left mail that nobody delivers";
        assert!(said.contains(left) && said.contains("mailshift queue adopt"), "{said}");
        assert_eq!(said.matches("has left mail").count(), 1, "those that live deliver it: {said}");
        stage.sql(&format!(
            "UPDATE {nodes}nodes SET stopped_at = {LONG_AGO}, spooled = 12 WHERE service = 'mx-gateway'"
        ));
        let said = shift.says(&["node", "list"]);
        assert!(said.contains("stopped since 2001-01-01 00:00:00, seen"), "{said}");
        assert!(said.contains("spool: 12 messages since"), "{said}");
        let forget = ["node", "forget", "b", "--service", "mx-gateway"];
        let complaint = shift.refuses(&forget);
        assert!(complaint.contains("b/mx-gateway is not forgotten"), "{complaint}");
        assert!(complaint.contains("12 messages are on its disk"), "{complaint}");
        assert!(complaint.contains("queue adopt") && complaint.contains("--anyway"), "{complaint}");
        let forgotten = format!("SELECT count(*) FROM {nodes}nodes WHERE forgotten");
        assert_eq!(stage.sql(&forgotten), "0");
        let said = shift.says(&[&forget[..], &["--anyway"]].concat());
        assert!(said.starts_with(&format!("b/mx-gateway is forgotten\n{left}")), "{said}");
        assert!(shift.says(&["node", "list"]).contains(left), "it stays true");
    });
}

/// It may be cut off, and serve what it knows until its lease ends.
#[test]
fn a_node_is_forgotten_only_when_its_lease_is_over() {
    both(|stage| {
        let shift = &stage.shift;
        stage.another_node();
        let complaint = shift.refuses(&["node", "forget", "b"]);
        assert!(complaint.contains("b/login-proxy is not forgotten"), "{complaint}");
        assert!(complaint.contains("until 2999-01-01 00:00:00 UTC"), "{complaint}");
        assert!(complaint.contains("Stop it"), "{complaint}");
        let forgotten = format!("SELECT count(*) FROM {}nodes WHERE forgotten", stage.nodes);
        assert_eq!(stage.sql(&forgotten), "0", "all of it or nothing");

        let one = ["node", "forget", "b", "--service", "mx-gateway"];
        assert_eq!(shift.says(&one), "b/mx-gateway is forgotten\n");
        assert!(shift.says(&["node", "list"]).contains("b/mx-gateway   forgotten, seen"));
        assert_eq!(shift.says(&one), "b/mx-gateway is forgotten\n", "again");
        assert_eq!(stage.sql(&forgotten), "1");
        stage.node_serves_nothing();
        assert_eq!(
            shift.says(&["node", "forget", "b"]),
            "b/login-proxy is forgotten\nb/mx-gateway is forgotten\n"
        );
        assert_eq!(stage.sql(&forgotten), "2");
        for nobody in
            [&["node", "forget", "c"][..], &["node", "forget", "a", "--service", "mx-gateway"]]
        {
            assert!(shift.refuses(nobody).contains("there is no node"), "{nobody:?}");
        }
    });
}
