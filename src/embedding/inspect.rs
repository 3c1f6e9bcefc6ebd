//! Looking without using: what none of this does is count as a hit, a miss or a use of an entry.

use std::hash::BuildHasher;

use crate::core::{EntryInfo, Lookup};
use crate::vector::EmbeddingVector;

use super::{EmbeddingCache, EmbeddingKey, Inner};

impl<K: EmbeddingKey, S> EmbeddingCache<K, S> {
    /// Entries held, those included that have expired but were not removed yet. `O(1)`, no lock.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put_blocking(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8])?;
    /// assert_eq!(cache.len(), 1);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.core.len()
    }

    /// Whether [`len`](Self::len) is 0. `O(1)`, no lock.
    ///
    /// ```
    /// # use embedding_cache::EmbeddingCache;
    /// assert!(EmbeddingCache::new(100, 3600, 10).is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// [`len`](Self::len), by the name and in the form it has in the interface that this crate is a
    /// drop-in for. Never waits.
    ///
    /// ```
    /// # use embedding_cache::EmbeddingCache;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// assert_eq!(EmbeddingCache::new(100, 3600, 10).size().await, 0);
    /// # });
    /// ```
    #[allow(clippy::unused_async)]
    pub async fn size(&self) -> usize {
        self.len()
    }

    /// The live entries, in no order.
    ///
    /// Takes the read lock of one shard for at most 64 entries, unlocks, makes their keys, and yields
    /// them. No snapshot: what is put or removed while it goes on may or may not appear; an entry that
    /// is there all the time appears exactly once. `O(entries)`, and allocates each key.
    ///
    /// An ordinary iterator, so it cannot wait as the async operations do: each 64th step may block
    /// its thread while another operation has the lock of a shard, for a bounded time unless a
    /// predicate of [`retain`](Self::retain) or [`invalidate_if`](Self::invalidate_if) is slow. Over a
    /// large cache yield to other tasks now and then, or iterate on a thread of its own.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// cache.put_blocking(CacheKey::new("9f86d081", "e5-base@1"), [0.6, 0.8])?;
    /// for (key, vector) in cache.iter() {
    ///     assert_eq!((key.content_hash.as_str(), vector.dimensions()), ("9f86d081", 2));
    /// }
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (K, EmbeddingVector)> {
        let entries = self.inner.core.iter();
        entries.map(|(key, components)| (K::from_stored(&key), self.inner.vector(components)))
    }

    /// The keys of the live entries; as [`iter`](Self::iter), which see.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put_blocking(key.clone(), [0.6, 0.8])?;
    /// assert_eq!(cache.keys().collect::<Vec<_>>(), [key]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn keys(&self) -> impl Iterator<Item = K> {
        self.inner.core.keys().map(|key| K::from_stored(&key))
    }
}

impl<K: EmbeddingKey, S: BuildHasher> EmbeddingCache<K, S> {
    /// The embedding of `key`, as [`get`](Self::get) would find it, without counting: neither a use
    /// nor a hit nor a miss. The read lock of one shard; `O(1)`; allocates nothing.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// assert_eq!(cache.peek(&key).await.unwrap(), [0.6, 0.8]);
    /// assert_eq!(cache.stats().total_requests(), 0);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn peek(&self, key: &K) -> Option<EmbeddingVector> {
        let Inner { core, waiters, .. } = &*self.inner;
        let probe = key.probe();
        match waiters.until(None, |slice| core.look_slice(&probe, slice)).await? {
            Lookup::Fresh(components) => Some(self.inner.vector(components)),
            Lookup::Stale { .. } | Lookup::Absent => None,
        }
    }

    /// Whether [`peek`](Self::peek) would find `key`.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// assert!(!cache.contains_key(&CacheKey::new("9f86d081", "e5-base@1")).await);
    /// # });
    /// ```
    pub async fn contains_key(&self, key: &K) -> bool {
        self.peek(key).await.is_some()
    }

    /// What the cache knows of the entry of `key` beside its vector: what it weighs, when it was put,
    /// when it expires. Counts as nothing. The read lock of one shard; `O(1)`.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// let info = cache.entry_info(&key).await.unwrap();
    /// assert!(info.expires_in.unwrap() <= Duration::from_secs(3600));
    /// assert_eq!(info.weight, cache.info().memory_bytes);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn entry_info(&self, key: &K) -> Option<EntryInfo> {
        let Inner { core, waiters, .. } = &*self.inner;
        let probe = key.probe();
        waiters.until(None, |slice| core.entry_info_slice(&probe, slice)).await.flatten()
    }
}
