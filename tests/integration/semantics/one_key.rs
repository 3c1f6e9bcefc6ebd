//! What get, put and remove do, and who leaves to make room.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{FakeClock, POLICIES, PRESSURES, Removals, everywhere, key};
use embedding_cache::RemovalCause::{Expired, Replaced, Size, Weight};
use embedding_cache::{
    CacheKey, EmbeddingCache, EmbeddingVector, EvictionPolicy, MemoryPressure, RemovalCause,
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

fn lru(max_entries: usize) -> Cache {
    Cache::builder()
        .max_entries(max_entries)
        .eviction(EvictionPolicy::Lru)
        .shards(1)
        .build()
        .unwrap()
}

/// Which of `keys` are there; asking counts as nothing.
fn present(cache: &Cache, keys: impl IntoIterator<Item = u64>) -> Vec<u64> {
    keys.into_iter().filter(|key| cache.contains_key(key)).collect()
}

#[test]
fn the_last_value_put_is_got_until_it_is_removed() {
    everywhere(&[1, 8], |policy, pressure, shards| {
        let cache = weighed(policy, pressure, shards).max_entries(1000).build().unwrap();
        for round in 0..3 {
            for key in 0..100 {
                cache.insert(key, key + round).unwrap();
            }
            for key in 0..100 {
                assert_eq!(cache.get(&key), Some(key + round));
                assert_eq!(cache.peek(&key), Some(key + round));
                assert!(cache.contains_key(&key));
            }
        }
        assert_eq!(cache.get(&100), None);
        for key in 0..100 {
            assert_eq!(cache.remove(&key), Some(key + 2));
            assert_eq!(cache.remove(&key), None);
            assert_eq!((cache.get(&key), cache.peek(&key)), (None, None));
            assert!(!cache.contains_key(&key) && cache.entry_info(&key).is_none());
            cache.validate();
        }
        assert!(cache.is_empty());
        assert_eq!(cache.weight(), 0);
    });
}

#[tokio::test]
async fn a_hit_shares_the_stored_vector_and_copies_nothing() {
    let cache = EmbeddingCache::new(10, 3600, 1);
    let vector = EmbeddingVector::from(vec![0.5; 768]);
    cache.put(key(1), vector.clone()).await.unwrap();
    for got in [
        cache.get(&key(1)).await,
        cache.get_with_timeout(&key(1), 1000).await.unwrap(),
        cache.get_blocking(&key(1)),
        cache.remove(&key(1)).await,
    ] {
        assert!(got.unwrap().ptr_eq(&vector));
    }
}

#[tokio::test]
async fn keys_that_differ_anywhere_are_different_keys() {
    let keys = [
        CacheKey::new("ab", "c"),
        CacheKey::new("a", "bc"),
        CacheKey::new("abc", ""),
        CacheKey::new("", "abc"),
        CacheKey::new("ab", "c").with_chunk(""),
        CacheKey::new("a", "b").with_chunk("c"),
        CacheKey::new("ab", "").with_chunk("c"),
        CacheKey::new("", "").with_chunk("abc"),
        CacheKey::new("", ""),
        CacheKey::new("AB", "c"),
    ];
    let cache = EmbeddingCache::new(100, 3600, 1);
    for (i, key) in keys.iter().enumerate() {
        cache.put(key.clone(), vec![i as f32]).await.unwrap();
    }
    assert_eq!(cache.size().await, keys.len());
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(cache.get(key).await.unwrap(), [i as f32], "{key:?}");
    }
}

#[test]
fn a_lookup_takes_any_borrowed_form_of_the_key() {
    let cache = ShardedCache::<String, u64>::builder().max_entries(10).build().unwrap();
    cache.insert("key".to_string(), 1).unwrap();
    assert_eq!(cache.get("key"), Some(1));
    assert_eq!(cache.get(&"key".to_string()), Some(1));
    assert_eq!(cache.get_many(["key", "other"]), [Some(1), None]);
    assert_eq!(cache.remove("key"), Some(1));
}

