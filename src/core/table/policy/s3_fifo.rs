//! S3-FIFO: three queues instead of an order of use.
//!
//! After Yang, Zhang, Qiu, Yue and Rashmi, *FIFO queues are all you need for cache eviction*, SOSP
//! 2023. New entries wait in a **small** queue (a tenth of the shard); an entry used at least twice
//! while there moves on to the **main** queue, the others leave, and their fingerprints go to a
//! **ghost** queue: a key that comes back while it is remembered enters main directly. Main is a
//! FIFO in which an entry with uses left goes round again for one of them.
//!
//! A hit stores one byte, and only while the count is under three. The ghosts hold 16 bits of a
//! hash instead of a key (as the paper proposes): a mistaken one, about once in 16,000 lookups,
//! costs a worse place for one entry, never a wrong answer.
//!
//! Where this differs from the paper: going round is bounded ([`LOOK`] entries an eviction), so
//! that no writer holds the lock for long; the small queue is a tenth of what the shard holds at
//! the moment, as the limit is one for all shards.

use crate::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::super::index::SlotHash;
use super::super::list::{Linked, Links, List, validate_lists};
use super::super::slots::{SlotId, Slots};
use super::super::ticks::{LastUse, Looks};
use super::contract::{HitNote, Policy, epoch_of};

/// Uses are counted up to three: two bits, as in the paper.
const MOST_USES: u8 = 3;
/// Uses that let an entry go on from small to main.
const PROVEN: u8 = 2;
/// Uses that let an entry go round in main.
const PROVEN_AGAIN: u8 = 1;
/// Set in the byte of an entry that is in main.
const IN_MAIN: u8 = 1 << 7;
/// Entries looked at for one eviction at most.
const LOOK: usize = 64;

/// A slot in its queue.
#[derive(Debug, Default)]
struct Node {
    links: Links,
    /// Its uses, and [`IN_MAIN`]. Under the read lock only the uses are written, and a use lost to a
    /// race of two hits is one of at most three; the queue changes under the write lock.
    uses: AtomicU8,
}

impl Linked for Node {
    #[inline]
    fn links(&self) -> &Links {
        &self.links
    }

    #[inline]
    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

#[derive(Debug, Default)]
pub(in super::super) struct S3Fifo {
    nodes: Slots<Node>,
    small: List,
    main: List,
    ghosts: Ghosts,
    /// How often uses have been taken from an entry; that ends what was [settled](HitNote::Settled).
    round: u32,
}

impl S3Fifo {
    fn len(&self) -> usize {
        self.small.len() + self.main.len()
    }

    #[inline]
    fn small_is_over_its_share(&self) -> bool {
        self.small.len() > 0 && self.small.len() * 10 >= self.len()
    }

    /// Puts a slot that is in no queue into main.
    fn push_main(&mut self, slot: SlotId) {
        self.main.push_front(&mut self.nodes, slot);
        *self.nodes[slot].uses.get_mut() = IN_MAIN;
    }

    /// Puts a slot that is in no queue into small.
    fn push_small(&mut self, slot: SlotId) {
        self.small.push_front(&mut self.nodes, slot);
        *self.nodes[slot].uses.get_mut() = 0;
    }

    /// Takes a slot out of its queue. Whether that was main.
    #[inline]
    fn leave(&mut self, slot: SlotId) -> bool {
        let was_in_main = *self.nodes[slot].uses.get_mut() & IN_MAIN != 0;
        let queue = if was_in_main { &mut self.main } else { &mut self.small };
        queue.remove(&mut self.nodes, slot);
        was_in_main
    }

    /// [`victim`](Policy::victim) where the oldest in small is none.
    #[inline(never)]
    fn look_for_victim(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        for _ in 0..LOOK {
            let from_small = self.small_is_over_its_share() || self.main.len() == 0;
            let (queue, proven) =
                if from_small { (&self.small, PROVEN) } else { (&self.main, PROVEN_AGAIN) };
            let oldest = queue.back()?;
            let uses = *self.nodes[oldest].uses.get_mut() & !IN_MAIN;
            if uses < proven && keep != Some(oldest) {
                return Some(oldest);
            }
            self.round = self.round.wrapping_add(1);
            if from_small {
                self.change_queue(oldest, true);
            } else {
                self.main.move_to_front(&mut self.nodes, oldest);
                *self.nodes[oldest].uses.get_mut() = IN_MAIN | uses.saturating_sub(1);
            }
        }
        // Everything looked at is in use, so one victim is about as good as another.
        [&self.main, &self.small].into_iter().find_map(|queue| {
            let oldest = queue.back()?;
            if keep == Some(oldest) { queue.ahead_of(&self.nodes, oldest) } else { Some(oldest) }
        })
    }

