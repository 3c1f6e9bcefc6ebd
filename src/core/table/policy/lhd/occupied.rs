//! Which slots hold an entry, so that one can be found near any place in a bounded number of steps.
//!
//! A bit for each slot, a bit for each word of those that has any, and so on: six levels reach over
//! all slots there can be. An eighth of a byte for a slot.

use super::super::super::slots::{SlotId, Slots};

/// Levels of 64 each: `64^6` is more than there are slots.
const LEVELS: usize = 6;

#[derive(Debug)]
pub(super) struct Occupied {
    levels: [Slots<u64>; LEVELS],
    len: usize,
    /// The slot that was left last, unless an entry has come since: its bit is still set. Usually the
    /// next entry takes that slot, and the bits stay as they are.
    left: SlotId,
}

impl Default for Occupied {
    fn default() -> Self {
        Self { levels: Default::default(), len: 0, left: SlotId::NONE }
    }
}

impl Occupied {
    /// How many slots are occupied.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn insert(&mut self, slot: SlotId) {
        self.len += 1;
        if slot == self.left {
            self.left = SlotId::NONE;
        } else {
            self.set(slot);
        }
    }

    #[inline(never)]
    fn set(&mut self, slot: SlotId) {
        let word = SlotId::from_bits(slot.bits() >> 6);
        // Most slots have been occupied before, and have occupied neighbours.
        if (word.bits() as usize) < self.levels[0].len() {
            let word = &mut self.levels[0][word];
            if *word != 0 {
                *word |= 1 << (slot.bits() & 63);
                return;
            }
        }
        self.insert_first(slot);
    }

    /// The first of a word.
    #[cold]
    fn insert_first(&mut self, slot: SlotId) {
        let mut place = slot.bits();
        for level in &mut self.levels {
            let word = level.reach(SlotId::from_bits(place >> 6));
            let had_any = *word != 0;
            *word |= 1 << (place & 63);
            if had_any {
                return;
            }
            place >>= 6;
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, slot: SlotId) {
        self.len -= 1;
        let before = std::mem::replace(&mut self.left, slot);
        if before != SlotId::NONE {
            self.clear(before);
        }
    }

    #[inline(never)]
    fn clear(&mut self, slot: SlotId) {
        let mut place = slot.bits();
        for level in &mut self.levels {
            let word = &mut level[SlotId::from_bits(place >> 6)];
            *word &= !(1 << (place & 63));
            if *word != 0 {
                return;
            }
            place >>= 6;
        }
    }

    pub(super) fn contains(&self, slot: SlotId) -> bool {
        if slot == self.left {
            return false;
        }
        let word = self.levels[0].get(SlotId::from_bits(slot.bits() >> 6));
        word.is_some_and(|word| word >> (slot.bits() & 63) & 1 != 0)
    }

    /// The first occupied slot from `slot` on, and beyond the last the first of all.
    pub(super) fn at_or_after(&mut self, slot: SlotId) -> Option<SlotId> {
        let left = std::mem::replace(&mut self.left, SlotId::NONE);
        if left != SlotId::NONE {
            self.clear(left);
        }
        self.from(slot.bits()).or_else(|| self.from(0))
    }

    fn from(&self, from: u32) -> Option<SlotId> {
        let mut place = u64::from(from);
        // Up, to the first level on which something lies ahead in the same word.
        for level in 0..LEVELS {
            let word = self.levels[level].get(SlotId::from_bits((place >> 6) as u32))?;
            let ahead = word & (u64::MAX << (place & 63));
            if ahead != 0 {
                return self.down(level, place & !63 | u64::from(ahead.trailing_zeros()));
            }
            // The next word, which is a bit of the next level. At the end of a word that may be
            // one beyond the last, and then there is nothing.
            place = (place >> 6) + 1;
        }
        None
    }

    /// The first occupied slot below a bit that is set.
    fn down(&self, level: usize, mut place: u64) -> Option<SlotId> {
        for level in self.levels[..level].iter().rev() {
            let word = level.get(SlotId::from_bits(place as u32))?;
            place = place << 6 | u64::from(word.trailing_zeros());
        }
        Some(SlotId::from_bits(place as u32))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn finds_what_a_set_finds() {
        let (mut occupied, mut model) = (Occupied::default(), BTreeSet::new());
        let mut state = 1u32;
        for round in 0..if cfg!(miri) { 40 } else { 20_000 } {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Ids come one by one in the cache, so growing far at once is only for the test.
            let id = (state >> 16) % if round % 2 == 0 { 300 } else { 9000 };
            let slot = SlotId::from_bits(id);
            if model.insert(id) {
                occupied.insert(slot);
            } else {
                model.remove(&id);
                occupied.remove(slot);
            }
            assert_eq!(occupied.contains(slot), model.contains(&id));
            assert_eq!(occupied.len(), model.len());
            let from = (state >> 7) % 9500;
            let wanted = model.range(from..).next().or_else(|| model.first());
            let found = occupied.at_or_after(SlotId::from_bits(from));
            assert_eq!(found.map(SlotId::bits), wanted.copied(), "from {from}");
        }
    }

    #[test]
    fn nothing_is_found_where_nothing_is() {
        let mut occupied = Occupied::default();
        assert_eq!(occupied.at_or_after(SlotId::from_bits(5)), None);
        occupied.insert(SlotId::from_bits(70));
        occupied.remove(SlotId::from_bits(70));
        assert_eq!(occupied.at_or_after(SlotId::from_bits(0)), None);
    }
}
