//! What the gateway adds to an owner's reply at the end of a message: it finds out about the sender (SPF, DKIM
//! and DMARC, all of which pass), then sends the message on. The same message, straight to an owner and
//! through the gateway, by turns; counted from the client's final dot to its reply.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::ensure;
use tests::dns_zone::DnsZone;
use tests::signer::{Kind, Signer};

use crate::gateway::Gateway;
use crate::measure::percentile;
use crate::smtp::{Sender, Sink, signed};
use crate::table;

/// Each with a new process, which knows nobody yet.
const RUNS: usize = 3;
/// Domains that send.
const DOMAINS: usize = 100;
/// Messages of each when it is known.
const MORE: usize = 4;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub async fn run() -> anyhow::Result<()> {
    let zone = DnsZone::start().await?;
    zone.ptr(LOOPBACK, "sender.example");
    zone.address("sender.example", LOOPBACK);
    let domains = domains(&zone)?;
    for octets in [4 * 1024, 64 * 1024, 1024 * 1024] {
        println!("\n# added at the end of data, {} KiB, signed by RSA 2048", octets / 1024);
        let (mut unknown, mut known) = (Times::default(), Times::default());
        for _ in 0..RUNS {
            one_run(&zone, &domains, octets, [&mut unknown, &mut known]).await?;
        }
        unknown.print("domains never heard of, DNS asked");
        known.print("known domains");
    }
    Ok(())
}

/// Domains with a key, SPF and a policy.
fn domains(zone: &DnsZone) -> anyhow::Result<Vec<(String, Signer)>> {
    let domain = |number| {
        let domain = format!("sender{number}.example");
        zone.txt(&domain, "v=spf1 ip4:127.0.0.1 -all");
        zone.txt(&format!("_dmarc.{domain}"), "v=DMARC1; p=reject");
        let signer = Signer::new(zone, &domain, Kind::Rsa)?;
        Ok((domain, signer))
    };
    (0..DOMAINS).map(domain).collect()
}

async fn one_run(
    zone: &DnsZone,
    domains: &[(String, Signer)],
    octets: usize,
    [unknown, known]: [&mut Times; 2],
) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let table = table::sqlite(directory.path(), 1).await?;
    let owner = Sink::start().await?;
    let gateway = Gateway { owners: [owner.port; 2], table: &table, dns: Some(zone.address) };
    let service = gateway.start(directory.path()).await?;
    let mut straight = Sender::connect(owner.port).await?;
    let mut through = Sender::connect(service.port).await?;
    for turn in 0..=MORE {
        let times = if turn == 0 { &mut *unknown } else { &mut *known };
        for (domain, signer) in domains {
            let from = format!("ann@{domain}");
            let message = signed(signer, &from, octets)?;
            for (sender, millis) in
                [(&mut straight, &mut times.without), (&mut through, &mut times.with)]
            {
                sender.begin(&from, "user0@example.org").await?;
                millis.push(sender.finish(&message).await?.as_secs_f64() * 1e3);
            }
            let header = owner.last();
            let passes = ["spf=pass", "dkim=pass", "dmarc=pass"];
            ensure!(passes.iter().all(|pass| header.contains(pass)), "not all pass:\n{header}");
        }
    }
    Ok(())
}

/// In milliseconds.
#[derive(Default)]
struct Times {
    without: Vec<f64>,
    with: Vec<f64>,
}

impl Times {
    fn print(mut self, what: &str) {
        let [p50, p99] = [50.0, 99.0].map(|percent| {
            (percentile(&mut self.without, percent), percentile(&mut self.with, percent))
        });
        println!(
            "{what}: p50 {:.2} ms added (owner {:.2}, through the gateway {:.2}), p99 {:.2} ms added \
             (owner {:.2}, through the gateway {:.2}); {} messages",
            p50.1 - p50.0,
            p50.0,
            p50.1,
            p99.1 - p99.0,
            p99.0,
            p99.1,
            self.with.len()
        );
    }
}
