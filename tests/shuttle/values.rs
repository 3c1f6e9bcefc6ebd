//! A hit is the last write of that key or one that is under way.

use std::hash::{BuildHasherDefault, DefaultHasher};

use embedding_cache::{CacheKey, EmbeddingCache};
use shuttle::sync::atomic::{AtomicU64 as Shared, Ordering};

use super::*;

/// How far a writer is, told to readers: a hit of one of its values must lie in between.
#[derive(Debug, Default)]
struct Progress {
    begun: Shared,
    done: Shared,
}

/// The `name` of a value here: who wrote it, and its how-manieth write of that key it is.
fn name(writer: u64, sequence: u64) -> u64 {
    writer << 32 | sequence
}

fn write(cache: &Cache, progress: &Progress, key: u64, writer: u64, times: u64) {
    for sequence in 1..=times {
        progress.begun.store(sequence, Ordering::SeqCst);
        let done = put(cache, value(key, name(writer, sequence))).is_some();
        if done {
            progress.done.store(sequence, Ordering::SeqCst);
        }
    }
}

/// Gets `keys`, one after the other or together, and checks what is found against the progress of
/// its writer.
fn read(cache: &Cache, progress: &[Progress], keys: &[u64], together: bool) {
    let done = || progress.iter().map(|p| p.done.load(Ordering::SeqCst)).collect::<Vec<_>>();
    let check = |key: u64, before: &[u64], found: Option<Value>| {
        let Some(found) = found else { return };
        assert_eq!(found.key, key, "the value of another key");
        let (writer, sequence) = ((found.name >> 32) as usize, found.name & u64::from(u32::MAX));
        let begun = progress[writer].begun.load(Ordering::SeqCst);
        assert!(sequence <= begun, "{sequence} is not written yet, only {begun}");
        assert!(sequence >= before[writer], "{sequence} was replaced by {}", before[writer]);
    };
    if together {
        let before = done();
        for (&key, found) in keys.iter().zip(cache.get_many(keys)) {
            check(key, &before, found);
        }
    } else {
        for &key in keys {
            let before = done();
            check(key, &before, cache.get(&key));
        }
    }
}

#[test]
fn a_hit_is_the_last_write_or_one_under_way() {
    for (shards, policy) in [(1, POLICIES[0]), (2, POLICIES[1])] {
        explore(move || {
            let cache = Arc::new(builder(shards).max_entries(2).eviction(policy).build().unwrap());
            let progress: Arc<[Progress; 3]> = Arc::default();
            // Two write the same key, the third another one and evicts.
            let writers: Vec<_> = [(0, 0, 3), (0, 1, 2), (1, 2, 2)]
                .into_iter()
                .map(|(key, writer, times)| {
                    let progress = Arc::clone(&progress);
                    spawn(&cache, move |cache| {
                        write(cache, &progress[writer as usize], key, writer, times);
                    })
                })
                .collect();
            let readers: Vec<_> = [false, true]
                .into_iter()
                .map(|together| {
                    let progress = Arc::clone(&progress);
                    spawn(&cache, move |cache| {
                        read(cache, &*progress, &[0, 1], together);
                        read(cache, &*progress, &[1, 0, 0], together);
                    })
                })
                .collect();
            for thread in writers.into_iter().chain(readers) {
                thread.join().unwrap();
            }
            let stats = cache.stats();
            assert_eq!(stats.total_requests(), 10, "{stats:?}");
            cache.validate();
        });
    }
}

#[test]
fn a_batch_and_writers_of_its_shards_do_not_wait_for_each_other_in_a_circle() {
    explore(|| {
        let cache = Arc::new(builder(4).max_entries(3).build().unwrap());
        for key in 0..3 {
            put(&cache, value(key, 0));
        }
        let batches = [[0, 1, 2, 3], [3, 2, 1, 0]].map(|keys| {
            spawn(&cache, move |cache| {
                for (key, found) in keys.into_iter().zip(cache.get_many(&keys)) {
                    assert!(found.is_none_or(|found| found.key == key));
                }
            })
        });
        let writers = [[0, 1], [3, 2]].map(|keys| {
            spawn(&cache, move |cache| {
                for key in keys {
                    put(cache, value(key, 1));
                }
            })
        });
        for batch in batches {
            batch.join().unwrap();
        }
        for writer in writers {
            writer.join().unwrap();
        }
        cache.validate();
    });
}

