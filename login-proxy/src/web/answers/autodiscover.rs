//! Outlook's autodiscovery: the XML of old ("POX", MS-OXDSCLI) and the JSON that says where that is. Pure.
//!
//! What it says depends on nothing but the address's form, so nobody learns whether there is such an address.
//! ActiveSync and Exchange's own protocols are not published; who asks for them is told so.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::json;
use shared::address::Address;
use shared::backend::LoginProtocol;

use super::published::{Published, Security, Service};
use super::reply::{JSON, Keep, TEXT, XML, redirect, reply, wrong_method};
use super::xml::{Xml, text_of};

/// Longest request that is read, in octets. Outlook's have 400.
pub(super) const MAX_REQUEST: usize = 16 * 1024;

const POX_PATH: &str = "/autodiscover/autodiscover.xml";
const JSON_PATH: &str = "/autodiscover/autodiscover.json";
const ENVELOPE: &str = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006";
const OUTLOOK: &str =
    "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a";

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource {
    /// The settings, as XML: [`pox`] answers.
    Pox,
    /// Where the settings are: [`where_it_is`] answers.
    Json,
}

/// Why there are no settings, as Exchange says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PoxError {
    /// Not XML, without an address, or with one that is none.
    Request,
    /// Settings of another kind were asked for, or there are none.
    Provider,
}

/// What is at a path, in any case of its letters. `None`: nothing of autodiscovery.
pub(super) fn resource(path: &str) -> Option<Resource> {
    if path.eq_ignore_ascii_case(POX_PATH) {
        return Some(Resource::Pox);
    }
    let (head, rest) = path.split_at_checked(JSON_PATH.len())?;
    // `…/autodiscover.json/v1.0/ADDRESS` is another way to ask.
    let is_json =
        head.eq_ignore_ascii_case(JSON_PATH) && (rest.is_empty() || rest.starts_with('/'));
    is_json.then_some(Resource::Json)
}

/// The settings. `secure`: the request came over TLS. `body` is the whole one, or more than [`MAX_REQUEST`]
/// octets of it.
///
/// Outlook's last attempt is a GET without TLS at `autodiscover.DOMAIN`, to be sent on to a name that has a
/// certificate. That is done; no settings are told there, since they could be anybody's by then.
pub(super) fn pox(
    published: &Published,
    method: &Method,
    secure: bool,
    body: &[u8],
) -> Response<Bytes> {
    let elsewhere = (!secure).then(|| redirect(StatusCode::FOUND, &published.url(POX_PATH)));
    if let Some(answer) = elsewhere.flatten() {
        return answer;
    }
    if method != Method::POST {
        return wrong_method("POST");
    }
    if body.len() > MAX_REQUEST {
        let body = "the request is too large\n";
        return reply(StatusCode::PAYLOAD_TOO_LARGE, TEXT, Keep::Never, body);
    }
    let document = match address(body) {
        Ok(address) => settings(published, &address).unwrap_or_else(refusal),
        Err(error) => refusal(error),
    };
    // Also where there are none: clients look at the document.
    reply(StatusCode::OK, XML, Keep::Never, document)
}

/// Whose settings a request asks for.
fn address(body: &[u8]) -> Result<Address, PoxError> {
    let request = std::str::from_utf8(body).map_err(|_| PoxError::Request)?;
    let read = |name| text_of(request, name).map_err(|_| PoxError::Request);
    let schema = read("AcceptableResponseSchema")?;
    if schema.is_some_and(|schema| !schema.eq_ignore_ascii_case(OUTLOOK)) {
        return Err(PoxError::Provider);
    }
    let address = read("EMailAddress")?.ok_or(PoxError::Request)?;
    Address::parse_utf8(&address).map_err(|_| PoxError::Request)
}

