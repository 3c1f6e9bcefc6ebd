//! What is counted, and what the listener is told.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use crate::support::{FakeClock, HANG, POLICIES, PRESSURES, Removals, everywhere, in_time, key};
use embedding_cache::RemovalCause::{Expired, Removed, Replaced, Size, Weight};
use embedding_cache::{
    CacheStats, EmbeddingCache, EmbeddingVector, EvictionPolicy, MemoryPressure, RemovalCause,
    ShardedCache, ShardedCacheBuilder,
};

type Cache = ShardedCache<u64, u64>;

const SECOND: Duration = Duration::from_secs(1);

/// What a thread saw of its own operations.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    hits: u64,
    misses: u64,
    stored: u64,
    refused: u64,
    removed: u64,
}

impl Seen {
    fn got(&mut self, value: Option<u64>) {
        *if value.is_some() { &mut self.hits } else { &mut self.misses } += 1;
    }

    fn put<E>(&mut self, result: Result<(), E>) {
        *if result.is_ok() { &mut self.stored } else { &mut self.refused } += 1;
    }

    fn add(&mut self, other: Self) {
        self.hits += other.hits;
        self.misses += other.misses;
        self.stored += other.stored;
        self.refused += other.refused;
        self.removed += other.removed;
    }
}

/// Some of everything, on keys that the threads have in common.
fn traffic(cache: &Cache, clock: &FakeClock, thread: u64, steps: u64) -> Seen {
    let mut seen = Seen::default();
    for step in 0..steps {
        let key = (step * 31 + thread * 17) % 100;
        match step % 12 {
            0..4 => seen.got(cache.get(&key)),
            4 => seen.got(cache.try_get_for(&key, HANG).unwrap()),
            5 => {
                let keys = [key, key + 1, key];
                cache.get_many(&keys).into_iter().for_each(|value| seen.got(value));
            }
            6 => assert!(cache.peek(&key).is_none_or(|value| value < steps)),
            7 => seen.removed += u64::from(cache.remove(&key).is_some()),
            8 if step % 48 == 8 => clock.advance(SECOND),
            8 => assert!(cache.cleanup_expired() <= 60),
            9 => seen.put(cache.insert_with_ttl(key, step, SECOND)),
            _ => seen.put(cache.insert(key, step)),
        }
    }
    seen
}

