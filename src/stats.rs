//! What a cache says of itself: plain numbers, copied out at one moment.

use chrono::{DateTime, Utc};

/// Counts since the cache was made (or since a shard was, for
/// [`ShardedCache::shard_stats`](crate::ShardedCache::shard_stats)).
///
/// Each count is exact once the threads that used the cache are joined; while they run, the counts
/// are not one snapshot: a hit may be seen before the insertion that made it possible.
///
/// # Examples
///
/// ```
/// use embedding_cache::ShardedCache;
///
/// let cache = ShardedCache::<u64, u64>::builder().max_entries(10).build()?;
/// cache.insert(1, 10)?;
/// cache.get(&1);
/// cache.get(&2);
/// let stats = cache.stats();
/// assert_eq!((stats.hits, stats.misses, stats.insertions), (1, 1, 1));
/// assert_eq!(stats.hit_ratio(), 0.5);
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct CacheStats {
    /// Gets that found a live entry.
    pub hits: u64,
    /// Gets that found none. `hits + misses` is the number of gets that came to an answer, exactly.
    pub misses: u64,
    /// Puts of a key that was not there.
    pub insertions: u64,
    /// Puts that replaced the value of a key that was there.
    pub updates: u64,
    /// Live entries that left to make room: `evicted_by_entries + evicted_by_weight`.
    pub evictions: u64,
    /// Evictions for the limit on entries.
    pub evicted_by_entries: u64,
    /// Evictions for the limit on weight (bytes, in an embedding cache).
    pub evicted_by_weight: u64,
    /// Entries that left because their time-to-live had passed or they were idle for too long,
    /// whichever operation noticed it.
    pub expired_entries: u64,
    /// Entries that left because the caller asked: `remove`, `retain`, `clear`, invalidations.
    pub removals: u64,
    /// Puts that were refused: too large, invalid, or no room in a bounded number of tries.
    pub rejected: u64,
    /// Operations that ran into their deadline.
    pub timeouts: u64,
    /// Model calls that loads have made and that came to an end.
    pub loads: u64,
    /// Embeddings that model calls answered and that could be used.
    pub loaded: u64,
    /// Keys that a model call failed.
    pub load_failures: u64,
    /// Keys that a load did not ask for, as another call was loading them.
    pub joins: u64,
    /// Vectors past their time-to-live that a load served, while a fresh one came or as none did.
    /// Each was a miss as well.
    pub stale_served: u64,
    /// What the second tier has come to.
    #[cfg(feature = "tier")]
    pub tier: crate::tier::TierStats,
}

impl CacheStats {
    /// Hits among all gets, from 0.0 to 1.0; 0.0 before the first get.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        match self.total_requests() {
            0 => 0.0,
            total => self.hits as f64 / total as f64,
        }
    }

    /// [`hit_ratio`](Self::hit_ratio), by the name it has in the interface that this crate is a
    /// drop-in for.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        self.hit_ratio()
    }

    /// `hits + misses`.
    #[must_use]
    pub fn total_requests(&self) -> u64 {
        self.hits.saturating_add(self.misses)
    }
}

impl std::ops::AddAssign for CacheStats {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.insertions += other.insertions;
        self.updates += other.updates;
        self.evictions += other.evictions;
        self.evicted_by_entries += other.evicted_by_entries;
        self.evicted_by_weight += other.evicted_by_weight;
        self.expired_entries += other.expired_entries;
        self.removals += other.removals;
        self.rejected += other.rejected;
        self.timeouts += other.timeouts;
        self.loads += other.loads;
        self.loaded += other.loaded;
        self.load_failures += other.load_failures;
        self.joins += other.joins;
        self.stale_served += other.stale_served;
        #[cfg(feature = "tier")]
        {
            self.tier += other.tier;
        }
    }
}

/// An embedding cache at one moment: how full it is, its limits, its counts.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CacheInfo {
    /// Entries held, those included that have expired but were not removed yet.
    pub size: usize,
    /// The most entries it may hold.
    pub max_size: usize,
    /// Bytes held: keys, vectors, and the overhead of each entry.
    pub memory_bytes: u64,
    /// The most bytes it may hold.
    pub memory_limit_bytes: u64,
    /// Bytes of entries that are no longer held but whose memory is not given back yet: what a
    /// `clear` that is under way, or was cancelled, has still to drop. Later writes drop it bit by
    /// bit, and a cleanup all of it. `memory_bytes + unreclaimed_bytes` is what the cache takes.
    pub unreclaimed_bytes: u64,
    /// Keys that are being loaded.
    pub keys_in_flight: usize,
    /// Into how many shards it is divided; 1 for a cache with a single lock.
    pub shards: usize,
    /// When the cache was made, by the wall clock.
    pub created_at: DateTime<Utc>,
    /// When these numbers were read, by the wall clock.
    pub taken_at: DateTime<Utc>,
    /// The counts.
    pub stats: CacheStats,
}
