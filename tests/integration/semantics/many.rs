//! Operations on many entries at once: batches, `retain`, `clear`, `iter` and `keys`.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::support::{FakeClock, Removals, SetOnDrop, everywhere, key};
use embedding_cache::RemovalCause::{Expired, Removed};
use embedding_cache::{Clock, EmbeddingCache, EvictionPolicy, MemoryPressure, ShardedCache};

const SECOND: Duration = Duration::from_secs(1);

/// The same hash in every cache, so that two of them can be compared to the last eviction.
type Fixed = BuildHasherDefault<DefaultHasher>;

struct Subject {
    cache: ShardedCache<u64, u64, Fixed>,
    log: Removals<u64, u64>,
}

/// Full, with every fourth entry expired.
fn subject(policy: EvictionPolicy, pressure: MemoryPressure, shards: usize) -> Subject {
    let (log, clock) = (Removals::new(), FakeClock::new());
    let cache = ShardedCache::<u64, u64>::builder()
        .max_entries(200)
        .weigher(|_: &u64, value: &u64| value % 7)
        .eviction(policy)
        .memory_pressure(pressure)
        .shards(shards)
        .clock(clock.clone())
        .eviction_listener(log.listener())
        .hasher(Fixed::default())
        .build()
        .unwrap();
    for key in 0..200 {
        let life = if key % 4 == 0 { SECOND } else { 100 * SECOND };
        cache.insert_with_ttl(key, key * 10, life).unwrap();
    }
    clock.advance(2 * SECOND);
    Subject { cache, log }
}

#[test]
fn get_many_is_a_loop_of_get() {
    let hits = || (0..90).map(|i| i * 11 % 190); // some twice, every fourth expired
    let misses = [500, 500, 501];
    let one_over_a_group = || (1..18).map(|i| i * 5);
    let requests: [Vec<u64>; 7] = [
        vec![],
        vec![5],
        vec![4, 4, 4], // expired and asked for three times in one group
        misses.into_iter().chain([5, 9, 5, 8, 502]).collect(),
        one_over_a_group().collect(),
        hits().chain(misses).chain(hits()).collect(),
        vec![13; 200], // more than one lock hold notes
    ];
    everywhere(&[1, 8, 64], |policy, pressure, shards| {
        for keys in &requests {
            let (one, many) =
                (subject(policy, pressure, shards), subject(policy, pressure, shards));
            let looped: Vec<_> = keys.iter().map(|key| one.cache.get(key)).collect();
            assert_eq!(many.cache.get_many(keys), looped, "{policy:?} {keys:?}");
            assert_eq!(many.cache.stats(), one.cache.stats(), "{policy:?} {keys:?}");
            assert_eq!(many.cache.shard_stats(), one.cache.shard_stats());
            // The order of eviction is the same as well.
            for key in 1000..1200 {
                one.cache.insert(key, 0).unwrap();
                many.cache.insert(key, 0).unwrap();
            }
            assert_eq!(many.log.take(), one.log.take(), "{policy:?} {keys:?}");
            many.cache.validate();
        }
    });
}

#[test]
fn insert_many_answers_for_each_entry_and_refuses_one_alone() {
    everywhere(&[1, 8], |policy, pressure, shards| {
        let cache = ShardedCache::<u64, String>::builder()
            .max_weight(100)
            .weigher(|_: &u64, value: &String| value.len() as u64)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(shards)
            .build()
            .unwrap();
        let sizes = [10, 101, 0, 20, 500, 30, 40];
        let entries = (0..).zip(sizes.map(|size| "x".repeat(size)));
        let results = cache.insert_many(entries);
        assert_eq!(results.len(), sizes.len());
        for ((key, size), result) in (0..).zip(sizes).zip(results) {
            match result {
                Ok(()) => {
                    assert!(size <= 100);
                    assert_eq!(cache.peek(&key).unwrap().len(), size);
                }
                Err(refused) => {
                    assert!(size > 100 && refused.error().is_too_large());
                    assert_eq!(refused.into_entry(), (key, "x".repeat(size)));
                    assert!(!cache.contains_key(&key));
                }
            }
        }
        assert_eq!((cache.len(), cache.weight()), (5, 100));
        assert_eq!(cache.stats().rejected, 2);
        let twice = cache.insert_many([(3, "old".to_string()), (3, "new".to_string())]);
        assert!(twice.iter().all(Result::is_ok));
        assert_eq!(cache.get(&3).unwrap(), "new", "in their order");
        cache.validate();
    });
}

