//! Places for connections: so many in all, so many from one address (one /64 for IPv6).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use super::Refused;

/// Places of one listener.
#[derive(Debug)]
pub(super) struct Seats {
    max: usize,
    max_per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place, given back when dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    pub(super) fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self { max, max_per_address, taken: Mutex::default() })
    }

    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Seat, Refused> {
        let address = network(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.max {
            return Err(Refused::TooMany);
        }
        let here = taken.by_address.get(&address).copied().unwrap_or_default();
        if here >= self.max_per_address {
            return Err(Refused::TooManyFromAddress);
        }
        taken.by_address.insert(address, here.saturating_add(1));
        taken.all = taken.all.saturating_add(1);
        Ok(Seat { seats: Arc::clone(self), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one address: a customer gets a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_counted_in_all_and_by_address() {
        let seats = Seats::new(3, 2);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = seats.take(ip("2001:db8::1")).unwrap();
        let _second = seats.take(ip("2001:db8::2")).unwrap();
        assert_eq!(seats.take(ip("2001:db8::3")).unwrap_err(), Refused::TooManyFromAddress);
        let _third = seats.take(ip("192.0.2.1")).unwrap();
        assert_eq!(seats.take(ip("192.0.2.2")).unwrap_err(), Refused::TooMany);
        drop(first);
        seats.take(ip("2001:db8::3")).unwrap();
    }

    #[test]
    fn an_address_without_connections_is_forgotten() {
        let seats = Seats::new(3, 2);
        drop(seats.take("192.0.2.1".parse().unwrap()).unwrap());
        assert!(seats.taken.lock().unwrap().by_address.is_empty());
    }
}
