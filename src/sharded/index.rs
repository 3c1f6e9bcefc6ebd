//! From a key's hash to its slot: an open-addressed table of buckets that grows a few steps at a time.
//!
//! A bucket is a cache line: eight hashes, and the slots that have them. A lookup compares all eight
//! at once and goes on to the next bucket only if this one is full (linear probing by buckets:
//! Knuth, *The Art of Computer Programming*, volume 3, section 6.4; removal closes the gap, as his
//! algorithm R does, and leaves no tombstones). So a lookup nearly always costs one cache miss and
//! no mispredicted branch, where hashbrown's table costs two misses that depend on each other, its
//! control bytes and then its bucket; in a cache larger than the processor's, misses are what a hit
//! consists of.
//!
//! Nor does hashbrown's table grow in steps: when it is full, or full of tombstones, it rehashes
//! everything at once, which under the lock of a shard with a million entries is tens of
//! milliseconds. This index lays a second table beside the first and moves [`STEP`] buckets with each
//! insert. While both are there a lookup asks both; otherwise the second costs one predictable
//! branch.

use wide::u32x8;

use super::chunked::SlotId;

/// Buckets moved with each insert while two tables are there.
const STEP: usize = 4;

/// Hashes in a bucket.
const LANES: usize = 8;
/// Words of a bucket: the hashes, then for each the number of its slot plus one.
const WORDS: usize = 2 * LANES;
/// The number of no slot: an empty lane, as fresh memory has it. They are behind the others.
const EMPTY: u32 = 0;
/// The number of no slot: a lane whose content has been moved out of a table that is being left.
const MOVED: u32 = u32::MAX;

/// The part of a key's hash that is kept. The upper half of the 64 bits chose the shard; this is the
/// lower half, so the two are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotHash(pub(super) u32);

/// One bucket, as it stands in a table.
type Bucket = [u32; WORDS];

/// A lane for each bit that is set, the lowest first.
struct Lanes(u32);

impl Iterator for Lanes {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let lane = (self.0 != 0).then(|| self.0.trailing_zeros() as usize);
        self.0 &= self.0.wrapping_sub(1);
        lane
    }
}

/// The lanes whose hash is `hash`, some of them perhaps empty.
#[inline(always)]
fn lanes_with(bucket: &Bucket, hash: SlotHash) -> Lanes {
    let [a, b, c, d, e, f, g, h, ..] = *bucket;
    let same = u32x8::new([a, b, c, d, e, f, g, h]).simd_eq(u32x8::splat(hash.0));
    Lanes(same.to_bitmask())
}

/// The slot in `lane`.
#[inline(always)]
fn slot_in(bucket: &Bucket, lane: usize) -> Option<SlotId> {
    match bucket[LANES + lane % LANES] {
        EMPTY | MOVED => None,
        number => Some(SlotId::from_bits(number - 1)),
    }
}

/// Whether there may be more in the next bucket.
#[inline(always)]
fn is_full(bucket: &Bucket) -> bool {
    bucket[WORDS - 1] != EMPTY
}

/// Lanes in use.
fn used(bucket: &Bucket) -> usize {
    let [.., a, b, c, d, e, f, g, h] = *bucket;
    let empty = u32x8::new([a, b, c, d, e, f, g, h]).simd_eq(u32x8::splat(EMPTY));
    (empty.to_bitmask() | 1 << LANES).trailing_zeros() as usize
}

fn put(bucket: &mut Bucket, lane: usize, hash: u32, number: u32) {
    bucket[lane] = hash;
    bucket[LANES + lane] = number;
}

/// A table of buckets. Not all of them are full, which ends every search.
#[derive(Debug, Default)]
struct Buckets {
    words: Box<[u32]>,
    /// The first word of the first bucket: where a cache line begins.
    first: usize,
    /// How many buckets there are.
    count: usize,
    /// How many slots stand in them.
    len: usize,
}

impl Buckets {
    /// With room for `len` and a third more.
    fn for_more_than(len: usize) -> Self {
        // Three quarters of the lanes may be used: then few buckets are full.
        let room = len + len / 3 + 8;
        let count = room.div_ceil(6) + 1;
        // Zeroed pages straight from the allocator: nothing is written here.
        let words = vec![EMPTY; count * WORDS + WORDS - 1].into_boxed_slice();
        let past_line = words.as_ptr().addr() % 64 / size_of::<u32>();
        Self { words, first: (WORDS - past_line) % WORDS, count, len: 0 }
    }

    fn has_room(&self) -> bool {
        self.len < (self.count * 6).saturating_sub(6)
    }

    #[inline(always)]
    fn bucket(&self, at: usize) -> Option<&Bucket> {
        // Behind the last bucket there is no room for another.
        self.words.get(self.first + at * WORDS..)?.first_chunk()
    }

    fn bucket_mut(&mut self, at: usize) -> &mut Bucket {
        let (buckets, _) = self.words[self.first..].as_chunks_mut();
        &mut buckets[at]
    }

