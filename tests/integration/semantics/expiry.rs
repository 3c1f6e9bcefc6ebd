//! When an entry expires, who notices, and what the clocks have to do with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{
    FakeClock, Gate, HANG, OpenOnDrop, Removals, SetOnDrop, eventually, everywhere, key,
};
use chrono::TimeDelta;
use embedding_cache::RemovalCause::{Expired, Replaced};
use embedding_cache::{Clock, EmbeddingCache, ShardedCache, ShardedCacheBuilder};

type Cache = ShardedCache<u64, u64>;

const SECOND: Duration = Duration::from_secs(1);
const INSTANT: Duration = Duration::from_nanos(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// [`EmbeddingCache::cleanup_expired_safe`] from a test that is not async.
fn cleanup_now(cache: &EmbeddingCache) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(cache.cleanup_expired_safe())
}

fn clocked(clock: &Arc<FakeClock>) -> ShardedCacheBuilder<u64, u64> {
    Cache::builder().max_entries(10_000).clock(clock.clone())
}

#[test]
fn an_entry_is_served_until_its_age_exceeds_its_time_to_live() {
    everywhere(&[1, 8], |policy, pressure, shards| {
        for own in [false, true] {
            let clock = FakeClock::new();
            let builder = clocked(&clock).eviction(policy).memory_pressure(pressure).shards(shards);
            let cache = if own {
                let cache = builder.build().unwrap();
                (0..10).for_each(|key| cache.insert_with_ttl(key, key, 60 * SECOND).unwrap());
                cache
            } else {
                let cache = builder.time_to_live(60 * SECOND).build().unwrap();
                (0..10).for_each(|key| cache.insert(key, key).unwrap());
                cache
            };
            clock.advance(60 * SECOND); // as old as its time-to-live, not older
            assert_eq!(cache.get(&0), Some(0));
            assert_eq!(cache.try_get_for(&0, SECOND).unwrap(), Some(0));
            assert_eq!(cache.get_many([&0, &1]), [Some(0), Some(1)]);
            assert_eq!(cache.peek(&0), Some(0));
            assert!(cache.contains_key(&0));
            assert_eq!(cache.entry_info(&0).unwrap().expires_in, Some(Duration::ZERO));
            assert_eq!((cache.iter().count(), cache.keys().count()), (10, 10));
            assert_eq!((cache.cleanup_expired(), cache.retain(|_, _| true)), (0, 0));

            clock.advance(INSTANT);
            assert_eq!((cache.peek(&0), cache.contains_key(&0)), (None, false));
            assert_eq!(cache.entry_info(&0), None);
            assert_eq!((cache.iter().count(), cache.keys().count()), (0, 0));
            assert_eq!(cache.len(), 10, "so far nobody who may remove it has noticed");
            assert_eq!(cache.get(&0), None);
            assert_eq!(cache.try_get_for(&1, SECOND).unwrap(), None);
            assert_eq!(cache.get_many([&2, &3]), [None, None]);
            assert_eq!(cache.remove(&4), None);
            assert_eq!((cache.len(), cache.stats().expired_entries), (5, 5), "now removed");
            assert_eq!(cache.stats().removals, 0);
            assert_eq!(cache.cleanup_expired(), 5);
            assert_eq!((cache.len(), cache.stats().expired_entries), (0, 10));
            cache.validate();
        }
    });
}

#[tokio::test]
async fn an_embedding_is_served_until_its_age_exceeds_its_time_to_live() {
    let clock = FakeClock::new();
    let cache = EmbeddingCache::builder()
        .max_entries(100)
        .time_to_live(60 * SECOND)
        .clock(clock.clone())
        .build()
        .unwrap();
    for i in 0..10 {
        cache.put(key(i), [1.0]).await.unwrap();
    }
    clock.advance(60 * SECOND);
    assert!(cache.get(&key(0)).await.is_some());
    clock.advance(INSTANT);
    assert_eq!(cache.get(&key(0)).await, None);
    assert_eq!(cache.get_with_timeout(&key(1), 1000).await.unwrap(), None);
    assert_eq!(cache.get_blocking(&key(2)), None);
    assert_eq!(cache.remove(&key(3)).await, None);
    assert_eq!(cache.size().await, 6);
    assert_eq!(cache.cleanup_expired_safe().await, 6);
    assert_eq!(cache.cleanup_expired_safe().await, 0);
    assert_eq!((cache.size().await, cache.info().memory_bytes), (0, 0));
    assert_eq!(cache.stats().expired_entries, 10);
}

