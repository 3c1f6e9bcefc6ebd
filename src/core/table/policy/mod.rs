//! Who leaves when room is needed: one policy a file, behind one trait.
//!
//! A policy knows slots and hashes, never keys, values, locks or limits. Everything but
//! [`Policy::hit`] is called under the write lock of the shard.

mod by_size;
mod lhd;
mod list;
mod lru;
mod s3_fifo;

pub(super) use by_size::Sizes;
pub(super) use lhd::Learner;
pub(super) use list::{Links, List};

use std::sync::Arc;

use super::index::SlotHash;
use super::slots::{Chunked, SlotId};
use lhd::HitDensity;
use lru::Lru;
use s3_fifo::S3Fifo;

/// The order in which entries leave when the cache is full.
///
/// Expired entries of a shard always leave first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EvictionPolicy {
    /// S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: *FIFO queues are all you need for cache eviction*,
    /// SOSP 2023). New entries pass a small queue, from which only those used again reach the main
    /// one, so a scan does not flush what is in use. The cheapest insertion, no chance in who
    /// leaves, and a hit writes at most one byte.
    S3Fifo,
    /// Learned hit density, after LHD (Beckmann, Chen, Cidon: *LHD: improving cache hit rate by
    /// maximizing hit density*, NSDI 2018). The cache measures, on a sample of keys, how long
    /// entries wait for their next use by how often and after which time they were used before, and
    /// gives up those that promise the fewest hits for the room they take. It finds out by itself
    /// whether recency or frequency counts, or that requests go in a loop. The default: the best
    /// hit ratio in replays. A hit writes at most one word, and not every time; which entry leaves
    /// is partly chance.
    #[default]
    HitDensity,
    /// Exact least-recently-used, where both get and put count as use. Exact within a shard;
    /// a cache of a few hundred entries has one shard.
    Lru,
}

/// Which entries leave when the limit on *weight* is reached (the limit on entries is always the
/// [`EvictionPolicy`]'s).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum MemoryPressure {
    /// The entry that the [`EvictionPolicy`] would give up next; with
    /// [`EvictionPolicy::HitDensity`] the one that promises the fewest hits for its weight. The
    /// default.
    #[default]
    PolicyOrder,
    /// The heaviest entry of the shard; of equally heavy ones the least recently used with
    /// [`EvictionPolicy::Lru`], else the oldest. In an embedding cache the size is that of the
    /// vector, without its key.
    LargestFirst,
}

/// The [`Policy::policy_epoch`] of a policy that settles nothing.
pub(super) const NO_EPOCH: u32 = u32::MAX;

/// A epoch of the policy for a number that counts up: half of the marks go by before one comes again.
const fn epoch_of(count: u32) -> u32 {
    (count & NO_EPOCH >> 1) + 1
}

/// What a policy makes of a hit that it was told of under the read lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) enum HitNote {
    /// Taken.
    Taken,
    /// Taken, and more hits of the slot are not worth a note until [`Policy::policy_epoch`] changes.
    Settled,
    /// No place to take it: the caller gets the write lock and calls [`Policy::touch`].
    Full,
}

/// Why a slot leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) enum Leave {
    /// To make room; the policy may remember the hash.
    Evicted,
    /// For another reason: not a judgement of the entry's worth.
    Other,
}

pub(super) trait Policy {
    /// A new entry of this weight stands in `slot`.
    fn insert(&mut self, slot: SlotId, hash: SlotHash, weight: u64);

    /// The entry in `slot` has another weight from now on.
    fn weigh(&mut self, _slot: SlotId, _weight: u64) {}

    /// What changes whenever a slot that was [settled](HitNote::Settled) is so no longer: never 0,
    /// and under the write lock only.
    fn policy_epoch(&self) -> u32 {
        NO_EPOCH
    }

    /// The entry in `slot` was read. Under the *read* lock: relaxed atomics only.
    fn hit(&self, slot: SlotId) -> HitNote;

    /// The entry in `slot` was read or its value replaced; under the write lock. Never
    /// [`HitNote::Full`].
    fn touch(&mut self, slot: SlotId) -> HitNote;

    /// Brings in order what hits have left to do; a bounded amount. `also` is called with every
    /// slot that was hit, in the order of the hits. Called before anything else under the write
    /// lock.
    fn drain_hits(&mut self, also: impl FnMut(SlotId));

    /// The entry in `slot` leaves.
    fn remove(&mut self, slot: SlotId, hash: SlotHash, leave: Leave);

    /// The slot to evict next, other than `keep`; stays until [`remove`](Self::remove). A bounded
    /// amount of work.
    fn victim(&mut self, keep: Option<SlotId>) -> Option<SlotId>;

