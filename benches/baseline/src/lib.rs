//! The design that this crate replaces: one lock over one map. It exists to be compared with.
//!
//! [`SingleLockCache`] follows, method by method, the sketch from which this crate started: a
//! [`tokio::sync::RwLock`] over one [`HashMap`] with its default hasher, and one cleanup mutex that
//! every put goes through. For anything but a comparison use
//! [`EmbeddingCache`](embedding_cache::EmbeddingCache), which has methods of the same names.
//!
//! A baseline is only worth as much as it is honest. So the sketch is repaired where it would not
//! compile, not end, or not keep a limit, and nowhere else.
//!
//! # What is repaired
//!
//! - **It compiles.** The size estimate was awaited in one place and compared as a future in
//!   another; it is a plain function now, and so are the eviction helpers, which never awaited
//!   anything. `size`, which the sketch's own test calls, was missing, and so were `clear`,
//!   `remove` and any way to read the counters. `hit_count`, which nothing read, is gone.
//! - **`max_size` 0 ends.** The eviction loop ran for ever over an empty map. Every put is refused.
//! - **An entry that alone is over the memory limit is refused.** It was stored. Once the check
//!   counts the newcomer, as it must, the loop around it would never have ended.
//! - **Room is made for the newcomer.** The eviction loop stopped as soon as the entries already
//!   there were within the memory limit; then the newcomer went in on top.
//! - **The memory limit is in bytes.** The estimate was rounded to whole megabytes before it was
//!   compared, which let the cache overrun its limit by almost one.
//! - **Spare capacity does not escape the limit.** A vector is shrunk to its length before it is
//!   stored, because its length is what is weighed.
//! - **An update evicts nobody unless it grew.** A put of a key that is there was treated as one
//!   more entry: a full cache threw another entry out, and the search for the largest could pick
//!   the very entry that was about to be replaced.
//! - **A negative age is 0.** Cast to `u64` it came to billions of years, so one step back of the
//!   wall clock expired every entry put since.
//! - **Errors are typed** ([`Refusal`]) rather than `anyhow`'s, so a caller can tell a timeout from a
//!   refusal, and they give back the vector that the put had taken.
//! - **`cleanup_expired_safe` says how many** entries it removed; it returned nothing.
//!
//! # What is left as it was
//!
//! All of this is correct, and slow or imprecise; it is what the comparison is about.
//!
//! - One lock for all keys: any writer stops every reader. One table, which grows by moving every
//!   entry at once under that lock.
//! - A get that finds nothing takes the write lock too, although there is nothing to remove.
//! - Every put waits for the cleanup mutex first, and so for every other put and any cleanup; a
//!   cleanup is skipped while any put is under way.
//! - A hit copies the whole vector, under the read lock; values are dropped under the write lock.
//! - Each eviction walks the whole map, once for expired entries and once for each victim; a full
//!   cache does so at every put of a new key, under the write lock. A cleanup is one such walk.
//! - "Least recently used" means put longest ago: a get does not make an entry younger.
//! - Ages are whole seconds of the wall clock, which every hit reads: an entry is served for up to a
//!   second longer than its time-to-live, and longer or shorter by as much as that clock is set.
//! - Keys and vectors are not validated; an empty vector or a NaN is stored like any other.
//!
//! One courtesy: the bytes held are a running total, kept under the lock. The sketch estimated them
//! at every put by a walk over the map (its comments say so; it never showed the code). With that
//! walk, a comparison would measure little else; without it, it measures the locks and the search
//! for victims.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard};
use tokio::time::timeout;

use embedding_cache::{CacheKey, CacheStats};

pub use refusal::Refusal;

use refusal::Reason;

mod refusal;

/// What an entry weighs beyond its key's texts and its components: its place in the table, twice,
/// because the table keeps between 8/7 and 16/7 places an entry.
const ENTRY_OVERHEAD: usize = 2 * size_of::<(CacheKey, CachedEmbedding)>();

