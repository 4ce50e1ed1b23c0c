//! The trap of every migration (DESIGN §6): a mail system that delivers to mailboxes that it owns no more.
//!
//! Two real Postfixes in front of two Dovecots, all of which know all accounts, so there is a dead mailbox for
//! everybody somewhere. They are told what `config/backends/dovecot-postfix.md` says, and nothing else.

use std::net::SocketAddr;

use tests::dovecot::Dovecot;
use tests::lab::{ACCOUNTS, Lab};
use tests::node::{self, Node};
use tests::patience::until;
use tests::ports;
use tests::postfix::{self, Delivery, Postfix};
use tests::recipe::{self, CYRUS, DOVECOT_POSTFIX};
use tests::smtp::{self, message};
use tests::table::Engine;

use crate::{ANN, BOB, CAT};

/// How a Postfix asks whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Postgres,
    Socketmap,
}

/// Both mail systems with their own Postfixes, and a node between them.
struct Trap {
    lab: Lab,
    old: Postfix,
    new: Postfix,
    node: Node,
}

impl Trap {
    async fn set(by: By) -> Self {
        let lab = Lab::start(Engine::Postgres).await.unwrap();
        if by == By::Postgres {
            lab.table.mailshift(&["schema", "apply", "--roles"]).unwrap();
            for name in ["old", "new"] {
                let role = format!("CREATE ROLE postfix_{name} LOGIN IN ROLE mailshift_backend");
                lab.table.sql(&role).unwrap();
            }
        }
        let internal: [SocketAddr; 2] = ports::reserve().unwrap();
        let old = start(&lab, "old", by, internal).await;
        let new = start(&lab, "new", by, internal).await;
        let mut options = lab.options("node1");
        options.backends =
            node::postfix("old", &old, &lab.old) + &node::postfix("new", &new, &lab.new);
        options.internal = Some(internal);
        let node = Node::start(&options, &lab.ca).await.unwrap();
        Self { lab, old, new, node }
    }

    /// Who owns the account, from now on.
    async fn flip(&self, account: &str, owner: &str) {
        self.lab.table.flip(account, owner).unwrap();
        self.lab.table.settled(account).await.unwrap();
    }

    /// How many messages an account has at old and at new.
    fn inboxes(&self, account: &str) -> (usize, usize) {
        (self.lab.old.inbox(account).len(), self.lab.new.inbox(account).len())
    }

    async fn arrives(&self, account: &str, expected: (usize, usize)) {
        let what = format!("mail to {account}");
        let arrived = until(&what, || (self.inboxes(account) == expected).then_some(()));
        if let Err(error) = arrived.await {
            let gateway = self.node.gateway.as_ref().map(|child| child.end_of_log());
            panic!(
                "{error}: {:?}\nold: {}\nnew: {}\ngateway: {}",
                self.inboxes(account),
                self.old.log(),
                self.new.log(),
                gateway.unwrap_or_default()
            );
        }
    }
}

/// The settings of the recipe, with this place's addresses for the placeholders.
fn told(label: &str, name: &str, internal: [SocketAddr; 2]) -> String {
    let [mail, lookup] = internal;
    recipe::blocks(DOVECOT_POSTFIX, label)
        .unwrap()
        .replace("192.0.2.1:2527:old", &format!("{lookup}:{name}"))
        .replace("[192.0.2.1]:2526", &format!("[{}]:{}", mail.ip(), mail.port()))
        .replace("192.0.2.1", "127.0.0.1")
        .replace("'old'", &format!("'{name}'"))
        .replace("postfix_old", &format!("postfix_{name}"))
}

async fn start(lab: &Lab, name: &str, by: By, internal: [SocketAddr; 2]) -> Postfix {
    let dovecot: &Dovecot = if name == "old" { &lab.old } else { &lab.new };
    let (map, mut files) = match by {
        By::Socketmap => ("main.cf socketmap", Vec::new()),
        By::Postgres => {
            let (socket, database) = lab.table.postgres();
            let map = told("mailshift.cf", name, internal)
                .replace("hosts = 192.0.2.5", &format!("hosts = unix:{}", socket.display()))
                .replace("dbname = mailshift", &format!("dbname = {database}"));
            ("main.cf pgsql", vec![("mailshift.cf".to_owned(), map)])
        }
    };
    let gateways = told("mailshift-gateways.cidr", name, internal);
    files.push(("mailshift-gateways.cidr".to_owned(), gateways));
    let postfix = Postfix::start(postfix::Options {
        recipients: ACCOUNTS.map(str::to_owned).to_vec(),
        delivery: Delivery::Lmtp(dovecot.lmtp()),
        settings: told("main.cf", name, internal) + &told(map, name, internal),
        files,
        ..postfix::Options::default()
    });
    let postfix = postfix.await.unwrap();
    assert_eq!(postfix.complaints().unwrap(), "", "{name}: the recipe");
    postfix
}

