//! The async door for embedding servers: typed keys and vectors, validation, deadlines.
//!
//! Everything it stores lives in one [`ShardedCache`]; this module adds no second map and no second
//! lock around it. What a lock protects is not known here: only how to wait for one without
//! blocking an executor.

mod builder;
mod key;
mod wait;

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{CacheError, ErrorKind, InsertError};
use crate::hasher::DefaultHashBuilder;
use crate::sharded::{EvictionPolicy, MemoryPressure, ShardedCache, Step, Terms};
use crate::stats::{CacheInfo, CacheStats};
use crate::vector::EmbeddingVector;

pub use builder::EmbeddingCacheBuilder;
pub use key::CacheKey;

use key::{Probe, StoredKey};
use wait::Waiters;

/// What an entry weighs beside the text of its key and its vector, in bytes: its slot (64), and its
/// parts of the index, of the orders of eviction and expiry, and of what is allocated ahead. Measured
/// it is 80 to 122, by policy, time-to-live and number of shards; this is the middle.
///
/// The weight of an entry is `key text + vector allocation (4 × dimensions + 16) + ENTRY_OVERHEAD`,
/// within a tenth of what a counting allocator sees, from 16 dimensions on.
pub const ENTRY_OVERHEAD: u64 = 98;

fn weigh(key: &StoredKey, vector: &EmbeddingVector) -> u64 {
    key.heap_bytes() + vector.heap_bytes() + ENTRY_OVERHEAD
}

/// A concurrent cache of embeddings, for servers that turn text into vectors.
///
/// A clone is another handle to the same cache: one reference count. Vectors are shared, not
/// copied: a hit costs one reference count more, whatever the dimensions.
///
/// # Promises
///
/// - A `get` takes the read lock of one shard; only an entry seen expired takes its write lock,
///   under which it is looked at again.
/// - A `put` makes room before it inserts, so neither limit is exceeded at any instant. Replacing
///   evicts nobody unless the entry grows. A vector that alone is over the limit is refused and
///   given back.
/// - Expired entries leave first. Then, in a cache made by [`new`](Self::new), the least recently
///   used over the limit on entries, and the largest over the limit on bytes; the
///   [builder](Self::builder) offers other orders. With several shards the order is that of each
///   shard; a cache of a few hundred entries, or of a few MB, has one.
/// - No `async fn` blocks an executor thread for long: where another thread sits on the lock of a
///   shard, it parks for a fraction of a millisecond at a time and yields in between.
///
/// # Cancel safety
///
/// Every `async fn` may be dropped at any `.await`: `get` and `size` change nothing, a `put` has
/// then happened entirely or not at all, a `cleanup_expired_safe` or `clear` has done part of its
/// work. None holds a lock across an `.await`.
///
/// # Examples
///
/// ```
/// use embedding_cache::{CacheKey, EmbeddingCache};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// // At most 10,000 entries and 256 MiB, each for an hour.
/// let cache = EmbeddingCache::new(10_000, 3600, 256);
/// let key = CacheKey::new("9f86d081884c7d65", "e5-base@1");
///
/// assert_eq!(cache.get(&key).await, None);
/// cache.put(key.clone(), vec![0.1, 0.2, 0.3]).await?;
/// assert_eq!(cache.get(&key).await.unwrap(), vec![0.1, 0.2, 0.3]);
/// assert_eq!(cache.stats().hit_rate(), 0.5);
/// # Ok::<(), embedding_cache::CacheError>(())
/// # }).unwrap();
/// ```
pub struct EmbeddingCache<S = DefaultHashBuilder> {
    inner: Arc<Inner<S>>,
}

struct Inner<S> {
    core: ShardedCache<StoredKey, EmbeddingVector, S>,
    waiters: Waiters,
    allow_non_finite: bool,
}

