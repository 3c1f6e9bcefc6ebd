//! The operations whose instructions are counted. Each function does [`OPERATIONS`] of its kind in a
//! cache that its `setup` made, which is not counted; the loop around them is (`the_loop`).
//!
//! Run by `cargo run -p instructions`; see the README beside.
//!
//! Every run must execute the same instructions, so hashers have fixed keys, keys are those of
//! consecutive numbers, the shards do not go by the machine's processors, and the clock, where one is
//! read, stands still. Values share one vector: its memory is no part of an operation. A function
//! gives back what it was given, so that dropping the cache is not counted either.

#![allow(missing_docs, reason = "what gungraun's macros make is public and undocumented")]

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ahash::RandomState;
use embedding_cache::{
    CacheKey, Clock, ContentKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingKey,
    EmbeddingVector, EvictionPolicy, KeySpec, MemoryPressure, ShardedCache, ShardedCacheBuilder,
};
use gungraun::Callgrind;
use gungraun::prelude::*;
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{OptionsBuilder, UnitWeighter};

/// How often each function does its operation.
const OPERATIONS: usize = instructions::OPERATIONS as usize;
/// Keys of a batch; batches are counted by the key.
const BATCH: usize = 64;
const SHARDS: usize = 8;
const DIMENSIONS: usize = 768;

type Core = ShardedCache<ContentKey, EmbeddingVector, RandomState>;
type Door<K> = EmbeddingCache<K, RandomState>;
type Quick = quick_cache::sync::Cache<ContentKey, EmbeddingVector, UnitWeighter, RandomState>;

/// A cache, and with what it will be asked so often.
struct Prepared<C, A> {
    cache: C,
    arguments: Vec<A>,
}

/// What setup does to any of the caches; to ask for a key counts as a use of it.
trait Cache<K> {
    fn store(&self, key: K, value: EmbeddingVector);
    fn has(&self, key: &K) -> bool;
}

impl Cache<ContentKey> for Core {
    fn store(&self, key: ContentKey, value: EmbeddingVector) {
        self.insert(key, value).expect("room");
    }

    fn has(&self, key: &ContentKey) -> bool {
        self.get(key).is_some()
    }
}

impl<K: EmbeddingKey> Cache<K> for Door<K> {
    fn store(&self, key: K, value: EmbeddingVector) {
        self.put_blocking(key, value).expect("room");
    }

    fn has(&self, key: &K) -> bool {
        self.get_blocking(key).is_some()
    }
}

impl Cache<ContentKey> for Quick {
    fn store(&self, key: ContentKey, value: EmbeddingVector) {
        self.insert(key, value);
    }

    fn has(&self, key: &ContentKey) -> bool {
        self.get(key).is_some()
    }
}

struct Standing;

impl Clock for Standing {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(1000)
    }
}

fn hasher() -> RandomState {
    RandomState::with_seeds(1, 2, 3, 4)
}

/// The keys of so many numbers from `first` on.
fn keys<K>(spec: &KeySpec<K>, first: usize) -> Vec<K>
where
    K: EmbeddingKey,
{
    (first..first + OPERATIONS).map(|number| spec.text(&number.to_string())).collect()
}

fn content_keys(first: usize) -> Vec<ContentKey> {
    keys(&ContentKey::for_model("intfloat/multilingual-e5-base").revision("1"), first)
}

fn cache_keys() -> Vec<CacheKey> {
    keys(&CacheKey::for_model("intfloat/multilingual-e5-base").revision("1"), 0)
}

fn vector() -> EmbeddingVector {
    (0..DIMENSIONS).map(|at| at as f32).collect()
}

fn core(room: usize) -> ShardedCacheBuilder<ContentKey, EmbeddingVector, RandomState> {
    ShardedCache::builder().max_entries(room).shards(SHARDS).hasher(hasher())
}

fn door<K: EmbeddingKey>() -> Door<K> {
    EmbeddingCacheBuilder::<K>::new()
        .max_entries(2 * OPERATIONS)
        .shards(SHARDS)
        .hasher(hasher())
        .build()
        .expect("a cache")
}

fn quick(room: usize) -> Quick {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(room)
        .weight_capacity(room as u64)
        .shards(SHARDS)
        .build()
        .expect("options");
    Quick::with_options(options, UnitWeighter, hasher(), DefaultLifecycle::default())
}

/// With every key stored and often hit: the counters of the policies are as high as they go, as
/// those of the keys are that most hits are for.
fn warm<K: Clone, C: Cache<K>>(cache: C, keys: Vec<K>) -> Prepared<C, K> {
    let value = vector();
    for key in &keys {
        cache.store(key.clone(), value.clone());
    }
    for _ in 0..4 {
        for key in &keys {
            assert!(cache.has(key), "all have room");
        }
    }
    Prepared { cache, arguments: keys }
}

