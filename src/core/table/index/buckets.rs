//! One open-addressed table: from a hash to the slots that have it.
//!
//! A bucket is a cache line: eight hashes, and the slots that have them. A lookup compares all eight
//! at once and goes on to the next bucket only if this one is full (linear probing by buckets:
//! Knuth, *The Art of Computer Programming*, volume 3, section 6.4; removal closes the gap, as his
//! algorithm R does, and leaves no tombstones). So a lookup nearly always costs one cache miss and
//! no mispredicted branch, where hashbrown's table costs two misses that depend on each other, its
//! control bytes and then its bucket; in a cache larger than the processor's, misses are what a hit
//! consists of. Few instructions between two misses let the processor overlap them, so
//! a first look is one bucket and one comparison.

use wide::bytemuck::cast;
use wide::{i8x16, i16x8, u32x8};

use super::SlotHash;
use crate::core::table::slots::SlotId;

/// Hashes in a bucket.
pub(super) const LANES: usize = 8;
/// The last lane to be filled: something is in it only while the bucket is full.
const LAST: usize = LANES - 1;

/// No slot: an empty lane. `Slots` gives out neither this number nor the next.
pub(super) const EMPTY: u32 = SlotId::NONE.bits();
/// No slot: a lane whose content was taken out of a table that is being left. For searches the
/// bucket stays as full as it was.
pub(super) const MOVED: u32 = EMPTY - 1;

/// What stands in a bucket for a hash: no two hashes have the same, and the upper bits, which choose
/// the bucket, depend on all the others. So hash functions whose upper bits are poor do as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread(pub(super) u32);

impl Spread {
    #[inline]
    pub(super) const fn of(hash: u32) -> Self {
        Self(hash.wrapping_mul(0x9E37_79B9))
    }
}

/// Lanes of a bucket: for each two bits, both set or both not. That is the mask for which SSE2 needs
/// the fewest instructions.
struct Lanes(u32);

impl Lanes {
    /// Those in which `number` stands.
    // Always: see `Table::find`.
    #[inline(always)]
    fn with(number: u32, lanes: u32x8) -> Self {
        let same = lanes.simd_eq(u32x8::splat(number)).cast_signed();
        Self(cast::<_, i8x16>(i16x8::from_i32x8_saturate(same)).to_bitmask())
    }
}

impl Iterator for Lanes {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        // The remainder says nothing new, but it spares the check of an index.
        let lane = (self.0 != 0).then(|| self.0.trailing_zeros() as usize / 2 % LANES)?;
        self.0 &= !(3 << (2 * lane));
        Some(lane)
    }
}

/// A cache line.
///
/// Lanes may be occupied in any order, except that [`LAST`] is only if all others are. The spread of
/// an empty lane is one that no search for has this bucket as its first. So a search for a spread in
/// the bucket where it belongs need not ask whether what it found is a slot.
#[derive(Debug)]
#[repr(C, align(64))]
pub(in crate::core) struct Bucket {
    spreads: u32x8,
    slots: u32x8,
}

impl Bucket {
    /// The empty bucket at the place `at`.
    pub(super) fn empty(at: usize) -> Self {
        Self { spreads: u32x8::splat(no_spread(at)), slots: u32x8::splat(EMPTY) }
    }

    /// The first slot with `hash` here, where the search for it begins.
    // Always: see `Table::find`.
    #[inline(always)]
    pub(in crate::core) fn first(&self, hash: SlotHash) -> Option<SlotId> {
        let lane = Lanes::with(hash.spread().0, self.spreads).next()?;
        Some(SlotId::from_bits(self.slot(lane)))
    }

    /// Whether there may be more in the next bucket.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.slot(LAST) != EMPTY
    }

    fn put(&mut self, lane: usize, (spread, slot): (u32, u32)) {
        self.spreads.as_mut_array()[lane] = spread;
        self.slots.as_mut_array()[lane] = slot;
    }

    fn content(&self, lane: usize) -> (u32, u32) {
        (self.spreads.as_array()[lane], self.slot(lane))
    }

    #[inline]
    fn slot(&self, lane: usize) -> u32 {
        self.slots.as_array()[lane]
    }
}

/// A spread that does not belong into the bucket `at`, however many buckets there are: the lowest
/// belongs into the first, the highest into the last. It takes two to have another.
#[inline]
const fn no_spread(at: usize) -> u32 {
    if at == 0 { u32::MAX } else { 0 }
}

/// How many slots so many buckets have room for: three quarters of the lanes, for then few buckets
/// are full.
pub(super) const fn room(buckets: usize) -> usize {
    (buckets * 6).saturating_sub(6)
}

/// The buckets. Not all of them are full, which ends every search.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    /// None, or at least two.
    buckets: Vec<Bucket>,
    /// How many slots stand in them.
    len: usize,
}

impl Buckets {
    /// With these buckets, all of them [empty](Bucket::empty).
    pub(super) fn new(buckets: Vec<Bucket>) -> Self {
        Self { buckets, len: 0 }
    }

    /// How many slots stand here.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many buckets there are.
    pub(super) fn count(&self) -> usize {
        self.buckets.len()
    }

