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
//! The victim is the worst of [`LINE`] neighbours at a place drawn at random and of the [`RunnersUp`]
//! that came out worst before without leaving, as in Redis's sampled eviction. Hence
//! no list is kept, and a hit stores one word, and that only if the clock has moved on since the
//! entry's last use.
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

mod entry_meta;
mod ghosts;
mod learner;
mod measures;
mod occupied;
mod order;
mod runners_up;

use std::sync::Arc;

use super::super::index::SlotHash;
use super::super::slots::SlotId;
use super::super::ticks::{LastUse, Looks};
use super::contract::{HitNote, Policy, epoch_of};
use entry_meta::{EntryMeta, EntryMetas, LINE};
use ghosts::{Ghosts, Sample};
pub(in super::super) use learner::Learner;
use measures::{Class, TICKS, Weight};
use occupied::Occupied;
use order::{Order, RUN};
use runners_up::RunnersUp;

#[derive(Debug)]
pub(in super::super) struct HitDensity {
    metas: EntryMetas,
    occupied: Occupied,
    runners_up: RunnersUp,
    ghosts: Ghosts,
    sample: Sample,
    learner: Arc<Learner>,
    clock: Clock,
    /// The tick of the next step in learning.
    next_step: u32,
    /// Of the generator that draws slots.
    random: u32,
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
            runners_up: RunnersUp::default(),
            ghosts: Ghosts::default(),
            sample: Sample::default(),
            learner,
            clock: Clock::default(),
            next_step: 0,
            random: 0x9E37_79B9,
        }
    }

    /// The shard holds `length` entries from now on.
    #[cold]
    #[inline(never)]
    fn fit(&mut self, length: usize) {
        self.clock.fit(length);
        self.sample.fit(length, self.learner.watched_by_shard());
    }

    /// What is done once in a tick.
    #[cold]
    #[inline(never)]
    fn tick(&mut self) {
        let now = self.clock.tick;
        self.sample.sweep(&self.learner, now);
        if now.wrapping_sub(self.next_step) as i32 >= 0 {
            self.next_step = now.wrapping_add(self.learner.pace());
            self.learner.step();
        }
    }

    /// A place below `places`; each about as likely as the others.
    fn draw(&mut self, places: u32) -> u32 {
        // Marsaglia's xorshift: foreseeing it gains nothing.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        ((u64::from(self.random) * u64::from(places)) >> 32) as u32
    }

    /// Looks at the entries of a line, so that the worst of each half are among the runners-up.
    #[inline]
    fn draw_line<const BY_WEIGHT: bool>(&mut self) {
        let line = self.draw(self.metas.lines());
        let now = self.clock.tick;
        let halves = self.metas.line(line).map(|run| {
            let mut worths = run.cells(now).map(|cell| self.learner.worth(cell));
            if BY_WEIGHT {
                let weights = run.weights();
                worths = std::array::from_fn(|place| worths[place].by(weights[place]));
            }
            run.orders(worths, now)
        });
        for (half, worst) in (0..).zip(Order::first_of_each(halves)) {
            let slot = SlotId::from_bits(line * LINE + half * RUN as u32 + worst.place());
            self.runners_up.keep(worst, slot);
        }
    }

    fn worst<const BY_WEIGHT: bool>(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        if self.occupied.len() == 0 {
            return None;
        }
        self.draw_line::<BY_WEIGHT>();
        // The rank of a runner-up is from when it was drawn. Only that of the worst has to be true.
        let (metas, learner, now) = (&self.metas, &self.learner, self.clock.tick);
        let order_now = |slot| {
            let meta = metas.get(slot);
            if Some(slot) == keep || meta.is_vacant() {
                return None;
            }
            let worth = learner.worth(meta.cell(now));
            let worth = if BY_WEIGHT { worth.by(meta.weight()) } else { worth };
            Some(Order::new(worth, meta.rest(now) | (slot.bits() % RUN as u32)))
        };
        if let Some(slot) = self.runners_up.pop(order_now) {
            return Some(slot);
        }
        self.any(keep)
    }

    /// Nothing was drawn but the entry to be kept, or all have been used since: any will do.
    #[cold]
    #[inline(never)]
    fn any(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        let from = self.draw(self.metas.lines()) * LINE;
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
        if self.clock.advance() {
            self.tick();
        }
        let now = self.clock.tick;
        let sampled = self.sample.contains(hash);
        if sampled {
            self.sample.back(hash, &self.learner, now);
        }
        let class = self.ghosts.take(hash, now).unwrap_or(Class::NEW);
        self.metas.insert(slot, EntryMeta::new(now, sampled, class, Weight::of(weight)));
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
        let length = self.occupied.len();
        self.occupied.remove(slot);
        let (meta, now) = (self.metas.take(slot), self.clock.tick);
        let (tick, class) = meta.last_use(now);
        self.ghosts.remember(hash, tick, class, now, length);
        if meta.is_sampled() {
            self.sample.left(hash, (tick, class), &self.learner, now);
        }
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
        u32::from(self.learner.worth(self.metas.get(slot).cell(self.clock.tick)).bits())
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
