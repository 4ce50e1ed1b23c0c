//! Dovecot's XCLIENT of POP3 and ManageSieve: who the client is, as `KEY=value` separated by spaces.
//!
//! Unlike SMTP's, values are not encoded and IPv6 addresses are bare; attributes that a server does not
//! know are ignored there. It is only said to a server that offers it, which it does to trusted peers only.

use super::Client;

/// The attributes of `client`.
pub(super) fn attributes(client: Client<'_>) -> String {
    let attributes = [
        ("ADDR", client.address.ip().to_string()),
        ("PORT", client.address.port().to_string()),
        ("SESSION", client.session.to_owned()),
        ("TTL", client.ttl.to_string()),
        ("CLIENT-TRANSPORT", if client.tls.is_some() { "TLS" } else { "insecure" }.to_owned()),
        ("DESTADDR", client.local.ip().to_string()),
        ("DESTPORT", client.local.port().to_string()),
    ];
    // A trusted proxy need not have told the port, and 0 is none.
    let told = attributes.iter().filter(|(key, value)| !(key.ends_with("PORT") && value == "0"));
    told.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::Told;

    #[test]
    fn the_client_is_named_in_a_line_that_is_taken() {
        let session = "s".repeat(64);
        let client = Client {
            address: "[2001:db8:1111:2222:3333:4444:5555:6666]:47111".parse().unwrap(),
            local: "[2001:db8:1111:2222:3333:4444:5555:7777]:61995".parse().unwrap(),
            session: &session,
            ttl: 5,
            tls: Some("TLSv1.3"),
            authority: None,
            told: &Told::default(),
        };
        let line = attributes(client);
        assert_eq!(
            line,
            format!(
                "ADDR=2001:db8:1111:2222:3333:4444:5555:6666 PORT=47111 SESSION={session} TTL=5 \
                 CLIENT-TRANSPORT=TLS DESTADDR=2001:db8:1111:2222:3333:4444:5555:7777 DESTPORT=61995"
            )
        );
        let nameless = Client { address: "9.9.9.9:0".parse().unwrap(), ..client };
        assert!(attributes(nameless).starts_with("ADDR=9.9.9.9 SESSION="), "0 is no port");
        // Dovecot takes 1024 octets before login, its line end counted.
        assert!(line.len() + 16 <= 1024);
    }
}
