//! Operations with a deadline keep it while another thread sits on the lock of the shard, and those
//! without one let other tasks go on.
//!
//! The lock is held by a `retain` whose predicate, which runs under it, waits at a gate. No upper
//! limit on time is asserted but one of many seconds, against a test that hangs.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{FakeClock, Gate, HANG, eventually, in_time, key};
use embedding_cache::{CacheKey, EmbeddingCache, EvictionPolicy, ShardedCache};
use tokio::runtime::{Builder, Runtime};

const DEADLINE: Duration = Duration::from_millis(60);
const DEADLINE_MS: u64 = DEADLINE.as_millis() as u64;

/// A thread that sits on the lock of a shard until it is let go.
struct Held {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    /// Runs `retain`, which is to pass the gate under the lock.
    fn by(retain: impl FnOnce(&Gate) + Send + 'static) -> Self {
        let gate = Gate::closed();
        let closed = Arc::clone(&gate);
        let thread = thread::spawn(move || retain(&closed));
        gate.wait_for(1);
        Self { gate, thread: Some(thread) }
    }

    /// Holds the shard of `key`, which is there.
    fn shard_of(cache: &EmbeddingCache, key: &CacheKey) -> Self {
        let (cache, key) = (cache.clone(), key.clone());
        Self::by(move |gate| {
            pollster::block_on(cache.retain(|other, _| {
                if *other == key {
                    gate.pass();
                }
                true
            }));
        })
    }

    /// Holds the only shard of a cache that is not empty.
    fn all_of(cache: &Arc<ShardedCache<u64, u64>>) -> Self {
        let cache = Arc::clone(cache);
        Self::by(move |gate| {
            cache.retain(|_, _| {
                gate.pass();
                true
            });
        })
    }

    fn let_go(mut self) {
        self.gate.open();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate.open();
    }
}

/// A cache of one shard that holds one key, and that key.
fn one_shard() -> (EmbeddingCache, CacheKey) {
    let cache = EmbeddingCache::builder().max_entries(100).shards(1).build().unwrap();
    let here = key(0);
    cache.put_blocking(here.clone(), vec![0.5]).unwrap();
    (cache, here)
}

/// Without timers and without I/O: the cache needs neither.
fn single_threaded() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// Runs a future on a thread of its own in a runtime without timers.
fn run<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) {
    in_time(move || single_threaded().block_on(work()));
}

/// Polls a future until it is ready, with nothing of tokio around it.
fn poll_to_the_end<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
    }
}

#[test]
fn the_core_gives_up_at_the_deadline_and_not_before() {
    in_time(|| {
        let cache = ShardedCache::<u64, String>::builder().max_entries(10).shards(1).build();
        let cache = Arc::new(cache.unwrap());
        cache.insert(1, "old".to_string()).unwrap();
        let before = cache.stats();
        let held = {
            let cache = Arc::clone(&cache);
            Held::by(move |gate| {
                cache.retain(|_, _| {
                    gate.pass();
                    true
                });
            })
        };
        for wait in [Duration::ZERO, DEADLINE] {
            let start = Instant::now();
            let error = cache.try_get_for(&1, wait).unwrap_err();
            assert!(error.is_timeout(), "{error}");
            assert!(start.elapsed() >= wait);

            let start = Instant::now();
            let refused = cache.try_insert_for(2, "new".to_string(), wait).unwrap_err();
            assert!(refused.error().is_timeout(), "{refused}");
            assert!(start.elapsed() >= wait);
            assert_eq!(refused.into_entry(), (2, "new".to_string()), "the entry comes back");
        }
        held.let_go();
        assert!(!cache.contains_key(&2));
        let after = cache.stats();
        assert_eq!(after.timeouts, 4);
        assert_eq!(after.total_requests(), before.total_requests(), "neither hit nor miss");
        assert_eq!((after.insertions, after.rejected), (before.insertions, before.rejected));
        assert_eq!(cache.try_get_for(&1, Duration::ZERO).unwrap().as_deref(), Some("old"));
        cache.validate();
    });
}

