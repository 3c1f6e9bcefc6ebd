//! From a key's hash to its slot: an open-addressed table of buckets that grows a few steps at a time.
//!
//! A bucket is a cache line: eight hashes, and the slots that have them. A lookup compares all eight
//! at once and goes on to the next bucket only if this one is full (linear probing by buckets:
//! Knuth, *The Art of Computer Programming*, volume 3, section 6.4; removal closes the gap, as his
//! algorithm R does, and leaves no tombstones). So a lookup nearly always costs one cache miss and
//! no mispredicted branch, where hashbrown's table costs two misses that depend on each other, its
//! control bytes and then its bucket; in a cache larger than the processor's, misses are what a hit
//! consists of. How many of them a processor has under way at once depends on how many instructions
//! stand between them, so [`Index::find`] is one bucket, one comparison and one look; all else is
//! done elsewhere, by calls that are seldom made.
//!
//! Nor does hashbrown's table grow in steps: when it is full, or full of tombstones, it rehashes
//! everything at once, which under the lock of a shard with a million entries is tens of
//! milliseconds. Here each insert does a little: into memory that nobody has touched yet it writes
//! [`EMPTIED`] empty buckets of a second table, as long as that one is not complete, and after that
//! it moves [`STEP`] buckets there out of the first. A lookup that finds nothing in one asks the
//! other, if both are in use; otherwise that costs it one predictable branch, a hit nothing.

use wide::bytemuck::cast;
use wide::{i8x16, i16x8, u32x8};

use super::slots::SlotId;

/// Buckets moved with each insert while two tables are in use.
const STEP: usize = 4;
/// Empty buckets written with each insert while the next table is not complete.
const EMPTIED: usize = 16;

/// Hashes in a bucket.
const LANES: usize = 8;
/// The last lane to be filled: something is in it only while the bucket is full.
const LAST: usize = LANES - 1;

/// No slot: an empty lane. `Chunked` gives out neither this number nor the next.
const EMPTY: u32 = SlotId::NONE.bits();
/// No slot: a lane whose content was taken out of a table that is being left. For searches the
/// bucket stays as full as it was.
const MOVED: u32 = EMPTY - 1;

/// The part of a key's hash that is kept. The upper half of the 64 bits chose the shard; this is the
/// lower half, so the two are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) struct SlotHash(pub(in crate::core) u32);

impl SlotHash {
    /// What stands in the table: no two hashes have the same, and the upper bits, which choose the
    /// bucket, depend on all the others, so that hash functions whose upper bits are poor do as well.
    #[inline(always)]
    const fn spread(self) -> Spread {
        Spread(self.0.wrapping_mul(0x9E37_79B9))
    }
}

/// A hash, [spread](SlotHash::spread).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spread(u32);

/// Lanes of a bucket: for each two bits, both set or both not. That is the mask for which SSE2 needs
/// the fewest instructions.
struct Lanes(u32);

impl Lanes {
    /// Those in which `number` stands.
    #[inline(always)]
    fn with(number: u32, lanes: u32x8) -> Self {
        let same = lanes.simd_eq(u32x8::splat(number)).cast_signed();
        Self(cast::<_, i8x16>(i16x8::from_i32x8_saturate(same)).to_bitmask())
    }
}

impl Iterator for Lanes {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        // The remainder says nothing new, but it spares the check of an index.
        let lane = (self.0 != 0).then(|| self.0.trailing_zeros() as usize / 2 % LANES)?;
        self.0 &= !(3 << (2 * lane));
        Some(lane)
    }
}

/// A line of the processor's cache.
///
/// Lanes may be occupied in any order, except that [`LAST`] is only if all others are. The spread of
/// an empty lane is one that no search for has this bucket as its first, so who looks for a spread
/// in the bucket where it belongs need not ask whether what was found is a slot.
#[derive(Debug)]
#[repr(C, align(64))]
struct Bucket {
    spreads: u32x8,
    slots: u32x8,
}

impl Bucket {
    /// The empty bucket at the place `at`.
    fn empty(at: usize) -> Self {
        Self { spreads: u32x8::splat(no_spread(at)), slots: u32x8::splat(EMPTY) }
    }

    /// Whether there may be more in the next bucket.
    #[inline(always)]
    fn is_full(&self) -> bool {
        self.slot(LAST) != EMPTY
    }

    fn put(&mut self, lane: usize, (spread, slot): (u32, u32)) {
        self.spreads.as_mut_array()[lane] = spread;
        self.slots.as_mut_array()[lane] = slot;
    }

