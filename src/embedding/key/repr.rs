//! How a key is stored, hashed and compared, whichever kind of key it is.

use std::fmt::Debug;
use std::hash::Hash;

use equivalent::Equivalent;

use crate::error::CacheError;

use super::names::{ModelName, TenantName};

/// How a key is looked up and stored. A lookup allocates nothing; what is stored is compact and
/// gives the key back without loss.
pub trait KeyRepr: Clone + Eq + Hash + Debug + Send + Sync + 'static {
    /// The form that stands in a slot.
    type Stored: Clone + Eq + Hash + Send + Sync + 'static;
    /// The form to look up with; hashes as the stored one does.
    type Probe<'a>: Hash + Equivalent<Self::Stored> + Send + Sync
    where
        Self: 'a;

    /// The form to look up with of a key that is stored as nearly every key is: one form only, so that
    /// nothing is asked on the way of a hit. Hashes as the stored one does.
    type Usual<'a>: Hash + Equivalent<Self::Stored> + Send + Sync
    where
        Self: 'a;

    /// What an entry weighs beside its vector and the heap of its key, in bytes.
    const OVERHEAD: u64;

    fn probe(&self) -> Self::Probe<'_>;

    /// `None` for a key that is stored in another form.
    fn usual(&self) -> Option<Self::Usual<'_>>;

    /// The form that stands in a slot, of a key that is stored as nearly every key is.
    fn stored_usual(usual: Self::Usual<'_>) -> Self::Stored;

    /// # Errors
    ///
    /// The key is longer than a cache stores.
    fn to_stored(&self) -> Result<Self::Stored, CacheError>;

    fn from_stored(stored: &Self::Stored) -> Self;

    /// Bytes of the stored form beyond its slot.
    fn heap_bytes(stored: &Self::Stored) -> u64;

    /// The key that a specification makes: its 32 bytes, and the model as people read it.
    fn specified(bytes: [u8; 32], model_version: &str) -> Self;

    /// Whether the entry is one of `model`, in whatever revision. May be wrong by chance for the
    /// entry of another model, once in 2^32; never for one of this model. Allocates nothing.
    fn belongs_to_model(stored: &Self::Stored, model: &ModelName) -> bool;

    /// Whether the entry is one of `tenant`. May be wrong by chance for the entry of another or of
    /// none, once in 2^32; never for one of this tenant. Allocates nothing.
    fn belongs_to_tenant(stored: &Self::Stored, tenant: &TenantName) -> bool;

    /// Stands for the kind of key wherever keys are written down.
    const KIND: u8;

    /// Appends the key as a snapshot has it.
    fn write(&self, bytes: &mut Vec<u8>);

    /// Takes a key from the front of `bytes`; `None` if there is none.
    fn read(bytes: &mut &[u8]) -> Option<Self>;

    /// The 32 bytes by which a second tier knows the key; the tags of model and tenant first.
    #[cfg(feature = "tier")]
    fn tier_digest(&self) -> [u8; 32];

    /// The tags of model and tenant that begin [`tier_digest`](Self::tier_digest). Allocates
    /// nothing.
    #[cfg(feature = "tier")]
    fn tags(stored: &Self::Stored) -> ([u8; 4], [u8; 4]);

    /// The tag by which a second tier finds what `invalidate_model` was called with: at least
    /// all that [`belongs_to_model`](Self::belongs_to_model) finds.
    #[cfg(feature = "tier")]
    fn model_scope(model: &str) -> [u8; 4];
}

/// A key that an [`EmbeddingCache`](crate::EmbeddingCache) can be made for: [`CacheKey`](crate::CacheKey), which says
/// in words what a vector was computed from and is the default, or [`ContentKey`](crate::ContentKey), which says it in 32
/// bytes. A [`KeySpec`](crate::KeySpec) makes either, with the same digest.
///
/// Sealed: a key whose form in the cache, hash or comparison is wrong could return a wrong vector, so
/// these are not left to others.
///
/// # Examples
///
/// ```
/// use embedding_cache::{CacheKey, ContentKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingKey};
///
/// fn held<K: EmbeddingKey>(cache: &EmbeddingCache<K>) -> usize {
///     cache.info().size
/// }
///
/// let words: EmbeddingCache<CacheKey> = EmbeddingCache::builder().max_entries(10).build()?;
/// let digests = EmbeddingCacheBuilder::<ContentKey>::new().max_entries(10).build()?;
/// assert_eq!((held(&words), held(&digests)), (0, 0));
/// # Ok::<(), embedding_cache::CacheError>(())
/// ```
pub trait EmbeddingKey: KeyRepr {}

/// Both halves of a digest, to be hashed as numbers: of a slice the length would be hashed as well.
#[inline]
pub(super) fn halves(digest: &[u8; 32]) -> [u128; 2] {
    let (halves, _) = digest.as_chunks();
    [0, 1].map(|half| u128::from_ne_bytes(halves[half]))
}
