//! Whom a recipient's path leads to: a name and its owner, or the client's answer.

use shared::address::Address;
use shared::ownership::{Name, Owner, Refusal};
use shared::smtp::path::ForwardPath;
use shared::smtp::reply::Reply;

use crate::refusal;
use crate::serve::Context;
use crate::transaction::Answer;

/// Local parts that take mail at every domain of ours, account or not (RFC 5321 §4.5.1, RFC 2142).
const ROLES: [&str; 2] = ["postmaster", "abuse"];

/// A recipient that has an owner.
#[derive(Debug)]
pub struct Found {
    /// Its address, as its owner gets it.
    pub address: Address,
    /// The name it is looked up by.
    pub name: Name,
    /// Its owner at this moment.
    pub owner: Owner,
}

/// Looks up whom a path leads to.
///
/// # Errors
///
/// What the client is answered.
pub fn find(cx: &Context, path: ForwardPath) -> Result<Found, Box<Answer>> {
    let address = match path {
        ForwardPath::Mailbox(address) => address,
        ForwardPath::Postmaster => return find_postmaster(cx),
    };
    let name = Name::of_address(&address);
    match cx.ownership.look_up(&name) {
        Ok(owner) if has_route_inside(&address) && !has_row(cx, &name, &address) => {
            let reply = refusal::relaying(&address);
            Err(Answer { to: Some(address), owner: Some(owner), reply, why: None }.into())
        }
        Ok(owner) => Ok(Found { address, name, owner }),
        Err(Refusal::NoSuchAccount) if has_role(&name) => find_postmaster(cx),
        Err(refusal) => Err(refused(address, &refusal).into()),
    }
}

/// There must be a postmaster: that nobody is one is our fault, not the sender's.
fn find_postmaster(cx: &Context) -> Result<Found, Box<Answer>> {
    let nobody = |to| {
        let reply = Reply::new(451, (3, 5), "No postmaster is configured");
        Err(Answer { to, owner: None, reply, why: None }.into())
    };
    let Some(address) = cx.postmaster() else { return nobody(None) };
    let name = Name::of_address(&address);
    match cx.ownership.look_up(&name) {
        Ok(owner) => Ok(Found { address, name, owner }),
        Err(why @ (Refusal::NoSuchAccount | Refusal::ForeignDomain)) => {
            tracing::error!(%address, %why, "nobody takes mail to postmaster: set mx.postmaster");
            nobody(Some(address))
        }
        Err(refusal) => Err(refused(address, &refusal).into()),
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

/// True when exactly this name is an account or an alias. Where it is neither, its domain was asked, too.
fn has_row(cx: &Context, name: &Name, address: &Address) -> bool {
    let domain = format!("@{}", address.domain());
    !cx.ownership.map().resolve(name).trail.iter().any(|asked| **asked == *domain)
}
