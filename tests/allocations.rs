//! What is allocated, counted by the allocator: nothing on a hit, one block for a batch, a small
//! fixed number for a put.
//!
//! The allocator counts each thread by itself, so tests that run at the same time do not disturb
//! each other, and what other threads do to memory in the meantime is not seen.

mod support;

use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use embedding_cache::{
    CacheError, CacheKey, ContentKey, EmbeddingCache, EmbeddingCacheBuilder, EmbeddingKey,
    EmbeddingVector, EvictionPolicy, MemoryPressure, ShardedCache,
};
use support::{POLICIES, PRESSURES, key};

/// Entries in a full cache: enough for several shards where those are not set.
const ENTRIES: usize = 2000;

/// An hour, or for ever.
const LIVES: [Option<Duration>; 2] = [None, Some(Duration::from_secs(3600))];

type Cache = ShardedCache<String, Arc<[f32]>>;

fn name(i: usize) -> String {
    format!("text number {i}")
}

/// A thread's first get in a cache makes the counters in which this thread counts there.
fn warm_up<T>(get: impl FnOnce() -> Option<T>) {
    assert!(get().is_none());
}

/// A full cache.
fn full(policy: EvictionPolicy, time_to_live: Option<Duration>) -> Cache {
    let mut builder = Cache::builder().max_entries(ENTRIES).eviction(policy);
    if let Some(life) = time_to_live {
        builder = builder.time_to_live(life);
    }
    let cache = builder.build().unwrap();
    for i in 0..ENTRIES {
        cache.insert(name(i), Arc::from([i as f32; 8])).unwrap();
    }
    assert_eq!(cache.len(), ENTRIES);
    warm_up(|| cache.get(""));
    cache
}

/// A full cache that has also seen so many evictions that all its parts have their lasting size.
fn steady(
    policy: EvictionPolicy,
    pressure: MemoryPressure,
    time_to_live: Option<Duration>,
) -> EmbeddingCache {
    let mut builder =
        EmbeddingCache::builder().max_entries(ENTRIES).eviction(policy).memory_pressure(pressure);
    if let Some(life) = time_to_live {
        builder = builder.time_to_live(life);
    }
    let cache = builder.build().unwrap();
    for i in 0..4 * ENTRIES {
        cache.put_blocking(key(i), vec![i as f32; 8]).unwrap();
    }
    assert_eq!(cache.info().size, ENTRIES);
    warm_up(|| cache.get_blocking(&CacheKey::new("", "")));
    cache
}

/// The answer of a future that has it at once, or gives others a turn at most where this thread was
/// stopped meanwhile; without a runtime that might allocate for it.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..10 {
        if let Poll::Ready(answer) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return answer;
        }
    }
    panic!("had to wait for a lock that nobody else uses");
}

/// Runs `operation` a thousand times, so that a rare path is taken too, and fails if any of them
/// allocated or freed anything.
#[track_caller]
fn assert_allocates_nothing(what: &str, mut operation: impl FnMut(usize)) {
    let counted = measure(|| (0..1000).for_each(&mut operation));
    assert_eq!(counted, AllocationInfo::default(), "{what}");
}

/// Calls `test` with every full cache there is.
fn for_each_cache(test: impl Fn(&str, &Cache)) {
    for policy in POLICIES {
        for life in LIVES {
            test(&format!("{policy:?}, time-to-live {life:?}"), &full(policy, life));
        }
    }
}

#[test]
fn the_counter_counts() {
    let counted = measure(|| drop(std::hint::black_box(vec![0u8; 10])));
    assert_eq!((counted.count_total, counted.count_current, counted.bytes_total), (1, 0, 10));
    let kept = std::hint::black_box(vec![0u8; 10]);
    assert_eq!(measure(|| drop(kept)).count_current, -1);
}

