//! What a snapshot has come to, while it is under way and when it is done.

use std::sync::Arc;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// What saving or loading a snapshot has done so far.
///
/// ```
/// # use embedding_cache::{CacheKey, EmbeddingCache};
/// let cache = EmbeddingCache::new(100, 3600, 10);
/// cache.put_blocking(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8])?;
/// let mut file = Vec::new();
/// let saved = cache.snapshot().save_to(&mut file)?;
/// assert_eq!((saved.entries, saved.bytes), (1, file.len() as u64));
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct SnapshotReport {
    /// Entries written, or stored in the cache.
    pub entries: u64,
    /// Bytes written or read.
    pub bytes: u64,
    /// Entries that have no place in a snapshot: over 65,536 components, or with their key over
    /// 1 MiB.
    pub too_large: u64,
    /// Records whose key the cache had by then.
    pub present: u64,
    /// Records whose life was over.
    pub expired: u64,
    /// Records that were invalidated in the second tier after they were saved, or may have been.
    pub invalidated: u64,
    /// Records that the cache does not take: other dimensions than it is set to, say.
    pub refused: u64,
    /// Blocks that were damaged; nothing of them was used.
    pub damaged_blocks: u64,
    /// Whether the whole was written, or read to its end.
    pub complete: bool,
    /// Whether loading stopped as a limit of the cache was nearly reached.
    pub full: bool,
    /// Whether loading stopped as something was invalidated meanwhile.
    pub stopped_by_invalidation: bool,
}

/// The counts of a snapshot under way. Orderings: relaxed, each speaks of itself.
#[derive(Debug, Default)]
struct Counts {
    entries: AtomicU64,
    bytes: AtomicU64,
    too_large: AtomicU64,
    present: AtomicU64,
    expired: AtomicU64,
    invalidated: AtomicU64,
    refused: AtomicU64,
    damaged_blocks: AtomicU64,
    complete: AtomicBool,
    full: AtomicBool,
    stopped_by_invalidation: AtomicBool,
    cancelled: AtomicBool,
}

/// Tells how far a snapshot is, from any thread, and stops it.
///
/// ```
/// # use embedding_cache::{CacheKey, EmbeddingCache, SnapshotProgress};
/// let cache = EmbeddingCache::new(100, 3600, 10);
/// cache.put_blocking(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8])?;
/// let progress = SnapshotProgress::default();
/// progress.cancel();
/// let saved = cache.snapshot().progress(&progress).save_to(Vec::new())?;
/// assert!(!saved.complete);
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct SnapshotProgress(Arc<Counts>);

impl SnapshotProgress {
    /// What is done so far. `O(1)`, no lock.
    #[must_use]
    pub fn report(&self) -> SnapshotReport {
        let counts = &*self.0;
        SnapshotReport {
            entries: counts.entries.load(Relaxed),
            bytes: counts.bytes.load(Relaxed),
            too_large: counts.too_large.load(Relaxed),
            present: counts.present.load(Relaxed),
            expired: counts.expired.load(Relaxed),
            invalidated: counts.invalidated.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            damaged_blocks: counts.damaged_blocks.load(Relaxed),
            complete: counts.complete.load(Relaxed),
            full: counts.full.load(Relaxed),
            stopped_by_invalidation: counts.stopped_by_invalidation.load(Relaxed),
        }
    }

    /// Stops saving or loading after the block under way. What was loaded stays; a file that was
    /// being saved is given up.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Relaxed)
    }

    pub(super) fn add(&self, count: Count, by: u64) {
        let counts = &*self.0;
        let count = match count {
            Count::Entries => &counts.entries,
            Count::Bytes => &counts.bytes,
            Count::TooLarge => &counts.too_large,
            Count::Present => &counts.present,
            Count::Expired => &counts.expired,
            #[cfg(feature = "tier")]
            Count::Invalidated => &counts.invalidated,
            Count::Refused => &counts.refused,
            Count::DamagedBlocks => &counts.damaged_blocks,
        };
        count.fetch_add(by, Relaxed);
    }

    pub(super) fn mark(&self, end: End) {
        let counts = &*self.0;
        let mark = match end {
            End::Complete => &counts.complete,
            End::Full => &counts.full,
            End::Invalidated => &counts.stopped_by_invalidation,
        };
        mark.store(true, Relaxed);
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Count {
    Entries,
    Bytes,
    TooLarge,
    Present,
    Expired,
    #[cfg(feature = "tier")]
    Invalidated,
    Refused,
    DamagedBlocks,
}

/// Why it came to an end.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Complete,
    Full,
    Invalidated,
}
