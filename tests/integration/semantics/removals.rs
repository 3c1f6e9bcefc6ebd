//! What happens to entries that leave: a listener that uses the cache, and what a cancelled
//! invalidation leaves behind.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::support::{FakeClock, in_time, key};
use embedding_cache::{EmbeddingCache, EmbeddingVector, RemovalCause, ShardedCache};

type Cache = ShardedCache<u64, u64>;

const ENTRIES: u64 = 100_000;
const SECOND: Duration = Duration::from_secs(1);

/// A cache whose listener is given the cache itself. One that holds `max` entries.
fn with_listener(
    max: u64,
    shards: usize,
    listener: impl Fn(&Cache, u64, u64, RemovalCause) + Send + Sync + 'static,
) -> (Arc<Cache>, Arc<FakeClock>) {
    let clock = FakeClock::new();
    let itself = Arc::new(OnceLock::<std::sync::Weak<Cache>>::new());
    let cache = Cache::builder()
        .max_entries(max as usize)
        .shards(shards)
        .clock(clock.clone())
        .eviction_listener({
            let itself = itself.clone();
            move |&key, &value, cause| {
                let cache = itself.get().and_then(std::sync::Weak::upgrade);
                listener(&cache.expect("the cache is there"), key, value, cause);
            }
        })
        .build()
        .unwrap();
    let cache = Arc::new(cache);
    itself.set(Arc::downgrade(&cache)).unwrap();
    (cache, clock)
}

/// Runs `work` on a thread whose stack has no room for many nested operations.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap();
    in_time(move || thread.join().unwrap());
}

#[test]
fn a_listener_may_put_back_what_expired() {
    for shards in [1, 8] {
        let (cache, clock) = with_listener(ENTRIES, shards, |cache, key, value, cause| {
            if cause == RemovalCause::Expired {
                cache.insert(key, value + 1).unwrap();
            }
        });
        (0..ENTRIES).for_each(|key| cache.insert_with_ttl(key, 0, SECOND).unwrap());
        clock.advance(2 * SECOND);
        let after = cache.clone();
        on_a_small_stack(move || assert!(cache.cleanup_expired() > 0));
        assert_eq!(after.len(), ENTRIES as usize);
        assert!(after.iter().all(|(_, value)| value == 1), "each was put back once");
        assert_eq!(after.stats().expired_entries, ENTRIES);
        after.validate();
    }
}

#[test]
fn a_listener_may_put_back_what_was_evicted() {
    // Each put back evicts the next: a chain that only the listener's own count ends.
    let left = AtomicU64::new(ENTRIES);
    let depth = AtomicUsize::new(0);
    let (cache, _) = with_listener(100, 1, move |cache, key, value, cause| {
        assert_eq!(cause, RemovalCause::Size);
        assert_eq!(depth.fetch_add(1, Relaxed), 0, "it is not called inside itself");
        if left.load(Relaxed) > 0 {
            left.fetch_sub(1, Relaxed);
            cache.insert(key, value).unwrap();
        }
        depth.fetch_sub(1, Relaxed);
    });
    (0..100).for_each(|key| cache.insert(key, key).unwrap());
    let after = cache.clone();
    on_a_small_stack(move || cache.insert(100, 100).unwrap());
    assert_eq!((after.len(), after.stats().evictions), (100, ENTRIES + 1));
    after.validate();
}

#[test]
fn a_listener_may_remove_and_clear_and_lower_the_limit() {
    // Each removal removes the next key.
    let (cache, _) = with_listener(ENTRIES, 4, |cache, key, _, cause| {
        if cause == RemovalCause::Removed {
            assert_eq!(cache.remove(&(key + 1)).is_some(), key + 1 < ENTRIES);
        }
    });
    cache.insert_many((0..ENTRIES).map(|key| (key, key)));
    let after = cache.clone();
    on_a_small_stack(move || assert_eq!(cache.remove(&0), Some(0)));
    assert_eq!((after.len(), after.stats().removals), (0, ENTRIES));

    let (cache, _) = with_listener(ENTRIES, 4, |cache, key, _, _| match key % 3 {
        0 => cache.clear(),
        1 => assert!(cache.set_max_entries(10) < ENTRIES as usize),
        _ => assert!(cache.retain(|&other, _| other != key) < ENTRIES as usize),
    });
    cache.insert_many((0..1000).map(|key| (key, key)));
    let after = cache.clone();
    on_a_small_stack(move || assert_eq!(cache.remove(&7), Some(7)));
    assert_eq!((after.len(), after.unreclaimed_weight()), (0, 0));
    after.validate();
}

#[test]
fn a_listener_hears_of_what_its_own_operations_made_leave_in_order_and_after_it_returned() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    let (cache, _) = with_listener(10, 1, move |cache, key, value, cause| {
        log.lock().unwrap().push((key, value, cause));
        if key == 0 {
            cache.insert(1, 20).unwrap(); // replaces 10
            assert_eq!(cache.remove(&1), Some(20));
            assert_eq!(cache.remove(&2), Some(30));
        }
        log.lock().unwrap().push((key, value, cause));
    });
    for (key, value) in [(0, 0), (1, 10), (2, 30), (3, 40)] {
        cache.insert(key, value).unwrap();
    }
    assert_eq!(cache.invalidate_if(|&key, _| key == 0 || key == 3), 2);
    use RemovalCause::{Removed, Replaced};
    let once =
        [(0, 0, Removed), (3, 40, Removed), (1, 10, Replaced), (1, 20, Removed), (2, 30, Removed)];
    let twice: Vec<_> = once.into_iter().flat_map(|told| [told, told]).collect();
    assert_eq!(*told.lock().unwrap(), twice);
}