#[test]
fn every_count_is_exact_once_the_threads_are_joined() {
    const THREADS: u64 = 4;
    const STEPS: u64 = 3000;
    everywhere(&[1, 8], |policy, pressure, shards| {
        let (clock, told) = (FakeClock::new(), Arc::new(Mutex::new(HashMap::new())));
        let cache = Cache::builder()
            .max_entries(60)
            .max_weight(500)
            .weigher(|_: &u64, value: &u64| value % 20)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(shards)
            .clock(clock.clone())
            .eviction_listener({
                let told = told.clone();
                move |_, _, cause| *told.lock().unwrap().entry(cause).or_insert(0) += 1
            })
            .build()
            .unwrap();
        let mut seen = Seen::default();
        thread::scope(|scope| {
            let (cache, clock) = (&cache, &clock);
            let run = |thread| scope.spawn(move || traffic(cache, clock, thread, STEPS));
            let threads: Vec<_> = (0..THREADS).map(run).collect();
            threads.into_iter().for_each(|thread| seen.add(thread.join().unwrap()));
        });
        cache.validate();

        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (seen.hits, seen.misses));
        assert_eq!(stats.total_requests(), THREADS * STEPS / 12 * 8);
        assert_eq!(stats.insertions + stats.updates, seen.stored);
        assert_eq!((stats.rejected, stats.removals), (seen.refused, seen.removed));
        assert_eq!(stats.evictions, stats.evicted_by_entries + stats.evicted_by_weight);
        // Whoever came in is there or has left, for one reason.
        let left = stats.evictions + stats.expired_entries + stats.removals;
        assert_eq!(stats.insertions, cache.len() as u64 + left);
        // The listener was told of each exactly once.
        let told = |cause: RemovalCause| told.lock().unwrap().get(&cause).copied().unwrap_or(0);
        assert_eq!(told(Size), stats.evicted_by_entries);
        assert_eq!(told(Weight), stats.evicted_by_weight);
        assert_eq!(told(Expired), stats.expired_entries);
        assert_eq!(told(Removed), stats.removals);
        assert_eq!(told(Replaced), stats.updates);
        // The numbers of the shards are parts of these.
        let (mut sum, mut entries, mut weight) = (CacheStats::default(), 0, 0);
        for shard in cache.shard_stats() {
            sum += shard.stats;
            entries += shard.entries;
            weight += shard.weight;
        }
        assert_eq!((sum, entries, weight), (stats, cache.len(), cache.weight()));
        // And all this was put to the test.
        let counts = [stats.hits, stats.evictions, stats.expired_entries, stats.updates];
        assert!(counts.iter().all(|&count| count > 0), "{stats:?}");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_async_gets_are_counted_exactly_too() {
    let cache = EmbeddingCache::new(50, 3600, 1);
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let mut hits = 0;
                for step in 0..2000 {
                    let key = key((step * 7 + task) % 80);
                    let got = match step % 3 {
                        0 => cache.get(&key).await,
                        1 => cache.get_with_timeout(&key, u64::MAX).await.unwrap(),
                        _ => cache.get_blocking(&key),
                    };
                    hits += u64::from(got.is_some());
                    if got.is_none() {
                        cache.put(key, [step as f32]).await.unwrap();
                    }
                }
                hits
            })
        })
        .collect();
    let mut hits = 0;
    for task in tasks {
        hits += task.await.unwrap();
    }
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (hits, 8000 - hits));
    assert_eq!(stats.insertions + stats.updates, 8000 - hits);
    assert_eq!(stats.hit_ratio(), hits as f64 / 8000.0);
    assert_eq!(cache.size().await as u64, stats.insertions - stats.evictions);
}

#[test]
fn the_hit_ratio_of_a_cache_that_nobody_asked_is_zero() {
    assert_eq!(CacheStats::default().hit_ratio(), 0.0);
    assert_eq!(CacheStats::default().total_requests(), 0);
    let mut stats = CacheStats::default();
    (stats.hits, stats.misses) = (u64::MAX, u64::MAX);
    assert_eq!(stats.total_requests(), u64::MAX, "counts that are read from outside may be any");
}

#[test]
fn the_listener_is_told_what_left_and_why() {
    everywhere(&[1], |policy, pressure, shards| {
        let (clock, log) = (FakeClock::new(), Removals::new());
        let cache = Cache::builder()
            .max_entries(3)
            .max_weight(100)
            .weigher(|_: &u64, value: &u64| *value)
            .time_to_live(10 * SECOND)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(shards)
            .clock(clock.clone())
            .eviction_listener(log.listener())
            .build()
            .unwrap();
        (1..=3).for_each(|key| cache.insert(key, key * 10).unwrap());
        assert_eq!(log.take(), []);
        cache.insert(4, 40).unwrap();
        assert_eq!(log.take(), [(1, 10, Size)]);
        cache.insert(4, 41).unwrap();
        assert_eq!(log.take(), [(4, 40, Replaced)], "the old value");
        cache.remove(&2);
        assert_eq!(log.take(), [(2, 20, Removed)]);
        cache.remove(&2);
        cache.get(&2);
        cache.insert(9, 101).unwrap_err();
        assert_eq!(log.take(), [], "nothing left");
        cache.insert(5, 100).unwrap();
        let mut told = log.take();
        told.sort_unstable_by_key(|&(key, _, _)| key);
        assert_eq!(told, [(3, 30, Weight), (4, 41, Weight)]);
        clock.advance(11 * SECOND);
        cache.get(&5);
        assert_eq!(log.take(), [(5, 100, Expired)]);
        cache.insert(6, 1).unwrap();
        clock.advance(11 * SECOND);
        cache.remove(&6);
        assert_eq!(log.take(), [(6, 1, Expired)], "expired before it was removed");
        cache.insert(7, 7).unwrap();
        cache.retain(|_, _| false);
        cache.insert(8, 8).unwrap();
        cache.clear();
        assert_eq!(log.take(), [(7, 7, Removed), (8, 8, Removed)]);
        cache.insert(1, 1).unwrap();
        assert_eq!(cache.set_max_entries(0), 1);
        assert_eq!(log.take(), [(1, 1, Size)]);

        let stats = cache.stats();
        assert_eq!((stats.insertions, stats.updates, stats.rejected), (9, 1, 1));
        assert_eq!((stats.evictions, stats.evicted_by_entries, stats.evicted_by_weight), (4, 2, 2));
        assert_eq!((stats.expired_entries, stats.removals), (2, 3));
        assert_eq!((stats.hits, stats.misses, stats.timeouts), (0, 2, 0));
        cache.validate();
    });
}

