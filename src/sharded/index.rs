//! From a key's hash to its slot: a hash table of slot ids that grows a few steps at a time.
//!
//! hashbrown's table, when it is full or full of tombstones, rehashes everything at once; under the
//! lock of a shard with a million entries that is tens of milliseconds. So this index watches for
//! that moment, lays a second table beside the first and moves [`STEP`] slots with each insert.
//! While both are there a lookup asks both; otherwise the second costs one predictable branch.

use hashbrown::HashTable;

use super::chunked::SlotId;

/// Slots moved with each insert while two tables are there.
const STEP: u32 = 32;

/// The part of a key's hash that is kept in its slot. The upper half of the 64 bits chose the
/// shard; this is the lower half, so the two are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotHash(pub(super) u32);

impl SlotHash {
    /// The 64 bits hashbrown wants: it takes the bucket from the lowest and a tag from the highest.
    fn spread(self) -> u64 {
        u64::from(self.0) << 32 | u64::from(self.0)
    }
}

#[derive(Debug, Default)]
pub(super) struct Index {
    table: HashTable<u32>,
    /// What has not been moved yet. Empty nearly always.
    draining: HashTable<u32>,
    /// Slots below this one have been moved.
    moved: u32,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.table.len() + self.draining.len()
    }

    /// The slots that may have `hash`: all that have it, and now and then another. Of a key that is
    /// not among them, [`draining_candidates`](Self::draining_candidates) may know.
    #[inline(always)]
    pub(super) fn candidates(&self, hash: SlotHash) -> impl Iterator<Item = SlotId> {
        self.table.iter_hash(hash.spread()).map(|&id| SlotId::from_bits(id))
    }

    /// Whether two tables are there.
    #[inline(always)]
    pub(super) fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    /// As [`candidates`](Self::candidates), in what has not been moved yet.
    pub(super) fn draining_candidates(&self, hash: SlotHash) -> impl Iterator<Item = SlotId> {
        self.draining.iter_hash(hash.spread()).map(|&id| SlotId::from_bits(id))
    }

    /// Whether the index knows `id`, which has `hash`.
    pub(super) fn contains(&self, hash: SlotHash, id: SlotId) -> bool {
        self.candidates(hash).chain(self.draining_candidates(hash)).any(|other| other == id)
    }

    /// Adds a slot that is not in the index. `slots` is how many slots the shard has and `hash_of`
    /// the hash of one, if it is occupied.
    pub(super) fn insert(
        &mut self,
        hash: SlotHash,
        id: SlotId,
        slots: usize,
        hash_of: impl Fn(SlotId) -> Option<SlotHash>,
    ) {
        self.step(slots, &hash_of);
        // hashbrown's capacity is what it holds plus what it can take without rehashing.
        if self.table.len() == self.table.capacity() && self.draining.is_empty() {
            // At least an eighth more than there is: `moved` then passes every slot before this
            // table is full too, since `slots / 16 + 16` inserts move `STEP` slots each.
            let headroom = (self.len() / 8).max(slots / 16) + 16;
            let larger = HashTable::with_capacity(self.len() + headroom);
            self.draining = std::mem::replace(&mut self.table, larger);
            self.moved = 0;
            self.step(slots, &hash_of);
        }
        self.table.insert_unique(hash.spread(), id.bits(), |&id| {
            hash_of(SlotId::from_bits(id)).map_or(0, SlotHash::spread)
        });
    }

    /// Moves up to [`STEP`] slots out of the table that is being left.
    fn step(&mut self, slots: usize, hash_of: impl Fn(SlotId) -> Option<SlotHash>) {
        if self.draining.is_empty() {
            return;
        }
        let end = self.moved.saturating_add(STEP).min(slots as u32);
        for bits in self.moved..end {
            let Some(hash) = hash_of(SlotId::from_bits(bits)) else { continue };
            let here = self.draining.find_entry(hash.spread(), |&other| other == bits);
            if let Ok(entry) = here {
                entry.remove();
                self.table.insert_unique(hash.spread(), bits, |&id| {
                    hash_of(SlotId::from_bits(id)).map_or(0, SlotHash::spread)
                });
            }
        }
        self.moved = end;
        if self.draining.is_empty() {
            self.draining = HashTable::new();
        }
    }

    /// Takes a slot out; it must be in.
    pub(super) fn remove(&mut self, hash: SlotHash, id: SlotId) {
        for table in [&mut self.table, &mut self.draining] {
            if let Ok(entry) = table.find_entry(hash.spread(), |&other| other == id.bits()) {
                entry.remove();
                return;
            }
        }
        debug_assert!(false, "slot {id:?} is not in the index");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(i: u32) -> SlotHash {
        SlotHash(i.wrapping_mul(0x9E37_79B9).rotate_left(7))
    }

    /// Fill, then churn: every slot can be found at every moment, growth happens in steps, and
    /// hashbrown's own rehash, which scans everything, never runs.
    #[test]
    fn growth_is_in_steps_and_loses_nothing() {
        let rounds: u32 = if cfg!(miri) { 300 } else { 30_000 };
        let mut index = Index::default();
        let mut slots: Vec<Option<u32>> = Vec::new();
        let mut growths = 0;
        for round in 0..rounds {
            let place = if round < rounds / 3 * 2 {
                slots.push(None);
                slots.len() - 1
            } else {
                (round as usize * 7919) % slots.len()
            };
            let id = SlotId::from_bits(place as u32);
            if let Some(old) = slots[place].take() {
                index.remove(hash(old), id);
            }
            let draining = index.draining.len();
            let capacity = index.table.capacity();
            index.insert(hash(round), id, slots.len(), |id| slots[id.bits() as usize].map(hash));
            slots[place] = Some(round);

            if draining == 0 && index.table.capacity() != capacity {
                growths += 1;
            } else {
                assert!(index.table.capacity() <= capacity, "hashbrown grew by itself");
                assert!(draining <= index.draining.len() + STEP as usize);
            }
            assert_eq!(index.len(), slots.len(), "every slot is occupied");
            for probe in [0, place, (round as usize * 31) % slots.len()] {
                let held = hash(slots[probe].unwrap());
                assert!(index.contains(held, SlotId::from_bits(probe as u32)));
            }
            assert!(!index.contains(hash(0), SlotId::from_bits(slots.len() as u32)));
        }
        assert!(growths > 2, "{growths}");
    }
}
