//! Keys: what a user names an embedding by, and the form in which the cache stores it.

mod cache_key;
mod stored;

use form::Form;

pub use cache_key::CacheKey;

/// A key that an [`EmbeddingCache`](crate::EmbeddingCache) can be made for: [`CacheKey`], which says
/// in words what a vector was computed from.
///
/// Sealed: how a key is stored, hashed and compared is what keeps a wrong vector from being
/// returned, and is not left to others.
pub trait EmbeddingKey: Form {}

pub(crate) mod form {
    use std::fmt::Debug;
    use std::hash::Hash;

    use equivalent::Equivalent;

    use crate::error::CacheError;

    /// How a key is looked up and stored. A lookup allocates nothing; what is stored is compact and
    /// gives the key back without loss.
    pub trait Form: Clone + Eq + Hash + Debug + Send + Sync + 'static {
        /// The form that stands in a slot.
        type Stored: Clone + Eq + Hash + Send + Sync + 'static;
        /// The form to look up with; hashes as the stored one does.
        type Probe<'a>: Hash + Equivalent<Self::Stored> + Send + Sync
        where
            Self: 'a;

        fn probe(&self) -> Self::Probe<'_>;

        /// # Errors
        ///
        /// The key is longer than a cache stores.
        fn to_stored(&self) -> Result<Self::Stored, CacheError>;

        fn from_stored(stored: &Self::Stored) -> Self;

        /// Bytes of the stored form beyond its slot.
        fn heap_bytes(stored: &Self::Stored) -> u64;
    }
}
