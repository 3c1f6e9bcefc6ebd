//! What the policies that resist scans and learn promise of the hit ratio: a test for each behaviour.
//!
//! The hashes are the same in each run, so the draws of the learned policy are too, and the figures
//! can be repeated. Each limit leaves room for another hash function.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embedding_cache::{EvictionPolicy, MemoryPressure, RemovalCause, ShardedCache};

type Cache = ShardedCache<u64, u64, BuildHasherDefault<DefaultHasher>>;

/// One shard, and as many as users have of this size.
const SHARDS: [usize; 2] = [1, 4];

const CAPACITY: usize = 1000;

fn cache(policy: EvictionPolicy, shards: usize) -> Cache {
    ShardedCache::builder()
        .max_entries(CAPACITY)
        .shards(shards)
        .eviction(policy)
        .hasher(BuildHasherDefault::default())
        .build()
        .unwrap()
}

fn learned(shards: usize) -> Cache {
    cache(EvictionPolicy::HitDensity, shards)
}

/// Whether `key` was there; it is afterwards.
fn request(cache: &Cache, key: u64) -> bool {
    if cache.get(&key).is_some() {
        return true;
    }
    cache.insert(key, key).unwrap();
    false
}

/// The part of requests that were hits.
fn hit_ratio(cache: &Cache, requests: impl Iterator<Item = u64>) -> f64 {
    let (mut hits, mut all) = (0, 0);
    for key in requests {
        hits += u64::from(request(cache, key));
        all += 1;
    }
    hits as f64 / all as f64
}

/// Numbers below `n`, the same in each run.
fn random(seed: u64, n: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    })
}

/// Keys that were never requested before.
fn fresh() -> impl Iterator<Item = u64> {
    1 << 40..
}

#[test]
fn a_value_just_put_is_there_to_be_got() {
    for shards in SHARDS {
        let cache = learned(shards);
        // In a cache that has learned that new ones are worth nothing.
        for (hot, new) in random(1, 900).zip(fresh()).take(30_000) {
            request(&cache, hot);
            cache.insert(new, new).unwrap();
            assert_eq!(cache.get(&new), Some(new));
        }
        cache.validate();
    }
}

#[test]
fn a_hot_set_survives_a_scan_of_many_capacities() {
    for shards in SHARDS {
        let cache = learned(shards);
        // What is hot is so among others that come once.
        for (hot, once) in random(2, 500).zip(fresh()).take(20_000) {
            request(&cache, hot);
            request(&cache, once);
        }
        let scan = 2 << 40..(2 << 40) + 5 * CAPACITY as u64;
        assert!(hit_ratio(&cache, scan) < 0.001);
        let kept = (0..500).filter(|key| cache.get(key).is_some()).count();
        assert!(kept > 400, "{kept} of 500 with {shards} shards");
    }
}

#[test]
fn of_a_loop_longer_than_the_cache_a_large_part_is_kept() {
    for shards in SHARDS {
        let loops = |rounds| (0..rounds).flat_map(|_| 0..CAPACITY as u64 * 5 / 4);
        let cache = learned(shards);
        hit_ratio(&cache, loops(20));
        let ratio = hit_ratio(&cache, loops(20));
        // The optimum is 80 %.
        assert!(ratio > 0.5, "{ratio:.3} with {shards} shards");

        let lru = self::cache(EvictionPolicy::Lru, shards);
        let of_lru = hit_ratio(&lru, loops(20));
        assert!(of_lru < 0.01, "{of_lru:.3}: this is no loop");
    }
}

#[test]
fn when_the_working_set_moves_the_cache_follows() {
    for shards in SHARDS {
        let cache = learned(shards);
        let set = |from: u64| random(3, 800).map(move |key| from + key);
        hit_ratio(&cache, set(0).take(100_000));
        // After many requests for the old set, and a few capacities for the new one.
        hit_ratio(&cache, set(10_000).take(5 * CAPACITY));
        let ratio = hit_ratio(&cache, set(10_000).take(20_000));
        assert!(ratio > 0.95, "{ratio:.3} with {shards} shards");
    }
}