impl EmbeddingCache {
    /// A cache in the documented order: over the limit on entries the least recently used leaves,
    /// over the limit on bytes the largest.
    ///
    /// `max_size` is in entries, `ttl_seconds` counts from the put (0: expired at once; more than
    /// 292 years: never), `memory_limit_mb` is in MiB. With 0 entries or 0 MiB every put is
    /// refused. Huge values mean "no limit" and never overflow. For everything else there is
    /// [`builder`](Self::builder).
    ///
    /// ```
    /// # use embedding_cache::EmbeddingCache;
    /// let cache = EmbeddingCache::new(10_000, 3600, 256);
    /// let info = cache.info();
    /// assert_eq!((info.max_size, info.memory_limit_bytes), (10_000, 256 << 20));
    /// ```
    #[must_use]
    pub fn new(max_size: usize, ttl_seconds: u64, memory_limit_mb: usize) -> Self {
        let longest = crate::sharded::LONGEST_TIME_TO_LIVE;
        let time_to_live = Duration::from_secs(ttl_seconds);
        let mut builder = Self::builder()
            .max_entries(max_size)
            .max_bytes((memory_limit_mb as u64).saturating_mul(1 << 20))
            .eviction(EvictionPolicy::Lru)
            .memory_pressure(MemoryPressure::LargestFirst);
        if time_to_live <= longest {
            builder = builder.time_to_live(time_to_live);
        }
        // Limits are set, the time-to-live is in range and the number of shards is the default.
        builder.build().unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// Starts to configure a cache.
    pub fn builder() -> EmbeddingCacheBuilder {
        EmbeddingCacheBuilder::default()
    }
}

impl<S> EmbeddingCache<S> {
    fn from_core(
        core: ShardedCache<StoredKey, EmbeddingVector, S>,
        allow_non_finite: bool,
    ) -> Self {
        let inner = Inner { core, waiters: Waiters::default(), allow_non_finite };
        Self { inner: Arc::new(inner) }
    }

    /// The counts. `O(shards)`, no lock.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.get(&key).await;
    /// assert_eq!((cache.stats().hits, cache.stats().misses), (0, 1));
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.inner.core.stats()
    }

    /// How full the cache is, its limits and its counts. `O(shards)`, no lock.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key, [0.6, 0.8]).await?;
    /// let info = cache.info();
    /// assert_eq!(info.size, 1);
    /// assert!(info.memory_bytes > 8 && info.memory_bytes < info.memory_limit_bytes);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    #[must_use]
    pub fn info(&self) -> CacheInfo {
        let core = &self.inner.core;
        CacheInfo {
            size: core.len(),
            max_size: core.max_entries(),
            memory_bytes: core.weight(),
            memory_limit_bytes: core.max_weight(),
            shards: core.shards(),
            created_at: core.created_at(),
            taken_at: core.wall_time(),
            stats: core.stats(),
        }
    }

    /// Entries held, expired ones that nobody has noticed yet included. `O(1)`, no lock; never
    /// waits, async for the sake of the documented face ([`info`](Self::info) has it too).
    #[allow(clippy::unused_async)]
    pub async fn size(&self) -> usize {
        self.inner.core.len()
    }

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
        let mut invalidation = core.start_invalidation();
        loop {
            let attempt = |slice| match invalidation.step_slice(slice) {
                Step::Locked => None,
                step => Some(step),
            };
            match waiters.until(None, attempt).await {
                Some(Step::Removed(_)) => tokio::task::yield_now().await,
                _ => break,
            }
        }
        invalidation.end();
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
    pub fn retain(&self, mut keep: impl FnMut(&CacheKey, &EmbeddingVector) -> bool) -> usize {
        self.inner.core.retain(|key, vector| keep(&key.to_cache_key(), vector))
    }
}

impl<S: BuildHasher> EmbeddingCache<S> {
    /// The embedding of `key`, which counts as a use of the entry and as a hit or a miss.
    ///
    /// The read lock of one shard; `O(1)`; allocates nothing.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has changed nothing.
    pub async fn get(&self, key: &CacheKey) -> Option<EmbeddingVector> {
        let Inner { core, waiters, .. } = &*self.inner;
        let probe = Probe::from(key);
        // Nearly always the lock is free: then no second future need be set up.
        if let Some(found) = core.get_slice(&probe, Duration::ZERO) {
            return found;
        }
        waiters.until(None, |slice| core.get_slice(&probe, slice)).await.flatten()
    }

