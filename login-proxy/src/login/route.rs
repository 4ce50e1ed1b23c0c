//! From credentials to a granted session: names, registration, owner, backend, comparison (P4).

use std::fmt::Display;
use std::net::SocketAddr;

use shared::backend::LoginProtocol;
use shared::config::NamesConfig;
use shared::credentials::Credentials;
use shared::ownership::{self, Entered, Name, Owner, Ownership, Registration, Work};
use shared::sasl::names_in_token;
use shared::wire::ConnectError;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::hold::{Held, Unserved, WaitRules, Waiting};
use super::{Context, within};
use crate::backend::{AttachError, Attached, Attempt, Reason};
use crate::guess_line::Guessed;
use crate::refusal::Refusal;

/// How often one attempt is routed anew because the account was moved meanwhile.
const MAX_ROUTINGS: u32 = 8;

/// A session that may be joined: its backend said yes and its row still stands.
pub(super) struct Granted {
    pub(super) attached: Attached,
    pub(super) owner: Owner,
    pub(super) place: Place,
    /// Whose session it is: the peer, or whom a trusted front names.
    pub(super) client: SocketAddr,
}

/// The session's place in the registry. Dropping it says that the session has ended.
pub(super) struct Place {
    registration: Registration,
    /// Under the other account that the session may be about: a token's, where it is another than the
    /// client named.
    also: Option<Box<Registration>>,
}

/// What an attempt finds under its names.
enum Found {
    Owner(Box<Owner>, Place),
    Held(Held),
}

/// The names under which an attempt is looked up.
struct Names {
    name: Name,
    /// What its token says, where that is something else.
    token: Option<Name>,
}

/// Why an attempt was not granted.
pub(super) enum Denied {
    Name(ownership::NameError),
    /// Neither the client nor its token names an account.
    Nameless,
    /// The client named an account, and its token one that lives elsewhere (NAM-8).
    Contradiction {
        token: Box<str>,
    },
    Owner(ownership::Refusal),
    /// The account is held, and the attempt waits no longer.
    Held {
        account: Box<str>,
        why: Unserved,
    },
    Backend {
        owner: Box<Owner>,
        why: AttachError,
    },
    /// It came through as many proxies as it may.
    Loop,
    /// The account moved during every routing, or when the client had already answered its former owner.
    Restless,
}

/// A guess of the client's.
#[derive(Clone, Copy)]
pub(super) struct Guess<'a> {
    pub(super) reason: Guessed,
    /// Whose account it was for, where there is one.
    pub(super) owner: Option<&'a Owner>,
    pub(super) why: &'a dyn Display,
}

impl Denied {
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            // No row can have such a name.
            Self::Name(_) | Self::Contradiction { .. } => Refusal::BadCredentials,
            // It will not get better by itself, and the password is not to blame.
            Self::Nameless => Refusal::Misconfigured,
            Self::Owner(refusal) => Refusal::from(refusal),
            Self::Backend { why, .. } => Refusal::from(why),
            Self::Held { .. } | Self::Loop | Self::Restless => Refusal::Unavailable,
        }
    }
}

impl Denied {
    /// The guess that this is: somebody may look for accounts and passwords in this way. Nothing else is one: no
    /// fault of ours, no hold, no stale map, no client that gave up.
    pub(super) fn guess(&self) -> Option<Guess<'_>> {
        match self {
            Self::Backend { owner, why: why @ AttachError::Rejected(_) } => {
                Some(Guess { reason: Guessed::Credentials, owner: Some(owner), why })
            }
            Self::Name(why) => Some(Guess { reason: Guessed::BadName, owner: None, why }),
            Self::Owner(
                why @ (ownership::Refusal::NoSuchAccount
                | ownership::Refusal::ForeignDomain
                | ownership::Refusal::NoLogin { .. }),
            ) => Some(Guess { reason: Guessed::NoAccount, owner: None, why }),
            Self::Owner(
                ownership::Refusal::Stale
                | ownership::Refusal::Held { .. }
                | ownership::Refusal::UnknownBackend { .. }
                | ownership::Refusal::Ambiguous { .. }
                | ownership::Refusal::Unsettled,
            )
            | Self::Backend { .. }
            | Self::Nameless
            | Self::Contradiction { .. }
            | Self::Held { .. }
            | Self::Loop
            | Self::Restless => None,
        }
    }

    /// What the backend said of the credentials, where its configuration lets the client hear it (LOG-16).
    pub(super) fn reason(&self, protocol: LoginProtocol) -> Option<Reason> {
        match self {
            Self::Backend { owner, why: AttachError::Rejected(reason) } => {
                let endpoint = owner.backend.login(protocol)?;
                (!endpoint.hide_auth_errors).then(|| reason.clone())
            }
            _ => None,
        }
    }
}

impl Names {
    fn of(credentials: &Credentials, rules: &NamesConfig) -> Result<Self, Denied> {
        let read = |typed: &[u8]| {
            Name::of_master_login(typed, &rules.master_separators).map_err(Denied::Name)
        };
        let told = credentials.token().and_then(|token| names_in_token(token, &rules.token_claims));
        match (credentials.mailbox(), told) {
            ([], None) if credentials.token().is_some() => Err(Denied::Nameless),
            ([], Some(told)) => Ok(Self { name: read(&told)?, token: None }),
            (typed, told) => {
                let name = read(typed)?;
                // A token may name its user by something that is no login at all.
                let token = told.and_then(|told| read(&told).ok()).filter(|token| *token != name);
                Ok(Self { name, token })
            }
        }
    }

