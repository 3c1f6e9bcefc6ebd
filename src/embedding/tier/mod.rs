//! A second tier: a store outside the process that many processes share, or that outlives one.
//!
//! What a store has to do is the trait [`Tier`], which knows keys and bytes and nothing of vectors.
//! Time-outs, the breaker, queues, the form of values and the counts are the cache's, so that every
//! tier behaves alike. Crates with tiers: `embedding-cache-redis`, `embedding-cache-disk`.

mod attached;
mod breaker;
mod contract;
mod face;
mod guard;
mod key;
mod namespace;
mod options;
mod reader;
mod saved;
mod stats;
mod wire;
mod writer;

use super::{EmbeddingKey, Inner};

pub use contract::{BoxFuture, Lookup, Tier, TierEntry, TierError, TierErrorKind};
pub use key::TierKey;
pub use namespace::{Namespace, Nonce, Scope};
pub use options::SecondTier;
pub use stats::TierStats;

pub(crate) use attached::{Attached, ToAttach};
pub(crate) use reader::ask;
pub(crate) use saved::Fits;

/// The time of day by the clock of the cache.
fn unix_millis<K: EmbeddingKey, S>(inner: &Inner<K, S>) -> u64 {
    // Before 1970 there are no tiers.
    u64::try_from(inner.core.wall_time().timestamp_millis()).unwrap_or(0)
}

/// The same by that of the system, where the cache is gone.
fn system_millis() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0)
}
