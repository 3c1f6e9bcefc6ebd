//! Panics in the caller's code: whatever panics, wherever it is called, the cache stays valid and
//! unlocked, and goes on working.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::Duration;

use crate::support::{FakeClock, HANG, PRESSURES, Removals, ShardIsKey, everywhere, in_time, key};
use chrono::{DateTime, Utc};
use embedding_cache::{
    Clock, EmbeddingCache, EvictionPolicy, MemoryPressure, RemovalCause, ShardedCache,
};

const SECOND: Duration = Duration::from_secs(1);

/// Where the caller's code is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    KeyHash,
    KeyEq,
    KeyClone,
    ValueClone,
    Weigher,
    Listener,
    Predicate,
    Clock,
    KeyDrop,
    ValueDrop,
    Entries,
}

const CALLS: [Call; 11] = [
    Call::KeyHash,
    Call::KeyEq,
    Call::KeyClone,
    Call::ValueClone,
    Call::Weigher,
    Call::Listener,
    Call::Predicate,
    Call::Clock,
    Call::KeyDrop,
    Call::ValueDrop,
    Call::Entries,
];

thread_local! {
    /// Which call panics, and how many of its kind go well before it does.
    static ARMED: Cell<Option<(Call, u32)>> = const { Cell::new(None) };
}

/// The caller's code: panics if this is the call that is to panic.
fn called(call: Call) {
    if let Some((armed, left)) = ARMED.get()
        && armed == call
    {
        if left == 0 {
            ARMED.set(None);
            panic!("injected into {call:?}");
        }
        ARMED.set(Some((call, left - 1)));
    }
}

/// Runs `work` with the `nth` call of this kind panicking; says whether it came to that.
fn panics(call: Call, nth: u32, work: impl FnOnce()) -> bool {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let injected = info.payload().downcast_ref::<String>();
            if !injected.is_some_and(|message| message.starts_with("injected")) {
                usual(info);
            }
        }));
    });
    ARMED.set(Some((call, nth)));
    let result = catch_unwind(AssertUnwindSafe(work));
    ARMED.set(None);
    match result {
        Ok(()) => false,
        Err(panic) => {
            let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            assert!(message.starts_with("injected"), "another panic: {message}");
            true
        }
    }
}

struct Key(u64);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        called(Call::KeyHash);
        state.write_u64(self.0);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        called(Call::KeyEq);
        self.0 == other.0
    }
}

impl Eq for Key {}

impl Clone for Key {
    fn clone(&self) -> Self {
        called(Call::KeyClone);
        Self(self.0)
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        called(Call::KeyDrop);
    }
}

#[derive(Debug, PartialEq)]
struct Value(u64);

impl Drop for Value {
    fn drop(&mut self) {
        called(Call::ValueDrop);
    }
}

impl Clone for Value {
    fn clone(&self) -> Self {
        called(Call::ValueClone);
        Self(self.0)
    }
}

struct PanickyClock(Arc<FakeClock>);

impl Clock for PanickyClock {
    fn monotonic(&self) -> Duration {
        called(Call::Clock);
        self.0.monotonic()
    }

    fn wall(&self) -> DateTime<Utc> {
        self.0.wall()
    }
}

type Cache = ShardedCache<Key, Value, ShardIsKey>;

/// Full by number, 10 of 100 by weight each; the keys 0 to 9, of which 7, 8 and 9 are expired.
fn full(policy: EvictionPolicy, pressure: MemoryPressure, shards: usize) -> Cache {
    let clock = FakeClock::new();
    let cache = ShardedCache::<Key, Value>::builder()
        .max_entries(10)
        .max_weight(100)
        .weigher(|_: &Key, value: &Value| {
            called(Call::Weigher);
            value.0
        })
        .eviction(policy)
        .memory_pressure(pressure)
        .shards(shards)
        .clock(Arc::new(PanickyClock(clock.clone())))
        .eviction_listener(|_, _, _| called(Call::Listener))
        .hasher(ShardIsKey)
        .build()
        .unwrap();
    for key in 0..10 {
        let life = if key < 7 { 100 * SECOND } else { SECOND };
        cache.insert_with_ttl(Key(key), Value(10), life).unwrap();
    }
    clock.advance(2 * SECOND);
    cache
}

