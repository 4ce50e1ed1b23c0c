//! Changes put between any two steps of work that enters, and work that enters between any two steps of
//! a change: whatever the order, work either saw the change or is marked by it, and is marked by nothing
//! else (P4, P5).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::map::{AccountRow, AliasRow};
use super::*;
use crate::address::Domain;

/// Names that are asked for. The first four are also names of rows.
const NAMES: [&str; 7] = [
    "ann@example.org",
    "bob@example.org",
    "lee@example.org",
    "*@example.org",
    "ann",
    "ann+x@example.org",
    "eve@example.org",
];

/// One step of the feed; between any two of them anything may happen.
#[derive(Debug, Clone)]
enum Step {
    /// The copy gets the change.
    Apply(Change),
    /// The oldest change that is not marked yet marks what did not see it.
    Mark,
}

#[derive(Debug, Clone)]
enum Act {
    /// Work enters under a name; between its steps that many steps of the feed happen.
    Enter { name: usize, work: Work, between: [u8; 4] },
    /// The nth running work ends.
    Leave(usize),
    /// Steps of the feed.
    Feed(u8),
}

struct Running {
    name: Name,
    account: Box<str>,
    /// `None`: the account was held, and the work waits.
    backend: Option<BackendName>,
    registration: Registration,
}

/// A node, what it does and what it is told.
struct Node {
    ownership: Arc<Ownership>,
    steps: VecDeque<Step>,
    unmarked: VecDeque<(Epoch, Version, Change)>,
    /// Each change in the copy: the version with which it is seen, and its name.
    written: Vec<(Version, Box<str>)>,
    epoch: Epoch,
    running: Vec<Running>,
}

impl Node {
    fn new(pages: &[Vec<Change>]) -> Self {
        let ownership = ownership();
        let mut steps = VecDeque::new();
        for page in pages {
            steps.extend(page.iter().cloned().map(Step::Apply));
            steps.extend(page.iter().map(|_| Step::Mark));
        }
        Self {
            ownership,
            steps,
            unmarked: VecDeque::new(),
            written: Vec::new(),
            epoch: 10,
            running: Vec::new(),
        }
    }

    fn feed(&mut self, steps: u8) {
        for _ in 0..steps {
            match self.steps.pop_front() {
                Some(Step::Apply(change)) => {
                    self.epoch += 1;
                    let version = self.ownership.map.apply([(self.epoch, &change)]);
                    self.written.push((version, change.key()));
                    self.unmarked.push_back((self.epoch, version, change));
                }
                Some(Step::Mark) => {
                    let (epoch, version, change) = self.unmarked.pop_front().unwrap();
                    self.ownership.registry.mark(&change.key(), epoch, version);
                }
                None => return,
            }
        }
    }

    /// What runs against an older row is marked, as soon as no change is half applied.
    fn assert_fenced(&self) -> Result<(), TestCaseError> {
        if !self.unmarked.is_empty() {
            return Ok(());
        }
        for running in &self.running {
            let now = self.ownership.look_up(&running.name);
            let same = match now {
                Ok(now) => {
                    now.account == running.account
                        && Some(&now.backend.name) == running.backend.as_ref()
                }
                Err(Refusal::Held { account }) => {
                    account == running.account && running.backend.is_none()
                }
                Err(_) => false,
            };
            prop_assert!(
                same || running.registration.is_outdated(),
                "{} runs at {:?}",
                running.name,
                running.backend
            );
        }
        Ok(())
    }

    /// What is marked has not seen a change of a name it depends on.
    fn assert_no_mark_too_many(&self) -> Result<(), TestCaseError> {
        for running in self.running.iter().filter(|r| r.registration.is_outdated()) {
            let (names, _, read) = running.registration.seen();
            let unseen =
                |(version, name): &(Version, Box<str>)| *version > read && names.contains(name);
            prop_assert!(self.written.iter().any(unseen), "{} was marked", running.name);
        }
        Ok(())
    }

    /// Exactly the marked work is busy, each under its account.
    fn assert_busy(&self) -> Result<(), TestCaseError> {
        let mut expected: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for running in self.running.iter().filter(|r| r.registration.is_outdated()) {
            let (sessions, deliveries) = expected.entry(&running.account).or_default();
            match running.registration.seen().1 {
                Work::Session => *sessions += 1,
                Work::Delivery => *deliveries += 1,
            }
        }
        let busy = self.ownership.registry.busy();
        let found: BTreeMap<&str, (u32, u32)> =
            busy.iter().map(|b| (&*b.account, (b.sessions, b.deliveries))).collect();
        prop_assert_eq!(found, expected);
        Ok(())
    }
}

/// A node's view with `ann` at old and the domain's default at old, and a lease.
fn ownership() -> Arc<Ownership> {
    let backend = |name| Backend::new(BackendName::parse(name).unwrap());
    let ownership = Ownership::new(["old", "new"].map(backend).into_iter().collect());
    ownership.map.set_default_domain(Some(Domain::parse("example.org").unwrap()));
    ownership
        .apply(&[(1, domain(Some("old"))), (2, account("ann@example.org", Some("old"), false))]);
    ownership.lease.grant(&ownership.lease.request(), Duration::from_hours(1));
    ownership
}

