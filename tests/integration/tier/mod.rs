//! A cache with a second tier that does what the test says: reading, writing, faults, invalidation.
//!
//! Each fault that caches with two tiers are known for has a test of its name in `faults`.

#![cfg(all(feature = "tier", not(shuttle)))]

pub(crate) mod fake;
mod faults;
mod invalidation;
mod reading;
mod snapshots;
mod writing;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use embedding_cache::tier::SecondTier;
use embedding_cache::{CacheKey, EmbeddingCache};

use fake::Fake;

fn key(number: usize) -> CacheKey {
    CacheKey::for_model("e5-base").revision("1").text(&number.to_string())
}

fn keys(numbers: std::ops::Range<usize>) -> Vec<CacheKey> {
    numbers.map(key).collect()
}

fn vector(number: usize) -> Vec<f32> {
    vec![number as f32, 1.0, -0.5]
}

/// A process: a cache of its own on a store that others may have as well.
fn process(fake: &Fake) -> EmbeddingCache {
    process_with(SecondTier::new(fake.clone()))
}

fn process_with(tier: SecondTier) -> EmbeddingCache {
    EmbeddingCache::builder().max_entries(10_000).name("test").tier(tier).build().unwrap()
}

/// The model, and how often it was asked for a key.
#[derive(Debug, Clone, Default)]
struct Model(Arc<AtomicUsize>);

impl Model {
    fn asked(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// The vectors of keys `numbers`, each verified.
    async fn embed(&self, cache: &EmbeddingCache, numbers: std::ops::Range<usize>) {
        let (keys, from) = (keys(numbers.clone()), numbers.start);
        let answers = cache
            .get_or_embed_many(&keys, |missing| {
                self.0.fetch_add(missing.len(), Relaxed);
                let numbers: Vec<usize> =
                    missing.positions().iter().map(|position| from + position).collect();
                async move { numbers.into_iter().map(vector).collect::<Vec<_>>() }
            })
            .await;
        for (number, answer) in numbers.zip(answers) {
            assert_eq!(answer.unwrap(), vector(number));
        }
    }
}

/// Writes what is queued.
async fn flush(cache: &EmbeddingCache) {
    assert_eq!(cache.tier_flush(Duration::from_secs(20)).await, 0);
}
