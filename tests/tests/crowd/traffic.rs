//! Logins without a pause, of anybody, by any protocol, at any node; each is judged by the ledger.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tests::patience::until;
use tests::session::{Login, Protocol, Session};
use tokio::task::JoinSet;

use crate::town::{NODES, Streets};

/// Logins that go on until they are stopped.
pub struct Traffic {
    go_on: Arc<AtomicBool>,
    seen: Arc<Seen>,
    tasks: JoinSet<()>,
}

/// What the logins have come to.
#[derive(Debug, Default)]
pub struct Seen {
    /// Joined where they belong.
    joined: AtomicUsize,
    /// Refused for now.
    refused: AtomicUsize,
    /// What must not happen, in words.
    faults: Mutex<Vec<String>>,
}

impl Traffic {
    /// That many people who log in again and again.
    pub fn start(streets: &Arc<Streets>, people: usize) -> Self {
        let (go_on, seen) = (Arc::new(AtomicBool::new(true)), Arc::new(Seen::default()));
        let mut tasks = JoinSet::new();
        for _ in 0..people {
            let (streets, go_on, seen) =
                (Arc::clone(streets), Arc::clone(&go_on), Arc::clone(&seen));
            tasks.spawn(async move {
                while go_on.load(Ordering::Relaxed) {
                    seen.log_in(&streets).await;
                }
            });
        }
        Self { go_on, seen, tasks }
    }

    /// Waits until so many more logins were joined.
    pub async fn more(&self, logins: usize) {
        let from = self.seen.joined.load(Ordering::Relaxed);
        until("logins to go on", || {
            (self.seen.joined.load(Ordering::Relaxed) >= from + logins).then_some(())
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", self.seen));
    }

    /// Ends it: nothing may have happened that must not. Returns how many were refused for now.
    pub async fn stop(mut self) -> usize {
        self.go_on.store(false, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        let faults = self.seen.faults.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
        let refused = self.seen.refused.load(Ordering::Relaxed);
        println!("{} logins joined, {refused} refused", self.seen.joined.load(Ordering::Relaxed));
        refused
    }
}

impl Seen {
    async fn log_in(&self, streets: &Streets) {
        let account = fastrand::choice(&streets.accounts).map(String::as_str).unwrap_or_default();
        let protocol = fastrand::choice(Protocol::ALL).unwrap_or(Protocol::Imap);
        let node = fastrand::usize(..NODES.len());
        let began = Instant::now();
        let excused = || streets.ledger.is_disturbed(NODES[node], began);
        let fault = |what: String| {
            let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            faults.push(format!("{account} by {protocol:?} at {}: {what}", NODES[node]));
        };
        let login = Session::log_in(protocol, streets.address(node, protocol), account).await;
        match login {
            Ok(Login::Joined(mut session)) => match session.server().await {
                Ok(server) if streets.ledger.may_be_at(account, &server, began) => {
                    self.joined.fetch_add(1, Ordering::Relaxed);
                }
                Ok(server) => fault(format!("joined to {server}")),
                // Ended by a change, before it could say where it was.
                Err(_) if streets.ledger.is_disturbed(account, began) || excused() => {}
                Err(error) => fault(format!("the session ended: {error:#}")),
            },
            Ok(Login::Refused(words)) if protocol.is_temporary(&words) && excused() => {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Login::Refused(words)) => fault(format!("refused: {words}")),
            Err(_) if excused() => {}
            Err(error) => fault(format!("the login broke: {error:#}")),
        }
    }
}
