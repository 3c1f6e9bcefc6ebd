//! The whole core at small sizes, so that Miri can walk through it: every policy, every kind of
//! operation, and a few threads. Runs with the other tests as well.

use std::sync::Arc;
use std::time::Duration;

use embedding_cache::{
    CacheKey, EmbeddingCache, EmbeddingVector, EvictionPolicy, MemoryPressure, RemovalCause,
    ShardedCache,
};

const POLICIES: [EvictionPolicy; 3] =
    [EvictionPolicy::Lru, EvictionPolicy::S3Fifo, EvictionPolicy::HitDensity];
const PRESSURES: [MemoryPressure; 2] = [MemoryPressure::PolicyOrder, MemoryPressure::LargestFirst];

const OPERATIONS: usize = if cfg!(miri) { 20 } else { 200 };

fn cache(
    policy: EvictionPolicy,
    pressure: MemoryPressure,
    shards: usize,
) -> ShardedCache<String, Arc<[u8]>> {
    ShardedCache::builder()
        .max_entries(12)
        .max_weight(60)
        .weigher(|key: &String, value: &Arc<[u8]>| (key.len() + value.len()) as u64)
        .eviction(policy)
        .memory_pressure(pressure)
        .shards(shards)
        .build()
        .unwrap()
}

fn value(len: usize) -> Arc<[u8]> {
    vec![len as u8; len].into()
}

#[test]
fn every_operation_keeps_the_core_whole() {
    for policy in POLICIES {
        for pressure in PRESSURES {
            for shards in [1, 2] {
                let cache = cache(policy, pressure, shards);
                for i in 0..OPERATIONS {
                    let key = format!("{}", i * 7 % 23);
                    match i % 9 {
                        0 => drop(cache.remove(&key)),
                        1 => {
                            cache.insert_with_ttl(key, value(3), Duration::ZERO).unwrap();
                        }
                        2 => drop(cache.get_many(["0", "7", "nowhere", "7"])),
                        _ => cache.insert(key, value(i % 6)).unwrap(),
                    }
                    cache.get("14");
                    // Walking through everything is what takes Miri longest.
                    if !cfg!(miri) || i % 10 == 9 {
                        cache.validate();
                    }
                }
                assert!(cache.insert("too large".into(), value(60)).is_err());
                cache.cleanup_expired();
                cache.retain(|_, value| value.len() != 2);
                assert_eq!(cache.iter().count(), cache.keys().count());
                cache.set_max_entries(3);
                cache.set_max_weight(20).unwrap();
                cache.validate();
                cache.clear();
                cache.validate();
                assert!(cache.is_empty());
            }
        }
    }
}

#[test]
fn threads_share_it_and_limits_hold() {
    for policy in POLICIES {
        let cache = cache(policy, MemoryPressure::PolicyOrder, 2);
        std::thread::scope(|scope| {
            for thread in 0..3usize {
                let cache = &cache;
                scope.spawn(move || {
                    for i in 0..OPERATIONS / 2 {
                        let key = format!("{}", (thread + i * 5) % 17);
                        cache.insert(key.clone(), value(i % 5)).unwrap();
                        if let Some(found) = cache.get(&key) {
                            assert!(found.iter().all(|&byte| usize::from(byte) == found.len()));
                        }
                        assert!(cache.len() <= 12 && cache.weight() <= 60);
                    }
                });
            }
            scope.spawn(|| {
                (0..4).for_each(|_| {
                    cache.cleanup_expired();
                });
            });
        });
        cache.validate();
        let stats = cache.stats();
        assert_eq!(stats.total_requests(), 3 * OPERATIONS as u64 / 2);
    }
}

#[test]
fn the_embedding_door_works_without_a_runtime() {
    let left = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = left.clone();
    let cache = EmbeddingCache::builder()
        .max_entries(2)
        .shards(1)
        .eviction(EvictionPolicy::Lru)
        .eviction_listener(move |key: &CacheKey, _: &EmbeddingVector, cause: RemovalCause| {
            seen.lock().unwrap().push((key.content_hash.clone(), cause));
        })
        .build()
        .unwrap();
    for name in ["a", "b", "a", "c"] {
        cache.put_blocking(CacheKey::new(name, "m"), [1.0, 2.0]).unwrap();
    }
    assert_eq!(cache.get_blocking(&CacheKey::new("a", "m")).unwrap(), [1.0, 2.0]);
    let left = left.lock().unwrap();
    assert_eq!(*left, [("a".into(), RemovalCause::Replaced), ("b".into(), RemovalCause::Size)]);
}