    /// Registers the session, then reads its owner (P4).
    fn enter(&self, ownership: &Ownership) -> Result<Found, Denied> {
        let entered = ownership.enter_held(&self.name, Work::Session).map_err(|refusal| {
            ownership.note_refused(&self.name);
            Denied::Owner(refusal)
        })?;
        let (owner, registration) = match entered {
            Entered::Owned(owner, registration) => (Box::new(owner), registration),
            Entered::Held { account, registration } => {
                return Ok(Found::Held(Held { account, registration }));
            }
        };
        let Some(token) = &self.token else {
            return Ok(Found::Owner(owner, Place { registration, also: None }));
        };
        let also = match ownership.enter_held(token, Work::Session) {
            Ok(Entered::Owned(other, _)) if other.backend.name != owner.backend.name => {
                return Err(Denied::Contradiction { token: token.as_str().into() });
            }
            // Also where both lead to one account now: a name may come to lead elsewhere.
            Ok(Entered::Owned(_, registration)) => Some(Box::new(registration)),
            // What waits for one account is not registered under the other: nobody has to wait for it.
            Ok(Entered::Held { account, registration }) => {
                return Ok(Found::Held(Held { account, registration }));
            }
            // Not an account of ours: the client's word counts.
            Err(
                ownership::Refusal::ForeignDomain
                | ownership::Refusal::NoSuchAccount
                | ownership::Refusal::NoLogin { .. },
            ) => None,
            Err(refusal) => return Err(Denied::Owner(refusal)),
        };
        Ok(Found::Owner(owner, Place { registration, also }))
    }
}

impl Place {
    /// Waits until a change goes over what was read.
    pub(super) async fn outdated(&self) {
        match &self.also {
            None => self.registration.outdated().await,
            Some(also) => tokio::select! {
                () = self.registration.outdated() => {}
                () = also.outdated() => {}
            },
        }
    }

    fn still_stands(&self, ownership: &Ownership) -> bool {
        ownership.still_stands(&self.registration)
            && self.also.as_ref().is_none_or(|also| ownership.still_stands(also))
    }

    /// Cancelled when a change goes over what was read under the account that the client named.
    pub(super) fn token(&self) -> &CancellationToken {
        self.registration.token()
    }

    /// Cancelled when a change goes over what was read under the token's account, where that is another.
    pub(super) fn other_token(&self) -> Option<&CancellationToken> {
        self.also.as_ref().map(|also| also.token())
    }
}

/// Registers, waits out a hold, looks up, logs in at the owner, and compares: until a verdict comes from
/// the owner of then.
pub(super) async fn route(
    cx: &Context,
    mut attempt: Attempt<'_>,
    login_until: Option<Instant>,
) -> Result<Granted, Denied> {
    let names = Names::of(attempt.credentials, &cx.names)?;
    if attempt.client.ttl == 0 {
        return Err(Denied::Loop);
    }
    let rules = WaitRules {
        places: &cx.shared.held,
        limit: cx.rules.hold_wait,
        stop: cx.lifecycle.stop(),
        protocol: cx.protocol.kind.as_str(),
    };
    let mut waiting = Waiting::new(rules, attempt.client.session, login_until);
    let mut routings = 0;
    while routings < MAX_ROUTINGS {
        // What the client has answered fits one backend only.
        if attempt.prompt.was_used() {
            break;
        }
        // Registered before the owner is read: a flip from here on finds this attempt (P4).
        let (owner, place) = match names.enter(&cx.ownership)? {
            Found::Owner(owner, place) => (owner, place),
            Found::Held(held) => {
                let waited = waiting.wait_out(held).await;
                waited.map_err(|(account, why)| Denied::Held { account, why })?;
                // The backend's time begins when there is one to ask.
                attempt.until = within(cx.rules.attach_timeout, login_until);
                continue;
            }
        };
        waiting.leave();
        routings += 1;
        let attached = tokio::select! {
            biased;
            () = place.outdated() => continue,
            attached = timeout_at(attempt.until, log_in(cx, &owner, attempt)) => {
                attached.unwrap_or(Err(AttachError::TimedOut))
            }
        };
        // A yes and a no count only from the owner of now; what came from a former one is closed unjoined.
        if !place.still_stands(&cx.ownership) {
            continue;
        }
        return match attached {
            Ok(attached) => {
                cx.ownership.note_served(&owner);
                Ok(Granted { attached, owner: *owner, place, client: attempt.client.address })
            }
            Err(why) => Err(Denied::Backend { owner, why }),
        };
    }
    Err(Denied::Restless)
}

async fn log_in(
    cx: &Context,
    owner: &Owner,
    attempt: Attempt<'_>,
) -> Result<Attached, AttachError> {
    let protocol = cx.protocol.kind;
    let Some(endpoint) = owner.backend.login(protocol) else {
        let backend = owner.backend.name.as_str().into();
        return Err(AttachError::NoEndpoint { backend, protocol });
    };
    match (cx.protocol.log_in)(endpoint, attempt).await {
        // It has not answered, so it was told nothing of the login. Another address may; if none is up, that
        // is known at once.
        Err(AttachError::Connect(ConnectError::WentDown { .. })) => {
            (cx.protocol.log_in)(endpoint, attempt).await
        }
        answered => answered,
    }
}
