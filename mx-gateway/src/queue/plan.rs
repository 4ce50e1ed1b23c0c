//! Whom a message that is due can be sent to now: looked up in memory, before anything is read from disk.

use std::time::{Duration, Instant};

use shared::backend::BackendName;
use shared::ownership::Refusal;

use super::gate::{Gate, Pass};
use super::index::{Target, Wait};
use super::{Queue, State};
use crate::serve::Context;

/// Before a message is tried again for which the table had no answer that counts.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(2);

/// One try.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Whom to send to, by place.
    pub(super) places: Vec<usize>,
    /// The backends whose gates were entered; each is left when it is done with.
    pub(super) entered: Vec<BackendName>,
    /// It is too old: nobody is sent to, all fail.
    pub(super) expired: bool,
    /// How much longer it was held than is recorded.
    pub(super) held: Option<Duration>,
    /// What it waits for apart from what this try will find.
    pub(super) wait: Wait,
}

impl Queue {
    /// What to do with a message that was taken out as due. `None`: it can be sent to nobody now, and waits.
    pub(super) fn plan(
        &self,
        state: &mut State,
        cx: &Context,
        id: &str,
        now: Instant,
    ) -> Option<Plan> {
        let slots = state.index.recipients(id).unwrap_or_default().to_vec();
        let (mut plan, mut held) = (Plan::default(), false);
        let mut refused: Vec<BackendName> = Vec::new();
        for (place, slot) in slots.iter().enumerate().filter(|(_, slot)| slot.is_due()) {
            let backend = match &slot.target {
                Target::Via(backend) => backend.clone(),
                Target::Owner(name) => {
                    // Before it is looked up: a change from here on makes it due again.
                    state.index.depends_on(id, cx.ownership.map().resolve(name).trail);
                    match cx.ownership.look_up(name) {
                        Ok(owner) => owner.backend.name.clone(),
                        Err(Refusal::Held { .. }) => {
                            held = true;
                            continue;
                        }
                        Err(
                            Refusal::NoSuchAccount
                            | Refusal::ForeignDomain
                            | Refusal::NoLogin { .. },
                        ) => {
                            // It fails, and that needs no backend.
                            plan.places.push(place);
                            continue;
                        }
                        Err(
                            Refusal::Stale
                            | Refusal::Unsettled
                            | Refusal::UnknownBackend { .. }
                            | Refusal::Ambiguous { .. },
                        ) => {
                            plan.wait.not_before(now.checked_add(UNKNOWN_PAUSE));
                            continue;
                        }
                    }
                }
            };
            match &slot.doubt {
                Some((owner, until)) if *owner == backend && *until > now => {
                    plan.wait.not_before(Some(*until));
                    continue;
                }
                Some(_) | None => {}
            }
            if plan.entered.contains(&backend)
                || self.enter_gate(state, &backend, now, &mut refused)
            {
                if !plan.entered.contains(&backend) {
                    plan.entered.push(backend);
                }
                plan.places.push(place);
            }
        }
        plan.wait.backends = refused;
        // Kept to the millisecond.
        let time = state.index.held(id, held, now).map(|time| time.as_millis());
        plan.held = time
            .and_then(|millis| u64::try_from(millis).ok())
            .map(Duration::from_millis)
            .filter(|time| !time.is_zero());
        plan.expired = !held && state.index.expires(id).is_some_and(|expires| expires <= now);
        if plan.expired {
            plan.places =
                slots.iter().enumerate().filter(|(_, s)| s.is_due()).map(|(p, _)| p).collect();
        }
        if plan.places.is_empty() && plan.held.is_none() {
            state.index.tried(id, plan.wait, now);
            return None;
        }
        Some(plan)
    }

    /// Enters a backend's gate; notes it among the `refused` ones when that is not possible now.
    fn enter_gate(
        &self,
        state: &mut State,
        backend: &BackendName,
        now: Instant,
        refused: &mut Vec<BackendName>,
    ) -> bool {
        if refused.contains(backend) {
            return false;
        }
        let rules = self.rules.load();
        let gate = state.gates.entry(backend.clone());
        match gate.or_insert_with(|| Gate::new(rules.most, rules.pace)).enter(now) {
            Pass::Go => true,
            Pass::At(_) | Pass::Later => {
                refused.push(backend.clone());
                false
            }
        }
    }
}

impl State {
    /// Lets one of those go who wait for a backend that is to be tried again by now. Returns when the next
    /// one is.
    pub(super) fn admit_trials(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for backend in self.index.awaited() {
            match self.gates.get(&backend).map(|gate| gate.opens_at(now)) {
                Some(Some(at)) if at > now => next = Some(next.map_or(at, |next| next.min(at))),
                // Whoever is under way admits the next.
                Some(None) => {}
                Some(Some(_)) | None => self.index.admit(&backend, 1, now),
            }
        }
        next
    }
}