#[test]
fn a_hit_allocates_and_frees_nothing() {
    for_each_cache(|which, cache| {
        let names: Vec<String> = (0..100).map(name).collect();
        let name = |i: usize| names[i % names.len()].as_str();
        assert_allocates_nothing(which, |i| assert!(cache.get(name(i)).is_some()));
        assert_allocates_nothing(which, |i| {
            let got = cache.try_get_for(name(i), Duration::from_millis(5));
            assert!(matches!(got, Ok(Some(_))));
        });
        assert_allocates_nothing(which, |i| assert!(cache.peek(name(i)).is_some()));
        assert_allocates_nothing(which, |i| assert!(cache.contains_key(name(i))));
        assert_allocates_nothing(which, |i| assert!(cache.entry_info(name(i)).is_some()));
        let absent = || unreachable!("it is there");
        assert_allocates_nothing(which, |i| {
            assert!(cache.get_or_insert_with(name(i), absent).is_ok());
        });
        assert!(cache.stats().hits >= 2000);
    });
}

#[test]
fn a_miss_allocates_and_frees_nothing() {
    for_each_cache(|which, cache| {
        assert_allocates_nothing(which, |_| assert!(cache.get("unknown").is_none()));
        assert_allocates_nothing(which, |_| assert!(cache.peek("unknown").is_none()));
        assert_allocates_nothing(which, |_| assert!(!cache.contains_key("unknown")));
        assert_allocates_nothing(which, |_| assert!(cache.remove("unknown").is_none()));
        assert_eq!(cache.stats().misses, 1001);
    });
}

#[test]
fn an_async_hit_or_miss_allocates_and_frees_nothing() {
    for policy in POLICIES {
        for life in LIVES {
            let cache = steady(policy, MemoryPressure::PolicyOrder, life);
            let held: Vec<CacheKey> =
                (0..4 * ENTRIES).map(key).filter(|key| ready(cache.get(key)).is_some()).collect();
            assert_eq!(held.len(), ENTRIES);
            let unknown = CacheKey::new("00", "unknown").with_chunk("1");
            let which = format!("{policy:?}, time-to-live {life:?}");
            let held = |i: usize| &held[i % held.len()];

            assert_allocates_nothing(&which, |i| assert!(ready(cache.get(held(i))).is_some()));
            assert_allocates_nothing(&which, |i| {
                assert!(matches!(ready(cache.get_with_timeout(held(i), 5)), Ok(Some(_))));
            });
            assert_allocates_nothing(&which, |i| assert!(cache.get_blocking(held(i)).is_some()));
            assert_allocates_nothing(&which, |_| assert!(ready(cache.get(&unknown)).is_none()));
            assert_allocates_nothing(&which, |_| {
                assert!(matches!(ready(cache.get_with_timeout(&unknown, 5)), Ok(None)));
            });
            assert_allocates_nothing(&which, |_| assert!(cache.get_blocking(&unknown).is_none()));
        }
    }
}

#[test]
fn looking_at_the_state_allocates_nothing() {
    let cache = steady(EvictionPolicy::Lru, MemoryPressure::LargestFirst, None);
    assert_allocates_nothing("size", |_| assert_eq!(ready(cache.size()), ENTRIES));
    assert_allocates_nothing("stats", |_| assert_ne!(cache.stats().insertions, 0));
    assert_allocates_nothing("info", |_| assert_ne!(cache.info().memory_bytes, 0));
    assert_allocates_nothing("clone", |_| drop(cache.clone()));
}

#[test]
fn a_batch_allocates_its_result_only() {
    for_each_cache(|which, cache| {
        // The second half of the names is not there.
        for (what, first) in [("hits", 0), ("both", ENTRIES - 8), ("misses", ENTRIES)] {
            for size in [1, 16, 17, 64, 100] {
                let names: Vec<String> = (first..first + size).map(name).collect();
                let mut values = Vec::new();
                let counted = measure(|| {
                    values = cache.get_many(names.iter().map(String::as_str));
                });
                assert_eq!(values.len(), size);
                let bytes = (size * size_of::<Option<Arc<[f32]>>>()) as u64;
                assert_eq!(
                    (counted.count_total, counted.count_current, counted.bytes_total),
                    (1, 1, bytes),
                    "{which}, {what}, {size} keys"
                );
            }
        }
        let none = measure(|| assert!(cache.get_many::<str>([]).is_empty()));
        assert_eq!(none, AllocationInfo::default());
    });
}