#[test]
fn retain_removes_what_it_is_told_and_what_has_expired() {
    everywhere(&[1, 2, 32], |policy, pressure, shards| {
        let Subject { cache, log } = subject(policy, pressure, shards);
        let mut asked = vec![];
        let removed = cache.retain(|&key, &value| {
            assert_eq!(value, key * 10);
            asked.push(key);
            key % 3 == 0
        });
        asked.sort_unstable();
        let live: Vec<u64> = (0..200).filter(|key| key % 4 != 0).collect();
        assert_eq!(asked, live, "asked once about each live entry, about no expired one");

        let (mut told, mut expected) = (log.take(), vec![]);
        for key in 0..200 {
            if key % 4 == 0 {
                expected.push((key, key * 10, Expired));
            } else if key % 3 != 0 {
                expected.push((key, key * 10, Removed));
            }
        }
        told.sort_unstable_by_key(|&(key, _, _)| key);
        assert_eq!(told, expected);
        assert_eq!(removed, expected.len());
        assert_eq!(cache.len(), 200 - expected.len());
        let stats = cache.stats();
        assert_eq!(stats.expired_entries, 50);
        assert_eq!(stats.removals as usize, expected.len() - 50);
        assert_eq!((stats.hits, stats.misses, stats.evictions), (0, 0, 0));
        for key in 0..200 {
            assert_eq!(cache.contains_key(&key), key % 4 != 0 && key % 3 == 0);
        }
        cache.validate();

        assert_eq!(cache.retain(|_, _| false), 200 - expected.len());
        assert_eq!((cache.len(), cache.weight()), (0, 0));
        cache.validate();
    });
}

#[tokio::test]
async fn retain_of_the_embedding_cache_sees_whole_keys() {
    let cache = EmbeddingCache::new(100, 3600, 1);
    for i in 0..10 {
        cache.put(key(i).with_chunk(i.to_string()), [i as f32]).await.unwrap();
    }
    let removed = cache
        .retain(|asked, vector| {
            let i = vector[0] as usize;
            assert_eq!(*asked, key(i).with_chunk(i.to_string()));
            i < 4
        })
        .await;
    assert_eq!((removed, cache.size().await), (6, 4));
    assert!(cache.get(&key(3).with_chunk("3")).await.is_some());
    assert!(cache.get(&key(4).with_chunk("4")).await.is_none());
}

#[test]
fn clear_removes_everything_and_leaves_a_cache_that_works() {
    everywhere(&[1, 2, 32], |policy, pressure, shards| {
        let Subject { cache, log } = subject(policy, pressure, shards);
        cache.get(&1);
        cache.clear();
        assert_eq!((cache.len(), cache.weight(), cache.is_empty()), (0, 0, true));
        assert_eq!((cache.get(&1), cache.peek(&2), cache.iter().count()), (None, None, 0));
        let mut told = log.take();
        told.sort_unstable_by_key(|&(key, _, _)| key);
        let all: Vec<_> = (0..200).map(|key| (key, key * 10, Removed)).collect();
        assert_eq!(told, all);
        let stats = cache.stats();
        assert_eq!((stats.removals, stats.evictions, stats.hits), (200, 0, 1));
        cache.validate();

        for key in 0..300 {
            cache.insert(key, key).unwrap();
        }
        assert_eq!(cache.len(), 200);
        assert_eq!(cache.stats().evictions, 100);
        cache.clear();
        cache.clear();
        cache.validate();
    });
}

#[test]
fn iter_and_keys_show_the_live_entries_once_each() {
    everywhere(&[1, 2, 32], |policy, pressure, shards| {
        let Subject { cache, .. } = subject(policy, pressure, shards);
        for key in (1..200).step_by(8) {
            cache.remove(&key); // holes in the storage
        }
        let expected: Vec<u64> = (0..200).filter(|key| key % 4 != 0 && key % 8 != 1).collect();
        let mut entries: Vec<_> = cache.iter().collect();
        entries.sort_unstable();
        assert!(entries.iter().copied().eq(expected.iter().map(|&key| (key, key * 10))));
        let mut keys: Vec<_> = cache.keys().collect();
        keys.sort_unstable();
        assert_eq!(keys, expected);
        let mut iter = cache.iter();
        assert_eq!(iter.by_ref().count(), expected.len());
        assert_eq!(iter.next(), None, "ended is ended");
    });
}

