//! `mailshift names`: what the list of accounts lacks.

use tests::postgres::Server;

use super::{Shift, database_of};

fn unknown_names(shift: &Shift, table: &str, run_sql: &dyn Fn(&str)) {
    shift.says(&["schema", "apply"]);
    assert_eq!(shift.says(&["names", "unknown"]), "");
    let row = |node, service, name, outcome, seen, last| {
        run_sql(&format!(
            "INSERT INTO {table} (node, service, name, outcome, seen, first_at, last_at) VALUES \
             ('{node}', '{service}', '{name}', '{outcome}', {seen}, '2030-01-01 00:00:00.000', '{last}')"
        ));
    };
    row("a", "login-proxy", "cat@example.org", "refused", 2, "2030-01-02 00:00:00.000");
    row("b", "mx-gateway", "cat@example.org", "default", 3, "2030-01-03 00:00:00.000");
    row("a", "login-proxy", "eve@example.org", "refused", 9, "2030-01-02 00:00:00.000");
    let said = shift.says(&["names", "unknown"]);
    let listed = "       9  eve@example.org  refused  2030-01-01 00:00:00 to 2030-01-02 00:00:00, login-proxy\n       \
                  5  cat@example.org  default  2030-01-01 00:00:00 to 2030-01-03 00:00:00, login-proxy, \
                  mx-gateway\n";
    let advice = said.strip_prefix(listed);
    assert!(advice.is_some_and(|text| text.contains("mailshift accounts import")), "{said}");
    assert!(!shift.says(&["names", "unknown", "--outcome", "default"]).contains("eve@"));
    assert!(!shift.says(&["names", "unknown", "--limit", "1"]).contains("cat@"));
    assert!(shift.refuses(&["names", "unknown", "--outcome", "x"]).contains("default, refused"));
    let csv = shift.csv("account,owner,aliases\nann@example.org,old,eve@example.org\n");
    shift.says(&["accounts", "import", &csv]);
    assert!(!shift.says(&["names", "unknown"]).contains("eve@"));
}

#[test]
fn names_without_a_row_are_listed_most_seen_first() {
    let sqlite = Shift::sqlite();
    unknown_names(&sqlite, "nodes.unknown_names", &|sql| drop(sqlite.says(&["sql", sql])));
    let (postgres, server) = (Shift::postgres(), Server::shared());
    let database = database_of(&postgres);
    unknown_names(&postgres, "unknown_names", &|sql| drop(server.psql(&database, sql).unwrap()));
}
