//! Least-recently-used order is exact in a shard: what threads saw and what left is what a cache
//! with one thread would have shown for some order of their operations.

use super::*;

#[derive(Debug, Clone, Copy)]
enum Op {
    Get(u64),
    Put(u64),
    Remove(u64),
}
use Op::{Get, Put, Remove};

/// A cache for one thread: the least recently used first.
#[derive(Debug, Clone)]
struct Model {
    order: Vec<Value>,
    capacity: usize,
}

impl Model {
    /// Carries out `op`, which is called `name`, and returns what it finds.
    fn step(&mut self, op: Op, name: u64) -> Option<Value> {
        let (Get(key) | Put(key) | Remove(key)) = op;
        let found = self.order.iter().position(|held| held.key == key);
        let found = found.map(|place| self.order.remove(place));
        match op {
            Get(_) => {
                self.order.extend(found);
                found
            }
            Put(_) => {
                if self.order.len() == self.capacity {
                    self.order.remove(0);
                }
                self.order.push(value(key, name));
                None
            }
            Remove(_) => found,
        }
    }
}

/// What a thread did: operation, name, result.
type Deeds = Vec<(Op, u64, Option<Value>)>;

/// Whether some order of the threads' operations, each thread's own kept, explains all results and
/// what remained, in its order.
fn is_explained(model: &Model, threads: &[&[(Op, u64, Option<Value>)]], remained: &[u64]) -> bool {
    if threads.iter().all(|rest| rest.is_empty()) {
        return model.order.iter().map(|held| held.key).eq(remained.iter().copied());
    }
    (0..threads.len()).any(|next| {
        let Some((&(op, name, result), rest)) = threads[next].split_first() else { return false };
        let mut model = model.clone();
        if model.step(op, name) != result {
            return false;
        }
        let mut threads = threads.to_vec();
        threads[next] = rest;
        is_explained(&model, &threads, remained)
    })
}

/// Fills a cache of `capacity` with keys from 0, runs `programs` at once, and looks for an
/// explanation.
fn check(capacity: usize, pressure: MemoryPressure, programs: &'static [&'static [Op]]) {
    explore(move || {
        let left = Departures::default();
        let cache = builder(1)
            .max_entries(capacity)
            .eviction(EvictionPolicy::Lru)
            .memory_pressure(pressure)
            .eviction_listener(left.listener())
            .build()
            .unwrap();
        let cache = Arc::new(cache);
        let mut model = Model { order: Vec::new(), capacity };
        for key in 0..capacity as u64 {
            put(&cache, value(key, key));
            model.step(Put(key), key);
        }
        let threads: Vec<JoinHandle<Deeds>> = (100..)
            .step_by(100)
            .zip(programs)
            .map(|(first, program)| {
                spawn(&cache, move |cache| {
                    let deed = |(&op, name)| match op {
                        Get(key) => (op, name, cache.get(&key)),
                        Put(key) => {
                            put(cache, value(key, name)).unwrap();
                            (op, name, None)
                        }
                        Remove(key) => (op, name, cache.remove(&key)),
                    };
                    program.iter().zip(first..).map(deed).collect()
                })
            })
            .collect();
        let deeds: Vec<Deeds> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        // Newcomers fill the cache, then push out what remained, the least recently used first.
        let before = left.evicted().len();
        for key in 0..capacity as u64 {
            put(&cache, value(1000 + key, 0));
        }
        let remained = &left.evicted()[before..];
        let threads: Vec<_> = deeds.iter().map(Vec::as_slice).collect();
        assert!(is_explained(&model, &threads, remained), "{deeds:?}, then {remained:?} left");
        cache.validate();
    });
}

#[test]
fn hits_of_two_readers_are_in_an_order_they_may_have_had() {
    for pressure in PRESSURES {
        check(3, pressure, &[&[Get(0), Get(1)], &[Get(1), Get(0)]]);
        check(3, pressure, &[&[Get(0), Get(1), Get(0)], &[Get(0), Get(2)]]);
        check(4, pressure, &[&[Get(0), Get(1)], &[Get(1), Get(2)], &[Get(2), Get(0)]]);
    }
}

#[test]
fn a_writer_among_readers_evicts_what_was_used_least_recently() {
    for pressure in PRESSURES {
        check(2, pressure, &[&[Get(0), Get(1)], &[Get(1), Get(0)], &[Put(5)]]);
        check(3, pressure, &[&[Get(0), Get(2)], &[Get(0), Get(1)], &[Put(5), Put(6)]]);
        check(3, pressure, &[&[Put(0), Get(5)], &[Get(0), Get(1)], &[Put(5), Get(0)]]);
    }
}

#[test]
fn writers_alone_evict_in_the_order_of_their_writes() {
    for pressure in PRESSURES {
        check(2, pressure, &[&[Put(5), Put(0)], &[Put(6), Put(1)]]);
        check(1, pressure, &[&[Put(5), Get(5)], &[Put(6), Get(5)], &[Put(5)]]);
    }
}

/// The room of a removed entry is free as soon as that entry cannot be found any more.
#[test]
fn a_writer_beside_a_removal_evicts_nobody_without_need() {
    for pressure in PRESSURES {
        check(2, pressure, &[&[Put(5)], &[Remove(1)], &[Get(0)]]);
        check(2, pressure, &[&[Put(5), Put(1)], &[Remove(1), Remove(5)]]);
    }
}

/// Where more was used than one lock hold puts right, the search goes on under the next, with hits
/// between the two. It must find what was used least recently of all.
#[test]
fn a_search_of_several_lock_holds_finds_what_was_used_least_recently() {
    for pressure in PRESSURES {
        explore(move || {
            let left = Departures::default();
            let builder = builder(1).max_weight(8).eviction(EvictionPolicy::Lru);
            let builder = builder.memory_pressure(pressure).eviction_listener(left.listener());
            let cache = Arc::new(builder.build().unwrap());
            for key in 0..8 {
                put(&cache, value(key, 0));
            }
            for key in [5, 2, 7, 0, 1, 3, 4, 6] {
                assert!(cache.get(&key).is_some());
            }
            let readers = [[0, 1], [1, 0]].map(|keys| {
                spawn(&cache, move |cache| {
                    for key in keys {
                        assert!(cache.get(&key).is_some(), "{key} was used more recently than 2");
                    }
                })
            });
            let writers = [8, 9].map(|key| spawn(&cache, move |cache| put(cache, value(key, 0))));
            for reader in readers {
                reader.join().unwrap();
            }
            for writer in writers {
                writer.join().unwrap();
            }
            let mut evicted = left.evicted();
            evicted.sort_unstable();
            assert_eq!(evicted, [2, 5]);
            assert_eq!(cache.stats().hits, 12);
            settle_accounts(&cache, &left, (0..10).map(|key| value(key, 0)).collect());
        });
    }
}
