//! The limits on entries and on weight: exact, global, and kept at every instant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::support::{
    FakeClock, POLICIES, PRESSURES, Removals, SetOnDrop, everywhere, in_time, key,
};
use embedding_cache::{
    CacheKey, ENTRY_OVERHEAD, EmbeddingCache, EvictionPolicy, MemoryPressure, RemovalCause,
    ShardedCache, ShardedCacheBuilder,
};

type Cache = ShardedCache<u64, u64>;

/// A cache of `u64` whose values are their own weights.
fn weighed(
    policy: EvictionPolicy,
    pressure: MemoryPressure,
    shards: usize,
) -> ShardedCacheBuilder<u64, u64> {
    Cache::builder()
        .weigher(|_: &u64, value: &u64| *value)
        .eviction(policy)
        .memory_pressure(pressure)
        .shards(shards)
}

#[test]
fn a_cache_for_n_entries_holds_n_whatever_the_shard_count() {
    for shards in (0..=8).map(|bits| 1 << bits) {
        for n in [1, 2, 3, 10, 100, 1000, 5000] {
            for policy in POLICIES {
                let cache = Cache::builder()
                    .max_entries(n)
                    .shards(shards)
                    .eviction(policy)
                    .build()
                    .unwrap();
                for key in 0..n as u64 {
                    cache.insert(key, key).unwrap();
                    assert_eq!(cache.len() as u64, key + 1);
                }
                assert_eq!(cache.stats().evictions, 0, "{shards} shards, {n} entries");
                assert_eq!(cache.keys().count(), n);
                for key in n as u64..2 * n as u64 {
                    cache.insert(key, key).unwrap();
                    assert_eq!(cache.len(), n, "{shards} shards, {n} entries");
                }
                assert_eq!(cache.stats().evicted_by_entries, n as u64);
                assert_eq!(cache.keys().count(), n);
                cache.validate();
            }
        }
    }
}

#[tokio::test]
async fn a_documented_cache_for_n_entries_holds_n() {
    for n in [1, 2, 3, 10, 100, 1000, 5000] {
        let cache = EmbeddingCache::new(n, 3600, 1024);
        for i in 0..2 * n {
            cache.put(key(i), [1.0, 2.0]).await.unwrap();
            assert_eq!(cache.size().await, n.min(i + 1));
            assert!(cache.get(&key(i)).await.is_some());
        }
        assert_eq!(cache.stats().evictions, n as u64);
    }
}

/// So that their order of eviction is exact.
#[test]
fn a_small_cache_has_one_shard_and_a_large_one_several() {
    for (entries, mib, one) in
        [(511, 1024, true), (usize::MAX, 7, true), (0, 0, true), (100_000, 1024, false)]
    {
        let shards = EmbeddingCache::new(entries, 3600, mib).info().shards;
        assert_eq!(shards == 1, one, "{entries} entries, {mib} MiB: {shards} shards");
        assert!(shards.is_power_of_two());
    }
}

#[test]
fn tiny_capacities_work() {
    everywhere(&[1, 2, 16], |policy, pressure, shards| {
        for capacity in 0..=3_usize {
            let cache = weighed(policy, pressure, shards).max_entries(capacity).build().unwrap();
            for key in 0..20 {
                assert_eq!(cache.insert(key, 1).is_ok(), capacity > 0);
                assert_eq!(cache.len(), capacity.min(key as usize + 1));
                assert_eq!(cache.get(&key).is_some(), capacity > 0, "the newcomer is there");
                cache.validate();
            }
            assert_eq!(cache.stats().rejected, if capacity == 0 { 20 } else { 0 });

            let cache =
                weighed(policy, pressure, shards).max_weight(capacity as u64).build().unwrap();
            for key in 0..20 {
                assert_eq!(cache.insert(key, 2).is_ok(), capacity >= 2);
                assert_eq!(cache.weight(), if capacity >= 2 { 2 } else { 0 });
                assert_eq!(cache.get(&key).is_some(), capacity >= 2);
                cache.validate();
            }
        }
    });
}

