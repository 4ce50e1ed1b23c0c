//! Giving a backend the credentials in a form that it takes (RFC 4422), once for all protocols.
//!
//! A password goes by PLAIN, or by LOGIN where there is nothing else; a token in the form in which it came,
//! or in the other one; SCRAM is relayed. A challenge that only the client can answer is passed on to it.

use shared::credentials::{Credentials, Proof, Secret};
use shared::sasl::{Mechanism, Mechanisms, encode_base64, encode_bearer, encode_plain};
use shared::wire::Wire;

use super::{AttachError, Prompt};

/// How a protocol carries a SASL exchange to a backend.
pub(super) trait Carrier: Send {
    /// What a backend's yes brings along.
    type Yes;

    /// True when an initial response of so many octets of base64 may stand in the command itself.
    fn takes_initial(&self, mechanism: Mechanism, octets: usize) -> bool;

    /// Sends the command, with the initial response if there is one (in base64; never empty).
    fn begin(
        &mut self,
        mechanism: Mechanism,
        initial: Option<&Secret>,
    ) -> impl Future<Output = Result<(), AttachError>> + Send;

    /// Sends a response, in base64; `None` gives the exchange up (`*`).
    fn respond(
        &mut self,
        response: Option<&Secret>,
    ) -> impl Future<Output = Result<(), AttachError>> + Send;

    /// The backend's next word.
    fn answer(&mut self) -> impl Future<Output = Result<Answer<Self::Yes>, AttachError>> + Send;
}

/// A backend's word in an exchange. Its no is an [`AttachError`].
#[derive(Debug)]
pub(super) enum Answer<Y> {
    /// It wants to know more. Not in base64.
    Challenge(Vec<u8>),
    /// It has let the user in.
    Yes(Y),
}

/// What is to be said, in base64.
struct Plan {
    mechanism: Mechanism,
    /// The first response.
    first: Secret,
    /// LOGIN's second one.
    second: Option<Secret>,
    /// What else the backend asks is for the client to answer.
    relays: bool,
}

/// Logs in over `carrier` to a backend that offers those mechanisms.
///
/// # Errors
///
/// An [`AttachError`]. A no that comes before the credentials were given is not about them.
pub(super) async fn authenticate<C: Carrier>(
    carrier: &mut C,
    offered: Mechanisms,
    credentials: &Credentials,
    prompt: &Prompt,
) -> Result<C::Yes, AttachError> {
    let plan = Plan::of(credentials, offered).ok_or(AttachError::NoMechanism)?;
    let first_is_empty = plan.first.expose().is_empty();
    if !first_is_empty && carrier.takes_initial(plan.mechanism, plan.first.expose().len()) {
        carrier.begin(plan.mechanism, Some(&plan.first)).await?;
    } else {
        carrier.begin(plan.mechanism, None).await?;
        invited(carrier).await?;
        carrier.respond(Some(&plan.first)).await?;
    }
    if let Some(second) = &plan.second {
        invited(carrier).await?;
        carrier.respond(Some(second)).await?;
    }
    loop {
        let challenge = match carrier.answer().await? {
            Answer::Yes(yes) => return Ok(yes),
            Answer::Challenge(challenge) => challenge,
        };
        if !plan.relays {
            return Err(AttachError::Protocol("more was asked for than the mechanism has"));
        }
        match prompt.ask(challenge).await {
            Ok(response) => carrier.respond(Some(&encode_base64(response.expose()))).await?,
            Err(error) => {
                // The backend is not to wait for its own time to be up.
                carrier.respond(None).await?;
                return Err(error);
            }
        }
    }
}

/// Waits for leave to go on. A no that comes before the credentials cannot be about them.
pub(super) async fn invited<C: Carrier>(carrier: &mut C) -> Result<(), AttachError> {
    match carrier.answer().await {
        Ok(Answer::Challenge(_)) => Ok(()),
        Ok(Answer::Yes(_)) => Err(AttachError::Protocol("yes before the credentials")),
        Err(AttachError::Rejected(_)) => Err(AttachError::Refuses),
        Err(error) => Err(error),
    }
}

/// Says `AUTH mechanism [initial-response]`, as submission and POP3 have it (RFC 4954 §4, RFC 5034 §4).
pub(super) async fn say_auth(
    wire: &mut Wire,
    mechanism: Mechanism,
    initial: Option<&Secret>,
) -> Result<(), AttachError> {
    wire.output.push(format!("AUTH {mechanism}"));
    if let Some(initial) = initial {
        wire.output.push(" ");
        wire.output.push(initial.expose());
    }
    Ok(wire.say("\r\n").await?)
}

