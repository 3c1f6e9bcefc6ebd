//! Which lock an operation takes, and what becomes of it while another thread sits on that lock.
//!
//! A read lock is held by a `keys` whose `Clone` stands at a gate, a write lock by a `retain` whose
//! predicate does.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{FakeClock, Gate, HANG, OpenOnDrop, POLICIES, ShardIsKey, eventually, key};
use embedding_cache::{EmbeddingCache, Equivalent, EvictionPolicy, ShardedCache};

const SECOND: Duration = Duration::from_secs(1);
/// Long enough for any scheduler; what waits longer waits for ever.
const SOON: Duration = Duration::from_secs(5);

/// A key whose clone stops at its gate.
struct Gated(u64, Arc<Gate>);

impl Clone for Gated {
    fn clone(&self) -> Self {
        self.1.pass();
        Self(self.0, self.1.clone())
    }
}

impl PartialEq for Gated {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Gated {}

impl Hash for Gated {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Borrow<u64> for Gated {
    fn borrow(&self) -> &u64 {
        &self.0
    }
}

type Cache = ShardedCache<Gated, u64>;

/// One shard with 1 and 2, of which 2 is expired; calls `test` while another thread reads the shard.
fn while_another_reads(policy: EvictionPolicy, test: impl FnOnce(&Cache)) {
    let (clock, gate) = (FakeClock::new(), Gate::closed());
    let cache = Cache::builder()
        .max_entries(10)
        .shards(1)
        .eviction(policy)
        .clock(clock.clone())
        .build()
        .unwrap();
    cache.insert(Gated(1, gate.clone()), 10).unwrap();
    cache.insert_with_ttl(Gated(2, gate.clone()), 20, SECOND).unwrap();
    clock.advance(2 * SECOND);
    thread::scope(|scope| {
        let _open = OpenOnDrop(&gate);
        let reader = scope.spawn(|| cache.keys().count());
        gate.wait_for(1);
        let refused = cache.try_insert_for(Gated(3, gate.clone()), 30, Duration::ZERO);
        assert!(refused.unwrap_err().error().is_timeout(), "nobody can write now");
        test(&cache);
        gate.open();
        assert_eq!(reader.join().unwrap(), 1);
    });
    cache.validate();
}

#[test]
fn a_miss_and_a_hit_take_the_read_lock_only() {
    for policy in POLICIES {
        while_another_reads(policy, |cache| {
            // None of these would come back if it asked for the write lock.
            assert_eq!(cache.get(&7), None);
            assert_eq!(cache.get(&1), Some(10));
            assert_eq!(cache.get_many([&1, &7, &1]), [Some(10), None, Some(10)]);
            assert_eq!(cache.try_get_for(&7, HANG).unwrap(), None);
            assert_eq!((cache.peek(&1), cache.peek(&2), cache.peek(&7)), (Some(10), None, None));
            assert!(cache.contains_key(&1) && !cache.contains_key(&2));
            assert!(cache.entry_info(&1).is_some());
            assert_eq!((cache.len(), cache.stats().hits, cache.stats().misses), (2, 3, 3));
        });
    }
}

#[test]
fn an_entry_seen_expired_leads_to_the_write_lock_and_is_a_miss_if_there_is_no_time_for_it() {
    for policy in POLICIES {
        while_another_reads(policy, |cache| {
            assert_eq!(cache.try_get_for(&2, Duration::ZERO).unwrap(), None);
            assert_eq!(cache.try_get_for(&2, Duration::from_millis(1)).unwrap(), None);
            let stats = cache.stats();
            assert_eq!((stats.misses, stats.expired_entries, cache.len()), (2, 0, 2));
            assert_eq!(stats.timeouts, 1, "that of the refused insert alone");
        });
    }
}

/// A lookup that stops at its gate when it compares, which it does under the lock.
struct Asked<'a>(u64, &'a Gate);

impl Hash for Asked<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<u64> for Asked<'_> {
    fn equivalent(&self, key: &u64) -> bool {
        self.1.pass();
        self.0 == *key
    }
}

