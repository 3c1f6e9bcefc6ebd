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
    CacheKey, ContentKey, ENTRY_OVERHEAD, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingKey,
    EmbeddingVector, EvictionPolicy, MemoryPressure,
};

const MODEL: &str = "text-embedding-3-small";

/// A key as servers make them.
trait Kind: EmbeddingKey {
    const NAME: &str;
    /// Its texts.
    const BYTES: u64;
    /// What the weight of an entry has beside its texts and its vector.
    const BESIDE: u64;
    /// The fewest dimensions for which the weight is promised to be within a tenth: the less there is
    /// beside it, the more it counts that the overhead is a mean.
    const LEAST: usize;

    fn nth(i: usize) -> Self;
}

/// A SHA-256 in hexadecimal digits, and the model: stored without its texts.
impl Kind for CacheKey {
    const NAME: &str = "CacheKey";
    const BYTES: u64 = 0;
    const BESIDE: u64 = ENTRY_OVERHEAD;
    const LEAST: usize = 64;

    fn nth(i: usize) -> Self {
        Self::new(ContentKey::nth(i).to_hex(), MODEL)
    }
}

/// The slot is 8 bytes smaller.
impl Kind for ContentKey {
    const NAME: &str = "ContentKey";
    const BYTES: u64 = 0;
    const BESIDE: u64 = ENTRY_OVERHEAD - 8;
    const LEAST: usize = 64;

    fn nth(i: usize) -> Self {
        // Spread over all digits, as those of a digest are.
        let word = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&word.to_be_bytes()));
        Self::from_bytes(bytes)
    }
}

/// The same hashes each time, so that shards fill in the same way and the figures can be repeated.
type Hashes = BuildHasherDefault<DefaultHasher>;
type Cache<K> = EmbeddingCache<K, Hashes>;
type Builder<K> = EmbeddingCacheBuilder<K, Hashes>;

/// The shared allocation of a vector: its components and two counts.
const fn vector_bytes(dimensions: usize) -> u64 {
    4 * dimensions as u64 + 16
}

/// The order of `EmbeddingCache::new` and the default one, each with all there is to keep of an
/// entry, and with the least.
fn builders<K: Kind>() -> Vec<(String, Builder<K>)> {
    use {EvictionPolicy::*, MemoryPressure::*};

    let mut builders = Vec::new();
    for policy in [Lru, S3Fifo, HitDensity] {
        let builder =
            || EmbeddingCacheBuilder::<K>::new().hasher(Hashes::default()).eviction(policy);
        builders.push((format!("{}, {policy:?}", K::NAME), builder()));
        let all = builder().memory_pressure(LargestFirst).time_to_live(Duration::from_secs(3600));
        builders.push((format!("{}, {policy:?}, LargestFirst, with a time-to-live", K::NAME), all));
    }
    builders
}

/// A cache with the bytes that it takes.
struct Measured<K: Kind> {
    cache: Cache<K>,
    counted: u64,
}

impl<K: Kind> Measured<K> {
    /// Fills the cache that `builder` makes with `entries`, its limit, and churns it.
    fn churned(builder: Builder<K>, entries: usize, dimensions: usize) -> Self {
        let components = vec![0.5; dimensions];
        let mut cache = None;
        let counted = measure(|| {
            let made = builder.max_entries(entries).build().unwrap();
            for i in 0..4 * entries {
                made.put_blocking(K::nth(i), EmbeddingVector::from(&components[..])).unwrap();
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
        let entry = (K::BYTES + vector_bytes(dimensions)) as f64;
        self.counted as f64 / self.cache.info().size as f64 - entry
    }
}

fn assert_weight_is_within_a_tenth(entries: usize, dimensions: usize, shards: usize) {
    assert_weight_of::<CacheKey>(entries, dimensions.max(CacheKey::LEAST), shards);
    assert_weight_of::<ContentKey>(entries, dimensions.max(ContentKey::LEAST), shards);
}

fn assert_weight_of<K: Kind>(entries: usize, dimensions: usize, shards: usize) {
    for (which, builder) in builders::<K>() {
        let measured = Measured::churned(builder.shards(shards), entries, dimensions);
        let (ratio, overhead) = (measured.ratio(), measured.overhead(dimensions));
        let which = format!("{entries} × {dimensions}-d, {shards} shards, {which}");
        println!("{which}: weight is {ratio:.3} of the memory, overhead {overhead:.1} bytes");
        assert!((0.9..=1.1).contains(&ratio), "{which}: {ratio:.3}");
        let weight = entries as u64 * (K::BYTES + vector_bytes(dimensions) + K::BESIDE);
        assert_eq!(measured.cache.info().memory_bytes, weight, "{which}: as documented");
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

fn assert_overhead_is_at_most_166_bytes(shards: usize) {
    assert_overhead_of::<CacheKey>(shards);
    assert_overhead_of::<ContentKey>(shards);
}

fn assert_overhead_of<K: Kind>(shards: usize) {
    for (which, builder) in builders::<K>() {
        let overhead = Measured::churned(builder.shards(shards), 50_000, 8).overhead(8);
        println!("50000 × 8-d, {shards} shards, {which}: overhead {overhead:.1} bytes");
        // As much less as the key takes less of the slot.
        let most = 166 + K::BESIDE - ENTRY_OVERHEAD;
        assert!(overhead <= most as f64, "{shards} shards, {which}: {overhead:.1}");
    }
}

#[test]
fn an_entry_takes_at_most_166_bytes_beyond_its_vector() {
    assert_overhead_is_at_most_166_bytes(8);
}

#[test]
fn an_entry_takes_at_most_166_bytes_more_with_the_shards_of_a_large_machine() {
    assert_overhead_is_at_most_166_bytes(128);
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
    for (which, builder) in builders::<CacheKey>() {
        let Measured { cache, counted } = Measured::churned(builder.shards(8), 20_000, 16);
        let freed = measure(|| drive(cache.clear())).bytes_current;
        let left = counted as i64 + freed;
        println!("{which}: {left} of {counted} bytes left after clear");
        assert!((0..counted as i64 / 20).contains(&left), "{which}: {left} of {counted}");
    }
}
