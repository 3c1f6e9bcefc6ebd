//! The async door for embedding servers: typed keys and vectors, validation, deadlines.
//!
//! Everything it stores lives in one [`ShardedCache`]; this module adds no second map and no second
//! lock around it. What a lock protects is not known here: only how to wait for one without
//! blocking an executor.
//!
//! The methods of [`EmbeddingCache`] are in files by what they do: [`access`] to one key, a [`batch`]
//! of keys, [`inspect`] without using, [`load`] what is missing, [`maintenance`] of everything. Beside
//! them: its [`builder`], what a [`key`] is, which vectors are admitted ([`admission`]), how an
//! operation waits for a lock ([`wait`]), what is counted and told ([`observe`]), and the [`batcher`],
//! which needs no cache.

mod access;
mod admission;
mod batch;
mod batcher;
mod builder;
mod era;
mod export;
mod inspect;
mod key;
mod load;
mod maintenance;
mod observe;
mod snapshot;
#[cfg(feature = "tier")]
pub mod tier;
mod wait;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{EvictionPolicy, MemoryPressure, ShardedCache};
use crate::hasher::DefaultHashBuilder;
use crate::stats::{CacheInfo, CacheStats};
use crate::vector::{EmbeddingVector, Finite, heap_bytes};

pub use builder::EmbeddingCacheBuilder;
pub use key::{CacheKey, ContentKey, EmbeddingKey, KeySpec, Role, Truncation};

pub use batcher::{Batcher, BatcherBuilder};
pub use export::Entries;
pub use load::{IntoEmbedding, IntoEmbeddings, Load, Missing};
pub use maintenance::CleanupHandle;
pub use snapshot::{Snapshot, SnapshotLoad, SnapshotProgress, SnapshotReport};

use admission::Admission;
use builder::Loading;
use key::repr::KeyRepr;
use load::{Inflight, Permits};
use observe::Observer;
use wait::Waiters;

/// What an entry weighs beside its vector, in bytes: its slot (80), with the key in it, and its parts
/// of the index, of the orders of eviction and expiry, and of what is allocated ahead. Measured it is
/// 99 to 152, by policy, time-to-live and number of shards; this is the middle. By default it is some
/// 112 with a [`CacheKey`]: 19 more than the two texts of that key take by themselves, as the README
/// counts.
///
/// The weight of an entry is `vector allocation (4 × dimensions + 16) + ENTRY_OVERHEAD`, within a
/// tenth of what a counting allocator sees, from 64 dimensions on. A [`CacheKey`] whose content hash
/// is not 64 lower-case hexadecimal digits, or that has a chunk, is stored as its texts, and their
/// bytes are added. An entry with a [`ContentKey`], whose slot is smaller, weighs 8 bytes less.
pub const ENTRY_OVERHEAD: u64 = 126;

fn weigh<K: EmbeddingKey>(key: &Stored<K>, components: &Components) -> u64 {
    K::heap_bytes(key) + heap_bytes(components) + K::OVERHEAD
}

/// The form in which a cache stores a key.
type Stored<K> = <K as KeyRepr>::Stored;

/// The form in which it stores a vector: whether that is finite is the same for all of them.
type Components = Arc<[f32]>;

