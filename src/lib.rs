//! A sharded, lock-striped, in-process cache for high-concurrency embedding servers.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod baseline;
mod embedding;
mod error;
mod hasher;
mod sharded;
mod stats;
mod sync;
mod vector;

pub use embedding::{CacheKey, ENTRY_OVERHEAD, EmbeddingCache, EmbeddingCacheBuilder};
pub use equivalent::Equivalent;
pub use error::{CacheError, InsertError};
pub use hasher::{DefaultHashBuilder, DefaultHasher};
pub use sharded::{
    Clock, EntryInfo, EvictionPolicy, Iter, MemoryPressure, RemovalCause, ShardStats, ShardedCache,
    ShardedCacheBuilder,
};
pub use stats::{CacheInfo, CacheStats};
pub use vector::EmbeddingVector;
