//! What the cache says of itself.

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
