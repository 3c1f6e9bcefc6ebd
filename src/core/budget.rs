//! The limits of a cache: two counters for all its shards, never over their maximum.
//!
//! Room is reserved before an entry is inserted and released after it has left, so the counters are
//! at every instant at least what the shards hold. In a full cache a new entry takes the room of one
//! that leaves its own shard under the same lock hold, so with entries of one size no shared line is
//! written at all. Where more is needed, a writer keeps what is freed in its [`Reservation`] until it
//! is enough.
//!
//! Orderings: all relaxed. Each counter is only ever changed by read-modify-writes, whose order is
//! total for one atomic, so a compare-exchange that respects the maximum suffices to keep it; the
//! entries that the numbers speak of are published by the locks of their shards. The maxima are
//! changed by `ShardedCache::set_max_entries` and its twin, which then pass through the lock of
//! every shard; as [`Budget::room_for`] and [`Reservation::cover`] are only called under one, every
//! call after that pass sees the new maximum.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(super) use super::table::usage::{Limit, Usage};

/// A counter and its maximum, on a cache line of their own.
#[derive(Debug)]
#[repr(align(128))]
struct Meter {
    used: AtomicU64,
    max: AtomicU64,
}

impl Meter {
    fn new(max: u64) -> Self {
        Self { used: AtomicU64::new(0), max: AtomicU64::new(max) }
    }

    /// Adds `more` if the sum stays within the maximum.
    fn try_reserve(&self, more: u64) -> bool {
        let max = self.max.load(Relaxed);
        self.used
            .fetch_update(Relaxed, Relaxed, |used| used.checked_add(more).filter(|&sum| sum <= max))
            .is_ok()
    }

    /// See [`Reservation::cover`].
    fn cover(&self, held: &mut u64, need: u64) -> bool {
        if need == 0 {
            return true;
        }
        if *held < need {
            let reserved = self.try_reserve(need - *held);
            if reserved {
                *held = need;
            }
            return reserved;
        }
        let excess = || self.used.load(Relaxed).saturating_sub(self.max.load(Relaxed));
        if excess() > 0 {
            let surplus = excess().min(*held - need);
            *held -= surplus;
            self.release(surplus);
        }
        excess() == 0
    }

    fn release(&self, less: u64) {
        if less > 0 {
            let before = self.used.fetch_sub(less, Relaxed);
            debug_assert!(before >= less, "released {less} of {before}");
        }
    }
}

/// What stands in the way of one more entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing, at this moment.
    Free,
    /// This limit is reached. No limit is exceeded: an entry that is no heavier may take the room of
    /// one that leaves.
    Full(Limit),
    /// A limit is exceeded, as it can be after it was lowered.
    Exceeded,
}

#[derive(Debug)]
pub(super) struct Budget {
    entries: Meter,
    weight: Meter,
}

impl Budget {
    pub(super) fn new(max: Usage) -> Self {
        Self { entries: Meter::new(max.entries), weight: Meter::new(max.weight) }
    }

    /// What is held or reserved.
    pub(super) fn used(&self) -> Usage {
        Usage { entries: self.entries.used.load(Relaxed), weight: self.weight.used.load(Relaxed) }
    }

    pub(super) fn max(&self) -> Usage {
        Usage { entries: self.entries.max.load(Relaxed), weight: self.weight.max.load(Relaxed) }
    }

    pub(super) fn max_weight(&self) -> u64 {
        self.weight.max.load(Relaxed)
    }

    pub(super) fn set_max_entries(&self, max: u64) {
        self.entries.max.store(max, Relaxed);
    }

    pub(super) fn set_max_weight(&self, max: u64) {
        self.weight.max.store(max, Relaxed);
    }

    /// The limit that is exceeded, as it can be after it was lowered.
    pub(super) fn excess(&self) -> Option<Limit> {
        let (used, max) = (self.used(), self.max());
        if used.entries > max.entries {
            Some(Limit::Entries)
        } else if used.weight > max.weight {
            Some(Limit::Weight)
        } else {
            None
        }
    }

