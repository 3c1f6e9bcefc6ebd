//! Learned hit density: whoever will bring the fewest hits for the room it takes leaves.
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
//! The victim is the worst of [`DRAWS`] entries drawn at random and of the [`RUNNERS_UP`] that came
//! out worst before without leaving, as in Redis's sampled eviction. Hence no list is kept, and a
//! hit stores one word, and that only if the clock has moved on since the entry's last use.
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
//! hits that meet may lose one of two uses, which is one of seven, or one of thousands of counts.
//! Writers change the word under the write lock, which orders them after all hits before.

mod ghosts;
mod learner;
mod occupied;

use std::sync::Arc;

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::chunked::{Chunked, SlotId};
use super::super::index::SlotHash;
use super::{HitNote, Leave, Policy, mark_of};
use ghosts::{Ghosts, Sample};
pub(in super::super) use learner::Learner;
use learner::{Class, TICKS};
use occupied::Occupied;

/// Entries drawn for an eviction. With 8 a replay loses 0.15 points.
const DRAWS: usize = 16;
/// Entries that are looked at again with the next eviction. 16 gain nothing.
const RUNNERS_UP: usize = 8;

/// What is known of an entry, in one word: from the top the tick of its last use, whether its key
/// is in the sample, and its class.
#[derive(Debug, Clone, Copy)]
struct Trace(u32);

impl Trace {
    const SAMPLED: u32 = 1 << Class::BITS;
    const TICK: u32 = Class::BITS + 1;
    /// Ticks wrap after half a million capacities.
    const TIMES: u32 = u32::MAX >> Self::TICK;

    #[inline]
    fn new(tick: u32, sampled: bool, class: Class) -> Self {
        let sampled = if sampled { Self::SAMPLED } else { 0 };
        Self(tick << Self::TICK | sampled | class.bits())
    }

    #[inline]
    fn age(self, now: u32) -> u32 {
        now.wrapping_sub(self.0 >> Self::TICK) & Self::TIMES
    }

    /// The whole tick of the last use, of which the word has the lower bits; and the class.
    fn last_use(self, now: u32) -> (u32, Class) {
        (now.wrapping_sub(self.age(now)), self.class())
    }

    #[inline]
    fn is_sampled(self) -> bool {
        self.0 & Self::SAMPLED != 0
    }

    #[inline]
    fn class(self) -> Class {
        Class::from_bits(self.0)
    }
}

#[derive(Debug)]
pub(in super::super) struct HitDensity {
    /// A [`Trace`] for each slot; of a vacant one it means nothing.
    traces: Chunked<AtomicU32>,
    occupied: Occupied,
    /// The slots that were worst but one, but two, … of the last eviction, or `NONE`.
    runners_up: [SlotId; RUNNERS_UP],
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
}

impl Clock {
    const UNITS: u32 = 1 << 16;
    /// A shard with fewer entries counts as one with so many: while the first ones come, time
    /// should not fly.
    const LEAST: usize = 64;

    /// One more insertion into a shard of `length` entries.
    fn advance(&mut self, length: usize) {
        let length = u64::try_from(length.max(Self::LEAST)).unwrap_or(u64::MAX);
        self.passed += (u64::from(TICKS * Self::UNITS) / length) as u32;
        self.tick = self.tick.wrapping_add(self.passed / Self::UNITS);
        self.passed %= Self::UNITS;
    }
}

impl HitDensity {
    pub(in super::super) fn new(learner: Arc<Learner>) -> Self {
        Self {
            traces: Chunked::default(),
            occupied: Occupied::default(),
            runners_up: [SlotId::NONE; RUNNERS_UP],
            ghosts: Ghosts::default(),
            sample: Sample::default(),
            learner,
            clock: Clock::default(),
            next_step: 0,
            random: 0x9E37_79B9,
        }
    }

    fn trace(&mut self, slot: SlotId) -> Trace {
        Trace(*self.traces[slot].get_mut())
    }

    /// Any occupied slot; each about as likely as the others.
    fn draw(&mut self) -> Option<SlotId> {
        // Marsaglia's xorshift: nobody gains by foreseeing it.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let place = (u64::from(self.random) * self.traces.len() as u64) >> 32;
        self.occupied.at_or_after(SlotId::from_bits(place as u32))
    }

    /// What makes one entry leave before another: less value, then more age.
    fn rank(&mut self, slot: SlotId) -> Rank {
        let trace = self.trace(slot);
        let age = trace.age(self.clock.tick);
        Rank { value: self.learner.value(trace.class(), age), age, slot }
    }
}

#[derive(Debug, Clone, Copy)]
struct Rank {
    value: f32,
    age: u32,
    slot: SlotId,
}