#[test]
fn the_async_door_gives_up_at_the_deadline_and_not_before() {
    run(async || {
        let (cache, here) = one_shard();
        let held = Held::shard_of(&cache, &here);
        for deadline in [0, DEADLINE_MS] {
            let start = Instant::now();
            let error = cache.get_with_timeout(&here, deadline).await.unwrap_err();
            assert!(error.is_timeout(), "{error}");
            assert!(start.elapsed() >= Duration::from_millis(deadline));
            assert!(error.into_vector().is_none());

            let start = Instant::now();
            let put = cache.put_with_timeout(key(1), vec![1.0, 2.0], deadline);
            let error = put.await.unwrap_err();
            assert!(error.is_timeout(), "{error}");
            assert!(start.elapsed() >= Duration::from_millis(deadline));
            assert_eq!(error.into_vector().unwrap(), vec![1.0, 2.0], "the vector comes back");
        }
        let stats = cache.stats();
        assert_eq!((stats.timeouts, stats.total_requests(), stats.rejected), (4, 0, 0));
        held.let_go();
        // It has not happened, and it does not happen later.
        for _ in 0..50 {
            assert_eq!(cache.get_with_timeout(&key(1), DEADLINE_MS).await.unwrap(), None);
            tokio::task::yield_now().await;
        }
        assert_eq!(cache.get(&here).await.unwrap(), vec![0.5]);
        assert_eq!(cache.size().await, 1);
    });
}

#[test]
fn a_deadline_of_zero_is_enough_for_a_lock_that_is_free() {
    run(async || {
        let (cache, _) = one_shard();
        for i in 1..50 {
            cache.put_with_timeout(key(i), vec![i as f32], 0).await.unwrap();
            let found = cache.get_with_timeout(&key(i), 0).await.unwrap();
            assert_eq!(found.unwrap(), vec![i as f32]);
        }
        assert_eq!(cache.get_with_timeout(&key(50), 0).await.unwrap(), None);
        assert_eq!(cache.stats().timeouts, 0);
    });
}

#[test]
fn an_operation_that_waits_goes_on_as_soon_as_the_lock_is_free() {
    for deadline in [DEADLINE_MS * 1000, u64::MAX] {
        run(async move || {
            let (cache, here) = one_shard();
            let held = Held::shard_of(&cache, &here);
            let other = thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                held.let_go();
            });
            let (found, stored) = tokio::join!(
                cache.get_with_timeout(&here, deadline),
                cache.put_with_timeout(key(1), vec![1.0], deadline),
            );
            assert_eq!(found.unwrap().unwrap(), vec![0.5]);
            stored.unwrap();
            assert_eq!(cache.get(&key(1)).await.unwrap(), vec![1.0]);
            assert_eq!(cache.stats().timeouts, 0);
            other.join().unwrap();
        });
    }
    in_time(|| {
        let cache = ShardedCache::<u64, u64>::builder().max_entries(10).shards(1).build().unwrap();
        let cache = Arc::new(cache);
        cache.insert(0, 0).unwrap();
        let held = Held::all_of(&cache);
        thread::scope(|scope| {
            let waits = [Duration::MAX, Duration::from_millis(u64::MAX)];
            let gets = waits.map(|wait| {
                scope.spawn({
                    let cache = &cache;
                    move || cache.try_get_for(&0, wait).unwrap()
                })
            });
            let puts = waits.map(|wait| {
                scope.spawn({
                    let cache = &cache;
                    move || cache.try_insert_for(1, 1, wait).is_ok()
                })
            });
            thread::sleep(Duration::from_millis(20));
            held.let_go();
            assert!(gets.into_iter().all(|get| get.join().unwrap() == Some(0)));
            assert!(puts.into_iter().all(|put| put.join().unwrap()));
        });
    });
}

/// All tasks share one thread, and it is a task that lets go of the lock: an operation that blocked
/// the thread would never get it.
#[test]
fn other_tasks_go_on_while_an_operation_waits() {
    run(async || {
        let (cache, here) = one_shard();
        let held = Held::shard_of(&cache, &here);
        let ticks = AtomicU64::new(0);
        let other = async {
            for _ in 0..30 {
                ticks.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
            }
            held.let_go();
        };
        let (found, stored, timed_get, timed_put, ()) = tokio::join!(
            cache.get(&here),
            cache.put(key(1), vec![1.0]),
            cache.get_with_timeout(&here, 3_600_000),
            cache.put_with_timeout(key(2), vec![2.0], 3_600_000),
            other,
        );
        assert_eq!(found.unwrap(), vec![0.5]);
        stored.unwrap();
        assert_eq!(timed_get.unwrap().unwrap(), vec![0.5]);
        timed_put.unwrap();
        assert_eq!(ticks.into_inner(), 30);
        assert_eq!(cache.size().await, 3);
    });
}

