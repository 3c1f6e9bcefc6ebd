//! A second tier for [`embedding-cache`](embedding_cache) in a local directory: what one run of a
//! process has embedded, the next one finds.
//!
//! ```
//! use embedding_cache::{CacheKey, EmbeddingCache};
//! use embedding_cache_disk::DiskTier;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let temporary = tempfile::tempdir()?;
//! # let directory = temporary.path();
//! let tier = DiskTier::builder(directory).max_bytes(1 << 30).open()?;
//! let cache = EmbeddingCache::builder().max_entries(10_000).tier(tier).build()?;
//! let e5 = CacheKey::for_model("e5-base");
//! let vector = cache.get_or_embed(e5.text("red"), || async { vec![0.6, 0.8] }).await?;
//! // Before the process ends: what is queued is written.
//! cache.tier_flush(std::time::Duration::from_secs(5)).await;
//! # assert_eq!(vector, vec![0.6, 0.8]);
//! # Ok(())
//! # }
//! ```
//!
//! One process at a time uses a directory. What it is asked for, for how long, and what happens when
//! it fails is the cache's: see [`embedding_cache::tier`]. Sizing and what survives which failure is
//! in `docs/tiers.md` of the repository.
//!
//! # Trade-offs
//!
//! - The oldest half leaves at once: entries are in two generations, and when the newer one is full
//!   the older one is deleted. An entry that is read in the older one is copied to the newer one, so
//!   what is used stays. No order of use is kept.
//! - Three threads: one writes, two read. A stalled `fsync` holds up writes, not reads.

#![forbid(unsafe_code)]

mod builder;
mod error;
mod nonces;
mod store;
mod tier;
mod usage;
mod worker;

pub use builder::DiskTierBuilder;
pub use error::OpenError;
pub use tier::DiskTier;