/// Something to do with a cache, and its name.
type Step = (&'static str, fn(&Cache));

/// The keys 0, 1 and 2 are there, put in this order; `use_it` does something with 0; then 3 comes.
/// Says who made way.
fn victim_after(use_it: impl FnOnce(&Cache)) -> Vec<u64> {
    let cache = lru(3);
    (0..3).for_each(|key| cache.insert(key, key).unwrap());
    use_it(&cache);
    cache.insert(3, 3).unwrap();
    cache.validate();
    (0..4).filter(|key| !cache.contains_key(key)).collect()
}

#[test]
fn lru_is_by_use_both_by_get_and_by_put() {
    let uses: [Step; 8] = [
        ("get", |cache| assert_eq!(cache.get(&0), Some(0))),
        ("get_many", |cache| assert_eq!(cache.get_many([&0]), [Some(0)])),
        ("try_get_for", |cache| drop(cache.try_get_for(&0, Duration::ZERO))),
        ("insert", |cache| cache.insert(0, 9).unwrap()),
        ("insert_many", |cache| drop(cache.insert_many([(0, 9)]))),
        ("insert_with_ttl", |cache| {
            cache.insert_with_ttl(0, 9, Duration::from_secs(1000)).unwrap();
        }),
        ("try_insert_for", |cache| {
            cache.try_insert_for(0, 9, Duration::from_secs(1)).unwrap();
        }),
        ("get again after others", |cache| {
            for key in [0, 1, 2, 1, 2, 0] {
                cache.get(&key);
            }
        }),
    ];
    for (name, use_it) in uses {
        assert_eq!(victim_after(use_it), [1], "{name} is a use of 0, so 1 leaves");
    }
    assert_eq!(victim_after(|_| ()), [0], "unused, the one put first leaves");
    let both = |cache: &Cache| {
        cache.get(&0);
        cache.insert(1, 9).unwrap();
    };
    assert_eq!(victim_after(both), [2]);
}

#[test]
fn looking_without_using_changes_neither_the_order_nor_a_count() {
    let looks: [Step; 8] = [
        ("peek", |cache| assert_eq!(cache.peek(&0), Some(0))),
        ("peek of nothing", |cache| assert_eq!(cache.peek(&7), None)),
        ("contains_key", |cache| assert!(cache.contains_key(&0) && !cache.contains_key(&7))),
        ("entry_info", |cache| assert!(cache.entry_info(&0).is_some())),
        ("iter", |cache| assert_eq!(cache.iter().count(), 3)),
        ("keys", |cache| assert_eq!(cache.keys().count(), 3)),
        ("retain", |cache| assert_eq!(cache.retain(|_, _| true), 0)),
        ("cleanup_expired", |cache| assert_eq!(cache.cleanup_expired(), 0)),
    ];
    for (name, look) in looks {
        let victims = victim_after(|cache| {
            let before = cache.stats();
            look(cache);
            assert_eq!(cache.stats(), before, "{name} counts");
        });
        assert_eq!(victims, [0], "{name} is a use");
    }
}

#[tokio::test]
async fn the_documented_cache_evicts_by_use_through_every_method() {
    for way in 0..7 {
        let cache = EmbeddingCache::new(3, 3600, 100);
        for i in 0..3 {
            cache.put(key(i), [i as f32]).await.unwrap();
        }
        match way {
            0 => drop(cache.get(&key(0)).await),
            1 => drop(cache.get_with_timeout(&key(0), 1000).await),
            2 => drop(cache.get_blocking(&key(0))),
            3 => cache.put(key(0), [9.0]).await.unwrap(),
            4 => cache.put_with_timeout(key(0), [9.0], 1000).await.unwrap(),
            5 => cache.put_blocking(key(0), [9.0]).unwrap(),
            _ => {}
        }
        cache.put(key(3), [3.0]).await.unwrap();
        let mut gone = vec![];
        for i in 0..4 {
            if cache.get(&key(i)).await.is_none() {
                gone.push(i);
            }
        }
        assert_eq!(gone, [if way == 6 { 0 } else { 1 }], "way {way}");
    }
}

/// Many more hits than are noted before one of them takes the write lock, in an order that has
/// nothing to do with the order of the puts.
#[test]
fn lru_order_is_exact_after_any_number_of_hits() {
    const N: u64 = 101;
    let log = Removals::new();
    let cache = Cache::builder()
        .max_entries(N as usize)
        .eviction(EvictionPolicy::Lru)
        .shards(1)
        .eviction_listener(log.listener())
        .build()
        .unwrap();
    (0..N).for_each(|key| cache.insert(key, 0).unwrap());
    let mut order: Vec<u64> = (0..N).collect();
    let mut use_it = |key: u64| {
        order.retain(|&other| other != key);
        order.push(key);
    };
    let mut state = 7_u64;
    for step in 0..2000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let key = (state >> 33) % N;
        if step % 97 == 0 {
            cache.insert(key, step).unwrap();
        } else {
            assert!(cache.get(&key).is_some());
        }
        use_it(key);
    }
    log.take();
    (N..2 * N).for_each(|key| cache.insert(key, 0).unwrap());
    let left: Vec<u64> = log.take().into_iter().map(|(key, _, _)| key).collect();
    assert_eq!(left, order);
    cache.validate();
}