    /// Where the search for `hash` begins.
    #[inline(always)]
    fn home(&self, hash: u32) -> usize {
        // Multiplied first, so that hash functions whose upper bits are poor do as well.
        let spread = hash.wrapping_mul(0x9E37_79B9);
        ((u64::from(spread) * self.count as u64) >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.count { 0 } else { at + 1 }
    }

    /// How many buckets further `to` is than `from`, going round the end.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.count - from }
    }

    /// What `look` makes of the first of the slots with `hash` of which it makes something; it is
    /// given the bucket and the lane as well.
    #[inline(always)]
    fn find<R>(
        &self,
        hash: SlotHash,
        look: impl Fn(usize, usize, SlotId) -> Option<R>,
    ) -> Option<R> {
        let mut at = self.home(hash.0);
        loop {
            // `None` only where there are no buckets at all.
            let bucket = self.bucket(at)?;
            for lane in lanes_with(bucket, hash) {
                if let Some(id) = slot_in(bucket, lane)
                    && let Some(seen) = look(at, lane, id)
                {
                    return Some(seen);
                }
            }
            if !is_full(bucket) {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Adds a slot. The caller has seen to it that there is room.
    fn insert(&mut self, hash: u32, number: u32) {
        let mut at = self.home(hash);
        loop {
            let bucket = self.bucket_mut(at);
            if !is_full(bucket) {
                put(bucket, used(bucket), hash, number);
                break;
            }
            at = self.after(at);
        }
        self.len += 1;
    }

    /// Takes out what is in `lane` of the bucket `at`, and moves up what would not be found behind
    /// the gap.
    fn remove(&mut self, mut at: usize, mut lane: usize) {
        self.len -= 1;
        loop {
            // The last one of the bucket into the gap.
            let bucket = self.bucket_mut(at);
            let was_full = is_full(bucket);
            let last = used(bucket) - 1;
            put(bucket, lane, bucket[last], bucket[LANES + last]);
            put(bucket, last, 0, EMPTY);
            if !was_full {
                return;
            }
            // Of what this bucket had no room for, the next one into the last lane.
            let Some((from, its_lane)) = self.overflow_of(at) else { return };
            let moved = self.bucket_mut(from);
            let (hash, number) = (moved[its_lane], moved[LANES + its_lane]);
            put(self.bucket_mut(at), last, hash, number);
            (at, lane) = (from, its_lane);
        }
    }

    /// The next lane whose search leads through the bucket `hole`, which was full.
    fn overflow_of(&self, hole: usize) -> Option<(usize, usize)> {
        let mut at = self.after(hole);
        while at != hole {
            let bucket = self.bucket(at)?;
            let way = self.distance(hole, at);
            let passed = |&lane: &usize| self.distance(self.home(bucket[lane]), at) >= way;
            if let Some(lane) = (0..used(bucket)).find(passed) {
                return Some((at, lane));
            }
            if !is_full(bucket) {
                return None;
            }
            at = self.after(at);
        }
        None
    }
}

#[derive(Debug, Default)]
pub(super) struct Index {
    table: Buckets,
    /// What has not been moved yet. Empty nearly always.
    draining: Buckets,
    /// The buckets of `draining` before this one have been moved.
    moved: usize,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.table.len + self.draining.len
    }

    /// What `look` makes of the first of the slots with `hash` of which it makes something. What is
    /// not found here, [`find_draining`](Self::find_draining) may find.
    #[inline(always)]
    pub(super) fn find<R>(&self, hash: SlotHash, look: impl Fn(SlotId) -> Option<R>) -> Option<R> {
        self.table.find(hash, |_, _, id| look(id))
    }

    /// Whether two tables are there.
    #[inline(always)]
    pub(super) fn is_draining(&self) -> bool {
        self.draining.len != 0
    }

    /// As [`find`](Self::find), in what has not been moved yet.
    pub(super) fn find_draining<R>(
        &self,
        hash: SlotHash,
        look: impl Fn(SlotId) -> Option<R>,
    ) -> Option<R> {
        self.draining.find(hash, |_, _, id| look(id))
    }

    /// The first slot with `hash` in the bucket where a search begins.
    #[inline(always)]
    pub(super) fn likely(&self, hash: SlotHash) -> Option<SlotId> {
        let bucket = self.table.bucket(self.table.home(hash.0))?;
        lanes_with(bucket, hash).next().and_then(|lane| slot_in(bucket, lane))
    }

    /// Whether the index knows `id`, which has `hash`.
    pub(super) fn contains(&self, hash: SlotHash, id: SlotId) -> bool {
        let same = |other| (other == id).then_some(());
        self.find(hash, same).or_else(|| self.find_draining(hash, same)).is_some()
    }

    /// Adds a slot that is not in the index.
    pub(super) fn insert(&mut self, hash: SlotHash, id: SlotId) {
        self.step();
        if !self.table.has_room() {
            // The last table has been left long before: a third of the room of this one was taken
            // in inserts, each of which moved `STEP` buckets.
            debug_assert_eq!(self.draining.len, 0);
            let larger = Buckets::for_more_than(self.table.len);
            self.draining = std::mem::replace(&mut self.table, larger);
            self.moved = 0;
            self.step();
        }
        // Never overflows: `SlotId::NONE` is no slot's, nor is the number before it.
        self.table.insert(hash.0, id.bits() + 1);
    }

    /// Moves up to [`STEP`] buckets out of the table that is being left.
    fn step(&mut self) {
        if self.draining.count == 0 {
            return;
        }
        let end = (self.moved + STEP).min(self.draining.count);
        for at in self.moved..end {
            let bucket = self.draining.bucket_mut(at);
            let mut moved = 0;
            for lane in 0..LANES {
                if slot_in(bucket, lane).is_some() {
                    let number = std::mem::replace(&mut bucket[LANES + lane], MOVED);
                    self.table.insert(bucket[lane], number);
                    moved += 1;
                }
            }
            self.draining.len -= moved;
        }
        self.moved = end;
        if self.draining.len == 0 {
            self.draining = Buckets::default();
        }
    }

    /// Takes a slot out; it must be in.
    pub(super) fn remove(&mut self, hash: SlotHash, id: SlotId) {
        let place = |at, lane, other| (other == id).then_some((at, lane));
        if let Some((at, lane)) = self.table.find(hash, place) {
            self.table.remove(at, lane);
        } else if let Some((at, lane)) = self.draining.find(hash, place) {
            self.draining.bucket_mut(at)[LANES + lane] = MOVED;
            self.draining.len -= 1;
        } else {
            debug_assert!(false, "slot {id:?} is not in the index");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn hash(i: u32) -> SlotHash {
        SlotHash(i.wrapping_mul(0x9E37_79B9).rotate_left(7))
    }

    /// A few hashes for all, so that searches are long and go round the end.
    fn crowded(i: u32) -> SlotHash {
        SlotHash(hash(i % 5).0 | 0xFF00_0000)
    }

    /// Those of small numbers: all but the lowest bits are zero.
    fn poor(i: u32) -> SlotHash {
        SlotHash(i)
    }

    /// Fill, then churn: every slot can be found at every moment, growth happens in steps, and no
    /// search for what is not there goes on for ever.
    fn check(hash: fn(u32) -> SlotHash, rounds: u32) {
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
                assert!(!index.contains(hash(old), id));
            }
            let (draining, count) = (index.draining.len, index.table.count);
            index.insert(hash(round), id);
            slots[place] = Some(round);

            if index.table.count == count {
                assert!(draining <= index.draining.len + STEP * LANES);
            } else {
                assert_eq!(draining, 0, "it grows while it is growing");
                growths += 1;
            }
            assert_eq!(index.len(), slots.len(), "every slot is occupied");
            for probe in [0, place, (round as usize * 31) % slots.len()] {
                let held = hash(slots[probe].unwrap());
                assert!(index.contains(held, SlotId::from_bits(probe as u32)));
            }
            assert!(!index.contains(hash(0), SlotId::from_bits(slots.len() as u32)));
        }
        assert!(growths > 2, "{growths}");
        let mut known: HashMap<SlotId, u32> = HashMap::new();
        for table in [&index.table, &index.draining] {
            for (bucket, lane) in
                (0..table.count).flat_map(|at| (0..LANES).map(move |lane| (at, lane)))
            {
                let bucket = table.bucket(bucket).unwrap();
                if let Some(id) = slot_in(bucket, lane) {
                    assert_eq!(known.insert(id, bucket[lane]), None, "{id:?} is there twice");
                }
            }
        }
        assert_eq!(known.len(), slots.len());
    }

    #[test]
    fn growth_is_in_steps_and_loses_nothing() {
        check(hash, if cfg!(miri) { 300 } else { 30_000 });
    }

    #[test]
    fn hashes_that_are_all_alike_are_slow_and_nothing_worse() {
        check(crowded, if cfg!(miri) { 150 } else { 1_500 });
    }

    #[test]
    fn poor_hashes_spread() {
        let rounds = if cfg!(miri) { 300 } else { 30_000 };
        check(poor, rounds);
        let mut index = Index::default();
        (0..rounds).for_each(|i| index.insert(poor(i), SlotId::from_bits(i)));
        let table = &index.table;
        let mut away = 0;
        for at in 0..table.count {
            let bucket = table.bucket(at).unwrap();
            assert_eq!(bucket.as_ptr().addr() % 64, 0, "a bucket lies on two lines");
            let distances =
                (0..used(bucket)).map(|lane| table.distance(table.home(bucket[lane]), at));
            away += distances.sum::<usize>();
        }
        let mean = away as f64 / table.len as f64;
        assert!(mean < 0.5, "on average {mean} buckets away");
    }
}
