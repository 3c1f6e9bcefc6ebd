//! What is done to many entries: cleanup, clearing, going through them.

use crate::sharded::Step;
use crate::vector::EmbeddingVector;

use super::{EmbeddingCache, EmbeddingKey, Inner};

/// Bites of a cleanup, of 64 entries each, after which it yields to other tasks.
const CLEANUP_STEPS: u64 = 16;

impl<K: EmbeddingKey, S> EmbeddingCache<K, S> {
    /// Removes expired entries and returns how many. A shard whose cleanup guard is taken is
    /// skipped: it is being cleaned up.
    ///
    /// Takes the write lock of one shard at a time for at most 64 entries, hands it to waiting
    /// threads in between, and yields to other tasks every thousand entries. `O(expired + shards)`.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has removed some of the expired entries.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 0, 10); // expired at once
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key, [0.6, 0.8]).await?;
    /// assert_eq!(cache.cleanup_expired_safe().await, 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn cleanup_expired_safe(&self) -> usize {
        let Inner { core, waiters, .. } = &*self.inner;
        let mut cleanup = core.start_cleanup();
        let mut removed = 0;
        for steps in 1_u64.. {
            let attempt = |slice| match cleanup.step_slice(slice) {
                Step::Locked => None,
                step => Some(step),
            };
            match waiters.until(None, attempt).await {
                Some(Step::Removed(bite)) => removed += bite,
                _ => break,
            }
            if steps % CLEANUP_STEPS == 0 {
                tokio::task::yield_now().await;
            }
        }
        cleanup.end();
        removed
    }

    /// Removes everything, in constant time under the lock of each shard; yields to other tasks
    /// after each shard.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has emptied some of the shards.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key, [0.6, 0.8]).await?;
    /// cache.clear().await;
    /// assert_eq!(cache.size().await, 0);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn clear(&self) {
        let Inner { core, waiters, .. } = &*self.inner;
        let mut farewell = core.farewell();
        for shard in 0..core.shards() {
            waiters.until(None, |slice| core.clear_slice(shard, &mut farewell, slice)).await;
            tokio::task::yield_now().await;
        }
        farewell.end();
    }

    /// Keeps the live entries for which `keep` holds, removes the others, and returns how many it
    /// removed.
    ///
    /// **`keep` runs under the write lock of a shard**, for up to 64 entries a lock hold. Not
    /// async: goes through everything, so on a large cache call it from
    /// [`spawn_blocking`](tokio::task::spawn_blocking). Allocates a key for each entry.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put(CacheKey::new("9f86d081", "old-model"), [0.6, 0.8]).await?;
    /// cache.put(CacheKey::new("9f86d081", "new-model"), [1.0, 0.0]).await?;
    /// assert_eq!(cache.retain(|key, _| key.model_version != "old-model"), 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn retain(&self, mut keep: impl FnMut(&K, &EmbeddingVector) -> bool) -> usize {
        self.inner.core.retain(|key, vector| keep(&K::from_stored(key), vector))
    }
}