    #[inline(never)]
    fn change_queue(&mut self, slot: SlotId, to_main: bool) {
        self.leave(slot);
        if to_main { self.push_main(slot) } else { self.push_small(slot) }
    }
}

impl Policy for S3Fifo {
    fn insert(&mut self, slot: SlotId, hash: SlotHash, _: u64) {
        if self.ghosts.take(hash) {
            self.push_main(slot);
        } else {
            self.push_small(slot);
        }
    }

    #[inline]
    fn policy_epoch(&self, _: u64) -> u64 {
        epoch_of(self.round)
    }

    #[inline]
    fn hit(&self, slot: SlotId) -> HitNote {
        let byte = &self.nodes[slot].uses;
        let seen = byte.load(Relaxed);
        if seen & !IN_MAIN < MOST_USES {
            byte.store(seen + 1, Relaxed);
            return HitNote::Taken;
        }
        HitNote::Settled
    }

    fn touch(&mut self, slot: SlotId) -> HitNote {
        self.hit(slot)
    }

    fn remove(&mut self, slot: SlotId) {
        self.leave(slot);
    }

    fn evict(&mut self, slot: SlotId, hash: SlotHash) {
        let len = self.len();
        if !self.leave(slot) {
            self.ghosts.remember(hash, len);
        }
    }

    /// Nearly always one leaves the queue that the other enters.
    fn exchange(&mut self, slot: SlotId, old: SlotHash, new: SlotHash, _: u64) {
        let len = self.len();
        let uses = self.nodes[slot].uses.get_mut();
        let was_in_main = *uses & IN_MAIN != 0;
        *uses &= IN_MAIN;
        if !was_in_main {
            self.ghosts.remember(old, len);
        }
        let is_for_main = self.ghosts.take(new);
        match (was_in_main, is_for_main) {
            (false, false) => self.small.move_to_front(&mut self.nodes, slot),
            (true, true) => self.main.move_to_front(&mut self.nodes, slot),
            _ => self.change_queue(slot, is_for_main),
        }
    }

    #[inline]
    fn victim(&mut self, keep: Option<SlotId>, _: impl LastUse, _: &mut Looks) -> Option<SlotId> {
        if keep.is_none()
            && self.small_is_over_its_share()
            && let Some(oldest) = self.small.back()
            && *self.nodes[oldest].uses.get_mut() < PROVEN
        {
            return Some(oldest);
        }
        self.look_for_victim(keep)
    }

    /// What is in main before what is in small, and the more uses the sooner.
    fn heat(&self, slot: SlotId) -> u32 {
        self.nodes.get(slot).map_or(0, |node| u32::from(node.uses.load(Relaxed)))
    }

    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        validate_lists(&[&self.small, &self.main], &self.nodes, occupied);
        for (list, policy_epoch) in [(&self.small, 0), (&self.main, IN_MAIN)] {
            for slot in list.iter(&self.nodes) {
                let byte = self.nodes[slot].uses.load(Relaxed);
                assert_eq!(byte & IN_MAIN, policy_epoch, "{slot:?} is marked for the other queue");
                assert!(byte & !IN_MAIN <= MOST_USES);
            }
        }
    }
}

/// Words looked at for a hash.
const WAYS: usize = 4;

/// What is remembered at one place: the fingerprint in the upper half of a word, the time in the
/// lower; 0 is empty. The latest first, the empty ones last.
type Bucket = [u32; WAYS];