/// Warm, and to store the same keys again.
fn to_replace<K: Clone, C: Cache<K>>(cache: C, keys: Vec<K>) -> Prepared<C, (K, EmbeddingVector)> {
    let Prepared { cache, arguments } = warm(cache, keys);
    let value = vector();
    let arguments = arguments.into_iter().map(|key| (key, value.clone())).collect();
    Prepared { cache, arguments }
}

/// Full, after as many evictions as it has room, half of what came last hit once if it is still
/// there; and to store other keys.
fn to_evict<C: Cache<ContentKey>>(cache: C) -> Prepared<C, (ContentKey, EmbeddingVector)> {
    let value = vector();
    for first in [0, OPERATIONS] {
        for key in content_keys(first) {
            cache.store(key, value.clone());
        }
    }
    for key in content_keys(OPERATIONS).iter().step_by(2) {
        cache.has(key);
    }
    let arguments =
        content_keys(2 * OPERATIONS).into_iter().map(|key| (key, value.clone())).collect();
    Prepared { cache, arguments }
}

fn core_of(policy: EvictionPolicy) -> Prepared<Core, ContentKey> {
    let cache = core(2 * OPERATIONS).eviction(policy).build().expect("a cache");
    warm(cache, content_keys(0))
}

fn core_that_expires() -> Prepared<Core, ContentKey> {
    let cache = core(2 * OPERATIONS)
        .time_to_live(Duration::from_secs(3600))
        .clock(Arc::new(Standing))
        .build()
        .expect("a cache");
    warm(cache, content_keys(0))
}

/// As the documented constructor makes it.
fn core_as_documented() -> Prepared<Core, ContentKey> {
    let cache = core(2 * OPERATIONS)
        .max_weight(2 * OPERATIONS as u64)
        .weigher(|_, _| 1)
        .eviction(EvictionPolicy::Lru)
        .memory_pressure(MemoryPressure::LargestFirst)
        .time_to_live(Duration::from_secs(3600))
        .clock(Arc::new(Standing));
    warm(cache.build().expect("a cache"), content_keys(0))
}

/// As a user has it, with the system's clock. No instruction depends on what that says, as nothing
/// expires meanwhile; but under valgrind the library asks the kernel, so that of the reading itself
/// only the call is counted.
fn core_that_expires_by_the_system() -> Prepared<Core, ContentKey> {
    let cache = core(2 * OPERATIONS).time_to_live(Duration::from_secs(36_000));
    warm(cache.build().expect("a cache"), content_keys(0))
}

fn core_without_them() -> Prepared<Core, ContentKey> {
    let prepared = core_of(EvictionPolicy::default());
    Prepared { arguments: content_keys(OPERATIONS), ..prepared }
}

fn core_to_replace() -> Prepared<Core, (ContentKey, EmbeddingVector)> {
    to_replace(core(2 * OPERATIONS).build().expect("a cache"), content_keys(0))
}

fn core_to_evict(policy: EvictionPolicy) -> Prepared<Core, (ContentKey, EmbeddingVector)> {
    to_evict(core(OPERATIONS).eviction(policy).build().expect("a cache"))
}

/// As the documented constructor makes it, at its limit on memory.
fn core_to_evict_largest() -> Prepared<Core, (ContentKey, EmbeddingVector)> {
    let cache = core(OPERATIONS)
        .max_entries(2 * OPERATIONS)
        .max_weight(OPERATIONS as u64)
        .weigher(|_, _| 1)
        .eviction(EvictionPolicy::Lru)
        .memory_pressure(MemoryPressure::LargestFirst);
    to_evict(cache.build().expect("a cache"))
}

/// Requests of which some keys have many and most have few, in no order, and a cache that has room for
/// a part of the keys and has had such requests before.
fn core_of_requests(policy: EvictionPolicy) -> Prepared<Core, (ContentKey, EmbeddingVector)> {
    let cache = core(OPERATIONS / 4).eviction(policy).build().expect("a cache");
    let (keys, value) = (content_keys(0), vector());
    let mut state = 1_u64;
    let mut requests = (0..4 * OPERATIONS).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        let part = (state >> 32) as f64 / f64::from(u32::MAX);
        keys[(part * part * part * (OPERATIONS - 1) as f64) as usize]
    });
    for key in requests.by_ref().take(3 * OPERATIONS) {
        request(&cache, key, value.clone());
    }
    let arguments = requests.map(|key| (key, value.clone())).collect();
    Prepared { cache, arguments }
}

