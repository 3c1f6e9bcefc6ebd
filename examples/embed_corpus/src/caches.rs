//! The caches under test behind one trait, so that one loop drives them all.

use std::error::Error;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use baseline::SingleLockCache;
use embedding_cache::tier::SecondTier;
use embedding_cache::{
    CacheError, CacheKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingVector,
};

use crate::embedder::DIMENSIONS;

/// Why a cache refused a vector.
pub(crate) type Refused = Box<dyn Error + Send + Sync>;

/// What the loop needs of a cache.
pub(crate) trait Cache: Send + Sync + 'static {
    /// How the report calls it.
    const NAME: &'static str;

    /// Whether there is something behind it to ask.
    const HAS_SECOND_TIER: bool = false;

    /// In what form it hands out a vector.
    type Vector: From<Vec<f32>> + AsRef<[f32]> + Send + Sync;

    fn get(&self, key: &CacheKey) -> impl Future<Output = Option<Self::Vector>> + Send;

    /// Asks what is behind it for what it has not.
    fn get_through(
        &self,
        keys: Vec<CacheKey>,
    ) -> impl Future<Output = Vec<Option<Self::Vector>>> + Send {
        async move { keys.iter().map(|_| None).collect() }
    }

    fn put(
        &self,
        key: &CacheKey,
        vector: &Self::Vector,
    ) -> impl Future<Output = Result<(), Refused>> + Send;

    /// The bytes it holds; `None` if it can hold nothing.
    fn memory_bytes(&self) -> impl Future<Output = Option<u64>> + Send;
}

/// The limits, the same for both caches.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) entries: usize,
    pub(crate) mebibytes: usize,
}

/// Longer than any row takes: both caches look at the age of an entry, none expires.
const TIME_TO_LIVE: Duration = Duration::from_secs(24 * 60 * 60);

impl Limits {
    /// That many entries, and memory enough for them: the vector, and a kibibyte for the key and
    /// whatever a cache keeps beside it.
    pub(crate) fn for_entries(entries: usize) -> Self {
        let bytes = entries * (DIMENSIONS * size_of::<f32>() + 1024);
        Self { entries, mebibytes: bytes.div_ceil(1 << 20) }
    }

    pub(crate) fn single_lock(self) -> SingleLockCache {
        SingleLockCache::new(self.entries, TIME_TO_LIVE.as_secs(), self.mebibytes)
    }

    pub(crate) fn sharded(self) -> Result<EmbeddingCache, CacheError> {
        self.builder().build()
    }

    pub(crate) fn tiered(self, tier: SecondTier) -> Result<Tiered, CacheError> {
        Ok(Tiered(self.builder().tier(tier).build()?))
    }

    fn builder(self) -> EmbeddingCacheBuilder {
        EmbeddingCache::builder()
            .max_entries(self.entries)
            .max_bytes((self.mebibytes as u64) << 20)
            .time_to_live(TIME_TO_LIVE)
    }
}

/// No cache: never finds anything, so that every text is embedded every time.
pub(crate) struct NoCache;

impl Cache for NoCache {
    const NAME: &'static str = "none";
    type Vector = Vec<f32>;

    async fn get(&self, _: &CacheKey) -> Option<Vec<f32>> {
        None
    }

    async fn put(&self, _: &CacheKey, _: &Vec<f32>) -> Result<(), Refused> {
        Ok(())
    }

    async fn memory_bytes(&self) -> Option<u64> {
        None
    }
}

impl Cache for SingleLockCache {
    const NAME: &'static str = "single lock";
    type Vector = Vec<f32>;

    async fn get(&self, key: &CacheKey) -> Option<Vec<f32>> {
        self.get(key).await
    }

    async fn put(&self, key: &CacheKey, vector: &Vec<f32>) -> Result<(), Refused> {
        Ok(self.put(key.clone(), vector.clone()).await?)
    }

    async fn memory_bytes(&self) -> Option<u64> {
        Some(self.info().await.memory_bytes)
    }
}

impl Cache for EmbeddingCache {
    const NAME: &'static str = "sharded";
    type Vector = EmbeddingVector;

    async fn get(&self, key: &CacheKey) -> Option<EmbeddingVector> {
        self.get(key).await
    }

    async fn put(&self, key: &CacheKey, vector: &EmbeddingVector) -> Result<(), Refused> {
        Ok(self.put(key.clone(), vector.clone()).await?)
    }

    async fn memory_bytes(&self) -> Option<u64> {
        Some(self.info().memory_bytes)
    }
}

/// The sharded cache with a second tier.
pub(crate) struct Tiered(pub(crate) EmbeddingCache);

impl Cache for Tiered {
    const NAME: &'static str = "sharded";
    const HAS_SECOND_TIER: bool = true;
    type Vector = EmbeddingVector;

    async fn get(&self, key: &CacheKey) -> Option<EmbeddingVector> {
        self.0.get(key).await
    }

    async fn get_through(&self, keys: Vec<CacheKey>) -> Vec<Option<EmbeddingVector>> {
        self.0.get_through_many(keys).await
    }

    async fn put(&self, key: &CacheKey, vector: &EmbeddingVector) -> Result<(), Refused> {
        Ok(self.0.put(key.clone(), vector.clone()).await?)
    }

    async fn memory_bytes(&self) -> Option<u64> {
        Some(self.0.info().memory_bytes)
    }
}

/// A cache with a fault, to show that the comparison of every vector finds it: one bit of one
/// component is wrong, in the first hit only.
pub(crate) struct Sabotaged {
    cache: EmbeddingCache,
    done: AtomicBool,
}

impl Sabotaged {
    pub(crate) fn new(cache: EmbeddingCache) -> Self {
        Self { cache, done: AtomicBool::new(false) }
    }
}

impl Cache for Sabotaged {
    const NAME: &'static str = "sabotaged";
    type Vector = EmbeddingVector;

    async fn get(&self, key: &CacheKey) -> Option<EmbeddingVector> {
        let vector = self.cache.get(key).await?;
        // Relaxed: it only picks one hit; nothing else is read on the strength of it.
        if self.done.swap(true, Ordering::Relaxed) {
            return Some(vector);
        }
        let mut components = vector.into_vec();
        let last = components.last_mut()?;
        *last = f32::from_bits(last.to_bits() ^ 1);
        Some(components.into())
    }

    async fn put(&self, key: &CacheKey, vector: &EmbeddingVector) -> Result<(), Refused> {
        Ok(self.cache.put(key.clone(), vector.clone()).await?)
    }

    async fn memory_bytes(&self) -> Option<u64> {
        Some(self.cache.info().memory_bytes)
    }
}