#[test]
fn the_newcomer_counts_for_the_weight_limit() {
    // What is there, what comes, how much must leave at least one by one.
    let cases: [(&[u64], u64, usize); 6] = [
        (&[30, 30, 30], 10, 3), // exactly full
        (&[30, 30, 30], 11, 2), // one over
        (&[30, 30, 30], 60, 1), // under the limit without the newcomer, still too much with it
        (&[30, 30, 30], 100, 0),
        (&[100], 1, 0),
        (&[60], 60, 0),
    ];
    everywhere(&[1, 2, 16], |policy, pressure, shards| {
        for (held, newcomer, stay) in cases {
            let cache = weighed(policy, pressure, shards).max_weight(100).build().unwrap();
            for (key, &weight) in held.iter().enumerate() {
                cache.insert(key as u64, weight).unwrap();
            }
            cache.insert(99, newcomer).unwrap();
            let case = format!("{held:?} + {newcomer}, {policy:?}, {pressure:?}, {shards} shards");
            assert_eq!(cache.len(), stay + 1, "{case}");
            assert!(cache.weight() <= 100, "{case}");
            assert_eq!(cache.get(&99), Some(newcomer), "{case}");
            assert_eq!(cache.stats().evicted_by_weight as usize, held.len() - stay, "{case}");
            cache.validate();
        }
    });
}

#[test]
fn a_newcomer_that_alone_is_over_the_limit_is_refused_at_once_and_touches_nothing() {
    in_time(|| {
        everywhere(&[1, 8], |policy, pressure, shards| {
            let log = Removals::new();
            let cache = weighed(policy, pressure, shards)
                .max_weight(100)
                .eviction_listener(log.listener())
                .build()
                .unwrap();
            (0..10).for_each(|key| cache.insert(key, 10).unwrap());
            for weight in [101, 1 << 40, u64::MAX] {
                let refused = cache.insert(77, weight).unwrap_err();
                assert!(refused.error().is_too_large());
                assert_eq!(refused.into_entry(), (77, weight));
                let refused = cache.insert(5, weight).unwrap_err();
                assert_eq!(refused.into_entry(), (5, weight), "a replacement too");
            }
            assert_eq!((cache.len(), cache.weight()), (10, 100));
            assert_eq!(cache.get(&5), Some(10));
            assert!(log.take().is_empty());
            assert_eq!(cache.stats().rejected, 6);
            cache.validate();
        });
    });
}

#[test]
fn the_documented_cache_refuses_what_can_never_fit() {
    in_time(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let cache = EmbeddingCache::new(10, 3600, 1);
            cache.put(key(0), vec![1.0; 1000]).await.unwrap();
            let error = cache.put(key(1), vec![1.0; 300_000]).await.unwrap_err();
            assert!(error.is_too_large());
            assert!(cache.get(&key(0)).await.is_some());
            for cache in [EmbeddingCache::new(0, 3600, 1), EmbeddingCache::new(10, 3600, 0)] {
                let error = cache.put(key(1), vec![1.0]).await.unwrap_err();
                assert!(error.is_too_large());
                assert_eq!(error.into_vector().unwrap(), [1.0]);
                assert_eq!((cache.size().await, cache.stats().rejected), (0, 1));
            }
        });
    });
}

#[tokio::test]
async fn memory_is_counted_in_bytes_and_not_in_whole_megabytes() {
    let cache = EmbeddingCache::new(1000, 3600, 1);
    for i in 0..10 {
        cache.put(key(i), vec![1.0; 400 * 1024 / 4]).await.unwrap();
        assert_eq!(
            cache.size().await,
            (i + 1).min(2),
            "two of 400 KiB are under 1 MiB, three over"
        );
        assert!(cache.info().memory_bytes <= 1 << 20);
    }
    // A whole number of small ones: the limit is met to the entry.
    let usual = |i: usize| CacheKey::new(format!("{i:064x}"), "e5-base@1");
    let chunk = |i: usize| usual(i).with_chunk("12");
    let bare = 4 * 768 + 16 + ENTRY_OVERHEAD;
    let texts = 64 + "e5-base@1".len() as u64 + 2;
    for (key, weight) in [(&usual as &dyn Fn(usize) -> CacheKey, bare), (&chunk, bare + texts)] {
        for (spare, fit) in [(-1, 6), (0, 7), (1, 7)] {
            let max = (7 * weight).wrapping_add_signed(spare);
            let cache = EmbeddingCache::builder().max_bytes(max).build().unwrap();
            for i in 0..20 {
                cache.put(key(i), vec![1.0; 768]).await.unwrap();
                let size = cache.size().await;
                assert_eq!(size, fit.min(i + 1));
                assert_eq!(cache.info().memory_bytes, size as u64 * weight);
            }
        }
    }
}

