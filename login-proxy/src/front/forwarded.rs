//! What a trusted proxy or webmail in front of us says of its client (FWD-4): Dovecot's words of IMAP ID
//! and of XCLIENT. Whom to believe is configured; who is not believed is not even listened to.

use shared::smtp::xclient;

use super::Forwarded;

/// Longest name of a session, in octets (Dovecot's limit).
const MAX_SESSION: usize = 64;

/// Reads the pairs of an IMAP ID command; `None` when it names no client.
pub(super) fn of_id(pairs: &[(Vec<u8>, Vec<u8>)]) -> Option<Forwarded> {
    let mut said = Forwarded::default();
    for (key, value) in pairs {
        let (Ok(key), Ok(value)) = (std::str::from_utf8(key), std::str::from_utf8(value)) else {
            continue;
        };
        let word = match key.to_ascii_lowercase().as_str() {
            "x-originating-ip" => "ADDR",
            "x-originating-port" => "PORT",
            "x-connected-ip" => "DESTADDR",
            "x-connected-port" => "DESTPORT",
            "x-session-id" | "x-session-ext-id" => "SESSION",
            "x-proxy-ttl" => "TTL",
            _ => continue,
        };
        said.take(word, value);
    }
    said.client_ip.is_some().then_some(said)
}

/// Reads the attributes of an XCLIENT command, `KEY=value` separated by spaces; `None` when they name no
/// client.
pub(super) fn of_xclient(attributes: &[u8]) -> Option<Forwarded> {
    let mut said = Forwarded::default();
    for attribute in std::str::from_utf8(attributes).ok()?.split_ascii_whitespace() {
        if let Some((key, value)) = attribute.split_once('=') {
            said.take(key, value);
        }
    }
    said.client_ip.is_some().then_some(said)
}

impl Forwarded {
    /// Takes one attribute in XCLIENT's words. What is malformed or unknown says nothing.
    fn take(&mut self, key: &str, value: &str) {
        match key.to_ascii_uppercase().as_str() {
            "ADDR" => self.client_ip = xclient::address_of(value).or(self.client_ip),
            "PORT" => self.client_port = xclient::port_of(value).or(self.client_port),
            "DESTADDR" => self.local_ip = xclient::address_of(value).or(self.local_ip),
            "DESTPORT" => self.local_port = xclient::port_of(value).or(self.local_port),
            "SESSION" => {
                let good = (1..=MAX_SESSION).contains(&value.len())
                    && value.bytes().all(|octet| octet.is_ascii_graphic());
                if good {
                    self.session = Some(value.into());
                }
            }
            "TTL" => self.ttl = value.parse().ok().or(self.ttl),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_words_are_read_and_others_are_passed_over() {
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = [
            ("X-Originating-IP", "2001:db8::7"),
            ("x-originating-port", "4711"),
            ("x-connected-ip", "192.0.2.1"),
            ("x-connected-port", "no port"),
            ("x-session-id", "a b"),
            ("x-proxy-ttl", "3"),
            ("name", "webmail"),
        ]
        .map(|(key, value)| (key.into(), value.into()))
        .into();
        let said = of_id(&pairs).unwrap();
        let expected = Forwarded {
            client_ip: "2001:db8::7".parse().ok(),
            client_port: Some(4711),
            local_ip: "192.0.2.1".parse().ok(),
            ttl: Some(3),
            ..Forwarded::default()
        };
        assert_eq!(said, expected);
        assert_eq!(of_id(&pairs[1..]), None, "it names nobody");
    }

    #[test]
    fn an_address_may_have_its_prefix() {
        let long = format!("SESSION={} addr=IPV6:2001:db8::7 what", "s".repeat(65));
        let said = of_xclient(long.as_bytes()).unwrap();
        assert_eq!(of_xclient(b"PORT=7 TTL=3"), None);
        assert_eq!(said.client_ip, "2001:db8::7".parse().ok());
        assert_eq!(said.session, None);
    }
}
