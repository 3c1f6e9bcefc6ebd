//! Which entry leaves when room is needed: one policy a file, behind one trait.
//!
//! A policy knows slots and hashes, never keys, values, locks or limits. Everything but
//! [`Policy::hit`] is called under the write lock of the shard.

mod by_size;
mod by_use;
mod contract;
mod lhd;
mod lru;
mod s3_fifo;

pub(in crate::core) use contract::HitNote;
pub(super) use contract::{NO_EPOCH, Policy};

pub(super) use by_size::Sizes;
pub(super) use lhd::Learner;

use std::sync::Arc;

use super::index::SlotHash;
use super::slots::SlotId;
use super::ticks::{LastUse, Looks};
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
    /// one, so a scan does not flush what is in use. The cheapest insertion, no chance in what
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
    /// [`EvictionPolicy::HitDensity`] the one that promises the fewest hits for the square root of its
    /// weight, which favours the small without giving up the bytes of the large. The default.
    #[default]
    PolicyOrder,
    /// The heaviest entry of the shard; of equally heavy ones the least recently used with
    /// [`EvictionPolicy::Lru`], else the oldest. In an embedding cache the size is that of the
    /// vector, without its key.
    LargestFirst,
}

/// The policy of a shard. An enum, so that a hit is a predictable branch and no virtual call; which
/// one it is stands in a byte of its own, as looking for it in unused bits of the content costs a hit
/// six instructions.
#[derive(Debug)]
#[repr(u8)]
#[allow(clippy::large_enum_variant, reason = "one for each shard; a hit would look for a box")]
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

impl AnyPolicy {
    /// Whether the policy goes by when entries were used last.
    #[inline]
    pub(super) fn keeps_order(&self) -> bool {
        matches!(self, Self::Lru(_))
    }

    /// [`exchange`](Policy::exchange), and the epoch after it where it was `epoch` before.
    // Always: one look at which policy it is.
    #[inline(always)]
    pub(super) fn exchange_in_epoch(
        &mut self,
        slot: SlotId,
        old: SlotHash,
        new: SlotHash,
        weight: u64,
        epoch: u64,
    ) -> u64 {
        each!(self, policy => {
            policy.exchange(slot, old, new, weight);
            policy.policy_epoch(epoch)
        })
    }

    /// As [`exchange_in_epoch`](Self::exchange_in_epoch), where the old entry leaves for another reason
    /// than that the policy chose it.
    #[cold]
    #[inline(never)]
    pub(super) fn renew_in_epoch(
        &mut self,
        slot: SlotId,
        new: SlotHash,
        weight: u64,
        epoch: u64,
    ) -> u64 {
        each!(self, policy => {
            policy.remove(slot);
            policy.insert(slot, new, weight);
            policy.policy_epoch(epoch)
        })
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
    fn policy_epoch(&self, present: u64) -> u64 {
        each!(self, policy => policy.policy_epoch(present))
    }

    #[inline]
    fn hit(&self, slot: SlotId) -> HitNote {
        each!(self, policy => policy.hit(slot))
    }

    fn touch(&mut self, slot: SlotId) -> HitNote {
        each!(self, policy => policy.touch(slot))
    }

    fn remove(&mut self, slot: SlotId) {
        each!(self, policy => policy.remove(slot));
    }

    fn evict(&mut self, slot: SlotId, hash: SlotHash) {
        each!(self, policy => policy.evict(slot, hash));
    }

    fn victim(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Option<SlotId> {
        each!(self, policy => policy.victim(keep, last_use, looks))
    }

    fn victim_for_weight(
        &mut self,
        keep: Option<SlotId>,
        last_use: impl LastUse,
        looks: &mut Looks,
    ) -> Option<SlotId> {
        each!(self, policy => policy.victim_for_weight(keep, last_use, looks))
    }

    fn heat(&self, slot: SlotId) -> u32 {
        each!(self, policy => policy.heat(slot))
    }

    fn validate(&self, occupied: &mut dyn Iterator<Item = SlotId>) {
        each!(self, policy => policy.validate(occupied));
    }
}