impl Rank {
    fn leaves_before(&self, other: &Self) -> bool {
        self.value < other.value || (self.value == other.value && self.age > other.age)
    }
}

/// The worst of those looked at, the very worst first.
struct Worst {
    ranks: [Option<Rank>; RUNNERS_UP + 1],
    len: usize,
}

impl Worst {
    fn consider(&mut self, new: Rank) {
        let is_full = self.len == self.ranks.len();
        let last = if is_full { self.ranks[self.len - 1] } else { None };
        // Most are better than all that are kept.
        if last.is_some_and(|last| !new.leaves_before(&last)) {
            return;
        }
        let ranks = &self.ranks[..self.len];
        if ranks.iter().flatten().any(|rank| rank.slot == new.slot) {
            return;
        }
        let ahead = |rank: &Option<Rank>| rank.is_some_and(|rank| !new.leaves_before(&rank));
        let place = ranks.iter().position(|rank| !ahead(rank)).unwrap_or(self.len);
        if place == self.ranks.len() {
            return;
        }
        self.len = (self.len + 1).min(self.ranks.len());
        self.ranks[place..self.len].rotate_right(1);
        self.ranks[place] = Some(new);
    }
}

impl Policy for HitDensity {
    fn insert(&mut self, slot: SlotId, hash: SlotHash) {
        self.occupied.insert(slot);
        let length = self.occupied.len();
        let before = self.clock.tick;
        self.clock.advance(length);
        let now = self.clock.tick;
        if now != before {
            self.sample.sweep(&self.learner, now);
        }
        self.sample.fit(length, self.learner.watched_by_shard());
        let sampled = self.sample.contains(hash);
        if sampled {
            self.sample.back(hash, &self.learner, now);
        }
        let class = match self.ghosts.take(hash, now) {
            Some((age, class)) => class.after(age),
            None => Class::NEW,
        };
        *self.traces.reach(slot).get_mut() = Trace::new(now, sampled, class).0;
        if now.wrapping_sub(self.next_step) as i32 >= 0 {
            self.next_step = now.wrapping_add(self.learner.pace());
            self.learner.step();
        }
    }

    /// The tick: within one, the first hit says all.
    #[inline]
    fn mark(&self) -> u32 {
        mark_of(self.clock.tick)
    }

    #[inline]
    fn hit(&self, slot: SlotId) -> HitNote {
        let word = &self.traces[slot];
        let trace = Trace(word.load(Relaxed));
        let age = trace.age(self.clock.tick);
        if age != 0 {
            let class = trace.class();
            word.store(
                Trace::new(self.clock.tick, trace.is_sampled(), class.after(age)).0,
                Relaxed,
            );
            if trace.is_sampled() {
                self.learner.ended(class, age);
            }
        }
        HitNote::Settled
    }

    fn touch(&mut self, slot: SlotId) {
        self.hit(slot);
    }

    fn settle(&mut self, _: impl FnMut(SlotId)) {}

    fn remove(&mut self, slot: SlotId, hash: SlotHash, leave: Leave) {
        let length = self.occupied.len();
        self.occupied.remove(slot);
        if leave != Leave::Evicted {
            return;
        }
        let (trace, now) = (self.trace(slot), self.clock.tick);
        let (tick, class) = trace.last_use(now);
        self.ghosts.remember(hash, tick, class, now, length);
        if trace.is_sampled() {
            self.sample.left(hash, (tick, class), &self.learner, now);
        }
    }

    fn victim(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        let mut worst = Worst { ranks: [None; RUNNERS_UP + 1], len: 0 };
        for slot in self.runners_up {
            // A slot that was vacated and filled since is one like any other.
            if Some(slot) != keep && self.occupied.contains(slot) {
                worst.consider(self.rank(slot));
            }
        }
        for _ in 0..DRAWS {
            let slot = self.draw()?;
            if Some(slot) != keep {
                worst.consider(self.rank(slot));
            }
        }
        for (kept, rank) in self.runners_up.iter_mut().zip(&worst.ranks[1..]) {
            *kept = rank.map_or(SlotId::NONE, |rank| rank.slot);
        }
        match worst.ranks[0] {
            Some(rank) => Some(rank.slot),
            // Only what is to be kept was drawn: who is next to it?
            None => {
                let next = SlotId::from_bits(keep?.bits() + 1);
                self.occupied.at_or_after(next).filter(|&slot| Some(slot) != keep)
            }
        }
    }

    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        let mut len = 0;
        for slot in occupied {
            assert!(self.occupied.contains(slot), "{slot:?} is not known to be occupied");
            assert!(self.traces.get(slot).is_some(), "{slot:?} has no trace");
            len += 1;
        }
        assert_eq!(self.occupied.len(), len, "the policy knows slots that the shard does not");
    }
}