/// Fingerprints of what left the small queue; each is forgotten after as many further evictions as
/// the queue is long.
#[derive(Debug)]
struct Ghosts {
    buckets: Box<[Bucket]>,
    /// The least length of the shard for which these are enough, and how much more it may be.
    fits: (usize, usize),
    /// Evictions in a unit of time.
    unit: u32,
    /// Evictions left in the present one.
    left: u32,
    /// In units, from 1 so that no word is 0. It wraps after 256 lengths of the queue; a fingerprint
    /// left over from then would be mistaken for a new one once in 256 such cases.
    time: u32,
    /// The age up to which a fingerprint is remembered: the length of the queue, in units.
    oldest: u32,
}

impl Default for Ghosts {
    fn default() -> Self {
        // No shard has such a length: there are no buckets yet.
        let (buckets, fits) = (Box::default(), (usize::MAX, 0));
        Self { buckets, fits, unit: 0, left: 0, time: 0, oldest: 0 }
    }
}

impl Ghosts {
    /// The length of the queue in units of the 16-bit time.
    const UNITS: usize = 256;
    const TIMES: u32 = u16::MAX as u32;

    /// Whether `word` is that of a fingerprint, and not yet forgotten.
    #[inline]
    fn is(&self, word: u32, fingerprint: u32) -> bool {
        let time = word.wrapping_sub(fingerprint);
        // No time is 0 and none is longer, so this is no other fingerprint and no empty word.
        if time.wrapping_sub(1) >= Self::TIMES {
            return false;
        }
        let age = self.time.wrapping_sub(time);
        age.min(age.wrapping_add(Self::TIMES)) <= self.oldest
    }

    /// The bucket, by the upper bits of the hash, and the fingerprint, its lower half.
    #[inline]
    fn place(&self, hash: SlotHash) -> (usize, u32) {
        let bucket = (u64::from(hash.0) * self.buckets.len() as u64) >> 32;
        (bucket as usize, hash.0 << 16)
    }

    /// Remembers `hash`, which left a shard of `len` entries.
    #[inline]
    fn remember(&mut self, hash: SlotHash, len: usize) {
        // One comparison: below the least this is a large number.
        if len.wrapping_sub(self.fits.0) > self.fits.1 {
            self.resize(len);
        }
        self.left -= 1;
        if self.left == 0 {
            self.left = self.unit;
            self.time = self.time % Self::TIMES + 1;
        }
        let (bucket, fingerprint) = self.place(hash);
        if let Some(words) = self.buckets.get_mut(bucket) {
            // Where all four are remembered, the oldest gives way.
            let [first, second, third, _] = *words;
            *words = [fingerprint | self.time, first, second, third];
        }
    }

    /// Starts over for another length of the shard. What was remembered is lost; that happens when
    /// the shard has grown by half since, not in steady state, and spares a rehash under the lock. The
    /// new words come zeroed from the allocator.
    #[cold]
    #[inline(never)]
    fn resize(&mut self, len: usize) {
        self.fits = (len / 4, len / 2 + len - len / 4);
        // As many ghosts as main has entries when it is full.
        let length = (len - len / 10).max(WAYS);
        let unit = length.div_ceil(Self::UNITS);
        // A quarter more than the length: buckets fill unevenly.
        let buckets = (length + length / 4).div_ceil(WAYS);
        self.buckets = vec![Bucket::default(); buckets].into_boxed_slice();
        self.unit = u32::try_from(unit).unwrap_or(u32::MAX);
        self.left = self.unit + 1;
        self.time = 1;
        self.oldest = length.div_ceil(unit) as u32;
    }

    /// Whether `hash` is remembered; if so it is forgotten now.
    #[inline]
    fn take(&mut self, hash: SlotHash) -> bool {
        let (bucket, fingerprint) = self.place(hash);
        let Some(words) = self.buckets.get(bucket) else { return false };
        // All four at once: nearly always none has even the fingerprint.
        let same = words.map(|word| (word ^ fingerprint) >> 16 == 0);
        same.contains(&true) && self.take_found(bucket, fingerprint)
    }