/// One [`tokio::sync::RwLock`] over one map: the baseline of the benchmarks.
///
/// See the [module](self) for what it takes over from the original sketch and what is repaired.
/// Clones share one cache; a clone costs three reference counts.
///
/// # Examples
///
/// ```
/// use baseline::SingleLockCache;
/// use embedding_cache::CacheKey;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let cache = SingleLockCache::new(1000, 3600, 64); // entries, seconds, MiB
/// let key = CacheKey::new("00ff", "e5-base");
/// cache.put(key.clone(), vec![0.6, 0.8]).await?;
/// assert_eq!(cache.get(&key).await, Some(vec![0.6, 0.8]));
/// # Ok::<(), baseline::Refusal>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct SingleLockCache {
    /// The entries, all of them. Taken after `cleanup_lock` by whoever takes both.
    cache: Arc<RwLock<Entries>>,
    /// Held by every put and every cleanup from start to end.
    cleanup_lock: Arc<Mutex<()>>,
    /// Counted under `cache` where an entry is touched; read without a lock.
    stats: Arc<Counters>,
    max_size: usize,
    ttl_seconds: u64,
    memory_limit: u64,
}

/// Both locks that a put holds, in the order in which it takes them.
type PutLocks<'a> = (MutexGuard<'a, ()>, RwLockWriteGuard<'a, Entries>);

impl SingleLockCache {
    /// An empty cache of at most `max_size` entries and `memory_limit_mb` MiB, each entry served
    /// until its age in whole seconds exceeds `ttl_seconds`. `O(1)`; no value overflows.
    ///
    /// An entry counts with the texts of its key, four bytes a component, and a fixed overhead (240
    /// bytes on a 64-bit platform).
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// let cache = SingleLockCache::new(1000, 3600, 64);
    /// assert_eq!(cache.stats().total_requests(), 0);
    /// ```
    #[must_use]
    pub fn new(max_size: usize, ttl_seconds: u64, memory_limit_mb: usize) -> Self {
        const MIB: u64 = 1 << 20;
        Self {
            cache: Arc::default(),
            cleanup_lock: Arc::default(),
            stats: Arc::default(),
            max_size,
            ttl_seconds,
            memory_limit: (memory_limit_mb as u64).saturating_mul(MIB),
        }
    }

    /// A copy of the vector under `key`, if there is one that has not expired.
    ///
    /// `O(dimensions)`, under the read lock. Where it finds nothing or only an expired entry, it
    /// waits for the write lock, looks again, and removes what has expired.
    ///
    /// Cancel safe: a future dropped before it is ready has changed nothing and counted nothing.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # use embedding_cache::CacheKey;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = SingleLockCache::new(1000, 3600, 64);
    /// assert_eq!(cache.get(&CacheKey::new("00ff", "e5-base")).await, None);
    /// assert_eq!(cache.stats().misses, 1);
    /// # });
    /// ```
    pub async fn get(&self, key: &CacheKey) -> Option<Vec<f32>> {
        {
            let entries = self.cache.read().await;
            if let Some(cached) = entries.map.get(key)
                && self.is_live(cached, Utc::now())
            {
                add(&self.stats.hits, 1);
                return Some(cached.embedding.clone());
            }
        }
        {
            // The sketch comes here on a plain miss as well; see "What is left as it was".
            let mut entries = self.cache.write().await;
            if let Some(cached) = entries.map.get(key) {
                // A put may have come in between the two locks.
                if self.is_live(cached, Utc::now()) {
                    add(&self.stats.hits, 1);
                    return Some(cached.embedding.clone());
                }
                entries.remove(key);
                add(&self.stats.expired_entries, 1);
            }
        }
        add(&self.stats.misses, 1);
        None
    }

    /// Stores `embedding` under `key` in place of what was there, and makes room for it first:
    /// expired entries leave, then over the entry limit the one put longest ago, then over the
    /// memory limit the largest.
    ///
    /// `O(1)` while there is room, `O(entries)` for each victim once there is none, all of it under
    /// both locks. No limit is exceeded at any time.
    ///
    /// # Errors
    ///
    /// [`is_too_large`](Refusal::is_too_large) if the entry alone is over the memory limit, or
    /// `max_size` is 0. The error gives the vector back; the cache is as it was before.
    ///
    /// Cancel safe: a future dropped before it is ready has stored and evicted nothing; the vector
    /// it had taken is lost.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # use embedding_cache::CacheKey;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = SingleLockCache::new(1000, 3600, 1); // at most 1 MiB
    /// let key = CacheKey::new("00ff", "e5-base");
    /// let error = cache.put(key, vec![0.5; 1_000_000]).await.unwrap_err();
    /// assert!(error.is_too_large());
    /// assert_eq!(error.into_vector().unwrap().len(), 1_000_000);
    /// # });
    /// ```
    pub async fn put(&self, key: CacheKey, embedding: impl Into<Vec<f32>>) -> Result<(), Refusal> {
        let (embedding, weight) = self.admit(&key, embedding.into())?;
        let locks = self.lock_for_put().await;
        self.store(locks, key, embedding, weight);
        Ok(())
    }

