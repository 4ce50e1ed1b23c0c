//! Places: so many in all, so many for one key (an address, an account).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Places that are given out.
#[derive(Debug)]
pub struct Seats<K> {
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    max: usize,
    max_per_key: usize,
    all: usize,
    by_key: HashMap<K, usize>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub struct Seat<K: Eq + Hash> {
    seats: Arc<Seats<K>>,
    key: K,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All are taken.
    #[error("all places are taken")]
    InAll,
    /// All that one key may have are taken.
    #[error("all places for one are taken")]
    ForKey,
}

impl<K: Eq + Hash + Clone> Seats<K> {
    /// That many places, none of them taken.
    pub fn new(max: usize, max_per_key: usize) -> Arc<Self> {
        let taken = Taken { max, max_per_key, all: 0, by_key: HashMap::new() };
        Arc::new(Self { taken: Mutex::new(taken) })
    }

    /// So many from now on. Nobody loses a place by it.
    pub fn limit(&self, max: usize, max_per_key: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        (taken.max, taken.max_per_key) = (max, max_per_key);
    }

    /// Takes a place for `key`.
    ///
    /// # Errors
    ///
    /// [`Full`].
    pub fn take(self: &Arc<Self>, key: K) -> Result<Seat<K>, Full> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= taken.max {
            return Err(Full::InAll);
        }
        let here = taken.by_key.get(&key).copied().unwrap_or_default();
        if here >= taken.max_per_key {
            return Err(Full::ForKey);
        }
        taken.by_key.insert(key.clone(), here.saturating_add(1));
        taken.all = taken.all.saturating_add(1);
        Ok(Seat { seats: Arc::clone(self), key })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl<K: Eq + Hash> Taken<K> {
    fn give_back(&mut self, key: &K) {
        if let Some(here) = self.by_key.get_mut(key) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                self.by_key.remove(key);
            }
        }
    }
}

impl<K: Eq + Hash + Clone> Seat<K> {
    /// Gives the place to another key, for which it is taken from now on.
    ///
    /// # Errors
    ///
    /// [`Full::ForKey`] when that one has all it may have; the place stays where it was.
    pub fn move_to(&mut self, key: K) -> Result<(), Full> {
        if key == self.key {
            return Ok(());
        }
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let here = taken.by_key.get(&key).copied().unwrap_or_default();
        if here >= taken.max_per_key {
            return Err(Full::ForKey);
        }
        taken.by_key.insert(key.clone(), here.saturating_add(1));
        taken.give_back(&self.key);
        self.key = key;
        Ok(())
    }

    /// For whom it was taken.
    pub fn key(&self) -> &K {
        &self.key
    }
}

impl<K: Eq + Hash> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        taken.give_back(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_counted_in_all_and_by_key() {
        let seats = Seats::new(3, 2);
        let first = seats.take("ann").unwrap();
        let _second = seats.take("ann").unwrap();
        assert_eq!(seats.take("ann").unwrap_err(), Full::ForKey);
        let _third = seats.take("bob").unwrap();
        assert_eq!(seats.take("cat").unwrap_err(), Full::InAll);
        drop(first);
        assert_eq!(seats.taken(), 2);
        seats.take("ann").unwrap();
    }

    #[test]
    fn a_seat_that_moves_counts_where_it_is() {
        let seats = Seats::new(3, 1);
        let mut seat = seats.take("proxy").unwrap();
        let ann = seats.take("ann").unwrap();
        assert_eq!(seat.move_to("ann"), Err(Full::ForKey));
        assert_eq!(seat.key(), &"proxy");
        drop(ann);
        seat.move_to("ann").unwrap();
        seat.move_to("ann").unwrap();
        assert_eq!(seats.take("ann").unwrap_err(), Full::ForKey);
        let _proxy = seats.take("proxy").unwrap();
        drop(seat);
        let _ann = seats.take("ann").unwrap();
        assert_eq!(seats.taken(), 2);
    }

    #[test]
    fn a_lower_limit_takes_no_place_away() {
        let seats = Seats::new(2, 2);
        let taken = [seats.take("ann").unwrap(), seats.take("ann").unwrap()];
        seats.limit(1, 1);
        assert_eq!((seats.taken(), seats.take("bob").unwrap_err()), (2, Full::InAll));
        drop(taken);
        let _one = seats.take("ann").unwrap();
        seats.limit(2, 1);
        assert_eq!(seats.take("ann").unwrap_err(), Full::ForKey);
    }

    #[test]
    fn a_key_without_seats_is_forgotten() {
        let seats = Seats::new(3, 2);
        drop(seats.take("ann").unwrap());
        assert!(seats.taken.lock().unwrap().by_key.is_empty());
    }
}
