//! What is remembered of entries that were evicted.
//!
//! Two memories, both of hashes and not of keys, so a mistaken one costs a worse place for an entry
//! and never a wrong answer. [`Ghosts`] remembers most of those last used in the past four
//! capacities, so that a key that comes back goes on with the class it had. [`Sample`] remembers a
//! fixed number of keys for 16 capacities, so that long waits are seen to their end.

use super::super::super::index::SlotHash;
use super::entry_meta::EntryMeta;
use super::learner::Learner;
use super::measures::{Bin, Class, OLDEST, TICKS, Weight};

/// All that is remembered of entries that left.
#[derive(Debug, Default)]
pub(super) struct Memory {
    ghosts: Ghosts,
    pub(super) sample: Sample,
}

impl Memory {
    /// Fits it to a shard that holds `length` entries and may watch `most` that left.
    pub(super) fn fit(&mut self, length: usize, most: usize) {
        self.ghosts.fit(length);
        self.sample.fit(length, most);
    }

    /// An entry was evicted from a shard that holds `length`.
    #[inline]
    pub(super) fn left(
        &mut self,
        hash: SlotHash,
        meta: EntryMeta,
        learner: &Learner,
        now: u32,
        length: usize,
    ) {
        let (tick, class) = meta.last_use(now);
        self.ghosts.remember(hash, tick, class, now, length);
        if meta.is_sampled() {
            self.sample.left(hash, (tick, class), learner, now);
        }
    }

    /// An entry comes. Returns its word.
    #[inline]
    pub(super) fn back(
        &mut self,
        hash: SlotHash,
        learner: &Learner,
        now: u32,
        weight: u64,
    ) -> EntryMeta {
        let sampled = self.sample.contains(hash);
        if sampled {
            self.sample.back(hash, learner, now);
        }
        let class = self.ghosts.take(hash, now).unwrap_or(Class::NEW);
        EntryMeta::new(now, sampled, class, Weight::of(weight))
    }
}

/// Words looked at for a hash.
const WAYS: usize = 4;
/// Buckets of the sample that are swept in a tick.
const SWEPT: usize = 2;

/// The bucket of a hash, by its upper bits; none if there are none.
#[inline]
fn bucket<T>(buckets: &mut [T], hash: SlotHash) -> Option<&mut T> {
    let bucket = (u64::from(hash.0) * buckets.len() as u64) >> 32;
    buckets.get_mut(bucket as usize)
}

/// Hash, time of the last use and frequency of what left, in buckets of four words, each a number:
/// the word that came last is the lowest, and the one that came first gives way.
#[derive(Debug, Default)]
struct Ghosts {
    /// From the top: 8 bits of a hash, the frequency, the time in units; 0 is empty. One lookup in a
    /// hundred finds another's ghost: better so than twice the bits and half as many remembered.
    buckets: Box<[u64]>,
    /// How many entries the shard may have for this table.
    most: usize,
    least: usize,
}

impl Ghosts {
    /// Of the time, which wraps after eight capacities.
    const BITS: u32 = 5;
    /// Ticks in a unit of it. The class of a key that comes back needs no finer one.
    const UNIT: u32 = TICKS / 4;
    /// How long one is remembered: four capacities, where there is room. Two cost 0.15 points in
    /// replays, eight gain nothing.
    const MEMORY: u32 = 4 * TICKS;

    fn word(hash: SlotHash, tick: u32, class: Class) -> u16 {
        // The bucket is chosen by the upper bits of the hash.
        let time = tick / Self::UNIT % (1 << Self::BITS);
        (hash.0 << 8 | class.frequency() << Self::BITS | time) as u16
    }

    /// In units.
    #[inline]
    fn age(word: u16, now: u32) -> u32 {
        (now / Self::UNIT).wrapping_sub(u32::from(word)) % (1 << Self::BITS)
    }

    /// Remembers one that was last used at `tick`. The shard holds `length` entries.
    #[inline]
    pub(super) fn remember(
        &mut self,
        hash: SlotHash,
        tick: u32,
        class: Class,
        now: u32,
        length: usize,
    ) {
        if now.wrapping_sub(tick) > Self::MEMORY {
            return;
        }
        if self.buckets.is_empty() {
            self.resize(length);
        }
        if let Some(bucket) = bucket(&mut self.buckets, hash) {
            // 0 is empty: a word that happens to be 0 is not remembered.
            *bucket = *bucket << u16::BITS | u64::from(Self::word(hash, tick, class));
        }
    }

    /// Fits the memory to a shard that holds `length` entries, if any was evicted: a cache that never
    /// is full has no ghosts.
    pub(super) fn fit(&mut self, length: usize) {
        if !self.buckets.is_empty() && (length > self.most || length < self.least) {
            self.resize(length);
        }
    }

    /// Starts over for another length; zeroed words from the allocator, nothing is moved. Three
    /// times as many as there are entries: half of that costs 0.2 points in replays. Where all
    /// words are taken the oldest gives way.
    #[cold]
    #[inline(never)]
    fn resize(&mut self, length: usize) {
        let length = length.max(2 * WAYS);
        (self.least, self.most) = (length / 4, length + length / 2);
        let buckets = (length * 3).div_ceil(WAYS);
        self.buckets = vec![0; buckets].into_boxed_slice();
    }