/// What the operation answers is not the question here.
fn ignore<T>(_: T) {}

/// An operation and its name.
type Operation = (&'static str, fn(&Cache));

const OPERATIONS: [Operation; 29] = [
    ("get, a hit", |cache| ignore(cache.get(&Key(1)))),
    ("get, a miss", |cache| ignore(cache.get(&Key(30)))),
    ("get, expired", |cache| ignore(cache.get(&Key(8)))),
    ("try_get_for", |cache| ignore(cache.try_get_for(&Key(1), HANG))),
    ("get_many", |cache| ignore(cache.get_many(&[1, 8, 30, 2, 8, 9, 1].map(Key)))),
    ("peek", |cache| ignore(cache.peek(&Key(1)))),
    ("contains_key", |cache| ignore(cache.contains_key(&Key(1)))),
    ("entry_info", |cache| ignore(cache.entry_info(&Key(1)))),
    ("insert", |cache| ignore(cache.insert(Key(30), Value(10)))),
    ("insert, a replacement", |cache| ignore(cache.insert(Key(1), Value(9)))),
    ("insert, over an expired one", |cache| ignore(cache.insert(Key(8), Value(9)))),
    ("insert, one that grows", |cache| ignore(cache.insert(Key(1), Value(55)))),
    ("insert, a large one", |cache| ignore(cache.insert(Key(30), Value(100)))),
    ("insert, one too large", |cache| ignore(cache.insert(Key(1), Value(101)))),
    ("insert_with_ttl", |cache| ignore(cache.insert_with_ttl(Key(30), Value(35), SECOND))),
    ("try_insert_for", |cache| ignore(cache.try_insert_for(Key(30), Value(35), HANG))),
    ("remove", |cache| ignore(cache.remove(&Key(1)))),
    ("remove, expired", |cache| ignore(cache.remove(&Key(8)))),
    ("cleanup_expired", |cache| ignore(cache.cleanup_expired())),
    ("clear", |cache| cache.clear()),
    ("invalidate_all", |cache| ignore(cache.invalidate_all())),
    ("invalidate_if", |cache| {
        cache.invalidate_if(|key, _| {
            called(Call::Predicate);
            key.0 % 2 == 0
        });
    }),
    ("set_max_entries", |cache| ignore(cache.set_max_entries(3))),
    ("set_max_weight", |cache| ignore(cache.set_max_weight(30))),
    ("insert_many", |cache| insert_many(cache, &[30, 1, 31, 8, 1, 32])),
    ("insert_many, large ones", |cache| {
        cache.insert_many([(Key(30), Value(55)), (Key(31), Value(101)), (Key(1), Value(60))]);
    }),
    ("shard_stats and the rest", |cache| {
        ignore((cache.shard_stats(), cache.stats(), cache.len(), format!("{cache:?}")));
    }),
    ("iter and keys", |cache| ignore((cache.iter().count(), cache.keys().count()))),
    ("retain", |cache| {
        cache.retain(|key, _| {
            called(Call::Predicate);
            key.0 % 2 == 0
        });
    }),
];

/// Each with a value of 5, from an iterator that is the caller's code too.
fn insert_many(cache: &Cache, keys: &[u64]) {
    cache.insert_many(keys.iter().map(|&key| {
        called(Call::Entries);
        (Key(key), Value(5))
    }));
}

/// Says in how many places there was a panic.
fn panics_everywhere(policy: EvictionPolicy, pressure: MemoryPressure, shards: usize) -> u32 {
    let mut places = 0;
    for (name, operation) in OPERATIONS {
        for call in CALLS {
            for nth in 0.. {
                let cache = full(policy, pressure, shards);
                if !panics(call, nth, || operation(&cache)) {
                    break; // it is called no more often than that
                }
                places += 1;
                let case = format!("{name}, call {nth} of {call:?}, {policy:?}, {shards} shards");
                check_that_it_works(&cache, &case);
            }
        }
    }
    places
}

fn check_that_it_works(cache: &Cache, case: &str) {
    cache.validate();
    cache.set_max_entries(10);
    cache.set_max_weight(100).unwrap();
    assert_eq!(cache.unreclaimed_weight(), 0, "{case}");
    // Every shard can be locked, for reading and for writing.
    for key in 40..48 {
        assert!(cache.try_get_for(&Key(key), SECOND).is_ok(), "locked: {case}");
        cache.try_insert_for(Key(key), Value(1), SECOND).unwrap();
        assert_eq!(cache.get(&Key(key)), Some(Value(1)), "{case}");
    }
    assert!(cache.len() <= 10 && cache.weight() <= 100, "{case}");
    // No room and no guard is lost.
    cache.insert(Key(50), Value(100)).unwrap();
    assert_eq!((cache.len(), cache.weight()), (1, 100), "{case}");
    cache.insert_with_ttl(Key(51), Value(1), Duration::ZERO).unwrap();
    assert_eq!(cache.cleanup_expired(), 1, "{case}");
    (60..70).for_each(|key| cache.insert(Key(key), Value(10)).unwrap());
    assert_eq!((cache.len(), cache.weight(), cache.iter().count()), (10, 100, 10), "{case}");
    cache.validate();
}

#[test]
fn a_panic_anywhere_leaves_the_cache_valid_and_unlocked() {
    in_time(|| {
        everywhere(&[1, 4], |policy, pressure, shards| {
            let places = panics_everywhere(policy, pressure, shards);
            assert!(places > 80, "{places}");
        });
    });
}

/// Of many entries, one whose own code panics is lost, and no other.
#[test]
fn entries_beside_one_that_panics_are_stored_all_the_same() {
    let keys: Vec<u64> = (0..200).collect();
    for call in [Call::KeyHash, Call::KeyEq, Call::Weigher, Call::Clock, Call::Entries] {
        // The clock is read for each group of 64 and each of its shards.
        let calls = if call == Call::Clock { [0, 1, 6, 13] } else { [0, 1, 70, 150] };
        for (shards, nth) in [1, 16].into_iter().flat_map(|s| calls.map(|n| (s, n))) {
            let cache = ShardedCache::<Key, Value>::builder()
                .max_entries(1000)
                .max_weight(10_000)
                .weigher(|_: &Key, value: &Value| {
                    called(Call::Weigher);
                    value.0
                })
                .time_to_live(SECOND)
                .clock(Arc::new(PanickyClock(FakeClock::new())))
                .shards(shards)
                .hasher(ShardIsKey)
                .build()
                .unwrap();
            // Replaced ones are compared.
            insert_many(&cache, &keys);
            let many: Vec<u64> = (0..400).collect();
            let case = format!("call {nth} of {call:?}, {shards} shards");
            assert!(panics(call, nth, || insert_many(&cache, &many)), "{case}");
            cache.validate();
            let stored = many.iter().filter(|&&key| cache.contains_key(&Key(key))).count();
            // Where the iterator panics, there are no more.
            let expected = if call == Call::Entries { (nth as usize).max(200) } else { 399 };
            assert!(stored == expected || stored == many.len(), "{stored}: {case}");
            check_that_it_works(&cache, &case);
        }
    }
}

/// What leaves is dropped when the work is done, and one that panics keeps no other from it.
#[test]
fn a_drop_that_panics_does_so_when_the_work_is_done() {
    type Work = (&'static str, fn(&Cache), fn(&Cache) -> bool);
    let works: [Work; 7] = [
        ("clear", |cache| cache.clear(), |cache| cache.is_empty()),
        ("retain", |cache| ignore(cache.retain(|_, _| false)), |cache| cache.is_empty()),
        ("set_max_entries", |cache| ignore(cache.set_max_entries(3)), |cache| cache.len() == 3),
        ("set_max_weight", |cache| ignore(cache.set_max_weight(30)), |cache| cache.weight() == 30),
        ("insert", |cache| cache.insert(Key(30), Value(100)).unwrap(), |cache| cache.len() == 1),
        (
            "replace",
            |cache| cache.insert(Key(1), Value(5)).unwrap(),
            |cache| cache.peek(&Key(1)) == Some(Value(5)),
        ),
        ("cleanup_expired", |cache| ignore(cache.cleanup_expired()), |cache| cache.len() == 7),
    ];
    for (name, work, is_done) in works {
        for call in [Call::KeyDrop, Call::ValueDrop] {
            for shards in [1, 4] {
                let cache = full(EvictionPolicy::Lru, PRESSURES[0], shards);
                assert!(panics(call, 0, || work(&cache)), "{name}, {call:?}");
                assert!(is_done(&cache), "{name}, {call:?}, {shards} shards");
                assert_eq!(cache.unreclaimed_weight(), 0);
                check_that_it_works(&cache, name);
            }
        }
    }
}

/// The predicate decides first: what it had decided of these entries is not carried out.
/// A key with the hash of all others, so that many are compared.
#[derive(Debug)]
struct Same(u64);

impl Hash for Same {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(0);
    }
}

impl PartialEq for Same {
    fn eq(&self, other: &Self) -> bool {
        called(Call::KeyEq);
        self.0 == other.0
    }
}

impl Eq for Same {}

#[test]
fn a_comparison_that_panics_keeps_nothing_that_left_from_the_listener() {
    for (policy, pressure, key) in PRESSURES.into_iter().flat_map(|pressure| {
        [EvictionPolicy::Lru, EvictionPolicy::S3Fifo, EvictionPolicy::HitDensity]
            .into_iter()
            // One that comes in, and one whose value grows.
            .flat_map(move |policy| [100, 9].map(|key| (policy, pressure, key)))
    }) {
        for nth in 0.. {
            let told = Arc::new(AtomicU64::new(0));
            let counter = Arc::clone(&told);
            let cache = ShardedCache::<Same, u64>::builder()
                .max_weight(10)
                .weigher(|_: &Same, &weight: &u64| weight)
                .eviction(policy)
                .memory_pressure(pressure)
                .shards(1)
                .eviction_listener(move |_: &Same, _: &u64, cause| {
                    counter.fetch_add(u64::from(cause != RemovalCause::Replaced), Relaxed);
                })
                .build()
                .unwrap();
            for key in 0..10 {
                cache.insert(Same(key), 1).unwrap();
            }
            let panicked = panics(Call::KeyEq, nth, || {
                cache.insert(Same(key), 5).unwrap();
            });
            let inserted = cache.stats().insertions;
            let case = format!("{policy:?}, {pressure:?}, {key}, the {nth}th");
            assert_eq!(cache.len() as u64 + told.load(Relaxed), inserted, "{case}");
            cache.validate();
            if !panicked {
                assert!(nth > 5, "{case}");
                break;
            }
        }
    }
}

#[test]
fn a_panicking_predicate_removes_nothing() {
    for pressure in PRESSURES {
        let cache = full(EvictionPolicy::Lru, pressure, 1);
        let retain = || {
            cache.retain(|_, _| {
                called(Call::Predicate);
                false
            });
        };
        assert!(panics(Call::Predicate, 5, retain));
        assert_eq!((cache.len(), cache.stats().removals), (10, 0));
    }
}

#[test]
fn a_put_whose_weigher_or_comparison_panics_has_not_happened() {
    for (call, key) in [(Call::Weigher, 1), (Call::Weigher, 30), (Call::KeyEq, 1)] {
        let cache = full(EvictionPolicy::Lru, PRESSURES[0], 1);
        let before = cache.stats();
        assert!(panics(call, 0, || drop(cache.insert(Key(key), Value(9)))));
        assert_eq!(cache.peek(&Key(1)), Some(Value(10)));
        assert_eq!((cache.len(), cache.weight(), cache.stats()), (10, 100, before));
        assert!(!cache.contains_key(&Key(30)));
    }
}

type Numbers = ShardedCache<u64, u64>;

/// Whether `operation` has done its work, by `is_done`, when it ends in the panic of the first call
/// of the listener. The cache is full by number and by weight, with 1 each.
fn is_done_at_the_panic(
    shards: usize,
    entries: u64,
    operation: fn(&Numbers),
    is_done: fn(&Numbers) -> bool,
) -> bool {
    let cache = Numbers::builder()
        .max_entries(entries as usize)
        .max_weight(entries)
        .weigher(|_: &u64, value: &u64| *value)
        .shards(shards)
        .eviction_listener(|_, _, _| called(Call::Listener))
        .build()
        .unwrap();
    (0..entries).for_each(|key| cache.insert(key, 1).unwrap());
    assert!(panics(Call::Listener, 0, || operation(&cache)), "the listener was called");
    is_done(&cache) && catch_unwind(AssertUnwindSafe(|| cache.validate())).is_ok()
}

type Work = (&'static str, fn(&Numbers), fn(&Numbers) -> bool);

const PUTS: [Work; 2] = [
    ("insert", |cache| cache.insert(900, 1).unwrap(), |cache| cache.get(&900) == Some(1)),
    ("replace", |cache| cache.insert(5, 0).unwrap(), |cache| cache.get(&5) == Some(0)),
];

/// Everything but the newcomer must leave.
const LARGE_PUT: Work = (
    "insert, the largest",
    |cache| cache.insert(900, cache.max_weight()).unwrap(),
    |cache| cache.len() == 1 && cache.contains_key(&900),
);

const LOWER: [Work; 2] = [
    (
        "set_max_entries",
        |cache| assert!(cache.set_max_entries(3) > 0),
        |cache| cache.len() == 3 && cache.max_entries() == 3,
    ),
    (
        "set_max_weight",
        |cache| assert!(cache.set_max_weight(3).unwrap() > 0),
        |cache| cache.len() == 3 && cache.max_weight() == 3,
    ),
];

const SWEEPS: [Work; 2] = [
    ("retain", |cache| assert!(cache.retain(|_, _| false) > 0), |cache| cache.is_empty()),
    ("clear", |cache| cache.clear(), |cache| cache.is_empty()),
];

#[track_caller]
fn assert_done(shards: &[usize], entries: u64, work: impl IntoIterator<Item = Work>) {
    let mut not_done = vec![];
    for (name, operation, is_done) in work {
        for &shards in shards {
            if !is_done_at_the_panic(shards, entries, operation, is_done) {
                not_done.push((name, shards));
            }
        }
    }
    assert!(not_done.is_empty(), "not done when the listener panicked: {not_done:?}");
}

#[test]
fn a_listener_that_panics_does_so_when_the_work_is_done() {
    assert_done(&[1], 10, PUTS.into_iter().chain([LARGE_PUT]).chain(SWEEPS));
}

/// More than one lock hold, more than one shard.
#[test]
fn a_listener_that_panics_does_so_when_a_put_is_done_that_evicts_many() {
    assert_done(&[1, 16], 300, PUTS.into_iter().chain([LARGE_PUT]));
}

#[test]
fn a_listener_that_panics_does_so_when_a_lowered_limit_holds() {
    assert_done(&[1, 16], 300, LOWER);
}

#[test]
fn a_listener_that_panics_does_so_when_a_sweep_is_done() {
    assert_done(&[1, 16], 300, SWEEPS);
}

#[test]
fn a_cleanup_whose_listener_panics_gives_its_guard_back() {
    for shards in [1, 4] {
        let cache = full(EvictionPolicy::S3Fifo, PRESSURES[0], shards);
        let cleanup = || assert_eq!(cache.cleanup_expired(), 3);
        assert!(panics(Call::Listener, 0, cleanup));
        cache.cleanup_expired();
        assert_eq!((cache.len(), cache.stats().expired_entries), (7, 3), "nobody is skipped");
        cache.validate();
    }
}

/// One that panics in a task takes neither the cache nor the other tasks with it.
#[tokio::test]
async fn an_embedding_cache_survives_a_panic_in_a_task() {
    let told = Removals::new();
    let cache = EmbeddingCache::builder()
        .max_entries(1)
        .eviction_listener({
            let log = told.listener();
            move |key, vector, cause| {
                log(key, vector, cause);
                assert!(cause != RemovalCause::Size, "injected");
            }
        })
        .build()
        .unwrap();
    cache.put(key(0), [0.0]).await.unwrap();
    let task = tokio::spawn({
        let cache = cache.clone();
        async move { cache.put(key(1), [1.0]).await }
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(told.take().len(), 1);
    assert_eq!((cache.size().await, cache.get(&key(1)).await.unwrap()[0]), (1, 1.0));

    let retained = tokio::spawn({
        let cache = cache.clone();
        async move { cache.retain(|_, _| panic!("injected")).await }
    });
    assert!(retained.await.unwrap_err().is_panic());
    assert!(cache.get_with_timeout(&key(1), 1000).await.unwrap().is_some());
    cache.put_with_timeout(key(1), [2.0], 1000).await.unwrap();
    assert_eq!(cache.remove(&key(1)).await.unwrap(), [2.0]);
}