    /// Stores the embedding of `key`, replacing one that is there.
    ///
    /// The write lock of one shard; `O(1)` amortized. Allocates the stored key; a `Vec<f32>` is
    /// copied into a shared allocation, an [`EmbeddingVector`] or an `Arc<[f32]>` is not. Entries
    /// that leave to make room are dropped after unlocking.
    ///
    /// # Errors
    ///
    /// Each gives the vector back and leaves what is stored, an old vector of `key` included:
    /// - [`CacheError::is_invalid_vector`] if it is empty or has a NaN or infinite component (see
    ///   [`allow_non_finite`](EmbeddingCacheBuilder::allow_non_finite));
    /// - [`CacheError::is_too_large`] if the entry alone is over a limit;
    /// - [`CacheError::is_invalid_key`] if the texts of the key are over 1 MiB together;
    /// - [`CacheError::is_contended`] if other writers held all the room, try after try.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has stored nothing; the vector is dropped with it.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), vec![0.6, 0.8]).await?;
    /// let refused = cache.put(key, [f32::NAN]).await.unwrap_err();
    /// assert!(refused.is_invalid_vector());
    /// assert_eq!(refused.to_string(), "component 0 of 1 is NaN; the cache takes finite vectors only");
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn put(
        &self,
        key: CacheKey,
        embedding: impl Into<EmbeddingVector>,
    ) -> Result<(), CacheError> {
        self.put_until(&key, embedding.into(), None).await
    }

