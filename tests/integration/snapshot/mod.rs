//! Snapshots in files: what stays after a kill, what is refused, and loading while the cache serves.

#![cfg(not(shuttle))]

mod files;
mod killed;
mod serving;

use embedding_cache::{CacheKey, EmbeddingCache};

fn key(number: usize) -> CacheKey {
    CacheKey::for_model("e5-base").text(&number.to_string())
}

fn vector(number: usize, dimensions: usize) -> Vec<f32> {
    (0..dimensions).map(|i| (number * 31 + i) as f32).collect()
}

fn filled(entries: usize, dimensions: usize) -> EmbeddingCache {
    let cache = EmbeddingCache::builder().max_entries(2 * entries + 20).build().unwrap();
    for number in 0..entries {
        cache.put_blocking(key(number), vector(number, dimensions)).unwrap();
    }
    cache
}

fn empty() -> EmbeddingCache {
    EmbeddingCache::builder().max_bytes(1 << 30).build().unwrap()
}