#[test]
fn other_tasks_go_on_until_the_deadline_has_passed() {
    run(async || {
        let (cache, here) = one_shard();
        let held = Held::shard_of(&cache, &here);
        let ticks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&ticks);
        let ticking = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
            }
        });
        let waiting = cache.clone();
        let waiting = tokio::spawn(async move { waiting.get_with_timeout(&here, 500).await });
        assert!(waiting.await.unwrap().unwrap_err().is_timeout());
        // More than a thousand in practice.
        assert!(ticks.load(SeqCst) >= 10, "{} turns", ticks.load(SeqCst));
        ticking.abort();
        held.let_go();
    });
}

/// Removing, cleaning up and clearing have no deadline, but they too must not stop the other tasks
/// of their thread for as long as somebody else holds a lock.
#[test]
fn other_tasks_go_on_while_a_removal_waits() {
    type Sweep = fn(EmbeddingCache) -> std::pin::Pin<Box<dyn Future<Output = ()>>>;
    let sweeps: [(&str, Sweep); 3] = [
        ("remove", |cache| Box::pin(async move { drop(cache.remove(&key(0)).await) })),
        ("clear", |cache| Box::pin(async move { cache.clear().await })),
        ("cleanup_expired_safe", |cache| {
            Box::pin(async move { assert_eq!(cache.cleanup_expired_safe().await, 0) })
        }),
    ];
    for (what, sweep) in sweeps {
        run(async move || {
            let (cache, here) = one_shard();
            let held = Held::shard_of(&cache, &here);
            let gate = Arc::clone(&held.gate);
            let ticks = Arc::new(AtomicU64::new(0));
            let seen = Arc::clone(&ticks);
            // Lets go in the end, so that a sweep that blocks is reported and not waited for.
            let other = thread::spawn(move || {
                let start = Instant::now();
                while seen.load(SeqCst) < 20 && start.elapsed() < Duration::from_secs(2) {
                    thread::yield_now();
                }
                gate.open();
                seen.load(SeqCst)
            });
            let ticking = async {
                for _ in 0..20 {
                    ticks.fetch_add(1, SeqCst);
                    tokio::task::yield_now().await;
                }
            };
            tokio::join!(sweep(cache.clone()), ticking);
            assert_eq!(other.join().unwrap(), 20, "{what} blocked the thread of the other tasks");
            held.let_go();
        });
    }
}

#[test]
fn a_held_shard_holds_up_no_other() {
    run(async || {
        let cache = EmbeddingCache::builder().max_entries(1000).shards(8).build().unwrap();
        for i in 0..100 {
            cache.put(key(i), vec![i as f32]).await.unwrap();
        }
        let held = Held::shard_of(&cache, &key(0));
        let mut in_the_same = 0;
        for i in 0..100 {
            match cache.get_with_timeout(&key(i), 0).await {
                Ok(found) => {
                    assert_eq!(found.unwrap(), vec![i as f32]);
                    cache.put_with_timeout(key(i), vec![1.0; 3], 0).await.unwrap();
                    cache.put(key(i), vec![1.0; 4]).await.unwrap();
                    assert_eq!(cache.get(&key(i)).await.unwrap().len(), 4);
                }
                Err(error) => {
                    assert!(error.is_timeout(), "{error}");
                    in_the_same += 1;
                }
            }
        }
        // Of 100 keys an eighth, give or take.
        assert!((1..=40).contains(&in_the_same), "{in_the_same} of 100 keys in one shard of 8");
        assert_eq!(cache.stats().timeouts, in_the_same);
        held.let_go();
    });
}

