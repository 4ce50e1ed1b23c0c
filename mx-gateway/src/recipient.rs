//! Whom a recipient's path leads to: a name and its owner, or the client's answer.

use std::sync::Arc;

use shared::address::Address;
use shared::backend::Backend;
use shared::config::MxKind;
use shared::ownership::{Name, Owner, Refusal};
use shared::smtp::path::ForwardPath;
use shared::smtp::reply::Reply;

use crate::refusal;
use crate::serve::Context;
use crate::transaction::Answer;

/// Local parts that take mail at every domain of ours, account or not (RFC 5321 §4.5.1, RFC 2142).
const ROLES: [&str; 2] = ["postmaster", "abuse"];

/// A recipient whose mail has somewhere to go.
#[derive(Debug)]
pub struct Found {
    /// Its address, as the client named it.
    pub named: Address,
    /// Its address, as its owner gets it: never in a routing domain, which no owner knows.
    pub address: Address,
    /// The name it is looked up by.
    pub name: Name,
    /// Where that is.
    pub place: Place,
}

/// Where a recipient's mail goes.
#[derive(Debug, Clone)]
pub enum Place {
    /// To the account's owner, who this was at that moment: it is read again whenever it counts.
    Owned(Owner),
    /// To nobody now: the account is held.
    Held(Box<str>),
    /// To this backend, whoever it sends it on to: the domain is not ours, and we may relay.
    Via(Arc<Backend>),
}

/// Looks up whom a path leads to.
///
/// A server that forwards to a routing domain while it still owns the account gets the message back and
/// forwards it again. Which backend a client is cannot be told from here (its name, its addresses and those it
/// sends from are three things), so such a loop ends by the limit of Received fields, there or here.
///
/// # Errors
///
/// What the client is answered.
pub fn find(cx: &Context, path: ForwardPath) -> Result<Found, Box<Answer>> {
    let named = match path {
        ForwardPath::Mailbox(named) => named,
        ForwardPath::Postmaster => return find_postmaster(cx),
    };
    let name = Name::of_address(&named);
    let address = at_owner(cx, &named);
    match cx.ownership.look_up(&name) {
        Ok(owner) if has_route_inside(&address) && !has_row(cx, &address) => {
            let reply = refusal::relaying(&named);
            Err(Answer { to: Some(named), owner: Some(owner), reply, why: None }.into())
        }
        Ok(owner) => Ok(Found { named, address, name, place: Place::Owned(owner) }),
        // It has a row, so whatever stands in it is a name.
        Err(Refusal::Held { account }) => {
            Ok(Found { named, address, name, place: Place::Held(account) })
        }
        Err(Refusal::ForeignDomain) if let Some(backend) = outbound(cx) => {
            Ok(Found { named, address, name, place: Place::Via(backend) })
        }
        Err(Refusal::NoSuchAccount) if has_role(&name) => find_postmaster(cx),
        Err(refusal) => {
            cx.ownership.note_refused(&name);
            Err(refused(named, &refusal).into())
        }
    }
}

/// Where mail for domains that are not ours goes, if this client may send any.
fn outbound(cx: &Context) -> Option<Arc<Backend>> {
    match cx.kind {
        MxKind::Smtp | MxKind::Lmtp => None,
        MxKind::Internal => {
            let name = cx.rules.internal.outbound.as_ref()?;
            cx.ownership.backends().get(name).map(Arc::clone)
        }
    }
}

/// The address that its owner knows.
fn at_owner(cx: &Context, named: &Address) -> Address {
    cx.ownership.map().real_address(named).unwrap_or_else(|| named.clone())
}

/// There must be a postmaster: that nobody is one is our fault, not the sender's.
fn find_postmaster(cx: &Context) -> Result<Found, Box<Answer>> {
    let nobody = |to| {
        let reply = Reply::new(451, (3, 5), "No postmaster is configured");
        Err(Answer { to, owner: None, reply, why: None }.into())
    };
    let Some(named) = cx.postmaster() else { return nobody(None) };
    let name = Name::of_address(&named);
    match cx.ownership.look_up(&name) {
        Ok(owner) => {
            Ok(Found { address: at_owner(cx, &named), named, name, place: Place::Owned(owner) })
        }
        Err(Refusal::Held { account }) => {
            Ok(Found { address: at_owner(cx, &named), named, name, place: Place::Held(account) })
        }
        Err(why @ (Refusal::NoSuchAccount | Refusal::ForeignDomain)) => {
            tracing::error!(address = %named, %why, "nobody takes mail to postmaster: set mx.postmaster");
            nobody(Some(named))
        }
        Err(refusal) => Err(refused(named, &refusal).into()),
    }
}

fn refused(to: Address, refusal: &Refusal) -> Answer {
    let (reply, why) = (refusal::by_table(refusal, &to), Some(refusal.to_string()));
    Answer { to: Some(to), owner: None, reply, why }
}

fn has_role(name: &Name) -> bool {
    name.split().is_some_and(|(local, _)| ROLES.contains(&local))
}

/// `user%elsewhere@ours`, `elsewhere!user@ours`, `"user@elsewhere"@ours`: a server that trusts us may still
/// take these for orders to relay. With a row of their own they are names like others.
fn has_route_inside(address: &Address) -> bool {
    address.local().contains(['%', '!', '@'])
}

/// True when exactly this address is an account or an alias. Where it is neither, its domain was asked, too.
fn has_row(cx: &Context, address: &Address) -> bool {
    let domain = format!("@{}", address.domain());
    let answer = cx.ownership.map().resolve(&Name::of_address(address));
    !answer.trail.iter().any(|asked| **asked == *domain)
}
