//! Who may do what, and that a dump restores.

use shared::ownership::schema;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor};
use tests::postgres::Server;

use super::{ROLES, fence, flip, hold, parts, refused, run, table, text};

#[tokio::test]
async fn each_role_may_do_its_own_work_and_no_other() {
    let (_database, pool) = table().await;
    for _ in 0..2 {
        let mut connection = pool.acquire().await.unwrap();
        connection.execute(ROLES).await.unwrap();
    }
    let operator = [
        "UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org'",
        "INSERT INTO accounts (account, owner) VALUES ('eve@example.org', 'old')",
        "DELETE FROM accounts WHERE account = 'eve@example.org'",
        "INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org')",
        "UPDATE domains SET default_owner = 'new' WHERE domain = 'strict.example'",
        "SELECT FROM nodes FOR UPDATE",
        "UPDATE nodes SET forgotten = true",
        "SELECT * FROM reversible_accounts",
        "SELECT * FROM unknown_names_seen",
        "DELETE FROM unknown_names",
    ];
    let mover = ["SELECT release('bob@example.org', hold('bob@example.org', '1 s'))"];
    let service = [
        "INSERT INTO nodes (node, service, incarnation, version, lease_until) \
         VALUES ('a', 'mx-gateway', 'i', '1', clock_timestamp())",
        "INSERT INTO unknown_names (node, service, name, outcome) \
         VALUES ('a', 'mx-gateway', 'eve@example.org', 'refused')",
        "SELECT expire_holds()",
        "SELECT * FROM accounts, aliases, domains, changes, clock",
        "DELETE FROM nodes",
    ];
    let backend =
        ["SELECT * FROM foreign_addresses('old')", "SELECT is_foreign('old', 'ann@example.org')"];
    let nobody = [
        "UPDATE accounts SET epoch = 1",
        "UPDATE accounts SET fenced = true",
        "UPDATE accounts SET account = 'x'",
        "UPDATE clock SET epoch = 999",
        "INSERT INTO changes (epoch, kind, name, op, nonce, at, by) \
         VALUES (1, 'account', 'x', 'insert', 1, now(), 'x')",
        "DELETE FROM changes",
        "CREATE TABLE mine ()",
    ];
    let all: [(&str, &[&str]); 4] = [
        ("mailshift_operator", &operator),
        ("mailshift_mover", &mover),
        ("mailshift_service", &service),
        ("mailshift_backend", &backend),
    ];
    for (role, own) in all {
        for sql in own {
            run(&pool, &format!("BEGIN; SET LOCAL ROLE {role}; {sql}; COMMIT")).await;
        }
        let others = all.iter().filter(|(other, _)| *other != role);
        let foreign = others
            // An operator may do a mover's and a backend's work, too.
            .filter(|(other, _)| role != "mailshift_operator" || *other == "mailshift_service")
            .flat_map(|(_, sql)| *sql)
            .filter(|sql| {
                sql.starts_with("UPDATE") || sql.starts_with("INSERT") || sql.contains("hold(")
            })
            .filter(|sql| role != "mailshift_service" || !sql.contains(" nodes"))
            .filter(|sql| role != "mailshift_operator" || !sql.contains("expire_holds"));
        for sql in nobody.iter().chain(foreign) {
            let mut connection = pool.acquire().await.unwrap();
            let error = connection
                .execute(AssertSqlSafe(format!("BEGIN; SET LOCAL ROLE {role}; {sql}")))
                .await
                .expect_err(sql);
            assert_eq!(parts(&error).0, "42501", "{role}: {sql}: {error}");
            connection.execute("ROLLBACK").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_dump_restores_and_works() {
    let (database, pool) = table().await;
    run(&pool, "INSERT INTO aliases (alias, account) VALUES ('annie', 'ann@example.org')").await;
    let server = Server::shared();
    let copy = server.create_database().unwrap();
    let dump = server.dump(&database.name).unwrap();
    server.psql(&copy.name, &dump).unwrap();
    let restored = PgPoolOptions::new().connect(&copy.url).await.unwrap();
    let rows = "SELECT string_agg(concat_ws(' ', epoch, nonce, name), ',' ORDER BY epoch, name) \
                FROM changes";
    assert_eq!(text(&pool, rows).await, text(&restored, rows).await);
    run(&restored, "UPDATE public.accounts SET owner = 'new' WHERE account = 'ann@example.org'")
        .await;
    hold(&restored, "ann@example.org").await;
    assert_ne!(
        refused(&restored, "TRUNCATE public.accounts CASCADE").await.0,
        "",
        "the guards are there"
    );
}

/// Whose the database is can install the table, and needs no superuser for anything.
#[tokio::test]
async fn a_role_without_superuser_installs_the_table_and_its_functions_work() {
    let server = Server::shared();
    let database = server.create_database().unwrap();
    let name = &database.name;
    let own = format!(
        "CREATE ROLE owner_{name} LOGIN CREATEROLE; ALTER DATABASE {name} OWNER TO owner_{name}; \
         CREATE ROLE login_{name} LOGIN"
    );
    server.psql("postgres", &own).unwrap();
    let connect = |user: &str| {
        let url = database.url.replacen("postgres@", &format!("{user}_{name}@"), 1);
        async move { PgPoolOptions::new().connect(&url).await.unwrap() }
    };
    let pool = connect("owner").await;
    schema::POSTGRES.run(&pool).await.unwrap();
    pool.acquire().await.unwrap().execute(ROLES).await.unwrap();
    // Another one's database may have made the roles, so they are not this owner's to grant.
    let grant = format!("GRANT mailshift_mover, mailshift_service TO login_{name}");
    server.psql("postgres", &grant).unwrap();
    run(&pool, "INSERT INTO domains (domain, default_owner) VALUES ('example.org', 'old')").await;
    for pool in [&pool, &connect("login").await] {
        let ann = "ann@example.org";
        let token = hold(pool, ann).await;
        run(pool, &format!("SELECT renew('{ann}', '{token}', '1 s')")).await;
        fence(pool, ann, &token).await.unwrap();
        flip(pool, ann, "new", &token).await.unwrap();
        let next = hold(pool, ann).await;
        run(pool, &format!("SELECT release('{ann}', '{next}'), expire_holds()")).await;
        let by = text(
            pool,
            "SELECT string_agg(via, ' ' ORDER BY epoch) FROM changes WHERE name = 'ann@example.org'",
        );
        assert!(by.await.ends_with("hold flip hold release"));
    }
}