#[tokio::test]
async fn the_listener_of_the_embedding_cache_is_told_whole_keys_and_the_shared_vector() {
    let log = Removals::new();
    let cache =
        EmbeddingCache::builder().max_entries(1).eviction_listener(log.listener()).build().unwrap();
    let vector = EmbeddingVector::from([1.0, 2.0]);
    let chunked = key(1).with_chunk("");
    cache.put(chunked.clone(), vector.clone()).await.unwrap();
    cache.put(key(2), [3.0]).await.unwrap();
    let told = log.take();
    assert_eq!(told, [(chunked, vector.clone(), Size)]);
    assert!(told[0].1.ptr_eq(&vector));
}

/// A cache that its own listener uses.
fn listening(
    builder: impl FnOnce() -> ShardedCacheBuilder<u64, u64>,
    listener: impl Fn(&Cache, u64, u64, RemovalCause) + Send + Sync + 'static,
) -> Arc<Cache> {
    Arc::new_cyclic(|this: &Weak<Cache>| {
        let this = this.clone();
        builder()
            .eviction_listener(move |&key, &value, cause| {
                listener(&this.upgrade().unwrap(), key, value, cause);
            })
            .build()
            .unwrap()
    })
}

#[test]
fn the_listener_runs_outside_the_locks_and_may_use_the_cache() {
    const OTHER: u64 = 10_000;
    in_time(|| {
        everywhere(&[1, 4], |policy, pressure, shards| {
            let (clock, causes) = (FakeClock::new(), Arc::new(Mutex::new(HashSet::new())));
            let builder = || {
                Cache::builder()
                    .max_entries(10)
                    .max_weight(1000)
                    .weigher(|_: &u64, value: &u64| *value)
                    .eviction(policy)
                    .memory_pressure(pressure)
                    .shards(shards)
                    .clock(clock.clone())
            };
            let (seen, inside) = (causes.clone(), AtomicBool::new(false));
            let cache = listening(builder, move |cache, key, _, cause| {
                seen.lock().unwrap().insert(cause);
                assert!(!inside.swap(true, Relaxed), "called inside itself");
                if key == OTHER {
                    // Told of what the calls below made leave, after they returned.
                    inside.store(false, Relaxed);
                    return;
                }
                // With no time to wait: every lock must be free.
                for key in [key, 1, 5000] {
                    cache.try_get_for(&key, Duration::ZERO).unwrap();
                }
                cache.try_insert_for(OTHER, 0, Duration::ZERO).unwrap();
                // And what takes the locks of all shards.
                cache.remove(&OTHER);
                cache.get_many([&key, &1]);
                cache.keys().count();
                cache.retain(|_, _| true);
                cache.cleanup_expired();
                cache.set_max_entries(10);
                assert!(cache.len() <= 10 && cache.weight() <= 1000);
                inside.store(false, Relaxed);
            });
            (0..12).for_each(|key| cache.insert(key, 10).unwrap());
            cache.insert(11, 11).unwrap();
            cache.insert(12, 1000).unwrap();
            cache.insert(12, 1).unwrap();
            (20..25).for_each(|key| cache.insert_with_ttl(key, 1, SECOND).unwrap());
            clock.advance(2 * SECOND);
            cache.get(&20);
            cache.cleanup_expired();
            (20..25).for_each(|key| cache.insert(key, 1).unwrap());
            cache.remove(&20);
            cache.set_max_entries(3);
            cache.retain(|&key, _| key != 24);
            cache.clear();
            let all = [Expired, Size, Weight, Replaced, Removed];
            assert_eq!(*causes.lock().unwrap(), HashSet::from(all));
            cache.validate();
        });
    });
}

