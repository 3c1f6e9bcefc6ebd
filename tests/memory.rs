//! Memory, measured by a counting allocator against what the cache says of itself.
//!
//! Counted are the bytes asked of the allocator since the cache was made and not given back: the
//! texts of keys, the vectors, slots, index, the orders of eviction and expiry, counters, locks.
//! Each cache is filled to its limit and then churned with three times as many keys, as memory that
//! looks good before the first eviction may not after it. `--nocapture` shows the figures.

use std::future::Future;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use allocation_counter::measure;
use embedding_cache::{
    CacheKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingVector, EvictionPolicy,
    MemoryPressure,
};

const MODEL: &str = "text-embedding-3-small";
/// The texts of a key: a SHA-256 in hexadecimal digits, and the model.
const KEY_BYTES: u64 = 64 + MODEL.len() as u64;

/// A key as servers make them.
fn key(i: usize) -> CacheKey {
    // Spread over all digits, as those of a digest are.
    let word = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    CacheKey::new(format!("{word:016x}").repeat(4), MODEL)
}

/// The same hashes each time, so that shards fill in the same way and the figures can be repeated.
type Hashes = BuildHasherDefault<DefaultHasher>;
type Cache = EmbeddingCache<CacheKey, Hashes>;
type Builder = EmbeddingCacheBuilder<CacheKey, Hashes>;

/// The shared allocation of a vector: its components and two counts.
const fn vector_bytes(dimensions: usize) -> u64 {
    4 * dimensions as u64 + 16
}

/// The order of `EmbeddingCache::new` and the default one, each with all there is to keep of an
/// entry, and with the least.
fn builders() -> Vec<(String, Builder)> {
    use {EvictionPolicy::*, MemoryPressure::*};

    let mut builders = Vec::new();
    for policy in [Lru, S3Fifo, HitDensity] {
        let builder = || EmbeddingCache::builder().hasher(Hashes::default()).eviction(policy);
        builders.push((format!("{policy:?}"), builder()));
        let all = builder().memory_pressure(LargestFirst).time_to_live(Duration::from_secs(3600));
        builders.push((format!("{policy:?}, LargestFirst, with a time-to-live"), all));
    }
    builders
}

/// A cache with the bytes that it takes.
struct Measured {
    cache: Cache,
    counted: u64,
}

impl Measured {
    /// Fills the cache that `builder` makes with `entries`, its limit, and churns it.
    fn churned(builder: Builder, entries: usize, dimensions: usize) -> Self {
        let components = vec![0.5; dimensions];
        let mut cache = None;
        let counted = measure(|| {
            let made = builder.max_entries(entries).build().unwrap();
            for i in 0..4 * entries {
                made.put_blocking(key(i), EmbeddingVector::from(&components[..])).unwrap();
            }
            cache = Some(made);
        });
        let cache = cache.unwrap();
        assert_eq!(cache.info().size, entries, "the cache is full");
        Self { cache, counted: counted.bytes_current as u64 }
    }

    /// What the cache says it holds, as a part of what the allocator counted.
    fn ratio(&self) -> f64 {
        self.cache.info().memory_bytes as f64 / self.counted as f64
    }

    /// Bytes for each entry beyond its key's text and its vector.
    fn overhead(&self, dimensions: usize) -> f64 {
        let entry = (KEY_BYTES + vector_bytes(dimensions)) as f64;
        self.counted as f64 / self.cache.info().size as f64 - entry
    }
}

fn assert_weight_is_within_a_tenth(entries: usize, dimensions: usize, shards: usize) {
    for (which, builder) in builders() {
        let measured = Measured::churned(builder.shards(shards), entries, dimensions);
        let (ratio, overhead) = (measured.ratio(), measured.overhead(dimensions));
        let which = format!("{entries} × {dimensions}-d, {shards} shards, {which}");
        println!("{which}: weight is {ratio:.3} of the memory, overhead {overhead:.1} bytes");
        assert!((0.9..=1.1).contains(&ratio), "{which}: {ratio:.3}");
    }
}

#[test]
fn the_weight_of_768_dimensions_is_within_a_tenth_of_the_memory() {
    assert_weight_is_within_a_tenth(10_000, 768, 8);
}

#[test]
fn the_weight_of_384_dimensions_is_within_a_tenth_of_the_memory() {
    assert_weight_is_within_a_tenth(10_000, 384, 8);
}

#[test]
fn the_weight_of_small_vectors_is_within_a_tenth_of_the_memory() {
    for shards in [1, 8] {
        assert_weight_is_within_a_tenth(20_000, 16, shards);
    }
}

/// The number of shards grows with the processors, to at most one for 256 entries.
#[test]
fn the_weight_is_within_a_tenth_of_the_memory_with_the_shards_of_a_large_machine() {
    assert_weight_is_within_a_tenth(20_000, 16, 64);
}

fn assert_overhead_is_at_most_130_bytes(shards: usize) {
    for (which, builder) in builders() {
        let overhead = Measured::churned(builder.shards(shards), 50_000, 8).overhead(8);
        println!("50000 × 8-d, {shards} shards, {which}: overhead {overhead:.1} bytes");
        assert!(overhead <= 130.0, "{shards} shards, {which}: {overhead:.1}");
    }
}

#[test]
fn an_entry_takes_at_most_130_bytes_beyond_its_key_and_vector() {
    assert_overhead_is_at_most_130_bytes(8);
}

#[test]
fn an_entry_takes_at_most_130_bytes_more_with_the_shards_of_a_large_machine() {
    assert_overhead_is_at_most_130_bytes(128);
}

/// The answer of a future that may yield, without a runtime that might allocate for it.
fn drive<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return answer;
        }
    }
}

#[test]
fn clear_gives_the_memory_back() {
    for (which, builder) in builders() {
        let Measured { cache, counted } = Measured::churned(builder.shards(8), 20_000, 16);
        let freed = measure(|| drive(cache.clear())).bytes_current;
        let left = counted as i64 + freed;
        println!("{which}: {left} of {counted} bytes left after clear");
        assert!((0..counted as i64 / 20).contains(&left), "{which}: {left} of {counted}");
    }
}
