//! A missing value is computed by one thread at a time, in no circle, and is no older than a removal.

use std::sync::atomic::AtomicUsize;

use shuttle::sync::atomic::AtomicU64 as Shared;

use super::*;

#[test]
fn one_thread_computes_at_a_time_and_the_next_takes_over_where_it_fails() {
    explore(|| {
        let cache = Arc::new(builder(2).max_entries(4).build().unwrap());
        let (calls, computing) = (Arc::new(AtomicUsize::new(0)), Arc::new(Shared::new(0)));
        let threads = [1, 2, 3].map(|name| {
            let (calls, computing) = (Arc::clone(&calls), Arc::clone(&computing));
            spawn(&cache, move |cache| {
                cache.try_get_or_insert_with(&0, || {
                    assert_eq!(computing.fetch_add(1, SeqCst), 0, "two compute");
                    thread::yield_now();
                    computing.fetch_sub(1, SeqCst);
                    if calls.fetch_add(1, SeqCst) == 0 { Err("down") } else { Ok(value(0, name)) }
                })
            })
        });
        let results = threads.map(|thread| thread.join().unwrap());
        let stored = cache.peek(&0).expect("the second call stored it");
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
        assert!(results.into_iter().flatten().all(|value| value == stored));
        assert_eq!(calls.load(SeqCst), 2);
        cache.validate();
    });
}

#[test]
fn threads_that_need_each_others_values_come_to_an_end() {
    for threads in [2, 3] {
        explore(move || {
            let cache = Arc::new(builder(2).max_entries(4).build().unwrap());
            let workers: Vec<_> = (0..threads)
                .map(|own| {
                    spawn(&cache, move |cache| {
                        let next = (own + 1) % threads;
                        let nested = || cache.get_or_insert_with(&next, || value(next, 0));
                        let own = cache.get_or_insert_with(&own, || match nested() {
                            Ok(found) => value(own, found.name + 1),
                            Err(error) => {
                                assert!(error.is_recursive(), "{error}");
                                value(own, 0)
                            }
                        });
                        own.unwrap()
                    })
                })
                .collect();
            for (own, worker) in (0..).zip(workers) {
                assert_eq!(worker.join().unwrap().key, own);
            }
            cache.validate();
        });
    }
}

#[test]
fn nobody_who_asks_after_a_removal_gets_what_was_computed_from_before_it() {
    let removals: [fn(&Cache); 2] = [
        |cache| assert!(cache.remove(&0).is_none_or(|value| value.key == 0)),
        |cache| assert!(cache.invalidate_all() <= 1),
    ];
    for remove in removals {
        explore(move || {
            let cache = Arc::new(builder(2).max_entries(4).build().unwrap());
            let fact = Arc::new(Shared::new(0));
            let ask = |fact: &Arc<Shared>| {
                let fact = Arc::clone(fact);
                move |cache: &Cache| {
                    let computed = cache.get_or_insert_with(&0, || value(0, fact.load(SeqCst)));
                    computed.unwrap().name
                }
            };
            let askers = [spawn(&cache, ask(&fact)), spawn(&cache, ask(&fact))];
            let again = ask(&fact);
            let changer = spawn(&cache, move |cache| {
                fact.store(1, SeqCst);
                remove(cache);
                assert_eq!(again(cache), 1, "older than the removal");
            });
            for asker in askers {
                assert!(asker.join().unwrap() <= 1);
            }
            changer.join().unwrap();
            // Or nothing: one that was computed and stored while it was removed.
            assert!(cache.peek(&0).is_none_or(|value| value.name == 1), "stored after its removal");
            cache.validate();
        });
    }
}
