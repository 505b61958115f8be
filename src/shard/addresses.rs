//! How many connections each address has, for all threads.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Connections by address. Clones share it.
#[derive(Clone)]
pub struct Addresses {
    /// `usize::MAX` for no bound.
    most: Arc<AtomicUsize>,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection of an address. It counts until it is dropped.
pub(super) struct Counted {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    /// No connections yet, and at most `most` of each address.
    pub fn new(most: Option<usize>) -> Self {
        let addresses = Self { most: Arc::default(), counts: Arc::default() };
        addresses.set_most(most);
        addresses
    }

    /// Changes the bound. Connections that came when there was none do not count.
    pub(super) fn set_most(&self, most: Option<usize>) {
        self.most.store(most.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Counts one more connection of `address`, if it has a bound and is one: Unix sockets have no address. `Err` if it has
    /// too many.
    pub(super) fn count(&self, address: Option<IpAddr>) -> Result<Option<Counted>, ()> {
        let most = self.most.load(Ordering::Relaxed);
        let Some(address) = address.filter(|_| most != usize::MAX).map(network) else { return Ok(None) };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if most <= *count {
            return Err(());
        }
        *count += 1;
        Ok(Some(Counted { addresses: self.clone(), address }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// What a client has of its own: an address of IPv4, or the first half of one of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_as_many_connections_as_it_may_and_then_again_when_one_ends() {
        let addresses = Addresses::new(Some(2));
        let count = |text: &str| addresses.count(Some(text.parse().unwrap()));
        let (first, _second) = (count("10.0.0.1").unwrap(), count("::ffff:10.0.0.1").unwrap());
        assert!(count("10.0.0.1").is_err());
        let _other = count("10.0.0.2").unwrap();
        drop(first);
        let _third = count("10.0.0.1").unwrap();
        let _six = [count("2001:db8::1").unwrap(), count("2001:db8::2").unwrap()];
        assert!(count("2001:db8::3").is_err() && count("2001:db8:0:1::1").is_ok());
        assert!(addresses.count(None).unwrap().is_none());
        drop((_second, _third, _other, _six));
        assert!(addresses.counts.lock().unwrap().is_empty());
        addresses.set_most(None);
        let free = [count("10.0.0.1").unwrap(), count("10.0.0.1").unwrap(), count("10.0.0.1").unwrap()];
        addresses.set_most(Some(1));
        let _one = count("10.0.0.1").unwrap();
        assert!(count("10.0.0.1").is_err());
        drop(free);
        assert!(count("10.0.0.1").is_err(), "what did not count is not given back");
    }
}
