//! How an [`EmbeddingCache`] is made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{Clock, EvictionPolicy, MemoryPressure, RemovalCause, ShardedCacheBuilder};
use crate::error::{CacheError, ErrorKind};
use crate::hasher::DefaultHashBuilder;
use crate::vector::{EmbeddingVector, Finite};

use super::admission::Admission;
use super::key::names::ModelName;
use super::{CacheKey, Components, EmbeddingCache, EmbeddingKey, Stored, weigh};

/// Configures and makes an [`EmbeddingCache`]; from [`EmbeddingCache::builder`], or
/// [`new`](Self::new) for another kind of key than [`CacheKey`].
///
/// At least one of [`max_entries`](Self::max_entries) and [`max_bytes`](Self::max_bytes) must be
/// set.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use embedding_cache::EmbeddingCache;
///
/// let cache = EmbeddingCache::builder()
///     .max_bytes(512 << 20)
///     .time_to_live(Duration::from_secs(24 * 3600))
///     .build()?;
/// assert_eq!(cache.info().memory_limit_bytes, 512 << 20);
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
#[must_use]
pub struct EmbeddingCacheBuilder<K: EmbeddingKey = CacheKey, S = DefaultHashBuilder> {
    core: ShardedCacheBuilder<Stored<K>, Components, S>,
    max_entries: Option<usize>,
    max_bytes: Option<u64>,
    shards: Option<usize>,
    admission: Admission,
    loading: Loading,
    name: String,
    #[cfg(feature = "tier")]
    tier: Option<super::tier::ToAttach<K, S>>,
}

/// What bounds the loads of a cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loading {
    pub(super) max_batch: usize,
    pub(super) max_in_flight: usize,
    pub(super) max_concurrent: usize,
    pub(super) load_timeout: Option<Duration>,
    pub(super) stale_while_revalidate: Duration,
    pub(super) stale_if_error: Duration,
}

impl Default for Loading {
    fn default() -> Self {
        Self {
            max_batch: 64,
            max_in_flight: 1 << 16,
            max_concurrent: 256,
            load_timeout: None,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
        }
    }
}

impl<K: EmbeddingKey> EmbeddingCacheBuilder<K> {
    /// Starts to configure a cache for keys of the kind `K`. `O(1)`, no allocation.
    ///
    /// For [`CacheKey`] there is [`EmbeddingCache::builder`] too, which needs no type.
    ///
    /// # Examples
    ///
    /// ```
    /// use embedding_cache::{ContentKey, EmbeddingCache, EmbeddingCacheBuilder};
    ///
    /// let cache: EmbeddingCache<ContentKey> =
    ///     EmbeddingCacheBuilder::new().max_entries(10_000).build()?;
    /// let model = ContentKey::for_model("e5-base").revision("1");
    /// cache.put_blocking(model.text("a text"), [0.6, 0.8])?;
    /// assert_eq!(cache.get_blocking(&model.text("a text")).unwrap(), [0.6, 0.8]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn new() -> Self {
        Self::default()
    }
}

impl<K: EmbeddingKey> Default for EmbeddingCacheBuilder<K> {
    fn default() -> Self {
        Self {
            core: ShardedCacheBuilder::default(),
            max_entries: None,
            max_bytes: None,
            shards: None,
            admission: Admission::default(),
            loading: Loading::default(),
            name: String::new(),
            #[cfg(feature = "tier")]
            tier: None,
        }
    }
}

impl<K: EmbeddingKey, S> EmbeddingCacheBuilder<K, S> {
    /// The most entries the cache holds, at every instant. 0 makes a cache that refuses every put,
    /// `usize::MAX` one that only its bytes limit.
    pub fn max_entries(self, max: usize) -> Self {
        Self { max_entries: Some(max), ..self }
    }

    /// The most bytes the cache holds, at every instant: for each entry its vector and
    /// [`ENTRY_OVERHEAD`](super::ENTRY_OVERHEAD), and the texts of an unusual key.
    pub fn max_bytes(self, max: u64) -> Self {
        Self { max_bytes: Some(max), ..self }
    }

    /// How long after its put an entry is served: until its age exceeds this. The default is for
    /// ever: the embedding of a text by one model revision does not go stale. Zero means that every
    /// entry is expired at once. At most 292 years.
    pub fn time_to_live(self, time_to_live: Duration) -> Self {
        Self { core: self.core.time_to_live(time_to_live), ..self }
    }

    /// Spreads the time-to-live: an entry lives between `1 − fraction` of it and all of it, in 16
    /// steps, always the same for a key, so that what was loaded together does not expire together.
    /// From 0.0, the default, to 1.0. Entries with a time-to-live of their own keep to it exactly.
    pub fn time_to_live_jitter(self, fraction: f64) -> Self {
        Self { core: self.core.time_to_live_jitter(fraction), ..self }
    }

