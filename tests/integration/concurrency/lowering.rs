//! A limit that is changed while writers are at work.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use embedding_cache::{EvictionPolicy, ShardedCache};
use rand::Rng;

use super::numbers;
use crate::support::{Gate, OpenOnDrop, POLICIES, in_time};

type Cache = ShardedCache<u64, u64>;

/// Runs `check` while threads insert entries of a weight of 1 to 9 as fast as they can.
fn beside_writers(cache: &Cache, check: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..6 {
            let stop = &stop;
            scope.spawn(move || {
                let mut rng = numbers(writer);
                while !stop.load(Relaxed) {
                    let weight = rng.random_range(1..10);
                    if let Err(refused) = cache.insert(rng.random_range(0..500), weight) {
                        let error = refused.error();
                        assert!(error.is_contended() || error.is_too_large(), "{error}");
                    }
                }
            });
        }
        // Also if the check fails, or the writers would never end.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let _stop = Stop(&stop);
        check();
    });
    cache.validate();
}

fn cache(shards: usize, policy: EvictionPolicy) -> Arc<Cache> {
    let builder = ShardedCache::builder()
        .max_entries(200)
        .max_weight(1000)
        .weigher(|_: &u64, &weight: &u64| weight)
        .shards(shards)
        .eviction(policy);
    Arc::new(builder.build().unwrap())
}

#[test]
fn a_new_limit_on_entries_holds_at_every_sample_after_the_call() {
    for (shards, policy) in [(1, POLICIES[0]), (4, POLICIES[1]), (64, POLICIES[0])] {
        in_time(move || {
            let cache = cache(shards, policy);
            beside_writers(&cache, || {
                for max in [150, 3, 200, 20, 1, 60, 2].repeat(4) {
                    cache.set_max_entries(max);
                    assert_eq!(cache.max_entries(), max);
                    for _ in 0..500 {
                        assert!(cache.len() <= max, "{} of {max} entries", cache.len());
                    }
                }
            });
        });
    }
}

#[test]
fn a_new_limit_on_weight_holds_at_every_sample_after_the_call() {
    for (shards, policy) in [(1, POLICIES[1]), (4, POLICIES[0]), (64, POLICIES[1])] {
        in_time(move || {
            let cache = cache(shards, policy);
            beside_writers(&cache, || {
                for max in [700, 12, 1000, 100, 5, 300, 1].repeat(4) {
                    cache.set_max_weight(max).unwrap();
                    for _ in 0..500 {
                        assert!(cache.weight() <= max, "weight {} of {max}", cache.weight());
                    }
                }
            });
        });
    }
}

#[test]
fn limits_lowered_by_two_threads_at_once_both_hold() {
    in_time(|| {
        let cache = cache(16, POLICIES[0]);
        beside_writers(&cache, || {
            for round in 0..20 {
                let (entries, weight) = (5 + round, 100 - round as u64);
                thread::scope(|scope| {
                    scope.spawn(|| cache.set_max_entries(entries));
                    scope.spawn(|| cache.set_max_weight(weight).unwrap());
                });
                for _ in 0..200 {
                    assert!(cache.len() <= entries && cache.weight() <= weight);
                }
                cache.set_max_entries(200);
                cache.set_max_weight(1000).unwrap();
            }
        });
    });
}

/// A cache whose listener stops writers at a gate, so that they hold what they have taken from other
/// shards, and the gate. Whoever lowers a limit passes.
fn with_gate(max_entries: usize, max_weight: u64) -> (Cache, Arc<Gate>) {
    let gate = Gate::closed();
    let listening = Arc::clone(&gate);
    let builder = ShardedCache::builder()
        .max_entries(max_entries)
        .max_weight(max_weight)
        .weigher(|_: &u64, &weight: &u64| weight)
        .shards(64)
        .eviction_listener(move |_, _, _| {
            if thread::current().name() == Some("writer") {
                listening.pass();
            }
        });
    (builder.build().unwrap(), gate)
}

/// Calls `lower` while a writer for each of `keys` stands at the gate.
fn beside_held_room(cache: &Cache, gate: &Gate, keys: Range<u64>, weight: u64, lower: impl Fn()) {
    thread::scope(|scope| {
        let _open = OpenOnDrop(gate);
        let writers = keys.end - keys.start;
        for key in keys {
            let writer = thread::Builder::new().name("writer".to_string());
            writer.spawn_scoped(scope, move || drop(cache.insert(key, weight))).unwrap();
        }
        gate.wait_for(writers as usize);
        lower();
    });
}

/// Three writers have evicted and are still telling the listener when the limit is lowered to less
/// than they hold. The call may return before they are done, but once they are the limit holds.
#[test]
fn what_is_over_a_lowered_limit_leaves_at_the_latest_with_the_writers_that_held_it() {
    in_time(|| {
        let (cache, gate) = with_gate(3, u64::MAX);
        for key in 0..3 {
            cache.insert(key, 0).unwrap();
        }
        beside_held_room(&cache, &gate, 3..6, 0, || {
            cache.set_max_entries(1);
        });
        assert!(cache.len() <= 1, "{} entries are held, the limit is 1", cache.len());
        cache.insert(6, 0).unwrap();
        assert!(cache.len() <= 1, "{} entries are held after another put", cache.len());
        cache.validate();
    });
}

/// The same for a writer whose entry has become too large since it made room for it.
#[test]
fn an_entry_that_has_become_too_large_on_its_way_in_does_not_stay() {
    in_time(|| {
        let (cache, gate) = with_gate(usize::MAX, 100);
        cache.insert(0, 90).unwrap();
        beside_held_room(&cache, &gate, 1..2, 90, || {
            cache.set_max_weight(50).unwrap();
        });
        assert!(cache.weight() <= 50, "weight {} is held, the limit is 50", cache.weight());
        cache.validate();
    });
}
