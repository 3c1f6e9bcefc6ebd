//! The limits hold at every instant that another thread can see, whatever the writers do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use embedding_cache::{CacheError, EmbeddingCache, EvictionPolicy, MemoryPressure, ShardedCache};
use rand::Rng;

use super::{each, numbers, sampled};
use crate::support::{everywhere, in_time, key};

const WRITERS: u64 = 8;
const MAX_ENTRIES: usize = 40;
const MAX_WEIGHT: u64 = 1000;

/// A value is its weight.
type Cache = ShardedCache<u64, u64>;

fn cache(policy: EvictionPolicy, pressure: MemoryPressure, shards: usize) -> Arc<Cache> {
    let builder = ShardedCache::builder()
        .max_entries(MAX_ENTRIES)
        .max_weight(MAX_WEIGHT)
        .weigher(|_: &u64, &weight: &u64| weight)
        .shards(shards)
        .eviction(policy)
        .memory_pressure(pressure);
    Arc::new(builder.build().unwrap())
}

/// Small entries, some large ones, now and then one that fills the cache alone or cannot fit: most
/// of the time the weight is the limit, at others the number.
fn weight(rng: &mut impl Rng) -> u64 {
    match rng.random_range(0..100) {
        0 => MAX_WEIGHT,
        1 => MAX_WEIGHT + 1,
        2..20 => rng.random_range(100..400),
        20..50 => rng.random_range(10..50),
        _ => rng.random_range(0..5),
    }
}

/// Inserts, replacements that grow and shrink, removals and reads over a few more keys than fit.
fn churn(cache: &Cache, writer: u64, times: u64) {
    let mut rng = numbers(writer);
    for _ in 0..times {
        let key = rng.random_range(0..120);
        match rng.random_range(0..10) {
            0 => drop(cache.remove(&key)),
            1 => drop(cache.get(&key)),
            2 => drop(cache.insert_with_ttl(key, weight(&mut rng), Duration::ZERO)),
            _ => {
                let weight = weight(&mut rng);
                if let Err(refused) = cache.insert(key, weight) {
                    let error = refused.error();
                    assert_eq!(error.is_too_large(), weight > MAX_WEIGHT, "{error}");
                    assert!(error.is_too_large() || error.is_contended(), "{error}");
                }
            }
        }
    }
}

#[test]
fn no_sample_ever_shows_more_than_the_limits_while_eight_threads_write() {
    everywhere(&[1, 4, 64], |policy, pressure, shards| {
        in_time(move || {
            let cache = cache(policy, pressure, shards);
            let write = |writer| churn(&cache, writer, 1500);
            sampled(each(0..WRITERS, &write), || {
                assert!(cache.len() <= MAX_ENTRIES, "{} entries", cache.len());
                assert!(cache.weight() <= MAX_WEIGHT, "weight {}", cache.weight());
            });
            cache.validate();
            let held: Vec<_> = cache.shard_stats();
            assert_eq!(held.iter().map(|shard| shard.entries).sum::<usize>(), cache.len());
            assert_eq!(held.iter().map(|shard| shard.weight).sum::<u64>(), cache.weight());
        });
    });
}

/// Fewer entries than shards: nearly every put must take its room from another shard, and threads
/// hold it in their reservations most of the time.
#[test]
fn puts_into_caches_smaller_than_their_shards_come_to_an_end_and_fill_them() {
    const THREADS: u64 = 8;
    const PUTS: u64 = 400;
    for max in 1..=3 {
        let contended = in_time(move || {
            let cache =
                ShardedCache::<u64, u64>::builder().max_entries(max).shards(16).build().unwrap();
            let contended = AtomicU64::new(0);
            let put = |thread: u64| {
                for i in 0..PUTS {
                    if let Err(refused) = cache.insert(thread * PUTS + i, i) {
                        assert!(refused.error().is_contended(), "{refused}");
                        contended.fetch_add(1, Relaxed);
                    }
                }
            };
            sampled(each(0..THREADS, &put), || {
                assert!(cache.len() <= max, "{} entries", cache.len());
            });
            assert_eq!(cache.len(), max, "distinct keys, so the cache is full");
            cache.validate();
            let stats = cache.stats();
            assert_eq!(stats.insertions + stats.rejected, THREADS * PUTS);
            assert_eq!(stats.rejected, contended.load(Relaxed));
            contended.into_inner()
        });
        println!("{contended} of {} puts found no room with {max} entries", THREADS * PUTS);
    }
}

/// All room is in a shard that readers never leave alone; that is no reason to refuse a put.
#[test]
fn readers_alone_never_make_a_put_fail() {
    in_time(|| {
        let cache = ShardedCache::<u64, u64>::builder().max_entries(1).shards(16).build().unwrap();
        let (current, done) = (AtomicU64::new(0), AtomicBool::new(false));
        cache.insert(0, 0).unwrap();
        let read = |_| {
            while !done.load(Relaxed) {
                cache.get(&current.load(Relaxed));
            }
        };
        let mut workers = each(0..4, &read);
        workers.push(Box::new(|| {
            let put = |key| cache.insert(key, key).map(|()| current.store(key, Relaxed));
            let result = (1..2000).try_for_each(put);
            done.store(true, Relaxed);
            result.unwrap();
        }));
        sampled(workers, || {});
    });
}

#[test]
fn the_async_door_keeps_both_limits_with_many_tasks() {
    in_time(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build();
        let runtime = runtime.unwrap();
        let cache = EmbeddingCache::new(300, 3600, 1);
        let info = cache.info();
        let put = async |task: usize| -> Result<(), CacheError> {
            for i in 0..150 {
                let key = key((task * 37 + i * 11) % 1000);
                let dimensions = [32, 768, 3072][(task + i) % 3];
                match cache.put(key.clone(), vec![0.5; dimensions]).await {
                    Err(error) if !error.is_contended() => return Err(error),
                    _ => {}
                }
                cache.get(&key).await;
            }
            Ok(())
        };
        let work = |first: usize| {
            runtime.block_on(async {
                for task in first..first + 4 {
                    put(task).await.unwrap();
                }
            });
        };
        sampled(each((0..32).step_by(4), &work), || {
            let now = cache.info();
            assert!(now.size <= info.max_size, "{now:?}");
            assert!(now.memory_bytes <= info.memory_limit_bytes, "{now:?}");
        });
        assert!(cache.stats().evictions > 0);
    });
}
