//! Snapshots: all entries in a file, so that a process that starts anew is warm.
//!
//! [`mod@format`] is the bytes, [`save`] and [`load`] go through them, [`report`] says how far they are.
//! Neither holds a lock for more than 64 entries, and neither needs a runtime: they block, and are
//! for a thread of their own.

mod format;
mod load;
mod report;
mod save;
#[cfg(all(test, not(shuttle), not(miri)))]
mod tests;

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::CacheError;

use super::{EmbeddingCache, EmbeddingKey};

pub use load::SnapshotLoad;
pub use report::{SnapshotProgress, SnapshotReport};

/// Saving or loading with options of its own, from [`EmbeddingCache::snapshot`].
///
/// # Examples
///
/// ```
/// use embedding_cache::{CacheKey, EmbeddingCache, SnapshotProgress};
///
/// let cache = EmbeddingCache::new(100, 3600, 10);
/// let key = CacheKey::new("9f86d081", "e5-base@1");
/// cache.put_blocking(key.clone(), [0.6, 0.8])?;
/// let mut file = Vec::new();
/// cache.snapshot().save_to(&mut file)?;
///
/// let restarted = EmbeddingCache::new(100, 3600, 10);
/// let progress = SnapshotProgress::default(); // another thread may look at it
/// let loaded = restarted.snapshot().bytes_per_second(200 << 20).progress(&progress);
/// assert_eq!(loaded.load_from(&file[..])?.entries, 1);
/// assert!(progress.report().complete);
/// assert_eq!(restarted.get_blocking(&key).unwrap(), [0.6, 0.8]);
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
#[must_use]
pub struct Snapshot<'a, K: EmbeddingKey, S> {
    cache: &'a EmbeddingCache<K, S>,
    pace: Pace,
    progress: SnapshotProgress,
}

impl<K: EmbeddingKey, S> EmbeddingCache<K, S> {
    /// Saves all live entries to the file at `path`, the most used first; what was there is replaced
    /// as a whole or not at all, also if the process is killed.
    ///
    /// Blocks: call it from [`spawn_blocking`](tokio::task::spawn_blocking), or a thread. The read
    /// lock of one shard at a time, for at most 64 entries; the cache serves meanwhile, and what
    /// changes while it runs may be in the file or not. `O(entries)`, 12 bytes of memory for each and
    /// 1 MiB. The order of eviction is not saved; lives are, to the millisecond of the wall clock.
    ///
    /// Written to a new file beside it that only this user may read, and renamed once it is on the
    /// disk. What a killed process has left of such a file, a later save to the same path removes.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_snapshot_io`]: the file cannot be written; the one that was there still is.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("cache.snapshot");
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put_blocking(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8])?;
    /// assert_eq!(cache.save_snapshot(&path)?.entries, 1);
    ///
    /// let restarted = EmbeddingCache::new(100, 3600, 10);
    /// assert_eq!(restarted.load_snapshot(&path)?.entries, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save_snapshot(&self, path: impl AsRef<Path>) -> Result<SnapshotReport, CacheError> {
        self.snapshot().save(path)
    }

    /// Saves or loads with options of its own: over a [`Write`] or a [`Read`], slower, or observed.
    pub fn snapshot(&self) -> Snapshot<'_, K, S> {
        Snapshot { cache: self, pace: Pace::default(), progress: SnapshotProgress::default() }
    }
}

impl<K: EmbeddingKey, S> Snapshot<'_, K, S> {
    /// The most bytes to write or read in a second, so that what else uses the disk, and requests,
    /// go on. The default is no limit; 0 counts as 1.
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.pace.bytes_per_second = Some(bytes.max(1));
        self
    }

    /// Tells `progress` how far it is, and asks it whether to go on.
    pub fn progress(self, progress: &SnapshotProgress) -> Self {
        Self { progress: progress.clone(), ..self }
    }

    /// As [`EmbeddingCache::save_snapshot`].
    ///
    /// # Errors
    ///
    /// As there. Cancelled, it leaves the old file as it is and says so by
    /// [`complete`](SnapshotReport::complete).
    pub fn save(self, path: impl AsRef<Path>) -> Result<SnapshotReport, CacheError> {
        save::to_path(self.cache, path.as_ref(), &self.pace, &self.progress)
    }

    /// Saves to `to`, which is written to in pieces of up to 1 MiB and flushed at the end.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_snapshot_io`]: `to` failed.
    pub fn save_to(self, to: impl Write) -> Result<SnapshotReport, CacheError> {
        save::to_writer(self.cache, to, &self.pace, &self.progress)
    }
}