/// What holds the entries.
type Core<K, S> = ShardedCache<Stored<K>, Components, S>;

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
///   evicts no other entry unless it grows. A vector that alone is over the limit is refused and
///   given back.
/// - Expired entries leave first. Then, in a cache made by [`new`](Self::new), the least recently
///   used over the limit on entries, and the largest over the limit on bytes; the
///   [builder](Self::builder) offers other orders. With several shards the order is that of each
///   shard; a cache of a few hundred entries, or of a few MB, has one.
/// - No `async fn` blocks an executor thread for long: where another thread holds the lock of a
///   shard, it parks for a fraction of a millisecond at a time and yields in between.
///
/// # What is async
///
/// - What may wait for a lock, or for a load, is async: it never blocks an executor thread for long.
/// - What needs no lock is not: [`len`](Self::len), [`stats`](Self::stats), [`info`](Self::info).
///   ([`size`](Self::size) is, by the interface that it comes from; it never waits.)
/// - `get_blocking` and `put_blocking` wait with their thread, for callers that no executor runs.
/// - [`iter`](Self::iter) and [`keys`](Self::keys) are ordinary iterators, and say what that means.
///
/// # Cancel safety
///
/// Every `async fn` may be dropped at any `.await`: `get` and `size` change nothing, a `put` has
/// then happened entirely or not at all, a `cleanup_expired_safe` or `clear` has done part of its
/// work. None holds a lock across an `.await`.
///
/// # Loads, and the names of the interface
///
/// A server asks by [`get_or_embed_many`](Self::get_or_embed_many), which calls the model for what is
/// missing, once for all callers that ask; a [`Batcher`] behind it gathers the misses of many requests. Code that
/// comes from another cache finds `new`, `get`, `put`, `get_with_timeout`, `put_with_timeout`,
/// `cleanup_expired_safe`, `size`, `clear`, `stats` and `info` as it knows them.
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
/// assert_eq!(cache.stats().hit_ratio(), 0.5);
/// # Ok::<(), embedding_cache::CacheError>(())
/// # }).unwrap();
/// ```
pub struct EmbeddingCache<K: EmbeddingKey = CacheKey, S = DefaultHashBuilder> {
    inner: Arc<Inner<K, S>>,
}

struct Inner<K: EmbeddingKey, S> {
    core: Core<K, S>,
    waiters: Waiters,
    admission: Admission,
    /// What is known of every vector that was admitted.
    finite: Finite,
    /// The keys that are being loaded: only those, never a vector that is stored.
    inflight: Inflight<Stored<K>>,
    /// How many calls of loads may still begin.
    permits: Arc<Permits>,
    max_batch: usize,
    load_timeout: Option<Duration>,
    stale_while_revalidate: Duration,
    stale_if_error: Duration,
    observer: Observer,
    /// For what is read elsewhere.
    eras: era::Eras,
    #[cfg(feature = "tier")]
    tier: Option<tier::Attached<K, S>>,
}

impl<K: EmbeddingKey, S> Inner<K, S> {
    /// A vector as it is handed out.
    #[inline]
    fn vector(&self, components: Components) -> EmbeddingVector {
        EmbeddingVector::stored(components, self.finite)
    }
}

#[cfg(not(feature = "tier"))]
impl<K: EmbeddingKey, S> Inner<K, S> {
    /// The nonces of the second tier, for a snapshot: there is none.
    #[allow(clippy::unused_self)]
    fn namespaces(&self) -> Vec<u8> {
        Vec::new()
    }
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
        let longest = crate::core::LONGEST_TIME_TO_LIVE;
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

impl<K: EmbeddingKey, S> EmbeddingCache<K, S> {
    fn from_core(
        core: Core<K, S>,
        admission: Admission,
        loading: Loading,
        name: &str,
        #[cfg(feature = "tier")] tier: Option<tier::Attached<K, S>>,
    ) -> Self {
        let inner = Inner {
            core,
            waiters: Waiters::default(),
            finite: Finite::from(!admission.allow_non_finite),
            admission,
            inflight: Inflight::new(loading.max_in_flight),
            permits: Arc::new(Permits::new(loading.max_concurrent)),
            max_batch: loading.max_batch,
            load_timeout: loading.load_timeout,
            stale_while_revalidate: loading.stale_while_revalidate,
            stale_if_error: loading.stale_if_error,
            observer: Observer::new(name),
            eras: era::Eras::default(),
            #[cfg(feature = "tier")]
            tier,
        };
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
        let stats = self.inner.observer.add_to(self.inner.core.stats());
        #[cfg(feature = "tier")]
        let stats = CacheStats {
            tier: self.inner.tier.as_ref().map(|tier| tier.guard.stats()).unwrap_or_default(),
            ..stats
        };
        stats
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
            unreclaimed_bytes: core.unreclaimed_weight(),
            shards: core.shards(),
            created_at: core.created_at(),
            taken_at: core.wall_time(),
            keys_in_flight: self.inner.inflight.len(),
            stats: self.stats(),
        }
    }
}

impl<K: EmbeddingKey, S> Clone for EmbeddingCache<K, S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<K: EmbeddingKey, S> fmt::Debug for EmbeddingCache<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmbeddingCache").field(&self.inner.core).finish()
    }
}