#[test]
fn a_value_is_removed_once_or_stays() {
    for shards in [1, 2] {
        explore(move || {
            let left = Departures::default();
            let builder = builder(shards).max_entries(2).eviction_listener(left.listener());
            let cache = Arc::new(builder.build().unwrap());
            put(&cache, value(0, 0));
            let removers = [0, 1].map(|_| spawn(&cache, |cache| cache.remove(&0)));
            let writers = [1, 2].map(|n| {
                spawn(&cache, move |cache| [put(cache, value(0, n)), put(cache, value(n, 3))])
            });
            let mut removed: Vec<_> =
                removers.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
            let mut stored = vec![value(0, 0)];
            for writer in writers {
                stored.extend(writer.join().unwrap().into_iter().flatten());
            }
            let mut told: Vec<_> = left.all();
            told.retain(|(_, cause)| *cause == RemovalCause::Removed);
            let mut told: Vec<_> = told.into_iter().map(|(value, _)| value).collect();
            removed.sort_unstable();
            told.sort_unstable();
            assert_eq!(removed, told, "what was returned is what the listener was told of");
            assert_eq!(cache.stats().removals, told.len() as u64);
            settle_accounts(&cache, &left, stored);
        });
    }
}

#[test]
fn an_insert_that_timed_out_has_not_happened() {
    explore(|| {
        let left = Departures::default();
        let builder = builder(1).max_entries(1).eviction_listener(left.listener());
        let cache = Arc::new(builder.build().unwrap());
        put(&cache, value(0, 0));
        let holder = spawn(&cache, |cache| {
            cache.retain(|_, _| {
                (0..4).for_each(|_| thread::yield_now());
                true
            })
        });
        let writer = spawn(&cache, |cache| {
            let value = value(1, 1);
            match cache.try_insert_for(1, value, Duration::from_secs(3600)) {
                Ok(()) => Some(value),
                Err(refused) => {
                    assert!(refused.error().is_timeout(), "{refused}");
                    assert_eq!(refused.into_entry(), (1, value), "the entry comes back");
                    None
                }
            }
        });
        holder.join().unwrap();
        let stored = writer.join().unwrap();
        assert_eq!(cache.peek(&1), stored);
        assert_eq!(cache.stats().timeouts, u64::from(stored.is_none()));
        settle_accounts(&cache, &left, std::iter::once(value(0, 0)).chain(stored).collect());
    });
}

/// Here slices of real time decide how often a lock is tried, so a schedule may not replay exactly.
#[test]
fn async_operations_wait_for_a_held_lock_and_come_to_an_end() {
    explore(|| {
        let builder = EmbeddingCache::builder().max_entries(2).shards(1);
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let cache = builder.hasher(hasher).build().unwrap();
        let keys = ["a", "b"].map(|text| CacheKey::new(text, "model"));
        cache.put_blocking(keys[0].clone(), [0.0]).unwrap();
        let holder = {
            let cache = cache.clone();
            thread::spawn(move || {
                shuttle::future::block_on(cache.retain(|_, _| {
                    (0..20).for_each(|_| thread::yield_now());
                    true
                }));
            })
        };
        let tasks = keys.clone().map(|key| {
            let cache = cache.clone();
            thread::spawn(move || {
                shuttle::future::block_on(async {
                    cache.put(key.clone(), [1.0]).await.unwrap();
                    let found = cache.get(&key).await;
                    assert_eq!(found.expect("nothing was evicted"), [1.0]);
                });
            })
        });
        holder.join().unwrap();
        for task in tasks {
            task.join().unwrap();
        }
        assert_eq!(cache.info().size, 2);
        assert_eq!(cache.stats().timeouts, 0);
    });
}
