//! A name server on loopback that knows what a test tells it, over UDP and TCP, and can be hostile.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, TXT};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

/// How long answers may be kept, in seconds.
const TTL: u32 = 300;
/// Octets of one string of a TXT record.
const TXT_STRING: usize = 255;
/// Octets of answers that wait on one TCP connection.
const BUFFER: usize = 1024;

/// A running name server.
#[derive(Debug)]
pub struct DnsZone {
    /// Where it listens.
    pub address: SocketAddr,
    known: Arc<Known>,
    server: Arc<tokio::task::JoinHandle<()>>,
}

/// How it behaves about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Answer,
    /// SERVFAIL.
    Fail,
    /// It never answers.
    Silent,
}

#[derive(Debug, Default)]
struct Known {
    records: Mutex<HashMap<Name, Vec<RData>>>,
    manners: Mutex<HashMap<Name, Manner>>,
    asked: Mutex<Vec<(Name, Protocol)>>,
}

/// What the server library asks.
struct Handler(Arc<Known>);

impl DnsZone {
    /// Starts one that knows nothing.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn start() -> Result<Self> {
        let (tcp, udp) = bind().await?;
        let (address, known) = (tcp.local_addr()?, Arc::<Known>::default());
        let mut server = Server::new(Handler(Arc::clone(&known)));
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(60), BUFFER);
        let server = tokio::spawn(async move {
            let _ = server.block_until_done().await;
        });
        Ok(Self { address, known, server: Arc::new(server) })
    }

    /// A TXT record, cut into strings as they must be.
    pub fn txt(&self, name: &str, text: &str) {
        let strings = text.as_bytes().chunks(TXT_STRING).collect();
        self.add(name, RData::TXT(TXT::from_bytes(strings)));
    }

    /// An address.
    pub fn address(&self, name: &str, address: IpAddr) {
        let data = match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        self.add(name, data);
    }

    /// A mail exchanger.
    pub fn mx(&self, name: &str, exchange: &str) {
        self.add(name, RData::MX(MX::new(10, fqdn(exchange))));
    }

    /// Another name.
    pub fn cname(&self, name: &str, target: &str) {
        self.add(name, RData::CNAME(CNAME(fqdn(target))));
    }

    /// The name of an address.
    pub fn ptr(&self, address: IpAddr, name: &str) {
        self.add(&reverse(address), RData::PTR(PTR(fqdn(name))));
    }

    /// How it behaves about a name from now on.
    pub fn behave(&self, name: &str, manner: Manner) {
        let mut manners = self.known.manners.lock().unwrap_or_else(PoisonError::into_inner);
        manners.insert(fqdn(name), manner);
    }

    /// How often it was asked for a name, over UDP and TCP.
    pub fn asked(&self, name: &str) -> (usize, usize) {
        let asked = self.known.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let name = fqdn(name);
        let count = |wanted| asked.iter().filter(|(n, p)| *n == name && *p == wanted).count();
        (count(Protocol::Udp), count(Protocol::Tcp))
    }

    /// How often it was asked for anything.
    pub fn questions(&self) -> usize {
        self.known.asked.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn add(&self, name: &str, data: RData) {
        let mut records = self.known.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.entry(fqdn(name)).or_default().push(data);
    }
}

impl Drop for DnsZone {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Both sockets on one port.
async fn bind() -> Result<(TcpListener, UdpSocket)> {
    for _ in 0..crate::ports::ATTEMPTS {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr()?).await {
            return Ok((tcp, udp));
        }
    }
    anyhow::bail!("no port is free for UDP and TCP")
}

fn fqdn(name: &str) -> Name {
    let mut name = Name::from_ascii(name).context(name.to_owned()).expect("a name").to_lowercase();
    name.set_fqdn(true);
    name
}

fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => format!("{}ip6.arpa", nibbles(v6)),
    }
}

fn nibbles(address: Ipv6Addr) -> String {
    let octets = address.octets();
    octets.iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4)).collect()
}

impl Handler {
    async fn answer(&self, request: &Request, mut to: impl ResponseHandler) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let mut answers = Vec::new();
        metadata.response_code = ResponseCode::ServFail;
        if let Ok(info) = request.request_info() {
            let (name, kind) = (Name::from(info.query.name()), info.query.query_type());
            let manner = self.0.ask(&name, request.protocol());
            if manner == Manner::Silent {
                std::future::pending::<()>().await;
            }
            if manner == Manner::Answer {
                metadata.authoritative = true;
                metadata.response_code = self.0.find(&name, kind, &mut answers);
            }
        }
        let builder = MessageResponseBuilder::from_message_request(request);
        let response = builder.build(metadata, &answers, [], [], []);
        match to.send_response(response).await {
            Ok(info) => info,
            Err(_) => ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() }),
        }
    }
}

impl Known {
    fn ask(&self, name: &Name, protocol: Protocol) -> Manner {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push((name.clone(), protocol));
        let manners = self.manners.lock().unwrap_or_else(PoisonError::into_inner);
        manners.get(name).copied().unwrap_or(Manner::Answer)
    }

    /// Records of this kind, or the name's other name.
    fn find(&self, name: &Name, kind: RecordType, into: &mut Vec<Record>) -> ResponseCode {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_name) = records.get(name) else { return ResponseCode::NXDomain };
        let wanted = |data: &&RData| [kind, RecordType::CNAME].contains(&data.record_type());
        into.extend(
            of_name
                .iter()
                .filter(wanted)
                .map(|data| Record::from_rdata(name.clone(), TTL, data.clone())),
        );
        ResponseCode::NoError
    }
}

impl RequestHandler for Handler {
    fn handle_request<'a, 'b, 'f, R, T>(
        &'a self,
        request: &'b Request,
        response_handle: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'f>>
    where
        'a: 'f,
        'b: 'f,
        R: ResponseHandler + 'f,
        T: Time + 'f,
        Self: 'f,
    {
        Box::pin(self.answer(request, response_handle))
    }
}
