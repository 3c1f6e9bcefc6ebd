//! A second tier for [`embedding-cache`](embedding_cache) on Redis or Valkey, a single server or a
//! cluster: processes that share one embed each text once.
//!
//! ```no_run
//! use embedding_cache::tier::SecondTier;
//! use embedding_cache::{CacheKey, EmbeddingCache};
//! use embedding_cache_redis::RedisTier;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let tier = RedisTier::builder("redis://cache:6379").prefix("search").connect().await?;
//! let cache = EmbeddingCache::builder()
//!     .max_bytes(1 << 30)
//!     .tier(SecondTier::new(tier).authenticate(b"the same in all processes"))
//!     .build()?;
//! let e5 = CacheKey::for_model("e5-base");
//! let vector = cache.get_or_embed(e5.text("red"), || async { vec![0.6, 0.8] }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! What it is asked for, for how long, and what happens when it fails is the cache's: see
//! [`embedding_cache::tier`]. How to run a server for it, and what is promised between processes, is
//! in `docs/tiers.md` of the repository.
//!
//! # Features
//!
//! - `tls`: `rediss://` addresses.
//! - `f16`: values of two bytes a component
//!   (`embedding_cache::tier::SecondTier::half_precision`).

#![forbid(unsafe_code)]

mod builder;
mod connections;
mod error;
mod subscription;
mod tier;

pub use builder::RedisTierBuilder;
pub use error::ConnectError;
pub use tier::RedisTier;