/// 1. A get finds the old entry under the read lock, and stands at the gate.
/// 2. An insert of the same key waits for the write lock.
/// 3. The get goes on, sees that the entry is expired, and queues for the write lock, behind the
///    insert.
/// 4. When it has it, the entry is a new one.
#[test]
fn an_expired_entry_that_another_thread_has_refreshed_in_between_is_a_hit() {
    for policy in POLICIES {
        let (clock, gate) = (FakeClock::new(), Gate::closed());
        let cache = ShardedCache::<u64, u64>::builder()
            .max_entries(10)
            .shards(1)
            .eviction(policy)
            .time_to_live(SECOND)
            .clock(clock.clone())
            .build()
            .unwrap();
        cache.insert(1, 10).unwrap();
        clock.advance(2 * SECOND);
        let got = thread::scope(|scope| {
            let _open = OpenOnDrop(&gate);
            let get = scope.spawn(|| cache.get(&Asked(1, &gate)));
            gate.wait_for(1);
            scope.spawn(|| cache.insert(1, 11).unwrap());
            eventually("the insert waits", || cache.try_get_for(&7, Duration::ZERO).is_err());
            let misses = cache.stats().misses;
            gate.open();
            (get.join().unwrap(), cache.stats().misses - misses)
        });
        assert_eq!(got, (Some(11), 0), "{policy:?}");
        assert_eq!((cache.stats().hits, cache.stats().expired_entries), (1, 1), "{policy:?}");
        cache.validate();
    }
}

/// Calls `test` while another thread has the write lock of the first shard that holds anything, until
/// the gate is opened, at the latest at the end.
fn holding<S: BuildHasher + Sync>(cache: &ShardedCache<u64, u64, S>, test: impl FnOnce(&Gate)) {
    let gate = Gate::closed();
    thread::scope(|scope| {
        let _open = OpenOnDrop(&gate);
        scope.spawn(|| {
            cache.retain(|_, _| {
                gate.pass();
                true
            })
        });
        gate.wait_for(1);
        test(&gate);
    });
    cache.validate();
}

/// Two shards, which hold 0 and 1.
fn two_shards() -> ShardedCache<u64, u64, ShardIsKey> {
    let builder = ShardedCache::<u64, u64>::builder().max_entries(10).shards(2);
    let cache = builder.hasher(ShardIsKey).build().unwrap();
    cache.insert(0, 0).unwrap();
    cache.insert(1, 10).unwrap();
    cache
}

#[test]
fn an_operation_with_a_deadline_ends_there_while_another_thread_sits_on_the_lock() {
    let cache = two_shards();
    holding(&cache, |_| {
        let before = cache.stats();
        for wait in [0, 1, 30].map(Duration::from_millis) {
            let start = Instant::now();
            let error = cache.try_get_for(&0, wait).unwrap_err();
            assert!(error.is_timeout());
            let refused = cache.try_insert_for(0, 99, wait).unwrap_err();
            assert!(refused.error().is_timeout());
            assert_eq!(refused.into_entry(), (0, 99));
            let elapsed = start.elapsed();
            assert!(elapsed >= 2 * wait, "each waited for as long as it was given");
            assert!(elapsed < 2 * wait + SOON, "and not for much longer");
        }
        let after = cache.stats();
        assert_eq!(after.timeouts, before.timeouts + 6);
        assert_eq!((after.total_requests(), after.rejected), (before.total_requests(), 0));
    });
}

#[test]
fn a_lock_that_is_held_stops_nobody_in_another_shard() {
    let cache = two_shards();
    holding(&cache, |_| {
        assert_eq!(cache.get(&1), Some(10));
        assert_eq!(cache.get_many([&1, &3]), [Some(10), None]);
        cache.insert(3, 30).unwrap();
        assert_eq!(cache.remove(&3), Some(30));
        assert_eq!((cache.len(), cache.stats().insertions), (2, 3));
    });
}