/// A user of that mail system sends a message: it takes it, or this fails.
async fn send(from: &str, by: &Postfix, to: &str, subject: &str) {
    let reply = smtp::send(by.smtp(), from, &[to], &message(subject)).await.unwrap();
    assert_eq!(reply.code, 250, "{subject}: {reply}");
}

async fn mail_between_users_goes_where_they_live(by: By) {
    let trap = Trap::set(by).await;
    trap.flip(ANN, "new").await;
    // Bob has not moved. His server has a mailbox of ann's.
    send(BOB, &trap.old, ANN, "to one who has moved").await;
    trap.arrives(ANN, (0, 1)).await;
    // The mirror image: there is a mailbox of bob's at new.
    send(ANN, &trap.new, BOB, "to one who has not moved").await;
    trap.arrives(BOB, (1, 0)).await;
    // What is at home stays there.
    send(BOB, &trap.old, CAT, "next door").await;
    trap.arrives(CAT, (1, 0)).await;
    let file = trap.lab.old.inbox(CAT).pop().unwrap();
    assert!(!std::fs::read_to_string(file).unwrap().contains("Mailshift-Hop: "));
    // The flip is undone, and with it the way.
    trap.flip(ANN, "old").await;
    send(BOB, &trap.old, ANN, "home again").await;
    trap.arrives(ANN, (1, 1)).await;
    send(ANN, &trap.new, ANN, "from where she was").await;
    trap.arrives(ANN, (2, 1)).await;
    assert_eq!(trap.inboxes(BOB), (1, 0));
    trap.node.stop().unwrap();
}

async fn mail_to_a_held_account_arrives_at_its_owner_after_the_hold(by: By) {
    let trap = Trap::set(by).await;
    let token = trap.lab.table.mailshift(&["hold", ANN, "--for", "5m"]).unwrap();
    let token = token.trim_end();
    trap.lab.table.mailshift(&["fence", ANN, "--token", token]).unwrap();
    send(BOB, &trap.old, ANN, "while she moves").await;
    // It has gone to the gateway, whatever that has said, and to no mailbox.
    trap.old.logged(&["to=<ann@example.org>", "relay=127.0.0.1["]).await.unwrap();
    assert_eq!(trap.inboxes(ANN), (0, 0));
    trap.lab.table.mailshift(&["flip", ANN, "new", "--token", token]).unwrap();
    trap.lab.table.settled(ANN).await.unwrap();
    trap.old.flush().unwrap();
    trap.arrives(ANN, (0, 1)).await;
    trap.node.stop().unwrap();
}

/// So what is run of the one recipe is run of the other.
#[test]
fn a_postfix_in_front_of_cyrus_is_told_nothing_else() {
    for label in ["main.cf", "main.cf socketmap"] {
        let told = recipe::blocks(DOVECOT_POSTFIX, label).unwrap();
        for line in recipe::blocks(CYRUS, label).unwrap().lines().filter(|line| !line.is_empty()) {
            assert!(told.lines().any(|known| known == line), "{label}: {line}");
        }
    }
}

#[tokio::test]
async fn mail_between_users_goes_where_they_live_by_postgres() {
    mail_between_users_goes_where_they_live(By::Postgres).await;
}

#[tokio::test]
async fn mail_between_users_goes_where_they_live_by_socketmap() {
    mail_between_users_goes_where_they_live(By::Socketmap).await;
}

#[tokio::test]
async fn mail_to_a_held_account_arrives_at_its_owner_after_the_hold_by_postgres() {
    mail_to_a_held_account_arrives_at_its_owner_after_the_hold(By::Postgres).await;
}

#[tokio::test]
async fn mail_to_a_held_account_arrives_at_its_owner_after_the_hold_by_socketmap() {
    mail_to_a_held_account_arrives_at_its_owner_after_the_hold(By::Socketmap).await;
}

/// A server whose settings are wrong sends everything to the gateway, also what the gateway has brought.
#[tokio::test]
async fn a_postfix_that_sends_everything_back_does_not_send_it_for_ever() {
    let lab = Lab::start(Engine::Sqlite).await.unwrap();
    let internal: [SocketAddr; 2] = ports::reserve().unwrap();
    let [mail, _] = internal;
    let old = Postfix::start(postfix::Options {
        recipients: ACCOUNTS.map(str::to_owned).to_vec(),
        settings: format!("transport_maps = static:smtp:[{}]:{}\n", mail.ip(), mail.port()),
        ..postfix::Options::default()
    });
    let old = old.await.unwrap();
    let mut options = lab.options("node1");
    options.backends = node::postfix("old", &old, &lab.old) + &node::dovecot("new", &lab.new);
    options.internal = Some(internal);
    let node = Node::start(&options, &lab.ca).await.unwrap();
    send(BOB, &old, ANN, "round and round").await;
    // It waits in a queue, where somebody can find it, and the gateway's log has said why.
    old.logged(&["to=<ann@example.org>", "dsn=4.4.6", "status=deferred"]).await.unwrap();
    let gateway = node.gateway.as_ref().unwrap();
    gateway.logged(&["\"ERROR\"", "message loops"]).await.unwrap();
    node.stop().unwrap();
}