impl<K: EmbeddingKey, S: std::hash::BuildHasher> EmbeddingCache<K, S> {
    /// Loads the snapshot at `path`, the most used entries first. What is loaded is served from then
    /// on, not only at the end.
    ///
    /// An entry is stored if its key has none and its life is not over, for the rest of that life and
    /// at most for the time-to-live of this cache. Nothing is evicted for it: loading stops where
    /// less than a twentieth of a limit is left ([`full`](SnapshotReport::full)), or when something
    /// is invalidated meanwhile
    /// ([`stopped_by_invalidation`](SnapshotReport::stopped_by_invalidation)). A key that is removed by
    /// itself before it was come to is loaded all the same.
    ///
    /// A damaged block of up to 1 MiB is passed over and counted; where a file is cut off, what comes
    /// before is loaded. The digests find accidents: who may write the file chooses vectors.
    ///
    /// Blocks: call it from [`spawn_blocking`](tokio::task::spawn_blocking), or use
    /// [`load_in_background`](Snapshot::load_in_background). The write lock of one shard for one
    /// entry at a time. `O(entries)`, 1 MiB of memory beside what is stored.
    ///
    /// # Errors
    ///
    /// - [`CacheError::is_snapshot_io`]: it cannot be read, or is no regular file;
    /// - [`CacheError::is_invalid_snapshot`]: it is no snapshot, or one of another version or for
    ///   another kind of key.
    pub fn load_snapshot(&self, path: impl AsRef<Path>) -> Result<SnapshotReport, CacheError> {
        self.snapshot().load(path)
    }
}

impl<K: EmbeddingKey, S: std::hash::BuildHasher> Snapshot<'_, K, S> {
    /// As [`EmbeddingCache::load_snapshot`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn load(self, path: impl AsRef<Path>) -> Result<SnapshotReport, CacheError> {
        load::from_path(self.cache, path.as_ref(), self.pace, &self.progress)
    }

    /// Loads from `from`, which is best buffered.
    ///
    /// # Errors
    ///
    /// As [`EmbeddingCache::load_snapshot`].
    pub fn load_from(self, from: impl Read) -> Result<SnapshotReport, CacheError> {
        load::from_reader(self.cache, from, self.pace, &self.progress)
    }
}

impl<K, S> Snapshot<'_, K, S>
where
    K: EmbeddingKey,
    S: std::hash::BuildHasher + Send + Sync + 'static,
{
    /// Opens the snapshot at `path` and loads it in a thread of its own, while the cache serves. The
    /// thread ends early if the cache is dropped.
    ///
    /// # Errors
    ///
    /// As [`EmbeddingCache::load_snapshot`], at once; and [`CacheError::is_snapshot_io`] if no thread
    /// can be started.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("cache.snapshot");
    /// # EmbeddingCache::new(100, 3600, 10).save_snapshot(&path)?;
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let load = cache.snapshot().load_in_background(&path)?;
    /// // The cache serves; some time later:
    /// assert!(load.wait()?.complete);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn load_in_background(self, path: impl AsRef<Path>) -> Result<SnapshotLoad, CacheError> {
        load::in_background(self.cache, path.as_ref(), self.pace, self.progress)
    }
}

impl<K: EmbeddingKey, S> fmt::Debug for Snapshot<'_, K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("pace", &self.pace).finish_non_exhaustive()
    }
}

/// How fast it may go.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    bytes_per_second: Option<u64>,
}

impl Pace {
    /// Waits until `bytes` since `started` are no more than allowed.
    fn keep(self, started: Instant, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        // A block at most, so never long: at one byte a second it is twelve days, as asked.
        let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
        if let Some(wait) = due.checked_sub(started.elapsed()) {
            std::thread::sleep(wait);
        }
    }
}
