//! A second tier: a store outside the process that many processes share, or that outlives one.
//!
//! What a store has to do is the trait [`Tier`], which knows keys and bytes and nothing of vectors.
//! Time-outs, the breaker, queues, the form of values and the counts are the cache's, so that every
//! tier behaves alike. Crates with tiers: `embedding-cache-redis`.

// Until the guard is there only tests call all of it.
#![cfg_attr(not(test), allow(dead_code))]

mod contract;
mod key;
mod namespace;
mod wire;

pub use contract::{BoxFuture, Lookup, Tier, TierEntry, TierError, TierErrorKind};
pub use key::TierKey;
pub use namespace::{Namespace, Nonce, Scope};

pub(crate) use key::texts_digest;
