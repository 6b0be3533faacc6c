//! Places for those who have not proven who they are, and a share of them for each address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::socket::canonical;

/// A limited number of places. From half of them on, one source gets at most a quarter: nobody can keep everybody else out from
/// one address.
#[derive(Debug)]
pub(crate) struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Those of proven addresses: a forged one must not count against its owner.
    by_source: BTreeMap<Source, usize>,
}

/// Who counts as one: an IPv4 address, or the IPv6 addresses that one network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Address(Ipv4Addr),
    Network(u64),
}

impl Source {
    fn of(addr: SocketAddr) -> Self {
        match canonical(addr).ip() {
            IpAddr::V4(ip) => Self::Address(ip),
            IpAddr::V6(ip) => Self::Network((ip.to_bits() >> 64) as u64),
        }
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    source: Option<Source>,
}

impl Places {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("no panic while held")
    }

    /// Whether who comes now must prove its address: nobody has a share of what is taken without that.
    pub(crate) fn is_quarter_full(&self) -> bool {
        self.taken().all * 4 >= self.limit
    }

    /// A place, if there is one for this address; `None` stands for one that is not proven, which has no share.
    pub(crate) fn take(self: &Arc<Self>, proven: Option<SocketAddr>) -> Option<Place> {
        let source = proven.map(Source::of);
        let mut taken = self.taken();
        if taken.all >= self.limit {
            return None;
        }
        if let Some(source) = source {
            let is_half_full = taken.all * 2 >= self.limit;
            let has = taken.by_source.get(&source).copied().unwrap_or(0);
            if is_half_full && has >= (self.limit / 4).max(1) {
                return None;
            }
            taken.by_source.insert(source, has + 1);
        }
        taken.all += 1;
        Some(Place { places: Arc::clone(self), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        let Some(source) = self.source else { return };
        let left = taken.by_source.get(&source).map_or(0, |has| has - 1);
        if left == 0 {
            taken.by_source.remove(&source);
        } else {
            taken.by_source.insert(source, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(ip: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(ip.parse().unwrap(), 1))
    }

    #[test]
    fn one_source_gets_half_of_what_is_free_and_a_quarter_of_what_is_not() {
        let places = Places::new(8);
        let first: Vec<_> = std::iter::from_fn(|| places.take(from("10.0.0.1"))).collect();
        assert_eq!(first.len(), 4);
        // An address behind an IPv6 socket is the same one.
        assert!(places.take(from("::ffff:10.0.0.1")).is_none());
        let second: Vec<_> = std::iter::from_fn(|| places.take(from("10.0.0.2"))).collect();
        assert_eq!(second.len(), 2);
        // Another address of the same network is no other source.
        let third: Vec<_> = (1..9).filter_map(|n| places.take(from(&format!("2001:db8::{n}")))).collect();
        assert_eq!(third.len(), 2);
        assert!(places.take(from("2001:db8:0:1::1")).is_none(), "there are eight");
        drop(third);
        let fourth = places.take(from("2001:db8:0:1::1")).unwrap();
        drop((first, second, fourth));
        assert!(places.taken().by_source.is_empty() && places.taken().all == 0);
    }

    #[test]
    fn a_forged_address_counts_against_nobody() {
        let places = Places::new(8);
        let mut forged = vec![places.take(None).unwrap()];
        assert!(!places.is_quarter_full());
        forged.extend((0..3).map(|_| places.take(None).unwrap()));
        assert!(places.is_quarter_full());
        let owner: Vec<_> = std::iter::from_fn(|| places.take(from("10.0.0.1"))).collect();
        assert_eq!(owner.len(), 2);
        drop((forged, owner));
        // However few there are, each source has one.
        let places = Places::new(1);
        let only = places.take(from("10.0.0.1")).unwrap();
        assert!(places.take(from("10.0.0.2")).is_none());
        drop(only);
        assert!(places.take(from("10.0.0.2")).is_some());
    }
}