    #[inline(never)]
    fn take_found(&mut self, bucket: usize, fingerprint: u32) -> bool {
        let words = self.buckets[bucket];
        let Some(found) = words.iter().position(|&word| self.is(word, fingerprint)) else {
            return false;
        };
        let words = &mut self.buckets[bucket];
        words.copy_within(found + 1.., found);
        words[WAYS - 1] = 0;
        true
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn hash(i: u32) -> SlotHash {
        SlotHash((i + 1).wrapping_mul(0x9E37_79B9))
    }

    /// A shard of `capacity` entries in front of which keys are requested one by one.
    struct Shard {
        policy: S3Fifo,
        slots: Vec<u32>,
        capacity: usize,
    }

    impl Shard {
        fn new(capacity: usize) -> Self {
            Self { policy: S3Fifo::default(), slots: Vec::new(), capacity }
        }

        /// Whether `key` was there; it is afterwards.
        fn request(&mut self, key: u32) -> bool {
            if let Some(place) = self.slots.iter().position(|&held| held == key) {
                self.policy.hit(SlotId::from_bits(place as u32));
                return true;
            }
            let place = if self.slots.len() < self.capacity {
                self.slots.push(key);
                self.slots.len() - 1
            } else {
                let victim = self.policy.victim(None, |_| 0, &mut Looks::default()).unwrap();
                let place = victim.bits() as usize;
                self.policy.evict(victim, hash(self.slots[place]));
                self.slots[place] = key;
                place
            };
            self.policy.insert(SlotId::from_bits(place as u32), hash(key), 1);
            // Walks through everything, which takes Miri too long.
            if !cfg!(miri) {
                self.policy.validate(&mut (0..self.slots.len() as u32).map(SlotId::from_bits));
            }
            false
        }

        fn request_all(&mut self, keys: std::ops::Range<u32>) {
            for key in keys {
                self.request(key);
            }
        }
    }

    #[test]
    fn a_scan_does_not_flush_what_is_in_use() {
        let mut shard = Shard::new(50);
        for _ in 0..4 {
            shard.request_all(0..30);
        }
        shard.request_all(1000..1500);
        let kept = (0..30).filter(|&key| shard.request(key)).count();
        assert_eq!(kept, 30);
    }

    #[test]
    fn one_that_comes_back_while_it_is_remembered_enters_main() {
        let mut shard = Shard::new(20);
        shard.request_all(0..40);
        assert!(!shard.request(10), "was evicted");
        // New ones pass through small; the returned one outlives them all.
        shard.request_all(100..160);
        assert!(shard.request(10));
        assert!(!shard.request(130), "one use, small only");
    }

    #[test]
    fn going_round_is_bounded_and_spares_what_is_kept() {
        let length = if cfg!(miri) { LOOK as u32 + 10 } else { 300 };
        let mut shard = Shard::new(length as usize);
        for _ in 0..5 {
            shard.request_all(0..length);
        }
        let keep = shard.policy.small.back();
        let victim = shard.policy.victim(keep, |_| 0, &mut Looks::default());
        assert!(victim.is_some() && victim != keep);
        let mut single = Shard::new(1);
        single.request(7);
        assert_eq!(
            single.policy.victim(Some(SlotId::from_bits(0)), |_| 0, &mut Looks::default()),
            None
        );
    }

    #[test]
    fn ghosts_are_forgotten_after_a_queue_length() {
        let lengths: &[u32] = if cfg!(miri) { &[100] } else { &[4, 100, 255, 257, 1000] };
        lengths.iter().copied().for_each(ghosts_of);
    }

    fn ghosts_of(length: u32) {
        let mut ghosts = Ghosts::default();
        let known = |ghosts: &mut Ghosts, range: std::ops::Range<u32>| {
            range.filter(|&i| ghosts.take(hash(i))).count()
        };
        (0..length).for_each(|i| ghosts.remember(hash(i), length as usize));
        let remembered = known(&mut ghosts, 0..length);
        assert!(remembered >= length as usize / 10 * 8, "{remembered} of {length}");
        assert!(!ghosts.take(hash(length - 1)), "taken once");

        let later = length..length / 2 * 5;
        later.for_each(|i| ghosts.remember(hash(i), length as usize));
        assert_eq!(known(&mut ghosts, length..length / 20 * 29), 0);
        let mistaken = known(&mut ghosts, 10 * length..20 * length);
        assert!(mistaken <= 10, "{mistaken}");
    }
}