#[test]
fn one_large_entry_has_the_whole_memory_whatever_the_shard_count() {
    everywhere(&[1, 4, 64, 256], |policy, pressure, shards| {
        let cache = weighed(policy, pressure, shards).max_weight(1000).build().unwrap();
        (0..500).for_each(|key| cache.insert(key, 2).unwrap());
        assert_eq!((cache.len(), cache.weight()), (500, 1000));
        cache.insert(1000, 1000).unwrap();
        assert_eq!((cache.len(), cache.weight(), cache.get(&1000)), (1, 1000, Some(1000)));
        cache.validate();
        (0..500).for_each(|key| cache.insert(key, 2).unwrap());
        assert_eq!((cache.len(), cache.weight()), (500, 1000));
        cache.validate();
    });
}

/// An observer looks all the time, and so does every listener call: between two statements of a put.
#[test]
fn no_limit_is_exceeded_at_any_instant() {
    for (policy, pressure) in
        [(EvictionPolicy::Lru, PRESSURES[1]), (EvictionPolicy::S3Fifo, PRESSURES[0])]
    {
        for shards in [1, 8] {
            const ENTRIES: usize = 40;
            const WEIGHT: u64 = 400;
            let highest = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
            let look = {
                let highest = Arc::clone(&highest);
                move |cache: &Cache| {
                    highest.0.fetch_max(cache.len() as u64, Relaxed);
                    highest.1.fetch_max(cache.weight(), Relaxed);
                }
            };
            let cache = Arc::new_cyclic(|this: &std::sync::Weak<Cache>| {
                let (this, look) = (this.clone(), look.clone());
                weighed(policy, pressure, shards)
                    .max_entries(ENTRIES)
                    .max_weight(WEIGHT)
                    .eviction_listener(move |_, _, _| look(&this.upgrade().unwrap()))
                    .build()
                    .unwrap()
            });
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Relaxed) {
                        look(&cache);
                    }
                });
                let _done = SetOnDrop(&done);
                let writers: Vec<_> = (0..4_u64)
                    .map(|thread| {
                        let cache = &cache;
                        scope.spawn(move || {
                            for step in 0..4000 {
                                // Refused now and then when four have all the room between them.
                                let key = (step * 7 + thread * 13) % 97;
                                let _ = cache.insert(key, 1 + step * thread % 30);
                            }
                        })
                    })
                    .collect();
                writers.into_iter().for_each(|writer| writer.join().unwrap());
            });
            let (entries, weight) = (highest.0.load(Relaxed), highest.1.load(Relaxed));
            assert!(entries <= ENTRIES as u64 && weight <= WEIGHT, "{entries} entries, {weight}");
            assert!(entries > 0 && weight > WEIGHT / 2, "it was put to the test");
            cache.validate();
        }
    }
}

#[test]
fn lowering_a_limit_evicts_exactly_the_excess_and_raising_it_makes_room() {
    everywhere(&[1, 2, 16, 256], |policy, pressure, shards| {
        let log = Removals::new();
        let cache = weighed(policy, pressure, shards)
            .max_entries(1000)
            .max_weight(10_000)
            .eviction_listener(log.listener())
            .build()
            .unwrap();
        let told = |cause: RemovalCause| log.take().iter().filter(|told| told.2 == cause).count();
        (0..1000).for_each(|key| cache.insert(key, 10).unwrap());

        assert_eq!(cache.set_max_entries(1000), 0);
        assert_eq!(cache.set_max_entries(333), 667);
        assert_eq!((cache.len(), cache.max_entries(), cache.weight()), (333, 333, 3330));
        assert_eq!(told(RemovalCause::Size), 667);
        cache.validate();

        assert_eq!(cache.set_max_weight(3330).unwrap(), 0);
        assert_eq!(cache.set_max_weight(1005).unwrap(), 233);
        assert_eq!((cache.len(), cache.max_weight(), cache.weight()), (100, 1005, 1000));
        assert_eq!(told(RemovalCause::Weight), 233);
        cache.validate();

        (1000..1200).for_each(|key| cache.insert(key, 10).unwrap());
        assert_eq!(cache.len(), 100, "the new limit is kept");
        assert_eq!(cache.set_max_weight(u64::MAX).unwrap(), 0);
        assert_eq!(cache.set_max_entries(500), 0);
        (2000..3000).for_each(|key| cache.insert(key, 10).unwrap());
        assert_eq!(cache.len(), 500, "and there is room for as many as it says");

        assert_eq!(cache.set_max_entries(1), 499);
        assert_eq!(cache.set_max_entries(0), 1);
        assert!(cache.insert(1, 1).unwrap_err().error().is_too_large());
        assert_eq!((cache.len(), cache.weight()), (0, 0));
        cache.set_max_entries(usize::MAX);
        assert_eq!(cache.set_max_weight(0).unwrap(), 0);
        assert!(cache.insert(1, 1).unwrap_err().error().is_too_large());
        cache.insert(1, 0).unwrap(); // weighs nothing
        let stats = cache.stats();
        assert_eq!(stats.insertions, 1000 + 200 + 1000 + 1);
        assert_eq!(stats.evictions, stats.insertions - 1);
        cache.validate();
    });
}