fn account(name: &str, owner: Option<&str>, held: bool) -> Change {
    let row =
        owner.map(|owner| AccountRow { owner: owner.into(), held, login: true, flipped: None });
    Change::Account(name.into(), row)
}

fn domain(default_owner: Option<&str>) -> Change {
    let default_owner = default_owner.map(Into::into);
    let row = DomainRow { default_owner, subaddress_delimiter: "+".into(), ..DomainRow::default() };
    Change::Domain("example.org".into(), Some(row))
}

fn any_owner() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![3 => Just(Some("old")), 3 => Just(Some("new")), 1 => Just(None)]
}

fn any_change() -> impl Strategy<Value = Change> {
    let target = prop_oneof![Just(Some(0)), Just(Some(1)), Just(None)];
    prop_oneof![
        4 => (0_usize..2, any_owner(), any::<bool>()).prop_map(|(n, o, h)| account(NAMES[n], o, h)),
        1 => any_owner().prop_map(|owner| account(NAMES[3], owner, false)),
        2 => target.prop_map(|to: Option<usize>| {
            let row = to.map(|to| AliasRow { account: NAMES[to].into(), login: true });
            Change::Alias(NAMES[2].into(), row)
        }),
        1 => any_owner().prop_map(domain),
    ]
}

fn any_act() -> impl Strategy<Value = Act> {
    let work = prop_oneof![Just(Work::Session), Just(Work::Delivery)];
    prop_oneof![
        3 => (0..NAMES.len(), work, [0_u8..3, 0..3, 0..3, 0..3])
            .prop_map(|(name, work, between)| Act::Enter { name, work, between }),
        1 => (0_usize..8).prop_map(Act::Leave),
        1 => (1_u8..6).prop_map(Act::Feed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn work_sees_a_change_or_is_marked_by_it(
        pages in prop::collection::vec(prop::collection::vec(any_change(), 1..5), 1..6),
        acts in prop::collection::vec(any_act(), 1..30),
    ) {
        let node = RefCell::new(Node::new(&pages));
        let ownership = Arc::clone(&node.borrow().ownership);
        for act in acts {
            match act {
                Act::Enter { name, work, between } => {
                    let name = Name::of_login(NAMES[name].as_bytes()).unwrap();
                    // Each attempt takes the same steps; what the feed has not done by then comes later.
                    let mut between = between.into_iter().cycle();
                    let entered = ownership.enter_stepwise(&name, work, || {
                        node.borrow_mut().feed(between.next().unwrap_or_default());
                    });
                    let running = match entered {
                        Ok(Entered::Owned(Owner { account, backend, .. }, registration)) => {
                            let backend = Some(backend.name.clone());
                            Some(Running { name, account, backend, registration })
                        }
                        Ok(Entered::Held { account, registration }) => {
                            Some(Running { name, account, backend: None, registration })
                        }
                        Err(_) => None,
                    };
                    node.borrow_mut().running.extend(running);
                }
                Act::Leave(nth) => {
                    let mut node = node.borrow_mut();
                    if nth < node.running.len() {
                        node.running.swap_remove(nth);
                    }
                }
                Act::Feed(steps) => node.borrow_mut().feed(steps),
            }
            let node = node.borrow();
            node.assert_fenced()?;
            node.assert_no_mark_too_many()?;
            node.assert_busy()?;
        }
        let mut node = node.into_inner();
        node.feed(u8::MAX);
        node.assert_fenced()?;
        node.running.clear();
        node.assert_busy()?;
        prop_assert_eq!(ownership.registry.counts(), (0, 0));
    }
}

/// The same with real threads: nobody is left at the owner of before.
#[test]
fn work_that_enters_while_the_feed_applies_is_never_left_behind() {
    let ownership = ownership();
    let done = AtomicBool::new(false);
    let left: Vec<(Box<str>, Owner, Registration)> = thread::scope(|scope| {
        let entering: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut running = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        for name in NAMES {
                            let name = Name::of_login(name.as_bytes()).unwrap();
                            if let Ok((owner, registration)) = ownership.enter(&name, Work::Session)
                            {
                                running.push((name.as_str().into(), owner, registration));
                            }
                        }
                        running.retain(|(_, _, registration)| !registration.is_outdated());
                    }
                    running
                })
            })
            .collect();
        for epoch in 10..4_000 {
            let owner = Some(if epoch % 2 == 0 { "new" } else { "old" });
            let change = match epoch % 5 {
                0 => domain(owner),
                1 => account(NAMES[0], None, false),
                _ => account(NAMES[usize::try_from(epoch % 2).unwrap()], owner, false),
            };
            ownership.apply(&[(epoch, change)]);
        }
        done.store(true, Ordering::Relaxed);
        entering.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for (name, owner, registration) in &left {
        let now = ownership.look_up(&Name::of_login(name.as_bytes()).unwrap()).unwrap();
        assert!(now.backend.name == owner.backend.name || registration.is_outdated(), "{name}");
    }
    drop(left);
    assert!(ownership.registry.busy().is_empty());
    assert_eq!(ownership.registry.counts(), (0, 0));
}