#[test]
fn what_is_used_often_outlives_what_is_used_once() {
    for shards in SHARDS {
        let cache = learned(shards);
        // A hundred keys are asked for now and then, each about every second capacity of others: too
        // seldom for an order of use.
        let requests = || random(4, 100).zip(fresh().collect_chunks(20));
        let ratio = requests().take(40).map(|(_, chunk)| chunk.len()).sum::<usize>();
        assert_eq!(ratio, 800);
        let mut hits = 0;
        let mut asked = 0;
        for (round, (key, chunk)) in requests().take(20_000).enumerate() {
            let hit = request(&cache, key);
            chunk.into_iter().for_each(|once| assert!(!request(&cache, once)));
            if round >= 10_000 {
                hits += u32::from(hit);
                asked += 1;
            }
        }
        let ratio = f64::from(hits) / f64::from(asked);
        let lru = self::cache(EvictionPolicy::Lru, shards);
        let mut of_lru = 0;
        for (key, chunk) in requests().take(5000) {
            of_lru += u32::from(request(&lru, key));
            chunk.into_iter().for_each(|once| assert!(!request(&lru, once)));
        }
        let of_lru = f64::from(of_lru) / 5000.0;
        assert!(ratio > 0.85 && of_lru < 0.5, "{ratio:.3}, LRU {of_lru:.3}, {shards} shards");
    }
}

/// Chunks of an endless iterator.
trait CollectChunks: Iterator<Item = u64> + Sized {
    fn collect_chunks(mut self, n: usize) -> impl Iterator<Item = Vec<u64>> {
        std::iter::repeat_with(move || self.by_ref().take(n).collect())
    }
}

impl<I: Iterator<Item = u64>> CollectChunks for I {}

/// Zipf-like: the ratio of a cache that learns is at least that of the others, but for a little.
#[test]
fn where_only_frequency_counts_learning_loses_to_nobody() {
    let zipf = || random(5, 1 << 20).map(|x| ((1_u64 << 20) / (x + 1)) * 7919 % 50_021);
    let ratio = |policy| {
        let cache = cache(policy, 1);
        hit_ratio(&cache, zipf().take(200_000));
        hit_ratio(&cache, zipf().take(100_000))
    };
    let learned = ratio(EvictionPolicy::HitDensity);
    for other in [EvictionPolicy::Lru, EvictionPolicy::S3Fifo] {
        let of_other = ratio(other);
        assert!(learned > of_other - 0.01, "{learned:.3}, {other:?} {of_other:.3}");
    }
}

/// A cache in which every key below `heavy` weighs as much as `by`.
fn weighing(policy: EvictionPolicy, limit: u64, heavy: u64, by: u64) -> Cache {
    ShardedCache::builder()
        .max_weight(limit)
        .weigher(move |key: &u64, _: &u64| if *key < heavy { by } else { 1 })
        .shards(1)
        .eviction(policy)
        .hasher(BuildHasherDefault::default())
        .build()
        .unwrap()
}

#[test]
fn of_entries_as_popular_the_heavy_leave_when_weight_is_short() {
    // All are requested as often; half of them weigh 16 times what the others do.
    let ratio = |policy| {
        let cache = weighing(policy, 8000, 2000, 16);
        hit_ratio(&cache, random(6, 4000).take(100_000));
        let ratio = hit_ratio(&cache, random(7, 4000).take(100_000));
        cache.validate();
        ratio
    };
    let (learned, other) = (ratio(EvictionPolicy::HitDensity), ratio(EvictionPolicy::S3Fifo));
    // All the light ones and 375 of the heavy are 59 %; without regard to weight it is 24 %.
    assert!(learned > 0.5 && other < 0.3, "{learned:.3}, S3-FIFO {other:.3}");
}

#[test]
fn an_update_changes_the_weight_that_counts() {
    let cache: Cache = ShardedCache::builder()
        .max_weight(22_000)
        .weigher(|_: &u64, weight: &u64| *weight)
        .shards(1)
        .eviction(EvictionPolicy::HitDensity)
        .hasher(BuildHasherDefault::default())
        .build()
        .unwrap();
    (0..1000).for_each(|key| cache.insert(key, 2).unwrap());
    (0..100).for_each(|key| cache.insert(key, 200).unwrap());
    // Room for some more of a weight in between is made by those that have become heavy.
    (5000..5100).for_each(|key| cache.insert(key, 30).unwrap());
    let left = |range: std::ops::Range<u64>| range.filter(|key| cache.contains_key(key)).count();
    let (heavy, light) = (left(0..100), left(100..1000));
    assert!(heavy < 93 && light > 860, "{heavy} of 100 heavy, {light} of 900 light");
    cache.validate();
}

