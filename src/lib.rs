//! A sharded, lock-striped, in-process cache for embedding servers: servers that turn text into
//! vectors of `f32`, thousands of requests at once.
//!
//! A miss costs milliseconds of a GPU or a paid call; a hit should cost nanoseconds, and thousands
//! of threads and tasks should not wait for each other to get it. So a key's hash chooses one of N
//! shards, and each shard has its own lock, its own order of eviction and its own cleanup guard.
//!
//! # Two caches
//!
//! - [`EmbeddingCache`] is the one to use in a server: async, with typed keys and vectors that are
//!   validated on the way in, loads that happen once, however many callers ask
//!   ([`get_or_embed_many`](EmbeddingCache::get_or_embed_many)), deadlines, and limits in entries and
//!   bytes.
//! - [`ShardedCache`] is the core below it: synchronous, for any key and any value that is cheap to
//!   clone.
//!
//! # Example
//!
//! ```
//! use embedding_cache::{CacheKey, EmbeddingCache};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let cache = EmbeddingCache::builder().max_bytes(256 << 20).build()?;
//! // What determines a vector beside the text.
//! let e5 = CacheKey::for_model("e5-base").revision("1").dimensions(2);
//!
//! let embed = || async { vec![0.6, 0.8] }; // your model
//! let vector = cache.get_or_embed(e5.text("red"), embed).await?;
//! assert_eq!(vector, [0.6, 0.8]);
//! assert_eq!(cache.get(&e5.text("red")).await.unwrap(), vector);
//! # Ok::<(), embedding_cache::CacheError>(())
//! # }).unwrap();
//! ```
//!
//! Where many requests miss at once, a [`Batcher`] makes one call of the model of what they ask for:
//!
//! ```
//! use embedding_cache::{Batcher, CacheKey, EmbeddingCache};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let cache = EmbeddingCache::builder().max_bytes(256 << 20).build()?;
//! let e5 = CacheKey::for_model("e5-base").revision("1");
//! let batcher = Batcher::builder().max_batch(64).build(|texts: Vec<String>| async move {
//!     texts.iter().map(|text| vec![text.len() as f32]).collect::<Vec<_>>() // your model
//! })?;
//!
//! let texts = ["red", "green"].map(String::from); // of one request
//! let keys: Vec<CacheKey> = texts.iter().map(|text| e5.text(text)).collect();
//! let answers = cache.get_or_embed_many(&keys, |missing| {
//!     let texts: Vec<String> = missing.select(&texts).cloned().collect();
//!     let batcher = batcher.clone();
//!     async move { batcher.embed_many(texts).await }
//! });
//! assert_eq!(answers.await[1].as_ref().unwrap(), &[5.0]);
//! # Ok::<(), embedding_cache::CacheError>(())
//! # }).unwrap();
//! ```
//!
//! # Consistency
//!
//! Per key, operations are linearizable: a `get` returns what the last finished `put` stored, or
//! what one that runs at the same time stores, or nothing; never another key's value. The limits
//! hold at every instant, from any thread. Aggregates (`len`, `stats`, iteration) are not a
//! snapshot of one instant while others write.
//!
//! # Trade-offs
//!
//! - The order of eviction is that of each shard. A cache of a few hundred entries has one shard and
//!   so an exact order; a larger one gives that up for locks that are not shared.
//! - Expiry is seen with the resolution of the operating system's coarse clock: an entry may be
//!   served for up to a tick (1 to 10 ms) beyond its time-to-live, never a nanosecond short of it.
//! - Slots of entries that left are used again but not given back before
//!   [`clear`](ShardedCache::clear); after a limit was lowered a lot, some 90 bytes for each entry
//!   that once was there stay.
//! - Values are shared, not copied: a vector that left the cache lives on as long as someone still
//!   holds it, and its bytes are then no longer counted.
//!
//! # Features
//!
//! All off by default:
//!
//! - `serde`: `Serialize` and `Deserialize` for keys, vectors, statistics.
//! - `metrics`: `EmbeddingCache::publish_metrics`, for the recorder of the `metrics` facade, and a
//!   histogram of load times.
//! - `tracing`: spans around model calls.
//! - `tier`, `tier-f16`: a second tier that processes share, see the module `tier`; the latter with
//!   values of two bytes a component.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod core;
mod embedding;
mod error;
mod hasher;
mod stats;
mod sync;
mod timer;
mod vector;

pub use crate::core::{
    Clock, EntryInfo, EvictionPolicy, Iter, MemoryPressure, RemovalCause, ShardStats, ShardedCache,
    ShardedCacheBuilder,
};
#[cfg(feature = "tier")]
pub use embedding::tier;
pub use embedding::{
    Batcher, BatcherBuilder, CacheKey, CleanupHandle, ContentKey, ENTRY_OVERHEAD, EmbeddingCache,
    EmbeddingCacheBuilder, EmbeddingKey, Entries, IntoEmbedding, IntoEmbeddings, KeySpec, Load,
    Missing, Role, Snapshot, SnapshotLoad, SnapshotProgress, SnapshotReport, Truncation,
};
pub use equivalent::Equivalent;
pub use error::{CacheError, InsertError};
pub use hasher::{DefaultHashBuilder, DefaultHasher};
pub use stats::{CacheInfo, CacheStats};
pub use vector::EmbeddingVector;

/// The README's examples, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The same for the document about keys.
#[cfg(doctest)]
#[doc = include_str!("../docs/keys.md")]
struct Keys;