/// Whether the key was there; it is afterwards.
fn request(cache: &Core, key: ContentKey, value: EmbeddingVector) -> bool {
    let found = cache.get(&key).is_some();
    if !found {
        cache.store(key, value);
    }
    found
}

fn expiring(room: usize) -> Core {
    core(room)
        .eviction(EvictionPolicy::S3Fifo)
        .time_to_live(Duration::from_secs(3600))
        .clock(Arc::new(Standing))
        .build()
        .expect("a cache")
}

fn core_that_expires_to_replace() -> Prepared<Core, (ContentKey, EmbeddingVector)> {
    to_replace(expiring(2 * OPERATIONS), content_keys(0))
}

fn core_that_expires_to_evict() -> Prepared<Core, (ContentKey, EmbeddingVector)> {
    to_evict(expiring(OPERATIONS))
}

fn door_by_content_key() -> Prepared<Door<ContentKey>, ContentKey> {
    warm(door(), content_keys(0))
}

fn door_by_cache_key() -> Prepared<Door<CacheKey>, CacheKey> {
    warm(door(), cache_keys())
}

fn door_to_replace() -> Prepared<Door<CacheKey>, (CacheKey, EmbeddingVector)> {
    to_replace(door(), cache_keys())
}

fn quick_warm() -> Prepared<Quick, ContentKey> {
    warm(quick(2 * OPERATIONS), content_keys(0))
}

fn quick_without_them() -> Prepared<Quick, ContentKey> {
    Prepared { arguments: content_keys(OPERATIONS), ..quick_warm() }
}

fn quick_to_replace() -> Prepared<Quick, (ContentKey, EmbeddingVector)> {
    to_replace(quick(2 * OPERATIONS), content_keys(0))
}

fn quick_to_evict() -> Prepared<Quick, (ContentKey, EmbeddingVector)> {
    to_evict(quick(OPERATIONS))
}

/// The answer of a future that has it at once: one poll, without an executor, so that what is
/// counted of a future is its own.
#[inline]
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("nobody else is here"),
    }
}

/// Does `operation` with each argument by reference.
#[inline(always)]
fn with_each<C, A, R>(prepared: Prepared<C, A>, operation: impl Fn(&C, &A) -> R) -> Prepared<C, A> {
    for argument in &prepared.arguments {
        black_box(operation(&prepared.cache, black_box(argument)));
    }
    prepared
}

/// Does `operation` with each batch of arguments.
#[inline(always)]
fn with_batches<C, A, R>(
    prepared: Prepared<C, A>,
    operation: impl Fn(&C, &[A]) -> R,
) -> Prepared<C, A> {
    for batch in prepared.arguments.chunks_exact(BATCH) {
        black_box(operation(&prepared.cache, black_box(batch)));
    }
    prepared
}

/// Does `operation` with each pair of key and value, which it takes.
#[inline(always)]
fn taking_each<C, A, R>(prepared: Prepared<C, A>, operation: impl Fn(&C, A) -> R) -> C {
    let Prepared { cache, arguments } = prepared;
    for argument in arguments {
        black_box(operation(&cache, black_box(argument)));
    }
    cache
}

// The loop itself, which is in every other count.

#[library_benchmark]
#[bench::nothing(setup = quick_warm, args = ())]
fn the_loop(prepared: Prepared<Quick, ContentKey>) -> Prepared<Quick, ContentKey> {
    with_each(prepared, |_, _| ())
}

// One key.

#[library_benchmark]
#[bench::s3_fifo(setup = core_of, args = (EvictionPolicy::S3Fifo))]
#[bench::hit_density(setup = core_of, args = (EvictionPolicy::HitDensity))]
#[bench::lru(setup = core_of, args = (EvictionPolicy::Lru))]
#[bench::time_to_live(setup = core_that_expires, args = ())]
#[bench::as_documented(setup = core_as_documented, args = ())]
#[bench::system_clock(setup = core_that_expires_by_the_system, args = ())]
#[bench::miss(setup = core_without_them, args = ())]
fn core_get(prepared: Prepared<Core, ContentKey>) -> Prepared<Core, ContentKey> {
    with_each(prepared, |cache, key| cache.get(key))
}

#[library_benchmark]
#[bench::hit(setup = quick_warm, args = ())]
#[bench::miss(setup = quick_without_them, args = ())]
fn quick_cache_get(prepared: Prepared<Quick, ContentKey>) -> Prepared<Quick, ContentKey> {
    with_each(prepared, |cache, key| cache.get(key))
}

