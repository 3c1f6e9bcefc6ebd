//! Growth in steps, poor hashes, removal in between.

use std::collections::HashSet;

use super::buckets::{EMPTY, LANES, MOVED};
use super::*;

const CHECKS: u32 = if cfg!(miri) { 8 } else { 50 };

fn hash(i: u32) -> SlotHash {
    SlotHash(i.wrapping_mul(0x9E37_79B9).rotate_left(7))
}

/// Its spread is the highest, which the empty lanes of the first bucket have.
const HIGHEST: SlotHash = SlotHash(0x144C_BC89_u32.wrapping_neg());
const _: () = assert!(HIGHEST.spread().0 == u32::MAX);

/// A few hashes for all, so that searches are long and go round the end.
fn crowded(i: u32) -> SlotHash {
    [HIGHEST, SlotHash(0), hash(2), hash(3), SlotHash(u32::MAX)][i as usize % 5]
}

impl Index {
    /// Panics unless both tables are what is said of them, and every slot is there once.
    fn validate(&self) {
        let slots = [&self.table, &self.draining].map(Buckets::validate).concat();
        let distinct: HashSet<_> = slots.iter().collect();
        assert_eq!(distinct.len(), slots.len(), "a slot is there twice");
        assert_eq!(self.len(), slots.len());
    }

    /// Inserts, which must not do more than it should.
    fn insert_watched(&mut self, hash: SlotHash, id: u32) {
        let (left, written) = (self.draining.len(), self.next.len());
        let count = self.table.count();
        self.insert(hash, SlotId::from_bits(id));
        if self.table.count() == count {
            assert!(left <= self.draining.len() + STEP * LANES);
            assert!(self.next.len() <= written + EMPTIED);
        } else {
            assert_eq!(left, 0, "it grows while it is growing");
            assert_eq!(self.table.count(), grown(count));
            assert!(grown(count) <= written + EMPTIED);
        }
        assert!(self.next.capacity() == 0 || self.draining.count() == 0);
        assert!(self.contains(hash, SlotId::from_bits(id)));
    }
}

/// Fill, then churn: every slot is found at every moment, and no search goes on for ever.
fn check(hash: fn(u32) -> SlotHash, rounds: u32) -> Index {
    let mut index = Index::default();
    let mut slots: Vec<Option<u32>> = Vec::new();
    for round in 0..rounds {
        for asked in [hash(0), SlotHash(0), HIGHEST] {
            let absent = [slots.len() as u32, EMPTY, MOVED].map(SlotId::from_bits);
            assert!(absent.into_iter().all(|id| !index.contains(asked, id)));
            assert!(index.likely(asked).is_none_or(|id| id.bits() < MOVED));
        }
        let mut place = slots.len();
        if round < rounds / 3 * 2 {
            slots.push(None);
        } else {
            place = (round as usize * 7919) % slots.len();
        }
        let id = SlotId::from_bits(place as u32);
        if let Some(old) = slots[place].take() {
            index.remove(hash(old), id);
            assert!(!index.contains(hash(old), id));
        }
        index.insert_watched(hash(round), place as u32);
        slots[place] = Some(round);
        let probe = (round as usize * 31) % slots.len();
        assert!(index.contains(hash(slots[probe].unwrap()), SlotId::from_bits(probe as u32)));
        if round % rounds.div_ceil(CHECKS) == 0 || round + 1 == rounds {
            index.validate();
        }
    }
    assert!(index.table.count() > grown(grown(grown(0))));
    assert_eq!(index.len(), slots.len(), "every slot is occupied");
    index
}

#[test]
fn growth_is_in_steps_and_loses_nothing_even_if_all_hashes_are_alike() {
    check(hash, if cfg!(miri) { 100 } else { 30_000 });
    check(crowded, if cfg!(miri) { 90 } else { 1_500 });
}

#[test]
fn poor_hashes_spread() {
    // Small numbers: all but the lowest bits are zero.
    let table = check(SlotHash, if cfg!(miri) { 100 } else { 30_000 }).table;
    let mean = table.mean_distance();
    assert!(mean < 0.5, "on average {mean} buckets away");
}

/// During growth one slot leaves for every `few` that come; or all but `keep`, once there are many.
#[test]
fn growth_is_done_in_time_whatever_is_removed() {
    let many = if cfg!(miri) { 30 } else { 300 };
    for (few, keep) in [(1, 0), (2, 1), (3, 10), (1, usize::MAX), (2, usize::MAX)] {
        let mut index = Index::default();
        let mut held = Vec::new();
        for i in 0..3 * many as u32 {
            index.insert_watched(hash(i), i);
            held.push(i);
            let leave = index.busy_from == 0 && i % few == 0;
            let stay = if leave && held.len() > many { keep } else { usize::MAX };
            for gone in held.split_off(stay.min(held.len() - usize::from(leave))) {
                index.remove(hash(gone), SlotId::from_bits(gone));
            }
            if leave && i.is_multiple_of(50 / CHECKS) {
                index.validate();
            }
        }
        assert!(held.iter().all(|&i| index.contains(hash(i), SlotId::from_bits(i))));
        assert!(index.table.count() > grown(grown(grown(0))));
    }
}
