//! A queue in memory behind a real admin socket, for tests of what asks there.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use mx_gateway::admin::{Change, Queue, open};
use shared::admin::queue::{Adopted, Entry, Filter, Place, Selector, Summary};
use shared::admin::{Answers, Refusal};
use shared::lifecycle::Lifecycle;

/// A message that is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Where.
    pub place: Place,
    /// What is told of it.
    pub entry: Entry,
    /// Its octets.
    pub octets: Vec<u8>,
}

/// Messages in memory, and what was done with them.
#[derive(Debug, Default)]
pub struct Queued {
    messages: Mutex<Vec<Kept>>,
    changes: Mutex<Vec<(Change, Selector, String)>>,
    /// What it adopts, whatever it is told to; `None`: that is refused.
    adopts: Option<Adopted>,
}

impl Queued {
    /// With these messages.
    pub fn new(messages: Vec<Kept>) -> Arc<Self> {
        Arc::new(Self { messages: messages.into(), ..Self::default() })
    }

    /// One that adopts whatever spool it is told to, in which there is this.
    pub fn that_adopts(adopted: Adopted) -> Arc<Self> {
        Arc::new(Self { adopts: Some(adopted), ..Self::default() })
    }

    /// Serves at the admin socket in this directory.
    ///
    /// # Errors
    ///
    /// There can be no socket.
    pub fn serve(self: &Arc<Self>, directory: &Path, lifecycle: &Lifecycle) -> Result<()> {
        Ok(open(directory, lifecycle, Arc::clone(self))?)
    }

    /// What was changed, in which words.
    pub fn changes(&self) -> Vec<(Change, Selector, String)> {
        self.changes.lock().expect("no thread has panicked").clone()
    }

    /// The names of the messages there.
    pub fn ids(&self, place: Place) -> Vec<String> {
        let kept = self.kept(place);
        kept.into_iter().map(|kept| kept.entry.id).collect()
    }

    fn kept(&self, place: Place) -> Vec<Kept> {
        let messages = self.messages.lock().expect("no thread has panicked");
        messages.iter().filter(|kept| kept.place == place).cloned().collect()
    }
}

impl Queue for Queued {
    async fn list(
        &self,
        place: Place,
        filter: &Filter,
        answers: &mut Answers,
    ) -> Result<u64, Refusal> {
        let limit = usize::try_from(filter.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let mut listed = 0;
        let kept = self.kept(place).into_iter();
        for kept in kept.filter(|kept| filter.takes(&kept.entry)).take(limit) {
            answers.entry(kept.entry).await?;
            listed += 1;
        }
        Ok(listed)
    }

    async fn show(&self, place: Place, id: &str) -> Result<Option<Entry>, Refusal> {
        let kept = self.kept(place).into_iter().find(|kept| kept.entry.id == id);
        Ok(kept.map(|kept| kept.entry))
    }

    async fn cat(&self, place: Place, id: &str, answers: &mut Answers) -> Result<bool, Refusal> {
        match self.kept(place).into_iter().find(|kept| kept.entry.id == id) {
            Some(kept) => answers.octets(&kept.octets).await.map(|()| true),
            None => Ok(false),
        }
    }

    async fn summary(&self) -> Result<Summary, Refusal> {
        let queued = self.kept(Place::Queue);
        let count = |is: &dyn Fn(&Entry) -> bool| {
            u64::try_from(queued.iter().filter(|kept| is(&kept.entry)).count()).unwrap_or(u64::MAX)
        };
        Ok(Summary {
            messages: count(&|_| true),
            octets: queued.iter().map(|kept| kept.entry.size).sum(),
            oldest: queued.iter().map(|kept| kept.entry.arrived).min(),
            frozen: count(&|entry| entry.frozen),
            dead: u64::try_from(self.kept(Place::Dead).len()).unwrap_or(u64::MAX),
            ..Summary::default()
        })
    }

    async fn change(&self, change: Change, which: &Selector, why: &str) -> Result<u64, Refusal> {
        let place = match change {
            Change::Drop(place) => place,
            Change::Release => Place::Dead,
            Change::Retry | Change::Freeze | Change::Thaw => Place::Queue,
        };
        let mut messages = self.messages.lock().expect("no thread has panicked");
        let mut changed = 0;
        messages.retain_mut(|kept| {
            if kept.place != place || !which.takes(&kept.entry) {
                return true;
            }
            changed += 1;
            match change {
                Change::Retry => kept.entry.next_attempt = None,
                Change::Freeze => kept.entry.frozen = true,
                Change::Thaw => kept.entry.frozen = false,
                Change::Drop(_) => return false,
                Change::Release => kept.place = Place::Queue,
            }
            true
        });
        let mut changes = self.changes.lock().expect("no thread has panicked");
        changes.push((change, which.clone(), why.to_owned()));
        Ok(changed)
    }

    async fn adopt(self: &Arc<Self>, directory: &Path) -> Result<Adopted, Refusal> {
        self.adopts.clone().ok_or_else(|| Refusal::NotAdopted {
            directory: directory.display().to_string(),
            why: "this process has handed over".to_owned(),
        })
    }
}
