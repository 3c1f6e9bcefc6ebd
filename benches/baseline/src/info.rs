//! What the cache says of itself.

use std::sync::atomic::AtomicU64;

use embedding_cache::CacheStats;

/// The cache at one moment: how full it is, its limits, its counts.
#[derive(Debug, Clone, Copy)]
pub struct Info {
    /// Entries held, expired ones that nobody has noticed yet included.
    pub size: usize,
    /// The most entries it may hold.
    pub max_size: usize,
    /// Bytes held: keys, vectors, and the overhead of each entry.
    pub memory_bytes: u64,
    /// The most bytes it may hold.
    pub memory_limit_bytes: u64,
    /// The counts.
    pub stats: CacheStats,
}

/// The counts of [`CacheStats`], as atomics.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) insertions: AtomicU64,
    pub(crate) updates: AtomicU64,
    pub(crate) evicted_by_entries: AtomicU64,
    pub(crate) evicted_by_weight: AtomicU64,
    pub(crate) expired_entries: AtomicU64,
    pub(crate) removals: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) timeouts: AtomicU64,
}
