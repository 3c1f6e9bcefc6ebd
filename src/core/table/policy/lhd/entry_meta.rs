//! A word for each slot: what the policy knows of its entry, or that the slot is vacant.

use wide::bytemuck::cast;
use wide::{i16x8, i32x8, u16x8, u32x8};

use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::super::slots::{SlotId, Slots};
use super::measures::{AGES, Bin, Cell, Class, Weight, Worth};
use super::order::Orders;

/// Neighbours that are drawn together: those whose words stand in one cache line.
pub(super) const LINE: u32 = 16;
/// Neighbours whose words are handled with vector instructions, all at once.
const RUN: usize = 8;

/// What is known of an entry: from the top the tick of its last use, whether its key is in the
/// sample, its class, and its weight. The class stands where its bits are the offset of its row of
/// worths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryMeta(u32);

impl EntryMeta {
    /// Of a slot without an entry. No entry has this class, and its worth is more than that of any, so
    /// a search for the worst passes by it without a branch.
    pub(super) const VACANT: Self = Self(Class::VACANT.bits() << Self::CLASS);

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

    #[cfg(test)]
    fn weight(self) -> u32 {
        self.0 & Weight::MASK
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

    /// Another word for another entry in the same slot.
    #[inline]
    pub(super) fn update(&mut self, slot: SlotId, new: impl FnOnce(EntryMeta) -> EntryMeta) {
        let (line, place) = Self::at(slot);
        let word = self.0[line].0[place].get_mut();
        *word = new(EntryMeta(*word)).0;
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
    pub(super) fn line(&mut self, line: u32) -> Words {
        let Line(words) = &mut self.0[SlotId::from_bits(line)];
        Words(words.each_mut().map(|word| *word.get_mut()))
    }
}

/// The words of a line, for which everything is computed at once: a third of the instructions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words([u32; LINE as usize]);

impl Words {
    #[inline]
    pub(super) fn at(&self, place: usize) -> EntryMeta {
        EntryMeta(self.0[place % LINE as usize])
    }

    /// In which order each leaves.
    #[inline]
    pub(super) fn orders<const BY_WEIGHT: bool>(
        &self,
        now: u32,
        worth: impl Fn(Cell) -> Worth,
    ) -> Orders {
        let [lower, upper] = *self.0.as_chunks::<RUN>().0 else { unreachable!("two runs") };
        let lower = orders::<BY_WEIGHT>(u32x8::new(lower), now, &worth);
        Orders(cast([lower, orders::<BY_WEIGHT>(u32x8::new(upper), now, &worth)]))
    }
}

/// As 16 bits, which are taken out of a vector one by one with fewer instructions.
#[inline]
fn narrow(numbers: u32x8) -> i16x8 {
    i16x8::from_i32x8_saturate(cast(numbers))
}

#[inline]
fn orders<const BY_WEIGHT: bool>(words: u32x8, now: u32, worth: impl Fn(Cell) -> Worth) -> i16x8 {
    const ROW: u32 = EntryMeta::CLASS - AGES.ilog2();
    let since = u32x8::splat(EntryMeta::present(now)) - words;
    let fourfold = since >> (EntryMeta::TICK - 2) | u32x8::splat(3);
    // The bin, as `Bin::of_fourfold` finds it, and below it two bits more of the age.
    let age = cast::<_, u32x8>(cast::<_, i32x8>(fourfold).round_float());
    let age = narrow(age >> (Bin::SHIFT - 2)) & i16x8::splat(4 * AGES as i16 - 1);
    let bin: i16x8 = age >> 2;
    let classes = u32x8::splat(((1 << Class::BITS) - 1) << EntryMeta::CLASS);
    let row = narrow(words & classes) >> ROW;
    // Not by `map`, which passes each through memory.
    let [a, b, c, d, e, f, g, h] = (row | bin).to_array();
    let of = |cell| worth(Cell(cell as u32)).0;
    let mut worths = i16x8::new([of(a), of(b), of(c), of(d), of(e), of(f), of(g), of(h)]);
    if BY_WEIGHT {
        let weights = narrow(words & u32x8::splat(Weight::MASK));
        worths = worths.saturating_sub(weights << Weight::ROOT);
    }
    // In the lower bits of a worth, which are 0.
    let youth = u16x8::splat((1 << Worth::FREE) - 1).saturating_sub(cast(age));
    worths | cast::<_, i16x8>(youth)
}

#[cfg(test)]
mod tests {
    use super::super::order::Order;
    use super::*;

    const NOW: u32 = 3_000_000;
    const ROW: u32 = super::AGES as u32;
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
            assert_eq!((meta.weight(), meta.is_vacant()), (Weight::of(weight).bits(), false));
            assert_eq!(meta.bin(NOW).index(), Bin::of(age).index(), "{age}");

            let used = meta.used(NOW, Class::NEW.after(1));
            assert_eq!(used.last_use(NOW), (NOW, Class::NEW.after(1)));
            assert_eq!((used.weight(), used.is_sampled()), (Weight::of(weight).bits(), sampled));

            let weighing = meta.weighing(Weight::of(77));
            assert_eq!(weighing.weight(), Weight::of(77).bits());
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

    fn entries(weight: impl Fn(u32) -> u64) -> EntryMetas {
        let mut metas = EntryMetas::default();
        for (place, age) in (16..).zip(AGES) {
            let meta = EntryMeta::new(NOW - age, false, class(), Weight::of(weight(place)));
            metas.insert(SlotId::from_bits(place), meta);
        }
        metas
    }

    #[test]
    fn neighbours_are_judged_as_each_alone_would_be() {
        let mut metas = entries(|_| 1);
        let worth = |Cell(cell)| Worth::of((cell % 7 + 1) as f32 * 0.01);
        let orders = metas.line(1).orders::<false>(NOW, worth).each();
        for (order, (place, age)) in orders.into_iter().zip((16..).zip(AGES)) {
            let meta = metas.get(SlotId::from_bits(place));
            assert_eq!(metas.line(1).at(place as usize % 16), meta);
            let quarters = (4.0 * age as f32 + 3.0).to_bits() >> 20 & 255;
            let youth = 127_u32.saturating_sub(quarters) as i16;
            assert_eq!(order.0, worth(meta.cell(NOW)).0 + youth, "{age}");
        }
    }

    #[test]
    fn vacant_slots_leave_never_whatever_the_rest_is_worth() {
        let mut metas = entries(|_| 1);
        let row = Cell::new(Class::VACANT.bits(), Bin::of(0)).0 / ROW;
        let worth = |Cell(cell)| if cell / ROW == row { Worth::MOST } else { Worth::of(9.0) };
        let of_all = metas.line(1).orders::<true>(NOW, worth);
        assert_eq!(of_all.before(Order::NEVER), (1 << AGES.len()) - 1);
        assert_eq!(metas.line(0).orders::<false>(NOW, worth).before(Order::NEVER), 0);
    }

    #[test]
    fn worth_is_divided_by_the_root_of_the_weight() {
        for (value, weight) in [(0.5, 1), (0.01, 2), (1.5, 3), (0.01, 1000), (1e-5, 3072), (0.1, 0)]
        {
            let orders = entries(|_| weight).line(1).orders::<true>(NOW, |_| Worth::of(value));
            let found = Worth(orders.each()[0].0 & !127).value();
            let wanted = value / (weight.max(1) as f32).sqrt();
            // Two logarithms that are straight lines, and steps.
            assert!((wanted * 0.8..wanted * 1.3).contains(&found), "{value} {weight}: {found}");
        }
    }
}