    /// [`get`](Self::get), given up after `timeout_ms` milliseconds; 0 tries once.
    ///
    /// The deadline is looked at only when the task is polled: a caller whose executor threads are
    /// all busy hears of it late.
    ///
    /// # Errors
    ///
    /// [`is_timeout`](Refusal::is_timeout) if a lock was not to be had in time. Neither a hit
    /// nor a miss is counted then.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, or in one whose timers are not enabled.
    ///
    /// Cancel safe: a future dropped before it is ready has changed nothing and counted nothing.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # use embedding_cache::CacheKey;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = SingleLockCache::new(1000, 3600, 64);
    /// let found = cache.get_with_timeout(&CacheKey::new("00ff", "e5-base"), 50).await?;
    /// assert_eq!(found, None);
    /// # Ok::<(), baseline::Refusal>(())
    /// # }).unwrap();
    /// ```
    pub async fn get_with_timeout(
        &self,
        key: &CacheKey,
        timeout_ms: u64,
    ) -> Result<Option<Vec<f32>>, Refusal> {
        let waited = Duration::from_millis(timeout_ms);
        timeout(waited, self.get(key)).await.map_err(|_| self.timed_out("get", waited, None))
    }

    /// [`put`](Self::put), given up after `timeout_ms` milliseconds; 0 tries once.
    ///
    /// The deadline covers the wait for both locks; a put that has them runs to its end. It is
    /// looked at only when the task is polled.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put), and [`is_timeout`](Refusal::is_timeout) if the locks were not
    /// to be had in time: then nothing was stored, nothing was evicted, and the error gives the
    /// vector back.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime, or in one whose timers are not enabled.
    ///
    /// Cancel safe: a future dropped before it is ready has stored and evicted nothing; the vector
    /// it had taken is lost.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # use embedding_cache::CacheKey;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = SingleLockCache::new(1000, 3600, 64);
    /// cache.put_with_timeout(CacheKey::new("00ff", "e5-base"), [0.6, 0.8], 50).await?;
    /// assert_eq!(cache.size().await, 1);
    /// # Ok::<(), baseline::Refusal>(())
    /// # }).unwrap();
    /// ```
    pub async fn put_with_timeout(
        &self,
        key: CacheKey,
        embedding: impl Into<Vec<f32>>,
        timeout_ms: u64,
    ) -> Result<(), Refusal> {
        let (embedding, weight) = self.admit(&key, embedding.into())?;
        let waited = Duration::from_millis(timeout_ms);
        // The whole put under the timeout, as in the sketch, would take the vector with it. Nothing
        // is awaited after the locks, so the deadline means the same here.
        match timeout(waited, self.lock_for_put()).await {
            Ok(locks) => {
                self.store(locks, key, embedding, weight);
                Ok(())
            }
            Err(_) => Err(self.timed_out("put", waited, Some(embedding))),
        }
    }

    /// Removes every expired entry and says how many; 0, without waiting, while a put or another
    /// cleanup is under way.
    ///
    /// `O(entries)` in one go, under the write lock: no get or put comes in between.
    ///
    /// Cancel safe: a future dropped before it is ready has removed nothing.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// assert_eq!(SingleLockCache::new(1000, 3600, 64).cleanup_expired_safe().await, 0);
    /// # });
    /// ```
    pub async fn cleanup_expired_safe(&self) -> usize {
        let Ok(_guard) = self.cleanup_lock.try_lock() else { return 0 };
        let mut entries = self.cache.write().await;
        let (now, before) = (Utc::now(), entries.map.len());
        let Entries { map, bytes } = &mut *entries;
        map.retain(|_key, cached| {
            let live = self.is_live(cached, now);
            if !live {
                *bytes -= cached.weight;
            }
            live
        });
        let removed = before - entries.map.len();
        add(&self.stats.expired_entries, removed);
        removed
    }

    /// The number of entries, expired ones that nobody has noticed yet included. `O(1)`, under the
    /// read lock. Cancel safe: it changes nothing.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// assert_eq!(SingleLockCache::new(1000, 3600, 64).size().await, 0);
    /// # });
    /// ```
    pub async fn size(&self) -> usize {
        self.cache.read().await.map.len()
    }

