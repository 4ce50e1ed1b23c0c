//! What is written in the lines of a spooled message's file, as JSON.
//!
//! The names here are those in files that older versions have written: they never change within a version
//! of the format. Fields that come later have a default.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::address::Address;
use shared::backend::BackendName;
use shared::ownership::Name;
use shared::smtp::path::ReversePath;
use shared::smtp::reply::Reply;

use super::clock;
use super::message::{
    Envelope, Failure, Fate, Progress, Recipient, Record, Route, State, Stored, Tried,
};
use crate::delivery::Introduction;

type Text = Box<str>;

/// The head.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HeadLine {
    id: Text,
    /// Absent for the null sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Text>,
    eight_bit: bool,
    smtputf8: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ret: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    envid: Option<Text>,
    introduction: IntroductionLine,
    arrived: u64,
    may_report: bool,
    content: u64,
    recipients: Vec<RecipientLine>,
    #[serde(default)]
    progress: ProgressLine,
}

#[derive(Debug, Serialize, Deserialize)]
struct IntroductionLine {
    hostname: Text,
    client: SocketAddr,
    local: SocketAddr,
    helo: Text,
    extended: bool,
    #[serde(default)]
    session: Text,
}

/// A recipient.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RecipientLine {
    address: Text,
    name: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notify: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    orcpt: Option<Text>,
    /// Absent: its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    via: Option<Text>,
    state: StateLine,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateLine {
    Waiting,
    InDoubt { owner: Text, since: u64 },
    Delivered,
    Failed { reply: ReplyLine, fate: FateLine, at: u64 },
    Dropped,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FateLine {
    Reported(Text),
    Dead,
    Unwanted,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ReplyLine {
    code: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enhanced: Option<(u16, u16)>,
    text: Text,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct ProgressLine {
    attempts: u32,
    last: Option<(u64, Text)>,
    frozen: bool,
    held: u64,
    delayed: Option<u64>,
    released: Option<u64>,
}

/// What stands behind the content.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SealLine {
    pub crc32c: u32,
}

/// What a record says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Added { place: usize, recipient: RecipientLine },
    Waiting { recipient: usize },
    InDoubt { recipient: usize, owner: Text },
    Delivered { recipient: usize, owner: Text },
    Failed { recipient: usize, reply: ReplyLine, fate: FateLine },
    Dropped { recipient: usize },
    Tried { why: Text },
    Frozen,
    Thawed,
    Held { millis: u64 },
    Delayed { report: Text },
    Released,
}

impl HeadLine {
    pub(super) fn of(stored: &Stored) -> Self {
        let Stored { envelope, recipients, octets, progress } = stored;
        let from = match &envelope.from {
            ReversePath::Null => None,
            ReversePath::Mailbox(mailbox) => Some(mailbox.clone()),
        };
        Self {
            id: envelope.id.clone(),
            from,
            eight_bit: envelope.eight_bit,
            smtputf8: envelope.smtputf8,
            ret: envelope.ret.clone(),
            envid: envelope.envid.clone(),
            introduction: IntroductionLine::of(&envelope.introduction),
            arrived: clock::millis(envelope.arrived),
            may_report: envelope.may_report,
            content: *octets,
            recipients: recipients.iter().map(RecipientLine::of).collect(),
            progress: ProgressLine::of(progress),
        }
    }

    /// The message, or which of its parts makes no sense.
    pub(super) fn restore(self) -> Result<Stored, &'static str> {
        let recipients: Option<Vec<Recipient>> =
            self.recipients.iter().map(RecipientLine::restore).collect();
        let from = self.from.map_or(ReversePath::Null, ReversePath::Mailbox);
        let said = [&self.ret, &self.envid].into_iter().flatten().chain([&self.id]);
        let shown = from.to_string();
        if said.map(|text| &**text).chain([&*shown]).any(has_control) {
            return Err("envelope");
        }
        let envelope = Envelope {
            id: self.id,
            from,
            eight_bit: self.eight_bit,
            smtputf8: self.smtputf8,
            ret: self.ret,
            envid: self.envid,
            introduction: self.introduction.restore(),
            arrived: clock::time(self.arrived),
            may_report: self.may_report,
        };
        let recipients = recipients.ok_or("recipient")?;
        let progress = self.progress.restore();
        Ok(Stored { envelope, recipients, octets: self.content, progress })
    }
}

/// What goes into commands and reports must not be able to end a line there.
fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

fn backend(name: &str) -> Option<BackendName> {
    BackendName::parse(name).ok()
}

impl IntroductionLine {
    fn of(introduction: &Introduction) -> Self {
        let Introduction { hostname, client, local, helo, extended, session } = introduction;
        Self {
            hostname: hostname.clone(),
            client: *client,
            local: *local,
            helo: helo.clone(),
            extended: *extended,
            session: session.clone(),
        }
    }

    fn restore(self) -> Introduction {
        let Self { hostname, client, local, helo, extended, session } = self;
        Introduction { hostname, client, local, helo, extended, session }
    }
}

impl RecipientLine {
    pub(super) fn of(recipient: &Recipient) -> Self {
        let Recipient { address, name, notify, orcpt, route, state } = recipient;
        let via = match route {
            Route::Owner => None,
            Route::Via(backend) => Some(backend.as_str().into()),
        };
        Self {
            address: address.to_string().into(),
            name: name.as_str().into(),
            notify: notify.clone(),
            orcpt: orcpt.clone(),
            via,
            state: StateLine::of(state),
        }
    }

