//! The counters of a shard (but for hits and misses, see [`hit_counters`](super::hit_counters)) and their copy for
//! the caller.

use crate::error::CacheError;
use crate::stats::CacheStats;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::RemovalCause;
use super::budget::{Limit, Usage};
use super::table::EvictReason;

/// One shard at one moment, from [`ShardedCache::shard_stats`](crate::ShardedCache::shard_stats).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ShardStats {
    /// Entries held.
    pub entries: usize,
    /// Their weight.
    pub weight: u64,
    /// Counts since the cache was made.
    pub stats: CacheStats,
}

/// Counters and gauges of a shard, beside its lock, on cache lines that taking the lock has made
/// this core's already.
///
/// Orderings: all relaxed; a count speaks of nothing but itself.
#[derive(Debug, Default)]
pub(super) struct Counters {
    // Counted by anyone, but rarely: read-modify-writes. Hits and misses are in the hit counters.
    rejected: Shared,
    pub(super) timeouts: Shared,
    // Counted under the write lock.
    pub(super) insertions: Owned,
    updates: Owned,
    evicted_by_entries: Owned,
    evicted_by_weight: Owned,
    expired: Owned,
    pub(super) removals: Owned,
    /// What the shard holds, for reading without its lock.
    entries: AtomicU64,
    weight: AtomicU64,
}

/// A counter that several threads count at once.
#[derive(Debug, Default)]
pub(super) struct Shared(AtomicU64);

impl Shared {
    pub(super) fn count(&self) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A counter that only the holder of the write lock counts, so that a load and a store suffice.
#[derive(Debug, Default)]
pub(super) struct Owned(AtomicU64);

impl Owned {
    pub(super) fn count(&self) {
        self.add(1);
    }

    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed) + n, Relaxed);
    }
}

impl Counters {
    /// Counts a put that was not carried out; not one that something newer refused, which is none of
    /// the caller's.
    pub(super) fn count_refusal(&self, error: &CacheError) {
        if error.is_timeout() {
            self.timeouts.count();
        } else if !error.is_superseded() {
            self.rejected.count();
        }
    }

    /// Counts an entry that left to make room under `limit`, and says how that is called.
    #[inline]
    pub(super) fn count_eviction(&self, reason: EvictReason, limit: Limit) -> RemovalCause {
        let cause = match (reason, limit) {
            (EvictReason::Expired, _) => RemovalCause::Expired,
            (EvictReason::Evicted, Limit::Entries) => RemovalCause::Size,
            (EvictReason::Evicted, Limit::Weight) => RemovalCause::Weight,
        };
        self.count_removal(cause);
        cause
    }

    /// Counts an entry that left or was replaced.
    #[inline]
    pub(super) fn count_removal(&self, cause: RemovalCause) {
        let counter = match cause {
            RemovalCause::Expired => &self.expired,
            RemovalCause::Size => &self.evicted_by_entries,
            RemovalCause::Weight => &self.evicted_by_weight,
            RemovalCause::Replaced => &self.updates,
            RemovalCause::Removed => &self.removals,
        };
        counter.count();
    }

    /// Shows what the shard holds. Under the write lock.
    pub(super) fn show(&self, held: Usage) {
        self.entries.store(held.entries, Relaxed);
        self.weight.store(held.weight, Relaxed);
    }

    /// What was last shown.
    pub(super) fn held(&self) -> Usage {
        Usage { entries: self.entries.load(Relaxed), weight: self.weight.load(Relaxed) }
    }

    /// The counts, with the `(hits, misses)` from the hit counters.
    pub(super) fn read(&self, (hits, misses): (u64, u64)) -> CacheStats {
        let shared = |counter: &Shared| counter.0.load(Relaxed);
        let owned = |counter: &Owned| counter.0.load(Relaxed);
        let evicted_by_entries = owned(&self.evicted_by_entries);
        let evicted_by_weight = owned(&self.evicted_by_weight);
        CacheStats {
            hits,
            misses,
            insertions: owned(&self.insertions),
            updates: owned(&self.updates),
            evictions: evicted_by_entries + evicted_by_weight,
            evicted_by_entries,
            evicted_by_weight,
            expired_entries: owned(&self.expired),
            removals: owned(&self.removals),
            rejected: shared(&self.rejected),
            timeouts: shared(&self.timeouts),
            ..CacheStats::default()
        }
    }
}