    /// Removes every entry. `O(entries)`, under the write lock; the table keeps its memory.
    ///
    /// Cancel safe: a future dropped before it is ready has removed nothing.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # use embedding_cache::CacheKey;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = SingleLockCache::new(1000, 3600, 64);
    /// cache.put(CacheKey::new("00ff", "e5-base"), [0.6, 0.8]).await?;
    /// cache.clear().await;
    /// assert_eq!(cache.size().await, 0);
    /// # Ok::<(), baseline::Refusal>(())
    /// # }).unwrap();
    /// ```
    pub async fn clear(&self) {
        let mut entries = self.cache.write().await;
        add(&self.stats.removals, entries.map.len());
        entries.map.clear();
        entries.bytes = 0;
    }

    /// Removes the entry under `key` and returns its vector, `None` if it had expired. `O(1)`,
    /// under the write lock; copies nothing.
    ///
    /// Cancel safe: a future dropped before it is ready has removed nothing.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # use embedding_cache::CacheKey;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = SingleLockCache::new(1000, 3600, 64);
    /// let key = CacheKey::new("00ff", "e5-base");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// assert_eq!(cache.remove(&key).await, Some(vec![0.6, 0.8]));
    /// assert_eq!(cache.remove(&key).await, None);
    /// # Ok::<(), baseline::Refusal>(())
    /// # }).unwrap();
    /// ```
    pub async fn remove(&self, key: &CacheKey) -> Option<Vec<f32>> {
        let mut entries = self.cache.write().await;
        let cached = entries.remove(key)?;
        if self.is_live(&cached, Utc::now()) {
            add(&self.stats.removals, 1);
            Some(cached.embedding)
        } else {
            add(&self.stats.expired_entries, 1);
            None
        }
    }

    /// The counts since the cache was made. `O(1)`, without a lock, so not one snapshot.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// assert_eq!(SingleLockCache::new(1000, 3600, 64).stats().hit_rate(), 0.0);
    /// ```
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let counters = &*self.stats;
        // Relaxed, here and in `add`: the counts order nothing.
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (by_entries, by_weight) =
            (read(&counters.evicted_by_entries), read(&counters.evicted_by_weight));
        let mut stats = CacheStats::default();
        stats.hits = read(&counters.hits);
        stats.misses = read(&counters.misses);
        stats.insertions = read(&counters.insertions);
        stats.updates = read(&counters.updates);
        stats.evictions = by_entries + by_weight;
        stats.evicted_by_entries = by_entries;
        stats.evicted_by_weight = by_weight;
        stats.expired_entries = read(&counters.expired_entries);
        stats.removals = read(&counters.removals);
        stats.rejected = read(&counters.rejected);
        stats.timeouts = read(&counters.timeouts);
        stats
    }

    /// How full the cache is, its limits and its counts. `O(1)`, under the read lock: the lock is
    /// tokio's, so this is `async`. Cancel safe: it changes nothing.
    ///
    /// ```
    /// # use baseline::SingleLockCache;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let info = SingleLockCache::new(1000, 3600, 64).info().await;
    /// assert_eq!((info.memory_bytes, info.memory_limit_bytes), (0, 64 << 20));
    /// # });
    /// ```
    pub async fn info(&self) -> Info {
        let entries = self.cache.read().await;
        Info {
            size: entries.map.len(),
            max_size: self.max_size,
            memory_bytes: entries.bytes,
            memory_limit_bytes: self.memory_limit,
            stats: self.stats(),
        }
    }

    /// The vector as it will be stored, and the weight of its entry; an error if no eviction could
    /// make room for it. The limits never change, so this needs no lock.
    fn admit(&self, key: &CacheKey, mut vector: Vec<f32>) -> Result<(Vec<f32>, u64), Refusal> {
        let (weight, limit) = (weigh(key, &vector), self.memory_limit);
        let reason = if self.max_size == 0 {
            Reason::NoCapacity
        } else if weight > limit {
            Reason::TooLarge { weight, limit }
        } else {
            vector.shrink_to_fit();
            return Ok((vector, weight));
        };
        add(&self.stats.rejected, 1);
        Err(Refusal::new(reason, Some(vector)))
    }

    async fn lock_for_put(&self) -> PutLocks<'_> {
        let guard = self.cleanup_lock.lock().await;
        (guard, self.cache.write().await)
    }

    /// The part of a put that awaits nothing, so that no cancellation can cut it in two.
    fn store(&self, locks: PutLocks<'_>, key: CacheKey, embedding: Vec<f32>, weight: u64) {
        let (_guard, mut entries) = locks;
        let mut updated = false;
        if !self.has_room(&entries, weight) {
            // What an update replaces goes first, so it is no victim and counts for nothing.
            updated = entries.remove(&key).is_some();
            if !self.has_room(&entries, weight) {
                self.evict_entries(&mut entries, weight);
            }
        }
        let cached = CachedEmbedding { embedding, timestamp: Utc::now(), weight };
        updated |= entries.insert(key, cached).is_some();
        add(if updated { &self.stats.updates } else { &self.stats.insertions }, 1);
    }

    /// Whether one more entry of `weight` is within both limits.
    fn has_room(&self, entries: &Entries, weight: u64) -> bool {
        entries.map.len() < self.max_size && entries.bytes + weight <= self.memory_limit
    }

    fn evict_entries(&self, entries: &mut Entries, weight: u64) {
        let now = Utc::now();
        let live = |cached: &CachedEmbedding| self.is_live(cached, now);
        let expired: Vec<_> =
            entries.map.iter().filter(|(_, c)| !live(c)).map(|(key, _)| key.clone()).collect();
        for key in expired {
            entries.remove(&key);
            add(&self.stats.expired_entries, 1);
        }
        // Both loops end: each turn removes an entry, and `admit` saw that an empty map has room.
        while entries.map.len() >= self.max_size
            && entries.evict(|cached| Reverse(cached.timestamp))
        {
            add(&self.stats.evicted_by_entries, 1);
        }
        while entries.bytes + weight > self.memory_limit
            && entries.evict(|cached| cached.embedding.len())
        {
            add(&self.stats.evicted_by_weight, 1);
        }
    }

    fn is_live(&self, cached: &CachedEmbedding, now: DateTime<Utc>) -> bool {
        let age = now.signed_duration_since(cached.timestamp).num_seconds();
        // Negative after the wall clock was set back: such an entry is new, not ancient.
        u64::try_from(age).unwrap_or(0) <= self.ttl_seconds
    }

    fn timed_out(
        &self,
        operation: &'static str,
        waited: Duration,
        vector: Option<Vec<f32>>,
    ) -> Refusal {
        add(&self.stats.timeouts, 1);
        Refusal::new(Reason::Timeout { operation, waited }, vector)
    }
}

