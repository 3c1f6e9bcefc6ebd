//! Promises that must hold for every interleaving, checked by a scheduler that chooses one after the
//! other and prints the one that fails, so that it can be replayed.
//!
//! Empty in a normal build. Run by
//! `RUSTFLAGS="--cfg shuttle" CARGO_TARGET_DIR=target/shuttle cargo test --release --test shuttle`;
//! `SHUTTLE_ITERATIONS` makes it look longer (or shorter).
//!
//! A scenario that depends on real time or on random numbers cannot be replayed: hence the clock and
//! the hash function below.
#![cfg(shuttle)]

mod compute;
mod expiry;
mod invalidation;
mod limits;
mod loads;
mod order;
mod sweeps;
mod values;

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use embedding_cache::{
    Clock, EvictionPolicy, MemoryPressure, RemovalCause, ShardedCache, ShardedCacheBuilder,
};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread::{self, JoinHandle};
use shuttle::{Config, Runner};

/// Schedules tried for each scenario and scheduler.
const ITERATIONS: usize = 6000;

/// Every combination of them that a scenario is worth running with.
const POLICIES: [EvictionPolicy; 3] =
    [EvictionPolicy::HitDensity, EvictionPolicy::Lru, EvictionPolicy::S3Fifo];
const PRESSURES: [MemoryPressure; 2] = [MemoryPressure::PolicyOrder, MemoryPressure::LargestFirst];

fn iterations() -> usize {
    match std::env::var("SHUTTLE_ITERATIONS") {
        Ok(text) => text.parse().expect("SHUTTLE_ITERATIONS is a number"),
        Err(_) => ITERATIONS,
    }
}

/// Runs `scenario` under random schedules, which find what many switches bring about, and under
/// schedules with few switches at chosen places (PCT), which find the one rare switch. A deadlock
/// fails, and so does a scenario that does not end.
fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let scenario = Arc::new(scenario);
    let config = || {
        let mut config = Config::new();
        config.silence_warnings = true;
        config.stack_size = 1 << 18;
        config
    };
    let random = Arc::clone(&scenario);
    Runner::new(RandomScheduler::new(iterations()), config()).run(move || random());
    for depth in [2, 4] {
        let pct = Arc::clone(&scenario);
        let scheduler = PctScheduler::new(depth, iterations() / 2);
        Runner::new(scheduler, config()).run(move || pct());
    }
}

/// A hash function that sends key `k` to shard `k % shards`: the upper half of a hash chooses the
/// shard, the lower half the slot.
#[derive(Debug, Clone, Copy, Default)]
struct ByNumber(u64);

impl BuildHasher for ByNumber {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self::default()
    }
}

impl Hasher for ByNumber {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key << 32 | u64::from((key as u32).wrapping_mul(0x9E37_79B9));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A clock that stands still unless a scenario moves it.
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

/// What a value says of itself: whose it is and what it weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Value {
    key: u64,
    /// Unique in a scenario.
    name: u64,
    weight: u64,
}

fn value(key: u64, name: u64) -> Value {
    Value { key, name, weight: 1 }
}

fn heavy(key: u64, name: u64, weight: u64) -> Value {
    Value { key, name, weight }
}

type Cache = ShardedCache<u64, Value, ByNumber>;

/// A builder that leaves nothing to chance.
fn builder(shards: usize) -> ShardedCacheBuilder<u64, Value, ByNumber> {
    ShardedCache::builder()
        .shards(shards)
        .clock(Arc::new(Fake::default()))
        .weigher(|_: &u64, value: &Value| value.weight)
        .hasher(ByNumber::default())
}

/// Starts a thread of the scenario on a shared cache.
fn spawn<T: Send + 'static>(
    cache: &Arc<Cache>,
    work: impl FnOnce(&Cache) -> T + Send + 'static,
) -> JoinHandle<T> {
    let cache = Arc::clone(cache);
    thread::spawn(move || work(&cache))
}

/// A thread that watches the limits of a cache while the others work.
fn watch(cache: &Arc<Cache>, max_entries: usize, max_weight: u64) -> JoinHandle<()> {
    spawn(cache, move |cache| {
        for _ in 0..6 {
            assert!(cache.len() <= max_entries, "{} of {max_entries} entries", cache.len());
            assert!(cache.weight() <= max_weight, "{} of {max_weight}", cache.weight());
            thread::yield_now();
        }
    })
}

/// Everything that left a cache, and why.
#[derive(Debug, Clone, Default)]
struct Departures(Arc<Mutex<Vec<(Value, RemovalCause)>>>);

impl Departures {
    fn listener(&self) -> impl Fn(&u64, &Value, RemovalCause) + Send + Sync + 'static {
        let list = Arc::clone(&self.0);
        move |&key, &value, cause| {
            assert_eq!(key, value.key);
            list.lock().unwrap().push((value, cause));
        }
    }

    fn all(&self) -> Vec<(Value, RemovalCause)> {
        self.0.lock().unwrap().clone()
    }

    /// The keys that were evicted, in their order.
    fn evicted(&self) -> Vec<u64> {
        let evicted = |&(value, cause): &(Value, RemovalCause)| {
            matches!(cause, RemovalCause::Size | RemovalCause::Weight).then_some(value.key)
        };
        self.all().iter().filter_map(evicted).collect()
    }
}

/// Fails unless every value that was stored has left exactly once or is still there, and the cache
/// agrees with itself. With no other thread at work.
fn settle_accounts(cache: &Cache, departures: &Departures, mut stored: Vec<Value>) {
    cache.validate();
    let mut accounted: Vec<Value> = cache.iter().map(|(_, value)| value).collect();
    accounted.extend(departures.all().iter().map(|(value, _)| *value));
    accounted.sort_unstable();
    stored.sort_unstable();
    assert_eq!(accounted, stored, "a value was lost or left twice");
}

/// Stores `value` and says whether that was done; to fail otherwise than for want of room that
/// others hold is an error.
fn put(cache: &Cache, value: Value) -> Option<Value> {
    match cache.insert(value.key, value) {
        Ok(()) => Some(value),
        Err(refused) => {
            assert!(refused.error().is_contended(), "{refused}");
            assert_eq!(refused.into_entry(), (value.key, value));
            None
        }
    }
}

#[test]
fn keys_go_to_the_shards_that_the_scenarios_count_on() {
    let scenario = || {
        let cache = builder(4).max_entries(8).build().unwrap();
        for key in 0..8 {
            cache.insert(key, value(key, 0)).unwrap();
            let held: Vec<_> = cache.shard_stats().iter().map(|shard| shard.entries).collect();
            let expected: Vec<_> = (0..4).map(|shard| (key + 4 - shard) as usize / 4).collect();
            assert_eq!(held, expected);
        }
    };
    shuttle::check_random(scenario, 1);
}

/// With room enough: a put that looks for some in other shards waits for their locks by real time.
#[test]
fn a_schedule_can_be_replayed() {
    let scenario = || {
        let left = Departures::default();
        let builder = builder(2).max_entries(10).eviction_listener(left.listener());
        let cache = Arc::new(builder.build().unwrap());
        let threads = [0, 1, 2].map(|key| {
            spawn(&cache, move |cache| {
                put(cache, value(key, 0));
                cache.get_many(&[0, 1, 2]);
                cache.remove(&(key + 1));
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
    };
    shuttle::check_uncontrolled_nondeterminism(scenario, 100);
}
