//! What only the async door uses: operations in slices, options of an insert, looks at what is stale.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::budget::Limit;
use super::shard::Unlock;
use super::*;

const SLICE: Duration = Duration::from_micros(50);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Fake(AtomicU64);

impl Fake {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, SeqCst);
    }
}

impl Clock for Fake {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.0.load(SeqCst))
    }
}

type Cache = ShardedCache<u64, u64>;

fn builder() -> ShardedCacheBuilder<u64, u64> {
    // It takes Miri ten seconds to make what hit density learns in; `tests/miri.rs` has it.
    let policy = if cfg!(miri) { EvictionPolicy::S3Fifo } else { EvictionPolicy::default() };
    ShardedCache::builder().eviction(policy)
}

fn plain() -> Cache {
    builder().max_entries(1000).shards(4).build().unwrap()
}

/// Runs `work` while another thread holds the lock of the shard of `key`, for reads or for writes.
fn while_held(cache: &Cache, key: u64, writing: bool, work: impl FnOnce()) {
    let shard = cache.place(&key).shard;
    let (held, release) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let hold = || {
                held.wait();
                release.wait();
            };
            if writing {
                shard.write(Forever, Unlock::Plain, |_| hold());
            } else {
                let table = shard.read(Forever);
                hold();
                drop(table);
            }
        });
        held.wait();
        // A test that fails must not leave the other thread waiting.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        release.wait();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn a_group_is_looked_up_whole_or_not_at_all() {
    let cache = plain();
    for key in 0..40 {
        cache.insert(key, key + 1).unwrap();
    }
    let keys: Vec<u64> = (0..GROUP as u64).collect();
    while_held(&cache, 63, true, || {
        for wait in [Duration::ZERO, SLICE] {
            let had = cache.get_group(keys.iter(), Until::after(wait), |_| panic!("pushed"));
            assert!(!had);
        }
        assert_eq!(cache.stats().total_requests(), 0);
        assert_eq!(cache.stats().timeouts, 0);
    });
    for wait in [Duration::ZERO, SLICE] {
        let mut found = Vec::new();
        assert!(cache.get_group(keys.iter(), Until::after(wait), |value| found.push(value)));
        let expected: Vec<_> = keys.iter().map(|key| (*key < 40).then_some(key + 1)).collect();
        assert_eq!(found, expected);
    }
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (80, 48));
}

#[test]
fn a_batch_in_slices_waits_for_a_held_lock_and_counts_no_timeout() {
    let cache = plain();
    let entries = (0..100).map(|key| (key, key));
    let mut insert = cache.start_insert_many(entries, InsertOptions::default());
    while_held(&cache, 0, false, || {
        let mut locked = 0;
        for _ in 0..20 {
            match insert.step(Until::after(if locked == 0 { Duration::ZERO } else { SLICE })) {
                Step::More => assert_eq!(locked, 0, "went on past a lock"),
                Step::Locked => locked += 1,
                Step::Done => panic!("done without the lock"),
            }
        }
        assert!(locked > 10);
    });
    while !matches!(insert.step(Until::after(SLICE)), Step::Done) {}
    let results = insert.end();
    assert_eq!(results.len(), 100);
    assert!(results.iter().all(Result::is_ok));
    let stats = cache.stats();
    assert_eq!((cache.len(), stats.insertions, stats.timeouts, stats.rejected), (100, 100, 0, 0));
    cache.validate();
}

