//! What is measured of an entry, and what follows from it: class, age, worth and weight, each in as
//! many bits as are of use.

/// Ticks in a capacity: the time in which as many entries are inserted as the shard holds.
pub(super) const TICKS: u32 = 128;
/// Ages beyond this, in ticks, are all alike: 16 capacities. To wait longer is worth almost
/// nothing, and with half of it loops and slow re-use were seen too late (0.3 points in replays).
pub(super) const OLDEST: u32 = 16 * TICKS;
/// Two bins for each doubling of the age, from a tick to [`OLDEST`]; with one, 0.3 points are lost.
/// The first and the third stay empty, which makes the bin of an age easy to find.
pub(super) const BINS: usize = 25;
/// How often an entry was used, up to 7.
pub(super) const FREQUENCIES: usize = 8;
/// How long the wait before the last access was: none, up to an eighth of a capacity, up to a whole
/// one, longer. Twice as many make no difference in replays.
pub(super) const INTERVALS: usize = 4;
const SHORT: u32 = TICKS / 8;
pub(super) const CLASSES: usize = FREQUENCIES * INTERVALS;

/// As many bins as ages can have: those from [`BINS`] on are like the last of these, so that nothing
/// need be compared. They are next to never touched.
pub(super) const AGES: usize = 64;

/// Frequency and length of the wait before: what is known of an entry beside its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class(pub(super) u8);

impl Class {
    /// Never used again so far, as far as is remembered.
    pub(super) const NEW: Self = Self(0);
    /// The class of a vacant slot. No entry has it, and its worth is more than that of any.
    pub(super) const VACANT: Self = Self(1);

    pub(super) const BITS: u32 = CLASSES.ilog2();

    pub(super) fn from_bits(bits: u32) -> Self {
        Self((bits % CLASSES as u32) as u8)
    }

    pub(super) const fn bits(self) -> u32 {
        self.0 as u32
    }

    /// How often it was used.
    pub(super) fn frequency(self) -> u32 {
        u32::from(self.0) / INTERVALS as u32
    }

    /// A class of this frequency, for [`after`](Self::after).
    pub(super) fn of_frequency(frequency: u32) -> Self {
        Self((frequency as usize % FREQUENCIES * INTERVALS) as u8)
    }

    /// Whether entries can have the class of this number: an entry that was used again has a finished
    /// wait, and one that was not has none.
    pub(super) fn occurs(class: usize) -> bool {
        class == Self::NEW.0 as usize || (class >= INTERVALS && !class.is_multiple_of(INTERVALS))
    }

    /// The class after a wait of `age` ticks ended in an access.
    #[inline]
    pub(super) fn after(self, age: u32) -> Self {
        let frequency = (self.0 as usize / INTERVALS + 1).min(FREQUENCIES - 1);
        let interval = match age {
            0..SHORT => 1,
            SHORT..TICKS => 2,
            _ => 3,
        };
        Self((frequency * INTERVALS + interval) as u8)
    }
}

/// The bin of an age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bin(u32);

impl Bin {
    pub(super) const BITS: u32 = 5;
    /// Bits of a float below those that make a bin.
    pub(super) const SHIFT: u32 = 22;

    /// That of an age in ticks.
    #[inline]
    pub(super) fn of(age: u32) -> Self {
        Self(Self::of_fourfold(4 * age.min(OLDEST) + 3).index() as u32)
    }

    /// That of an age in ticks, given four times and three more.
    #[inline]
    pub(super) fn of_fourfold(age: u32) -> Self {
        // The bits of a float above all but one of its mantissa's: twice the exponent, and in which
        // half of the doubling. The exponent of 2 has no bits among the lower ones.
        // Signed, which takes fewer instructions and is the same, as ages are less than half of all.
        Self((age as i32 as f32).to_bits() >> Self::SHIFT)
    }

    /// Its place among the counts.
    #[inline]
    pub(super) fn index(self) -> usize {
        (self.0 as usize % AGES).min(BINS - 1)
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self(bits % (1 << Self::BITS))
    }

    pub(super) fn bits(self) -> u32 {
        self.0
    }
}

/// The age at which a bin begins, in ticks.
pub(super) const fn edge(bin: usize) -> f32 {
    match bin {
        0 | 1 => 0.0,
        2 | 3 => 1.0,
        _ => (1 << (bin / 2 - 1)) as f32 * if bin.is_multiple_of(2) { 1.0 } else { 1.5 },
    }
}

/// The age at which a bin ends, in ticks; the last is taken to be half as long as all before.
pub(super) const fn end(bin: usize) -> f32 {
    if bin == BINS - 1 { edge(bin) * 1.5 } else { edge(bin + 1) }
}

/// How long each bin is.
pub(super) const WIDTHS: [f32; BINS] = {
    let mut widths = [0.0; BINS];
    let mut bin = 0;
    while bin < BINS {
        widths[bin] = end(bin) - edge(bin);
        bin += 1;
    }
    widths
};