#[test]
fn an_operation_that_is_dropped_while_it_waits_leaves_nothing_behind() {
    run(async || {
        let (cache, here) = one_shard();
        let held = Held::shard_of(&cache, &here);
        for i in 1..=12 {
            // Polled a few times, then dropped where it waits.
            let mut put = pin!(cache.put(key(i), vec![1.0]));
            let mut get = pin!(cache.get(&here));
            let mut timed = pin!(cache.put_with_timeout(key(i), vec![1.0], 3_600_000));
            for _ in 0..2 {
                let mut context = Context::from_waker(Waker::noop());
                assert!(put.as_mut().poll(&mut context).is_pending());
                assert!(get.as_mut().poll(&mut context).is_pending());
                assert!(timed.as_mut().poll(&mut context).is_pending());
            }
        }
        held.let_go();
        for i in 1..=12 {
            assert_eq!(cache.get(&key(i)).await, None);
        }
        assert_eq!(cache.size().await, 1);
        let stats = cache.stats();
        assert_eq!((stats.timeouts, stats.rejected, stats.total_requests()), (0, 0, 12));
        cache.put_with_timeout(key(1), vec![2.0], 0).await.unwrap();
        assert_eq!(cache.get_with_timeout(&key(1), 0).await.unwrap().unwrap(), vec![2.0]);
    });
}

#[test]
fn a_put_dropped_by_a_timeout_of_the_runtime_is_not_stored() {
    in_time(|| {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (cache, here) = one_shard();
            let held = Held::shard_of(&cache, &here);
            let put = tokio::time::timeout(DEADLINE, cache.put(key(1), vec![1.0]));
            assert!(put.await.is_err(), "it can be dropped while it waits");
            held.let_go();
            assert_eq!(cache.get(&key(1)).await, None);
            cache.put(key(1), vec![2.0]).await.unwrap();
            assert_eq!(cache.get(&key(1)).await.unwrap(), vec![2.0]);
        });
    });
}

#[test]
fn hundreds_of_tasks_that_wait_on_one_lock_all_keep_their_deadline() {
    in_time(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let (cache, here) = one_shard();
            let held = Held::shard_of(&cache, &here);
            let tasks: Vec<_> = (0..200)
                .map(|i| {
                    let cache = cache.clone();
                    tokio::spawn(async move {
                        if i % 2 == 0 {
                            cache.get_with_timeout(&key(0), 50).await.err()
                        } else {
                            cache.put_with_timeout(key(i), vec![1.0], 50).await.err()
                        }
                    })
                })
                .collect();
            let start = Instant::now();
            for task in tasks {
                assert!(task.await.unwrap().unwrap().is_timeout());
            }
            assert!(start.elapsed() < HANG / 2, "{:?}", start.elapsed());
            assert_eq!(cache.stats().timeouts, 200);
            held.let_go();
            assert_eq!(cache.size().await, 1);
        });
    });
}

#[test]
fn no_runtime_is_needed() {
    in_time(|| {
        let (cache, here) = one_shard();
        let held = Held::shard_of(&cache, &here);
        let error = poll_to_the_end(cache.get_with_timeout(&here, DEADLINE_MS)).unwrap_err();
        assert!(error.is_timeout());
        let put = cache.put_with_timeout(key(1), vec![1.0], DEADLINE_MS);
        assert!(poll_to_the_end(put).unwrap_err().is_timeout());
        let other = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            held.let_go();
        });
        assert_eq!(poll_to_the_end(cache.get(&here)).unwrap(), vec![0.5]);
        poll_to_the_end(cache.put(key(1), vec![1.0])).unwrap();
        other.join().unwrap();
        assert_eq!(poll_to_the_end(cache.cleanup_expired_safe()), 0);
        assert!(poll_to_the_end(cache.remove(&key(1))).is_some());
        poll_to_the_end(cache.clear());
        assert_eq!(poll_to_the_end(cache.size()), 0);
    });
}