#[test]
fn a_put_that_timed_out_has_not_happened_and_does_not_happen_later() {
    let cache = two_shards();
    holding(&cache, |_| {
        cache.try_insert_for(0, 99, Duration::ZERO).unwrap_err();
        cache.try_insert_for(2, 99, Duration::from_millis(5)).unwrap_err();
        assert_eq!((cache.len(), cache.stats().updates), (2, 0));
    });
    assert_eq!((cache.get(&0), cache.get(&2), cache.len()), (Some(0), None, 2));
}

#[test]
fn an_operation_that_gets_the_lock_in_time_is_carried_out() {
    let cache = two_shards();
    holding(&cache, |gate| {
        thread::scope(|scope| {
            let get = scope.spawn(|| cache.try_get_for(&0, HANG).unwrap());
            let put = scope.spawn(|| cache.try_insert_for(2, 20, HANG).unwrap());
            let forever = scope.spawn(|| cache.try_insert_for(4, 40, Duration::MAX).unwrap());
            gate.open();
            assert_eq!(get.join().unwrap(), Some(0));
            put.join().unwrap();
            forever.join().unwrap();
        });
    });
    assert_eq!((cache.get(&2), cache.get(&4)), (Some(20), Some(40)));
    assert_eq!(cache.stats().timeouts, 0);
}

/// All the room is in a shard that another thread has locked: the put must not wait for that lock.
#[test]
fn a_put_waits_for_no_lock_but_its_own() {
    let cache = two_shards();
    cache.remove(&1);
    cache.insert(2, 20).unwrap();
    cache.set_max_entries(2);
    holding(&cache, |_| {
        let start = Instant::now();
        let refused = cache.insert(1, 10).unwrap_err();
        assert!(refused.error().is_contended());
        assert!(start.elapsed() < SOON);
        let refused = cache.try_insert_for(1, 10, Duration::ZERO).unwrap_err();
        assert!(refused.error().is_contended());
        assert_eq!((cache.len(), cache.get(&1)), (2, None));
    });
    cache.insert(1, 10).unwrap();
    assert_eq!((cache.len(), cache.get(&1)), (2, Some(10)));
    cache.validate();
}

/// An embedding cache with key 0, whose only shard another thread has locked for writing while
/// `test` runs on a runtime with one thread.
fn while_another_holds<F: Future<Output = ()>>(test: impl FnOnce(EmbeddingCache, Arc<Gate>) -> F) {
    let (cache, gate) = (EmbeddingCache::new(100, 3600, 1), Gate::closed());
    cache.put_blocking(key(0), [0.0]).unwrap();
    thread::scope(|scope| {
        let _open = OpenOnDrop(&gate);
        scope.spawn(|| {
            pollster::block_on(cache.retain(|_, _| {
                gate.pass();
                true
            }))
        });
        gate.wait_for(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(test(cache.clone(), gate.clone()));
    });
}

#[test]
fn a_timeout_comes_as_an_error_that_gives_the_vector_back() {
    while_another_holds(|cache, gate| async move {
        for timeout_ms in [0, 1, 30] {
            let start = Instant::now();
            assert!(cache.get_with_timeout(&key(0), timeout_ms).await.unwrap_err().is_timeout());
            let error = cache.put_with_timeout(key(0), [9.0], timeout_ms).await.unwrap_err();
            assert!(error.is_timeout());
            assert_eq!(error.into_vector().unwrap(), [9.0]);
            let waited = Duration::from_millis(2 * timeout_ms);
            assert!(start.elapsed() >= waited && start.elapsed() < waited + SOON);
        }
        let error = cache.put_with_timeout(key(1), [9.0], 1).await.unwrap_err();
        assert!(error.is_timeout());
        gate.open();
        // Nothing of this was carried out, and nothing is later.
        assert_eq!(cache.get(&key(0)).await.unwrap(), [0.0]);
        assert_eq!(cache.get(&key(1)).await, None);
        let stats = cache.stats();
        assert_eq!((stats.timeouts, stats.hits, stats.misses, stats.rejected), (7, 1, 1, 0));
        assert_eq!((stats.insertions, stats.updates), (1, 0));
    });
}

/// On one thread: if a waiting operation blocked it, nobody could open the gate.
#[test]
fn an_operation_that_waits_blocks_no_executor_thread() {
    while_another_holds(|cache, gate| async move {
        const WAITING: usize = 150;
        let (ticks, answers) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..WAITING)
            .map(|i| {
                let (cache, answers) = (cache.clone(), answers.clone());
                tokio::spawn(async move {
                    if i % 2 == 0 {
                        assert_eq!(cache.get(&key(0)).await.unwrap(), [0.0]);
                    } else {
                        cache.put_with_timeout(key(i), [1.0], u64::MAX).await.unwrap();
                    }
                    answers.fetch_add(1, Relaxed);
                })
            })
            .collect();
        // The others go on: this task comes round again, each time after all that wait.
        while ticks.fetch_add(1, Relaxed) < 20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(answers.load(Relaxed), 0);
        gate.open();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(cache.size().await, 1 + WAITING / 2);
        assert_eq!(cache.stats().timeouts, 0);
    });
}

