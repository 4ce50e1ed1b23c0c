//! The PROXY protocol (haproxy.org/download/3.0/doc/proxy-protocol.txt): versions 1 and 2, in and out.
//!
//! Pure: octets in, addresses out. Whom to believe is the listener's to know.

use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader, SslInfo, Tlv};

use crate::wire::Proxied;

/// Longest header of version 1, in octets with its CR LF.
pub const MAX_V1: usize = 107;
/// Longest header of version 2 that is taken, in octets: addresses and a kilobyte of extensions.
pub const MAX_V2: usize = 16 + 36 + 1024;

/// PP2_SUBTYPE_SSL_VERSION.
const SSL_VERSION: u8 = 0x21;
const SIGNATURE_V1: &[u8] = b"PROXY ";
const SIGNATURE_V2: &[u8] = b"\r\n\r\n\x00\r\nQUIT\n";

/// What the first octets of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// Too few to say; they may still become a header.
    Incomplete,
    /// Not a header.
    Absent,
    /// A header of this many octets.
    Header {
        /// Octets to be taken off the connection.
        octets: usize,
        /// The client it names; none for the proxy's own connections, such as health checks.
        client: Option<Proxied>,
    },
}

/// A header that cannot be understood: the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Malformed, or of an address family that a TCP listener cannot have.
    #[error("malformed PROXY header")]
    Malformed,
    /// Longer than [`MAX_V1`] or [`MAX_V2`].
    #[error("PROXY header of more than {0} octets")]
    TooLong(usize),
}

/// Reads a header off the front of a connection's first octets.
///
/// # Errors
///
/// [`HeaderError`] when they begin like a header and are none.
pub fn parse(octets: &[u8]) -> Result<Prefix, HeaderError> {
    let limit = if begins_alike(octets, SIGNATURE_V2) {
        MAX_V2
    } else if begins_alike(octets, SIGNATURE_V1) {
        MAX_V1
    } else {
        return Ok(Prefix::Absent);
    };
    match ProxyHeader::parse(octets, ParseConfig::default()) {
        // An LF alone ends no header and is no part of one: who sees it early must say the same.
        Ok((_, count)) if limit == MAX_V1 && has_lone_lf(octets.get(..count)) => {
            Err(HeaderError::Malformed)
        }
        Ok((header, octets)) if octets <= limit => {
            let client = match header.proxied_address() {
                Some(ProxiedAddress { protocol: Protocol::Stream, source, destination }) => {
                    Some(Proxied { client: *source, local: *destination })
                }
                Some(ProxiedAddress { protocol: Protocol::Datagram, .. }) => {
                    return Err(HeaderError::Malformed);
                }
                None => None,
            };
            Ok(Prefix::Header { octets, client })
        }
        Ok(_) => Err(HeaderError::TooLong(limit)),
        Err(proxy_header::Error::BufferTooShort) if octets.len() >= limit => {
            Err(HeaderError::TooLong(limit))
        }
        // A line of version 1 has ended before all its fields came.
        Err(proxy_header::Error::BufferTooShort) if limit == MAX_V1 && octets.contains(&b'\n') => {
            Err(HeaderError::Malformed)
        }
        Err(proxy_header::Error::BufferTooShort) => Ok(Prefix::Incomplete),
        Err(_) => Err(HeaderError::Malformed),
    }
}

/// What a header of version 2 says besides addresses, as extensions (TLVs).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    /// The server name that the client asked for in TLS.
    pub authority: Option<&'a str>,
    /// Our name for the session, up to 128 octets.
    pub unique_id: Option<&'a str>,
    /// The client's connection is secured; with the version of TLS, such as `TLSv1.3`.
    pub tls: Option<&'a str>,
}

/// A version 2 header for `client`, or a LOCAL one (our own connection, such as a probe).
pub fn encode(client: Option<Proxied>, extensions: Extensions<'_>) -> Vec<u8> {
    let header = client.map_or_else(ProxyHeader::with_local, |Proxied { client, local }| {
        let (client, local) = one_family(client, local);
        let mut tlvs = Vec::new();
        tlvs.extend(extensions.authority.map(|name| Tlv::Authority(name.into())));
        tlvs.extend(extensions.unique_id.map(|id| Tlv::UniqueId(id.as_bytes().into())));
        tlvs.extend(extensions.tls.map(|version| {
            // No client certificate was asked for, which is what 1 says of its verification.
            let mut tls = SslInfo::new(true, false, false, 1);
            tls.append_tlv(Tlv::Custom(SSL_VERSION, version.as_bytes().into()));
            Tlv::Ssl(tls)
        }));
        ProxyHeader::with_tlvs(Some(ProxiedAddress::stream(client, local)), tlvs)
    });
    let mut octets = vec![0; MAX_V2];
    // Both addresses are of one family and the extensions are short: it cannot fail. If it did, an
    // empty header would make the backend refuse the connection.
    let count = header.encode_to_slice_v2(&mut octets).unwrap_or(0);
    octets.truncate(count);
    octets
}

/// A version 1 header for `client`, or `PROXY UNKNOWN` (our own connection).
pub fn encode_v1(client: Option<Proxied>) -> Vec<u8> {
    let Some(Proxied { client, local }) = client else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let (client, local) = one_family(client, local);
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), local.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), local.port()).into_bytes()
}

