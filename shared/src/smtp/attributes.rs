//! The attributes of XCLIENT and XFORWARD, `NAME=value`, in as many commands as they need.

use std::net::{IpAddr, SocketAddr};

use super::xtext;

/// Longest command in octets with its line end: Postfix takes no more.
pub const MAX_LINE: usize = 512;
/// Longest value in octets, encoded: what does not fit beside the command is left out.
const MAX_VALUE: usize = 255;

/// The commands that say `attributes` in their order, each with its line end; those without a value are left
/// out.
pub(super) fn commands<'a>(
    verb: &str,
    attributes: impl Iterator<Item = (&'a str, Option<String>)>,
) -> Vec<String> {
    let mut commands = Vec::new();
    let mut command = String::new();
    for (name, value) in attributes {
        let Some(value) = value.map(|value| xtext::encode(&value)) else { continue };
        if value.len() > MAX_VALUE {
            continue;
        }
        let attribute = format!(" {name}={value}");
        let octets = command.len().saturating_add(attribute.len()).saturating_add(2);
        if !command.is_empty() && octets > MAX_LINE {
            commands.push(std::mem::take(&mut command) + "\r\n");
        }
        if command.is_empty() {
            command.push_str(verb);
        }
        command.push_str(&attribute);
    }
    if !command.is_empty() {
        commands.push(command + "\r\n");
    }
    commands
}

/// A port that is not known is 0, which Dovecot takes for an error.
pub(super) fn port(address: SocketAddr) -> Option<String> {
    (address.port() != 0).then(|| address.port().to_string())
}

pub(super) fn address(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("IPV6:{v6}"),
    }
}