/// A waker that counts, to see that a waiting operation asks to be polled again by itself.
#[test]
fn an_operation_that_waits_asks_to_be_polled_again() {
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    in_time(|| {
        let (cache, here) = one_shard();
        let held = Held::shard_of(&cache, &here);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut get = pin!(cache.get(&here));
        for polled in 1..=5 {
            assert!(get.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            assert!(count.0.load(SeqCst) >= polled, "nobody would ever poll it again");
        }
        held.let_go();
        assert!(get.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    });
}

/// A value whose clone, which a read makes under the read lock, waits at a gate: with that lock held
/// others can read but not write.
#[derive(Debug)]
struct Slow(u64, Option<Arc<Gate>>);

impl Clone for Slow {
    fn clone(&self) -> Self {
        if let Some(gate) = &self.1 {
            gate.pass();
        }
        Self(self.0, None)
    }
}

/// Holds the read lock of the only shard of `cache`: reads key 0, whose clone waits.
fn reading(cache: &Arc<ShardedCache<u64, Slow>>) -> Held {
    let gate = Gate::closed();
    cache.insert(0, Slow(0, Some(Arc::clone(&gate)))).unwrap();
    let cache = Arc::clone(cache);
    let thread = thread::spawn(move || assert!(cache.get(&0).is_some()));
    gate.wait_for(1);
    Held { gate, thread: Some(thread) }
}

#[test]
fn an_expired_entry_is_a_miss_even_if_it_cannot_be_removed_before_the_deadline() {
    in_time(|| {
        let clock = FakeClock::new();
        let builder = ShardedCache::builder().max_entries(10).shards(1).clock(clock.clone());
        let cache = Arc::new(builder.build().unwrap());
        cache.insert_with_ttl(1, Slow(1, None), Duration::from_secs(5)).unwrap();
        cache.insert(2, Slow(2, None)).unwrap();
        clock.advance(Duration::from_secs(6));
        let held = reading(&cache);
        for wait in [Duration::ZERO, DEADLINE] {
            assert!(cache.try_get_for(&1, wait).unwrap().is_none());
            assert!(cache.try_get_for(&2, wait).unwrap().is_some());
        }
        assert_eq!(cache.len(), 3, "removing it is left to others");
        held.let_go();
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses), (3, 2));
        assert_eq!((stats.timeouts, stats.expired_entries), (0, 0));
        assert_eq!(cache.cleanup_expired(), 1);
        cache.validate();
    });
}

/// Exact LRU notes hits in a log, and the hit that finds it full needs the write lock.
#[test]
fn a_hit_is_a_hit_even_if_it_cannot_be_noted_before_the_deadline() {
    in_time(|| {
        let builder = ShardedCache::builder().max_entries(10).shards(1);
        let cache = Arc::new(builder.eviction(EvictionPolicy::Lru).build().unwrap());
        for key in 1..=2 {
            cache.insert(key, Slow(key, None)).unwrap();
        }
        let held = reading(&cache);
        // Far more than any log has places for.
        for i in 0..300 {
            let wait = if i < 290 { Duration::ZERO } else { Duration::from_millis(2) };
            assert!(cache.try_get_for(&(1 + i % 2), wait).unwrap().is_some());
        }
        held.let_go();
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.timeouts), (301, 0, 0));
        cache.validate();
    });
}

#[test]
fn a_writer_with_a_deadline_gives_up_while_the_shard_is_read_and_readers_go_on() {
    in_time(|| {
        let cache = Arc::new(ShardedCache::builder().max_entries(10).shards(1).build().unwrap());
        cache.insert(1, Slow(1, None)).unwrap();
        let held = reading(&cache);
        let start = Instant::now();
        let refused = cache.try_insert_for(2, Slow(2, None), DEADLINE).unwrap_err();
        assert!(refused.error().is_timeout() && start.elapsed() >= DEADLINE, "{refused}");
        // The writer that gave up does not stand in the way of readers.
        assert!(cache.try_get_for(&1, Duration::ZERO).unwrap().is_some());
        held.let_go();
        assert!(!cache.contains_key(&2));
    });
}

/// All room is in the shard that is held: the put cannot have it, says so, and is not stored.
#[test]
fn a_put_that_needs_the_room_of_a_held_shard_gives_its_vector_back() {
    run(async || {
        let cache = EmbeddingCache::builder().max_entries(1).shards(64).build().unwrap();
        cache.put(key(0), vec![0.5]).await.unwrap();
        let held = Held::shard_of(&cache, &key(0));
        for deadline in [0, DEADLINE_MS] {
            for i in 1..4 {
                let put = cache.put_with_timeout(key(i), vec![1.0], deadline);
                let error = put.await.unwrap_err();
                assert!(error.is_timeout() || error.is_contended(), "{error}");
                assert_eq!(error.into_vector().unwrap(), vec![1.0]);
            }
        }
        held.let_go();
        assert_eq!(cache.size().await, 1);
        assert!(cache.get(&key(0)).await.is_some());
        cache.put_with_timeout(key(1), vec![1.0], 0).await.unwrap();
        assert_eq!(cache.get(&key(0)).await, None);
        eventually("the room is free again", || cache.info().size == 1);
    });
}