    /// How long after it was last read or written an entry is served: until more time has passed
    /// than this. The default is for ever; at most 292 years, and not zero. It costs 24 bytes an
    /// entry; with a time-to-live as well, an entry expires at the earlier of both.
    pub fn time_to_idle(self, time_to_idle: Duration) -> Self {
        Self { core: self.core.time_to_idle(time_to_idle), ..self }
    }

    /// How many shards to divide the cache into, rounded up to a power of two; 1 to 65,536. The
    /// default is about four for each processor, and fewer where that would leave a shard less than
    /// 256 entries or 4 MiB. One shard makes the order of eviction exact over the whole cache.
    pub fn shards(self, shards: usize) -> Self {
        Self { shards: Some(shards), ..self }
    }

    /// Which entry leaves when the cache is full. The default is [`EvictionPolicy::HitDensity`].
    pub fn eviction(self, policy: EvictionPolicy) -> Self {
        Self { core: self.core.eviction(policy), ..self }
    }

    /// Which entry leaves when the limit on bytes is reached. The default is
    /// [`MemoryPressure::PolicyOrder`].
    pub fn memory_pressure(self, pressure: MemoryPressure) -> Self {
        Self { core: self.core.memory_pressure(pressure), ..self }
    }

    /// Takes vectors with NaN or infinite components too. By default they are refused: they are a
    /// model's failure, and one in the cache poisons every comparison until it expires.
    pub fn allow_non_finite(self, allow: bool) -> Self {
        Self { admission: Admission { allow_non_finite: allow, ..self.admission }, ..self }
    }

    /// Takes vectors of so many components only, whatever the model, but for models that
    /// [`model_dimensions`](Self::model_dimensions) names. A model that suddenly answers with
    /// another number was changed, and its vectors compare with nothing. At least 1.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// let cache = EmbeddingCache::builder().max_entries(100).dimensions(2).build()?;
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// let refused = cache.put_blocking(key, [0.6, 0.8, 0.0]).unwrap_err();
    /// assert!(refused.is_invalid_vector());
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn dimensions(self, dimensions: usize) -> Self {
        Self { admission: Admission { dimensions: Some(dimensions), ..self.admission }, ..self }
    }

    /// Takes vectors of so many components only for keys of `model`, whatever its revision. At least 1.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// let builder = EmbeddingCache::builder().max_entries(100);
    /// let cache = builder.model_dimensions("small", 2).model_dimensions("large", 3).build()?;
    /// cache.put_blocking(CacheKey::new("9f86d081", "small@1"), [0.6, 0.8])?;
    /// assert!(cache.put_blocking(CacheKey::new("9f86d081", "large@1"), [0.6, 0.8]).is_err());
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn model_dimensions(mut self, model: &str, dimensions: usize) -> Self {
        self.admission.by_model.push((ModelName::new(model), dimensions));
        self
    }