    /// The recipient, unless something in it makes no sense.
    pub(super) fn restore(&self) -> Option<Recipient> {
        let said = [&self.notify, &self.orcpt].into_iter().flatten();
        if said.map(|text| &**text).any(has_control) {
            return None;
        }
        let route = match &self.via {
            Some(via) => Route::Via(backend(via)?),
            None => Route::Owner,
        };
        Some(Recipient {
            address: Address::parse_utf8(&self.address).ok()?,
            name: Name::of_kept(&self.name).ok()?,
            notify: self.notify.clone(),
            orcpt: self.orcpt.clone(),
            route,
            state: self.state.restore()?,
        })
    }
}

impl StateLine {
    fn of(state: &State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::InDoubt { owner, since } => {
                Self::InDoubt { owner: owner.as_str().into(), since: clock::millis(*since) }
            }
            State::Delivered => Self::Delivered,
            State::Failed(failure) => Self::Failed {
                reply: ReplyLine::of(&failure.reply),
                fate: FateLine::of(&failure.fate),
                at: clock::millis(failure.at),
            },
            State::Dropped => Self::Dropped,
        }
    }

    fn restore(&self) -> Option<State> {
        Some(match self {
            Self::Waiting => State::Waiting,
            Self::InDoubt { owner, since } => {
                State::InDoubt { owner: backend(owner)?, since: clock::time(*since) }
            }
            Self::Delivered => State::Delivered,
            Self::Failed { reply, fate, at } => State::Failed(Box::new(Failure {
                reply: reply.restore()?,
                fate: fate.restore(),
                at: clock::time(*at),
            })),
            Self::Dropped => State::Dropped,
        })
    }
}

impl FateLine {
    fn of(fate: &Fate) -> Self {
        match fate {
            Fate::Reported(id) => Self::Reported(id.clone()),
            Fate::Dead => Self::Dead,
            Fate::Unwanted => Self::Unwanted,
        }
    }

    fn restore(&self) -> Fate {
        match self {
            Self::Reported(id) => Fate::Reported(id.clone()),
            Self::Dead => Fate::Dead,
            Self::Unwanted => Fate::Unwanted,
        }
    }
}

impl ReplyLine {
    fn of(reply: &Reply) -> Self {
        let enhanced = reply.enhanced().map(|enhanced| (enhanced.subject, enhanced.detail));
        Self { code: reply.code(), enhanced, text: reply.text().into() }
    }

    fn restore(&self) -> Option<Reply> {
        let text = self.text.clone();
        let sound = (200..600).contains(&self.code) && !has_control(&text);
        sound.then(|| match self.enhanced {
            Some(enhanced) => Reply::new(self.code, enhanced, text),
            None => Reply::bare(self.code, text),
        })
    }
}

impl ProgressLine {
    fn of(progress: &Progress) -> Self {
        let Progress { attempts, last, frozen, held, delayed, released } = progress;
        Self {
            attempts: *attempts,
            last: last.as_ref().map(|tried| (clock::millis(tried.at), tried.why.clone())),
            frozen: *frozen,
            held: clock::span(*held),
            delayed: delayed.map(clock::millis),
            released: released.map(clock::millis),
        }
    }

    fn restore(self) -> Progress {
        let Self { attempts, last, frozen, held, delayed, released } = self;
        Progress {
            attempts,
            last: last.map(|(at, why)| Tried { at: clock::time(at), why }),
            frozen,
            held: Duration::from_millis(held),
            delayed: delayed.map(clock::time),
            released: released.map(clock::time),
        }
    }
}

impl What {
    /// What a record says; `place` is that of a recipient it adds.
    pub(super) fn of(record: &Record, place: usize) -> Self {
        match record {
            Record::Added(recipient) => {
                Self::Added { place, recipient: RecipientLine::of(recipient) }
            }
            Record::Waiting { recipient } => Self::Waiting { recipient: *recipient },
            Record::InDoubt { recipient, owner } => {
                Self::InDoubt { recipient: *recipient, owner: owner.as_str().into() }
            }
            Record::Delivered { recipient, owner } => {
                Self::Delivered { recipient: *recipient, owner: owner.as_str().into() }
            }
            Record::Failed { recipient, reply, fate } => Self::Failed {
                recipient: *recipient,
                reply: ReplyLine::of(reply),
                fate: FateLine::of(fate),
            },
            Record::Dropped { recipient } => Self::Dropped { recipient: *recipient },
            Record::Tried { why } => Self::Tried { why: why.clone() },
            Record::Frozen => Self::Frozen,
            Record::Thawed => Self::Thawed,
            Record::Held(time) => Self::Held { millis: clock::span(*time) },
            Record::Delayed { report } => Self::Delayed { report: report.clone() },
            Record::Released => Self::Released,
        }
    }

    /// The record, unless something in it makes no sense.
    pub(super) fn restore(&self) -> Option<Record> {
        Some(match self {
            Self::Added { recipient, .. } => Record::Added(recipient.restore()?),
            Self::Waiting { recipient } => Record::Waiting { recipient: *recipient },
            Self::InDoubt { recipient, owner } => {
                Record::InDoubt { recipient: *recipient, owner: backend(owner)? }
            }
            Self::Delivered { recipient, owner } => {
                Record::Delivered { recipient: *recipient, owner: backend(owner)? }
            }
            Self::Failed { recipient, reply, fate } => Record::Failed {
                recipient: *recipient,
                reply: reply.restore()?,
                fate: fate.restore(),
            },
            Self::Dropped { recipient } => Record::Dropped { recipient: *recipient },
            Self::Tried { why } => Record::Tried { why: why.clone() },
            Self::Frozen => Record::Frozen,
            Self::Thawed => Record::Thawed,
            Self::Held { millis } => Record::Held(Duration::from_millis(*millis)),
            Self::Delayed { report } => Record::Delayed { report: report.clone() },
            Self::Released => Record::Released,
        })
    }
}