/// A listener that puts back what was evicted, into the room that is left.
#[test]
fn a_listener_finds_the_room_that_the_put_has_left() {
    in_time(|| {
        for policy in POLICIES {
            let refused = Arc::new(AtomicU64::new(0));
            let builder = || {
                Cache::builder()
                    .max_weight(100)
                    .weigher(|_: &u64, value: &u64| *value)
                    .eviction(policy)
                    .shards(1)
            };
            let cache = listening(builder, {
                let refused = refused.clone();
                move |cache, key, value, cause| {
                    if cause == Weight && key < 1000 {
                        // A smaller form of it.
                        let result = cache.insert(key + 1000, value - 1);
                        refused.fetch_add(u64::from(result.is_err()), Relaxed);
                    }
                }
            });
            cache.insert(1, 100).unwrap();
            cache.insert(2, 1).unwrap(); // 1 leaves, 99 are free
            assert_eq!(refused.load(Relaxed), 0, "{policy:?}");
            assert_eq!((cache.get(&2), cache.get(&1001)), (Some(1), Some(99)), "{policy:?}");
            assert_eq!(cache.stats().evictions, 1);
            cache.validate();
        }
    });
}

type Home = ShardedCache<u64, Arc<Curious>>;

/// A value that, when it is dropped for good, asks its cache something that needs every lock.
struct Curious {
    cache: Arc<OnceLock<Weak<Home>>>,
    dropped: Arc<AtomicU64>,
}