#[library_benchmark]
#[bench::hit(setup = door_by_content_key, args = ())]
fn content_key_get_blocking(
    prepared: Prepared<Door<ContentKey>, ContentKey>,
) -> Prepared<Door<ContentKey>, ContentKey> {
    with_each(prepared, |cache, key| cache.get_blocking(key))
}

#[library_benchmark]
#[bench::hit(setup = door_by_cache_key, args = ())]
fn cache_key_get_blocking(
    prepared: Prepared<Door<CacheKey>, CacheKey>,
) -> Prepared<Door<CacheKey>, CacheKey> {
    with_each(prepared, |cache, key| cache.get_blocking(key))
}

#[library_benchmark]
#[bench::hit(setup = door_by_cache_key, args = ())]
fn cache_key_get(
    prepared: Prepared<Door<CacheKey>, CacheKey>,
) -> Prepared<Door<CacheKey>, CacheKey> {
    with_each(prepared, |cache, key| ready(cache.get(key)))
}

// Batches.

#[library_benchmark]
#[bench::hits(setup = core_of, args = (EvictionPolicy::default()))]
fn core_get_many(prepared: Prepared<Core, ContentKey>) -> Prepared<Core, ContentKey> {
    with_batches(prepared, |cache, keys| cache.get_many(keys))
}

#[library_benchmark]
#[bench::hits(setup = door_by_cache_key, args = ())]
fn cache_key_get_many(
    prepared: Prepared<Door<CacheKey>, CacheKey>,
) -> Prepared<Door<CacheKey>, CacheKey> {
    with_batches(prepared, |cache, keys| ready(cache.get_many(keys)))
}

// Writes.

#[library_benchmark]
#[bench::replace(setup = core_to_replace, args = ())]
#[bench::evict_s3_fifo(setup = core_to_evict, args = (EvictionPolicy::S3Fifo))]
#[bench::evict_hit_density(setup = core_to_evict, args = (EvictionPolicy::HitDensity))]
#[bench::evict_lru(setup = core_to_evict, args = (EvictionPolicy::Lru))]
#[bench::evict_largest(setup = core_to_evict_largest, args = ())]
#[bench::replace_expiring(setup = core_that_expires_to_replace, args = ())]
#[bench::evict_expiring(setup = core_that_expires_to_evict, args = ())]
fn core_insert(prepared: Prepared<Core, (ContentKey, EmbeddingVector)>) -> Core {
    taking_each(prepared, |cache, (key, value)| cache.insert(key, value))
}

#[library_benchmark]
#[bench::s3_fifo(setup = core_of_requests, args = (EvictionPolicy::S3Fifo))]
#[bench::hit_density(setup = core_of_requests, args = (EvictionPolicy::HitDensity))]
#[bench::lru(setup = core_of_requests, args = (EvictionPolicy::Lru))]
fn core_get_else_insert(prepared: Prepared<Core, (ContentKey, EmbeddingVector)>) -> Core {
    taking_each(prepared, |cache, (key, value)| request(cache, key, value))
}

#[library_benchmark]
#[bench::replace(setup = quick_to_replace, args = ())]
#[bench::evict(setup = quick_to_evict, args = ())]
fn quick_cache_insert(prepared: Prepared<Quick, (ContentKey, EmbeddingVector)>) -> Quick {
    taking_each(prepared, |cache, (key, value)| cache.insert(key, value))
}

#[library_benchmark]
#[bench::replace(setup = door_to_replace, args = ())]
fn cache_key_put_blocking(
    prepared: Prepared<Door<CacheKey>, (CacheKey, EmbeddingVector)>,
) -> Door<CacheKey> {
    taking_each(prepared, |cache, (key, value)| cache.put_blocking(key, value))
}

// The key stays the caller's, as one that was asked for before; the loop drops no texts.
#[library_benchmark]
#[bench::replace(setup = door_to_replace, args = ())]
fn cache_key_put_borrowed(
    prepared: Prepared<Door<CacheKey>, (CacheKey, EmbeddingVector)>,
) -> Prepared<Door<CacheKey>, (CacheKey, EmbeddingVector)> {
    with_each(prepared, |cache, (key, value)| cache.put_blocking(key, value.clone()))
}

library_benchmark_group!(
    name = operations,
    benchmarks = [
        the_loop,
        core_get,
        quick_cache_get,
        content_key_get_blocking,
        cache_key_get_blocking,
        cache_key_get,
        core_get_many,
        cache_key_get_many,
        core_insert,
        core_get_else_insert,
        quick_cache_insert,
        cache_key_put_blocking,
        cache_key_put_borrowed,
    ]
);

main!(
    // The simulation of the processor's caches takes longer than all else and is not looked at.
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = operations
);
