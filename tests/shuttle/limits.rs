//! No limit is exceeded at any step, and what is refused or evicted to keep it is accounted for.

use super::*;

/// Joins threads that report what they stored.
fn stored(writers: Vec<JoinHandle<Vec<Value>>>) -> Vec<Value> {
    writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
}

fn puts(cache: &Arc<Cache>, values: &[Value]) -> JoinHandle<Vec<Value>> {
    let values = values.to_vec();
    spawn(cache, move |cache| values.into_iter().filter_map(|value| put(cache, value)).collect())
}

#[test]
fn entries_stay_within_the_limit_at_every_step_and_fill_it() {
    for policy in POLICIES {
        for (shards, max) in [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2)] {
            explore(move || {
                let left = Departures::default();
                let builder = builder(shards).max_entries(max).eviction(policy);
                let cache = Arc::new(builder.eviction_listener(left.listener()).build().unwrap());
                let watcher = watch(&cache, max, u64::MAX);
                let writers = [[0, 1], [2, 3]].map(|keys| puts(&cache, &keys.map(|k| value(k, k))));
                let reader = spawn(&cache, |cache| {
                    for key in [0, 3] {
                        assert!(cache.get(&key).is_none_or(|found| found == value(key, key)));
                    }
                });
                let stored = stored(writers.into());
                watcher.join().unwrap();
                reader.join().unwrap();
                assert_eq!(cache.len(), max.min(stored.len()), "room is left unused");
                settle_accounts(&cache, &left, stored);
            });
        }
    }
}

#[test]
fn weight_stays_within_the_limit_while_entries_grow_and_shrink() {
    for pressure in PRESSURES {
        for shards in [1, 2] {
            explore(move || {
                let left = Departures::default();
                let builder = builder(shards).max_weight(10).memory_pressure(pressure);
                let cache = Arc::new(builder.eviction_listener(left.listener()).build().unwrap());
                let watcher = watch(&cache, usize::MAX, 10);
                let writers = vec![
                    puts(&cache, &[heavy(0, 1, 6), heavy(0, 2, 3), heavy(0, 3, 8)]),
                    puts(&cache, &[heavy(1, 4, 4), heavy(1, 5, 9)]),
                    puts(&cache, &[heavy(0, 6, 5)]),
                ];
                let stored = stored(writers);
                watcher.join().unwrap();
                settle_accounts(&cache, &left, stored);
            });
        }
    }
}

/// Each of two writers needs what the other's entry holds, in a shard of its own.
#[test]
fn writers_that_need_each_others_room_come_to_an_end() {
    explore(|| {
        let left = Departures::default();
        let builder = builder(2).max_weight(10).eviction_listener(left.listener());
        let cache = Arc::new(builder.build().unwrap());
        let mut all = vec![heavy(0, 1, 5), heavy(1, 2, 5)];
        for &value in &all {
            put(&cache, value);
        }
        let watcher = watch(&cache, usize::MAX, 10);
        let writers = vec![puts(&cache, &[heavy(0, 3, 10)]), puts(&cache, &[heavy(1, 4, 10)])];
        all.extend(stored(writers));
        watcher.join().unwrap();
        settle_accounts(&cache, &left, all);
    });
}

/// More writers than entries, each in its own shard: the room is always in somebody's reservation.
#[test]
fn writers_without_any_room_in_their_shards_come_to_an_end() {
    for max in [1, 2] {
        explore(move || {
            let left = Departures::default();
            let builder = builder(4).max_entries(max).eviction_listener(left.listener());
            let cache = Arc::new(builder.build().unwrap());
            let watcher = watch(&cache, max, u64::MAX);
            let writers = (0..4).map(|key| puts(&cache, &[value(key, key)])).collect();
            let stored = stored(writers);
            watcher.join().unwrap();
            assert_eq!(cache.len(), max.min(stored.len()));
            settle_accounts(&cache, &left, stored);
        });
    }
}

/// Heavy newcomers take several entries from both shards.
#[test]
fn a_heavy_entry_collects_its_room_from_all_shards() {
    explore(|| {
        let left = Departures::default();
        let builder = builder(2).max_weight(8).eviction_listener(left.listener());
        let cache = Arc::new(builder.build().unwrap());
        let mut all: Vec<_> = (0..4).map(|key| heavy(key, key, 2)).collect();
        for &value in &all {
            put(&cache, value);
        }
        let watcher = watch(&cache, usize::MAX, 8);
        let writers = vec![puts(&cache, &[heavy(4, 4, 7)]), puts(&cache, &[heavy(5, 5, 3)])];
        all.extend(stored(writers));
        watcher.join().unwrap();
        settle_accounts(&cache, &left, all);
    });
}

#[test]
fn a_lowered_limit_holds_from_when_the_call_returns() {
    for (shards, policy) in [(1, POLICIES[0]), (2, POLICIES[1])] {
        explore(move || {
            let left = Departures::default();
            let builder = builder(shards).max_entries(4).eviction(policy);
            let cache = Arc::new(builder.eviction_listener(left.listener()).build().unwrap());
            let mut all: Vec<_> = (0..4).map(|key| value(key, key)).collect();
            for &value in &all {
                put(&cache, value);
            }
            let writers = vec![
                puts(&cache, &[value(4, 4), value(5, 5)]),
                puts(&cache, &[value(6, 6), value(7, 7)]),
            ];
            let lowerer = spawn(&cache, |cache| {
                cache.set_max_entries(1);
                for _ in 0..4 {
                    assert!(cache.len() <= 1, "{} entries", cache.len());
                }
            });
            all.extend(stored(writers));
            lowerer.join().unwrap();
            settle_accounts(&cache, &left, all);
        });
    }
}

#[test]
fn a_lowered_weight_limit_holds_from_when_the_call_returns() {
    for pressure in PRESSURES {
        explore(move || {
            let left = Departures::default();
            let builder = builder(2).max_weight(10).memory_pressure(pressure);
            let cache = Arc::new(builder.eviction_listener(left.listener()).build().unwrap());
            let mut all = vec![heavy(0, 0, 5), heavy(2, 1, 5)];
            for &value in &all {
                put(&cache, value);
            }
            // Both may find a limit that is lower than what they weigh once they have begun.
            let writer = |value: Value| {
                spawn(&cache, move |cache| match cache.insert(value.key, value) {
                    Ok(()) => vec![value],
                    Err(refused) => {
                        let error = refused.error();
                        assert!(error.is_contended() || error.is_too_large(), "{error}");
                        vec![]
                    }
                })
            };
            let writers = vec![writer(heavy(1, 2, 8)), writer(heavy(0, 3, 7))];
            let lowerer = spawn(&cache, |cache| {
                cache.set_max_weight(4).unwrap();
                for _ in 0..4 {
                    assert!(cache.weight() <= 4, "{}", cache.weight());
                }
            });
            all.extend(stored(writers));
            lowerer.join().unwrap();
            settle_accounts(&cache, &left, all);
        });
    }
}
