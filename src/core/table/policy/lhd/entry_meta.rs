//! A word for each slot: what the policy knows of its entry, or that the slot is vacant.

use wide::{i32x8, u32x8};

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::super::slots::{SlotId, Slots};
use super::measures::{Bin, Cell, Class, Weight, Worth};
use super::order::{Order, RUN};

/// Neighbours that are drawn together: those whose words stand in one cache line.
pub(super) const LINE: u32 = 16;

/// What is known of an entry: from the top the tick of its last use, whether its key is in the
/// sample, its class, and its weight. The class stands where its bits are the offset of its row of
/// worths.
#[derive(Debug, Clone, Copy)]
pub(super) struct EntryMeta(u32);

impl EntryMeta {
    /// Of a slot without an entry. No entry has this class, and its worth is more than that of any, so
    /// a search for the worst passes by it without a branch.
    pub(super) const VACANT: Self = Self(Class::VACANT.bits() << Self::CLASS);

    const CLASS: u32 = Weight::BITS;
    const SAMPLED: u32 = 1 << (Self::CLASS + Class::BITS);
    const TICK: u32 = Self::CLASS + Class::BITS + 1;

    /// Which bits of the word go into an [`Order`]: as many of the lower bits of the tick as have room.
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
        self.class() == Class::VACANT
    }
}

/// The words of neighbours: a cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Line([AtomicU32; LINE as usize]);

impl Default for Line {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(EntryMeta::VACANT.0)))
    }
}

#[derive(Debug, Default)]
pub(super) struct EntryMetas(Slots<Line>);

impl EntryMetas {
    #[inline]
    fn at(slot: SlotId) -> (SlotId, usize) {
        (SlotId::from_bits(slot.bits() / LINE), (slot.bits() % LINE) as usize)
    }

    /// That of a slot that has had an entry.
    #[inline]
    pub(super) fn get(&self, slot: SlotId) -> EntryMeta {
        let (line, place) = Self::at(slot);
        EntryMeta(self.0[line].0[place].load(Relaxed))
    }

    /// Under either lock: two hits at the same time write nearly the same.
    #[inline]
    pub(super) fn set(&self, slot: SlotId, meta: EntryMeta) {
        let (line, place) = Self::at(slot);
        self.0[line].0[place].store(meta.0, Relaxed);
    }

    /// That of an entry that leaves; its slot is vacant from now on.
    #[inline]
    pub(super) fn take(&mut self, slot: SlotId) -> EntryMeta {
        let (line, place) = Self::at(slot);
        EntryMeta(std::mem::replace(self.0[line].0[place].get_mut(), EntryMeta::VACANT.0))
    }

    #[inline]
    pub(super) fn insert(&mut self, slot: SlotId, meta: EntryMeta) {
        let (line, place) = Self::at(slot);
        *self.0.reach(line).0[place].get_mut() = meta.0;
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

/// The words of neighbours, for which everything is computed at once: a third of the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run(u32x8);

impl Run {
    #[inline]
    fn since(self, now: u32) -> u32x8 {
        u32x8::splat(EntryMeta::present(now)) - self.0
    }

    /// Of each its [cell](EntryMeta::cell).
    #[inline]
    pub(super) fn cells(self, now: u32) -> [Cell; RUN] {
        let fourfold = self.since(now) >> (EntryMeta::TICK - 2) | u32x8::splat(3);
        Cell::of_each(self.0 >> EntryMeta::CLASS, fourfold)
    }

    /// In which order each leaves, if they are worth so much.
    #[inline]
    pub(super) fn orders(self, worths: [Worth; RUN], now: u32) -> i32x8 {
        let youth = !self.since(now) >> EntryMeta::REST & u32x8::splat(EntryMeta::REST_MASK);
        let place = u32x8::new(std::array::from_fn(|place| place as u32));
        Order::of_each(worths, youth | place)
    }

    #[inline]
    pub(super) fn weights(self) -> [Weight; RUN] {
        self.0.to_array().map(Weight::from_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 3_000_000;
    const AGES: [u32; 11] = [0, 1, 2, 3, 31, 127, 128, 1000, 2047, 2048, 400_000];

    fn class() -> Class {
        Class::NEW.after(50).after(500)
    }

    #[test]
    fn a_word_gives_back_what_it_holds() {
        for (age, sampled, weight) in
            AGES.into_iter().flat_map(|age| [(age, false, 1), (age, true, 1 << 20)])
        {
            let meta = EntryMeta::new(NOW - age, sampled, class(), Weight::of(weight));
            assert_eq!((meta.age(NOW), meta.is_sampled()), (age, sampled));
            assert_eq!(meta.last_use(NOW), (NOW - age, class()));
            assert_eq!((meta.weight(), meta.is_vacant()), (Weight::of(weight), false));
            assert_eq!(meta.bin(NOW).index(), Bin::of(age).index(), "{age}");

            let used = meta.used(NOW, Class::NEW.after(1));
            assert_eq!(used.last_use(NOW), (NOW, Class::NEW.after(1)));
            assert_eq!((used.weight(), used.is_sampled()), (Weight::of(weight), sampled));

            let weighing = meta.weighing(Weight::of(77));
            assert_eq!(weighing.weight(), Weight::of(77));
            assert_eq!(weighing.last_use(NOW), meta.last_use(NOW));
        }
        // Ticks wrap around, in the word and as a whole.
        for now in [0, 5, 1 << 19, u32::MAX] {
            let meta = EntryMeta::new(now.wrapping_sub(9), false, class(), Weight::of(1));
            assert_eq!(meta.last_use(now), (now.wrapping_sub(9), class()));
        }
    }

    #[test]
    fn slots_are_vacant_until_they_are_filled_and_once_they_are_left() {
        let mut metas = EntryMetas::default();
        let (slot, meta) = (SlotId::from_bits(37), EntryMeta::new(7, true, class(), Weight::of(3)));
        metas.insert(slot, meta);
        assert_eq!(metas.lines(), 3);
        assert_eq!(metas.get(slot).0, meta.0);
        assert!(
            (32..48)
                .filter(|&other| other != 37)
                .all(|other| { metas.get(SlotId::from_bits(other)).is_vacant() })
        );
        metas.set(slot, meta.weighing(Weight::of(1)));
        assert_eq!(metas.take(slot).0, meta.weighing(Weight::of(1)).0);
        assert!(metas.get(slot).is_vacant());
    }

    #[test]
    fn neighbours_are_judged_as_each_alone_would_be() {
        let mut metas = EntryMetas::default();
        for (place, age) in (16..).zip(AGES) {
            let weight = Weight::of(1 << (place % 4));
            let meta = EntryMeta::new(NOW - age, false, class(), weight);
            metas.insert(SlotId::from_bits(place), meta);
        }
        let worths = std::array::from_fn(|place| Worth::of(0.001 * place as f32));
        for (run, first) in metas.line(1).into_iter().zip([16, 24]) {
            let alone: [_; RUN] =
                std::array::from_fn(|place| metas.get(SlotId::from_bits(first + place as u32)));
            assert_eq!(run.cells(NOW), alone.map(|meta| meta.cell(NOW)));
            assert_eq!(run.weights(), alone.map(EntryMeta::weight));
            let orders: [_; RUN] = std::array::from_fn(|place| {
                Order::new(worths[place], alone[place].rest(NOW) | place as u32)
            });
            let first = orders.into_iter().min().unwrap();
            let found = run.orders(worths, NOW);
            assert_eq!(Order::first_of_each([found, found]), [first; 2]);
        }
    }
}