/// Shows the limits and the counts; the entries are behind a lock that only a future can wait for.
impl fmt::Debug for SingleLockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleLockCache")
            .field("max_size", &self.max_size)
            .field("ttl_seconds", &self.ttl_seconds)
            .field("memory_limit", &self.memory_limit)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

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

/// What is under the one lock.
#[derive(Default)]
struct Entries {
    map: HashMap<CacheKey, CachedEmbedding>,
    /// The sum of the weights in `map`.
    bytes: u64,
}

struct CachedEmbedding {
    embedding: Vec<f32>,
    /// When it was put, by the wall clock.
    timestamp: DateTime<Utc>,
    /// Of the whole entry, its key included; see [`weigh`].
    weight: u64,
}

impl Entries {
    /// What it replaced, if anything.
    fn insert(&mut self, key: CacheKey, cached: CachedEmbedding) -> Option<CachedEmbedding> {
        self.bytes += cached.weight;
        let replaced = self.map.insert(key, cached)?;
        self.bytes -= replaced.weight;
        Some(replaced)
    }

    fn remove(&mut self, key: &CacheKey) -> Option<CachedEmbedding> {
        let cached = self.map.remove(key)?;
        self.bytes -= cached.weight;
        Some(cached)
    }

    /// Removes the entry with the greatest `rank`, found by a walk over all of them; `false` if
    /// there is none.
    fn evict<R: Ord>(&mut self, rank: impl Fn(&CachedEmbedding) -> R) -> bool {
        let victim = self.map.iter().max_by_key(|(_, cached)| rank(cached));
        let victim = victim.map(|(key, _)| key.clone());
        victim.is_some_and(|key| self.remove(&key).is_some())
    }
}

/// Bytes of an entry: the texts of its key, its components, [`ENTRY_OVERHEAD`].
fn weigh(key: &CacheKey, embedding: &[f32]) -> u64 {
    let texts = key.content_hash.len() + key.model_version.len();
    let chunk = key.chunk_id.as_ref().map_or(0, String::len);
    (texts + chunk + size_of_val(embedding) + ENTRY_OVERHEAD) as u64
}

/// The counts of [`CacheStats`], as atomics.
#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    insertions: AtomicU64,
    updates: AtomicU64,
    evicted_by_entries: AtomicU64,
    evicted_by_weight: AtomicU64,
    expired_entries: AtomicU64,
    removals: AtomicU64,
    rejected: AtomicU64,
    timeouts: AtomicU64,
}

fn add(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