    /// What stands in the way of one more entry of this weight where so much is `used`.
    #[inline]
    pub(super) fn room_for(&self, used: Usage, weight: u64) -> Room {
        let max = self.max();
        if used.entries > max.entries || used.weight > max.weight {
            Room::Exceeded
        } else if used.entries == max.entries {
            Room::Full(Limit::Entries)
        } else if weight > max.weight - used.weight {
            Room::Full(Limit::Weight)
        } else {
            Room::Free
        }
    }

    /// Reserves room for one more entry, all of it or nothing.
    pub(super) fn try_reserve(&self, weight: u64) -> bool {
        if !self.entries.try_reserve(1) {
            return false;
        }
        let reserved = self.try_reserve_weight(weight);
        if !reserved {
            self.entries.release(1);
        }
        reserved
    }

    /// Reserves weight alone.
    #[inline]
    pub(super) fn try_reserve_weight(&self, weight: u64) -> bool {
        weight == 0 || self.weight.try_reserve(weight)
    }

    /// Gives weight back.
    #[inline]
    pub(super) fn release_weight(&self, weight: u64) {
        self.weight.release(weight);
    }

    pub(super) fn release(&self, amount: Usage) {
        self.entries.release(amount.entries);
        self.weight.release(amount.weight);
    }
}

/// Room that one operation holds: counted as used, and given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reservation<'a> {
    budget: &'a Budget,
    held: Usage,
    /// What it could not be made to cover, for the next try.
    pub(super) missed: Usage,
}

impl<'a> Reservation<'a> {
    pub(super) fn new(budget: &'a Budget) -> Self {
        Self { budget, held: Usage::default(), missed: Usage::default() }
    }

    /// Takes over the room of an entry that has just left its shard.
    pub(super) fn take_over(&mut self, freed: Usage) {
        self.held += freed;
    }

    /// Makes `held` at least `need`, from the budget if it has the rest, or says which limit stands
    /// in the way. Called under the lock of a shard only (see the head of this file).
    ///
    /// Room that was reserved before a limit was lowered is no right to exceed the new one: while a
    /// limit is exceeded, what is held beyond the need is given back, and if that is not enough the
    /// limit stands in the way.
    pub(super) fn cover(&mut self, need: Usage) -> Result<(), Limit> {
        let Budget { entries, weight } = self.budget;
        if !entries.cover(&mut self.held.entries, need.entries) {
            return Err(Limit::Entries);
        }
        if !weight.cover(&mut self.held.weight, need.weight) {
            return Err(Limit::Weight);
        }
        Ok(())
    }

    /// Hands `amount` of what is held to an entry that now stands in a shard.
    pub(super) fn spend(&mut self, amount: Usage) {
        debug_assert!(self.held.entries >= amount.entries && self.held.weight >= amount.weight);
        self.held = self.held.saturating_sub(amount);
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.held == Usage::default()
    }

    /// Gives everything back, so that others may go on.
    pub(super) fn release(&mut self) {
        self.budget.release(std::mem::take(&mut self.held));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_takes_only_what_is_missing_and_gives_back_what_is_left() {
        let budget = Budget::new(Usage { entries: 2, weight: 100 });
        let mut first = Reservation::new(&budget);
        assert_eq!(first.cover(Usage::one(60)), Ok(()));
        first.spend(Usage::one(60));
        drop(first);
        assert_eq!(budget.used(), Usage { entries: 1, weight: 60 });

        let mut second = Reservation::new(&budget);
        assert_eq!(second.cover(Usage::one(60)), Err(Limit::Weight));
        second.take_over(Usage::one(60)); // the first is evicted
        assert_eq!(second.cover(Usage::one(90)), Ok(()));
        assert_eq!(budget.used().weight, 90);
        second.spend(Usage::one(90));
        drop(second);
        assert_eq!(budget.used(), Usage::one(90));
    }

    #[test]
    fn huge_amounts_do_not_overflow() {
        let budget = Budget::new(Usage { entries: u64::MAX, weight: u64::MAX });
        let mut held = Reservation::new(&budget);
        assert_eq!(held.cover(Usage::one(u64::MAX)), Ok(()));
        let mut other = Reservation::new(&budget);
        assert_eq!(other.cover(Usage::one(1)), Err(Limit::Weight));
    }
}
