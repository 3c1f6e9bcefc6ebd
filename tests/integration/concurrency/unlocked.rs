//! No listener is called and nothing is dropped while the lock of a shard is held.
//!
//! Each key and each value here uses the cache when it is dropped, and so does the listener. Under
//! the lock that would have to wait for itself, and runs into its deadline.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use embedding_cache::{Equivalent, EvictionPolicy, MemoryPressure, RemovalCause, ShardedCache};

use crate::support::{FakeClock, everywhere, in_time};

/// Long enough that it only ends for want of the lock.
const PATIENCE: Duration = Duration::from_secs(2);
const TTL: Duration = Duration::from_secs(60);
/// The key under which a dropped value is replaced by one that does nothing.
const SCRATCH: u64 = 1_000_000;

type Cache = ShardedCache<Key, Value>;

/// Where what is dropped finds the cache, and what it found out.
#[derive(Debug, Default)]
struct Scene {
    cache: OnceLock<Weak<Cache>>,
    /// Keys and values dropped, and calls of the listener.
    seen: AtomicU64,
    failed: AtomicU64,
}

thread_local! {
    /// Whether this thread is using the cache from a drop: what that drops is not looked at again.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Scene {
    /// Uses the cache from within a drop or the listener.
    fn look(self: &Arc<Self>, own: u64) {
        let Some(cache) = self.cache.get().and_then(Weak::upgrade) else { return };
        // The scratch entry leaves by the looks themselves.
        if own == SCRATCH || INSIDE.replace(true) {
            return;
        }
        self.seen.fetch_add(1, SeqCst);
        let read = cache.try_get_for(&By(own), PATIENCE).is_ok();
        // Without a weight, and in the place of the one before, so that it changes little.
        let quiet = Value { key: SCRATCH, weight: 0, _nosy: None };
        let key = Key { key: SCRATCH, _nosy: None };
        let write = match cache.try_insert_for(key, quiet, PATIENCE) {
            Ok(()) => true,
            Err(refused) => !refused.error().is_timeout(),
        };
        if !(read && write) {
            self.failed.fetch_add(1, SeqCst);
        }
        INSIDE.set(false);
    }
}

/// Looks at its scene when the last clone of it is dropped.
#[derive(Debug)]
struct Nosy {
    key: u64,
    scene: Arc<Scene>,
}

impl Drop for Nosy {
    fn drop(&mut self) {
        self.scene.look(self.key);
    }
}

#[derive(Debug)]
struct Key {
    key: u64,
    _nosy: Option<Nosy>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

/// A key to look up by, which nothing happens to.
#[derive(Debug, Hash)]
struct By(u64);

impl Equivalent<Key> for By {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.key
    }
}

#[derive(Debug, Clone)]
struct Value {
    key: u64,
    weight: u64,
    _nosy: Option<Arc<Nosy>>,
}

/// A cache of nosy entries 0 to 9, each of weight 10, which is all that it may hold.
struct Stage {
    scene: Arc<Scene>,
    clock: Arc<FakeClock>,
    cache: Arc<Cache>,
}

impl Stage {
    fn new(policy: EvictionPolicy, pressure: MemoryPressure, shards: usize) -> Self {
        let scene = Arc::new(Scene::default());
        let clock = FakeClock::new();
        let listening = Arc::clone(&scene);
        let builder = ShardedCache::builder()
            .max_entries(1000)
            .max_weight(100)
            .weigher(|_: &Key, value: &Value| value.weight)
            .shards(shards)
            .eviction(policy)
            .memory_pressure(pressure)
            .time_to_live(TTL)
            .clock(clock.clone())
            .eviction_listener(move |key: &Key, value: &Value, _: RemovalCause| {
                assert_eq!(key.key, value.key);
                listening.look(key.key);
            });
        let stage = Self { scene, clock, cache: Arc::new(builder.build().unwrap()) };
        stage.scene.cache.set(Arc::downgrade(&stage.cache)).unwrap();
        for key in 0..10 {
            stage.put(key, 10);
        }
        stage
    }

    fn entry(&self, key: u64, weight: u64) -> (Key, Value) {
        let nosy = || Nosy { key, scene: Arc::clone(&self.scene) };
        let value = Value { key, weight, _nosy: Some(Arc::new(nosy())) };
        (Key { key, _nosy: Some(nosy()) }, value)
    }

    fn put(&self, key: u64, weight: u64) {
        let (key, value) = self.entry(key, weight);
        self.cache.insert(key, value).unwrap();
    }

    fn expire(&self) {
        self.clock.advance(TTL + Duration::from_secs(1));
    }
}

type Act = fn(&Stage);