#[test]
fn a_batch_takes_each_lock_once_as_far_as_64_may_leave() {
    let left = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&left);
    let cache = builder()
        .max_weight(200)
        .weigher(|_: &u64, &weight: &u64| weight)
        .shards(1)
        .eviction_listener(move |_: &u64, _: &u64, _| {
            told.fetch_add(1, SeqCst);
        })
        .build()
        .unwrap();
    cache.insert_many((0..200).map(|key| (key, 1)));
    assert_eq!(cache.len(), 200);
    // The first makes 60 leave, the second would be the 120th.
    let entries = [(1000, 60), (1001, 60), (1002, 1), (1000, 61), (1003, 201)];
    let mut insert = cache.start_insert_many(entries, InsertOptions::default());
    let mut most = 0;
    loop {
        let before = left.load(SeqCst);
        let progress = insert.step(Until::after(SLICE));
        if let Step::Done = progress {
            break;
        }
        most = most.max(left.load(SeqCst) - before);
    }
    assert!((60..=66).contains(&most), "{most} in one step");
    let results = insert.end();
    let taken: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(taken, [true, true, true, true, false]);
    assert_eq!(cache.get(&1000), Some(61), "the later one stays");
    assert_eq!(cache.stats().rejected, 1);
    cache.validate();
}

#[test]
fn terms_give_an_entry_its_own_life_and_bind_it_to_an_epoch() {
    let clock = Arc::new(Fake::default());
    let cache = builder().max_entries(10).clock(clock.clone()).build().unwrap();
    let own = |ttl| InsertOptions { time_to_live: Some(ttl), ..InsertOptions::default() };
    cache.insert_with(&mut Some((1, 1)), own(SECOND), Try).unwrap();
    let mut insert = cache.start_insert_many([(2, 2), (3, 3)], own(3 * SECOND));
    while !matches!(insert.step(Try), Step::Done) {}
    assert!(insert.end().iter().all(Result::is_ok));
    clock.advance(2 * SECOND);
    assert_eq!(cache.get_many(&[1, 2, 3]), [None, Some(2), Some(3)]);
    let mut entry = Some((1, 1));
    let refused = cache.insert_with(&mut entry, own(Duration::MAX), Try).unwrap_err();
    assert!(refused.is_invalid_ttl());
    assert_eq!(entry, Some((1, 1)));

    let invalidations: [fn(&Cache); 3] = [
        |cache| {
            cache.invalidate_all();
        },
        |cache| {
            cache.invalidate_if(|_, _| false);
        },
        Cache::clear,
    ];
    for invalidate in invalidations {
        let in_epoch = |epoch| {
            let condition = Some(Condition { epoch, superseded: None });
            InsertOptions { condition, ..InsertOptions::default() }
        };
        let before = cache.epoch();
        cache.insert_with(&mut Some((5, 5)), in_epoch(before), Try).unwrap();
        invalidate(&cache);
        let counted = cache.stats();
        let mut entry = Some((5, 6));
        let refused = cache.insert_with(&mut entry, in_epoch(before), Try);
        let refused = refused.unwrap_err();
        assert!(refused.is_superseded());
        cache.count_refusal(&5, &refused);
        assert_eq!(entry, Some((5, 6)));
        let mut insert = cache.start_insert_many([(5, 6), (6, 6)], in_epoch(before));
        while !matches!(insert.step(Try), Step::Done) {}
        assert!(insert.end().iter().all(Result::is_err));
        assert_eq!(cache.stats(), counted, "a refusal for an invalidation is not counted");
        assert_ne!(cache.peek(&5), Some(6));
        let mut entry = Some((5, 7));
        cache.insert_with(&mut entry, in_epoch(cache.epoch()), Try).unwrap();
        assert_eq!(cache.peek(&5), Some(7));
        cache.validate();
    }
}

/// A refused load evicts nobody.
#[test]
fn what_an_invalidation_refuses_makes_no_room() {
    let cache = builder().max_entries(2).build().unwrap();
    let epoch = cache.epoch();
    cache.begin_invalidation();
    cache.insert_many([(1, 1), (2, 2)]);
    let condition = Some(Condition { epoch, superseded: None });
    let options = InsertOptions { condition, ..InsertOptions::default() };
    cache.insert_with(&mut Some((3, 3)), options, Try).unwrap_err();
    assert_eq!(cache.get_many(&[1, 2]), [Some(1), Some(2)]);
    assert_eq!(cache.stats().evictions, 0);
}

