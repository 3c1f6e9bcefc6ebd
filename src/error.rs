//! The one error type, and its companion that hands a refused entry back.

use std::fmt;
use std::time::Duration;

use crate::vector::EmbeddingVector;

/// Why a cache refused or could not finish an operation.
///
/// Opaque, with a predicate for each question a caller acts on; [`Display`](fmt::Display) names the
/// offending value and the limit. Where an operation had taken a vector, the error gives it back:
/// a model call that cost money is not lost to a refused `put`.
///
/// # Examples
///
/// ```
/// use embedding_cache::{CacheKey, EmbeddingCache};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let cache = EmbeddingCache::new(100, 3600, 1); // at most 1 MiB
/// let key = CacheKey::new("00ff", "e5-base");
/// let error = cache.put(key, vec![0.5; 1_000_000]).await.unwrap_err();
/// assert!(error.is_too_large());
/// assert_eq!(error.into_vector().unwrap().len(), 1_000_000);
/// # });
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct CacheError {
    kind: ErrorKind,
    vector: Option<EmbeddingVector>,
}

/// The private kinds; adding one is no breaking change.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum ErrorKind {
    #[error("{operation} timed out after {waited:?}: another thread held the lock of the shard")]
    Timeout { operation: &'static str, waited: Duration },
    #[error("an entry of weight {weight} is over the cache's limit of {limit}")]
    TooLarge { weight: u64, limit: u64 },
    #[error("the cache is limited to 0 entries and stores nothing")]
    NoCapacity,
    #[error(
        "no room for an entry of weight {weight} under the limit of {limit}: for {rounds} rounds other operations held all of it, or the locks to it"
    )]
    Contended { weight: u64, limit: u64, rounds: u32 },
    #[error("component {index} of {dimensions} is {value}; the cache takes finite vectors only")]
    NonFinite { index: usize, dimensions: usize, value: f32 },
    #[error("the vector has 0 components; the cache takes at least 1")]
    EmptyVector,
    #[error("the key's texts are {bytes} bytes together; the limit is {limit}")]
    KeyTooLong { bytes: usize, limit: usize },
    #[error("a time-to-live of {ttl:?} is over the limit of {limit:?}")]
    TtlTooLong { ttl: Duration, limit: Duration },
    #[error("what was loaded began before an invalidation and is not stored")]
    Invalidated,
    #[error("a time-to-idle of {tti:?} is over the limit of {limit:?}")]
    TtiTooLong { tti: Duration, limit: Duration },
    #[error("a time-to-idle of 0 would serve nothing; it is more than that")]
    NoTimeToIdle,
    #[error("a time-to-live jitter of {fraction} is not a fraction from 0.0 to 1.0")]
    Jitter { fraction: f64 },
    #[error("{shards} shards asked for; a cache has 1 to {limit}")]
    ShardCount { shards: usize, limit: usize },
    #[error(
        "neither an entry limit nor a weight limit is set; pass usize::MAX or u64::MAX to mean \"no limit\""
    )]
    NoLimit,
    #[error("a weight limit of {limit} is set but no weigher; without one every entry weighs 0")]
    NoWeigher { limit: u64 },
}

impl CacheError {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self { kind, vector: None }
    }

    pub(crate) fn giving_back(self, vector: EmbeddingVector) -> Self {
        Self { vector: Some(vector), ..self }
    }

    /// The deadline passed while another thread held the lock; nothing was changed.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.kind, ErrorKind::Timeout { .. })
    }

    /// The entry alone is over the limit of the cache (or that limit is 0 entries), so no eviction
    /// could make room for it. Nothing was evicted.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self.kind, ErrorKind::TooLarge { .. } | ErrorKind::NoCapacity)
    }

    /// Other operations held the room that this entry needed, or the locks to it, round after round.
    /// Worth another try.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        matches!(self.kind, ErrorKind::Contended { .. })
    }

    /// The vector is empty, or has a NaN or infinite component.
    #[must_use]
    pub fn is_invalid_vector(&self) -> bool {
        matches!(self.kind, ErrorKind::NonFinite { .. } | ErrorKind::EmptyVector)
    }

    /// The key is longer than a cache stores.
    #[must_use]
    pub fn is_invalid_key(&self) -> bool {
        matches!(self.kind, ErrorKind::KeyTooLong { .. })
    }

    /// The time-to-live, or the time-to-idle, is longer than the clock can count.
    #[must_use]
    pub fn is_invalid_ttl(&self) -> bool {
        matches!(self.kind, ErrorKind::TtlTooLong { .. } | ErrorKind::TtiTooLong { .. })
    }

    /// Something was invalidated while the value was being loaded.
    pub(crate) fn is_invalidated(&self) -> bool {
        matches!(self.kind, ErrorKind::Invalidated)
    }

    /// A builder was given a configuration that no cache can have.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::ShardCount { .. }
                | ErrorKind::NoLimit
                | ErrorKind::NoWeigher { .. }
                | ErrorKind::NoTimeToIdle
                | ErrorKind::Jitter { .. }
        )
    }

    /// The vector that the operation had taken, if it had taken one.
    #[must_use]
    pub fn vector(&self) -> Option<&EmbeddingVector> {
        self.vector.as_ref()
    }

    /// Takes back the vector that the operation had taken, if it had taken one.
    #[must_use]
    pub fn into_vector(self) -> Option<EmbeddingVector> {
        self.vector
    }
}

impl From<ErrorKind> for CacheError {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

/// An insert into a [`ShardedCache`](crate::ShardedCache) that was refused, with the key and the
/// value that it had taken. What was stored under the key still is. Nothing else has changed either,
/// but for a refusal that came after tries (a timeout, contention): what had already made room for
/// the entry is gone.
///
/// # Examples
///
/// ```
/// use embedding_cache::ShardedCache;
///
/// let cache = ShardedCache::<&str, String>::builder().max_entries(0).build()?;
/// let refused = cache.insert("key", "costly".to_string()).unwrap_err();
/// assert!(refused.error().is_too_large());
/// let (key, value) = refused.into_entry();
/// assert_eq!((key, value.as_str()), ("key", "costly"));
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
pub struct InsertError<K, V> {
    error: CacheError,
    key: K,
    value: V,
}

impl<K, V> InsertError<K, V> {
    pub(crate) fn new(kind: ErrorKind, key: K, value: V) -> Self {
        Self { error: CacheError::new(kind), key, value }
    }

    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    /// Why the insert was refused.
    #[must_use]
    pub fn error(&self) -> &CacheError {
        &self.error
    }

    /// The key and the value that were refused.
    #[must_use]
    pub fn into_entry(self) -> (K, V) {
        (self.key, self.value)
    }

    /// The reason, the key and the value.
    #[must_use]
    pub fn into_parts(self) -> (CacheError, K, V) {
        (self.error, self.key, self.value)
    }
}

/// Shows the reason only, so that `unwrap` works for keys and values that have no `Debug`.
impl<K, V> fmt::Debug for InsertError<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InsertError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<K, V> fmt::Display for InsertError<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<K, V> std::error::Error for InsertError<K, V> {}

impl<K, V> From<InsertError<K, V>> for CacheError {
    fn from(refused: InsertError<K, V>) -> Self {
        refused.error
    }
}