#[test]
fn an_operation_dropped_while_it_waits_has_changed_nothing() {
    while_another_holds(|cache, gate| async move {
        let soon = Duration::from_millis(5);
        assert!(tokio::time::timeout(soon, cache.get(&key(0))).await.is_err());
        assert!(tokio::time::timeout(soon, cache.put(key(0), [9.0])).await.is_err());
        assert!(tokio::time::timeout(soon, cache.put(key(1), [9.0])).await.is_err());
        gate.open();
        assert_eq!(cache.get(&key(0)).await.unwrap(), [0.0]);
        assert_eq!(cache.get(&key(1)).await, None);
        let stats = cache.stats();
        assert_eq!((stats.total_requests(), stats.insertions, stats.updates), (2, 1, 0));
    });
}

/// `size`, `stats` and `info` are asked by those who watch a cache that is in trouble.
#[test]
fn looking_at_the_numbers_needs_no_lock() {
    while_another_holds(|cache, _gate| async move {
        assert_eq!(cache.size().await, 1);
        assert_eq!((cache.stats().insertions, cache.info().size), (1, 1));
        assert!(!format!("{cache:?}").is_empty());
    });
    let cache = two_shards();
    holding(&cache, |_| {
        assert_eq!((cache.len(), cache.is_empty(), cache.weight()), (2, false, 0));
        assert_eq!(cache.shard_stats().len(), 2);
        assert_eq!(cache.stats().insertions, 2);
    });
}

/// Writers that all need the other shard's room at the same time neither deadlock nor starve.
#[test]
fn writers_that_need_room_of_each_others_shards_all_come_to_an_end() {
    crate::support::in_time(|| {
        let cache = ShardedCache::<u64, u64>::builder()
            .max_entries(3)
            .shards(4)
            .hasher(ShardIsKey)
            .build()
            .unwrap();
        let started = AtomicBool::new(false);
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (cache, started) = (&cache, &started);
                scope.spawn(move || {
                    while !started.load(Relaxed) {
                        thread::yield_now();
                    }
                    for step in 0..2000 {
                        let _ = cache.insert(thread + 4 * (step % 5), step);
                    }
                });
            }
            started.store(true, Relaxed);
        });
        assert!(cache.len() <= 3);
        cache.validate();
        (100..103).for_each(|key| cache.insert(key, key).unwrap());
        assert_eq!(cache.len(), 3, "no room was lost");
        cache.validate();
    });
}
