//! A word for each slot: what is known of its entry, or that there is none.

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::super::chunked::{Chunked, SlotId};
use super::learner::{Bin, Class, Weight, Worth};
use super::runners_up::Order;

/// Neighbours that are drawn together.
pub(super) const RUN: usize = 8;

/// What is known of an entry: from the top the tick of its last use, whether its key is in the
/// sample, its class, and its weight. The class is where its bits are the offset of its row of worths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trace(u32);

impl Trace {
    /// Of a slot without an entry. No entry has this class, so nothing need be asked to pass by it.
    pub(super) const VACANT: Self = Self(Class::NOBODY.bits() << Self::CLASS);

    const CLASS: u32 = Weight::BITS;
    const SAMPLED: u32 = 1 << (Self::CLASS + Class::BITS);
    const TICK: u32 = Self::CLASS + Class::BITS + 1;

    #[inline]
    pub(super) fn new(tick: u32, sampled: bool, class: Class, weight: Weight) -> Self {
        let sampled = if sampled { Self::SAMPLED } else { 0 };
        Self(tick << Self::TICK | sampled | class.bits() << Self::CLASS | weight.bits())
    }

    /// That of the same entry after a use that gave it a class.
    #[inline]
    pub(super) fn used(self, tick: u32, class: Class) -> Self {
        let same = self.0 & (Self::SAMPLED | Weight::MASK);
        Self(tick << Self::TICK | class.bits() << Self::CLASS | same)
    }

    /// That of the same entry with another weight.
    pub(super) fn weighing(self, weight: Weight) -> Self {
        Self(self.0 & !Weight::MASK | weight.bits())
    }

    #[inline]
    pub(super) fn weight(self) -> Weight {
        Weight::from_bits(self.0)
    }

    #[inline]
    pub(super) fn of(word: &AtomicU32) -> Self {
        Self(word.load(Relaxed))
    }

    /// How long ago the last use was, and below that bits that mean nothing.
    #[inline]
    fn since(self, now: u32) -> u32 {
        (now << Self::TICK | ((1 << Self::TICK) - 1)).wrapping_sub(self.0)
    }

    #[inline]
    pub(super) fn age(self, now: u32) -> u32 {
        self.since(now) >> Self::TICK
    }

    /// The bin of the age.
    #[inline]
    pub(super) fn bin(self, now: u32) -> Bin {
        Bin::of_fourfold(self.since(now) >> (Self::TICK - 2) | 3)
    }

    /// When it leaves, if it is worth so much.
    #[inline]
    pub(super) fn order(self, worth: Worth, now: u32) -> Order {
        Order::new(worth, !self.since(now))
    }

    /// The whole tick of the last use, of which the word has the lower bits; and the class.
    pub(super) fn last_use(self, now: u32) -> (u32, Class) {
        (now.wrapping_sub(self.age(now)), self.class())
    }

    #[inline]
    pub(super) fn is_sampled(self) -> bool {
        self.0 & Self::SAMPLED != 0
    }

    #[inline]
    pub(super) fn class(self) -> Class {
        Class::from_bits(self.0 >> Self::CLASS)
    }

    #[inline]
    pub(super) fn is_vacant(self) -> bool {
        self.class() == Class::NOBODY
    }
}

/// Traces of 16 slots, in one line of the processor's cache.
#[derive(Debug)]
#[repr(align(64))]
struct Line([AtomicU32; Line::SLOTS as usize]);

impl Line {
    const SLOTS: u32 = 16;
}

impl Default for Line {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(Trace::VACANT.0)))
    }
}

#[derive(Debug, Default)]
pub(super) struct Traces(Chunked<Line>);

impl Traces {
    #[inline]
    fn at(slot: SlotId) -> (SlotId, usize) {
        (SlotId::from_bits(slot.bits() / Line::SLOTS), (slot.bits() % Line::SLOTS) as usize)
    }

    /// The trace of a slot that has had an entry.
    #[inline]
    pub(super) fn get(&self, slot: SlotId) -> Trace {
        let (line, place) = Self::at(slot);
        Trace(self.0[line].0[place].load(Relaxed))
    }

    /// Under either lock: what two hits write at the same time is nearly the same.
    #[inline]
    pub(super) fn set(&self, slot: SlotId, trace: Trace) {
        let (line, place) = Self::at(slot);
        self.0[line].0[place].store(trace.0, Relaxed);
    }

    /// The trace of an entry that leaves; its slot is vacant from now on.
    pub(super) fn take(&mut self, slot: SlotId) -> Trace {
        let (line, place) = Self::at(slot);
        Trace(std::mem::replace(self.0[line].0[place].get_mut(), Trace::VACANT.0))
    }

    pub(super) fn insert(&mut self, slot: SlotId, trace: Trace) {
        if Self::at(slot).0.bits() as usize >= self.0.len() {
            self.0.reach(Self::at(slot).0);
        }
        self.set(slot, trace);
    }

    /// How many [`run`](Self::run)s there are.
    pub(super) fn runs(&self) -> u32 {
        (self.0.len() * (Line::SLOTS as usize / RUN)) as u32
    }

    /// The words of slots next to each other, vacant ones too.
    #[inline]
    pub(super) fn run(&self, run: u32) -> &[AtomicU32; RUN] {
        let runs = Line::SLOTS / RUN as u32;
        let line = &self.0[SlotId::from_bits(run / runs)];
        &line.0.as_chunks::<RUN>().0[(run % runs) as usize]
    }
}
