//! The order for [`MemoryPressure::LargestFirst`](super::MemoryPressure): by size, without a scan.
//!
//! One list for each size that occurs, in a tree by size. An embedding cache holds a few sizes, one
//! for each model, so the tree stays tiny; with many it costs `O(log sizes)`.

use std::collections::BTreeMap;

use super::super::chunked::{Chunked, SlotId};
use super::{Links, List};

#[derive(Debug, Default)]
pub(in super::super) struct Sizes {
    links: Chunked<Links>,
    /// The size under which each slot is listed.
    sizes: Chunked<u64>,
    /// Never an empty list.
    by_size: BTreeMap<u64, List>,
}

impl Sizes {
    pub(in super::super) fn insert(&mut self, slot: SlotId, size: u64) {
        *self.sizes.reach(slot) = size;
        self.by_size.entry(size).or_default().push_front(&mut self.links, slot);
    }

    pub(in super::super) fn remove(&mut self, slot: SlotId) {
        let size = self.sizes[slot];
        if let Some(list) = self.by_size.get_mut(&size) {
            list.remove(&mut self.links, slot);
            if list.len() == 0 {
                self.by_size.remove(&size);
            }
        }
    }

    /// The entry was used: among those of its size it leaves last.
    pub(in super::super) fn touch(&mut self, slot: SlotId) {
        if let Some(list) = self.by_size.get_mut(&self.sizes[slot]) {
            list.move_to_front(&mut self.links, slot);
        }
    }

    /// The largest, and of several the one that was used or inserted longest ago; never `keep`.
    pub(in super::super) fn largest(&self, keep: Option<SlotId>) -> Option<SlotId> {
        // Two sizes are enough: `keep` is the only slot of at most one of them.
        self.by_size.values().rev().take(2).find_map(|list| {
            let oldest = list.back()?;
            if keep == Some(oldest) { list.ahead_of(&self.links, oldest) } else { Some(oldest) }
        })
    }

    pub(in super::super) fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        let lists: Vec<_> = self.by_size.values().collect();
        super::validate_lists(&lists, &self.links, occupied);
        for (&size, list) in &self.by_size {
            assert_ne!(list.len(), 0, "an empty list is kept");
            assert!(list.iter(&self.links).all(|slot| self.sizes[slot] == size));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(bits: u32) -> SlotId {
        SlotId::from_bits(bits)
    }

    #[test]
    fn the_largest_leaves_first_and_of_equals_the_oldest() {
        let mut sizes = Sizes::default();
        for (place, size) in [5, 9, 9, 1].into_iter().enumerate() {
            sizes.insert(slot(place as u32), size);
        }
        assert_eq!(sizes.largest(None), Some(slot(1)));
        assert_eq!(sizes.largest(Some(slot(1))), Some(slot(2)));
        sizes.touch(slot(1));
        assert_eq!(sizes.largest(None), Some(slot(2)));
        sizes.remove(slot(2));
        assert_eq!(sizes.largest(Some(slot(1))), Some(slot(0)));
        sizes.remove(slot(1));
        sizes.remove(slot(0));
        assert_eq!(sizes.largest(None), Some(slot(3)));
        assert_eq!(sizes.largest(Some(slot(3))), None);
    }
}