#[test]
fn lowering_a_limit_lets_the_expired_leave_first() {
    let clock = FakeClock::new();
    for policy in POLICIES {
        let cache =
            weighed(policy, PRESSURES[0], 1).max_entries(10).clock(clock.clone()).build().unwrap();
        for key in 0..10 {
            let life = if key < 5 { 100 } else { 1 };
            cache.insert_with_ttl(key, 1, Duration::from_secs(life)).unwrap();
        }
        clock.advance(Duration::from_secs(2));
        assert_eq!(cache.set_max_entries(5), 5);
        assert!((0..5).all(|key| cache.contains_key(&key)));
        assert_eq!((cache.stats().expired_entries, cache.stats().evictions), (5, 0));
    }
}

#[test]
fn a_lowered_limit_holds_from_then_on_while_others_write() {
    for shards in [1, 16] {
        let cache = weighed(EvictionPolicy::Lru, PRESSURES[0], shards)
            .max_entries(usize::MAX)
            .max_weight(u64::MAX)
            .build()
            .unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let _done = SetOnDrop(&done);
            for thread in 0..3_u64 {
                let (cache, done) = (&cache, &done);
                scope.spawn(move || {
                    let mut key = thread << 32;
                    while !done.load(Relaxed) {
                        key += 1;
                        let _ = cache.insert(key % 4000, 3);
                    }
                });
            }
            for round in 0..20 {
                cache.set_max_entries(usize::MAX);
                cache.set_max_weight(u64::MAX).unwrap();
                while cache.len() < 500 {
                    thread::yield_now();
                }
                let (len, weight) = if round % 2 == 0 {
                    cache.set_max_entries(100);
                    (100, u64::MAX)
                } else {
                    cache.set_max_weight(300).unwrap();
                    (usize::MAX, 300)
                };
                for _ in 0..1000 {
                    assert!(cache.len() <= len, "round {round}");
                    assert!(cache.weight() <= weight, "round {round}");
                }
            }
        });
        cache.validate();
    }
}

#[test]
fn huge_limits_mean_none_and_never_overflow() {
    everywhere(&[1, 16], |policy, pressure, shards| {
        let cache = weighed(policy, pressure, shards)
            .max_entries(usize::MAX)
            .max_weight(u64::MAX)
            .time_to_live(Duration::from_secs(292 * 365 * 24 * 3600))
            .build()
            .unwrap();
        (0..300).for_each(|key| cache.insert(key, key).unwrap());
        assert_eq!((cache.len(), cache.stats().evictions), (300, 0));
        assert_eq!(cache.try_get_for(&1, Duration::MAX).unwrap(), Some(1));
        cache.try_insert_for(1, 2, Duration::MAX).unwrap();
        assert_eq!(cache.get(&1), Some(2));
        assert_eq!((cache.set_max_entries(usize::MAX), cache.cleanup_expired()), (0, 0));
        assert_eq!(cache.set_max_weight(u64::MAX).unwrap(), 0);
        cache.validate();
    });
}

#[tokio::test]
async fn huge_arguments_of_the_documented_cache_mean_no_limit() {
    let cache = EmbeddingCache::new(usize::MAX, u64::MAX, usize::MAX);
    for i in 0..1000 {
        cache.put_with_timeout(key(i), vec![1.0; 8], u64::MAX).await.unwrap();
    }
    for i in 0..1000 {
        assert!(cache.get_with_timeout(&key(i), u64::MAX).await.unwrap().is_some());
    }
    assert_eq!((cache.size().await, cache.cleanup_expired_safe().await), (1000, 0));
    let info = cache.info();
    assert_eq!((info.max_size, info.memory_limit_bytes), (usize::MAX, u64::MAX));
    let built = EmbeddingCache::builder().max_entries(usize::MAX).max_bytes(u64::MAX).build();
    built.unwrap().put_blocking(key(0), [1.0]).unwrap();
}