    /// The most keys that one call of a load's closure is asked for, at least 1. The default is 64.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder().max_entries(100).max_batch(2).build()?;
    /// let keys = ["red", "green", "blue"].map(|text| CacheKey::new(text, "toy"));
    /// let mut sizes = Vec::new();
    /// let load = cache.get_or_embed_many(&keys, |missing| {
    ///     sizes.push(missing.len());
    ///     async move { vec![[0.6, 0.8]; missing.len()] }
    /// });
    /// assert!(load.await.iter().all(Result::is_ok));
    /// assert_eq!(sizes, [2, 1]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn max_batch(self, keys: usize) -> Self {
        Self { loading: Loading { max_batch: keys, ..self.loading }, ..self }
    }

    /// The most keys that may be loaded at the same time; more are refused
    /// ([`CacheError::is_overloaded`]). At least 1; the default is 65,536. They are not counted among the
    /// [bytes](Self::max_bytes) of the cache: a key on its way takes up to 1 KB, and what its
    /// closure holds, until its vector is there.
    ///
    /// ```
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder().max_entries(100).max_in_flight(1).build()?;
    /// let (red, green) = (CacheKey::new("red", "toy"), CacheKey::new("green", "toy"));
    /// let load = cache.load().get_or_embed_borrowed(&red, || async {
    ///     let inside = cache.load().get_or_embed_borrowed(&green, || async { [0.6, 0.8] });
    ///     inside.await.map_err(|refused| assert!(refused.is_overloaded())).ok();
    ///     [0.6, 0.8]
    /// });
    /// assert_eq!(load.await?, [0.6, 0.8]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn max_in_flight(self, keys: usize) -> Self {
        Self { loading: Loading { max_in_flight: keys, ..self.loading }, ..self }
    }

    /// The most calls of loads' closures that run at the same time; more wait for their turn. A load
    /// inside another does not wait, so this counts the outermost ones. At least 1; the default is 256.
    /// A model that takes one call at a time is better served by a
    /// [`Batcher`](crate::Batcher), which gathers what waits.
    ///
    /// ```
    /// # use embedding_cache::{EmbeddingCache};
    /// let cache = EmbeddingCache::builder().max_entries(100).max_concurrent_loads(4).build()?;
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// ```
    pub fn max_concurrent_loads(self, calls: usize) -> Self {
        Self { loading: Loading { max_concurrent: calls, ..self.loading }, ..self }
    }

    /// How long a call of a load's closure may take, from when its first key was claimed, waiting for
    /// its turn included. Then its future is dropped, its keys can be loaded anew, and those that wait
    /// get an error ([`CacheError::is_load_timeout`]). The default is no limit.
    ///
    /// **A server should set this**, well over what a slow call of its model takes: without it a call
    /// that never ends keeps its keys and its turn for ever, and as many of them as
    /// [`max_concurrent_loads`](Self::max_concurrent_loads) end all loading. A call whose poll blocks
    /// its thread cannot be ended; those that wait for it get the error all the same.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder()
    ///     .max_entries(100)
    ///     .load_timeout(Duration::from_millis(5))
    ///     .build()?;
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// let hangs = || std::future::pending::<Vec<f32>>();
    /// assert!(cache.get_or_embed(&key, hangs).await.unwrap_err().is_load_timeout());
    /// assert_eq!(cache.get_or_embed(&key, || async { [0.6, 0.8] }).await?, [0.6, 0.8]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn load_timeout(self, limit: Duration) -> Self {
        Self { loading: Loading { load_timeout: Some(limit), ..self.loading }, ..self }
    }

    /// For how long past its time-to-live a vector is still served by `get_or_embed` while a fresh
    /// one is loaded in the background. The default is not at all. The embedding of the same text by
    /// the same model revision is still right when it is old; so this trades nothing but memory for
    /// the time that callers would wait. [`get`](EmbeddingCache::get) never serves it.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder()
    ///     .max_entries(100)
    ///     .time_to_live(Duration::from_millis(1))
    ///     .stale_while_revalidate(Duration::from_secs(3600))
    ///     .build()?;
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// tokio::time::sleep(Duration::from_millis(50)).await;
    /// assert_eq!(cache.get(&key).await, None);
    /// let vector = cache.get_or_embed(&key, || async { [1.0, 0.0] }).await?;
    /// assert_eq!(vector, [0.6, 0.8]); // at once; the new one is on its way
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn stale_while_revalidate(self, past: Duration) -> Self {
        Self { loading: Loading { stale_while_revalidate: past, ..self.loading }, ..self }
    }

    /// For how long past its time-to-live a vector is still served by `get_or_embed` when a fresh
    /// one cannot be loaded. The default is not at all.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use embedding_cache::{CacheKey, EmbeddingCache};
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache = EmbeddingCache::builder()
    ///     .max_entries(100)
    ///     .time_to_live(Duration::from_millis(1))
    ///     .stale_if_error(Duration::from_secs(3600))
    ///     .build()?;
    /// let key = CacheKey::new("9f86d081", "e5-base@1");
    /// cache.put(key.clone(), [0.6, 0.8]).await?;
    /// tokio::time::sleep(Duration::from_millis(50)).await;
    /// let fails = || async { Err::<Vec<f32>, _>("the model is down") };
    /// assert_eq!(cache.get_or_embed(&key, fails).await?, [0.6, 0.8]);
    /// # Ok::<(), embedding_cache::CacheError>(())
    /// # }).unwrap();
    /// ```
    pub fn stale_if_error(self, past: Duration) -> Self {
        Self { loading: Loading { stale_if_error: past, ..self.loading }, ..self }
    }

    /// The name of the cache in metrics and spans; empty by default. Give each cache of a process
    /// another.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// A second tier: a store that processes share, or that outlives them. `get_or_embed` and its
    /// like ask it for what they miss before they call a model, and what a model answers, or a put
    /// stores, is written to it in the background. See the module [`tier`](crate::tier).
    ///
    /// Needs a tokio runtime wherever the cache is used; a put from a thread outside one
    /// uses the runtime that this is called in, or that another operation was called in before.
    /// To be called after [`hasher`](Self::hasher).
    #[cfg(feature = "tier")]
    pub fn tier(self, tier: impl Into<super::tier::SecondTier>) -> Self
    where
        S: Send + Sync + 'static,
    {
        Self { tier: Some(super::tier::ToAttach::new(tier.into())), ..self }
    }

    /// Another source of time, for tests.
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { core: self.core.clock(clock), ..self }
    }

    /// Another hash function; it must spread keys over all 64 bits.
    pub fn hasher<H>(self, hasher: H) -> EmbeddingCacheBuilder<K, H> {
        EmbeddingCacheBuilder {
            core: self.core.hasher(hasher),
            max_entries: self.max_entries,
            max_bytes: self.max_bytes,
            shards: self.shards,
            admission: self.admission,
            loading: self.loading,
            name: self.name,
            #[cfg(feature = "tier")]
            tier: self
                .tier
                .map(|tier| super::tier::ToAttach { second: tier.second, starters: None }),
        }
    }

    /// Is told of every entry that leaves or is replaced, and why. Called outside the locks, on the
    /// thread whose operation made the entry leave; allocates the key for it. It may use the cache:
    /// what its own operations make leave is told after it has returned. It is not told of the
    /// entries that are there when the cache is dropped; to hear of them, clear it first.
    pub fn eviction_listener(
        self,
        listener: impl Fn(&K, &EmbeddingVector, RemovalCause) + Send + Sync + 'static,
    ) -> Self {
        let core =
            self.core.eviction_listener(move |key: &Stored<K>, components: &Components, cause| {
                let vector = EmbeddingVector::stored(components.clone(), Finite::UNKNOWN);
                listener(&K::from_stored(key), &vector, cause);
            });
        Self { core, ..self }
    }

    /// Makes the cache.
    ///
    /// # Errors
    ///
    /// [`CacheError::is_configuration`] if no limit is set, the number of shards is over 65,536, the
    /// jitter is not from 0.0 to 1.0, or something is zero that would leave nothing to do: the number
    /// of shards, of dimensions, of keys in a call or in flight, of calls, the time-to-idle, the load
    /// timeout. (A limit of 0 entries or 0 bytes, or a time-to-live of zero, switch storing off.)
    ///
    /// [`CacheError::is_invalid_ttl`] if the time-to-live, alone or with
    /// [`stale_while_revalidate`](Self::stale_while_revalidate) or
    /// [`stale_if_error`](Self::stale_if_error), or the time-to-idle is over 292 years.
    pub fn build(self) -> Result<EmbeddingCache<K, S>, CacheError> {
        let Loading { max_batch, max_in_flight, max_concurrent, load_timeout, .. } = self.loading;
        let by_model = self.admission.by_model.iter().any(|&(_, dimensions)| dimensions == 0);
        for (what, is_zero) in [
            ("the longest that a load may take", load_timeout == Some(Duration::ZERO)),
            ("a cache's limit on keys of a call", max_batch == 0),
            ("a cache's limit on keys in flight", max_in_flight == 0),
            ("a cache's limit on concurrent loads", max_concurrent == 0),
            ("the dimensions of a vector", by_model || self.admission.dimensions == Some(0)),
        ] {
            if is_zero {
                return Err(ErrorKind::Zero { what }.into());
            }
        }
        let mut core = self.core;
        if let Some(max) = self.max_entries {
            core = core.max_entries(max);
        }
        if let Some(max) = self.max_bytes {
            core = core.max_weight(max);
        }
        if let Some(shards) = self.shards {
            core = core.shards(shards);
        }
        // The size is that of the vector alone: a key that is a few bytes longer is no reason for
        // an entry to leave before others of its model.
        let stale = self.loading.stale_while_revalidate.max(self.loading.stale_if_error);
        let core = core
            .grace(stale)
            .weigher(weigh::<K>)
            .size(|_: &Stored<K>, components: &Components| components.len() as u64)
            .build()?;
        #[cfg(feature = "tier")]
        let tier = match self.tier {
            None => None,
            Some(super::tier::ToAttach { second, starters: Some(starters) }) => {
                Some(super::tier::Attached::new(second, starters, &self.name))
            }
            Some(_) => return Err(crate::error::ErrorKind::TierBeforeHasher.into()),
        };
        Ok(EmbeddingCache::from_core(
            core,
            self.admission,
            self.loading,
            &self.name,
            #[cfg(feature = "tier")]
            tier,
        ))
    }
}

impl<K: EmbeddingKey, S> fmt::Debug for EmbeddingCacheBuilder<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddingCacheBuilder")
            .field("max_entries", &self.max_entries)
            .field("max_bytes", &self.max_bytes)
            .field("shards", &self.shards)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
