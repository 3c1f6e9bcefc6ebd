//! The counters of a shard (but for hits and misses, see [`hit_counters`](super::hit_counters)) and their copy for
//! the caller.

use crate::stats::CacheStats;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::budget::Usage;

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
    pub(super) rejected: Shared,
    pub(super) timeouts: Shared,
    // Counted under the write lock.
    pub(super) insertions: Owned,
    pub(super) updates: Owned,
    pub(super) evicted_by_entries: Owned,
    pub(super) evicted_by_weight: Owned,
    pub(super) expired: Owned,
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
