//! From a key's hash to its slot, in a table that grows a few steps at a time.
//!
//! hashbrown's table, when it is full, or full of tombstones, rehashes everything at once, which
//! under the lock of a shard with a million entries is tens of milliseconds. Here each insert does a
//! little: into memory that nobody has touched yet it writes [`EMPTIED`] empty buckets of a second
//! table until that one is complete, and then moves [`STEP`] buckets there out of the first. A lookup
//! that finds nothing in one asks the other, if both are used. What a table is, and why a lookup in it
//! costs one cache miss, is in [`buckets`].

mod buckets;
#[cfg(test)]
mod tests;

use super::slots::SlotId;
pub(in crate::core) use buckets::Bucket;
use buckets::{Buckets, Spread, room};

/// Buckets moved with each insert while two tables are in use.
const STEP: usize = 4;
/// Empty buckets written with each insert while the next table is not complete.
const EMPTIED: usize = 16;

/// How many buckets there are after growth: they have room for a third more.
const fn grown(buckets: usize) -> usize {
    let room = room(buckets);
    (room + room / 3 + 8).div_ceil(6) + 1
}

/// The part of a key's hash that is kept. The upper half of the 64 bits chose the shard; this is the
/// lower half, so the two are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) struct SlotHash(pub(in crate::core) u32);

impl SlotHash {
    #[inline]
    const fn spread(self) -> Spread {
        Spread::of(self.0)
    }
}

/// When [`table`](Self::table) is nearly full, the next one is being written, and nothing reads it.
/// Then that one is the table, and what the old one holds is being moved. Mostly neither.
#[derive(Debug, Default)]
#[repr(C)]
pub(in crate::core) struct Index {
    table: Buckets,
    /// What has not been moved yet. Empty nearly always.
    draining: Buckets,
    /// The buckets of `draining` before this one have been moved.
    moved: usize,
    /// The first buckets of the next table, empty and with room for all others.
    next: Vec<Bucket>,
    /// With so many slots in `table` an insert has something to do for growth.
    busy_from: usize,
}

impl Index {
    pub(in crate::core) fn len(&self) -> usize {
        self.table.len() + self.draining.len()
    }

    /// The bucket where a search for `hash` begins, if there is any at all.
    #[inline]
    pub(in crate::core) fn home(&self, hash: SlotHash) -> Option<&Bucket> {
        self.table.bucket(hash.spread())
    }

    /// Whether a slot may stand elsewhere than in `home`, where a search for it begins.
    #[inline]
    pub(in crate::core) fn may_be_elsewhere(&self, home: Option<&Bucket>) -> bool {
        home.is_some_and(Bucket::is_full) || self.is_draining()
    }

    /// Whether two tables are in use.
    #[inline]
    pub(super) fn is_draining(&self) -> bool {
        self.draining.len() != 0
    }

    /// What `look` makes of the first of the slots with `hash` of which it makes something.
    pub(in crate::core) fn find<R>(
        &self,
        hash: SlotHash,
        look: impl Fn(SlotId) -> Option<R>,
    ) -> Option<R> {
        let found = self.table.find(hash.spread(), &look);
        if found.is_none() { self.draining.find(hash.spread(), &look) } else { found }
    }

    /// Reads something of the bucket where the search for `hash` begins, so that the processor has
    /// it. What is returned must be used.
    #[inline]
    pub(in crate::core) fn touch(&self, hash: SlotHash) -> u32 {
        self.table.touch(hash.spread())
    }

    /// The first slot with `hash` in the bucket where a search begins.
    #[inline]
    pub(in crate::core) fn likely(&self, hash: SlotHash) -> Option<SlotId> {
        self.home(hash)?.first(hash)
    }

    /// Whether the index knows `id`, which has `hash`.
    pub(in crate::core) fn contains(&self, hash: SlotHash, id: SlotId) -> bool {
        let same = |other| (other == id).then_some(());
        self.find(hash, same).is_some()
    }

    /// Adds a slot that is not in the index.
    pub(in crate::core) fn insert(&mut self, hash: SlotHash, id: SlotId) {
        if self.table.len() < self.busy_from {
            self.table.insert(hash.spread(), id.bits());
        } else {
            self.insert_growing(hash, id);
        }
    }

    /// As [`insert`](Self::insert), after doing something for growth.
    ///
    /// There is always room, and what has been begun is always done in time:
    ///
    /// 1. The next table is begun when the room left is as many slots as it takes inserts to write
    ///    it. Each of them adds one slot, and none is added otherwise, as nothing is draining (2).
    ///    The last of them still finds room for one slot, completes the next table and adds its own
    ///    there. Slots removed meanwhile leave more room, and inserts that use it write as well.
    /// 2. A table of `n` buckets is left with less than `6n` slots in it, and it takes `n / STEP`
    ///    inserts to move them all, however many are removed, fewer with other writes. After that the new one holds less
    ///    than `6.25n`. It has room for `8n`, and begins its successor, of `1.8n` buckets, `n / 9`
    ///    slots before that is taken.
    #[inline(never)]
    fn insert_growing(&mut self, hash: SlotHash, id: SlotId) {
        if self.draining.count() == 0 {
            self.prepare();
        } else {
            self.drain();
        }
        self.table.insert(hash.spread(), id.bits());
    }

    /// Writes some of the next table, which takes over once it is complete.
    fn prepare(&mut self) {
        let count = grown(self.table.count());
        if self.next.is_empty() {
            // Memory as the allocator has it: zeroed memory for a type with an alignment of its own
            // would be written here, all of it.
            self.next = Vec::with_capacity(count);
            self.busy_from = 0;
        }
        let written = self.next.len();
        self.next.extend((written..count.min(written + EMPTIED)).map(Bucket::empty));
        if self.next.len() == count {
            let larger = Buckets::new(std::mem::take(&mut self.next));
            self.draining = std::mem::replace(&mut self.table, larger);
            self.moved = 0;
            self.drain();
        }
    }

    /// Goes on with growth, if the table is to be left already.
    pub(super) fn go_on(&mut self) {
        if self.is_draining() {
            self.drain();
        }
    }

    /// Moves up to [`STEP`] buckets out of the table that is being left.
    fn drain(&mut self) {
        let end = self.draining.count().min(self.moved + STEP);
        for at in self.moved..end {
            self.draining.take_bucket(at, |spread, slot| self.table.insert(spread, slot));
        }
        self.moved = end;
        if self.draining.len() == 0 {
            self.draining = Buckets::default();
            let count = self.table.count();
            self.busy_from = room(count) - grown(count).div_ceil(EMPTIED);
        }
    }

    /// Takes a slot out; it must be in.
    pub(in crate::core) fn remove(&mut self, hash: SlotHash, id: SlotId) {
        if !self.table.remove(hash.spread(), id) {
            self.remove_draining(hash, id);
        }
    }

    /// Takes `id` out, which has the hash `old`, and adds it with `new`.
    #[inline]
    pub(in crate::core) fn exchange(&mut self, old: SlotHash, new: SlotHash, id: SlotId) {
        self.remove(old, id);
        self.insert(new, id);
    }

    #[cold]
    #[inline(never)]
    fn remove_draining(&mut self, hash: SlotHash, id: SlotId) {
        let removed = self.draining.take(hash.spread(), id);
        debug_assert!(removed, "slot {id:?} is not in the index");
    }
}
