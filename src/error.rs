//! The one error type, and its companion that hands a refused entry back.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
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
#[derive(Clone)]
pub struct CacheError(Box<Inner>);

/// In a box: a result is then no larger than the vector it carries when all goes well.
#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    vector: Option<EmbeddingVector>,
}

/// The private kinds; adding one is no breaking change.
#[derive(Debug, Clone, thiserror::Error)]
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
    #[error(
        "the vector has {found} components; this cache takes {expected} for the model of its key"
    )]
    WrongDimensions { found: usize, expected: usize },
    #[error("loading failed: {0}")]
    LoadFailed(Arc<dyn Error + Send + Sync>),
    #[error("loading panicked: {message}")]
    LoadPanicked { message: Arc<str> },
    #[error("the model answered {answered} embeddings for {asked} inputs; none of them is used")]
    WrongCount { asked: usize, answered: usize },
    #[error("the embedding did not come within {waited:?}")]
    LoadTimeout { waited: Duration },
    #[error("the load was ended after {limit:?}, the longest that this cache lets one take")]
    CallTimeout { limit: Duration },
    #[error(
        "the key is being loaded by a load that waits for this one: it would wait for itself for ever"
    )]
    Recursive,
    #[error("{limit} keys are being loaded already, the most this cache allows at once")]
    Overloaded { limit: usize },
    #[error("the caller that was loading the embedding gave up, {rounds} times over")]
    Abandoned { rounds: u32 },
    #[error("{what} needs a tokio runtime, and there is none here")]
    NoRuntime { what: &'static str },
    #[error("{what} is 0; it must be at least 1")]
    Zero { what: &'static str },
    #[error("a content key is {limit} hexadecimal digits; this text is {bytes} bytes long")]
    ContentKeyLength { bytes: usize, limit: usize },
    #[error(
        "a content key is {limit} hexadecimal digits; at byte {index} of this text is {found:?}"
    )]
    ContentKeyDigit { index: usize, found: char, limit: usize },
    #[error("a time-to-live of {ttl:?} is over the limit of {limit:?}")]
    TtlTooLong { ttl: Duration, limit: Duration },
    #[error(
        "a time-to-live of {ttl:?} and {grace:?} for which stale entries are kept are together over the limit of {limit:?}"
    )]
    GraceTooLong { ttl: Duration, grace: Duration, limit: Duration },
    #[error("what was loaded is older than an invalidation, a removal or a value of its key")]
    Superseded,
    #[error("cannot {operation} the snapshot{}: {cause}", named(path))]
    SnapshotIo { operation: &'static str, path: String, cause: Arc<std::io::Error> },
    #[error("this is no snapshot of an embedding cache{}", named(path))]
    NotASnapshot { path: String },
    #[error("the head of the snapshot{} is damaged; nothing of it is loaded", named(path))]
    DamagedSnapshot { path: String },
    #[error(
        "the snapshot{} is of version {found}; this program reads version {known}",
        named(path)
    )]
    SnapshotVersion { path: String, found: u32, known: u32 },
    #[error("the keys of the snapshot{} are {found}, those of this cache {expected}", named(path))]
    SnapshotKeys { path: String, found: &'static str, expected: &'static str },
    #[cfg(feature = "tier")]
    #[error("the hasher was set after the second tier; it is to be set before")]
    TierBeforeHasher,
    #[cfg(feature = "tier")]
    #[error("not invalidated in the second tier: {cause}")]
    TierFailed { cause: Arc<crate::tier::TierError> },
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

/// How a file is named in a message; one that has no name is not.
fn named(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" {path}") }
}

impl ErrorKind {
    pub(crate) fn snapshot_io(
        operation: &'static str,
        path: &std::path::Path,
        cause: std::io::Error,
    ) -> Self {
        Self::SnapshotIo { operation, path: path.display().to_string(), cause: Arc::new(cause) }
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind.fmt(f)
    }
}

impl Error for CacheError {
    /// What the model call failed with, for [`is_load_failed`](Self::is_load_failed), or the
    /// operating system, for [`is_snapshot_io`](Self::is_snapshot_io).
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0.kind {
            ErrorKind::LoadFailed(cause) => Some(&**cause),
            ErrorKind::SnapshotIo { cause, .. } => Some(&**cause),
            #[cfg(feature = "tier")]
            ErrorKind::TierFailed { cause } => Some(&**cause),
            _ => None,
        }
    }
}

// A caller's error may not be so by itself; but nothing in a `CacheError` changes once it is made, so
// that no panic can leave it half changed.
impl std::panic::UnwindSafe for CacheError {}
impl std::panic::RefUnwindSafe for CacheError {}

impl fmt::Debug for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, vector } = &*self.0;
        f.debug_struct("CacheError").field("kind", kind).field("vector", vector).finish()
    }
}

