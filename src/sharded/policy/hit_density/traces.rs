//! A word for each slot: what is known of its entry, or that there is none.

use wide::u32x8;

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::super::chunked::{Chunked, SlotId};
use super::super::reach;
use super::learner::{Bin, Cell, Class, Weight};
use super::runners_up::Order;

/// Neighbours that are drawn together: those whose traces stand in one line of the processor's
/// cache.
pub(super) const LINE: u32 = 16;
/// Of those, so many are compared with vector instructions.
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

    /// What of a tick goes into an [`Order`]: as many of its lower bits as there is room for.
    const REST: u32 = Self::TICK - RUN.ilog2();
    const REST_MASK: u32 = (1 << Order::WORTH) - RUN as u32;

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

    /// No word of this tick or an earlier one is more than this.
    #[inline]
    fn present(now: u32) -> u32 {
        now << Self::TICK | ((1 << Self::TICK) - 1)
    }

    /// How long ago the last use was, and below that bits that mean nothing.
    #[inline]
    fn since(self, now: u32) -> u32 {
        Self::present(now).wrapping_sub(self.0)
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

    /// Where its worth stands.
    #[inline]
    pub(super) fn cell(self, now: u32) -> Cell {
        Cell::new(self.0 >> Self::CLASS, self.bin(now))
    }

    /// What decides between equals: the lower bits of the tick of the last use, and none yet where
    /// its place in the run goes.
    #[inline]
    pub(super) fn rest(self, now: u32) -> u32 {
        !self.since(now) >> Self::REST & Self::REST_MASK
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

/// Traces of neighbours.
#[derive(Debug)]
#[repr(align(64))]
struct Line([AtomicU32; LINE as usize]);

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
        (SlotId::from_bits(slot.bits() / LINE), (slot.bits() % LINE) as usize)
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
    #[inline]
    pub(super) fn take(&mut self, slot: SlotId) -> Trace {
        let (line, place) = Self::at(slot);
        Trace(std::mem::replace(self.0[line].0[place].get_mut(), Trace::VACANT.0))
    }

    #[inline]
    pub(super) fn insert(&mut self, slot: SlotId, trace: Trace) {
        let (line, place) = Self::at(slot);
        *reach(&mut self.0, line).0[place].get_mut() = trace.0;
    }

    /// How many [`line`](Self::line)s there are.
    pub(super) fn lines(&self) -> u32 {
        self.0.len() as u32
    }

    /// Those of slots next to each other, vacant ones too.
    #[inline]
    pub(super) fn line(&mut self, line: u32) -> [Run; LINE as usize / RUN] {
        let Line(words) = &mut self.0[SlotId::from_bits(line)];
        let words = words.each_mut().map(|word| *word.get_mut());
        std::array::from_fn(|run| Run(u32x8::new(words.as_chunks().0[run])))
    }
}

/// The traces of neighbours, for whom things are computed all at once: a third of the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run(u32x8);

impl Run {
    #[inline]
    fn since(self, now: u32) -> u32x8 {
        u32x8::splat(Trace::present(now)) - self.0
    }

    /// Of each its [cell](Trace::cell).
    #[inline]
    pub(super) fn cells(self, now: u32) -> [Cell; RUN] {
        let fourfold = self.since(now) >> (Trace::TICK - 2) | u32x8::splat(3);
        Cell::of_each(self.0 >> Trace::CLASS, fourfold)
    }

    /// What decides between equals; in the lowest bits the place.
    #[inline]
    pub(super) fn rests(self, now: u32) -> [u32; RUN] {
        let youth = !self.since(now) >> Trace::REST & u32x8::splat(Trace::REST_MASK);
        (youth | u32x8::new(std::array::from_fn(|place| place as u32))).to_array()
    }

    #[inline]
    pub(super) fn weights(self) -> [Weight; RUN] {
        self.0.to_array().map(Weight::from_bits)
    }
}