#[test]
fn a_look_tells_fresh_from_stale_from_absent_and_counts_nothing() {
    let clock = Arc::new(Fake::default());
    let cache = builder()
        .max_entries(10)
        .time_to_live(10 * SECOND)
        .grace(5 * SECOND)
        .clock(clock.clone())
        .build()
        .unwrap();
    let look = |key| match cache.peek_state(&key, Try) {
        None => panic!("locked"),
        Some(Lookup::Fresh(value)) => Some((value, None)),
        Some(Lookup::Stale { value, past }) => Some((value, Some(past))),
        Some(Lookup::Absent) => None,
    };
    assert_eq!(look(1), None);
    cache.insert(1, 1).unwrap();
    cache.insert_with_ttl(2, 2, Duration::ZERO).unwrap();
    cache.insert_with_ttl(3, 3, 12 * SECOND).unwrap();
    assert_eq!((look(1), look(2)), (Some((1, None)), None));
    let served = |key| {
        let info = cache.entry_info(&key).is_some();
        assert_eq!((cache.contains_key(&key), cache.peek(&key).is_some()), (info, info));
        assert_eq!(cache.iter().any(|(other, _)| other == key), info);
        info
    };
    assert_eq!(cache.entry_info(&1).unwrap().expires_in, Some(10 * SECOND));
    clock.advance(10 * SECOND);
    assert_eq!((look(1), served(1)), (Some((1, None)), true), "its age does not exceed it yet");
    clock.advance(SECOND);
    assert_eq!((look(1), served(1)), (Some((1, Some(SECOND))), false));
    assert_eq!((look(3), served(3)), (Some((3, None)), true), "a life of its own");
    assert_eq!(cache.stats().total_requests(), 0);
    // A get misses it and leaves it, and so does a cleanup, but for the one that has no life.
    assert_eq!((cache.get(&1), cache.get_many(&[1])), (None, vec![None]));
    assert_eq!((cache.cleanup_expired(), cache.len()), (1, 2));
    assert_eq!((look(1), cache.stats().misses), (Some((1, Some(SECOND))), 2));
    // A put over it is an update.
    cache.insert(1, 11).unwrap();
    assert_eq!((look(1), cache.stats().updates), (Some((11, None)), 1));
    clock.advance(6 * SECOND);
    assert_eq!(look(3), Some((3, Some(5 * SECOND))), "to the end of the grace");
    clock.advance(Duration::from_nanos(1));
    assert_eq!(look(3), None);
    clock.advance(5 * SECOND);
    // Stale, so it is not given back by a remove.
    assert!(matches!(look(1), Some((11, Some(_)))));
    assert_eq!((cache.remove(&1), look(1)), (None, None));
    cache.validate();
}

#[test]
fn the_moment_zero_is_one_like_any_other() {
    for grace in [Duration::ZERO, SECOND] {
        for idle in [false, true] {
            let clock = Arc::new(Fake::default());
            let builder = builder().max_entries(10).time_to_live(3 * SECOND).grace(grace);
            let builder = if idle { builder.time_to_idle(2 * SECOND) } else { builder };
            let cache = builder.clock(clock.clone()).build().unwrap();
            cache.insert(1, 1).unwrap();
            cache.insert_with_ttl(2, 2, Duration::ZERO).unwrap();
            assert_eq!((cache.get(&1), cache.get(&2)), (Some(1), None));
            cache.insert_with_ttl(2, 2, Duration::ZERO).unwrap();
            assert_eq!(cache.get_many(&[1, 2]), [Some(1), None]);
            clock.advance(2 * SECOND);
            assert_eq!(cache.get(&1), Some(1));
            clock.advance(SECOND);
            assert_eq!(cache.get(&1), Some(1), "not idle: it was used a second ago");
            clock.advance(Duration::from_nanos(1));
            assert_eq!(cache.get(&1), None);
        }
    }
}

#[test]
fn an_invalidation_removes_what_is_stale_too() {
    let clock = Arc::new(Fake::default());
    let builder = builder().max_entries(10).time_to_live(SECOND).grace(9 * SECOND);
    let cache = builder.clock(clock.clone()).build().unwrap();
    cache.insert_many([(1, 1), (2, 2)]);
    clock.advance(2 * SECOND);
    assert_eq!(cache.invalidate_if(|&key, _| key == 1), 1);
    assert!(matches!(cache.peek_state(&1, Until::after(SLICE)), Some(Lookup::Absent)));
    assert!(matches!(cache.peek_state(&2, Until::after(SLICE)), Some(Lookup::Stale { .. })));
}