    /// The same where it is weight that is needed.
    fn victim_for_weight(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        self.victim(keep)
    }

    /// How much the entry in `slot` is worth keeping beside the others of the cache: what is written
    /// down first when all are. Of a policy that keeps an order, see
    /// [`after_in_use`](Self::after_in_use), always 0.
    fn heat(&self, _slot: SlotId) -> u32 {
        0
    }

    /// Of a policy that keeps an order of use, the slot behind `after` in it, from the most recently
    /// used on; the first for `None`, or where `after` holds no entry any more.
    fn after_in_use(&self, _after: Option<SlotId>) -> Option<SlotId> {
        None
    }

    /// Panics unless this policy holds exactly `occupied` slots and its parts agree.
    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>);
}

/// The policy of a shard. An enum, so that a hit is a predictable branch and no virtual call; which
/// one it is stands in a byte of its own, as looking for it in unused bits of the content costs a hit
/// six instructions.
#[derive(Debug)]
#[repr(u8)]
pub(super) enum AnyPolicy {
    Lru(Lru),
    S3Fifo(S3Fifo),
    HitDensity(HitDensity),
}

macro_rules! each {
    ($self:ident, $policy:ident => $call:expr) => {
        match $self {
            Self::Lru($policy) => $call,
            Self::S3Fifo($policy) => $call,
            Self::HitDensity($policy) => $call,
        }
    };
}

impl AnyPolicy {
    /// `learner` is what the shards of a cache learn together.
    pub(super) fn new(policy: EvictionPolicy, learner: Option<&Arc<Learner>>) -> Self {
        match policy {
            EvictionPolicy::Lru => Self::Lru(Lru::default()),
            EvictionPolicy::S3Fifo => Self::S3Fifo(S3Fifo::default()),
            EvictionPolicy::HitDensity => {
                let learner = learner.map_or_else(|| Arc::new(Learner::new(1)), Arc::clone);
                Self::HitDensity(HitDensity::new(learner))
            }
        }
    }
}

impl Policy for AnyPolicy {
    fn insert(&mut self, slot: SlotId, hash: SlotHash, weight: u64) {
        each!(self, policy => policy.insert(slot, hash, weight));
    }

    fn weigh(&mut self, slot: SlotId, weight: u64) {
        each!(self, policy => policy.weigh(slot, weight));
    }

    #[inline]
    fn policy_epoch(&self) -> u32 {
        each!(self, policy => policy.policy_epoch())
    }

    #[inline]
    fn hit(&self, slot: SlotId) -> HitNote {
        each!(self, policy => policy.hit(slot))
    }

    fn touch(&mut self, slot: SlotId) -> HitNote {
        each!(self, policy => policy.touch(slot))
    }

    fn drain_hits(&mut self, also: impl FnMut(SlotId)) {
        each!(self, policy => policy.drain_hits(also));
    }

    fn remove(&mut self, slot: SlotId, hash: SlotHash, leave: Leave) {
        each!(self, policy => policy.remove(slot, hash, leave));
    }

    fn victim(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        each!(self, policy => policy.victim(keep))
    }

    fn victim_for_weight(&mut self, keep: Option<SlotId>) -> Option<SlotId> {
        each!(self, policy => policy.victim_for_weight(keep))
    }

    fn heat(&self, slot: SlotId) -> u32 {
        each!(self, policy => policy.heat(slot))
    }

    fn after_in_use(&self, after: Option<SlotId>) -> Option<SlotId> {
        each!(self, policy => policy.after_in_use(after))
    }

    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        each!(self, policy => policy.validate(occupied));
    }
}

/// What `items` has for a slot. Each slot is new once and taken over many times, so growing is a call
/// out of the way.
#[inline]
fn reach<T: Default>(items: &mut Chunked<T>, slot: SlotId) -> &mut T {
    if slot.bits() as usize >= items.len() {
        grow(items, slot);
    }
    &mut items[slot]
}

#[cold]
#[inline(never)]
fn grow<T: Default>(items: &mut Chunked<T>, slot: SlotId) {
    items.reach(slot);
}

/// Panics unless `lists` together hold exactly `occupied`, each slot once.
fn validate_lists(
    lists: &[&List],
    links: &Chunked<Links>,
    occupied: &mut dyn Iterator<Item = SlotId>,
) {
    let mut listed = std::collections::BTreeSet::new();
    for list in lists {
        let mut len = 0;
        for slot in list.iter(links) {
            assert!(listed.insert(slot), "{slot:?} is listed twice");
            len += 1;
        }
        assert_eq!(len, list.len(), "a list miscounts itself");
    }
    let occupied: std::collections::BTreeSet<_> = occupied.collect();
    assert_eq!(listed, occupied, "the policy does not list what the shard holds");
}