    /// [`get`](Self::get) that gives up after `timeout_ms` milliseconds; 0 tries once.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_timeout`] if another thread held the lock of the shard all the time. It
    /// comes within the deadline and a fraction of a millisecond, given that the executor polls.
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
    /// assert_eq!(cache.get_with_timeout(&key, 5).await?, None);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn get_with_timeout(
        &self,
        key: &CacheKey,
        timeout_ms: u64,
    ) -> Result<Option<EmbeddingVector>, CacheError> {
        let Inner { core, waiters, .. } = &*self.inner;
        let (probe, limit) = (Probe::from(key), Duration::from_millis(timeout_ms));
        match waiters.until(Some(limit), |slice| core.get_slice(&probe, slice)).await {
            Some(found) => Ok(found),
            None => {
                let error = ErrorKind::Timeout { operation: "get", waited: limit }.into();
                core.count_refusal(&probe, &error);
                Err(error)
            }
        }
    }

    /// [`put`](Self::put) that gives up after `timeout_ms` milliseconds; 0 tries once.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put), and [`CacheError::is_timeout`] if another thread held the lock of the
    /// shard all the time: then the vector was *not* stored and will not be; the error gives it
    /// back.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has stored nothing; the vector is dropped with it.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// match cache.put_with_timeout(key, [0.6, 0.8], 5).await {
    ///     Ok(()) => {}
    ///     Err(error) if error.is_timeout() => drop(error.into_vector()), // not stored; here it is
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn put_with_timeout(
        &self,
        key: CacheKey,
        embedding: impl Into<EmbeddingVector>,
        timeout_ms: u64,
    ) -> Result<(), CacheError> {
        self.put_until(&key, embedding.into(), Some(Duration::from_millis(timeout_ms))).await
    }

    /// Removes the embedding of `key` and returns it, if it was alive. The write lock of one shard;
    /// `O(1)`.
    ///
    /// # Cancel safety
    ///
    /// Dropped at an `.await`, it has removed nothing.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// assert_eq!(cache.remove(&key).await.unwrap(), [0.6, 0.8]);
    /// assert_eq!(cache.get(&key).await, None);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub async fn remove(&self, key: &CacheKey) -> Option<EmbeddingVector> {
        let Inner { core, waiters, .. } = &*self.inner;
        let probe = Probe::from(key);
        waiters.until(None, |slice| core.remove_slice(&probe, slice)).await.flatten()
    }

    /// [`get`](Self::get) for threads outside an async runtime: waits for the lock.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// let cache = EmbeddingCache::new(100, 3600, 10);
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put_blocking(key.clone(), [0.6, 0.8])?;
    /// assert_eq!(cache.get_blocking(&key).unwrap(), [0.6, 0.8]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    #[must_use]
    pub fn get_blocking(&self, key: &CacheKey) -> Option<EmbeddingVector> {
        self.inner.core.get(&Probe::from(key))
    }

    /// [`put`](Self::put) for threads outside an async runtime: waits for the lock.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn put_blocking(
        &self,
        key: CacheKey,
        embedding: impl Into<EmbeddingVector>,
    ) -> Result<(), CacheError> {
        let core = &self.inner.core;
        let (stored, vector) = self.admit(&key, embedding.into())?;
        core.insert(stored, vector).map_err(give_back)
    }

    async fn put_until(
        &self,
        key: &CacheKey,
        vector: EmbeddingVector,
        limit: Option<Duration>,
    ) -> Result<(), CacheError> {
        let Inner { core, waiters, .. } = &*self.inner;
        let mut entry = Some(self.admit(key, vector)?);
        let mut contended = 0;
        let attempt = |slice| {
            let (stored, vector) = entry.take()?;
            let refused = match core.insert_slice(stored, vector, Terms::default(), slice) {
                Ok(()) => return Some(Ok(())),
                Err(refused) => refused,
            };
            let error = refused.error();
            contended += u32::from(error.is_contended());
            if error.is_timeout() || error.is_contended() && contended < CONTENDED {
                entry = Some(refused.into_entry());
                return None;
            }
            Some(Err(refused))
        };
        let outcome = waiters.until(limit, attempt).await;
        let error = match (outcome, entry) {
            (Some(Ok(())), _) => return Ok(()),
            (Some(Err(refused)), _) => give_back(refused),
            (None, entry) => {
                let waited = limit.unwrap_or(Duration::MAX);
                let error = CacheError::new(ErrorKind::Timeout { operation: "put", waited });
                match entry {
                    Some((_, vector)) => error.giving_back(vector),
                    None => error,
                }
            }
        };
        core.count_refusal(&Probe::from(key), &error);
        Err(error)
    }

    /// Lets in what may be stored: the stored form of the key, and the vector.
    fn admit(
        &self,
        key: &CacheKey,
        vector: EmbeddingVector,
    ) -> Result<(StoredKey, EmbeddingVector), CacheError> {
        let invalid = match vector.first_non_finite() {
            _ if vector.is_empty() => Some(ErrorKind::EmptyVector),
            Some((index, value)) if !self.inner.allow_non_finite => {
                Some(ErrorKind::NonFinite { index, dimensions: vector.dimensions(), value })
            }
            _ => None,
        };
        let admitted = match invalid {
            Some(kind) => Err(CacheError::new(kind)),
            None => StoredKey::new(key),
        };
        match admitted {
            Ok(stored) => Ok((stored, vector)),
            Err(error) => {
                self.inner.core.count_refusal(&Probe::from(key), &error);
                Err(error.giving_back(vector))
            }
        }
    }
}

/// How often a put that finds all room taken by other writers yields and tries again.
const CONTENDED: u32 = 64;

/// Bites of a cleanup, of 64 entries each, after which it yields to other tasks.
const CLEANUP_STEPS: u64 = 16;

fn give_back(refused: InsertError<StoredKey, EmbeddingVector>) -> CacheError {
    let (error, _, vector) = refused.into_parts();
    error.giving_back(vector)
}

impl<S> Clone for EmbeddingCache<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S> fmt::Debug for EmbeddingCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbeddingCache").field(&self.inner.core).finish()
    }
}