#[test]
fn sweeps_in_slices_wait_for_a_held_lock_and_then_go_on() {
    let cache = plain();
    cache.insert_many((0..300).map(|key| (key, key)));
    let mut retain = cache.start_retain(|key, _| key % 2 == 0);
    while_held(&cache, 5, false, || {
        let mut steps = 0..50;
        let locked = steps.any(|_| {
            let before = cache.len();
            let step = retain.step(Try);
            assert!(before - cache.len() <= 64);
            step == Step::Locked
        });
        assert!(locked && retain.step(Until::after(SLICE)) == Step::Locked);
    });
    while retain.step(Try) == Step::More {}
    assert_eq!((retain.end(), cache.len()), (150, 150));

    let mut invalidation = cache.start_invalidation();
    assert!(cache.iter().next().is_none(), "gone before the first step");
    assert_eq!(cache.len(), 150);
    while_held(&cache, 5, false, || {
        while invalidation.step(Try) == Step::More {}
        assert_eq!(invalidation.step(Until::after(SLICE)), Step::Locked);
    });
    while invalidation.step(Until::after(SLICE)) == Step::More {}
    assert_eq!((invalidation.end(), cache.len(), cache.stats().removals), (150, 0, 300));
    cache.validate();
}

/// Every operation on a cache whose sweep has not come yet: nothing of the old is seen, room is
/// found, and what is stored is not lost to the sweep.
#[test]
fn nobody_sees_an_outdated_shard_and_writers_renew_it() {
    type Act = fn(&Cache);
    let acts: [(&str, Act); 14] = [
        ("get", |cache| assert_eq!(cache.get(&1), None)),
        ("get_many", |cache| assert_eq!(cache.get_many(&[1, 2]), [None, None])),
        ("peek", |cache| assert_eq!(cache.peek(&1), None)),
        ("contains_key", |cache| assert!(!cache.contains_key(&1))),
        ("entry_info", |cache| assert_eq!(cache.entry_info(&1), None)),
        ("look", |cache| {
            assert!(matches!(cache.peek_state(&1, Until::after(SLICE)), Some(Lookup::Absent)));
        }),
        ("iter", |cache| assert_eq!(cache.iter().count(), 0)),
        ("keys", |cache| assert_eq!(cache.keys().count(), 0)),
        ("remove", |cache| assert_eq!(cache.remove(&1), None)),
        ("retain", |cache| assert_eq!(cache.retain(|_, _| panic!("asked")), 0)),
        ("cleanup_expired", |cache| assert_eq!(cache.cleanup_expired(), 0)),
        ("set_max_entries", |cache| assert_eq!(cache.set_max_entries(4), 0)),
        ("insert", |cache| cache.insert(1, 100).unwrap()),
        ("insert_many", |cache| {
            let results = cache.insert_many((0..20).map(|key| (key, 100)));
            assert!(results.iter().all(Result::is_ok));
        }),
    ];
    for (what, act) in acts {
        let cache = builder().max_entries(20).shards(4).build().unwrap();
        cache.insert_many((0..20).map(|key| (key, key)));
        let held = cache.len() as u64;
        let evicted = cache.stats().evictions;
        let mut invalidation = cache.start_invalidation();
        act(&cache);
        assert!(cache.iter().all(|(_, value)| value == 100), "{what}");
        let stored = cache.iter().count();
        while invalidation.step(Until::after(SLICE)) == Step::More {}
        invalidation.end();
        assert_eq!((cache.len(), cache.iter().count()), (stored, stored), "{what}");
        assert_eq!(cache.stats().removals, held, "{what}");
        assert_eq!(cache.stats().evictions, evicted, "{what}");
        cache.validate();
    }
}