impl CacheError {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, vector: None }))
    }

    pub(crate) fn giving_back(mut self, vector: EmbeddingVector) -> Self {
        self.0.vector = Some(vector);
        self
    }

    /// The deadline passed: while another thread held the lock, and then nothing was changed; or
    /// while the embedding was being loaded, which then goes on.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Timeout { .. } | ErrorKind::LoadTimeout { .. })
    }

    /// The model call of a `get_or_embed` answered with an error, which is this one's
    /// [`source`](std::error::Error::source). It is not cached: the next call tries again.
    #[must_use]
    pub fn is_load_failed(&self) -> bool {
        matches!(self.0.kind, ErrorKind::LoadFailed(_))
    }

    /// The model call of a `get_or_embed` panicked.
    #[must_use]
    pub fn is_load_panicked(&self) -> bool {
        matches!(self.0.kind, ErrorKind::LoadPanicked { .. })
    }

    /// The model answered more or fewer embeddings than it was asked for, so that nothing says
    /// which belongs to what.
    #[must_use]
    pub fn is_wrong_count(&self) -> bool {
        matches!(self.0.kind, ErrorKind::WrongCount { .. })
    }

    /// The model call took longer than
    /// [`load_timeout`](crate::EmbeddingCacheBuilder::load_timeout) and was ended: nothing of it is
    /// stored. A caller's own deadline is [`is_timeout`](Self::is_timeout).
    #[must_use]
    pub fn is_load_timeout(&self) -> bool {
        matches!(self.0.kind, ErrorKind::CallTimeout { .. })
    }

    /// A load asked, inside itself, for a key that is being loaded by a call which waits for this
    /// load, directly or through others: none of them would ever have ended.
    #[must_use]
    pub fn is_recursive(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Recursive)
    }

    /// As many keys as the cache allows are being loaded, or the queue before a model is full. Worth
    /// another try later.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Overloaded { .. })
    }

    /// The caller that was to load the embedding gave up: its future was dropped, or its runtime shut down.
    /// Worth another try.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Abandoned { .. })
    }

    /// The entry alone is over the limit of the cache (or that limit is 0 entries), so no eviction
    /// could make room for it. Nothing was evicted.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self.0.kind, ErrorKind::TooLarge { .. } | ErrorKind::NoCapacity)
    }

    /// Other operations held the room that this entry needed, or the locks to it, round after round.
    /// Worth another try.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Contended { .. })
    }

    /// The vector is empty, has a NaN or infinite component, or not the dimensions that the cache
    /// expects.
    #[must_use]
    pub fn is_invalid_vector(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::NonFinite { .. }
                | ErrorKind::EmptyVector
                | ErrorKind::WrongDimensions { .. }
        )
    }

    /// The key is longer than a cache stores, or a text that was to be read as a
    /// [`ContentKey`](crate::ContentKey) is none.
    #[must_use]
    pub fn is_invalid_key(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::KeyTooLong { .. }
                | ErrorKind::ContentKeyLength { .. }
                | ErrorKind::ContentKeyDigit { .. }
        )
    }

    /// The time-to-live, alone or with how long stale entries are kept beyond it, or the
    /// time-to-idle, is longer than the clock can count.
    #[must_use]
    pub fn is_invalid_ttl(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::TtlTooLong { .. }
                | ErrorKind::TtiTooLong { .. }
                | ErrorKind::GraceTooLong { .. }
        )
    }

    /// Something newer came while the value was being loaded.
    pub(crate) fn is_superseded(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Superseded)
    }

    /// The second tier could not do what it was asked to; the
    /// [`source`](std::error::Error::source) is its error.
    #[cfg(feature = "tier")]
    #[must_use]
    pub fn is_tier_failed(&self) -> bool {
        matches!(self.0.kind, ErrorKind::TierFailed { .. })
    }

    /// A snapshot could not be written or read: the [`source`](std::error::Error::source) is what the
    /// operating system, or the caller's reader or writer, has said.
    #[must_use]
    pub fn is_snapshot_io(&self) -> bool {
        matches!(self.0.kind, ErrorKind::SnapshotIo { .. })
    }

    /// What was to be loaded is no snapshot, or one of another version or for another kind of key, or
    /// its head is damaged.
    #[must_use]
    pub fn is_invalid_snapshot(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::NotASnapshot { .. }
                | ErrorKind::DamagedSnapshot { .. }
                | ErrorKind::SnapshotVersion { .. }
                | ErrorKind::SnapshotKeys { .. }
        )
    }

    /// A builder was given a configuration that no cache can have, or something that needs a tokio
    /// runtime was called where there is none.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        #[cfg(feature = "tier")]
        if matches!(self.0.kind, ErrorKind::TierBeforeHasher) {
            return true;
        }
        matches!(
            self.0.kind,
            ErrorKind::ShardCount { .. }
                | ErrorKind::NoLimit
                | ErrorKind::NoWeigher { .. }
                | ErrorKind::NoTimeToIdle
                | ErrorKind::Jitter { .. }
                | ErrorKind::NoRuntime { .. }
                | ErrorKind::Zero { .. }
        )
    }

    /// The vector that the operation had taken, if it had taken one.
    #[must_use]
    pub fn vector(&self) -> Option<&EmbeddingVector> {
        self.0.vector.as_ref()
    }

    /// Takes back the vector that the operation had taken, if it had taken one.
    #[must_use]
    pub fn into_vector(self) -> Option<EmbeddingVector> {
        self.0.vector
    }
}

/// What a model call failed with. An error of this crate stays what it is, so that a cache or a
/// [`Batcher`](crate::Batcher) behind another can be told by its predicates.
impl From<Box<dyn Error + Send + Sync>> for CacheError {
    fn from(cause: Box<dyn Error + Send + Sync>) -> Self {
        match cause.downcast::<Self>() {
            Ok(own) => *own,
            Err(cause) => ErrorKind::LoadFailed(Arc::from(cause)).into(),
        }
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

    /// What an insert that failed with `error` returns, of an entry that is still there, as then it
    /// always is.
    #[cold]
    pub(crate) fn of(error: CacheError, entry: Option<(K, V)>) -> Result<(), Self> {
        entry.map_or(Ok(()), |(key, value)| Err(Self { error, key, value }))
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
