//! Values that are computed where they are missing: once whoever asks, and never in a circle.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use embedding_cache::{CacheError, RemovalCause, ShardedCache};

use crate::support::{Gate, HANG, OpenOnDrop, Removals, eventually, in_time};

const THREADS: usize = 64;

type Cache = ShardedCache<u64, u64>;

/// What each of as many threads gets that do `work` at the same time; `Err` is its panic.
fn all_at_once<T: Send>(
    threads: usize,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<thread::Result<T>> {
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    start.wait();
                    work(number)
                })
            })
            .collect();
        workers.into_iter().map(thread::ScopedJoinHandle::join).collect()
    })
}

/// For a closure that is not to be called.
fn not_needed() -> u64 {
    unreachable!("there is a value")
}

/// Waits until `threads` have missed, and then so long that they wait.
fn all_wait(cache: &Cache, threads: usize) {
    eventually("all have missed", || cache.stats().misses >= threads as u64);
    thread::sleep(Duration::from_millis(50));
}

#[test]
fn one_of_64_threads_computes_slowly_and_all_get_what_it_computed() {
    in_time(|| {
        let (cache, calls) = (Cache::new(10), AtomicUsize::new(0));
        let results = all_at_once(THREADS, |number| {
            cache.get_or_insert_with(&7, || {
                calls.fetch_add(1, SeqCst);
                all_wait(&cache, THREADS);
                number as u64
            })
        });
        let values: Vec<u64> = results.into_iter().map(|value| value.unwrap().unwrap()).collect();
        assert_eq!(calls.load(SeqCst), 1);
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        assert_eq!(cache.get(&7), Some(values[0]));
        let stats = cache.stats();
        assert_eq!((stats.misses, stats.hits, stats.insertions), (THREADS as u64, 1, 1));
        cache.validate();
    });
}

#[test]
fn a_panic_is_its_callers_and_the_next_thread_that_waits_computes() {
    in_time(|| {
        let (cache, calls) = (Cache::new(10), AtomicUsize::new(0));
        let results = all_at_once(THREADS, |_| {
            cache.get_or_insert_with(&7, || {
                if calls.fetch_add(1, SeqCst) < 3 {
                    all_wait(&cache, THREADS);
                    std::panic::resume_unwind(Box::new("no value"));
                }
                70
            })
        });
        let (values, panics): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!((panics.len(), calls.load(SeqCst)), (3, 4));
        assert!(values.into_iter().all(|value| value.unwrap().unwrap() == 70));
        assert_eq!(cache.get(&7), Some(70));
        cache.validate();
    });
}

#[test]
fn an_error_is_its_callers_and_the_next_thread_that_waits_computes() {
    in_time(|| {
        let (cache, calls) = (Cache::new(10), AtomicUsize::new(0));
        let results = all_at_once(THREADS, |_| {
            cache.try_get_or_insert_with(&7, || match calls.fetch_add(1, SeqCst) {
                call @ 0..3 => {
                    all_wait(&cache, THREADS);
                    Err(format!("call {call}"))
                }
                _ => Ok(70),
            })
        });
        let results = results.into_iter().map(Result::unwrap);
        let (values, errors): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
        assert!(values.into_iter().all(|value| value.unwrap() == 70));
        let mut errors: Vec<CacheError> = errors.into_iter().map(Result::unwrap_err).collect();
        errors.sort_by_key(ToString::to_string);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts, [0, 1, 2].map(|call| format!("loading failed: call {call}")));
        assert!(errors.iter().all(CacheError::is_load_failed));
        assert_eq!(calls.load(SeqCst), 4);
        cache.validate();
    });
}

#[test]
fn where_every_closure_fails_each_is_called_once_and_nothing_stays() {
    in_time(|| {
        let (cache, calls) = (Cache::new(10), AtomicUsize::new(0));
        let results = all_at_once(THREADS, |_| {
            cache.try_get_or_insert_with(&7, || {
                calls.fetch_add(1, SeqCst);
                Err("down")
            })
        });
        assert!(results.into_iter().all(|result| result.unwrap().unwrap_err().is_load_failed()));
        assert_eq!((calls.load(SeqCst), cache.len()), (THREADS, 0));
        cache.validate();
    });
}