#[test]
fn a_try_tells_a_held_lock_from_a_miss_and_gives_the_entry_back() {
    let cache = plain();
    cache.insert(1, 10).unwrap();
    while_held(&cache, 1, true, || {
        let busy = cache.try_get(&1).unwrap_err();
        assert!(busy.is_timeout(), "{busy}");
        let busy = cache.try_insert(1, 11).unwrap_err();
        assert!(busy.error().is_timeout(), "{busy}");
        assert_eq!(busy.into_entry(), (1, 11));
        let stats = cache.stats();
        assert_eq!((stats.timeouts, stats.rejected, stats.total_requests()), (2, 0, 0));
    });
    while_held(&cache, 1, false, || {
        assert_eq!(cache.try_get(&1).unwrap(), Some(10), "readers share the lock");
        assert!(cache.try_insert(1, 11).unwrap_err().error().is_timeout());
    });
    assert_eq!(cache.try_get(&1).unwrap(), Some(10), "what was refused is not stored");
    assert_eq!(cache.try_get(&2).unwrap(), None);
    cache.try_insert(1, 11).unwrap();
    assert_eq!(cache.try_get(&1).unwrap(), Some(11));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.updates), (3, 1, 1));
    cache.validate();
}

#[test]
fn a_predicate_of_a_removal_sees_only_a_live_value_and_changes_nothing_by_a_panic() {
    let clock = Arc::new(Fake::default());
    let causes = Arc::new(crate::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&causes);
    let cache = builder()
        .max_entries(10)
        .clock(clock.clone())
        .eviction_listener(move |&key: &u64, &value: &u64, cause| {
            told.lock().push((key, value, cause));
        })
        .build()
        .unwrap();
    cache.insert_many([(1, 10), (2, 20)]);
    cache.insert_with_ttl(3, 30, SECOND).unwrap();
    clock.advance(2 * SECOND);

    assert_eq!(cache.remove_if(&1, |&value| value != 10), None);
    assert_eq!(cache.remove_if(&9, |_| panic!("asked about nothing")), None);
    assert_eq!(cache.remove_if(&3, |_| panic!("asked about an expired value")), None);
    let panicked = std::panic::catch_unwind(|| cache.remove_if(&1, |_| panic!("as ordered")));
    assert!(panicked.is_err());
    assert_eq!((cache.peek(&1), cache.len(), cache.stats().removals), (Some(10), 2, 0));
    cache.validate();

    let mut asked = Vec::new();
    let removed = cache.remove_if(&1, |&value| {
        asked.push(value);
        true
    });
    assert_eq!((removed, asked), (Some(10), vec![10]));
    assert_eq!((cache.peek(&1), cache.len(), cache.stats().removals), (None, 1, 1));
    let expected = [(3, 30, RemovalCause::Expired), (1, 10, RemovalCause::Removed)];
    assert_eq!(*causes.lock(), expected);
    cache.validate();
}

#[test]
fn a_search_that_has_looked_enough_goes_on_under_the_next_lock_hold() {
    for limit in [Limit::Entries, Limit::Weight] {
        let cache = ShardedCache::<u64, u64>::builder()
            .max_weight(200)
            .weigher(|_, _| 1)
            .shards(1)
            .eviction(EvictionPolicy::Lru)
            .memory_pressure(MemoryPressure::LargestFirst)
            .build()
            .unwrap();
        (0..200).for_each(|key| cache.insert(key, key).unwrap());
        (0..200).for_each(|at| assert!(cache.get(&(at * 77 % 200)).is_some()));
        let hold = || {
            cache.shards[0].write(Forever, Unlock::Plain, |table| {
                let victim = table.next_to_leave(limit, Stamp::ZERO, None, true);
                let key = victim.and_then(|(id, _)| table.entry(id)).map(|entry| entry.key);
                (key, table.is_tired())
            })
        };
        let holds: Vec<_> = std::iter::repeat_with(|| hold().unwrap()).take(5).collect();
        let (tired, found) = ((None, true), (Some(0), false));
        assert_eq!(holds, [tired, tired, tired, found, found], "{limit:?}");
    }
}