#[test]
fn huge_weights_are_added_without_overflow() {
    in_time(|| {
        everywhere(&[1, 2, 16], |policy, pressure, shards| {
            let cache = weighed(policy, pressure, shards).max_weight(u64::MAX).build().unwrap();
            for round in 0..3 {
                for key in 0..10 {
                    cache.insert(key, u64::MAX - (key + round) % 3).unwrap();
                    assert_eq!(cache.len(), 1, "two of them are over any limit");
                    assert!(cache.contains_key(&key));
                    cache.validate();
                }
            }
            cache.insert(20, u64::MAX / 2).unwrap();
            cache.insert(21, u64::MAX / 2).unwrap();
            assert_eq!((cache.len(), cache.weight()), (2, u64::MAX - 1));
            cache.insert(21, u64::MAX / 2 + 1).unwrap(); // grows into the last unit
            assert_eq!((cache.len(), cache.weight()), (2, u64::MAX));
            cache.insert(21, u64::MAX).unwrap();
            assert_eq!((cache.len(), cache.weight()), (1, u64::MAX));
            assert_eq!(cache.set_max_weight(u64::MAX - 1).unwrap(), 1);
            cache.validate();
        });
    });
}

/// Evicting what weighs nothing makes no room; what does weigh must leave for a newcomer that does.
#[test]
fn entries_that_weigh_nothing_are_limited_by_number_only() {
    in_time(|| {
        everywhere(&[1, 2, 16], |policy, pressure, shards| {
            let cache =
                weighed(policy, pressure, shards).max_entries(1000).max_weight(10).build().unwrap();
            (0..500).for_each(|key| cache.insert(key, 0).unwrap());
            assert_eq!((cache.len(), cache.weight()), (500, 0));
            cache.insert(1000, 10).unwrap();
            (1001..1400).for_each(|key| cache.insert(key, 0).unwrap());
            assert_eq!((cache.len(), cache.weight(), cache.stats().evictions), (900, 10, 0));
            cache.insert(2000, 10).unwrap();
            assert_eq!((cache.get(&1000), cache.get(&2000)), (None, Some(10)));
            if pressure == MemoryPressure::LargestFirst && shards == 1 {
                assert_eq!(cache.len(), 900, "the largest alone had to go");
            }
            cache.validate();
            let none = weighed(policy, pressure, shards).max_weight(0).build().unwrap();
            (0..100).for_each(|key| none.insert(key, 0).unwrap());
            assert_eq!(none.len(), 100);
            assert!(none.insert(0, 1).is_err());
            assert_eq!(none.get(&0), Some(0));
            none.validate();
        });
    });
}

#[test]
fn entries_without_weight_are_bounded_where_weight_is_the_only_limit() {
    let builder = || ShardedCache::<u64, u64>::builder().max_weight(100).weigher(|_, _| 0);
    let cache = builder().build().unwrap();
    (0..5000).for_each(|key| cache.insert(key, key).unwrap());
    assert_eq!((cache.len(), cache.weight(), cache.max_entries()), (1024, 0, usize::MAX));
    // The bound follows from the weight, and is no other than that of entries which weigh 1.
    assert_eq!(cache.set_max_weight(2000).unwrap(), 0);
    (0..5000).for_each(|key| cache.insert(key, key).unwrap());
    assert_eq!((cache.len(), cache.max_entries()), (2000, usize::MAX));
    assert_eq!(cache.set_max_weight(1).unwrap(), 976);
    // A limit on entries that is set holds instead.
    assert_eq!(cache.set_max_entries(10), 1014);
    assert_eq!(cache.set_max_weight(5000).unwrap(), 0);
    assert_eq!((cache.len(), cache.max_entries()), (10, 10));
    cache.validate();
    // Asked otherwise.
    let cache = builder().max_entries(usize::MAX).build().unwrap();
    (0..5000).for_each(|key| cache.insert(key, key).unwrap());
    assert_eq!((cache.len(), cache.weight()), (5000, 0));
}

#[test]
fn a_small_cache_limited_by_weight_has_the_shards_of_a_small_cache() {
    let weighed = |max| {
        ShardedCache::<u64, Vec<u8>>::builder().max_weight(max).weigher(|_, v| v.len() as u64)
    };
    assert_eq!(weighed(100 * 3072).build().unwrap().shards(), 1);
    assert_eq!(weighed(8 << 20).build().unwrap().shards(), 2);
    assert!(weighed(1 << 40).build().unwrap().shards() >= 4);
    assert_eq!(weighed(1 << 40).max_entries(100).build().unwrap().shards(), 1);
    assert_eq!(weighed(100).shards(8).build().unwrap().shards(), 8);
}