#[test]
fn a_panic_of_the_listener_loses_nothing_that_others_made_leave() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = told.clone();
    let (cache, _) = with_listener(100, 1, move |cache, key, _, cause| {
        log.lock().unwrap().push(key);
        if key == 0 {
            // Another's operations, as the removal of 0 sees it.
            (1..20).for_each(|other| assert_eq!(cache.remove(&other), Some(other)));
        }
        assert!(key > 3 || cause != RemovalCause::Removed, "injected");
    });
    (0..100).for_each(|key| cache.insert(key, key).unwrap());
    let removal = std::panic::AssertUnwindSafe(|| cache.remove(&0));
    assert!(std::panic::catch_unwind(removal).is_err());
    assert_eq!(*told.lock().unwrap(), (0..20).collect::<Vec<_>>());
    assert_eq!(cache.len(), 80);
    // And the next operation of this thread is told as any other.
    assert_eq!(cache.remove(&50), Some(50));
    assert_eq!(told.lock().unwrap().last(), Some(&50));
    cache.validate();
}

#[test]
fn two_caches_may_put_into_each_other() {
    // The eviction of one is stored in the other, and back again.
    let second = Arc::new(OnceLock::<Arc<Cache>>::new());
    let left = Arc::new(AtomicU64::new(ENTRIES));
    let (to_second, count) = (second.clone(), left.clone());
    let (first, _) = with_listener(10, 1, move |_, key, value, _| {
        if count.load(Relaxed) > 0 {
            count.fetch_sub(1, Relaxed);
            to_second.get().unwrap().insert(key, value).unwrap();
        }
    });
    let back = Arc::downgrade(&first);
    let (other, _) = with_listener(10, 1, move |_, key, value, _| {
        back.upgrade().unwrap().insert(key, value).unwrap();
    });
    second.set(other).unwrap();
    let work = first.clone();
    on_a_small_stack(move || (0..100).for_each(|key| work.insert(key, key).unwrap()));
    assert_eq!((first.len(), left.load(Relaxed)), (10, 0));
    first.validate();
}

/// Polls `future` to its end, and says how often it gave others a turn.
fn turns<F: Future>(future: F) -> (usize, F::Output) {
    let (mut future, mut turns) = (pin!(future), 0);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(done) => return (turns, done),
            Poll::Pending => turns += 1,
        }
    }
}

const MANY: u64 = 100_000;

/// A cache that holds [`MANY`] entries.
fn full(shards: usize) -> (EmbeddingCache, Arc<AtomicU64>) {
    let told = Arc::new(AtomicU64::new(0));
    let count = told.clone();
    let cache = EmbeddingCache::builder()
        .max_entries(MANY as usize)
        .shards(shards)
        .eviction_listener(move |_, _, _| {
            count.fetch_add(1, Relaxed);
        })
        .build()
        .unwrap();
    let vector = EmbeddingVector::from([0.5; 4]);
    let entries = (0..MANY).map(|number| (key(number as usize), vector.clone()));
    let (turns, results) = turns(cache.put_many(entries));
    assert!(results.iter().all(Result::is_ok));
    // Never slower than this by a hundred times: five seconds for what takes half of one.
    assert!(turns >= 20, "put_many gave {turns} turns");
    (cache, told)
}

#[test]
fn large_operations_give_other_tasks_a_turn() {
    for shards in [1, 16] {
        let (cache, _) = full(shards);
        let keys: Vec<_> = (0..MANY as usize).map(key).collect();
        let (gets, found) = turns(cache.get_many(&keys));
        assert!(found.iter().all(Option::is_some));
        let (clears, removed) = turns(cache.invalidate_all());
        assert_eq!(removed as u64, MANY);
        assert!(gets >= 10 && clears >= 10, "get_many {gets}, invalidate_all {clears}");
    }
}

#[test]
fn what_a_cancelled_clear_leaves_is_dropped_bit_by_bit_and_its_bytes_are_known() {
    for shards in [1, 16] {
        let (cache, told) = full(shards);
        let bytes = cache.info().memory_bytes;
        let clear = |polls| {
            let mut clear = Box::pin(cache.clear());
            let mut context = Context::from_waker(Waker::noop());
            (0..polls).for_each(|_| assert!(clear.as_mut().poll(&mut context).is_pending()));
        };
        clear(2);
        let info = cache.info();
        let left = info.unreclaimed_bytes + info.memory_bytes;
        let each = bytes / MANY;
        assert_eq!(left, bytes - told.load(Relaxed) * each, "what is not dropped is known");
        assert!(left > bytes / 2, "{left} of {bytes}: this is no test");

        for number in 0..50 {
            let before = told.load(Relaxed);
            let put = cache.put_with_timeout(key(number), [0.5; 4], 1000);
            turns(put).1.unwrap();
            let dropped = told.load(Relaxed) - before;
            assert!((1..=64).contains(&dropped), "a put dropped {dropped} of another's");
        }
        turns(cache.remove(&key(0))).1.unwrap();
        assert!(cache.info().unreclaimed_bytes > 0);
        // The new entries stay, all others are told of and dropped once.
        let (turns, removed) = turns(cache.cleanup_expired_safe());
        assert_eq!(removed, 0);
        assert!(turns >= 5, "a cleanup gave {turns} turns");
        assert_eq!((cache.info().unreclaimed_bytes, cache.info().size), (0, 49));
        assert_eq!(told.load(Relaxed), MANY + 1);
    }
}