/// While two threads insert and remove other keys, and a third replaces the values of these.
#[test]
fn iter_and_keys_show_an_entry_that_is_there_all_the_time_once() {
    const STABLE: u64 = 1000;
    for shards in [1, 8] {
        let cache =
            ShardedCache::<u64, u64>::builder().max_entries(5000).shards(shards).build().unwrap();
        let done = AtomicBool::new(false);
        (0..STABLE).for_each(|key| cache.insert(key, 0).unwrap());
        thread::scope(|scope| {
            let _done = SetOnDrop(&done);
            for writer in 1..=2 {
                let (cache, done) = (&cache, &done);
                scope.spawn(move || {
                    let others = writer * 10_000..writer * 10_000 + 500;
                    while !done.load(Relaxed) {
                        others.clone().for_each(|key| cache.insert(key, 0).unwrap());
                        for key in others.clone().rev() {
                            cache.remove(&key);
                        }
                    }
                });
            }
            scope.spawn(|| {
                let mut round = 0;
                while !done.load(Relaxed) {
                    round += 1;
                    cache.insert(round % STABLE, round).unwrap();
                }
            });
            for _ in 0..20 {
                let mut seen: HashMap<u64, u32> = HashMap::new();
                cache.keys().for_each(|key| *seen.entry(key).or_default() += 1);
                cache.iter().for_each(|(key, _)| *seen.entry(key).or_default() += 1);
                for key in 0..STABLE {
                    assert_eq!(seen.get(&key), Some(&2), "once by keys and once by iter: {key}");
                }
            }
        });
        cache.validate();
    }
}

/// The iterator holds no lock between two items, so its user may do anything with the cache.
#[test]
fn the_user_of_an_iterator_may_write() {
    crate::support::in_time(|| {
        let cache = ShardedCache::<u64, u64>::builder().max_entries(500).shards(2).build().unwrap();
        (0..400).for_each(|key| cache.insert(key, key).unwrap());
        for (key, value) in cache.iter() {
            assert_eq!(cache.remove(&key), Some(value));
        }
        assert!(cache.is_empty());
        (0..400).for_each(|key| cache.insert(key, key).unwrap());
        cache.keys().for_each(|key| cache.insert(key, 0).unwrap());
        assert!(cache.iter().all(|(_, value)| value == 0));
        cache.validate();
    });
}

/// A batch looks up each key while it holds no lock that a writer of the same batch would need.
#[test]
fn batches_and_writers_over_the_same_shards_do_not_deadlock() {
    crate::support::in_time(|| {
        let cache = Arc::new(
            ShardedCache::<u64, u64>::builder().max_entries(64).shards(8).build().unwrap(),
        );
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 0..300 {
                        let keys: Vec<u64> =
                            (0..40).map(|i| (i * 7 + round + thread) % 96).collect();
                        if thread % 2 == 0 {
                            for (key, value) in keys.iter().zip(cache.get_many(&keys)) {
                                assert!(value.is_none_or(|value| value == *key));
                            }
                        } else {
                            cache.insert_many(keys.iter().map(|&key| (key, key)));
                        }
                    }
                });
            }
        });
        assert_eq!(cache.len(), 64);
        cache.validate();
    });
}

/// A clock that counts how often it is read.
#[derive(Default)]
struct CountingClock(AtomicUsize);

impl Clock for CountingClock {
    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.fetch_add(1, Relaxed) as u64)
    }
}

#[test]
fn a_batch_reads_the_clock_once_for_each_group_and_shard() {
    let clock = Arc::new(CountingClock::default());
    let cache = ShardedCache::<u64, u64>::builder()
        .max_entries(1000)
        .time_to_live(100 * SECOND)
        .shards(2)
        .clock(clock.clone())
        .build()
        .unwrap();
    let reads = |batch: &dyn Fn()| {
        let before = clock.0.load(Relaxed);
        batch();
        clock.0.load(Relaxed) - before
    };
    let keys: Vec<u64> = (0..64).collect();
    let put = reads(&|| drop(cache.insert_many(keys.iter().map(|&key| (key, key)))));
    assert!(put <= 3, "{put} for a group of 64 in two shards");
    let got = reads(&|| assert_eq!(cache.get_many(&keys).iter().flatten().count(), 64));
    assert!(got <= 3, "{got} for a group of 64 in two shards");
}