impl Drop for Curious {
    fn drop(&mut self) {
        if let Some(cache) = self.cache.get().and_then(Weak::upgrade) {
            cache.retain(|_, _| true);
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

#[test]
fn values_are_dropped_outside_the_locks() {
    in_time(|| {
        for (policy, pressure) in
            [(EvictionPolicy::Lru, PRESSURES[1]), (EvictionPolicy::S3Fifo, PRESSURES[0])]
        {
            let (clock, dropped) = (FakeClock::new(), Arc::new(AtomicU64::new(0)));
            let home = Arc::new(OnceLock::new());
            let cache = Arc::new(
                Home::builder()
                    .max_entries(10)
                    .max_weight(100)
                    .weigher(|&key: &u64, _: &Arc<Curious>| key.max(1))
                    .eviction(policy)
                    .memory_pressure(pressure)
                    .shards(1)
                    .clock(clock.clone())
                    .build()
                    .unwrap(),
            );
            home.set(Arc::downgrade(&cache)).ok().unwrap();
            let value = || Arc::new(Curious { cache: home.clone(), dropped: dropped.clone() });
            let mut total = 0;
            let mut gone = |n: u64, how: &str| {
                total += n;
                assert_eq!(dropped.load(Relaxed), total, "{how}");
            };
            (0..10).for_each(|key| cache.insert(key, value()).unwrap());
            cache.insert(0, value()).unwrap();
            gone(1, "replaced");
            cache.insert(10, value()).unwrap();
            gone(1, "evicted for the entries");
            cache.insert(100, value()).unwrap();
            gone(10, "evicted for the weight");
            drop(cache.insert(101, value()));
            gone(1, "refused");
            drop(cache.remove(&100));
            gone(1, "removed");
            cache.insert_with_ttl(1, value(), SECOND).unwrap();
            cache.insert_with_ttl(2, value(), SECOND).unwrap();
            cache.insert_with_ttl(3, value(), SECOND).unwrap();
            clock.advance(2 * SECOND);
            assert!(cache.get(&1).is_none());
            // Dropping the first goes through the cache, and so finds the other two.
            gone(3, "expired");
            (0..4).for_each(|key| cache.insert_with_ttl(key, value(), SECOND).unwrap());
            clock.advance(2 * SECOND);
            cache.cleanup_expired();
            gone(4, "cleaned up");
            (0..4).for_each(|key| cache.insert(key, value()).unwrap());
            assert_eq!(cache.set_max_entries(2), 2);
            gone(2, "evicted for a lower limit");
            assert_eq!(cache.retain(|_, _| false), 2);
            gone(2, "not retained");
            (0..2).for_each(|key| cache.insert(key, value()).unwrap());
            cache.clear();
            gone(2, "cleared");
            cache.validate();
        }
    });
}

/// What is counted as a refusal, and that it is counted once through every door.
#[tokio::test]
async fn refusals_are_counted_once_each() {
    let cache = EmbeddingCache::new(10, 3600, 1);
    let long = embedding_cache::CacheKey::new("x".repeat(1 << 20), "m");
    let mut rejected = 0;
    let mut once_more = |what: &str| {
        rejected += 1;
        assert_eq!(cache.stats().rejected, rejected, "{what}");
    };
    cache.put(key(0), vec![1.0; 1 << 20]).await.unwrap_err();
    once_more("too large");
    cache.put_with_timeout(key(0), vec![1.0; 1 << 20], 10).await.unwrap_err();
    once_more("too large, with a deadline");
    cache.put_blocking(key(0), vec![1.0; 1 << 20]).unwrap_err();
    once_more("too large, blocking");
    cache.put(key(0), [f32::NAN]).await.unwrap_err();
    once_more("not finite");
    cache.put_blocking(key(0), [f32::NAN]).unwrap_err();
    once_more("not finite, blocking");
    cache.put(key(0), vec![]).await.unwrap_err();
    once_more("empty");
    cache.put(long.clone(), [1.0]).await.unwrap_err();
    once_more("key too long");
    assert_eq!(cache.get(&long).await, None, "a miss like any other");
    let stats = cache.stats();
    assert_eq!((stats.insertions, stats.misses, stats.timeouts), (0, 1, 0));

    let core = Cache::builder()
        .max_weight(10)
        .weigher(|_: &u64, value: &u64| *value)
        .memory_pressure(MemoryPressure::LargestFirst)
        .build()
        .unwrap();
    core.insert(1, 11).unwrap_err();
    core.try_insert_for(1, 11, SECOND).unwrap_err();
    core.insert_with_ttl(1, 11, SECOND).unwrap_err();
    core.insert_with_ttl(1, 1, Duration::MAX).unwrap_err();
    assert_eq!(
        core.insert_many([(1, 11), (2, 1)]).iter().filter(|result| result.is_err()).count(),
        1
    );
    assert_eq!(core.stats().rejected, 5);
}

/// The same whatever features there are: the counts.
#[test]
fn counts_need_no_feature() {
    let cache = embedding_cache::EmbeddingCache::builder().max_entries(10).name("counted");
    let cache = cache.build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let key = embedding_cache::CacheKey::new("00", "e5-base@1");
    runtime.block_on(async {
        for _ in 0..3 {
            cache.get_or_embed(&key, async || [1.0]).await.unwrap();
        }
    });
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.loaded, stats.hits, stats.misses), (1, 1, 2, 1));
}