/// Everything that makes an entry leave, and how many looks that gives at least: each entry that
/// leaves gives up to three, of its key, its value and the listener.
const ACTS: [(&str, Act, u64); 18] = [
    (
        "an insert that evicts for the entries",
        |s| {
            // One more for the scratch entry.
            s.cache.set_max_entries(11);
            (20..40).for_each(|key| s.put(key, 0));
        },
        9,
    ),
    ("an insert that evicts for the weight", |s| s.put(20, 10), 3),
    ("an insert that evicts everything", |s| s.put(20, 100), 30),
    ("an insert that replaces", |s| s.put(3, 10), 3),
    ("an insert that replaces and evicts", |s| s.put(3, 95), 30),
    (
        "an insert in the place of an expired entry",
        |s| {
            s.expire();
            s.put(3, 10);
        },
        3,
    ),
    (
        "an insert for which expired entries leave",
        |s| {
            s.expire();
            s.put(20, 100);
        },
        30,
    ),
    (
        "an insert with a deadline",
        |s| {
            let (key, value) = s.entry(20, 100);
            s.cache.try_insert_for(key, value, PATIENCE).unwrap();
        },
        30,
    ),
    ("a removal", |s| drop(s.cache.remove(&By(3))), 3),
    (
        "a removal of an expired entry",
        |s| {
            s.expire();
            assert!(s.cache.remove(&By(3)).is_none());
        },
        3,
    ),
    (
        "a get of an expired entry",
        |s| {
            s.expire();
            assert!(s.cache.get(&By(3)).is_none());
        },
        3,
    ),
    (
        "a batch with expired entries",
        |s| {
            s.expire();
            let keys: Vec<_> = (0..10).map(By).collect();
            assert!(s.cache.get_many(&keys).iter().all(Option::is_none));
        },
        30,
    ),
    (
        "a cleanup",
        |s| {
            s.expire();
            assert!(s.cache.cleanup_expired() > 0);
        },
        3,
    ),
    ("a retain", |s| assert_eq!(s.cache.retain(|key, _| key.key % 2 == 0), 5), 15),
    (
        "a retain that finds expired entries",
        |s| {
            s.expire();
            assert!(s.cache.retain(|_, _| true) >= 10);
        },
        30,
    ),
    // With several shards, the insert of the first look does the clearing of its own shard, and what
    // that drops is not looked at again.
    ("a clear", |s| s.cache.clear(), 3),
    (
        "a lowered limit",
        |s| {
            s.cache.set_max_entries(5);
            s.cache.set_max_weight(20).unwrap();
        },
        9,
    ),
    (
        "a refused insert",
        |s| {
            let (key, value) = s.entry(3, 101);
            let refused = s.cache.insert(key, value).unwrap_err();
            assert!(refused.error().is_too_large());
            drop(refused);
            let (key, value) = s.entry(20, 101);
            let results = s.cache.insert_many([(key, value)]);
            assert!(results[0].is_err());
        },
        4,
    ),
];

#[test]
fn whatever_makes_an_entry_leave_drops_it_and_tells_the_listener_outside_the_lock() {
    for (what, act, least) in ACTS {
        everywhere(&[1, 4], |policy, pressure, shards| {
            in_time(move || {
                let stage = Stage::new(policy, pressure, shards);
                let before = stage.scene.seen.load(SeqCst);
                act(&stage);
                let (seen, failed) = (&stage.scene.seen, &stage.scene.failed);
                let seen = seen.load(SeqCst) - before;
                assert!(seen >= least, "{what}: {seen} looks");
                assert_eq!(failed.load(SeqCst), 0, "{what}: the lock was held");
                stage.cache.validate();
            });
        });
    }
}

/// More entries than one lock hold lets go: each bite is let go outside.
#[test]
fn a_long_sweep_lets_go_of_its_entries_between_the_locks() {
    let sweeps: [(&str, Act); 4] = [
        ("an insert that evicts everything", |s| s.put(2000, 1000)),
        ("a cleanup", |s| {
            s.expire();
            s.cache.cleanup_expired();
        }),
        ("a retain", |s| assert!(s.cache.retain(|_, _| false) >= 900)),
        ("a lowered limit", |s| assert!(s.cache.set_max_entries(1) >= 900)),
    ];
    for (what, act) in sweeps {
        in_time(move || {
            // What the looks put is used often and stays, so they make room for nothing.
            let stage = Stage::new(EvictionPolicy::S3Fifo, Default::default(), 1);
            stage.cache.set_max_entries(2000);
            stage.cache.set_max_weight(1000).unwrap();
            (0..1000).for_each(|key| stage.put(key, 1));
            let before = stage.scene.seen.load(SeqCst);
            act(&stage);
            let seen = stage.scene.seen.load(SeqCst) - before;
            assert!(seen >= 900 * 3, "{what}: {seen} looks");
            assert_eq!(stage.scene.failed.load(SeqCst), 0, "{what}: the lock was held");
            stage.cache.validate();
        });
    }
}