/// The operating system's clock, without asking how long anything takes.
#[tokio::test]
async fn the_documented_cache_expires_by_the_real_clock() {
    let cache = EmbeddingCache::new(10, 1, 1);
    let before = Instant::now();
    cache.put(key(0), [1.0]).await.unwrap();
    while cache.get(&key(0)).await.is_some() {
        assert!(before.elapsed() < HANG, "never expired");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(before.elapsed() >= SECOND, "expired before its time");
    assert_eq!((cache.size().await, cache.stats().expired_entries), (0, 1));
}

#[tokio::test]
async fn ttl_seconds_of_zero_means_expired_at_once() {
    let cache = EmbeddingCache::new(100, 0, 1);
    for round in 1..=3 {
        cache.put(key(0), [1.0]).await.unwrap();
        assert_eq!(cache.get(&key(0)).await, None);
        assert_eq!(cache.stats().expired_entries, round);
    }
    for i in 0..100 {
        cache.put(key(i), [1.0]).await.unwrap();
    }
    assert_eq!(cache.cleanup_expired_safe().await, 100);

    let clock = FakeClock::new();
    let cache = clocked(&clock).time_to_live(Duration::ZERO).build().unwrap();
    cache.insert(1, 1).unwrap();
    assert_eq!((cache.get(&1), cache.len()), (None, 0), "though the clock stands still");
}

#[test]
fn without_a_time_to_live_nothing_expires_and_reads_ask_no_clock() {
    let clock = FakeClock::new();
    let cache = clocked(&clock).build().unwrap();
    cache.insert(1, 10).unwrap();
    clock.advance(500 * YEAR);
    let readings = clock.readings();
    assert_eq!((cache.get(&1), cache.peek(&1)), (Some(10), Some(10)));
    assert_eq!((cache.get(&2), cache.get_many([&1])), (None, vec![Some(10)]));
    assert_eq!(clock.readings(), readings);
    assert_eq!(cache.entry_info(&1).unwrap().expires_in, None);
    assert_eq!(cache.cleanup_expired(), 0);
    clock.set(Duration::MAX);
    assert_eq!(cache.get(&1), Some(10));
    assert_eq!(cleanup_now(&EmbeddingCache::new(1, u64::MAX, 1)), 0);
}

#[test]
fn an_entry_may_have_a_time_to_live_of_its_own() {
    let lives = [0, 1, 9, 10, 11, 1000].map(Duration::from_secs);
    everywhere(&[1, 8], |policy, pressure, shards| {
        for default in [None, Some(10 * SECOND)] {
            let clock = FakeClock::new();
            let mut builder =
                clocked(&clock).eviction(policy).memory_pressure(pressure).shards(shards);
            if let Some(life) = default {
                builder = builder.time_to_live(life);
            }
            let cache = builder.build().unwrap();
            cache.insert(100, 0).unwrap();
            for (key, life) in (0..).zip(lives) {
                cache.insert_with_ttl(key, 0, life).unwrap();
            }
            for age in [0, 1, 5, 9, 10, 11, 12, 999, 1000, 1001].map(Duration::from_secs) {
                clock.set(1000 * SECOND + age);
                for (key, life) in (0..).zip(lives) {
                    let alive = !life.is_zero() && age <= life;
                    assert_eq!(cache.contains_key(&key), alive, "{life:?} at {age:?}");
                    let left = alive.then(|| life - age);
                    assert_eq!(cache.entry_info(&key).and_then(|info| info.expires_in), left);
                }
                assert_eq!(cache.contains_key(&100), default.is_none_or(|life| age <= life));
            }
            let own = lives.len();
            assert_eq!(cache.cleanup_expired(), own + usize::from(default.is_some()));
            cache.validate();
        }
    });
}

#[test]
fn a_replaced_entry_starts_its_time_to_live_again_or_takes_the_new_one() {
    // Default, own, and from each to the other; the life it must have afterwards.
    let cases =
        [(None, None, 10), (None, Some(3), 3), (Some(3), None, 10), (Some(3), Some(20), 20)];
    for (first, second, life) in cases {
        let clock = FakeClock::new();
        let cache = clocked(&clock).time_to_live(10 * SECOND).shards(1).build().unwrap();
        let put = |value, own: Option<u32>| match own {
            None => cache.insert(1, value).unwrap(),
            Some(life) => cache.insert_with_ttl(1, value, life * SECOND).unwrap(),
        };
        cache.insert(0, 0).unwrap();
        put(1, first);
        clock.advance(2 * SECOND);
        put(2, second);
        assert_eq!(cache.stats().updates, 1);
        clock.advance(life * SECOND);
        assert_eq!(cache.peek(&1), Some(2), "{first:?} then {second:?}");
        clock.advance(INSTANT);
        assert_eq!(cache.peek(&1), None, "{first:?} then {second:?}");
        clock.advance(10 * SECOND);
        assert_eq!(cache.cleanup_expired(), 2, "each once");
        cache.validate();
    }
}

#[test]
fn a_put_over_an_expired_entry_is_an_insertion_and_tells_of_the_expiry() {
    everywhere(&[1, 8], |policy, pressure, shards| {
        let (clock, log) = (FakeClock::new(), Removals::new());
        let cache = clocked(&clock)
            .max_entries(1)
            .time_to_live(SECOND)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(shards)
            .eviction_listener(log.listener())
            .build()
            .unwrap();
        cache.insert(1, 10).unwrap();
        clock.advance(SECOND);
        cache.insert(1, 11).unwrap();
        assert_eq!(log.take(), [(1, 10, Replaced)], "still alive: an update");
        clock.advance(SECOND + INSTANT);
        cache.insert(1, 12).unwrap();
        assert_eq!(log.take(), [(1, 11, Expired)]);
        let stats = cache.stats();
        assert_eq!((stats.insertions, stats.updates, stats.expired_entries), (2, 1, 1));
        assert_eq!((stats.evictions, cache.len(), cache.get(&1)), (0, 1, Some(12)));
        cache.validate();
    });
}

#[test]
fn cleanup_returns_exactly_how_many_it_removed() {
    everywhere(&[1, 2, 32], |policy, pressure, shards| {
        for (short, long) in [(0, 5), (1, 0), (63, 1), (64, 64), (65, 3), (1024, 10), (3000, 500)] {
            let (clock, log) = (FakeClock::new(), Removals::new());
            let cache = clocked(&clock)
                .time_to_live(SECOND)
                .weigher(|_: &u64, value: &u64| *value)
                .eviction(policy)
                .memory_pressure(pressure)
                .shards(shards)
                .eviction_listener(log.listener())
                .build()
                .unwrap();
            for key in 0..short + long {
                if key % 2 == 0 && key < short {
                    cache.insert(key, 1).unwrap();
                } else {
                    let life = if key < short { SECOND } else { 3 * SECOND };
                    cache.insert_with_ttl(key, 1, life).unwrap();
                }
            }
            assert_eq!(cache.cleanup_expired(), 0);
            clock.advance(2 * SECOND);
            assert_eq!(cache.cleanup_expired() as u64, short);
            assert_eq!((cache.len() as u64, cache.weight()), (long, long));
            assert_eq!(cache.cleanup_expired(), 0);
            let mut told = log.take();
            told.sort_unstable_by_key(|&(key, _, _)| key);
            assert!(told.into_iter().eq((0..short).map(|key| (key, 1, Expired))));
            assert_eq!(cache.stats().expired_entries, short);
            cache.validate();
        }
    });
}

/// A cleanup that is stuck in its listener; says how many it had to remove.
fn stuck_cleanup(shards: usize, test: impl FnOnce(&Cache) -> usize) {
    let (clock, gate) = (FakeClock::new(), Gate::opened());
    let cache = clocked(&clock)
        .shards(shards)
        .eviction_listener({
            let gate = gate.clone();
            move |_, _, cause| {
                if cause == Expired {
                    gate.pass();
                }
            }
        })
        .build()
        .unwrap();
    (0..500).for_each(|key| cache.insert_with_ttl(key, key, SECOND).unwrap());
    (1000..1100).for_each(|key| cache.insert(key, key).unwrap());
    clock.advance(2 * SECOND);
    gate.close();
    thread::scope(|scope| {
        let _open = OpenOnDrop(&gate);
        let stuck = scope.spawn(|| cache.cleanup_expired());
        gate.wait_for(1);
        let here = test(&cache);
        gate.open();
        assert_eq!(stuck.join().unwrap() + here, 500, "each was removed and counted once");
    });
    assert_eq!(cache.len(), 100);
    assert_eq!(cache.stats().expired_entries, 500);
    cache.validate();
}

/// Only the first bite of the stuck cleanup has called the listener, so a cleanup that waited for it
/// would wait for ever, and one that did not skip the shard would stop in its listener.
#[test]
fn cleanup_skips_a_shard_that_is_being_cleaned_up() {
    stuck_cleanup(1, |cache| {
        let removed = cache.cleanup_expired();
        assert_eq!(removed, 0, "skipped, without waiting");
        removed
    });
}

#[test]
fn a_cleanup_that_takes_its_time_blocks_neither_get_nor_put() {
    stuck_cleanup(1, |cache| {
        assert_eq!(cache.try_get_for(&1000, Duration::ZERO).unwrap(), Some(1000));
        cache.try_insert_for(1001, 7, Duration::ZERO).unwrap();
        assert_eq!(cache.get_many([&1001, &2000]), [Some(7), None]);
        0
    });
}

#[test]
fn cleanup_goes_on_with_the_shards_that_nobody_cleans_up() {
    let (clock, gate) = (FakeClock::new(), Gate::opened());
    let told = Removals::new();
    let cache = clocked(&clock)
        .time_to_live(SECOND)
        .shards(8)
        .eviction_listener({
            let (gate, log) = (gate.clone(), told.listener());
            move |key, value, cause| {
                // The stuck one stops at its first entry; the others go through.
                if thread::current().name() == Some("stuck") {
                    gate.pass();
                }
                log(key, value, cause);
            }
        })
        .build()
        .unwrap();
    (0..2000).for_each(|key| cache.insert(key, key).unwrap());
    clock.advance(2 * SECOND);
    let held = cache.shard_stats();
    gate.close();
    thread::scope(|scope| {
        let _open = OpenOnDrop(&gate);
        let stuck = thread::Builder::new()
            .name("stuck".to_string())
            .spawn_scoped(scope, || cache.cleanup_expired())
            .unwrap();
        gate.wait_for(1);
        let here = cache.cleanup_expired();
        assert_eq!(here, 2000 - held[0].entries, "all shards but the one being cleaned up");
        gate.open();
        assert_eq!(stuck.join().unwrap(), held[0].entries);
    });
    assert_eq!((cache.len(), told.take().len()), (0, 2000));
    cache.validate();
}

#[test]
fn an_async_cleanup_skips_too() {
    let (clock, gate) = (FakeClock::new(), Gate::closed());
    let cache = EmbeddingCache::builder()
        .max_entries(100)
        .time_to_live(SECOND)
        .clock(clock.clone())
        .eviction_listener({
            let gate = gate.clone();
            move |_, _, _| gate.pass()
        })
        .build()
        .unwrap();
    (0..10).for_each(|i| cache.put_blocking(key(i), [1.0]).unwrap());
    clock.advance(2 * SECOND);
    thread::scope(|scope| {
        let _open = OpenOnDrop(&gate);
        let stuck = scope.spawn(|| cleanup_now(&cache));
        gate.wait_for(1);
        assert_eq!(cleanup_now(&cache), 0);
        gate.open();
        assert_eq!(stuck.join().unwrap(), 10);
    });
}

#[test]
fn a_wall_clock_set_back_or_forward_changes_nothing() {
    let clock = FakeClock::new();
    let cache = EmbeddingCache::builder()
        .max_entries(10)
        .time_to_live(60 * SECOND)
        .clock(clock.clone())
        .build()
        .unwrap();
    let noon = clock.wall();
    let age_hits = |cache: &EmbeddingCache| cache.get_blocking(&key(1)).is_some();
    for days in [-36_500, -1, 1, 36_500] {
        clock.set_wall(noon);
        cache.put_blocking(key(1), [1.0]).unwrap();
        clock.set_wall(noon + TimeDelta::days(days));
        assert!(age_hits(&cache));
        clock.advance(60 * SECOND);
        assert!(age_hits(&cache), "{days} days");
        assert_eq!(cleanup_now(&cache), 0, "{days} days");
        clock.advance(INSTANT);
        assert!(!age_hits(&cache), "{days} days");
    }
    let info = cache.info();
    assert_eq!(info.created_at, noon, "what people read is wall time");
    assert_eq!(info.taken_at, noon + TimeDelta::days(36_500));
}

#[test]
fn entries_show_when_they_were_written_by_the_clock_of_the_cache() {
    let clock = FakeClock::new();
    let cache = clocked(&clock).weigher(|_: &u64, value: &u64| *value).build().unwrap();
    let created = clock.wall();
    clock.advance(90 * SECOND);
    clock.set_wall(created - TimeDelta::days(1)); // set back since
    cache.insert_with_ttl(1, 7, 10 * SECOND).unwrap();
    clock.advance(4 * SECOND);
    let info = cache.entry_info(&1).unwrap();
    assert_eq!((info.weight, info.expires_in), (7, Some(6 * SECOND)));
    assert_eq!(info.written_at, created + TimeDelta::seconds(90));
    cache.insert(1, 8).unwrap();
    let info = cache.entry_info(&1).unwrap();
    assert_eq!((info.weight, info.expires_in), (8, None));
    assert_eq!(info.written_at, created + TimeDelta::seconds(94));
    assert_eq!((cache.created_at(), cache.entry_info(&2)), (created, None));
}

/// Ages are never negative and never huge by a cast: what was written "in the future" is alive.
#[test]
fn a_monotonic_clock_that_goes_back_kills_nothing() {
    everywhere(&[1, 4], |policy, pressure, shards| {
        let clock = FakeClock::new();
        let cache = clocked(&clock)
            .time_to_live(10 * SECOND)
            .eviction(policy)
            .memory_pressure(pressure)
            .shards(shards)
            .build()
            .unwrap();
        (0..50).for_each(|key| cache.insert(key, key).unwrap());
        for back in [999, 500, 0].map(Duration::from_secs) {
            clock.set(back);
            (0..50).for_each(|key| assert_eq!(cache.get(&key), Some(key)));
            assert_eq!(cache.cleanup_expired(), 0);
            (50..100).for_each(|key| cache.insert(key, key).unwrap());
            (0..25).for_each(|key| cache.insert(key, key).unwrap());
            cache.validate();
        }
        // It stood still at 1,000 for those that were written when it had gone back.
        clock.set(Duration::from_secs(1010));
        assert_eq!(cache.iter().count(), 100);
        clock.set(Duration::from_secs(1011));
        assert_eq!(cache.cleanup_expired(), 100);
        cache.validate();
        // Nor does it start anew with an empty cache.
        (0..50).for_each(|key| cache.insert(key, key).unwrap());
        cache.clear();
        clock.set(Duration::from_secs(500));
        (0..50).for_each(|key| cache.insert(key, key).unwrap());
        clock.set(Duration::from_secs(1021));
        assert_eq!(cache.iter().count(), 50);
        cache.validate();
    });
}

#[test]
fn the_longest_lives_and_the_latest_clocks_do_not_overflow() {
    const LONGEST: Duration = Duration::from_nanos(u64::MAX / 2);
    for start in [Duration::ZERO, LONGEST, Duration::from_nanos(u64::MAX), Duration::MAX] {
        let clock = FakeClock::new();
        clock.set(start);
        let cache = clocked(&clock).time_to_live(LONGEST).build().unwrap();
        cache.insert(1, 1).unwrap();
        cache.insert_with_ttl(2, 2, LONGEST).unwrap();
        cache.insert_with_ttl(3, 3, Duration::ZERO).unwrap();
        assert_eq!(cache.get_many([&1, &2, &3]), [Some(1), Some(2), None], "{start:?}");
        clock.set(Duration::MAX);
        cache.insert(1, 4).unwrap();
        cache.insert_with_ttl(2, 5, INSTANT).unwrap();
        assert_eq!(cache.get(&1), Some(4));
        cache.cleanup_expired();
        cache.validate();
    }
}

/// A reader may have asked the clock before the entry was written anew, and then sees one whose age
/// is below zero.
#[test]
fn an_entry_that_is_always_refreshed_in_time_is_never_missed() {
    let clock = FakeClock::new();
    let cache = clocked(&clock).time_to_live(10 * SECOND).shards(1).build().unwrap();
    cache.insert(1, 0).unwrap();
    let done = AtomicBool::new(false);
    let gets = thread::scope(|scope| {
        let done_on_drop = SetOnDrop(&done);
        let reader = || {
            let mut gets = 0_u64;
            while !done.load(Relaxed) {
                assert!(cache.get(&1).is_some(), "missed after {gets} gets");
                gets += 1;
            }
            gets
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for round in 0..3000 {
            clock.advance(9 * SECOND);
            cache.insert(1, round).unwrap();
        }
        eventually("the readers have read", || cache.stats().hits > 100);
        drop(done_on_drop);
        readers.map(|reader| reader.join().unwrap()).iter().sum::<u64>()
    });
    assert_eq!((cache.stats().hits, cache.stats().misses), (gets, 0));
    cache.validate();
}