/// However many hits came before it, a batch counts as its keys one after the other.
#[test]
fn a_batch_uses_its_keys_in_their_order() {
    for hits_before in 0..150 {
        let cache = lru(3);
        (0..3).for_each(|key| cache.insert(key, key).unwrap());
        (0..hits_before).for_each(|i| assert!(cache.get(&(i % 2)).is_some()));
        assert_eq!(cache.get_many([&0, &1, &2, &1]), [Some(0), Some(1), Some(2), Some(1)]);
        cache.insert(3, 3).unwrap();
        assert_eq!(present(&cache, 0..4), [1, 2, 3], "after {hits_before} hits");
        cache.insert(4, 4).unwrap();
        assert_eq!(present(&cache, 0..5), [1, 3, 4], "after {hits_before} hits");
    }
}

#[test]
fn s3_fifo_keeps_what_is_in_use_through_a_scan() {
    let cache = Cache::builder()
        .max_entries(200)
        .eviction(EvictionPolicy::S3Fifo)
        .shards(1)
        .build()
        .unwrap();
    for _ in 0..4 {
        for key in 0..50 {
            if cache.get(&key).is_none() {
                cache.insert(key, key).unwrap();
            }
        }
    }
    for key in 1000..3000 {
        cache.insert(key, key).unwrap();
        assert!(cache.contains_key(&key), "a value just put is there to be got");
    }
    assert_eq!(present(&cache, 0..50).len(), 50);
    cache.validate();
}

#[test]
fn expired_entries_leave_first_whatever_the_policy_and_the_shortage() {
    let second = Duration::from_secs(1);
    everywhere(&[1], |policy, pressure, shards| {
        for by_weight in [false, true] {
            let (log, clock) = (Removals::new(), FakeClock::new());
            let builder = weighed(policy, pressure, shards).clock(clock.clone());
            let builder = if by_weight { builder.max_weight(100) } else { builder.max_entries(3) };
            let cache = builder.eviction_listener(log.listener()).build().unwrap();
            cache.insert(0, 40).unwrap(); // the least recently used, the oldest and the largest
            cache.insert_with_ttl(1, 30, second).unwrap();
            cache.insert(2, 30).unwrap();
            for _ in 0..3 {
                assert_eq!(cache.get(&1), Some(30)); // the most used and most recently used
            }
            clock.advance(2 * second);
            cache.insert(3, 25).unwrap();
            let case = format!("{policy:?} {pressure:?} by weight: {by_weight}");
            assert_eq!(log.take(), [(1, 30, Expired)], "{case}");
            assert_eq!(present(&cache, 0..4), [0, 2, 3], "{case}");
            let stats = cache.stats();
            assert_eq!((stats.expired_entries, stats.evictions), (1, 0), "{case}");
            cache.validate();
        }
    });
}

/// 0 is the least recently used, 1 the largest, 2 neither; both limits are in the way of 3.
fn both_limits_in_the_way(pressure: MemoryPressure) -> Vec<(u64, u64, RemovalCause)> {
    let log = Removals::new();
    let cache = weighed(EvictionPolicy::Lru, pressure, 1)
        .max_entries(3)
        .max_weight(100)
        .eviction_listener(log.listener())
        .build()
        .unwrap();
    for (key, weight) in [(1, 50), (0, 10), (2, 12)] {
        cache.insert(key, weight).unwrap();
    }
    for key in [0, 2, 1] {
        cache.get(&key);
    }
    cache.insert(3, 45).unwrap();
    assert!(cache.contains_key(&3));
    cache.validate();
    log.take()
}

#[test]
fn the_least_recently_used_leaves_over_the_entries_then_the_largest_over_the_memory() {
    let documented = both_limits_in_the_way(MemoryPressure::LargestFirst);
    assert_eq!(documented, [(0, 10, Size), (1, 50, Weight)]);
    let by_use_alone = both_limits_in_the_way(MemoryPressure::PolicyOrder);
    assert_eq!(by_use_alone, [(0, 10, Size), (2, 12, Weight)]);
}