#[test]
fn an_error_of_the_cache_comes_as_it_is_and_others_as_the_source() {
    let cache = Cache::new(10);
    let inner = || Cache::new(0).insert(1, 1).map(|()| 1).map_err(CacheError::from);
    assert!(cache.try_get_or_insert_with(&1, inner).unwrap_err().is_too_large());
    let failed = cache.try_get_or_insert_with(&1, || Err(std::io::Error::other("broken pipe")));
    let source = std::error::Error::source(failed.as_ref().unwrap_err()).unwrap();
    assert_eq!(source.downcast_ref::<std::io::Error>().unwrap().to_string(), "broken pipe");
}

#[test]
fn a_closure_that_asks_for_its_own_key_gets_an_error() {
    in_time(|| {
        let cache = Cache::new(10);
        let value = cache.get_or_insert_with(&1, || {
            assert!(cache.get_or_insert_with(&1, not_needed).unwrap_err().is_recursive());
            // Another key is none of that.
            let two = cache.get_or_insert_with(&2, || {
                let one = cache.try_get_or_insert_with(&1, || Ok::<_, String>(0));
                assert!(one.unwrap_err().is_recursive());
                20
            });
            two.unwrap() + 1
        });
        assert_eq!((value.unwrap(), cache.get(&1), cache.get(&2)), (21, Some(21), Some(20)));
        // An error that goes on through the closures is what the outermost returns.
        let outer = cache.try_get_or_insert_with(&3, || cache.get_or_insert_with(&3, not_needed));
        assert!(outer.unwrap_err().is_recursive());
        assert_eq!(cache.get_or_insert_with(&3, || 30).unwrap(), 30, "nothing is left of it");
        cache.validate();
    });
}

/// Thread `i` computes key `i` and then needs that of the next; returns how many got an error.
fn run_circle(caches: &[&Cache]) -> usize {
    let all_compute = Barrier::new(caches.len());
    let circles = AtomicUsize::new(0);
    let results = all_at_once(caches.len(), |own| {
        let next = (own + 1) % caches.len();
        caches[own].get_or_insert_with(&(own as u64), || {
            all_compute.wait();
            match caches[next].get_or_insert_with(&(next as u64), not_needed) {
                Ok(value) => value + 1,
                Err(error) => {
                    assert!(error.is_recursive(), "{error}");
                    circles.fetch_add(1, SeqCst);
                    0
                }
            }
        })
    });
    assert!(results.into_iter().all(|value| value.unwrap().is_ok()));
    for cache in caches {
        cache.validate();
    }
    circles.into_inner()
}

#[test]
fn threads_that_need_each_others_values_do_not_wait_for_ever() {
    in_time(|| {
        for _ in 0..50 {
            for threads in [2, 3, 5] {
                let cache = Cache::new(10);
                let errors = run_circle(&vec![&cache; threads]);
                assert!((1..=threads).contains(&errors), "{errors} of {threads}");
            }
            let (one, other) = (Cache::new(10), Cache::new(10));
            assert!((1..=2).contains(&run_circle(&[&one, &other])), "over two caches");
        }
    });
}