/// A cache that holds `keys`, for a thread that has counted there before.
fn holding<K: EmbeddingKey>(
    builder: EmbeddingCacheBuilder<K>,
    keys: &[K],
    absent: &K,
) -> EmbeddingCache<K> {
    let cache = builder.max_entries(ENTRIES).build().unwrap();
    for (i, key) in keys.iter().enumerate() {
        cache.put_blocking(key.clone(), [i as f32; 8]).unwrap();
    }
    warm_up(|| cache.get_blocking(absent));
    cache
}

/// The closure that a hit does not call.
async fn uncalled() -> Vec<Vec<f32>> {
    unreachable!("all are hits")
}

/// For any kind of key: an async batch of hits is one block, the result, and one key is none.
fn hits_allocate_the_result_only<K: EmbeddingKey>(cache: &EmbeddingCache<K>, keys: &[K]) {
    for size in [1, 16, 64, 65, 200] {
        let keys = &keys[..size];
        let mut found = Vec::new();
        let counted = measure(|| found = ready(cache.get_many(keys)));
        assert!(found.len() == size && found.iter().all(Option::is_some));
        let bytes = (size * size_of::<Option<EmbeddingVector>>()) as u64;
        let expected = (1, 1, bytes);
        let seen = |counted: AllocationInfo| {
            (counted.count_total, counted.count_current, counted.bytes_total)
        };
        assert_eq!(seen(counted), expected, "get_many, {size} keys");

        let mut answers = Vec::new();
        let counted = measure(|| answers = ready(cache.get_or_embed_many(keys, |_| uncalled())));
        assert!(answers.len() == size && answers.iter().all(Result::is_ok));
        let bytes = (size * size_of::<Result<EmbeddingVector, CacheError>>()) as u64;
        assert_eq!(seen(counted), (1, 1, bytes), "get_or_embed_many, {size} keys");

        let load = || cache.load().get_or_embed_many_borrowed(keys, |_| uncalled());
        let counted = measure(|| answers = ready(load()));
        // The new result, and the one before is dropped.
        assert_eq!(seen(counted), (1, 0, bytes), "get_or_embed_many_borrowed, {size} keys");
    }
    let key = |i: usize| &keys[i % keys.len()];
    assert_allocates_nothing("get_or_embed", |i| {
        assert!(ready(cache.get_or_embed(key(i), async || vec![1.0])).is_ok());
    });
    assert_allocates_nothing("get_or_embed with options", |i| {
        let load = cache.load().timeout(Duration::from_secs(1)).max_batch(1);
        assert!(ready(load.get_or_embed(key(i), async || vec![1.0])).is_ok());
    });
    assert_allocates_nothing("get_or_embed_borrowed", |i| {
        let load = cache.load().get_or_embed_borrowed(key(i), async || vec![1.0]);
        assert!(ready(load).is_ok());
    });
    assert_allocates_nothing("an empty batch", |_| {
        assert!(ready(cache.get_or_embed_many([], |_| uncalled())).is_empty());
    });
    assert_eq!(cache.stats().loads, 0);
}

#[test]
fn a_load_of_hits_allocates_its_result_only() {
    for policy in POLICIES {
        let words: Vec<CacheKey> = (0..200).map(key).collect();
        let builder = EmbeddingCache::builder().eviction(policy);
        let cache = holding(builder, &words, &CacheKey::new("", ""));
        hits_allocate_the_result_only(&cache, &words);

        let spec = ContentKey::for_model("e5-base");
        let digests: Vec<ContentKey> = (0..200).map(|i| spec.text(&i.to_string())).collect();
        let builder = EmbeddingCacheBuilder::<ContentKey>::new().eviction(policy);
        let cache = holding(builder, &digests, &spec.text("absent"));
        hits_allocate_the_result_only(&cache, &digests);
    }
}