/// True when an LF is not the last octet of a header.
fn has_lone_lf(header: Option<&[u8]>) -> bool {
    header.and_then(<[u8]>::split_last).is_some_and(|(_, before)| before.contains(&b'\n'))
}

/// True when one is the other's beginning.
fn begins_alike(octets: &[u8], signature: &[u8]) -> bool {
    octets.iter().zip(signature).all(|(a, b)| a == b)
}

/// Writes both addresses in one family: IPv6, where they differ.
fn one_family(
    client: std::net::SocketAddr,
    local: std::net::SocketAddr,
) -> (std::net::SocketAddr, std::net::SocketAddr) {
    use std::net::{IpAddr, SocketAddr};
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::from((ip.to_ipv6_mapped(), address.port())),
        IpAddr::V6(_) => address,
    };
    if client.is_ipv4() == local.is_ipv4() {
        (client, local)
    } else {
        (mapped(client), mapped(local))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(client: &str, local: &str) -> Proxied {
        Proxied { client: client.parse().unwrap(), local: local.parse().unwrap() }
    }

    /// Every beginning of a header is incomplete, the header is whole, and what follows stays.
    fn check_cut_anywhere(header: &[u8], client: Option<Proxied>) {
        for cut in 0..header.len() {
            assert_eq!(parse(&header[..cut]), Ok(Prefix::Incomplete), "cut at {cut}");
        }
        let octets = header.len();
        assert_eq!(parse(header), Ok(Prefix::Header { octets, client }));
        let followed = [header, b"EHLO a\r\n"].concat();
        assert_eq!(parse(&followed), Ok(Prefix::Header { octets, client }));
    }

    #[test]
    fn version_1_is_read() {
        let v4 = addresses("192.0.2.7:56324", "198.51.100.1:143");
        check_cut_anywhere(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 143\r\n", Some(v4));
        let v6 = addresses("[2001:db8::7]:56324", "[2001:db8::1]:143");
        check_cut_anywhere(b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 143\r\n", Some(v6));
        check_cut_anywhere(b"PROXY UNKNOWN\r\n", None);
    }

    #[test]
    fn what_is_written_in_version_2_is_read_again() {
        for proxied in [
            addresses("192.0.2.7:56324", "198.51.100.1:143"),
            addresses("[2001:db8::7]:56324", "[2001:db8::1]:143"),
        ] {
            let none = Extensions::default();
            check_cut_anywhere(&encode(Some(proxied), none), Some(proxied));
            let extensions = Extensions {
                authority: Some("mail.example.org"),
                unique_id: Some("0123456789abcdef"),
                tls: Some("TLSv1.3"),
            };
            let written = encode(Some(proxied), extensions);
            check_cut_anywhere(&written, Some(proxied));
            // Postfix takes no more.
            assert!(written.len() < 536, "{}", written.len());
            let (header, _) = ProxyHeader::parse(&written, ParseConfig::default()).unwrap();
            assert_eq!(header.authority(), Some("mail.example.org"));
            assert_eq!(header.unique_id(), Some(&b"0123456789abcdef"[..]));
            let tls = header.ssl().unwrap();
            assert_eq!((tls.client_ssl(), tls.version()), (true, Some("TLSv1.3")));
        }
    }

    #[test]
    fn what_is_written_in_version_1_is_read_again() {
        for proxied in [
            addresses("192.0.2.7:56324", "198.51.100.1:143"),
            addresses("[2001:db8::7]:56324", "[2001:db8::1]:143"),
        ] {
            check_cut_anywhere(&encode_v1(Some(proxied)), Some(proxied));
        }
        check_cut_anywhere(&encode_v1(None), None);
    }

    #[test]
    fn families_are_made_equal_in_version_2() {
        let written =
            encode(Some(addresses("192.0.2.7:5", "[2001:db8::1]:143")), Extensions::default());
        let read = addresses("[::ffff:192.0.2.7]:5", "[2001:db8::1]:143");
        check_cut_anywhere(&written, Some(read));
    }

    #[test]
    fn a_local_header_names_nobody() {
        check_cut_anywhere(&encode(None, Extensions::default()), None);
    }

    #[test]
    fn what_does_not_begin_like_a_header_is_none() {
        for octets in
            [&b"EHLO a\r\n"[..], b"a1 LOGIN", b"\x16\x03\x01", b"PROXIMA\r\n", b"\r\nQUIT"]
        {
            assert_eq!(parse(octets), Ok(Prefix::Absent));
        }
    }

    #[test]
    fn malformed_headers_are_refused() {
        for octets in [
            &b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 99999\r\n"[..],
            b"PROXY TCP4 2001:db8::7 198.51.100.1 56324 143\r\n",
            b"PROXY TCP4 nonsense\r\n",
            b"PROXY\x20\n",
            b"PROXY UNKNOWN\na LOGIN ann secret\r\n",
            b"PROXY UDP4 192.0.2.7 198.51.100.1 56324 143\r\n",
            b"\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x04\xd2\x16.",
            b"\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01\x04\xd2\x16.",
        ] {
            assert_eq!(parse(octets), Err(HeaderError::Malformed));
        }
    }

    #[test]
    fn headers_are_bounded() {
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        assert!(parse(&endless[..MAX_V1]).is_err());
        let mut long = SIGNATURE_V2.to_vec();
        long.extend_from_slice(b"\x20\x00\xff\xff");
        long.resize(MAX_V2, 0);
        assert_eq!(parse(&long), Err(HeaderError::TooLong(MAX_V2)));
    }
}