#[test]
fn a_chain_of_threads_that_is_no_circle_is_waited_for_to_its_end() {
    in_time(|| {
        let cache = Cache::new(100);
        let all_compute = Barrier::new(10);
        let results = all_at_once(10, |own| {
            cache.get_or_insert_with(&(own as u64), || {
                all_compute.wait();
                match own {
                    9 => {
                        all_wait(&cache, 19);
                        0
                    }
                    _ => cache.get_or_insert_with(&(own as u64 + 1), not_needed).unwrap() + 1,
                }
            })
        });
        let values: Vec<u64> = results.into_iter().map(|value| value.unwrap().unwrap()).collect();
        assert_eq!(values, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
    });
}

#[test]
fn no_lock_is_held_while_a_closure_runs() {
    in_time(|| {
        let cache = ShardedCache::<u64, u64>::builder().max_entries(10).shards(1).build().unwrap();
        cache.insert(1, 10).unwrap();
        let value = cache.get_or_insert_with(&2, || {
            cache.insert(3, 30).unwrap();
            assert_eq!(cache.remove(&1), Some(10));
            assert_eq!(cache.retain(|_, _| true), 0);
            assert_eq!(cache.get(&2), None);
            // Another thread is not held up either.
            thread::scope(|scope| scope.spawn(|| cache.insert(4, 40).unwrap()).join().unwrap());
            cache.get(&3).unwrap() + cache.get(&4).unwrap()
        });
        assert_eq!(value.unwrap(), 70);
        assert_eq!(cache.get(&2), Some(70));
    });
}

/// Starts the computation of key 1 and stops it at a gate; does `meanwhile`; and returns what the
/// computation returned.
fn computed(cache: &Cache, meanwhile: impl FnOnce()) -> u64 {
    let gate = Gate::closed();
    thread::scope(|scope| {
        let _open = OpenOnDrop(&gate);
        let computing = scope.spawn(|| {
            cache.get_or_insert_with(&1, || {
                gate.pass();
                10
            })
        });
        gate.wait_for(1);
        meanwhile();
        gate.open();
        computing.join().unwrap().unwrap()
    })
}

#[test]
fn what_something_newer_came_before_is_handed_out_but_neither_stored_nor_waited_for() {
    in_time(|| {
        type Newer = fn(&Cache);
        let newer: [(&str, Newer); 3] = [
            ("removal", |cache| assert!(cache.remove(&1).is_none_or(|value| value == 11))),
            ("invalidation", |cache| assert!(cache.invalidate_all() <= 1)),
            ("clear", |cache| cache.clear()),
        ];
        for (what, newer) in newer {
            let cache = Cache::new(10);
            let value = computed(&cache, || {
                newer(&cache);
                // Were this to wait for the old computation, it would get its value, and hang.
                assert_eq!(cache.get_or_insert_with(&1, || 11).unwrap(), 11, "{what}");
            });
            assert_eq!((value, cache.get(&1)), (10, Some(11)), "{what}");

            newer(&cache);
            let value = computed(&cache, || newer(&cache));
            assert_eq!((value, cache.get(&1)), (10, None), "{what}");
            cache.validate();
        }
        let cache = Cache::new(10);
        let value = computed(&cache, || cache.insert(1, 12).unwrap());
        assert_eq!((value, cache.get(&1)), (10, Some(12)), "an insert");
        // What happens to another key is nothing newer.
        cache.clear();
        let value = computed(&cache, || assert_eq!(cache.remove(&2), None));
        assert_eq!((value, cache.get(&1)), (10, Some(10)));
    });
}

#[test]
fn a_value_that_the_cache_refuses_is_handed_out_and_counted() {
    let cache = ShardedCache::<u64, String>::builder()
        .max_weight(10)
        .weigher(|_: &u64, text: &String| text.len() as u64)
        .build()
        .unwrap();
    let long = || "much too long".to_string();
    assert_eq!(cache.get_or_insert_with(&1, long).unwrap(), long());
    assert_eq!((cache.get(&1), cache.stats().rejected), (None, 1));
    let nothing = ShardedCache::<u64, u64>::new(0);
    assert_eq!(nothing.get_or_insert_with(&1, || 2).unwrap(), 2);
    assert_eq!((nothing.len(), nothing.stats().rejected), (0, 1));
}

#[test]
fn those_who_wait_get_the_value_though_it_is_not_stored() {
    in_time(|| {
        let cache = Cache::builder().max_entries(10).time_to_live(Duration::ZERO).build().unwrap();
        let calls = AtomicUsize::new(0);
        let results = all_at_once(8, |_| {
            cache.get_or_insert_with(&7, || {
                calls.fetch_add(1, SeqCst);
                all_wait(&cache, 8);
                70
            })
        });
        assert!(results.into_iter().all(|value| value.unwrap().unwrap() == 70));
        assert_eq!(calls.load(SeqCst), 1);
    });
}

#[test]
fn a_panic_of_the_listener_or_of_a_drop_wakes_those_who_wait() {
    in_time(|| {
        let cache = Arc::new(
            Cache::builder()
                .max_entries(1)
                .eviction_listener(|_, value: &u64, _: RemovalCause| {
                    if *value == 13 {
                        std::panic::resume_unwind(Box::new("the listener"));
                    }
                })
                .build()
                .unwrap(),
        );
        cache.insert(13, 13).unwrap();
        let results = all_at_once(8, |_| {
            catch_unwind(AssertUnwindSafe(|| {
                cache.get_or_insert_with(&7, || {
                    all_wait(&cache, 8);
                    70
                })
            }))
        });
        let results = results.into_iter().map(Result::unwrap);
        let (values, panics): (Vec<_>, Vec<_>) = results.partition(Result::is_ok);
        assert_eq!((panics.len(), values.len()), (1, 7));
        assert!(values.into_iter().all(|value| value.unwrap().unwrap() == 70));
        cache.validate();
    });
}

#[test]
fn keys_are_computed_side_by_side() {
    in_time(|| {
        let (cache, all) = (Cache::new(100), Barrier::new(16));
        // Each closure waits for all others to be called.
        let results = all_at_once(16, |number| {
            cache.get_or_insert_with(&(number as u64), || {
                all.wait();
                number as u64
            })
        });
        assert!(
            results.into_iter().enumerate().all(|(i, value)| value.unwrap().unwrap() == i as u64)
        );
    });
}

#[test]
fn a_key_may_be_given_in_a_borrowed_form() {
    let cache = ShardedCache::<String, usize>::new(10);
    for _ in 0..2 {
        assert_eq!(cache.get_or_insert_with("four", || 4).unwrap(), 4);
    }
    let owned = "four".to_string();
    assert_eq!(cache.get_or_insert_with(&owned, || 5).unwrap(), 4);
    let pairs = ShardedCache::<(u8, u8), u8>::new(10);
    assert_eq!(pairs.get_or_insert_with(&(1, 2), || 3).unwrap(), 3);
    assert_eq!(cache.stats().hits, 2);
}

#[test]
fn extend_stores_what_fits_and_counts_what_is_refused() {
    let left = Removals::new();
    let mut cache = Cache::builder()
        .max_weight(1000)
        .weigher(|_, weight| *weight)
        .eviction_listener(left.listener())
        .build()
        .unwrap();
    cache.extend((0..300).map(|key| (key, if key % 100 == 7 { 2000 } else { 2 })));
    assert_eq!((cache.len(), cache.stats().rejected), (297, 3));
    (&cache).extend([(1, 3), (1, 4)]);
    assert_eq!(cache.get(&1), Some(4), "the later one stays");
    assert!(left.take().iter().all(|(_, _, cause)| *cause == RemovalCause::Replaced));
    let empty: [(u64, u64); 0] = [];
    cache.extend(empty);
    cache.validate();
}

/// Counts how often it is cloned.
#[derive(Debug)]
struct Counted<'a>(u64, &'a AtomicUsize);

impl Clone for Counted<'_> {
    fn clone(&self) -> Self {
        self.1.fetch_add(1, SeqCst);
        Self(self.0, self.1)
    }
}

#[test]
fn iter_and_keys_take_no_more_than_64_entries_a_lock_hold_and_none_between() {
    let clones = AtomicUsize::new(0);
    let cache =
        ShardedCache::<u64, Counted<'_>>::builder().max_entries(2000).shards(1).build().unwrap();
    for key in 0..1000 {
        cache.insert(key, Counted(key, &clones)).unwrap();
    }
    let (mut seen, mut before) = (0, 0);
    for (key, value) in &cache {
        let now = clones.load(SeqCst);
        assert!(now - before <= 64, "{} clones under one lock hold", now - before);
        before = now;
        assert_eq!(key, value.0);
        // The lock of the only shard is free, also for this thread.
        assert!(cache.try_insert_for(key, value, HANG).is_ok());
        seen += 1;
    }
    assert_eq!((seen, clones.load(SeqCst)), (1000, 1000));
    for key in cache.keys() {
        assert!(cache.remove(&key).is_some());
        seen -= 1;
    }
    assert_eq!((seen, cache.len(), clones.load(SeqCst)), (0, 0, 1000), "keys clones no value");
}
