//! Keys: what a user names an embedding by, and the form in which the cache stores it.

mod cache_key;
mod content_key;
mod framing;
mod hex;
mod interner;
pub(super) mod names;
pub(crate) mod repr;
mod spec;
mod stored;
#[cfg(feature = "tier")]
mod tier;

pub use cache_key::CacheKey;
pub use content_key::ContentKey;
pub use repr::EmbeddingKey;
pub use spec::{KeySpec, Role, Truncation};

#[cfg(test)]
mod tests;