    fn content(&self, lane: usize) -> (u32, u32) {
        (self.spreads.as_array()[lane], self.slot(lane))
    }

    #[inline(always)]
    fn slot(&self, lane: usize) -> u32 {
        self.slots.as_array()[lane]
    }
}

/// A spread that does not belong into the bucket `at`, however many buckets there are: the lowest
/// belongs into the first, the highest into the last. It takes two to have another.
#[inline(always)]
const fn no_spread(at: usize) -> u32 {
    if at == 0 { u32::MAX } else { 0 }
}

/// A table of buckets. Not all of them are full, which ends every search.
#[derive(Debug, Default)]
struct Buckets {
    /// None, or at least two.
    buckets: Vec<Bucket>,
    /// How many slots stand in them.
    len: usize,
}

/// How many slots so many buckets have room for: three quarters of the lanes, for then few buckets
/// are full.
const fn room(buckets: usize) -> usize {
    (buckets * 6).saturating_sub(6)
}

/// How many buckets there are after growth: they have room for a third more.
const fn grown(buckets: usize) -> usize {
    let room = room(buckets);
    (room + room / 3 + 8).div_ceil(6) + 1
}

impl Buckets {
    /// Where the search for `spread` begins.
    #[inline(always)]
    fn home(&self, spread: Spread) -> usize {
        ((u64::from(spread.0) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() { 0 } else { at + 1 }
    }

    /// How many buckets further `to` is than `from`, going round the end.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.buckets.len() - from }
    }

    /// What `look` makes of the first of the slots with `spread` of which it makes something.
    #[inline(always)]
    fn find<R>(&self, spread: Spread, look: impl Fn(SlotId) -> Option<R>) -> Option<R> {
        // `None` only where there are no buckets at all.
        let bucket = self.buckets.get(self.home(spread))?;
        if let Some(lane) = Lanes::with(spread.0, bucket.spreads).next() {
            let found = look(SlotId::from_bits(bucket.slot(lane)));
            return if found.is_some() { found } else { self.find_another(spread, look) };
        }
        if bucket.is_full() { self.find_behind(spread, look) } else { None }
    }

    /// As [`find`](Self::find), after its only look was in vain.
    // Apart, so that `find` keeps nothing at hand for it, nor why it or the next one is called.
    #[cold]
    #[inline(never)]
    fn find_another<R>(&self, spread: Spread, look: impl Fn(SlotId) -> Option<R>) -> Option<R> {
        let bucket = self.buckets.get(self.home(spread))?;
        let mut others = Lanes::with(spread.0, bucket.spreads).skip(1);
        let found = others.find_map(|lane| look(SlotId::from_bits(bucket.slot(lane))));
        if found.is_none() && bucket.is_full() { self.find_behind(spread, look) } else { found }
    }

    /// As [`find`](Self::find), for slots that the bucket where they belong had no room for.
    #[cold]
    #[inline(never)]
    fn find_behind<R>(&self, spread: Spread, look: impl Fn(SlotId) -> Option<R>) -> Option<R> {
        let mut at = self.home(spread);
        loop {
            at = self.after(at);
            let bucket = self.buckets.get(at)?;
            for lane in Lanes::with(spread.0, bucket.spreads) {
                // Here an empty lane may look like any other.
                if bucket.slot(lane) < MOVED
                    && let Some(found) = look(SlotId::from_bits(bucket.slot(lane)))
                {
                    return Some(found);
                }
            }
            if !bucket.is_full() {
                return None;
            }
        }
    }

    /// The bucket and the lane in which `slot` stands, which has `spread`.
    #[inline(always)]
    fn place_of(&self, spread: Spread, slot: u32) -> Option<(usize, usize)> {
        let mut at = self.home(spread);
        loop {
            let bucket = self.buckets.get(at)?;
            if let Some(lane) = Lanes::with(slot, bucket.slots).next() {
                return Some((at, lane));
            }
            if !bucket.is_full() {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Adds a slot. The caller has seen to it that there is room.
    #[inline(always)]
    fn insert(&mut self, spread: Spread, slot: u32) {
        self.len += 1;
        let mut at = self.home(spread);
        loop {
            let bucket = &mut self.buckets[at];
            if let Some(lane) = Lanes::with(EMPTY, bucket.slots).next() {
                bucket.put(lane, (spread.0, slot));
                return;
            }
            at = self.after(at);
        }
    }

    /// Takes out what is in `lane` of the bucket `at`, and moves up what would not be found behind
    /// the gap.
    #[inline(always)]
    fn remove(&mut self, at: usize, lane: usize) {
        self.len -= 1;
        let bucket = &mut self.buckets[at];
        if bucket.is_full() {
            return self.close_gap(at, lane);
        }
        bucket.put(lane, (no_spread(at), EMPTY));
    }

    /// Fills `lane` of the bucket `hole`, which is full, with what there was no room for, and the
    /// gap that this leaves likewise.
    #[inline(never)]
    fn close_gap(&mut self, mut hole: usize, mut lane: usize) {
        while let Some((from, its_lane)) = self.overflow_of(hole) {
            let bucket = &mut self.buckets[from];
            let (moved, was_full) = (bucket.content(its_lane), bucket.is_full());
            bucket.put(its_lane, (no_spread(from), EMPTY));
            self.buckets[hole].put(lane, moved);
            if !was_full {
                return;
            }
            (hole, lane) = (from, its_lane);
        }
        // The last lane is the first to be empty.
        let bucket = &mut self.buckets[hole];
        bucket.put(lane, bucket.content(LAST));
        bucket.put(LAST, (no_spread(hole), EMPTY));
    }

    /// The next lane whose search leads through the bucket `hole`, which was full.
    fn overflow_of(&self, hole: usize) -> Option<(usize, usize)> {
        let mut at = self.after(hole);
        let mut way = 1;
        while at != hole {
            let bucket = &self.buckets[at];
            let passed = |&lane: &usize| {
                let (spread, slot) = bucket.content(lane);
                let home = self.home(Spread(spread));
                // In this order: nearly all are at home.
                home != at && slot != EMPTY && self.distance(home, at) >= way
            };
            if let Some(lane) = (0..LANES).find(passed) {
                return Some((at, lane));
            }
            if !bucket.is_full() {
                return None;
            }
            at = self.after(at);
            way += 1;
        }
        None
    }
}

/// When [`table`](Self::table) is nearly full, the next one is being written, and nobody reads it.
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
        self.table.len + self.draining.len
    }

    /// What `look` makes of the first of the slots with `hash` of which it makes something. What is
    /// not found here, [`find_draining`](Self::find_draining) may find.
    #[inline(always)]
    pub(in crate::core) fn find<R>(
        &self,
        hash: SlotHash,
        look: impl Fn(SlotId) -> Option<R>,
    ) -> Option<R> {
        self.table.find(hash.spread(), look)
    }

    /// Whether two tables are in use.
    #[inline(always)]
    pub(in crate::core) fn is_draining(&self) -> bool {
        self.draining.len != 0
    }

    /// As [`find`](Self::find), in what has not been moved yet.
    pub(in crate::core) fn find_draining<R>(
        &self,
        hash: SlotHash,
        look: impl Fn(SlotId) -> Option<R>,
    ) -> Option<R> {
        self.draining.find(hash.spread(), look)
    }

    /// Reads something of the bucket where the search for `hash` begins, so that the processor has
    /// it. What is returned must be used.
    #[inline(always)]
    pub(in crate::core) fn touch(&self, hash: SlotHash) -> u32 {
        let bucket = self.table.buckets.get(self.table.home(hash.spread()));
        bucket.map_or(EMPTY, |bucket| bucket.slot(LAST))
    }

    /// The first slot with `hash` in the bucket where a search begins.
    #[inline(always)]
    pub(in crate::core) fn likely(&self, hash: SlotHash) -> Option<SlotId> {
        let spread = hash.spread();
        let bucket = self.table.buckets.get(self.table.home(spread))?;
        let lane = Lanes::with(spread.0, bucket.spreads).next()?;
        Some(SlotId::from_bits(bucket.slot(lane)))
    }

    /// Whether the index knows `id`, which has `hash`.
    pub(in crate::core) fn contains(&self, hash: SlotHash, id: SlotId) -> bool {
        let same = |other| (other == id).then_some(());
        self.find(hash, same).or_else(|| self.find_draining(hash, same)).is_some()
    }

    /// Adds a slot that is not in the index.
    pub(in crate::core) fn insert(&mut self, hash: SlotHash, id: SlotId) {
        if self.table.len < self.busy_from {
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
    ///    inserts to move them all, however many are removed. After that the new one holds less
    ///    than `6.25n`. It has room for `8n`, and begins its successor, of `1.8n` buckets, `n / 9`
    ///    slots before that is taken.
    #[inline(never)]
    fn insert_growing(&mut self, hash: SlotHash, id: SlotId) {
        if self.draining.buckets.is_empty() {
            self.prepare();
        } else {
            self.drain();
        }
        self.table.insert(hash.spread(), id.bits());
    }

    /// Writes some of the next table, which takes over once it is complete.
    fn prepare(&mut self) {
        let count = grown(self.table.buckets.len());
        if self.next.is_empty() {
            // Memory as the allocator has it: zeroed memory for a type with an alignment of its own
            // would be written here, all of it.
            self.next = Vec::with_capacity(count);
            self.busy_from = 0;
        }
        let written = self.next.len();
        self.next.extend((written..count.min(written + EMPTIED)).map(Bucket::empty));
        if self.next.len() == count {
            let larger = Buckets { buckets: std::mem::take(&mut self.next), len: 0 };
            self.draining = std::mem::replace(&mut self.table, larger);
            self.moved = 0;
            self.drain();
        }
    }

    /// Moves up to [`STEP`] buckets out of the table that is being left.
    fn drain(&mut self) {
        let end = self.draining.buckets.len().min(self.moved + STEP);
        for at in self.moved..end {
            let bucket = &mut self.draining.buckets[at];
            for lane in 0..LANES {
                let (spread, slot) = bucket.content(lane);
                if slot < MOVED {
                    bucket.put(lane, (no_spread(at), MOVED));
                    self.draining.len -= 1;
                    self.table.insert(Spread(spread), slot);
                }
            }
        }
        self.moved = end;
        if self.draining.len == 0 {
            self.draining = Buckets::default();
            let count = self.table.buckets.len();
            self.busy_from = room(count) - grown(count).div_ceil(EMPTIED);
        }
    }

    /// Takes a slot out; it must be in.
    pub(in crate::core) fn remove(&mut self, hash: SlotHash, id: SlotId) {
        match self.table.place_of(hash.spread(), id.bits()) {
            Some((at, lane)) => self.table.remove(at, lane),
            None => self.remove_draining(hash, id),
        }
    }

    #[cold]
    #[inline(never)]
    fn remove_draining(&mut self, hash: SlotHash, id: SlotId) {
        if let Some((at, lane)) = self.draining.place_of(hash.spread(), id.bits()) {
            self.draining.buckets[at].put(lane, (no_spread(at), MOVED));
            self.draining.len -= 1;
        } else {
            debug_assert!(false, "slot {id:?} is not in the index");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKS: u32 = if cfg!(miri) { 8 } else { 50 };

    fn hash(i: u32) -> SlotHash {
        SlotHash(i.wrapping_mul(0x9E37_79B9).rotate_left(7))
    }

    /// Its spread is the highest, which the empty lanes of the first bucket have.
    const HIGHEST: SlotHash = SlotHash(0x144C_BC89_u32.wrapping_neg());
    const _: () = assert!(HIGHEST.spread().0 == u32::MAX);

    /// A few hashes for all, so that searches are long and go round the end.
    fn crowded(i: u32) -> SlotHash {
        [HIGHEST, SlotHash(0), hash(2), hash(3), SlotHash(u32::MAX)][i as usize % 5]
    }

    impl Index {
        /// Panics unless every bucket is what is said of it, and every slot once on its way.
        fn validate(&self) {
            let mut known = std::collections::HashSet::new();
            for table in [&self.table, &self.draining] {
                let count = table.buckets.len();
                for (at, bucket) in table.buckets.iter().enumerate() {
                    assert_eq!(std::ptr::from_ref(bucket).addr() % 64, 0, "it lies on two lines");
                    let is_empty = |lane| bucket.slot(lane) == EMPTY;
                    assert!(is_empty(LAST) || !(0..LANES).any(is_empty), "{at}: {bucket:?}");
                    for (spread, slot) in (0..LANES).map(|lane| bucket.content(lane)) {
                        let home = table.home(Spread(spread));
                        if slot < MOVED {
                            assert!(known.insert(slot), "{slot} is there twice");
                            let mut way = (home..).take(table.distance(home, at));
                            assert!(way.all(|on| table.buckets[on % count].is_full()), "{slot}");
                        } else {
                            assert_ne!(home, at, "an empty lane would be found");
                        }
                    }
                }
                assert!(table.len <= room(count), "too full");
            }
            assert_eq!(self.len(), known.len(), "it miscounts itself");
        }

        /// Inserts, which must not do more than it should.
        fn insert_watched(&mut self, hash: SlotHash, id: u32) {
            let (left, written) = (self.draining.len, self.next.len());
            let count = self.table.buckets.len();
            self.insert(hash, SlotId::from_bits(id));
            if self.table.buckets.len() == count {
                assert!(left <= self.draining.len + STEP * LANES);
                assert!(self.next.len() <= written + EMPTIED);
            } else {
                assert_eq!(left, 0, "it grows while it is growing");
                assert_eq!(self.table.buckets.len(), grown(count));
                assert!(grown(count) <= written + EMPTIED);
            }
            assert!(self.next.capacity() == 0 || self.draining.buckets.is_empty());
            assert!(self.contains(hash, SlotId::from_bits(id)));
        }
    }

    /// Fill, then churn: every slot is found at every moment, and no search goes on for ever.
    fn check(hash: fn(u32) -> SlotHash, rounds: u32) -> Index {
        let mut index = Index::default();
        let mut slots: Vec<Option<u32>> = Vec::new();
        for round in 0..rounds {
            for asked in [hash(0), SlotHash(0), HIGHEST] {
                let absent = [slots.len() as u32, EMPTY, MOVED].map(SlotId::from_bits);
                assert!(absent.into_iter().all(|id| !index.contains(asked, id)));
                assert!(index.likely(asked).is_none_or(|id| id.bits() < MOVED));
            }
            let mut place = slots.len();
            if round < rounds / 3 * 2 {
                slots.push(None);
            } else {
                place = (round as usize * 7919) % slots.len();
            }
            let id = SlotId::from_bits(place as u32);
            if let Some(old) = slots[place].take() {
                index.remove(hash(old), id);
                assert!(!index.contains(hash(old), id));
            }
            index.insert_watched(hash(round), place as u32);
            slots[place] = Some(round);
            let probe = (round as usize * 31) % slots.len();
            assert!(index.contains(hash(slots[probe].unwrap()), SlotId::from_bits(probe as u32)));
            if round % rounds.div_ceil(CHECKS) == 0 || round + 1 == rounds {
                index.validate();
            }
        }
        assert!(index.table.buckets.len() > grown(grown(grown(0))));
        assert_eq!(index.len(), slots.len(), "every slot is occupied");
        index
    }

    #[test]
    fn growth_is_in_steps_and_loses_nothing_even_if_all_hashes_are_alike() {
        check(hash, if cfg!(miri) { 100 } else { 30_000 });
        check(crowded, if cfg!(miri) { 90 } else { 1_500 });
    }

    #[test]
    fn poor_hashes_spread() {
        // Small numbers: all but the lowest bits are zero.
        let table = check(SlotHash, if cfg!(miri) { 100 } else { 30_000 }).table;
        let away = table.buckets.iter().enumerate().map(|(at, bucket)| {
            let used = (0..LANES).filter(|&lane| bucket.slot(lane) != EMPTY);
            let homes = used.map(|lane| table.home(Spread(bucket.content(lane).0)));
            homes.map(|home| table.distance(home, at)).sum::<usize>()
        });
        let mean = away.sum::<usize>() as f64 / table.len as f64;
        assert!(mean < 0.5, "on average {mean} buckets away");
    }

    /// During growth one slot leaves for every `few` that come; or all but `keep`, once there are many.
    #[test]
    fn growth_is_done_in_time_whatever_is_removed() {
        let many = if cfg!(miri) { 30 } else { 300 };
        for (few, keep) in [(1, 0), (2, 1), (3, 10), (1, usize::MAX), (2, usize::MAX)] {
            let mut index = Index::default();
            let mut held = Vec::new();
            for i in 0..3 * many as u32 {
                index.insert_watched(hash(i), i);
                held.push(i);
                let leave = index.busy_from == 0 && i % few == 0;
                let stay = if leave && held.len() > many { keep } else { usize::MAX };
                for gone in held.split_off(stay.min(held.len() - usize::from(leave))) {
                    index.remove(hash(gone), SlotId::from_bits(gone));
                }
                if leave && i.is_multiple_of(50 / CHECKS) {
                    index.validate();
                }
            }
            assert!(held.iter().all(|&i| index.contains(hash(i), SlotId::from_bits(i))));
            assert!(index.table.buckets.len() > grown(grown(grown(0))));
        }
    }
}