/// The same through `EmbeddingCache::new`, which has no listener: who is left tells it.
#[tokio::test]
async fn the_documented_cache_follows_the_documented_order() {
    const KIB: usize = 1024 / size_of::<f32>();
    let cache = EmbeddingCache::new(3, 3600, 1);
    for (i, kib) in [(1, 500), (0, 100), (2, 120)] {
        cache.put(key(i), vec![0.5; kib * KIB]).await.unwrap();
    }
    for i in [0, 2, 1] {
        assert!(cache.get(&key(i)).await.is_some());
    }
    cache.put(key(3), vec![0.5; 450 * KIB]).await.unwrap();
    let stats = cache.stats();
    assert_eq!((stats.evicted_by_entries, stats.evicted_by_weight), (1, 1));
    for (i, there) in [(0, false), (1, false), (2, true), (3, true)] {
        assert_eq!(cache.get(&key(i)).await.is_some(), there, "{i}");
    }
}

#[test]
fn of_equally_large_entries_the_policy_chooses() {
    for (policy, victim) in [(EvictionPolicy::Lru, 1), (EvictionPolicy::S3Fifo, 0)] {
        let log = Removals::new();
        let cache = weighed(policy, MemoryPressure::LargestFirst, 1)
            .max_weight(100)
            .eviction_listener(log.listener())
            .build()
            .unwrap();
        (0..3).for_each(|key| cache.insert(key, 30).unwrap());
        cache.insert(3, 10).unwrap(); // lighter, so out of the question
        cache.get(&0);
        cache.insert(4, 5).unwrap();
        assert_eq!(log.take(), [(victim, 30, Weight)], "{policy:?}");
    }
}

#[test]
fn an_update_evicts_nobody_unless_the_entry_grows() {
    everywhere(&[1, 2, 16], |policy, pressure, shards| {
        let log = Removals::new();
        let cache = weighed(policy, pressure, shards)
            .max_entries(10)
            .max_weight(100)
            .eviction_listener(log.listener())
            .build()
            .unwrap();
        (0..10).for_each(|key| cache.insert(key, 10).unwrap());
        assert_eq!((cache.len(), cache.weight()), (10, 100), "both limits are reached");

        for key in (0..10).chain([3, 3, 3]) {
            cache.insert(key, 10).unwrap(); // the same size
            assert_eq!(log.take(), [(key, 10, Replaced)]);
        }
        cache.insert(5, 4).unwrap(); // smaller
        cache.insert(7, 16).unwrap(); // grows into what 5 has given up
        assert_eq!(log.take(), [(5, 10, Replaced), (7, 10, Replaced)]);
        assert_eq!((cache.len(), cache.weight()), (10, 100));

        cache.insert(5, 5).unwrap(); // grows by 1 with no room left: one other leaves, not 5
        let mut told = log.take();
        assert_eq!(told.len(), 2, "{told:?}");
        told.retain(|&(_, _, cause)| cause == Weight);
        assert_eq!(told.len(), 1);
        assert_ne!(told[0].0, 5);
        assert_eq!(cache.get(&5), Some(5));
        assert_eq!(cache.len(), 9);
        cache.validate();

        cache.insert(5, 100).unwrap(); // grows until it is alone
        assert_eq!((cache.len(), cache.weight(), cache.get(&5)), (1, 100, Some(100)));
        let stats = cache.stats();
        assert_eq!((stats.insertions, stats.updates), (10, 17));
        cache.validate();
    });
}

/// The same in the documented cache, where a put of what is there was once an eviction.
#[tokio::test]
async fn the_documented_cache_updates_in_place() {
    let cache = EmbeddingCache::new(2, 3600, 1);
    for round in 0..5 {
        for i in 0..2 {
            cache.put(key(i), vec![round as f32; 100_000]).await.unwrap();
        }
    }
    assert_eq!(cache.size().await, 2);
    let stats = cache.stats();
    assert_eq!((stats.insertions, stats.updates, stats.evictions), (2, 8, 0));
    assert_eq!(cache.get(&key(0)).await.unwrap()[0], 4.0);
}

#[test]
fn replaced_and_evicted_values_are_let_go() {
    for policy in POLICIES {
        for pressure in PRESSURES {
            let cache = ShardedCache::<u64, Arc<()>>::builder()
                .max_entries(4)
                .eviction(policy)
                .memory_pressure(pressure)
                .build()
                .unwrap();
            let value = Arc::new(());
            for key in 0..100 {
                cache.insert(key % 10, value.clone()).unwrap();
            }
            assert_eq!(Arc::strong_count(&value), 1 + 4, "only what is held");
            cache.clear();
            assert_eq!(Arc::strong_count(&value), 1);
        }
    }
}