    /// The class that the key of `hash` has now, if it is remembered. It is forgotten now.
    #[inline]
    pub(super) fn take(&mut self, hash: SlotHash, now: u32) -> Option<Class> {
        /// The lowest bit of each word.
        const EACH: u64 = u64::MAX / u16::MAX as u64;
        let bucket = bucket(&mut self.buckets, hash)?;
        // A byte for each word: 0 where the hash is the same. With 255 more, where it is not that
        // makes a bit of the byte above.
        let wanted = u64::from(hash.0 as u8) * EACH;
        let differ = (*bucket >> 8 ^ wanted) & (0xFF * EACH);
        let same = !(differ + 0xFF * EACH) & (EACH << 8);
        if same == 0 { None } else { Self::take_one(bucket, same, now) }
    }

    /// The first in a bucket of those marked in `same` that is remembered. The others close up.
    #[inline(never)]
    fn take_one(bucket: &mut u64, mut same: u64, now: u32) -> Option<Class> {
        while same != 0 {
            let place = same.trailing_zeros() / u16::BITS * u16::BITS;
            same &= same - 1;
            let word = (*bucket >> place) as u16;
            let age = Self::age(word, now);
            if word != 0 && age <= Self::MEMORY / Self::UNIT {
                let later = *bucket & ((1 << place) - 1);
                *bucket = later | (*bucket ^ later) >> u16::BITS & u64::MAX << place;
                let class = Class::of_frequency(u32::from(word) >> Self::BITS);
                return Some(class.after(age * Self::UNIT));
            }
        }
        None
    }
}

/// The keys whose waits are measured, chosen by their hash, so that all accesses to a key are seen
/// or none. A part of these is watched after eviction as well; for the others the wait is cut off then,
/// which the life table allows for.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// Those watched after they left, in buckets of four: from the top 23 bits of the hash, 31 of
    /// the tick of the last use, the bin up to which the wait was counted, the class; 0 is empty.
    gone: Box<[[u64; WAYS]]>,
    /// Keys whose [`draw`](Self::draw) has none of these bits belong to the sample.
    rarity: u32,
    /// Those whose draw has none of these are watched after they left.
    every: u32,
    length: usize,
    /// The bucket to be looked through next.
    cursor: usize,
}

impl Sample {
    /// About as many entries of a shard belong to the sample: all of a small one. So many that most
    /// of those that leave can be watched on, for 16 capacities. Evicted entries are unlike those that
    /// stay, so waits must not often be cut off at the eviction. Eight times as many cost 0.1 points in replays.
    const HERE: usize = 128;

    const TICK: u32 = Class::BITS + Bin::BITS;
    const HASH: u32 = Self::TICK + 31;

    fn word(hash: SlotHash, tick: u32, counted: Bin, class: Class) -> u64 {
        let low = counted.bits() << Class::BITS | class.bits();
        u64::from(hash.0) << Self::HASH
            | u64::from(tick & u32::MAX >> 1) << Self::TICK
            | u64::from(low)
    }

    fn age(word: u64, now: u32) -> u32 {
        now.wrapping_sub((word >> Self::TICK) as u32) & u32::MAX >> 1
    }

    fn class(word: u64) -> Class {
        Class::from_bits(word as u32)
    }

    fn counted(word: u64) -> Bin {
        Bin::from_bits(word as u32 >> Class::BITS)
    }

    /// The bits of which a draw may have none so that about one in so many is taken.
    fn one_in(many: usize) -> u32 {
        (many.next_power_of_two() - 1) as u32
    }

    /// Bits that neither the bucket nor the shard is chosen by.
    fn draw(hash: SlotHash) -> u32 {
        hash.0.wrapping_mul(0x9E37_79B9).swap_bytes()
    }

    /// Whether a key of the sample is watched after it left.
    #[inline]
    fn watches(&self, hash: SlotHash) -> bool {
        Self::draw(hash) & self.every == 0
    }

    #[inline]
    pub(super) fn contains(&self, hash: SlotHash) -> bool {
        Self::draw(hash) & self.rarity == 0
    }

    /// Fits the sample to a shard that holds `length` entries and may watch `most` that left.
    pub(super) fn fit(&mut self, length: usize, most: usize) {
        if length <= self.length + self.length / 2 && length >= self.length / 4 {
            return;
        }
        self.length = length.max(8);
        self.rarity = Self::one_in(self.length.div_ceil(Self::HERE));
        // As many leave while one is watched as are inserted in 16 capacities, at most.
        let all = self.length * (OLDEST / TICKS) as usize;
        self.every = Self::one_in(all.div_ceil(most)) | self.rarity;
        let buckets = all.min(most).div_ceil(WAYS);
        // Those watched until now are forgotten; so far they have been counted.
        self.gone = vec![[0; WAYS]; buckets].into_boxed_slice();
    }