/// Says a response in a line of its own, or gives the exchange up; ManageSieve alone frames it otherwise.
pub(super) async fn say_response(
    wire: &mut Wire,
    response: Option<&Secret>,
) -> Result<(), AttachError> {
    wire.output.push(response.map_or(&b"*"[..], Secret::expose));
    Ok(wire.say("\r\n").await?)
}

impl Plan {
    fn of(credentials: &Credentials, offered: Mechanisms) -> Option<Self> {
        let Credentials { authcid, authzid, proof } = credentials;
        let plan = |mechanism, first, relays| Self { mechanism, first, second: None, relays };
        match proof {
            Proof::Password(password) => {
                if offered.contains(Mechanism::Plain) {
                    let authzid = authzid.as_deref().unwrap_or_default();
                    let first = encode_plain(authzid, authcid, password);
                    return Some(plan(Mechanism::Plain, first, false));
                }
                // LOGIN cannot say as whom somebody acts.
                (offered.contains(Mechanism::Login) && authzid.is_none()).then(|| Self {
                    second: Some(encode_base64(password.expose())),
                    ..plan(Mechanism::Login, encode_base64(authcid), false)
                })
            }
            Proof::Bearer { mechanism, token, response } => {
                if offered.contains(*mechanism) {
                    return Some(plan(*mechanism, encode_base64(response.expose()), true));
                }
                let other = match mechanism {
                    Mechanism::XOAuth2 => Mechanism::OAuthBearer,
                    _ => Mechanism::XOAuth2,
                };
                // The answer to a failure differs between the two, so it is not the client's to give.
                offered
                    .contains(other)
                    .then(|| plan(other, encode_bearer(other, authcid, token), false))
            }
            Proof::Scram { mechanism, first } => offered
                .contains(*mechanism)
                .then(|| plan(*mechanism, encode_base64(first.expose()), true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(words: &str) -> Mechanisms {
        Mechanisms::of_words(words.split(' '))
    }

    fn said(credentials: &Credentials, words: &str) -> Option<(Mechanism, String)> {
        let plan = Plan::of(credentials, offered(words))?;
        let mut text = String::from_utf8(plan.first.expose().to_vec()).unwrap();
        if let Some(second) = plan.second {
            text = format!("{text} {}", String::from_utf8(second.expose().to_vec()).unwrap());
        }
        Some((plan.mechanism, text))
    }

    #[test]
    fn a_password_goes_by_plain_or_else_by_login() {
        let mut credentials = Credentials::new(b"ann", Secret::new(b"secret".to_vec()));
        let plain = (Mechanism::Plain, "AGFubgBzZWNyZXQ=".to_owned());
        assert_eq!(said(&credentials, "LOGIN PLAIN"), Some(plain));
        let login = (Mechanism::Login, "YW5u c2VjcmV0".to_owned());
        assert_eq!(said(&credentials, "LOGIN XOAUTH2"), Some(login));
        assert_eq!(said(&credentials, "XOAUTH2 SCRAM-SHA-1"), None);
        credentials.authzid = Some(b"bob"[..].into());
        assert_eq!(said(&credentials, "LOGIN"), None, "it would open the wrong mailbox");
    }

    #[test]
    fn a_token_goes_as_it_came_or_in_the_other_form() {
        let response = b"user=ann\x01auth=Bearer t\x01\x01";
        let credentials =
            shared::sasl::decode_bearer(Mechanism::XOAuth2, Secret::new(response.to_vec()))
                .unwrap();
        let (mechanism, text) = said(&credentials, "XOAUTH2 OAUTHBEARER PLAIN").unwrap();
        assert_eq!(mechanism, Mechanism::XOAuth2);
        assert_eq!(text.as_bytes(), encode_base64(response).expose());
        let (mechanism, text) = said(&credentials, "OAUTHBEARER").unwrap();
        assert_eq!(mechanism, Mechanism::OAuthBearer);
        assert_eq!(text.as_bytes(), encode_base64(b"n,a=ann,\x01auth=Bearer t\x01\x01").expose());
        assert_eq!(said(&credentials, "PLAIN LOGIN"), None, "a token is no password");
    }
}
