//! A client's side of a SASL exchange up to its credentials (RFC 4422), pure: what AUTHENTICATE and AUTH
//! have in common. How a challenge or a response is framed is each protocol's.

use shared::credentials::Credentials;
use shared::sasl::{Mechanism, decode_base64, decode_bearer, decode_plain, decode_scram};

use super::Event;

/// Longest SASL response in octets with its line end: 16 KiB of token, for base64 a third more.
pub(super) const MAX_LINE: usize = 22 * 1024;
/// `Username:` and `Password:` in base64: the prompts that clients of LOGIN look for.
const USERNAME: &str = "VXNlcm5hbWU6";
const PASSWORD: &str = "UGFzc3dvcmQ6";

/// An exchange that waits for the client's next response.
#[derive(Debug)]
pub(super) enum Exchange {
    /// For the mechanism's first one.
    First(Mechanism),
    /// For LOGIN's password; the name has come.
    Password(Box<[u8]>),
    /// For the answer to a backend's challenge.
    Challenged,
}

/// What follows a client's response.
#[derive(Debug)]
pub(super) enum Turn {
    /// The exchange goes on with this challenge, in base64.
    Ask(Exchange, &'static str),
    /// That is for the driver: credentials, or the answer to a backend's challenge. What is wrong with the
    /// latter ends the exchange at the backend, which then has the last word.
    Event(Event),
    /// The client gives up.
    Cancelled,
    /// It is no response of this mechanism.
    Malformed,
}

impl Exchange {
    /// Begins an exchange. `initial` is base64 as it came, with "=" for an empty response (RFC 4954 §4).
    pub(super) fn begin(mechanism: Mechanism, initial: Option<&[u8]>) -> Turn {
        match (initial, mechanism) {
            (None, Mechanism::Login) => Turn::Ask(Self::First(mechanism), USERNAME),
            (None, _) => Turn::Ask(Self::First(mechanism), ""),
            (Some(b"="), _) => Self::First(mechanism).respond(b""),
            (Some(text), _) => Self::First(mechanism).respond(text),
        }
    }

    /// Goes on with what is not even a response in the protocol's form.
    pub(super) fn garbled(self) -> Turn {
        match self {
            Self::Challenged => Turn::Event(Event::Response(None)),
            Self::First(_) | Self::Password(_) => Turn::Malformed,
        }
    }

    /// Goes on with a response in base64.
    pub(super) fn respond(self, text: &[u8]) -> Turn {
        let response = if text == b"*" { None } else { Some(decode_base64(text)) };
        let response = match (&self, response) {
            (Self::Challenged, response) => {
                return Turn::Event(Event::Response(response.and_then(Result::ok)));
            }
            (_, None) => return Turn::Cancelled,
            (_, Some(Err(_))) => return Turn::Malformed,
            (_, Some(Ok(response))) => response,
        };
        match self {
            Self::Challenged => Turn::Malformed,
            Self::First(Mechanism::Login) => {
                if response.expose().is_empty() {
                    return Turn::Malformed;
                }
                Turn::Ask(Self::Password(response.expose().into()), PASSWORD)
            }
            Self::Password(name) => {
                if response.expose().is_empty() {
                    return Turn::Malformed;
                }
                credentials(Ok::<_, ()>(Credentials::new(&name, response)))
            }
            Self::First(Mechanism::Plain) => credentials(decode_plain(&response)),
            Self::First(mechanism @ (Mechanism::XOAuth2 | Mechanism::OAuthBearer)) => {
                credentials(decode_bearer(mechanism, response))
            }
            Self::First(mechanism @ (Mechanism::ScramSha1 | Mechanism::ScramSha256)) => {
                credentials(decode_scram(mechanism, response))
            }
        }
    }
}

fn credentials<E>(read: Result<Credentials, E>) -> Turn {
    read.map_or(Turn::Malformed, |credentials| Turn::Event(Event::Credentials(credentials)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_asks_for_a_name_and_a_password() {
        let Turn::Ask(exchange, USERNAME) = Exchange::begin(Mechanism::Login, None) else {
            panic!()
        };
        let Turn::Ask(exchange, PASSWORD) = exchange.respond(b"YW5u") else { panic!() };
        let Turn::Event(Event::Credentials(credentials)) = exchange.respond(b"c2VjcmV0") else {
            panic!()
        };
        assert_eq!(&*credentials.authcid, b"ann");
        assert_eq!(credentials.password().unwrap().expose(), b"secret");
        // With the name at once, as some mail programs do.
        let Turn::Ask(exchange, PASSWORD) = Exchange::begin(Mechanism::Login, Some(b"YW5u")) else {
            panic!()
        };
        assert!(matches!(exchange.respond(b"*"), Turn::Cancelled));
        assert!(matches!(Exchange::begin(Mechanism::Login, Some(b"=")), Turn::Malformed));
    }

    #[test]
    fn a_mechanism_has_one_response_or_an_empty_challenge_before_it() {
        let Turn::Ask(exchange, "") = Exchange::begin(Mechanism::Plain, None) else { panic!() };
        assert!(matches!(
            exchange.respond(b"AGFubgBzZWNyZXQ="),
            Turn::Event(Event::Credentials(_))
        ));
        for initial in [&b"="[..], b"", b"!", b"YW5u"] {
            for mechanism in [Mechanism::Plain, Mechanism::XOAuth2, Mechanism::ScramSha256] {
                let turn = Exchange::begin(mechanism, Some(initial));
                assert!(matches!(turn, Turn::Malformed), "{mechanism} {initial:?}: {turn:?}");
            }
        }
    }

    #[test]
    fn an_answer_to_a_challenge_may_be_empty() {
        for (text, expected) in
            [(&b""[..], Some(&b""[..])), (b"AQ==", Some(&[1])), (b"*", None), (b"!", None)]
        {
            let Turn::Event(Event::Response(response)) = Exchange::Challenged.respond(text) else {
                panic!()
            };
            assert_eq!(response.as_ref().map(shared::credentials::Secret::expose), expected);
        }
        assert!(matches!(Exchange::Challenged.garbled(), Turn::Event(Event::Response(None))));
        assert!(matches!(Exchange::First(Mechanism::Plain).garbled(), Turn::Malformed));
    }
}