    /// Where the search for `spread` begins.
    #[inline]
    fn home(&self, spread: Spread) -> usize {
        ((u64::from(spread.0) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.buckets.len() { 0 } else { at + 1 }
    }

    /// How many buckets further `to` is than `from`, going round the end.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.buckets.len() - from }
    }

    /// The bucket where the search for `spread` begins; `None` only where there are no buckets at all.
    #[inline]
    pub(super) fn bucket(&self, spread: Spread) -> Option<&Bucket> {
        self.buckets.get(self.home(spread))
    }

    /// What `look` makes of the first of the slots with `spread` of which it makes something.
    pub(super) fn find<R>(&self, spread: Spread, look: impl Fn(SlotId) -> Option<R>) -> Option<R> {
        let mut at = self.home(spread);
        loop {
            let bucket = self.buckets.get(at)?;
            for lane in Lanes::with(spread.0, bucket.spreads) {
                // Behind the first bucket an empty lane may look like any other.
                if bucket.slot(lane) < MOVED
                    && let Some(found) = look(SlotId::from_bits(bucket.slot(lane)))
                {
                    return Some(found);
                }
            }
            if !bucket.is_full() {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Reads something of the bucket where the search for `spread` begins, so that the processor has
    /// it. What is returned must be used.
    #[inline]
    pub(super) fn touch(&self, spread: Spread) -> u32 {
        self.buckets.get(self.home(spread)).map_or(EMPTY, |bucket| bucket.slot(LAST))
    }

    /// The bucket and the lane in which `slot` stands, which has `spread`.
    #[inline]
    fn place_of(&self, spread: Spread, slot: SlotId) -> Option<(usize, usize)> {
        let mut at = self.home(spread);
        loop {
            let bucket = self.buckets.get(at)?;
            if let Some(lane) = Lanes::with(slot.bits(), bucket.slots).next() {
                return Some((at, lane));
            }
            if !bucket.is_full() {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Adds a slot. The caller has seen to it that there is room.
    #[inline]
    pub(super) fn insert(&mut self, spread: Spread, slot: u32) {
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

    /// Takes out `slot`, which has `spread`, and moves up what would not be found behind the gap.
    /// Whether it was here.
    #[inline]
    pub(super) fn remove(&mut self, spread: Spread, slot: SlotId) -> bool {
        let Some((at, lane)) = self.place_of(spread, slot) else { return false };
        self.len -= 1;
        let bucket = &mut self.buckets[at];
        if bucket.is_full() {
            self.close_gap(at, lane);
        } else {
            bucket.put(lane, (no_spread(at), EMPTY));
        }
        true
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

    /// Takes all that is left in the bucket `at` out of a table that is being left, without closing
    /// the gaps, and hands each to `moved`.
    pub(super) fn take_bucket(&mut self, at: usize, mut moved: impl FnMut(Spread, u32)) {
        let bucket = &mut self.buckets[at];
        for lane in 0..LANES {
            let (spread, slot) = bucket.content(lane);
            if slot < MOVED {
                bucket.put(lane, (no_spread(at), MOVED));
                self.len -= 1;
                moved(Spread(spread), slot);
            }
        }
    }

    /// Takes `slot`, which has `spread`, out of a table that is being left, without closing the gap.
    /// Whether it was here.
    pub(super) fn take(&mut self, spread: Spread, slot: SlotId) -> bool {
        let Some((at, lane)) = self.place_of(spread, slot) else { return false };
        self.buckets[at].put(lane, (no_spread(at), MOVED));
        self.len -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Buckets {
        /// The slots that stand here. Panics unless every bucket is what is said of it, and every slot on
        /// its way.
        pub(in super::super) fn validate(&self) -> Vec<u32> {
            let count = self.buckets.len();
            let mut known = Vec::new();
            for (at, bucket) in self.buckets.iter().enumerate() {
                assert_eq!(std::ptr::from_ref(bucket).addr() % 64, 0, "it lies on two lines");
                let is_empty = |lane| bucket.slot(lane) == EMPTY;
                assert!(is_empty(LAST) || !(0..LANES).any(is_empty), "{at}: {bucket:?}");
                for (spread, slot) in (0..LANES).map(|lane| bucket.content(lane)) {
                    let home = self.home(Spread(spread));
                    if slot < MOVED {
                        known.push(slot);
                        let mut way = (home..).take(self.distance(home, at));
                        assert!(way.all(|on| self.buckets[on % count].is_full()), "{slot}");
                    } else {
                        assert_ne!(home, at, "an empty lane would be found");
                    }
                }
            }
            assert_eq!(self.len, known.len(), "it miscounts itself");
            assert!(self.len <= room(count), "too full");
            known
        }

        /// How many buckets away from where its search begins a slot stands, on average.
        pub(in super::super) fn mean_distance(&self) -> f64 {
            let away = self.buckets.iter().enumerate().map(|(at, bucket)| {
                let used = (0..LANES).filter(|&lane| bucket.slot(lane) != EMPTY);
                let homes = used.map(|lane| self.home(Spread(bucket.content(lane).0)));
                homes.map(|home| self.distance(home, at)).sum::<usize>()
            });
            away.sum::<usize>() as f64 / self.len as f64
        }
    }
}