/// One of each kind: Outlook asks nobody which of two it should take.
fn settings(published: &Published, address: &Address) -> Result<String, PoxError> {
    let of_kind =
        |(protocol, kind)| published.of(protocol).first().copied().map(|service| (kind, service));
    let kinds = [
        (LoginProtocol::Imap, "IMAP"),
        (LoginProtocol::Pop3, "POP3"),
        (LoginProtocol::Submission, "SMTP"),
    ];
    let protocols: Vec<(&str, Service)> = kinds.into_iter().filter_map(of_kind).collect();
    if protocols.is_empty() {
        return Err(PoxError::Provider);
    }
    let mut xml = Xml::new();
    xml.within("Autodiscover", &[("xmlns", ENVELOPE)], |xml| {
        xml.within("Response", &[("xmlns", OUTLOOK)], |xml| {
            xml.within("User", &[], |xml| xml.leaf("DisplayName", address));
            xml.within("Account", &[], |xml| {
                xml.leaf("AccountType", "email");
                xml.leaf("Action", "settings");
                for (kind, service) in protocols {
                    protocol(xml, published, kind, service, address);
                }
            });
        });
    });
    Ok(xml.finish())
}

fn protocol(xml: &mut Xml, published: &Published, kind: &str, service: Service, address: &Address) {
    xml.within("Protocol", &[], |xml| {
        xml.leaf("Type", kind);
        xml.leaf("Server", &published.name);
        xml.leaf("Port", service.port);
        xml.leaf("DomainRequired", "off");
        xml.leaf("LoginName", address);
        xml.leaf("SPA", "off");
        xml.leaf("SSL", "on");
        // Who knows this one goes by it: "TLS" is STARTTLS.
        let encryption = match service.security {
            Security::Implicit => "SSL",
            Security::StartTls => "TLS",
        };
        xml.leaf("Encryption", encryption);
        xml.leaf("AuthRequired", "on");
        if service.protocol == LoginProtocol::Submission {
            xml.leaf("UsePOPAuth", "off");
            xml.leaf("SMTPLast", "off");
        }
    });
}

fn refusal(error: PoxError) -> String {
    let (code, message) = match error {
        PoxError::Request => (600, "Invalid Request"),
        PoxError::Provider => (601, "Provider is not available"),
    };
    let mut xml = Xml::new();
    xml.within("Autodiscover", &[("xmlns", ENVELOPE)], |xml| {
        xml.within("Response", &[], |xml| {
            // Both attributes are for the server's own log only, but they have to be there.
            xml.within("Error", &[("Time", "00:00:00.0000000"), ("Id", "0")], |xml| {
                xml.leaf("ErrorCode", code);
                xml.leaf("Message", message);
                xml.leaf("DebugData", "");
            });
        });
    });
    xml.finish()
}

/// Where the settings are. `protocol` is the query's parameter `Protocol` (in any case), decoded. It is not
/// repeated to the client, which Exchange does.
pub(super) fn where_it_is(
    published: &Published,
    method: &Method,
    protocol: Option<&[u8]>,
) -> Response<Bytes> {
    if method != Method::GET && method != Method::HEAD {
        return wrong_method("GET, HEAD");
    }
    let (status, keep, answer) = match protocol {
        Some(protocol) if protocol.eq_ignore_ascii_case(b"AutodiscoverV1") => {
            let url = published.url(POX_PATH);
            (StatusCode::OK, Keep::AnHour, json!({ "Protocol": "AutodiscoverV1", "Url": url }))
        }
        Some(_) => {
            let message =
                "The given protocol value is invalid. Supported values are 'AutodiscoverV1'";
            let error = json!({ "ErrorCode": "InvalidProtocol", "ErrorMessage": message });
            (StatusCode::BAD_REQUEST, Keep::Never, error)
        }
        None => {
            let message = "A valid value must be provided for the query parameter 'Protocol'";
            let error =
                json!({ "ErrorCode": "MandatoryParameterMissing", "ErrorMessage": message });
            (StatusCode::BAD_REQUEST, Keep::Never, error)
        }
    };
    reply(status, JSON, keep, answer.to_string())
}

#[cfg(test)]
mod tests;