#[test]
fn a_batch_of_puts_that_replace_allocates_its_result_and_room_for_a_group() {
    for_each_cache(|which, cache| {
        for size in [1, 16, 64, 100] {
            let entries: Vec<(String, Arc<[f32]>)> =
                (0..size).map(|i| (name(i), Arc::from([0.5; 8]))).collect();
            cache.insert_many(entries.iter().cloned());
            let (mut entries, mut results) = (entries.into_iter(), Vec::new());
            let counted = measure(|| results = cache.insert_many(entries.by_ref()));
            assert_eq!(results.len(), size);
            // The result, a group that grows up to 64 entries, and for each shard that has more than
            // one of them, what was replaced, which grows up to 64 too.
            let shards = cache.shards().min(size) as u64;
            let most = 1 + 5 + 7 * shards * size.div_ceil(64) as u64;
            assert!(counted.count_total <= most, "{which}, {size}: {counted:?}, not {most}");
        }
    });
}

/// With a key and a vector that were made before.
#[test]
fn a_put_into_a_full_cache_seldom_allocates() {
    for policy in POLICIES {
        for pressure in PRESSURES {
            for life in LIVES {
                let cache = steady(policy, pressure, life);
                let puts: Vec<u64> = (4 * ENTRIES..8 * ENTRIES)
                    .map(|i| {
                        let (key, vector) = (key(i), EmbeddingVector::from([i as f32; 8]));
                        measure(|| ready(cache.put(key, vector)).unwrap()).count_total
                    })
                    .collect();
                let which = format!("{policy:?}, {pressure:?}, time-to-live {life:?}");
                // Nothing for the key, which stands in its slot. Seldom a ghost queue of another
                // length. Shards do not hold quite the same number all the time, so now and then one
                // grows: a larger index, a block for the slots, and one for each array beside them,
                // which are at most six.
                let most = puts.iter().max();
                assert!(puts.iter().all(|&count| count <= 7), "{which}: {most:?}");
                let all: u64 = puts.iter().sum();
                assert!(all <= puts.len() as u64 * 2 / 100, "{which}: {all} in {}", puts.len());
            }
        }
    }
}

#[test]
fn a_put_that_replaces_allocates_for_an_unusual_key_and_copies_only_a_vec() {
    for policy in POLICIES {
        for pressure in PRESSURES {
            let cache = steady(policy, pressure, Some(Duration::from_secs(60)));
            // A chunk makes it one that is stored as its texts.
            for (key, blocks) in [(key(4 * ENTRIES), 0), (key(4 * ENTRIES).with_chunk("7"), 1)] {
                ready(cache.put(key.clone(), [0.5; 8])).unwrap();
                for i in 0..1000 {
                    let vector = EmbeddingVector::from([i as f32; 8]);
                    let counted = measure(|| ready(cache.put(&key, vector)).unwrap());
                    assert_eq!(counted.count_total, blocks, "{policy:?}, {pressure:?}");
                }
                let vec = vec![0.5; 8];
                let counted = measure(|| ready(cache.put(key, vec)).unwrap());
                assert_eq!(counted.count_total, blocks + 1, "{policy:?}, {pressure:?}");
            }
        }
    }
}

#[test]
fn the_first_get_of_a_thread_takes_one_block_at_most_and_no_other_does() {
    let cache = full(EvictionPolicy::S3Fifo, None);
    let known = name(7);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let first = measure(|| assert!(cache.get(known.as_str()).is_some()));
                assert!(first.count_total <= 1, "{first:?}");
                assert_allocates_nothing("later", |_| assert!(cache.get("unknown").is_none()));
            });
        }
    });
}