#[test]
fn among_entries_of_one_weight_a_limit_on_weight_is_one_on_entries() {
    let requests = || random(8, 3000).zip(random(9, 300)).flat_map(|(a, b)| [a, b]).take(60_000);
    let by_entries = hit_ratio(&learned(1), requests());
    let by_weight = weighing(EvictionPolicy::HitDensity, 7 * CAPACITY as u64, u64::MAX, 7);
    assert_eq!(hit_ratio(&by_weight, requests()), by_entries);
}

/// After nearly everything was removed the few that are left are found, wherever they stand.
#[test]
fn few_entries_in_many_slots_can_still_be_evicted() {
    for pressure in [MemoryPressure::PolicyOrder, MemoryPressure::LargestFirst] {
        let cache = ShardedCache::<u64, u64>::builder()
            .max_weight(100_000)
            .weigher(|_, weight| *weight)
            .shards(1)
            .eviction(EvictionPolicy::HitDensity)
            .memory_pressure(pressure)
            .build()
            .unwrap();
        (0..20_000).for_each(|key| cache.insert(key, 1).unwrap());
        cache.retain(|key, _| key % 6_666 == 7);
        assert_eq!(cache.len(), 3);
        for key in 200_000..200_010 {
            cache.insert(key, 60_000).unwrap();
            assert_eq!(cache.get(&key), Some(60_000));
            cache.validate();
        }
        cache.clear();
        cache.insert(1, 100_000).unwrap();
        cache.insert(1, 99_999).unwrap();
        assert_eq!(cache.len(), 1, "an update spares its own entry");
        cache.validate();
    }
}

/// An order of use that hits leave to be put right by writes is exact after any number of hits without
/// a write, of which most need several lock holds here; whatever makes room.
#[test]
fn the_least_recently_used_leaves_after_any_number_of_hits_without_a_write() {
    // In another order than that of the inserts.
    let used = || (0..CAPACITY as u64).map(|at| at * 77 % CAPACITY as u64);
    type Way = (&'static str, fn(&Cache));
    let ways: [Way; 4] = [
        ("an insert", |cache| cache.insert(5000, 1).unwrap()),
        ("a heavy insert", |cache| cache.insert(5000, 5).unwrap()),
        ("a growing entry", |cache| cache.insert(500, 3).unwrap()),
        ("a lower limit", |cache| {
            assert_eq!(cache.set_max_weight(CAPACITY as u64 - 3).unwrap(), 3);
        }),
    ];
    for pressure in [MemoryPressure::PolicyOrder, MemoryPressure::LargestFirst] {
        for idle in [None, Some(Duration::from_secs(1000))] {
            for (way, make_room) in ways {
                let left = Arc::new(Mutex::new(Vec::new()));
                let told = Arc::clone(&left);
                let mut builder = ShardedCache::<u64, u64>::builder()
                    .max_weight(CAPACITY as u64)
                    .weigher(|_, weight| *weight)
                    .shards(1)
                    .eviction(EvictionPolicy::Lru)
                    .memory_pressure(pressure)
                    .eviction_listener(move |key, _, cause| {
                        if cause == RemovalCause::Weight {
                            told.lock().unwrap().push(*key);
                        }
                    });
                if let Some(idle) = idle {
                    builder = builder.time_to_idle(idle);
                }
                let cache = builder.hasher(BuildHasherDefault::default()).build().unwrap();
                (0..CAPACITY as u64).for_each(|key| cache.insert(key, 1).unwrap());
                for turn in 0..3 {
                    used().for_each(|key| assert_eq!(cache.get(&key), Some(1), "{turn}"));
                }
                make_room(&cache);
                cache.validate();
                let left = left.lock().unwrap().clone();
                let oldest: Vec<_> = used().filter(|&key| key != 500).take(left.len()).collect();
                assert_eq!(left, oldest, "{way}, {pressure:?}, {idle:?}");
                assert!(!left.is_empty(), "{way}");
            }
        }
    }
}
