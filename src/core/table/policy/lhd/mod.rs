//! Learned hit density: the entry that will bring the fewest hits for the room it takes leaves.
//!
//! After Beckmann, Chen and Cidon, *LHD: improving cache hit rate by maximizing hit density*, NSDI
//! 2018. A slot is worth the hits it brings for the time it is held. How much that is to be
//! expected of an entry depends on what is known of it, which here is three things: how often it
//! was used, how long it waited before its last use, and how long it has waited since. The first
//! two make its *class*, the third is its *age*. For each class and age the cache measures how long
//! it takes until the next use, on a sample of keys, those that were evicted included; from that it
//! computes the best ratio of hits to time that keeping such an entry can have, which is the Gittins
//! index of optimal stopping (`learner.rs`). So no rule says whether recency, frequency or
//! neither counts: in a loop, for example, the old are worth more than the young, and stay.
//!
//! The victim is one of the [`Candidates`] that were found in a line of neighbours with less worth than
//! a bound. Hence no list is kept, and a hit stores one word, and that only if the clock has
//! moved on since the entry's last use.
//!
//! # The clock
//!
//! A tick is a 128th of a capacity, and the clock moves with insertions, under the write lock; a
//! hit only reads it. Time by requests would need a counter that all hits write; in replays it is
//! no better. An age is therefore how much of the cache was replaced since: it means the same in
//! each shard and at each size, and what one shard learns holds for all.
//!
//! # What a hit may do
//!
//! It holds the read lock. It loads the entry's word and, at most once in a tick, stores it anew;
//! for the few keys of the sample it adds to one count. All of it relaxed loads and stores: two
//! hits that meet may lose one of two uses, of which seven are counted, or one of thousands of counts.
//! Writers change the word under the write lock, which orders them after all hits before.

mod candidates;
mod entry_meta;
mod ghosts;
mod learner;
mod measures;
mod occupied;
mod order;

use std::sync::Arc;

use super::super::index::SlotHash;
use super::super::slots::SlotId;
use super::super::ticks::{LastUse, Looks};
use super::contract::{HitNote, Policy, epoch_of};
use candidates::Candidates;
use entry_meta::{EntryMetas, LINE};
use ghosts::Memory;
pub(in super::super) use learner::Learner;
use measures::{TICKS, Weight};
use occupied::Occupied;

/// Lines that are looked at for one victim, at most. Usually it is one.
const LINES: usize = 16;

#[derive(Debug)]
pub(in super::super) struct HitDensity {
    metas: EntryMetas,
    occupied: Occupied,
    candidates: Candidates,
    memory: Memory,
    learner: Arc<Learner>,
    clock: Clock,
    /// The tick of the next step in learning.
    next_step: u32,
    /// Where the next scan looks, as a part of all lines: 2^32 are all of them.
    hand: u32,
}

/// Ticks, and the part of one that has passed.
#[derive(Debug, Default)]
struct Clock {
    tick: u32,
    /// In units of which [`Self::UNITS`] make a tick.
    passed: u32,
    /// Units that pass with an insertion into a shard of `length` entries.
    pace: u32,
    length: usize,
}

impl Clock {
    /// So many that time passes in a shard of two billion entries, too.
    const UNITS: u32 = 1 << 24;
    /// A shard with fewer entries counts as one with so many: otherwise each of the first insertions
    /// would be many ticks.
    const LEAST: usize = 64;

    fn fit(&mut self, length: usize) {
        self.length = length;
        let length = u32::try_from(length.max(Self::LEAST)).unwrap_or(u32::MAX);
        self.pace = TICKS * Self::UNITS / length;
    }

    /// One more insertion. Says whether that begins another tick.
    #[inline]
    fn advance(&mut self) -> bool {
        self.passed += self.pace;
        if self.passed < Self::UNITS {
            return false;
        }
        self.tick = self.tick.wrapping_add(self.passed / Self::UNITS);
        self.passed %= Self::UNITS;
        true
    }
}

impl HitDensity {
    pub(in super::super) fn new(learner: Arc<Learner>) -> Self {
        Self {
            metas: EntryMetas::default(),
            occupied: Occupied::default(),
            candidates: Candidates::default(),
            memory: Memory::default(),
            learner,
            clock: Clock::default(),
            next_step: 0,
            hand: 0,
        }
    }

    /// The shard holds `length` entries from now on.
    #[cold]
    #[inline(never)]
    fn fit(&mut self, length: usize) {
        self.clock.fit(length);
        self.memory.fit(length, self.learner.watched_by_shard());
    }

    /// What is done once in a tick.
    #[cold]
    #[inline(never)]
    fn tick(&mut self) {
        let now = self.clock.tick;
        self.memory.sample.sweep(&self.learner, now);
        if now.wrapping_sub(self.next_step) as i32 >= 0 {
            self.next_step = now.wrapping_add(self.learner.pace());
            self.learner.step();
        }
    }

    /// Time passes with an insertion.
    #[inline]
    fn advance(&mut self) {
        if self.clock.advance() {
            self.tick();
        }
    }

    fn worst<const BY_WEIGHT: bool>(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        for _ in 0..LINES {
            let metas = &self.metas;
            if let Some(slot) = self.candidates.pop(BY_WEIGHT, keep, |slot| metas.get(slot)) {
                return Some(slot);
            }
            self.look::<BY_WEIGHT>();
        }
        self.any(keep)
    }