    /// An entry of the sample was evicted; it was last used at `tick`. If there is no place, the one
    /// that left first is given up.
    #[inline]
    pub(super) fn left(
        &mut self,
        hash: SlotHash,
        (tick, class): (u32, Class),
        learner: &Learner,
        now: u32,
    ) {
        let bin = Bin::of(now.wrapping_sub(tick));
        learner.cut(class, bin);
        if self.watches(hash) {
            self.watch(hash, Self::word(hash, tick, bin, class));
        }
    }

    #[inline(never)]
    fn watch(&mut self, hash: SlotHash, word: u64) {
        if let Some(bucket) = bucket(&mut self.gone, hash) {
            bucket.copy_within(..WAYS - 1, 1);
            bucket[0] = word;
        }
    }

    /// Counts how long some of those watched have waited by now, and gives up those that waited too
    /// long. Called once a tick, so all are looked at once in two capacities, fewer more often.
    pub(super) fn sweep(&mut self, learner: &Learner, now: u32) {
        for _ in 0..self.gone.len().min(SWEPT) {
            self.cursor = if self.cursor + 1 < self.gone.len() { self.cursor + 1 } else { 0 };
            for word in &mut self.gone[self.cursor] {
                if *word == 0 {
                    continue;
                }
                let (class, counted, age) =
                    (Self::class(*word), Self::counted(*word), Self::age(*word, now));
                let bin = Bin::of(age);
                if bin != counted {
                    learner.begun(class, counted);
                    learner.cut(class, bin);
                    let counted = u64::from((counted.bits() ^ bin.bits()) << Class::BITS);
                    *word ^= counted;
                }
                if age > OLDEST {
                    *word = 0;
                }
            }
        }
    }

    /// A key of the sample is here again: its wait has ended, if it was watched.
    #[inline]
    pub(super) fn back(&mut self, hash: SlotHash, learner: &Learner, now: u32) {
        if self.watches(hash) {
            self.watched(hash, learner, now);
        }
    }

    #[inline(never)]
    fn watched(&mut self, hash: SlotHash, learner: &Learner, now: u32) {
        let Some(bucket) = bucket(&mut self.gone, hash) else { return };
        let same = u64::from(hash.0) << Self::HASH >> Self::HASH;
        let is_same = |&word: &u64| word >> Self::HASH == same && word != 0;
        let Some(place) = bucket.iter().position(is_same) else { return };
        let word = bucket[place];
        bucket.copy_within(place + 1.., place);
        bucket[WAYS - 1] = 0;
        learner.begun(Self::class(word), Self::counted(word));
        learner.ended(Self::class(word), Bin::of(Self::age(word, now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(i: u32) -> SlotHash {
        SlotHash((i + 1).wrapping_mul(0x9E37_79B9) ^ i >> 3)
    }

    #[test]
    fn a_ghost_keeps_frequency_and_time_for_four_capacities() {
        let mut ghosts = Ghosts::default();
        let class = Class::NEW.after(200);
        for i in 0..100 {
            ghosts.remember(hash(i), 10 * TICKS, class, 10 * TICKS, 100);
        }
        let soon = (0..50).filter_map(|i| ghosts.take(hash(i), 11 * TICKS)).collect::<Vec<_>>();
        assert!(soon.len() >= 45, "{}", soon.len());
        assert!(soon.iter().all(|&found| found == class.after(TICKS)));
        assert_eq!(ghosts.take(hash(0), 11 * TICKS), None, "taken once");
        let late =
            (50..100).filter(|&i| ghosts.take(hash(i), 14 * TICKS + TICKS / 4).is_some()).count();
        assert_eq!(late, 0);
        let others = 200..if cfg!(miri) { 300 } else { 20_000 };
        let mistaken = others.filter(|&i| ghosts.take(hash(i), 11 * TICKS).is_some()).count();
        assert!(mistaken <= 100, "{mistaken}");
    }

    #[test]
    fn a_word_of_the_sample_gives_back_what_it_holds() {
        let class = Class::NEW.after(TICKS);
        for tick in [0, 1, 1 << 20, (1 << 31) - 1, 1 << 31, u32::MAX - 5] {
            let word = Sample::word(SlotHash(u32::MAX), tick, Bin::of(OLDEST), class);
            assert_eq!(Sample::age(word, tick.wrapping_add(77)), 77);
            assert_eq!((Sample::class(word), Sample::counted(word)), (class, Bin::of(OLDEST)));
            assert_eq!(word >> Sample::HASH, (1 << (64 - Sample::HASH)) - 1);
        }
    }

    #[test]
    fn the_sample_is_bounded_whatever_the_length() {
        let lengths = if cfg!(miri) { &[1, 1_000_000][..] } else { &[1, 100, 10_000, 1_000_000] };
        for &length in lengths {
            let mut sample = Sample::default();
            sample.fit(length, 1024);
            assert!(sample.gone.len() * WAYS <= 1024);
            let of = if cfg!(miri) { 500 } else { 10_000 };
            let watched = (0..of).filter(|&i| sample.contains(hash(i))).count();
            let wanted = (of / (sample.rarity + 1)) as usize;
            assert!(watched <= 2 * wanted + 10 && watched >= wanted / 2, "{watched} {wanted}");
        }
    }
}
