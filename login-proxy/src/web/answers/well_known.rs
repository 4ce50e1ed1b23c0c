//! Where calendars, address books and JMAP are (RFC 6764 §5, RFC 8620 §2.2): clients ask under
//! `/.well-known/`, by any method, and are sent on. Pure.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::published::{Published, Where};
use super::reply::redirect;

/// Where calendars are looked for.
pub(super) const CALDAV: &str = "/.well-known/caldav";
/// Where address books are looked for.
pub(super) const CARDDAV: &str = "/.well-known/carddav";
/// Where JMAP is looked for.
pub(super) const JMAP: &str = "/.well-known/jmap";

/// Sends a client on. `None`: nothing of the kind is there, or its server answers that itself.
///
/// For now only (307): what is permanent is kept by clients for good, and a path of the old server may be
/// none of the new one's. The method stays the same, PROPFIND included.
pub(super) fn well_known(path: &str, published: &Published) -> Option<Response<Bytes>> {
    let place = match path.strip_suffix('/').unwrap_or(path) {
        CALDAV => published.caldav.as_ref(),
        CARDDAV => published.carddav.as_ref(),
        JMAP => published.jmap.as_ref(),
        _ => None,
    };
    // One that leads to itself would go round in circles.
    let location = place.and_then(Where::location).filter(|place| !is_same(place, path))?;
    redirect(StatusCode::TEMPORARY_REDIRECT, location)
}

fn is_same(place: &str, path: &str) -> bool {
    place.trim_end_matches('/') == path.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use http::header;

    use shared::web::Place;

    use super::super::published::typical;
    use super::*;

    #[test]
    fn a_client_is_sent_on_to_where_it_is() {
        let published = Published {
            carddav: Some(Where::At(Place::parse("https://dav.example.org/").unwrap())),
            ..typical()
        };
        for (path, place) in [
            ("/.well-known/caldav", "/dav/cal/"),
            ("/.well-known/caldav/", "/dav/cal/"),
            ("/.well-known/carddav", "https://dav.example.org/"),
        ] {
            let response = well_known(path, &published).unwrap();
            assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
            assert_eq!(response.headers()[header::LOCATION], place);
            assert_eq!(response.headers()[header::CACHE_CONTROL], "no-cache");
        }
    }

    #[test]
    fn what_its_server_answers_or_nobody_has_is_not_answered_here() {
        let published = Published {
            caldav: None,
            carddav: Some(Where::At(Place::parse("/.well-known/carddav/").unwrap())),
            ..typical()
        };
        for path in [CALDAV, CARDDAV, JMAP, "/.well-known/", "/.well-known/caldavx", "/caldav", ""]
        {
            assert!(well_known(path, &published).is_none(), "{path}");
        }
    }
}