    /// Looks for candidates in one more line.
    #[inline(never)]
    fn look<const BY_WEIGHT: bool>(&mut self) {
        let lines = self.metas.lines();
        if lines == 0 {
            return;
        }
        let (line, now) = (self.next_line(lines), self.clock.tick);
        let words = self.metas.line(line);
        let orders = words.orders::<BY_WEIGHT>(now, |cell| self.learner.worth(cell));
        self.candidates.look(line, &words, orders);
    }

    /// The line to look at next, of so many.
    #[inline]
    fn next_line(&mut self, lines: u32) -> u32 {
        // Multiples of the golden section: any few in a row lie far from each other and evenly among
        // all, and in the long run each line is looked at as often as another.
        self.hand = self.hand.wrapping_add(0x9E37_79B9);
        ((u64::from(self.hand) * u64::from(lines)) >> 32) as u32
    }

    /// Nothing was found but the entry to be kept: any will do.
    #[cold]
    #[inline(never)]
    fn any(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        if self.occupied.len() == 0 {
            return None;
        }
        let from = self.next_line(self.metas.lines()) * LINE;
        let found = self.occupied.at_or_after(SlotId::from_bits(from))?;
        if Some(found) != keep {
            return Some(found);
        }
        let next = SlotId::from_bits(found.bits() + 1);
        self.occupied.at_or_after(next).filter(|&slot| Some(slot) != keep)
    }
}

impl Policy for HitDensity {
    fn insert(&mut self, slot: SlotId, hash: SlotHash, weight: u64) {
        self.occupied.insert(slot);
        let length = self.occupied.len();
        if length != self.clock.length {
            self.fit(length);
        }
        self.advance();
        let meta = self.memory.back(hash, &self.learner, self.clock.tick, weight);
        self.metas.insert(slot, meta);
    }

    /// The tick: within one, the first hit says all.
    #[inline]
    fn policy_epoch(&self, _: u64) -> u64 {
        epoch_of(self.clock.tick)
    }

    #[inline]
    fn hit(&self, slot: SlotId) -> HitNote {
        let meta = self.metas.get(slot);
        let age = meta.age(self.clock.tick);
        if age != 0 {
            let class = meta.class();
            let used = meta.used(self.clock.tick, class.after(age));
            self.metas.set(slot, used);
            if meta.is_sampled() {
                self.learner.ended(class, meta.bin(self.clock.tick));
            }
        }
        HitNote::Settled
    }

    fn touch(&mut self, slot: SlotId) -> HitNote {
        self.hit(slot)
    }

    fn weigh(&mut self, slot: SlotId, weight: u64) {
        self.metas.set(slot, self.metas.get(slot).weighing(Weight::of(weight)));
    }

    fn remove(&mut self, slot: SlotId) {
        self.occupied.remove(slot);
        self.metas.take(slot);
    }

    fn evict(&mut self, slot: SlotId, hash: SlotHash) {
        self.occupied.remove(slot);
        let (meta, now) = (self.metas.take(slot), self.clock.tick);
        self.memory.left(hash, meta, &self.learner, now, self.clock.length);
    }

    /// The slot stays occupied, and its word is looked up once.
    fn exchange(&mut self, slot: SlotId, old: SlotHash, new: SlotHash, weight: u64) {
        self.advance();
        let Self { metas, memory, learner, clock, .. } = self;
        metas.update(slot, |meta| {
            memory.left(old, meta, learner, clock.tick, clock.length);
            memory.back(new, learner, clock.tick, weight)
        });
    }

    fn victim(&mut self, keep: Option<SlotId>, _: impl LastUse, _: &mut Looks) -> Option<SlotId> {
        self.worst::<false>(keep)
    }

    fn victim_for_weight(
        &mut self,
        keep: Option<SlotId>,
        _: impl LastUse,
        _: &mut Looks,
    ) -> Option<SlotId> {
        self.worst::<true>(keep)
    }

    /// What it is worth now, whatever it weighs.
    fn heat(&self, slot: SlotId) -> u32 {
        if !self.occupied.contains(slot) {
            return 0;
        }
        u32::from(self.learner.worth(self.metas.get(slot).cell(self.clock.tick)).rank())
    }

    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        let mut len = 0;
        for slot in occupied {
            assert!(self.occupied.contains(slot), "{slot:?} is not known to be occupied");
            assert!(!self.metas.get(slot).is_vacant(), "{slot:?} has no meta");
            len += 1;
        }
        assert_eq!(self.occupied.len(), len, "the policy knows slots that the shard does not");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_of_insertions_takes_its_ticks_in_shards_of_any_length() {
        for length in [1, 63, 64, 65, 1000, 3_000_000, 20_000_000, 1 << 31] {
            let mut clock = Clock::default();
            clock.fit(length);
            let insertions = length.max(Clock::LEAST) as u64;
            let units = u64::from(clock.pace) * insertions;
            let ticks = units as f64 / f64::from(Clock::UNITS);
            assert!((ticks - f64::from(TICKS)).abs() < 2.0, "{ticks} of {length}");
            let begun = (0..100).filter(|_| clock.advance()).count();
            assert!(clock.tick as usize >= begun && clock.passed < Clock::UNITS);
            assert_eq!(
                u64::from(clock.tick) * u64::from(Clock::UNITS) + u64::from(clock.passed),
                100 * u64::from(clock.pace)
            );
        }
    }
}
