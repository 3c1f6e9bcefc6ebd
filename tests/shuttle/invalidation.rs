//! What was invalidated is not found again, whoever stores at the same time, and a batch of inserts
//! is nothing but inserts.

use shuttle::sync::atomic::{AtomicBool, AtomicU64 as Shared, Ordering::SeqCst};

use super::*;

#[test]
fn what_was_stored_before_is_gone_in_one_instant_and_what_comes_after_stays() {
    for (shards, policy) in [(1, POLICIES[0]), (2, POLICIES[1])] {
        explore(move || {
            let left = Departures::default();
            let builder = builder(shards).max_entries(8).eviction(policy);
            let cache = Arc::new(builder.eviction_listener(left.listener()).build().unwrap());
            let mut stored: Vec<_> = (0..4).map(|key| value(key, 0)).collect();
            for &value in &stored {
                put(&cache, value);
            }
            let done = Arc::new(AtomicBool::new(false));
            let invalidator = {
                let done = Arc::clone(&done);
                spawn(&cache, move |cache| {
                    assert!(cache.invalidate_all() <= 6);
                    done.store(true, SeqCst);
                    put(cache, value(4, 2)).unwrap();
                    assert_eq!(cache.get(&4), Some(value(4, 2)));
                })
            };
            let writer = {
                let done = Arc::clone(&done);
                spawn(&cache, move |cache| {
                    [0, 5].map(|key| {
                        let late = done.load(SeqCst);
                        put(cache, value(key, 1)).unwrap();
                        late.then_some(value(key, 1))
                    })
                })
            };
            let reader = {
                let done = Arc::clone(&done);
                spawn(&cache, move |cache| {
                    // Keys 1, 2 and 3 are only written before: one that is gone says that all are.
                    let mut gone = false;
                    for keys in [[1, 2], [3, 0], [2, 1]] {
                        let late = done.load(SeqCst);
                        for (key, found) in keys.into_iter().zip(cache.get_many(&keys)) {
                            let old = found.is_some_and(|found| found.name == 0);
                            assert!(!(old && (late || gone)), "{key} is back, or still there");
                            gone |= key != 0 && found.is_none();
                        }
                    }
                })
            };
            let late = writer.join().unwrap();
            invalidator.join().unwrap();
            reader.join().unwrap();
            for value in late.into_iter().flatten() {
                assert_eq!(cache.peek(&value.key), Some(value), "stored after, and gone");
            }
            assert!(cache.iter().all(|(_, value)| value.name != 0), "left over");
            stored.extend([value(0, 1), value(5, 1), value(4, 2)]);
            settle_accounts(&cache, &left, stored);
        });
    }
}

#[test]
fn a_full_cache_stays_within_its_limits_while_it_is_invalidated() {
    for (shards, policy) in [(1, POLICIES[1]), (2, POLICIES[0])] {
        explore(move || {
            let left = Departures::default();
            let builder = builder(shards).max_entries(3).max_weight(5).eviction(policy);
            let cache = Arc::new(builder.eviction_listener(left.listener()).build().unwrap());
            let mut stored: Vec<_> = (0..3).map(|key| value(key, 0)).collect();
            for &value in &stored {
                put(&cache, value);
            }
            let invalidators = [0, 1].map(|_| spawn(&cache, |cache| cache.invalidate_all()));
            let writers = [[0, 3], [4, 1]].map(|keys| {
                spawn(&cache, move |cache| keys.map(|key| put(cache, heavy(key, 1, 2))))
            });
            let watcher = watch(&cache, 3, 5);
            for writer in writers {
                stored.extend(writer.join().unwrap().into_iter().flatten());
            }
            for invalidator in invalidators {
                invalidator.join().unwrap();
            }
            watcher.join().unwrap();
            assert!(cache.iter().all(|(_, value)| value.name != 0), "left over");
            settle_accounts(&cache, &left, stored);
        });
    }
}

/// Loaders that ask a source while it changes and is invalidated: what they asked for before must
/// not be there when all is done, and what they ask for afterwards must be stored.
fn what_was_loaded_before(invalidate: impl Fn(&Cache) + Clone + Send + Sync + 'static) {
    for shards in [1, 2] {
        let invalidate = invalidate.clone();
        explore(move || {
            let left = Departures::default();
            let builder = builder(shards).max_entries(8).eviction_listener(left.listener());
            let cache = Arc::new(builder.build().unwrap());
            let source = Arc::new(Shared::new(0));
            let loaders = [0, 1].map(|key| {
                let source = Arc::clone(&source);
                spawn(&cache, move |cache| {
                    let mut stored = Vec::new();
                    for _ in 0..2 {
                        let epoch = cache.noted_epoch();
                        let loaded = value(key, source.load(SeqCst));
                        if cache.insert_in_epoch(key, loaded, epoch) {
                            stored.push(loaded);
                        }
                    }
                    stored
                })
            });
            let invalidator = {
                let (source, invalidate) = (Arc::clone(&source), invalidate.clone());
                spawn(&cache, move |cache| {
                    source.store(1, SeqCst);
                    invalidate(cache);
                    let epoch = cache.noted_epoch();
                    assert!(cache.insert_in_epoch(2, value(2, 1), epoch));
                })
            };
            let mut stored = vec![value(2, 1)];
            for loader in loaders {
                stored.extend(loader.join().unwrap());
            }
            invalidator.join().unwrap();
            for (_, value) in cache.iter() {
                assert_eq!(value.name, 1, "{value:?} was loaded before");
            }
            settle_accounts(&cache, &left, stored);
        });
    }
}

#[test]
fn nothing_loaded_before_an_invalidation_by_a_predicate_is_there_afterwards() {
    what_was_loaded_before(|cache| {
        cache.invalidate_if(|_, value| value.name == 0);
    });
}

#[test]
fn nothing_loaded_before_an_invalidation_of_everything_is_there_afterwards() {
    what_was_loaded_before(|cache| {
        cache.invalidate_all();
    });
}

#[test]
fn a_batch_of_inserts_is_seen_in_the_order_given_and_keeps_the_limits() {
    for (shards, policy) in [(1, POLICIES[0]), (2, POLICIES[1])] {
        explore(move || {
            let left = Departures::default();
            let builder = builder(shards).max_entries(3).eviction(policy);
            let cache = Arc::new(builder.eviction_listener(left.listener()).build().unwrap());
            let writer = spawn(&cache, |cache| {
                let batch = [(0, 1), (1, 1), (0, 2), (2, 1)].map(|(key, name)| value(key, name));
                let results = cache.insert_many(batch.map(|value| (value.key, value)));
                assert_eq!(results.len(), batch.len());
                let stored = batch.into_iter().zip(results).filter(|(_, result)| result.is_ok());
                stored.map(|(value, _)| value).collect::<Vec<_>>()
            });
            let other = spawn(&cache, |cache| [3, 4].map(|key| put(cache, value(key, 1))));
            let reader = spawn(&cache, |cache| {
                let mut latest = 0;
                for _ in 0..3 {
                    let [zero, _] = cache.get_many(&[0, 1])[..] else { unreachable!() };
                    if let Some(found) = zero {
                        assert!(found.name >= latest, "{found:?} after {latest}");
                        latest = found.name;
                    }
                }
            });
            let watcher = watch(&cache, 3, u64::MAX);
            let mut stored = writer.join().unwrap();
            stored.extend(other.join().unwrap().into_iter().flatten());
            reader.join().unwrap();
            watcher.join().unwrap();
            assert_ne!(cache.peek(&0), Some(value(0, 1)), "the earlier one stayed");
            settle_accounts(&cache, &left, stored);
        });
    }
}