/// Where the worth of a class and bin stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell(pub(super) u32);

impl Cell {
    /// The class stands in the lower bits of `class`; others may stand above.
    #[inline]
    pub(super) fn new(class: u32, bin: Bin) -> Self {
        Self(class % CLASSES as u32 * AGES as u32 + bin.0 % AGES as u32)
    }
}

/// What it is worth to keep an entry: its logarithm from 2^-31 to 2, in steps of a 16th of a doubling
/// and counted from the least number on. The lower bits are 0: an [`Order`](super::order::Order) has the
/// age there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Worth(pub(super) i16);

impl Worth {
    /// The lower bits that are 0.
    pub(super) const FREE: u32 = 7;
    /// Bits of a float below those that are kept: its logarithm, nearly.
    const SHIFT: u32 = 19;
    /// The bits of the float that counts as 0.
    const NOTHING: u32 = (127 - 31) << (23 - Self::SHIFT);

    /// More than that of any entry.
    pub(super) const MOST: Self = Self(i16::MAX & !((1 << Self::FREE) - 1));

    pub(super) fn of(value: f32) -> Self {
        let steps = (value.to_bits() >> Self::SHIFT).saturating_sub(Self::NOTHING);
        let below_most = (1 << (u16::BITS - Self::FREE)) - 2;
        Self((steps.min(below_most) << Self::FREE) as i16 ^ i16::MIN)
    }

    /// Counted from 0 on.
    #[inline]
    pub(super) const fn rank(self) -> u16 {
        (self.0 ^ i16::MIN) as u16
    }

    #[cfg(test)]
    pub(super) fn value(self) -> f32 {
        f32::from_bits(((u32::from(self.rank()) >> Self::FREE) + Self::NOTHING) << Self::SHIFT)
    }
}

/// The weight of an entry in steps of a quarter of a doubling, up to 2^32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight(u8);

impl Weight {
    pub(super) const BITS: u32 = 7;
    pub(super) const MASK: u32 = (1 << Self::BITS) - 1;

    /// Of the bits of a [`Worth`], those below the square root of a step: an eighth of a doubling. A
    /// worth divided by the weight itself is best for the part of requests that are hits, one that is not
    /// divided for the part of bytes; the root loses little of either.
    pub(super) const ROOT: u32 = Worth::FREE + 1;

    #[inline]
    pub(super) fn of(weight: u64) -> Self {
        // A quarter of a doubling: two bits of a float's mantissa.
        const SHIFT: u32 = 23 - 2;
        let steps = ((weight as f32).to_bits() >> SHIFT).saturating_sub(1_f32.to_bits() >> SHIFT);
        Self(steps.min(Self::MASK) as u8)
    }

    pub(super) fn bits(self) -> u32 {
        u32::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_follow_one_another_and_hold_their_ages() {
        let mut last = 0;
        for age in 0..3 * OLDEST {
            let bin = Bin::of(age).index();
            assert!(bin >= last && edge(bin) <= age as f32, "{age} in {bin}");
            assert!(bin == BINS - 1 || (age as f32) < edge(bin + 1), "{age} in {bin}");
            last = bin;
        }
        assert_eq!(
            (last, Bin::of(OLDEST).index(), Bin::of(OLDEST - 1).index()),
            (BINS - 1, BINS - 1, BINS - 2)
        );
    }

    #[test]
    fn a_class_counts_uses_and_knows_the_last_wait() {
        let mut class = Class::NEW;
        for uses in 1..20 {
            class = class.after(TICKS);
            assert_eq!(class.0 as usize / INTERVALS, uses.min(FREQUENCIES - 1));
            assert_eq!(Class::from_bits(class.bits()), class);
        }
        let intervals: Vec<_> = [0, 15, 16, 127, 128, u32::MAX]
            .map(|age| Class::NEW.after(age).0 as usize % INTERVALS)
            .into();
        assert_eq!(intervals, [1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn a_worth_is_known_to_a_sixteenth_and_is_less_than_that_of_vacant_slots() {
        for value in [1.9, 0.5, 0.013, 1e-6, 1e-9] {
            let found = Worth::of(value).value();
            assert!(found <= value && found > value * 0.93, "{value}: {found}");
        }
        assert!(Worth::of(f32::MAX) < Worth::MOST);
        assert_eq!((Worth::of(0.0).rank(), Worth::of(1e-30).rank()), (0, 0));
        assert_eq!(Worth::MOST.0 % (1 << Worth::FREE), 0);
    }

    #[test]
    fn a_weight_is_known_to_a_fifth() {
        for weight in [1_u64, 3, 100, 4096, 1 << 31] {
            let found = 2_f64.powf(f64::from(Weight::of(weight).bits()) / 4.0);
            assert!((0.8..1.1).contains(&(found / weight as f64)), "{weight}: {found}");
        }
        assert_eq!((Weight::of(0).bits(), Weight::of(u64::MAX).bits()), (0, Weight::MASK));
    }
}