/// Entries that own nothing on the heap: what is given back is the cache's own.
fn fill_plain(cache: &ShardedCache<u64, u64>, life_of: impl Fn(u64) -> Duration) {
    for i in 0..ENTRIES as u64 {
        cache.insert_with_ttl(i, i, life_of(i)).unwrap();
    }
    assert_eq!(cache.len(), ENTRIES);
}

/// The allocator may take as long as it likes for a `free`, and other threads would wait for it.
#[test]
fn what_leaves_an_order_gives_nothing_back_under_the_lock() {
    for policy in POLICIES {
        for pressure in PRESSURES {
            let which = format!("{policy:?}, {pressure:?}");
            // A size for each entry.
            let cache = ShardedCache::<u64, u64>::builder()
                .max_weight(u64::MAX / 2)
                .weigher(|_: &u64, &value: &u64| value)
                .memory_pressure(pressure)
                .eviction(policy)
                .shards(1)
                .build()
                .unwrap();
            // In no order, so that what leaves stands in the middle.
            let entry = |i: usize| i as u64 * 7 % ENTRIES as u64;
            let hours = |i: u64| Duration::from_secs(3600 * (1 + i * 13 % 100));
            fill_plain(&cache, hours);
            assert_allocates_nothing(&format!("{which}: replace"), |i| {
                let key = entry(i);
                cache.insert_with_ttl(key, key + i as u64, hours(i as u64)).unwrap();
            });
            assert_allocates_nothing(&format!("{which}: remove"), |i| {
                assert!(cache.remove(&entry(i)).is_some());
            });
            assert_allocates_nothing(&format!("{which}: insert again"), |i| {
                cache.insert_with_ttl(entry(i), entry(i), hours(i as u64)).unwrap();
            });

            // Replaced by entries that are expired at once.
            fill_plain(&cache, |_| Duration::ZERO);
            let counted = measure(|| assert_eq!(cache.cleanup_expired(), ENTRIES));
            // The list of the 64 that leave under one lock hold, which grows.
            let most = 7 * ENTRIES.div_ceil(64) as u64;
            assert!(counted.count_total <= most, "{which}: {counted:?}, not {most}");
            assert_eq!(counted.count_current, 0, "{which}: what was there before is still there");
            cache.validate();
        }
    }
}

#[test]
fn a_content_key_is_made_and_looked_up_without_an_allocation() {
    let spec = ContentKey::for_model("e5-base").revision("1").prompt("query: ").tenant("acme");
    let cache = EmbeddingCacheBuilder::<ContentKey>::new().max_entries(10).build().unwrap();
    let long = "a longer text. ".repeat(1000);
    cache.put_blocking(spec.text(&long), [1.0]).unwrap();
    // A thread's first get in a cache makes the counters in which this thread counts there.
    assert!(cache.get_blocking(&spec.text("absent")).is_none());
    let made = measure(|| {
        for spec in [spec.clone(), spec.clone()] {
            assert!(cache.get_blocking(&spec.text(&long)).is_some());
            assert!(cache.get_blocking(&spec.tokens(&[7; 1000])).is_none());
            assert!(cache.get_blocking(&spec.bytes(b"abc")).is_none());
        }
        let mut shown = [0; 64];
        write!(&mut shown[..], "{}", spec.text(&long)).unwrap();
    });
    assert_eq!(made.count_total, 0, "{made:?}");
    let digits = spec.text(&long).to_hex();
    let parsed = measure(|| assert_eq!(digits.parse::<ContentKey>().unwrap(), spec.text(&long)));
    assert_eq!(parsed.count_total, 0, "{parsed:?}");
    assert_eq!(measure(|| drop(spec.text("a").to_hex())).count_total, 1);
    let changed = measure(|| drop(spec.clone().tenant("other")));
    assert_eq!(changed.count_total, 2, "{changed:?}");
    let words = CacheKey::for_model("e5-base");
    assert_eq!(measure(|| drop(words.text(&long))).count_total, 2, "its two strings");
}
